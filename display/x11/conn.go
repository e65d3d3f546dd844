// Package x11 is what Berth asks of a session's X server: is it there, what is on its screen, change its size.
//
// A Conn is one connection to the server's socket on the host, authorised by the session's cookie. Its methods may be
// called by several goroutines at once and end when their context does. When the server goes away every call returns
// ErrLost, and Done is closed. A Watcher answers questions about windows as they come true, by events.
//
// The server is not trusted: it runs as the session's user. What it sends is bounded and checked before it is believed.
package x11

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/xproto"

	"berth/display/xauth"
	"berth/internal/unixsock"
)

// Errors. Test with errors.Is.
var (
	ErrLost    = errors.New("connection to the X server is lost")
	ErrRefused = errors.New("refused by the X server")
)

// Conn is a connection to an X server.
type Conn struct {
	codec  *codec
	server *server
	setup  *xproto.SetupInfo
	screen *xproto.ScreenInfo

	mu       sync.Mutex
	closed   bool
	inflight sync.WaitGroup
	lastID   uint32
	atoms    map[string]xproto.Atom
	ext      map[string]bool // extensions that are there
	watcher  *Watcher        // gets the events; at most one
}

// Dial connects to the X server behind the socket name beneath dir, a directory that need not be trusted, and waits
// for both to appear until ctx ends. A nil cookie connects without authorisation.
func Dial(ctx context.Context, dir, name string, cookie []byte) (*Conn, error) {
	for {
		sock, err := unixsock.Dial(ctx, dir, name)
		if err != nil {
			return nil, err
		}
		c, err := newConn(ctx, sock, cookie)
		if err == nil {
			return c, nil
		}
		sock.Close()
		// A server that ends between accept and answer, as a dying one does, is no answer: wait for its successor.
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || ctx.Err() != nil {
			//lint:ignore ST1005 X is a name
			return nil, fmt.Errorf("X server %q: %w", filepath.Join(dir, name), err)
		}
	}
}

// newConn does the handshake on sock (X protocol, section 8).
func newConn(ctx context.Context, sock net.Conn, cookie []byte) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { sock.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(sock, 64<<10)
	setup, err := handshake(sock, r, cookie)
	if !stop() && err != nil {
		return nil, fmt.Errorf("no answer to the connection setup (%w)", ctx.Err())
	}
	if err != nil {
		return nil, err
	}
	info := new(xproto.SetupInfo)
	if err := guard(func() error { xproto.SetupInfoRead(setup, info); return nil }); err != nil {
		return nil, err
	}
	if len(info.Roots) == 0 || info.ResourceIdMask == 0 {
		return nil, errors.New("connection setup has no screen")
	}
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	c := &Conn{codec: codec, setup: info, screen: &info.Roots[0], atoms: map[string]xproto.Atom{}, ext: map[string]bool{}}
	c.server = codec.attach(sock, r, setup, c.event)
	return c, nil
}

// handshake sends the connection setup and returns the server's answer.
func handshake(w io.Writer, r io.Reader, cookie []byte) ([]byte, error) {
	name := xauth.MITMagicCookie
	if cookie == nil {
		name = ""
	}
	b := []byte{'l', 0, 11, 0, 0, 0}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(cookie)))
	b = append(b, 0, 0)
	for _, s := range []string{name, string(cookie)} {
		b = append(b, s...)
		b = append(b, make([]byte, -len(s)&3)...)
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	head := make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	reply := append(head, make([]byte, 4*int(binary.LittleEndian.Uint16(head[6:])))...)
	if _, err := io.ReadFull(r, reply[8:]); err != nil {
		return nil, err
	}
	switch {
	case reply[0] == 1 && len(reply) >= 40:
		return reply, nil
	case reply[0] == 0:
		reason := reply[8:]
		return nil, fmt.Errorf("%w: %q", ErrRefused, reason[:min(len(reason), int(reply[1]))])
	}
	return nil, fmt.Errorf("connection setup answered with status %d", reply[0])
}

// Handshake waits until the server accepts a connection with the cookie, or ctx ends.
func Handshake(ctx context.Context, dir, name string, cookie []byte) error {
	c, err := Dial(ctx, dir, name, cookie)
	if err != nil {
		return err
	}
	return c.Close()
}

// Done is closed when the connection has ended, by Close or because the server is gone.
func (c *Conn) Done() <-chan struct{} { return c.server.lost }

// Close ends the connection. Calls in flight return ErrLost. It may be called twice.
func (c *Conn) Close() error {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	c.mu.Unlock()
	if was {
		return nil
	}
	c.codec.detach(c.server)
	go func() { // in the background: a call returns as soon as it has noticed
		c.inflight.Wait()
		c.codec.release()
	}()
	return nil
}

// Vendor is the server's name for itself and its release number.
func (c *Conn) Vendor() (string, uint32) { return c.setup.Vendor, c.setup.ReleaseNumber }

// Extensions lists the server's extensions.
func (c *Conn) Extensions(ctx context.Context) ([]string, error) {
	return call(ctx, c, func(x *xgb.Conn) ([]string, error) {
		r, err := xproto.ListExtensions(x).Reply()
		if err != nil {
			return nil, fmt.Errorf("extensions: %w", err)
		}
		var names []string
		for _, n := range r.Names {
			names = append(names, n.Name)
		}
		return names, nil
	})
}

// event is called by the codec.
func (c *Conn) event(ev xgb.Event) {
	c.mu.Lock()
	w := c.watcher
	c.mu.Unlock()
	if w != nil {
		w.event(ev)
	}
}

// newID returns a new resource ID.
func (c *Conn) newID() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	mask := c.setup.ResourceIdMask
	c.lastID += mask & -mask
	return c.lastID&mask | c.setup.ResourceIdBase
}

// call runs f, which makes requests and waits for their replies, until ctx ends. f goes on until the server has
// answered; nothing it returns or sets may be used when call has failed, so results travel through call alone.
func call[T any](ctx context.Context, c *Conn, f func(x *xgb.Conn) (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var zero T
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return zero, ErrLost
	}
	c.inflight.Add(1)
	c.mu.Unlock()
	done := make(chan result, 1)
	go func() {
		defer c.inflight.Done()
		var r result
		r.err = guard(func() (err error) { r.v, err = f(c.codec.xgb); return err })
		done <- r
	}()
	select {
	case r := <-done:
		select {
		case <-c.server.lost: // then r may be made up
			return zero, ErrLost
		default:
		}
		return r.v, r.err
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// guard runs f and turns a panic of xgb's decoders over a malformed reply into an error.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed answer of the X server: %v", p)
		}
	}()
	return f()
}

// need looks the extension up and makes its requests known to xgb. It replaces the Init functions of xgb's extension
// packages, see codec.
func (c *Conn) need(x *xgb.Conn, names ...string) error {
	for _, name := range names {
		c.mu.Lock()
		known := c.ext[name]
		c.mu.Unlock()
		if known {
			continue
		}
		r, err := xproto.QueryExtension(x, uint16(len(name)), name).Reply()
		if err != nil {
			return fmt.Errorf("extension %s: %w", name, err)
		}
		if !r.Present {
			return fmt.Errorf("extension %s: the X server does not have it", name)
		}
		x.ExtLock.Lock()
		x.Extensions[name] = r.MajorOpcode
		x.ExtLock.Unlock()
		c.mu.Lock()
		c.ext[name] = true
		c.mu.Unlock()
	}
	return nil
}

// atom interns names, all in one round trip.
func (c *Conn) intern(x *xgb.Conn, names ...string) error {
	var ask []string
	var cookies []xproto.InternAtomCookie
	c.mu.Lock()
	for _, n := range names {
		if _, ok := c.atoms[n]; !ok {
			ask = append(ask, n)
		}
	}
	c.mu.Unlock()
	for _, n := range ask {
		cookies = append(cookies, xproto.InternAtom(x, false, uint16(len(n)), n))
	}
	for i, ck := range cookies {
		r, err := ck.Reply()
		if err != nil {
			return fmt.Errorf("atom %s: %w", ask[i], err)
		}
		c.mu.Lock()
		c.atoms[ask[i]] = r.Atom
		c.mu.Unlock()
	}
	return nil
}

// atom returns an atom that intern was called for.
func (c *Conn) atom(name string) xproto.Atom {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.atoms[name]
}

// Open is Dial that does not wait, for the X server behind the socket at path, with the cookie of an Xauthority file.
// The directory above the socket's own, a session's /tmp, is trusted, nothing below it is.
func Open(ctx context.Context, path, xauthority string) (*Conn, error) {
	entries, err := xauth.ReadFile(xauthority)
	if err != nil {
		return nil, err
	}
	cookie, _ := xauth.Cookie(entries, 0)
	dir, name := Split(path)
	sock, err := unixsock.Connect(ctx, dir, name)
	if err != nil {
		return nil, err
	}
	c, err := newConn(ctx, sock, cookie)
	if err != nil {
		sock.Close()
		//lint:ignore ST1005 X is a name
		return nil, fmt.Errorf("X server %q: %w", path, err)
	}
	return c, nil
}

// Split cuts the path of an X socket into the directory that stands for /tmp and the rest, for Dial.
func Split(path string) (dir, name string) {
	sub := filepath.Dir(path)
	return filepath.Dir(sub), filepath.Join(filepath.Base(sub), filepath.Base(path))
}
