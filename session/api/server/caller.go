package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/orchestrator"
	"berth/session/api"
)

// Listen makes the API socket at path, for root and the members of group if there is such a group. A socket that a
// killed daemon left is replaced; one that answers is ErrState. Closing the listener removes the socket.
func Listen(path, group string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("socket %q: %w: another daemon answers on it", path, orchestrator.ErrState)
	} else if !errors.Is(err, fs.ErrNotExist) {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("socket %q: %w", path, err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("socket %q: %w", path, err)
		}
	}
	// Nobody else may connect in the moment between bind(2) and chmod(2): the socket is bound under another name and
	// renamed when it is as it should be.
	hidden := path + ".new"
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it would remove the hidden name
	err = func() error {
		mode := fs.FileMode(0o600)
		if g, err := user.LookupGroup(group); err == nil {
			gid, err := strconv.Atoi(g.Gid)
			if err != nil {
				return err
			}
			if err := os.Chown(hidden, -1, gid); err != nil {
				return err
			}
			mode = 0o660
		}
		if err := os.Chmod(hidden, mode); err != nil {
			return err
		}
		return os.Rename(hidden, path)
	}()
	if err != nil {
		l.Close()
		os.Remove(hidden)
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	return &listener{UnixListener: l, path: path}, nil
}

// listener removes its socket when it is closed for the first time.
type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	if rerr := os.Remove(l.path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

type callerKey struct{}

type callerOrErr struct {
	caller api.Caller
	err    error
}

// WithCaller returns a context whose requests are c's, for tests and for servers that know their callers otherwise.
func WithCaller(ctx context.Context, c api.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, callerOrErr{caller: c})
}

// ConnContext is for http.Server: it notes who is at the other end of a Unix socket.
func (s *Server) ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if _, known := ctx.Value(callerKey{}).(callerOrErr); known {
		return ctx
	}
	c, err := peer(conn, s.Group)
	return context.WithValue(ctx, callerKey{}, callerOrErr{c, err})
}

func callerOf(ctx context.Context) (api.Caller, error) {
	c, ok := ctx.Value(callerKey{}).(callerOrErr)
	if !ok {
		return api.Caller{}, fmt.Errorf("caller: %w: not known on this connection", api.ErrForbidden)
	}
	return c.caller, c.err
}

// peer returns who connected, if they may.
func peer(conn net.Conn, group string) (api.Caller, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return api.Caller{}, fmt.Errorf("caller: %w: the API is served on a Unix socket only", api.ErrForbidden)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return api.Caller{}, fmt.Errorf("caller: %w", err)
	}
	var cred *unix.Ucred
	var groups []uint32
	var operr error
	err = raw.Control(func(fd uintptr) {
		if cred, operr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); operr == nil {
			groups, operr = peerGroups(int(fd))
		}
	})
	if err := errors.Join(err, operr); err != nil {
		return api.Caller{}, fmt.Errorf("caller: %w", err)
	}
	c := api.NewCaller(int(cred.Uid), int(cred.Gid))
	return c, admit(c, groups, group)
}

// admit says whether the caller with the additional groups may use the API at all.
func admit(c api.Caller, groups []uint32, group string) error {
	if c.Root() {
		return nil
	}
	if g, err := user.LookupGroup(group); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err == nil && (c.GID == gid || slices.Contains(groups, uint32(gid))) {
			return nil
		}
	}
	return api.WithHint(fmt.Errorf("user %q: %w to use the daemon: neither root nor in group %q", c.Name, api.ErrForbidden, group),
		api.JoinHint(group, c.Name))
}

// peerGroups is getsockopt(SO_PEERGROUPS), for which x/sys has no wrapper: the peer's additional groups at connect(2).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > len(groups)*4: // size is now what is needed
			groups = make([]uint32, size/4)
		case errno != 0:
			return nil, fmt.Errorf("getsockopt SO_PEERGROUPS: %w", errno)
		default:
			return groups[:size/4], nil
		}
	}
}
