// Package export makes what an image shows to components of other images in its session: a directory for XDG_DATA_DIRS.
//
//	share/applications/*.desktop        each application, started through berth-launch where its image is at home
//	share/applications/mimeinfo.cache   which of them opens what (as update-desktop-database(1) writes it)
//	share/icons/hicolor/                the theme that every other falls back on, with the applications' icons from further themes
//	share/mime/                         the image's shared MIME database, as update-mime-database(1) made it
//	share/dbus-1/services/*.service     each service that can be activated, in the same way
//
// Write is a pure function from an image's files to such a directory; Cache keeps the results by the image's digest.
//
// Images come from anywhere. What is not certain to mean the same to every reader (desktopentry.Parse), names a program that is
// not there, or claims a name that it may not have, is left out and reported; links are followed inside the image only; nothing that
// is copied is executed by anybody but the image's own component. Sizes and numbers are bounded.
package export

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"berth/internal/desktopentry"
	"berth/profiles"
	"berth/session/autostart"
	"berth/session/launch"
)

// Bounds of what one image may export.
const (
	maxEntries  = 4096      // desktop files, services
	maxIcon     = 4 << 20   // bytes
	maxIcons    = 256 << 20 // bytes, of all icons
	maxMIME     = 64 << 20  // bytes, of the MIME database
	maxPathDeep = 4         // directories below applications
)

// Options of Write.
type Options struct {
	Component string   // where the image's programs run
	Patterns  []string // path.Match, of desktop file IDs without the suffix; of services nothing is left out
	Dir       string   // where the result will be seen: /run/berth/exports/apps-kde
}

// Report says what was exported and what was not.
type Report struct {
	Digest       string    `json:"digest,omitempty"` // of the image's manifest
	Applications []string  `json:"applications"`     // desktop file IDs
	Services     []string  `json:"services"`         // names on the session bus
	Skipped      []Skipped `json:"skipped,omitempty"`
	// Autostart is in a report of its own.
	Autostart []autostart.Entry `json:"autostart,omitempty"`
}

// Skipped is a file that was left out because something is wrong with it.
type Skipped struct {
	File string `json:"file"`
	Why  string `json:"why"`
}

// writer is one call of Write.
type writer struct {
	root    fs.FS
	out     string // .../share
	opt     Options
	report  Report
	icons   int64 // bytes written so far
	themes  map[string][]themeIcon
	mime    map[string][]string // type -> desktop file IDs with suffix
	written map[string]bool     // icons, below share
}

// Write writes the exports of the image whose files are root into dir, an empty directory. Errors are those of reading and
// writing; what is wrong with the image's files is in the report.
func Write(root fs.FS, dir string, opt Options) (Report, error) {
	w := &writer{root: root, out: filepath.Join(dir, "share"), opt: opt, mime: map[string][]string{}, written: map[string]bool{}}
	for _, step := range []func() error{w.services, w.hicolor, w.applications, w.mimeCache, w.mimeDatabase} {
		if err := step(); err != nil {
			return Report{}, err
		}
	}
	slices.Sort(w.report.Applications)
	slices.Sort(w.report.Services)
	return w.report, nil
}

func (w *writer) skip(file, format string, args ...any) {
	w.report.Skipped = append(w.report.Skipped, Skipped{File: "/" + file, Why: fmt.Sprintf(format, args...)})
}

// dataDirs are an image's, the first counts most (XDG Base Directory Specification).
var dataDirs = []string{"usr/local/share", "usr/share"}

// walk calls visit with the regular files below dir, sorted, directories at most maxPathDeep deep; links are followed.
func (w *writer) walk(dir string, deep int, visit func(name string) error) error {
	entries, err := fs.ReadDir(w.root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		info, err := fs.Stat(w.root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a link to nowhere
		}
		if err != nil {
			return err
		}
		switch {
		case info.IsDir() && deep > 0:
			err = w.walk(name, deep-1, visit)
		case info.Mode().IsRegular():
			err = visit(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry reads and parses name; nil if it was left out.
func (w *writer) entry(name string) (*desktopentry.Entry, error) {
	info, err := fs.Stat(w.root, name)
	if err != nil {
		return nil, err
	}
	if info.Size() > desktopentry.MaxSize {
		w.skip(name, "%d bytes; at most %d are read", info.Size(), desktopentry.MaxSize)
		return nil, nil
	}
	text, err := fs.ReadFile(w.root, name)
	if err != nil {
		return nil, err
	}
	e, err := desktopentry.Parse(text)
	if err != nil {
		w.skip(name, "%v", err)
		return nil, nil
	}
	return e, nil
}

// applications exports the desktop files.
func (w *writer) applications() error {
	seen := map[string]bool{}
	for _, data := range dataDirs {
		base := data + "/applications"
		err := w.walk(base, maxPathDeep, func(name string) error {
			id, ok := strings.CutSuffix(strings.ReplaceAll(strings.TrimPrefix(name, base+"/"), "/", "-"), ".desktop")
			if !ok || seen[id] {
				return nil
			}
			seen[id] = true // what hides another is the image's own affair
			if !w.wanted(id) {
				return nil
			}
			if len(w.report.Applications) >= maxEntries {
				w.skip(name, "more than %d applications", maxEntries)
				return nil
			}
			if strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`;=[]"'\`, r) }) {
				w.skip(name, "its name cannot stand in a list")
				return nil
			}
			e, err := w.entry(name)
			if e == nil {
				return err
			}
			return w.application(name, id, e)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) wanted(id string) bool {
	return slices.ContainsFunc(w.opt.Patterns, func(p string) bool { ok, _ := path.Match(p, id); return ok }) // patterns were checked
}

func (w *writer) application(name, id string, e *desktopentry.Entry) error {
	main := e.Main()
	if main.Get("Type") != "Application" || main.Bool("Hidden") {
		return nil
	}
	if try := main.Get("TryExec"); try != "" && !w.hasProgram(try) {
		return nil // which is what TryExec is for
	}
	dir := main.Get("Path")
	for _, g := range e.Groups() {
		if g.Name != desktopentry.Main && !strings.HasPrefix(g.Name, "Desktop Action ") {
			continue
		}
		text, has := g.Lookup("Exec")
		if !has {
			if g == main && !main.Bool("DBusActivatable") {
				w.skip(name, "it has no command")
				return nil
			}
			continue
		}
		argv, err := desktopentry.SplitExec(text)
		if err != nil {
			w.skip(name, "%v", err)
			return nil
		}
		if !w.hasProgram(argv[0]) {
			w.skip(name, "program %q is not in the image", argv[0])
			return nil
		}
		if err := g.Set("Exec", desktopentry.JoinExec(w.launch(dir, argv))); err != nil {
			w.skip(name, "%v", err)
			return nil
		}
		if err := w.icon(g); err != nil {
			return err
		}
		g.Delete("TryExec") // it would be looked for where the program is not
	}
	main.Delete("Path")
	if main.Bool("DBusActivatable") && !slices.Contains(w.report.Services, id) {
		main.Delete("DBusActivatable")
		if main.Get("Exec") == "" {
			w.skip(name, "it has neither a command nor a service")
			return nil
		}
	}
	if err := w.file("applications/"+id+".desktop", e.Bytes()); err != nil {
		return err
	}
	w.report.Applications = append(w.report.Applications, id)
	for _, t := range main.List("MimeType") {
		if ids := w.mime[t]; !slices.Contains(ids, id+".desktop") {
			w.mime[t] = append(ids, id+".desktop")
		}
	}
	return nil
}

// launch is the command that runs argv in the image's component.
func (w *writer) launch(dir string, argv []string) []string {
	out := []string{launch.Client}
	if dir != "" {
		out = append(out, "--dir", dir)
	}
	return slices.Concat(out, []string{w.opt.Component, "--"}, argv)
}

// programDirs is the PATH of every component.
var programDirs = []string{"usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin", "usr/games"}

// hasProgram tells whether the image has an executable file of that name or absolute path.
func (w *writer) hasProgram(name string) bool {
	is := func(p string) bool {
		info, err := fs.Stat(w.root, p)
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	}
	if path.IsAbs(name) {
		name = strings.TrimPrefix(path.Clean(name), "/")
		return strings.HasPrefix(name, strings.TrimPrefix(path.Dir(launch.Client), "/")+"/") || fs.ValidPath(name) && is(name)
	}
	if strings.Contains(name, "/") || name == "" {
		return false // relative to nobody knows what
	}
	return slices.ContainsFunc(programDirs, func(d string) bool { return is(path.Join(d, name)) })
}

// services exports what the session bus can activate.
func (w *writer) services() error {
	seen := map[string]bool{}
	for _, data := range dataDirs {
		err := w.walk(data+"/dbus-1/services", 0, func(name string) error {
			if !strings.HasSuffix(name, ".service") {
				return nil
			}
			if len(w.report.Services) >= maxEntries {
				w.skip(name, "more than %d services", maxEntries)
				return nil
			}
			e, err := w.entry(name)
			if e == nil {
				return err
			}
			g := e.Group("D-BUS Service")
			bus := g.Get("Name")
			switch {
			case !busName(bus):
				w.skip(name, "%.60q is no name of a service", bus)
				return nil
			case bus == "org.freedesktop.DBus":
				w.skip(name, "the bus itself has this name")
				return nil
			case seen[bus]:
				return nil
			}
			seen[bus] = true
			argv, err := desktopentry.SplitExec(g.Get("Exec"))
			if err != nil {
				w.skip(name, "%v", err)
				return nil
			}
			if !w.hasProgram(argv[0]) {
				w.skip(name, "program %q is not in the image", argv[0])
				return nil
			}
			if argv[0] == "/bin/false" || argv[0] == "/usr/bin/false" {
				return nil // systemd's alone
			}
			text := fmt.Sprintf("[D-BUS Service]\nName=%s\nExec=%s\n", bus, desktopentry.JoinExec(w.launch("", argv)))
			if err := w.file("dbus-1/services/"+bus+".service", []byte(text)); err != nil {
				return err
			}
			w.report.Services = append(w.report.Services, bus)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// busName tells whether s is a well-known name (D-Bus specification, "Valid Names").
func busName(s string) bool {
	if len(s) > 255 || !strings.Contains(s, ".") {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || part[0] >= '0' && part[0] <= '9' || strings.ContainsFunc(part, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
		}) {
			return false
		}
	}
	return true
}

// mimeCache writes which application opens what.
func (w *writer) mimeCache() error {
	var b bytes.Buffer
	b.WriteString("[MIME Cache]\n")
	var types []string
	for t := range w.mime {
		if !strings.ContainsAny(t, "=[]\n") && t != "" {
			types = append(types, t)
		}
	}
	slices.Sort(types)
	for _, t := range types {
		slices.Sort(w.mime[t])
		fmt.Fprintf(&b, "%s=%s;\n", t, strings.Join(w.mime[t], ";"))
	}
	return w.file("applications/mimeinfo.cache", b.Bytes())
}

// mimeDatabase copies what update-mime-database has made in the image. Its sources in packages are left out: readers would
// find them newer than what was made of them, and have no use for them besides.
func (w *writer) mimeDatabase() error {
	const base = "usr/share/mime"
	var total int64
	return w.walk(base, 2, func(name string) error {
		rel := strings.TrimPrefix(name, base+"/")
		if strings.HasPrefix(rel, "packages/") {
			return nil
		}
		info, err := fs.Stat(w.root, name)
		if err != nil {
			return err
		}
		if total += info.Size(); total > maxMIME {
			if total-info.Size() <= maxMIME {
				w.skip(base, "the MIME database is larger than %d MiB", maxMIME>>20)
			}
			return nil
		}
		data, err := fs.ReadFile(w.root, name)
		if err != nil {
			return err
		}
		return w.file("mime/"+rel, data)
	})
}

// file writes below share.
func (w *writer) file(name string, data []byte) error {
	p := filepath.Join(w.out, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, data, 0o644)
}

// Claims finds the names that more than one of the images can start, sorted. first is the image that the bus runs in, whose own
// services come first; "" if it exports nothing. Of the others the order of apps decides.
func Claims(apps []profiles.App, reports []Report, first string) []profiles.Claim {
	by := map[string][]string{}
	order := slices.Collect(func(yield func(int) bool) {
		for _, own := range []bool{true, false} {
			for i, a := range apps {
				if (a.Image == first) == own && !yield(i) {
					return
				}
			}
		}
	})
	for _, i := range order {
		for _, s := range reports[i].Services {
			by[s] = append(by[s], apps[i].Image)
		}
	}
	var out []profiles.Claim
	for name, images := range by {
		if len(images) > 1 {
			out = append(out, profiles.Claim{Name: name, Images: images})
		}
	}
	slices.SortFunc(out, func(a, b profiles.Claim) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
