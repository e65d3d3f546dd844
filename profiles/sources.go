package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/orchestrator"
)

// Source is a place that holds profiles as NAME.toml.
type Source struct {
	Name string // in messages and lists: "built-in", "/etc/berth/profiles"
	Dir  string // on the host; may not exist. Else
	FS   fs.FS  // the profiles compiled into Berth.
	// Owner, if not nil, must own every file of Dir. The daemon runs as root and quotes what it cannot understand; without
	// this a user could have it quote any file of the host, by a symbolic link.
	Owner *int
}

// Sources are looked through in order; the first that has a profile wins.
type Sources []Source

// StandardSources are the user's own profiles below home, those of /etc, and the built-in ones. home is "" and uid -1 for
// a caller without a home directory. With uid >= 0 the files below home must belong to that user.
func StandardSources(home string, uid int, builtin fs.FS) Sources {
	var out Sources
	if home != "" {
		dir := filepath.Join(home, ".config", "berth", "profiles")
		s := Source{Name: dir, Dir: dir}
		if uid >= 0 {
			s.Owner = &uid
		}
		out = append(out, s)
	}
	out = append(out, Source{Name: "/etc/berth/profiles", Dir: "/etc/berth/profiles"})
	if builtin != nil {
		out = append(out, Source{Name: "built-in", FS: builtin})
	}
	return out
}

// file is the name of a profile's file in messages.
func (s Source) file(name string) string { return s.Name + "/" + name + ".toml" }

// read returns a profile's text; fs.ErrNotExist if there is none.
func (s Source) read(name string) ([]byte, error) {
	if s.FS != nil {
		f, err := s.FS.Open(name + ".toml")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readLimited(f)
	}
	return readRegular(filepath.Join(s.Dir, name+".toml"), s.Owner)
}

// names lists the profiles, sorted.
func (s Source) names() ([]string, error) {
	var entries []fs.DirEntry
	var err error
	if s.FS != nil {
		entries, err = fs.ReadDir(s.FS, ".")
	} else {
		entries, err = os.ReadDir(s.Dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("profiles in %q: %w", s.Name, err)
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".toml"); ok && profileName(name) && !e.IsDir() {
			out = append(out, name)
		}
	}
	return out, nil
}

// find returns the first source at or behind index from that has the profile; -1 if none has.
func (src Sources) find(name string, from int) (text []byte, index int, err error) {
	if !profileName(name) {
		return nil, -1, nil // no file of a source is called so
	}
	for i := from; i < len(src); i++ {
		text, err := src[i].read(name)
		if err == nil {
			return text, i, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return nil, i, fmt.Errorf("profile %q: %w", src[i].file(name), err)
		}
	}
	return nil, -1, nil
}

// Find returns the text of the profile called name and its file's name in messages. One that does not exist is
// orchestrator.ErrNotFound, with the nearest name.
func (src Sources) Find(name string) (file string, text []byte, err error) {
	text, i, err := src.find(name, 0)
	if err != nil {
		return "", nil, err
	}
	if i < 0 {
		return "", nil, notFound(name, src)
	}
	return src[i].file(name), text, nil
}

// Path is how messages name the file at path if it lies in one of the sources, whatever links lead there; else it is path.
func (src Sources) Path(path string) string {
	stem, ok := strings.CutSuffix(filepath.Base(path), ".toml")
	dir, err := os.Stat(filepath.Dir(path))
	if !ok || !profileName(stem) || err != nil {
		return path
	}
	for _, s := range src {
		if s.Dir == "" {
			continue
		}
		if info, err := os.Stat(s.Dir); err == nil && os.SameFile(dir, info) {
			return s.file(stem)
		}
	}
	return path
}

// names lists the profiles at or behind index from, for suggestions.
func (src Sources) names(from int) []string {
	var out []string
	for _, s := range src[min(from, len(src)):] {
		names, err := s.names()
		if err != nil {
			continue // a suggestion is not worth an error of its own
		}
		out = append(out, names...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ReadFile reads the text of a profile's file, whatever its name, for LoadText. It refuses what is not a regular file
// and what is larger than MaxFileSize, without reading it.
func ReadFile(path string) ([]byte, error) {
	text, err := readRegular(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("profile %q: %w", path, orchestrator.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", path, err)
	}
	return text, nil
}

// readRegular opens path without side effects (a FIFO would block, opening a device can act on it): first as a mere
// path, then, when that turned out to be a regular file of the right owner, that same file for reading.
func readRegular(path string, owner *int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err // an Errno; the callers name the file
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, fmt.Errorf("is a directory: %w", orchestrator.ErrInvalid)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("not a regular file: %w", orchestrator.ErrInvalid)
	case owner != nil && int(st.Uid) != *owner:
		return nil, fmt.Errorf("belongs to user %d and not to user %d; copy it or name it by its path: %w", st.Uid, *owner, orchestrator.ErrInvalid)
	case st.Size > MaxFileSize:
		return nil, fmt.Errorf("file has %d bytes; a profile has at most %d (1 MiB): %w", st.Size, MaxFileSize, orchestrator.ErrInvalid)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f)
}

// readLimited reads one byte more than is allowed, so that precheck sees the excess.
func readLimited(r io.Reader) ([]byte, error) {
	var b bytes.Buffer
	_, err := b.ReadFrom(io.LimitReader(r, MaxFileSize+1))
	return b.Bytes(), err
}
