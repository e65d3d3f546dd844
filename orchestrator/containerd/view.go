package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"berth/orchestrator"
)

// View implements orchestrator.Images, in the way of ReadFile.
func (s *images) View(ctx context.Context, ref string, visit func(root fs.FS) error) error {
	ctx = s.withNamespace(ctx)
	r, err := s.client.ImageService().Get(ctx, ref)
	if err != nil {
		return imageError(ref, "", err)
	}
	f, err := s.factsOf(ctx, r)
	if err != nil {
		return err
	}
	var visitErr error
	err = s.viewSnapshot(ctx, ref, f, func(root int) error {
		visitErr = visit(viewFS{root})
		return visitErr
	})
	switch {
	case visitErr != nil:
		return visitErr // the caller's own, as it is
	case err != nil:
		return imageError(ref, "view", err)
	}
	return nil
}

// viewFS is the tree below a directory, with links resolved as if that were "/". It implements fs.StatFS and, for links
// themselves, Lstat and ReadLink of fs.ReadLinkFS.
type viewFS struct{ root int }

func (v viewFS) Open(name string) (fs.File, error) {
	f, err := v.open("open", name, forReading)
	if err != nil {
		return nil, err
	}
	return &viewFile{File: f, fs: v, name: name}, nil
}

func (v viewFS) Stat(name string) (fs.FileInfo, error) {
	f, err := v.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Lstat describes name; when it is a symbolic link, the link itself.
func (v viewFS) Lstat(name string) (fs.FileInfo, error) {
	f, err := v.link("lstat", name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// ReadLink returns the target of the symbolic link name, as it is written there.
func (v viewFS) ReadLink(name string) (string, error) {
	f, err := v.link("readlink", name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return string(buf[:n]), nil
}

// link opens name itself, with O_PATH.
func (v viewFS) link(op, name string) (*os.File, error) {
	return v.open(op, name, unix.O_PATH|unix.O_NOFOLLOW)
}

func (v viewFS) open(op, name string, flags uint64) (*os.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	f, err := openBelow(v.root, name, flags)
	if err != nil {
		return nil, viewError(op, name, err)
	}
	return f, nil
}

// viewError speaks of a missing file in the words of both packages.
func viewError(op, name string, err error) error {
	if errors.Is(err, orchestrator.ErrNotFound) {
		return &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("%w: %w", fs.ErrNotExist, err)}
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// viewFile is an open file of a view. A directory's entries describe themselves through the view: os.File would look
// for them on the host.
type viewFile struct {
	*os.File
	fs   viewFS
	name string
}

func (f *viewFile) ReadDir(n int) ([]fs.DirEntry, error) {
	entries, err := f.File.ReadDir(n)
	for i, e := range entries {
		entries[i] = viewEntry{DirEntry: e, fs: f.fs, path: path.Join(f.name, e.Name())}
	}
	return entries, err
}

type viewEntry struct {
	fs.DirEntry
	fs   viewFS
	path string
}

func (e viewEntry) Info() (fs.FileInfo, error) { return e.fs.Lstat(e.path) }
