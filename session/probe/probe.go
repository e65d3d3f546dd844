// Package probe finds out when a session's components are ready, by asking them and never by waiting a while.
//
//	x11        the X server accepts the session's cookie
//	wm         a window manager runs (_NET_SUPPORTING_WM_CHECK)
//	dock       a panel is on the screen: a mapped window of type DOCK
//	desktop    a mapped window of type DESKTOP
//	painted    the screen shows more than a background
//	bus        the session bus answers org.freedesktop.DBus.Peer.Ping
//	bus:NAME   somebody owns NAME on the session bus
//	system-bus, system-bus:NAME   the same on the system bus
//	socket:P   something accepts connections on the Unix socket P, a path inside the session
//	pulse      the Pulse server answers (native protocol, GET_SERVER_INFO)
//	pipewire   the PipeWire server answers (native protocol, Core::Sync)
//	vnc        the VNC server sends its version (RFC 6143, section 7.1.1)
//	exec:CMD   the shell command exits with 0 in the component
//
// All but exec and painted wait for events: of the X server and the bus, or, for a socket that is not there yet, of
// inotify(7). What is probed runs as the session's user and is not trusted: every protocol here reads a bounded amount and checks it.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"berth/display/x11"
	"berth/display/xauth"
	"berth/internal/unixsock"
	"berth/orchestrator"
	"berth/profiles"
)

// Target is a session's wires on the host.
type Target struct {
	XSocket, XAuthority string // of display :0; others lie beside it
	RuntimeDir, TmpDir  string // XDG_RUNTIME_DIR and /tmp, on the host
	RuntimeInside       string // XDG_RUNTIME_DIR inside the session's containers
	UID, GID            int    // the session's user
	// Exec runs a command in the component being probed and returns its exit code and output.
	Exec func(ctx context.Context, argv []string) (code int, output string, err error)
}

// Runner waits for probes of one session. It is safe for concurrent use. Runners of the same session share one
// connection to its X server.
type Runner struct{ t Target }

// New returns a Runner. It connects to nothing until asked to wait.
func New(t Target) *Runner { return &Runner{t} }

// Close ends the Runner. What waits still goes on until its context ends.
func (r *Runner) Close() error { return nil }

// Wait returns nil as soon as p holds. When ctx ends first, the error says what was waited for and what was seen last.
func (r *Runner) Wait(ctx context.Context, p profiles.Probe) error {
	var err error
	if p.Arg != "" && slices.Contains([]string{"x11", "wm", "dock", "desktop", "painted"}, p.Kind) {
		inner := *r
		inner.t.XSocket = filepath.Join(filepath.Dir(r.t.XSocket), "X"+p.Arg)
		r = &inner
	}
	switch p.Kind {
	case "x11":
		err = r.x11(ctx)
	case "wm":
		err = r.condition(ctx, x11.WM)
	case "dock":
		err = r.condition(ctx, x11.Dock)
	case "desktop":
		err = r.condition(ctx, x11.Desktop)
	case "painted":
		err = r.painted(ctx)
	case "bus":
		err = r.bus(ctx, sessionBus, p.Arg)
	case "system-bus":
		err = r.bus(ctx, systemBus, p.Arg)
	case "socket":
		err = r.socket(ctx, p.Arg)
	case "pulse":
		err = r.talk(ctx, "pulse/native", pulse)
	case "pipewire":
		err = r.talk(ctx, "pipewire-0", pipewire)
	case "vnc":
		err = r.talk(ctx, "vnc.sock", vnc)
	case "exec":
		err = r.exec(ctx, p.Arg)
	default:
		return fmt.Errorf("probe %q: %w: unknown kind", p, orchestrator.ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("probe %q: %w", p, err)
	}
	return nil
}

// socket waits until the socket at path accepts a connection.
func (r *Runner) socket(ctx context.Context, path string) error {
	for inside, dir := range map[string]string{r.t.RuntimeInside: r.t.RuntimeDir, "/tmp": r.t.TmpDir} {
		if name, ok := strings.CutPrefix(filepath.Clean(path), strings.TrimSuffix(inside, "/")+"/"); ok && inside != "" {
			conn, err := unixsock.Dial(ctx, dir, name)
			if err != nil {
				return err
			}
			return conn.Close()
		}
	}
	return fmt.Errorf("%w: a socket to wait for lies in /tmp or in ${RUNTIME_DIR}", orchestrator.ErrInvalid)
}

// talk waits until the server behind the socket name in the runtime directory holds the conversation f.
func (r *Runner) talk(ctx context.Context, name string, f func(io.ReadWriter) error) error {
	path := filepath.Join(r.t.RuntimeDir, name)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		conn, err := unixsock.Dial(ctx, r.t.RuntimeDir, name)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		err = f(conn)
		stop()
		conn.Close()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("socket %q: it accepts connections, but does not answer (%w)", path, ctx.Err())
		case !hungUp(err):
			return fmt.Errorf("socket %q: %w", path, err)
		}
		// A server that is about to end, or one that is not yet ready, hangs up. Ask again.
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// hungUp tells whether the other side has closed the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// vnc reads the server's version, "RFB 003.008\n".
func vnc(rw io.ReadWriter) error {
	b := make([]byte, 12)
	if _, err := io.ReadFull(rw, b); err != nil {
		return err
	}
	if s := string(b); !strings.HasPrefix(s, "RFB ") || s[11] != '\n' {
		return fmt.Errorf("%q is no VNC server's greeting", s)
	}
	return nil
}

// exec runs command until it succeeds.
func (r *Runner) exec(ctx context.Context, command string) error {
	if r.t.Exec == nil {
		return fmt.Errorf("%w: commands cannot be run here", orchestrator.ErrState)
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		code, out, err := r.t.Exec(ctx, []string{"/bin/sh", "-c", command})
		var saw error
		switch {
		case err == nil && code == 0:
			return nil
		case err != nil && ctx.Err() == nil &&
			!errors.Is(err, orchestrator.ErrState) && !errors.Is(err, orchestrator.ErrNotFound): // between two lives
			return err
		case err != nil:
			saw = err
		default:
			saw = fmt.Errorf("exit code %d: %s", code, lastLine(out))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", saw, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// lastLine is the last line of output that is not empty, cut to 200 bytes.
func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	s := strings.TrimSpace(lines[len(lines)-1])
	if s == "" {
		return "no output"
	}
	return s[:min(len(s), 200)]
}

// cookie reads the session's X cookie.
func (r *Runner) cookie() ([]byte, error) {
	entries, err := xauth.ReadFile(r.t.XAuthority)
	if err != nil {
		return nil, err
	}
	c, ok := xauth.Cookie(entries, 0)
	if !ok {
		return nil, fmt.Errorf("xauthority %q: no cookie for display :0", r.t.XAuthority)
	}
	return c, nil
}
