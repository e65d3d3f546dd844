// Package unixsock reaches Unix sockets that lie in directories a session's user can write to.
//
// Two things make that different from net.Dial. The socket may not exist yet: Dial waits for it with inotify(7), so a
// probe costs nothing while it waits and sees the socket the moment it appears. And the directory is not trusted: its
// owner could put a symbolic link there that leads a privileged caller to somebody else's socket. Dial therefore opens
// the path beneath a trusted directory without following any link (openat2(2), RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS)
// and connects to exactly the inode it opened, which also frees it from the 108 bytes of sockaddr_un.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotSocket is returned for a path that exists but is no socket, or is reached through a symbolic link.
var ErrNotSocket = errors.New("not a socket, or reached through a symbolic link")

// Connect connects to the stream socket at name, a path relative to dir, now. A name that is not there is
// os.ErrNotExist, a socket nobody listens on is ECONNREFUSED.
func Connect(ctx context.Context, dir, name string) (net.Conn, error) {
	path := filepath.Join(dir, name)
	fd, err := open(dir, name, unix.O_PATH)
	if err != nil {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("socket %q: %w", path, ErrNotSocket)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			err = errno // the text of a *net.OpError would name /proc/self/fd
		}
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	return conn, nil
}

// Dial is Connect that waits until the socket is there and listened on, or ctx ends. The error of an ended ctx says
// what was seen last.
func Dial(ctx context.Context, dir, name string) (net.Conn, error) {
	var conn net.Conn
	err := retry(ctx, dir, name, func() (err error) {
		conn, err = Connect(ctx, dir, name)
		return err
	})
	return conn, err
}

// retry calls try until it succeeds, fails for a reason that waiting does not cure, or ctx ends. Between tries it
// waits for a change on the way to name.
func retry(ctx context.Context, dir, name string, try func() error) error {
	err := try()
	if err == nil || !curable(err) {
		return err
	}
	w, werr := newWatch()
	if werr != nil {
		return werr
	}
	defer w.close()
	for pause := time.Millisecond; ; {
		// Watch first, try second: what appears between the two is seen by the try, what appears later by the watch.
		if werr := w.path(dir, name); werr != nil {
			return werr
		}
		if err = try(); err == nil || !curable(err) {
			return err
		}
		// bind(2) creates the name, listen(2) follows without any event; only that gap is retried by the clock.
		var timer <-chan time.Time
		if !errors.Is(err, os.ErrNotExist) {
			timer = time.After(pause)
			pause = min(2*pause, 20*time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-w.changed:
		case <-timer:
		}
	}
}

// curable tells whether err can go away by waiting.
func curable(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN)
}

// open opens name beneath dir without following links.
func open(dir, name string, flags uint64) (int, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(filepath.Clean(name), "/"), &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return -1, ErrNotSocket
	}
	return fd, err
}

// watch tells of changes in the directories on the way to a path.
type watch struct {
	fd      *os.File
	changed chan struct{} // one pending note, sent by read
}

func newWatch() (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w (raise fs.inotify.max_user_instances if it says too many open files)", err)
	}
	w := &watch{fd: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1)}
	go w.read()
	return w, nil
}

// read runs until close.
func (w *watch) read() {
	buf := make([]byte, 16<<10)
	for {
		if _, err := w.fd.Read(buf); err != nil {
			return
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *watch) close() { w.fd.Close() }

// path watches dir and every directory below it that leads to name and exists. Adding a watch twice is harmless.
func (w *watch) path(dir, name string) error {
	raw, err := w.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	sub := "."
	for _, part := range append([]string{""}, strings.Split(strings.Trim(filepath.Dir(filepath.Clean(name)), "/"), "/")...) {
		sub = filepath.Join(sub, part)
		d, err := open(dir, sub, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, os.ErrNotExist) && sub != "." {
			return nil // the watch above tells when it appears
		}
		if err != nil {
			return fmt.Errorf("directory %q: %w", filepath.Join(dir, sub), err)
		}
		const mask = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_ATTRIB
		var werr error
		err = raw.Control(func(fd uintptr) {
			_, werr = unix.InotifyAddWatch(int(fd), fmt.Sprintf("/proc/self/fd/%d", d), mask)
		})
		unix.Close(d)
		if err = errors.Join(err, werr); err != nil {
			return fmt.Errorf("watch %q: %w", filepath.Join(dir, sub), err)
		}
	}
	return nil
}

// WaitFile waits until something exists at name, a path relative to dir, or ctx ends.
func WaitFile(ctx context.Context, dir, name string) error {
	return retry(ctx, dir, name, func() error {
		fd, err := open(dir, name, unix.O_PATH)
		if err != nil {
			return fmt.Errorf("file %q: %w", filepath.Join(dir, name), err)
		}
		return unix.Close(fd)
	})
}
