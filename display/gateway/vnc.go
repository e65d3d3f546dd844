package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/unixsock"
)

// vncListener accepts the viewers of one session.
type vncListener struct {
	*net.TCPListener
	session string // name
}

// OpenVNC begins to listen for viewers of the session called name and returns the address, "host:port"; they are served
// once Serve has been called. port 0 means the first
// free one from Config.VNCBase on; another is tried first, and with exact nothing else. A session that is open already
// keeps its listener.
func (g *Gateway) OpenVNC(name string, port int, exact bool) (string, error) {
	if port < 0 || port > 65535 {
		return "", fmt.Errorf("session %q: vnc port %d: must be from 0 to 65535", name, port)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return "", errors.New("gateway is closed")
	}
	if l := g.vnc[name]; l != nil {
		if exact && port != 0 && l.Addr().(*net.TCPAddr).Port != port {
			return "", fmt.Errorf("session %q: vnc is open on %s already", name, l.Addr())
		}
		return l.Addr().String(), nil
	}
	var ln *net.TCPListener
	var err error
	if port != 0 {
		ln, err = listen(g.cfg.VNCHost, port, true)
		if err != nil && exact {
			return "", fmt.Errorf("session %q: vnc %w", name, err)
		}
	}
	if ln == nil {
		if ln, err = listen(g.cfg.VNCHost, g.cfg.VNCBase, false); err != nil {
			return "", fmt.Errorf("session %q: vnc %w", name, err)
		}
	}
	l := &vncListener{TCPListener: ln, session: name}
	g.vnc[name] = l
	g.running.Go(func() { g.acceptVNC(l) })
	return ln.Addr().String(), nil
}

func (g *Gateway) acceptVNC(l *vncListener) {
	select {
	case <-g.serving:
	case <-g.ctx.Done():
		return
	}
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors or memory: others may free some
			g.log.Warn("vnc connection not accepted", "session", l.session, "error", err)
			select {
			case <-g.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if !g.beginHandshake() {
			g.log.Warn("vnc connection refused: too many are logging in", "session", l.session, "from", c.RemoteAddr())
			c.Close()
			continue
		}
		g.running.Go(func() {
			defer c.Close()
			err := g.serveVNC(l.session, c)
			if !ended(err) {
				g.log.Info("vnc connection ended", "session", l.session, "from", c.RemoteAddr(), "error", err)
			}
		})
	}
}

func (g *Gateway) beginHandshake() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.handshakes >= g.limits.handshakes {
		return false
	}
	g.handshakes++
	return true
}

func (g *Gateway) endHandshake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handshakes--
}

// serveVNC serves one viewer until either side closes or the session goes.
func (g *Gateway) serveVNC(name string, c *net.TCPConn) error {
	keepalive(c)
	server, ctx, done, err := g.letIn(name, c)
	if err != nil {
		return err
	}
	defer done()
	return pipe(ctx, c, server)
}

// letIn admits and authenticates a viewer. It counts as a handshake until it returns.
func (g *Gateway) letIn(name string, c *net.TCPConn) (server *net.UnixConn, ctx context.Context, done func(), err error) {
	defer g.endHandshake()
	ctx, done, err = g.admit(name, "")
	if err != nil {
		return nil, nil, nil, err
	}
	// The end of the session or the gateway must not wait for someone who types a password.
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	server, err = g.authenticate(ctx, name, c)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return server, ctx, done, nil
}

// authenticate does the handshakes with the viewer and the session's VNC server. When it returns without error, the
// next message is the viewer's ClientInit, to be passed on with its shared flag (RFC 6143 section 7.3.1).
func (g *Gateway) authenticate(ctx context.Context, name string, c *net.TCPConn) (*net.UnixConn, error) {
	if err := c.SetDeadline(time.Now().Add(g.limits.greet)); err != nil {
		return nil, err
	}
	viewer, err := greetVersion(c)
	if err != nil {
		return nil, err
	}
	sess, ok := g.sessions.Get(name)
	if !ok {
		return nil, errors.Join(fmt.Errorf("session %q: has ended", name), viewer.refuse("the session has ended"))
	}
	who := name + " " + addressKey(c.RemoteAddr().String())
	if err := g.vncTries.blocked(who); err != nil {
		return nil, errors.Join(err, viewer.refuse(err.Error()))
	}
	if err := c.SetDeadline(time.Now().Add(g.limits.password)); err != nil {
		return nil, err
	}
	err = viewer.security(func(challenge, response [16]byte) error {
		return g.vncTries.try(who, func() error { return checkVNCResponse(challenge, response, sess.Password) })
	})
	var wait tooMany
	if errors.Is(err, errWrongPassword) || errors.As(err, &wait) {
		return nil, errors.Join(err, viewer.result(err.Error()))
	}
	if err != nil {
		return nil, err
	}
	server, err := dialSession(ctx, sess)
	if err != nil {
		return nil, errors.Join(err, viewer.result("the session's VNC server does not answer"))
	}
	err = errors.Join(c.SetDeadline(time.Now().Add(g.limits.greet)), viewer.result(""), c.SetDeadline(time.Time{}))
	if err != nil {
		server.Close()
		return nil, err
	}
	return server, nil
}

// dialSession connects to the session's VNC server and does the handshake with it.
func dialSession(ctx context.Context, s Session) (*net.UnixConn, error) {
	fail := func(err error) (*net.UnixConn, error) {
		return nil, fmt.Errorf("session %q: vnc server: %w", s.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	conn, err := unixsock.Connect(ctx, filepath.Dir(s.VNCSocket), filepath.Base(s.VNCSocket))
	if err != nil {
		return fail(err)
	}
	c := conn.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	err = checkPeer(c, s.UID)
	if err == nil {
		err = joinServer(c)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return fail(err)
	}
	return c, nil
}

// checkPeer refuses a socket that someone else listens on. The socket's directory belongs to the session's user, who
// could put the socket of another session there in some way, which we, being root, can open. Symbolic links are ruled
// out by unixsock, this rules out the rest.
func checkPeer(c *net.UnixConn, uid int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	// unix(7): of a connecting socket these are the credentials of the process that called listen(2).
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if int(cred.Uid) != uid {
		return fmt.Errorf("socket belongs to user %d, not to the session's user %d", cred.Uid, uid)
	}
	return nil
}

// keepalive finds out about viewers that vanished: idle ones after about a minute, and ones that we have unacknowledged
// data for after as long (TCP_USER_TIMEOUT, tcp(7); without it, fifteen minutes of retransmissions).
func keepalive(c *net.TCPConn) {
	// An error means that the connection is gone already, which the next read says.
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(time.Minute/time.Millisecond))
		})
	}
}

// chunk is how many bytes go to a viewer at a time. A Unix socket holds 208 KiB by default (net.core.wmem_default), so one
// read takes all that the VNC server has been able to send.
const chunk = 256 << 10

// pipe moves bytes both ways until one side ends or ctx does, then closes both. RFB has no half-closed state: when one
// side is done, so is the other.
//
// The screen's way to the viewer goes through user space, which the wrappers make sure of: left to itself io.Copy takes
// splice(2), which copies nothing but hands over page by page. For a whole raw screen that takes about a tenth more time
// and a quarter more of the processor than large reads and writes (BenchmarkFrames). The other way, on which little
// comes, it is fine and needs no buffer.
func pipe(ctx context.Context, viewer, server net.Conn) error {
	closeBoth := func() {
		viewer.Close()
		server.Close()
	}
	defer closeBoth()
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	results := make(chan error, 2)
	go func() {
		_, err := io.Copy(server, viewer)
		results <- err
		closeBoth()
	}()
	_, err := io.CopyBuffer(struct{ io.Writer }{viewer}, struct{ io.Reader }{server}, make([]byte, chunk))
	results <- err
	closeBoth()
	// The first result is the cause, the second its consequence.
	err = <-results
	<-results
	return err
}
