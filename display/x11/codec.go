package x11

import (
	"bufio"
	"encoding/binary"
	"io"
	"log"
	"net"
	"sync"
	"time"

	"github.com/BurntSushi/xgb"
)

// How xgb is used.
//
// xgb encodes requests and decodes replies; it does not own the connection. Left to itself it has properties that a
// daemon with many sessions cannot live with: it takes the cookie from $XAUTHORITY only; requests in flight when the
// server dies never return; a request after that, or a second Close, panics; every connection leaves two goroutines
// and 100 KiB behind for good; extensions register their events and errors in global maps, unlocked, under the numbers
// of whichever server came last; and a server that lies about a reply's length makes it panic.
//
// So xgb gets a codec, a net.Conn that never fails. It answers xgb's own handshake from a constant, then carries
// packets between xgb and the server it is attached to. When the server is gone it answers what is still open, and
// whatever comes after, with an X error, which frees every waiter. A closed connection's codec goes to a pool and
// serves the next server: sequence numbers are shifted, resource IDs are ours (Conn.newID). Extension tables are
// filled once at start-up, see init.
type codec struct {
	xgb *xgb.Conn

	mu       sync.Mutex
	cond     *sync.Cond
	server   *server // nil when detached
	written  uint16  // sequence number of the last request xgb wrote
	answered uint16  // of the last reply or error xgb was given
	setup    []byte  // answer to xgb's handshake, until read
	onEvent  func(xgb.Event)

	// Of the reading goroutine: what is left of the packet being read.
	rest []byte
	body int // bytes of the body still to come from from
	from *server
}

// server is one connection to an X server.
type server struct {
	net.Conn
	r     *bufio.Reader
	shift uint16        // xgb's sequence number minus the server's
	lost  chan struct{} // closed when the connection has ended
}

const (
	packet       = 32       // bytes of an event, an error and the head of a reply (X protocol, section 1)
	maxReply     = 32 << 20 // no request of this package is answered by more
	typeError    = 0
	typeReply    = 1
	typeKeymap   = 11 // KeymapNotify, the only event without a sequence number
	typeGeneric  = 35 // GenericEvent, the only event with a body
	badImplement = 17
)

func init() {
	xgb.Logger = log.New(io.Discard, "", 0)
	// Which numbers an extension's events and errors have differs from server to server, so they are decoded where the
	// server is known; here they only must not be unknown, as xgb drops an unknown error and with it whoever waits.
	for n := range 256 {
		if _, ok := xgb.NewEventFuncs[n]; !ok && n < 128 {
			xgb.NewEventFuncs[n] = func(b []byte) xgb.Event { return extEvent(b) }
		}
		if _, ok := xgb.NewErrorFuncs[n]; !ok {
			xgb.NewErrorFuncs[n] = func(b []byte) xgb.Error { return extError(b) }
		}
	}
}

// extEvent is an extension's event, undecoded.
type extEvent []byte

func (e extEvent) Bytes() []byte  { return e }
func (e extEvent) String() string { return "extension event" }

// extError is an extension's error.
type extError []byte

func (e extError) SequenceId() uint16 { return binary.LittleEndian.Uint16(e[2:]) }
func (e extError) BadId() uint32      { return binary.LittleEndian.Uint32(e[4:]) }
func (e extError) Error() string {
	return xgb.Sprintf("error %d of extension request %d.%d", e[1], e[10], binary.LittleEndian.Uint16(e[8:]))
}

var pool struct {
	sync.Mutex
	free []*codec
}

// newCodec takes a codec from the pool or makes one.
func newCodec() (*codec, error) {
	pool.Lock()
	if n := len(pool.free); n > 0 {
		c := pool.free[n-1]
		pool.free = pool.free[:n-1]
		pool.Unlock()
		return c, nil
	}
	pool.Unlock()
	c := &codec{setup: make([]byte, 24)}
	c.cond = sync.NewCond(&c.mu)
	c.setup[0], c.setup[2], c.setup[6] = 1, 11, 4 // success, protocol 11.0, 4 words follow
	x, err := xgb.NewConnNet(c)
	if err != nil {
		return nil, err
	}
	c.xgb = x
	go func() {
		for {
			ev, _ := x.WaitForEvent() // errors of unchecked requests are of no interest
			c.mu.Lock()
			f := c.onEvent
			c.mu.Unlock()
			if ev != nil && f != nil {
				f(ev)
			}
		}
	}()
	return c, nil
}

// attach makes conn, whose handshake is done, the codec's server.
func (c *codec) attach(conn net.Conn, r *bufio.Reader, setup []byte, onEvent func(xgb.Event)) *server {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server = &server{Conn: conn, r: r, shift: c.written, lost: make(chan struct{})}
	c.onEvent = onEvent
	c.xgb.SetupBytes = setup
	c.xgb.ExtLock.Lock()
	clear(c.xgb.Extensions)
	c.xgb.ExtLock.Unlock()
	c.cond.Signal()
	return c.server
}

// detach ends the connection to s, if s is still attached.
func (c *codec) detach(s *server) {
	s.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == s {
		c.server, c.onEvent = nil, nil
		close(s.lost)
		c.cond.Signal()
	}
}

// release gives the codec back, which nobody uses any more.
func (c *codec) release() {
	pool.Lock()
	defer pool.Unlock()
	pool.free = append(pool.free, c)
}

// Write takes one request; xgb writes each with one call.
func (c *codec) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.setup != nil { // the handshake
		c.mu.Unlock()
		return len(p), nil
	}
	c.written++
	s := c.server
	c.cond.Signal()
	c.mu.Unlock()
	if s != nil {
		if _, err := s.Write(p); err != nil {
			c.detach(s)
		}
	}
	return len(p), nil
}

// Read gives xgb the next bytes: of the handshake, of what the server sends, or of an error for a request that the
// server can no longer answer. It blocks when there is none.
func (c *codec) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.body > 0 {
			// The body goes straight into xgb's buffer. Of a server that died halfway the rest is zeros: whoever waits for
			// the reply is told by Conn.call that it is worthless.
			p = p[:min(len(p), c.body)]
			n, err := c.from.r.Read(p)
			if err != nil {
				c.detach(c.from)
				clear(p)
				n = len(p)
			}
			c.body -= n
			return n, nil
		}
		c.next()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next fetches the next packet's head into rest, or returns with nothing to be called again.
func (c *codec) next() {
	c.mu.Lock()
	for c.setup == nil && c.server == nil && c.answered == c.written {
		c.cond.Wait()
	}
	s := c.server
	switch {
	case c.setup != nil:
		c.rest, c.setup = c.setup, nil
	case s == nil:
		c.answered++
		c.rest = make([]byte, packet)
		c.rest[1] = badImplement
		binary.LittleEndian.PutUint16(c.rest[2:], c.answered)
	}
	c.mu.Unlock()
	if len(c.rest) > 0 {
		return
	}
	head := make([]byte, packet)
	if _, err := io.ReadFull(s.r, head); err != nil {
		c.detach(s)
		return
	}
	size := int64(binary.LittleEndian.Uint32(head[4:])) * 4
	switch head[0] {
	case typeKeymap:
	case typeGeneric: // xgb does not know of the body, and no request here asks for such events
		if _, err := s.r.Discard(int(min(size, maxReply))); err != nil {
			c.detach(s)
		}
		return
	case typeError, typeReply:
		seq := binary.LittleEndian.Uint16(head[2:]) + s.shift
		if head[0] == typeReply && size > 0 {
			if size > maxReply {
				c.detach(s)
				return
			}
			c.body, c.from = int(size), s
		}
		c.mu.Lock()
		valid := seq-c.answered-1 < c.written-c.answered // answered < seq <= written, modulo 2^16
		if valid {
			c.answered = seq
		}
		c.mu.Unlock()
		if !valid {
			c.body = 0
			c.detach(s)
			return
		}
		binary.LittleEndian.PutUint16(head[2:], seq)
	}
	c.rest = head
}

// The rest of net.Conn, which xgb does not use.

func (c *codec) Close() error                     { return nil }
func (c *codec) LocalAddr() net.Addr              { return nil }
func (c *codec) RemoteAddr() net.Addr             { return nil }
func (c *codec) SetDeadline(time.Time) error      { return nil }
func (c *codec) SetReadDeadline(time.Time) error  { return nil }
func (c *codec) SetWriteDeadline(time.Time) error { return nil }
