package guess

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// client is what is known of a command that may be an X client.
type client struct {
	server string   // the program by which it starts an X server of its own
	words  []string // names of known programs that its scripts mention
}

// Bounds of what is read of scripts.
const (
	maxScript = 64 << 10
	maxWords  = 256
)

// client looks whether a command is an X client: a program linked with an X toolkit, or a script that mentions one or a
// program that is known to start a desktop. why, if not "", says why it seems to be none. The error is that of an image that
// cannot be read.
func (l *looker) client(argv []string) (c client, why string, err error) {
	why = "its program is not in the image"
	for i, w := range argv {
		// The text of sh -c is a script of its own.
		if i > 1 && argv[i-1] == "-c" && slices.Contains([]string{"sh", "bash", "dash", "ash"}, path.Base(argv[i-2])) {
			if done, err := l.script(w, &c); done || err != nil {
				return c, "", err
			}
			continue
		}
		place, ok := l.which(w)
		if !ok {
			continue
		}
		if base := path.Base(w); slices.Contains(servers, base) {
			c.server = base
			return c, "", nil
		}
		if strings.HasPrefix(w, "-") || i > 0 && !strings.Contains(w, "/") && rank(w) == len(desktops) {
			// An argument that happens to be called like a program; an entrypoint's program is mostly given so, too.
			if ok, err := l.linked(place); err != nil || !ok {
				continue
			}
			return c, "", nil
		}
		is, err := l.linked(place)
		if err != nil {
			return c, "", err
		}
		if is || rank(path.Base(w)) < len(desktops) {
			return c, "", nil
		}
		why = fmt.Sprintf("%s is linked with no X library and no script that mentions a program that is", clean(place, 60))
		text, err := l.read(strings.TrimPrefix(path.Clean(place), "/"), maxScript)
		if err != nil || !bytes.HasPrefix(text, []byte("#!")) {
			continue // too long for a script, or a program
		}
		if done, err := l.script(string(text), &c); done || err != nil {
			return c, "", err
		}
	}
	return c, why, nil
}

// script looks through a shell script for what it starts, and tells whether it is an X client.
func (l *looker) script(text string, c *client) (bool, error) {
	found, seen := false, map[string]bool{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, w := range strings.FieldsFunc(line, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.+/", r))
		}) {
			base := path.Base(w)
			if seen[w] || strings.HasPrefix(w, "-") {
				continue
			}
			if seen[w] = true; len(seen) > maxWords {
				return found, nil
			}
			place, ok := l.which(w)
			if !ok {
				continue
			}
			switch {
			case slices.Contains(servers, base):
				c.server = base
				return true, nil
			case rank(base) < len(desktops):
				c.words = append(c.words, base)
				found = true
			case !found:
				is, err := l.linked(place)
				if err != nil {
					return false, err
				}
				found = is
			}
		}
	}
	return found, nil
}

// toolkits begin the names of libraries that only X clients are linked with.
var toolkits = []string{"libX11.", "libX11-xcb.", "libxcb.", "libXt.", "libXaw", "libgtk-", "libgdk-", "libQt5Gui.", "libQt5Widgets.",
	"libQt6Gui.", "libQt6Widgets.", "libQtGui.", "libwx_gtk", "libSDL-", "libSDL2-", "libSDL3.", "libfltk", "libGLX.", "libGL.", "libtk8", "libtk9", "libxul."}

// linked tells whether a program is linked with one of the toolkits. What is no ELF file is not.
func (l *looker) linked(place string) (bool, error) {
	f, err := l.root.Open(strings.TrimPrefix(path.Clean(place), "/"))
	if err != nil {
		return false, err
	}
	defer f.Close()
	at, ok := f.(io.ReaderAt)
	if !ok {
		return false, &fs.PathError{Op: "read", Path: place, Err: fs.ErrInvalid}
	}
	e, err := elf.NewFile(at)
	if err != nil {
		return false, nil // a script, or for nobody to run
	}
	libs, err := e.ImportedLibraries()
	if err != nil {
		return false, nil
	}
	return slices.ContainsFunc(libs, func(lib string) bool {
		return slices.ContainsFunc(toolkits, func(t string) bool { return strings.HasPrefix(lib, t) })
	}), nil
}
