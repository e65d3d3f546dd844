// Package guess finds out how the desktop in an image is started, and writes it down as a profile.
//
// # What is looked at
//
// The X sessions that the image offers to display managers (/usr/share/xsessions and /usr/local/share/xsessions, whose
// files are desktop entries), then programs that are known to start a desktop or window manager, then the image's own
// command, if that is an X client. Of several the one is chosen that the image's command starts, else the one that is the
// system's default (Debian's alternative x-session-manager), else the first of desktops, in which whole desktops come before
// mere window managers. A file comes before a program that no file names.
//
// The whole desktop becomes one component of the profile, beside Berth's display, sound and buses. The bus daemon is the
// image's own if it has one, because it looks for the services that it activates in its own file system.
//
// Everything here is a pure function of the image's files and configuration. Images are of any origin: what they say ends
// up in a profile's strings, which are quoted, and never in a path on the host.
package guess

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/distribution/reference"

	"berth/internal/desktopentry"
	"berth/orchestrator"
	"berth/profiles"
)

// Image is an image's configuration as far as it matters.
type Image struct {
	Ref string   // as the profile shall name it
	Env []string // KEY=VALUE
	Cmd []string // entrypoint and command, joined
}

// Command is the name of the session that is the image's own command, whatever that does.
const Command = "cmd"

// Session is something that could be started.
type Session struct {
	Name     string   // by which it is chosen: its file's name, the program's, or Command
	Title    string   // for people
	Command  []string // the program's place is added to the first word only where PATH would not lead there
	From     string   // where that was found: a file, "program /usr/bin/x", "the image's command"
	Desktops string   // $XDG_CURRENT_DESKTOP, "" if not known
	about    desktop
	file     bool // it has a file in xsessions
	server   string
}

// Options choose.
type Options struct {
	Session string // the name of one of the image's sessions; "" lets Of choose
	Profile string // the profile's name; "" means one made from the image's
}

// Guess is the result.
type Guess struct {
	Session Session
	Reason  string    // why this one
	Others  []Session // what else there was
	// Notes are what should be known of the image, each a sentence without a full stop.
	Notes   []string
	Profile string // the profile's name
	Source  string // the profile's text
}

// Of guesses. root is the image's root file system. An image without anything to start, and one without the session that
// opt names, are orchestrator.ErrNotFound; the message says what was looked for.
func Of(root fs.FS, img Image, opt Options) (*Guess, error) {
	l := &looker{root: root, img: img, path: searchPath(img.Env)}
	if err := l.look(); err != nil {
		return nil, fmt.Errorf("image %q: %w", img.Ref, err)
	}
	g := &Guess{Notes: l.notes}
	at, reason, err := l.choose(opt.Session)
	if err != nil {
		return nil, err
	}
	g.Session, g.Reason = l.found[at], reason
	for i, s := range l.found {
		if i != at {
			g.Others = append(g.Others, s)
		}
	}
	if g.Session.server != "" {
		g.Notes = append(g.Notes, fmt.Sprintf("the image's command starts an X server of its own (%s), which nobody will see", g.Session.server))
	}
	g.Profile = cmp.Or(opt.Profile, ProfileName(img.Ref))
	g.Source = l.write(g)
	if _, err := profiles.LoadText(g.Profile+".toml", []byte(g.Source), nil); err != nil {
		return nil, fmt.Errorf("image %q: the profile made for it is wrong: %w", img.Ref, err)
	}
	return g, nil
}

// ProfileName makes a profile's name from an image's reference.
func ProfileName(ref string) string {
	name := ref
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		name = path.Base(reference.Path(named))
	}
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	name = strings.TrimRight(b.String()[:min(b.Len(), 32)], "-")
	return cmp.Or(name, "image")
}

// standardPath is the PATH of a session's components.
const standardPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games"

// searchPath is the image's PATH, "" if it has none of its own.
func searchPath(env []string) string {
	for _, kv := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			return v
		}
	}
	return ""
}

// looker looks through one image.
type looker struct {
	root  fs.FS
	img   Image
	path  string // the image's PATH; "" means none
	found []Session
	notes []string
	// skipped are the session files that cannot be used, with the reason: "/usr/share/xsessions/a.desktop (why)".
	skipped []string
	wayland []string // names of Wayland sessions
	cmdWhy  string   // why the image's command is no X client
}

// Directories of sessions, the first wins where both have a name.
var (
	sessionDirs = []string{"usr/local/share/xsessions", "usr/share/xsessions"}
	waylandDirs = []string{"usr/local/share/wayland-sessions", "usr/share/wayland-sessions"}
)

// Bounds of what is read of an image.
const (
	maxFiles = 256
)

func (l *looker) look() error {
	if err := l.files(); err != nil {
		return err
	}
	l.programs()
	return l.command()
}

// files looks through the session files.
func (l *looker) files() error {
	seen := map[string]bool{}
	for _, dir := range sessionDirs {
		names, err := l.entries(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if seen[name] {
				continue
			}
			seen[name] = true
			s, why := l.sessionFile(path.Join(dir, name))
			if why != "" {
				l.skipped = append(l.skipped, fmt.Sprintf("/%s (%s)", path.Join(dir, clean(name, 80)), why))
				continue
			}
			l.found = append(l.found, s)
		}
	}
	for _, dir := range waylandDirs {
		names, err := l.entries(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			l.wayland = append(l.wayland, clean(strings.TrimSuffix(name, ".desktop"), 40))
		}
	}
	return nil
}

// entries are the names of the .desktop files in a directory, sorted; none if it is not there.
func (l *looker) entries(dir string) ([]string, error) {
	list, err := fs.ReadDir(l.root, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".desktop") && len(out) < maxFiles {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// sessionFile reads a session file; why, if not "", says that it cannot be used.
func (l *looker) sessionFile(file string) (s Session, why string) {
	text, err := l.read(file, desktopentry.MaxSize)
	if err != nil {
		return s, "cannot be read: " + reason(err)
	}
	e, err := desktopentry.Parse(text)
	if err != nil {
		return s, err.Error()
	}
	m := e.Main()
	if m == nil {
		return s, "does not begin with [Desktop Entry]"
	}
	if m.Bool("Hidden") || m.Bool("NoDisplay") {
		return s, "is hidden"
	}
	argv, err := desktopentry.SplitExec(m.Get("Exec"))
	if err != nil {
		return s, "Exec: " + err.Error()
	}
	if argv, err = desktopentry.Expand(argv, desktopentry.Fields{Name: m.Get("Name")}); err != nil || len(argv) == 0 {
		return s, fmt.Sprintf("Exec: %v", cmp.Or(err, errors.New("nothing to start")))
	}
	for _, p := range []string{m.Get("TryExec"), argv[0]} {
		if p == "" {
			continue
		}
		if _, ok := l.which(p); !ok {
			return s, fmt.Sprintf("its program %q is not in the image", clean(p, 60))
		}
	}
	argv = unwrap(argv)
	if _, ok := l.which(argv[0]); !ok {
		return s, fmt.Sprintf("its program %q is not in the image", clean(argv[0], 60))
	}
	about := describe(program(argv))
	s = Session{
		Name:     clean(strings.TrimSuffix(path.Base(file), ".desktop"), 60),
		Title:    cmp.Or(clean(m.Get("Name"), 60), about.title),
		Command:  l.full(argv),
		From:     "/" + file,
		Desktops: clean(strings.Join(m.List("DesktopNames"), ":"), 80),
		about:    about,
		file:     true,
	}
	s.Title = cmp.Or(s.Title, s.Name)
	s.Desktops = cmp.Or(s.Desktops, about.names)
	return s, ""
}

// programs looks for programs that are known, besides those that files name.
func (l *looker) programs() {
	for _, d := range desktops {
		if slices.ContainsFunc(l.found, func(s Session) bool { return s.about.title == d.title && d.title != "" }) {
			continue
		}
		for _, argv := range d.commands {
			place, ok := l.which(argv[0])
			if !ok {
				continue
			}
			l.found = append(l.found, Session{Name: argv[0], Title: d.title, Command: l.full(argv), From: "program " + place, Desktops: d.names, about: d})
			break
		}
	}
}

// command adds the image's own command if that is an X client and starts nothing that was found.
func (l *looker) command() error {
	if len(l.img.Cmd) == 0 {
		l.cmdWhy = "the image has no command of its own"
		return nil
	}
	s := Session{Name: Command, Title: clean(program(l.img.Cmd), 40), Command: slices.Clone(l.img.Cmd), From: "the image's command",
		about: desktop{roles: []string{"app"}}}
	client, why, err := l.client(l.img.Cmd)
	if err != nil {
		return err
	}
	s.server = client.server
	if s.server != "" {
		why = fmt.Sprintf("it starts an X server of its own, %s", s.server)
	}
	if why != "" {
		l.cmdWhy = fmt.Sprintf("the image's command %q is no X client as far as can be seen: %s", clean(strings.Join(l.img.Cmd, " "), 80), why)
		return nil
	}
	if l.started() >= 0 {
		return nil // one of the others is what it starts
	}
	l.found = append(l.found, s)
	return nil
}

// started is the index of the session that the image's command starts: it names its program, or is a script that does. -1 if
// there is none.
func (l *looker) started() int {
	for _, w := range l.img.Cmd {
		for i, s := range l.found {
			if s.Name != Command && program(s.Command) == path.Base(w) {
				return i
			}
		}
	}
	c, _, err := l.client(l.img.Cmd)
	if err != nil || c.server != "" {
		return -1
	}
	for i, s := range l.found {
		if s.Name != Command && slices.Contains(c.words, program(s.Command)) {
			return i
		}
	}
	return -1
}

// choose returns the index of the session to start and the reason.
func (l *looker) choose(name string) (int, string, error) {
	if name != "" {
		i := slices.IndexFunc(l.found, func(s Session) bool { return s.Name == name })
		if i >= 0 {
			return i, "it was asked for", nil
		}
		if name == Command && len(l.img.Cmd) > 0 {
			// Whoever asks for it by name knows better than the guess.
			c, _, err := l.client(l.img.Cmd)
			if err != nil {
				return 0, "", fmt.Errorf("image %q: %w", l.img.Ref, err)
			}
			l.found = append(l.found, Session{Name: Command, Title: clean(program(l.img.Cmd), 40), Command: slices.Clone(l.img.Cmd),
				From: "the image's command", about: desktop{roles: []string{"app"}}, server: c.server})
			return len(l.found) - 1, "it was asked for", nil
		}
		names := make([]string, len(l.found))
		for i, s := range l.found {
			names[i] = s.Name
		}
		hint := ""
		if near := profiles.Nearest(name, names); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		} else if len(names) > 0 {
			hint = "; it has " + strings.Join(names, ", ")
		}
		return 0, "", fmt.Errorf("image %q: session %q: %w%s", l.img.Ref, clean(name, 60), orchestrator.ErrNotFound, hint)
	}
	if len(l.found) == 0 {
		return 0, "", l.nothing()
	}
	if i := l.started(); i >= 0 {
		return i, "the image's command starts it", nil
	}
	if len(l.found) == 1 {
		return 0, "it is the only one", nil
	}
	if def := l.standard(); def != "" {
		for i, s := range l.found {
			if s.file && program(s.Command) == def {
				return i, fmt.Sprintf("it is the image's standard session (alternative x-session-manager: %s)", def), nil
			}
		}
	}
	best := 0
	key := func(i int) []int {
		s := l.found[i]
		class := 1
		switch {
		case s.file:
			class = 0
		case s.Name == Command:
			class = 2
		}
		return []int{class, rank(program(s.Command)), i}
	}
	for i := range l.found {
		if slices.Compare(key(i), key(best)) < 0 {
			best = i
		}
	}
	why := "whole desktops come before window managers, and these in a fixed order"
	if l.found[best].file && slices.ContainsFunc(l.found, func(s Session) bool { return !s.file }) &&
		len(slices.DeleteFunc(slices.Clone(l.found), func(s Session) bool { return !s.file })) == 1 {
		why = "it is the only one that the image offers to display managers"
	}
	return best, why, nil
}

// standard is the program behind Debian's alternative x-session-manager, "" if there is none.
func (l *looker) standard() string {
	target, err := fs.ReadLink(l.root, "etc/alternatives/x-session-manager")
	if err != nil {
		return ""
	}
	return path.Base(target)
}

// nothing is the error for an image in which nothing was found.
func (l *looker) nothing() error {
	parts := []string{}
	dirs := "/" + strings.Join(sessionDirs, " or /")
	if len(l.skipped) > 0 {
		parts = append(parts, "of the session files none can be used: "+strings.Join(l.skipped, ", "))
	} else {
		parts = append(parts, "no session file in "+dirs)
	}
	parts = append(parts, fmt.Sprintf("none of the programs %s in %s", strings.Join(programs(), ", "), cmp.Or(l.path, standardPath)))
	parts = append(parts, l.cmdWhy)
	if len(l.wayland) > 0 {
		parts = append(parts, "its Wayland sessions ("+strings.Join(l.wayland, ", ")+") need a display that Berth does not have yet")
	}
	return fmt.Errorf("image %q: desktop %w; looked for:\n  %s", l.img.Ref, orchestrator.ErrNotFound, strings.Join(parts, "\n  "))
}

// which finds a program as execvp(3) does, with the image's PATH and then the standard one. place is its absolute path.
func (l *looker) which(name string) (place string, ok bool) {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			return "", false
		}
		return name, l.executable(name)
	}
	for _, list := range []string{l.path, standardPath} {
		for dir := range strings.SplitSeq(list, ":") {
			if path.IsAbs(dir) && l.executable(path.Join(dir, name)) {
				return path.Join(dir, name), true
			}
		}
	}
	return "", false
}

func (l *looker) executable(name string) bool {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if !fs.ValidPath(name) {
		return false
	}
	info, err := fs.Stat(l.root, name)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// full returns argv with an absolute first word if the session's PATH does not lead to the same program.
func (l *looker) full(argv []string) []string {
	out := slices.Clone(argv)
	if place, ok := l.which(argv[0]); ok && !strings.Contains(argv[0], "/") && !slices.Contains(strings.Split(standardPath, ":"), path.Dir(place)) {
		out[0] = place
	}
	return out
}

// read returns a file of the image that has at most limit bytes.
func (l *looker) read(name string, limit int64) ([]byte, error) {
	f, err := l.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case info.Size() > limit:
		return nil, fmt.Errorf("%d bytes, at most %d are read", info.Size(), limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// reason is an error without the path that the message has already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// clean makes a text of the image's fit to be shown and put into a profile: printable, at most n characters.
func clean(s string, n int) string {
	var out []rune
	for _, r := range strings.ToValidUTF8(s, "?") {
		if len(out) == n {
			return string(out) + "..."
		}
		if !unicode.IsPrint(r) {
			r = '?'
		}
		out = append(out, r)
	}
	return string(out)
}
