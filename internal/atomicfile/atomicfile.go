// Package atomicfile writes files so that a reader or a crash sees the old or the new content, never a part.
package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Write replaces the file at path with data and mode: a temporary file beside it is written, synced and renamed over it.
func Write(path string, data []byte, mode os.FileMode) error {
	return named(path, replace(path, bytes.NewReader(data), mode))
}

// Output writes what r holds to a path that a user named. Symbolic links are followed. A file appears only when it is
// whole, as with Write; what is there and is no regular file, such as a device or a FIFO, is opened and written to, and
// so is what one of the process's descriptors leads to (/dev/stderr), behind what is in it.
func Output(path string, r io.Reader, mode os.FileMode) error {
	return named(path, output(path, r, mode))
}

func output(path string, r io.Reader, mode os.FileMode) error {
	// The kernel's own walk comes first: it refuses links that others left in a sticky directory (proc_sys_fs(5),
	// protected_symlinks), which reading them would not.
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	target, descriptor := follow(path)
	if err != nil || info.Mode().IsRegular() && !descriptor {
		return replace(target, r, mode)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// maxLinks is how many symbolic links the kernel follows (path_resolution(7)).
const maxLinks = 40

// follow returns the name behind the symbolic links at path, which may be a file's that is not there yet, and whether
// one of them is a descriptor's in /proc, whose text is not always a name.
func follow(path string) (target string, descriptor bool) {
	for range maxLinks {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return path, false // opening it says why
		}
		if strings.HasPrefix(dir, "/proc/") {
			return path, true
		}
		link, err := os.Readlink(path)
		if err != nil {
			return path, false
		}
		if path = link; !filepath.IsAbs(link) {
			path = filepath.Join(dir, link)
		}
	}
	return path, false
}

// replace is Write with errors that need not name the file.
func replace(path string, r io.Reader, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = io.Copy(f, r); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// named makes err `file "path": cause`, without the names of system calls and temporary files.
func named(path string, err error) error {
	switch e := err.(type) {
	case nil:
		return nil
	case *fs.PathError:
		err = e.Err
	case *os.LinkError:
		err = e.Err
	}
	return fmt.Errorf("file %q: %w", path, err)
}
