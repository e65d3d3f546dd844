package containerd

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"

	"berth/orchestrator"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// maxReadFile bounds ReadFile.
const maxReadFile = 16 << 20

// ReadFile implements orchestrator.Images. The image's top snapshot is mounted read-only in a mount namespace of its
// own, which dies with the thread that made it: no mount is ever left on the host, whatever happens to Berth. Paths
// are resolved by openat2(2) with RESOLVE_IN_ROOT, so neither links nor ".." lead out of the image.
func (s *images) ReadFile(ctx context.Context, ref, name string) ([]byte, error) {
	ctx = s.withNamespace(ctx)
	r, err := s.client.ImageService().Get(ctx, ref)
	if err != nil {
		return nil, imageError(ref, "", err)
	}
	if strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("image %q: file %q: %w path", ref, name, orchestrator.ErrInvalid)
	}
	name = path.Clean("/" + name)
	key := r.Target.Digest.String() + name
	if data, ok := s.files.get(key); ok {
		if data == nil {
			return nil, fmt.Errorf("image %q: file %q: %w", ref, name, orchestrator.ErrNotFound)
		}
		return append([]byte(nil), data...), nil
	}
	f, err := s.factsOf(ctx, r)
	if err != nil {
		return nil, err
	}
	data, err := s.readSnapshotFile(ctx, ref, f, name)
	switch {
	case errors.Is(err, orchestrator.ErrNotFound):
		s.files.put(key, nil)
		return nil, fmt.Errorf("image %q: file %q: %w", ref, name, orchestrator.ErrNotFound)
	case err != nil:
		return nil, imageError(ref, fmt.Sprintf("file %q", name), err)
	}
	s.files.put(key, append(make([]byte, 0, len(data)), data...))
	return data, nil
}

// readSnapshotFile reads one file through a view of the image's top layer.
func (s *images) readSnapshotFile(ctx context.Context, ref string, f *facts, name string) (data []byte, err error) {
	err = s.viewSnapshot(ctx, ref, f, func(root int) error {
		data, err = readBelow(root, name)
		return err
	})
	return data, err
}

// viewSnapshot calls visit with a directory, the root of a view of the image's top layer, which is unpacked first where that
// is missing. The view is read-only and mounted in a mount namespace of its own.
func (s *images) viewSnapshot(ctx context.Context, ref string, f *facts, visit func(root int) error) error {
	if len(f.chains) == 0 {
		return orchestrator.ErrNotFound // an image without layers has no files
	}
	sn := s.client.SnapshotService(s.snapshotter)
	for try, unpacked := 0, false; ; try++ {
		// No lease holds the view: if this process dies the collector takes it, and if the collector is so quick that the
		// view is gone before it is mounted, there is another.
		key := "berth-read-" + uuid.NewString()
		mounts, err := sn.View(ctx, key, f.chains[len(f.chains)-1])
		if errdefs.IsNotFound(err) && !unpacked {
			if err := unpack(ctx, s.client, s.snapshotter, ref); err != nil {
				return err
			}
			unpacked = true
			continue
		}
		if err != nil {
			return err
		}
		err = visitMounted(mounts, visit)
		removeErr := sn.Remove(context.WithoutCancel(ctx), key)
		if errdefs.IsNotFound(removeErr) {
			if try < 3 && errors.Is(err, errNotMounted) {
				continue
			}
			removeErr = nil
		}
		return errors.Join(err, removeErr)
	}
}

// errNotMounted tells failures to mount from those to read.
var errNotMounted = errors.New("cannot mount")

// visitMounted mounts mounts in a throw-away mount namespace and calls visit with the directory they are mounted on, opened
// with O_PATH: it leads to the mount from every thread.
func visitMounted(mounts []mount.Mount, visit func(root int) error) error {
	dir, err := os.MkdirTemp("", "berth-view-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	onOwnThread(func() {
		err = func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("%w: unshare mount namespace: %w", orchestrator.ErrUnavailable, err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			for _, m := range mounts {
				if err := mountHere(m, dir); err != nil {
					return fmt.Errorf("%w %s: %w", errNotMounted, m.Type, err)
				}
			}
			root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return &os.PathError{Op: "open", Path: dir, Err: err}
			}
			defer unix.Close(root)
			return visit(root)
		}()
	})
	return err
}

// onOwnThread runs fn on a thread that ends with it, so that fn may change what belongs to a thread. The process's
// first thread never ends, so it is not used: while it is held here, the scheduler must take another.
func onOwnThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // not unlocked, which makes the runtime end the thread with the goroutine
		if unix.Gettid() != unix.Getpid() {
			fn()
			return
		}
		defer runtime.UnlockOSThread()
		onOwnThread(fn)
	}()
	<-done
}

// mountHere mounts m on dir in the calling thread's own mount namespace. An overlay's lower directories are named
// relative to their common parent, so that many layers fit the one page mount(2) takes.
func mountHere(m mount.Mount, dir string) error {
	var flags uintptr
	var data []string
	for _, o := range m.Options {
		switch o {
		case "ro":
			flags |= unix.MS_RDONLY
		case "bind":
			flags |= unix.MS_BIND
		case "rbind":
			flags |= unix.MS_BIND | unix.MS_REC
		case "rw":
		default:
			data = append(data, o)
		}
	}
	typ := m.Type
	if typ == "bind" || typ == "rbind" {
		flags |= unix.MS_BIND
		typ = ""
	}
	for i, o := range data {
		lower, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			continue
		}
		dirs := strings.Split(lower, ":")
		base := commonDir(dirs)
		if base == "" {
			continue
		}
		if err := unix.Chdir(base); err != nil { // the thread's own working directory, since CLONE_FS was unshared
			return err
		}
		for j := range dirs {
			dirs[j] = strings.TrimPrefix(dirs[j], base+"/")
		}
		data[i] = "lowerdir=" + strings.Join(dirs, ":")
	}
	return unix.Mount(m.Source, dir, typ, flags|unix.MS_NODEV|unix.MS_NOSUID, strings.Join(data, ","))
}

// commonDir returns the deepest directory that all of the absolute paths lie below, "" if that is the root.
func commonDir(paths []string) string {
	base := path.Dir(paths[0])
	for _, p := range paths[1:] {
		for base != "/" && !strings.HasPrefix(p, base+"/") {
			base = path.Dir(base)
		}
	}
	if base == "/" || base == "." {
		return ""
	}
	return base
}

// readBelow reads the regular file called name below the directory root, resolving links as if root were "/".
func readBelow(root int, name string) ([]byte, error) {
	f, err := openBelow(root, name, forReading)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("not a regular file: %w", orchestrator.ErrInvalid)
	}
	if st.Size > maxReadFile {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed: %w", st.Size, maxReadFile, orchestrator.ErrInvalid)
	}
	return io.ReadAll(io.LimitReader(f, maxReadFile))
}

// forReading are the flags of openBelow for a file's content. O_NONBLOCK: an image may hold a FIFO under any name.
const forReading = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY

// openBelow opens name below the directory root by openat2(2), so that neither links nor ".." lead out of it.
func openBelow(root int, name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(root, name, &how)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // openat2(2): something was renamed on the way
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO),
			errors.Is(err, unix.ENAMETOOLONG):
			return nil, orchestrator.ErrNotFound
		case errors.Is(err, unix.ENOSYS):
			return nil, fmt.Errorf("%w: the kernel lacks openat2, Linux 5.6 or later has it", orchestrator.ErrUnavailable)
		case err != nil:
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// fileCache keeps the files read last, up to a number of bytes. Keys hold the image's digest, so entries never age.
type fileCache struct {
	mu    sync.Mutex
	max   int
	size  int
	order *list.List // of *fileEntry, the latest first
	byKey map[string]*list.Element
}

type fileEntry struct {
	key  string
	data []byte // nil: known to be missing
}

// entryCost is what an entry takes beyond its data; it bounds the number of entries that hold nothing.
const entryCost = 256

func newFileCache(max int) *fileCache {
	return &fileCache{max: max, order: list.New(), byKey: map[string]*list.Element{}}
}

func (c *fileCache) get(key string) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*fileEntry).data, true
}

func (c *fileCache) put(key string, data []byte) {
	cost := func(e *fileEntry) int { return entryCost + len(e.key) + len(e.data) }
	entry := &fileEntry{key, data}
	if cost(entry) > c.max/4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[key]; ok {
		return
	}
	c.byKey[key] = c.order.PushFront(entry)
	c.size += cost(entry)
	for c.size > c.max {
		last := c.order.Back()
		e := c.order.Remove(last).(*fileEntry)
		delete(c.byKey, e.key)
		c.size -= cost(e)
	}
}
