package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"image/png"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// fakeSessions is a session manager whose sessions are what the test says.
type fakeSessions struct {
	mu       sync.Mutex
	list     []Session
	thumbs   int
	resize   func(ctx context.Context, name string, w, h int) (int, int, error)
	thumbErr error
}

func (f *fakeSessions) List() []Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list)
}

func (f *fakeSessions) Get(name string) (Session, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.list {
		if s.Name == name {
			return s, true
		}
	}
	return Session{}, false
}

// set adds or replaces a session.
func (f *fakeSessions) set(s Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(slices.DeleteFunc(f.list, func(o Session) bool { return o.Name == s.Name }), s)
}

func (f *fakeSessions) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = slices.DeleteFunc(f.list, func(o Session) bool { return o.Name == name })
}

func (f *fakeSessions) Thumbnail(_ context.Context, name string, maxWidth int) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.thumbs++
	if f.thumbErr != nil {
		return nil, f.thumbErr
	}
	img := image.NewRGBA(image.Rect(0, 0, maxWidth, maxWidth/2))
	img.Set(0, 0, color.RGBA{uint8(len(name)), 1, 2, 255})
	var b bytes.Buffer
	err := png.Encode(&b, img)
	return b.Bytes(), err
}

// Resize is that of a screen that can have 2560x1600 pixels at most.
func (f *fakeSessions) Resize(ctx context.Context, name string, w, h int) (int, int, error) {
	if f.resize != nil {
		return f.resize(ctx, name, w, h)
	}
	s, ok := f.Get(name)
	if !ok {
		return 0, 0, errors.New("gone")
	}
	s.Width, s.Height = min(w, 2560), min(h, 1600)
	f.set(s)
	return s.Width, s.Height, nil
}

// fakeVNC is a VNC server on a Unix socket: it does the handshake without authentication, sends ServerInit and echoes.
type fakeVNC struct {
	net.Listener
	path   string
	wg     sync.WaitGroup
	shared chan byte // the ClientInit of each connection
	open   chan int  // +1 and -1

	mu    sync.Mutex
	conns []net.Conn
}

const fakeName = "fake"

// serverInit is RFC 6143 section 7.3.2: 64x48, 32 bits a pixel.
func serverInit() []byte {
	b := []byte{0, 64, 0, 48, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(fakeName))), fakeName...)
}

func newFakeVNC(t testing.TB) *fakeVNC {
	t.Helper()
	// Not t.TempDir: a socket's path is limited to 107 bytes, test names are not.
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vnc.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeVNC{Listener: ln, path: path, shared: make(chan byte, 1024), open: make(chan int, 4096)}
	f.serve(ln)
	t.Cleanup(func() {
		ln.Close()
		f.mu.Lock()
		for _, c := range f.conns {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
		os.RemoveAll(dir)
	})
	return f
}

// tcp makes it listen on a TCP port of loopback as well, and returns its address.
func (f *fakeVNC) tcp(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	f.serve(ln)
	return ln.Addr().String()
}

func (f *fakeVNC) serve(ln net.Listener) {
	f.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			f.open <- 1
			f.wg.Go(func() {
				defer func() { f.open <- -1 }()
				defer c.Close()
				if f.handshake(c) == nil {
					_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				}
			})
		}
	})
}

func (f *fakeVNC) handshake(c net.Conn) error {
	v, err := greetVersion(c)
	if err != nil {
		return err
	}
	if err := v.security(nil); err != nil {
		return err
	}
	if err := v.result(""); err != nil {
		return err
	}
	var shared [1]byte
	if _, err := io.ReadFull(c, shared[:]); err != nil {
		return err
	}
	f.shared <- shared[0]
	_, err = c.Write(serverInit())
	return err
}

// viewerHandshake is a VNC viewer's side with a password, up to ServerInit. An error after the response holds the
// server's reason.
func viewerHandshake(c io.ReadWriter, password string, shared byte) error {
	v, err := readVersion(c)
	if err != nil {
		return err
	}
	if _, err := c.Write(v.message()); err != nil {
		return err
	}
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return err
	}
	if n[0] == 0 {
		return refused(c)
	}
	types := make([]byte, n[0])
	if _, err := io.ReadFull(c, types); err != nil {
		return err
	}
	if _, err := c.Write(types[:1]); err != nil {
		return err
	}
	if types[0] == secVNCAuth {
		var challenge [16]byte
		if _, err := io.ReadFull(c, challenge[:]); err != nil {
			return err
		}
		response, err := vncResponse(challenge, password)
		if err != nil {
			return err
		}
		if _, err := c.Write(response[:]); err != nil {
			return err
		}
	}
	if res, err := readUint32(c); err != nil || res != resultOK {
		return errors.Join(err, refused(c))
	}
	if _, err := c.Write([]byte{shared}); err != nil {
		return err
	}
	init := make([]byte, len(serverInit()))
	if _, err := io.ReadFull(c, init); err != nil {
		return err
	}
	if !bytes.Equal(init, serverInit()) {
		return errors.New("not the fake server's ServerInit")
	}
	return nil
}

// newGateway returns a gateway on free ports that is closed with the test.
func newGateway(t testing.TB, s Sessions, change ...func(*Config)) *Gateway {
	t.Helper()
	cfg := Config{Web: "127.0.0.1:16080", VNCBase: 15900, AdminToken: "admin-token"}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	for _, c := range change {
		c(&cfg)
	}
	g, err := New(cfg, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	g.Serve() // VNC; a web listener comes with start
	return g
}

// start listens and serves.
func (g *Gateway) start() error {
	if err := g.Listen(); err != nil {
		return err
	}
	g.Serve()
	return nil
}

func fakeSession(name, socket string) Session {
	return Session{Name: name, ID: name + "-id", Profile: "xfce", State: "running", User: "root", UID: os.Getuid(),
		VNCSocket: socket, Password: "secret-" + name, Token: "token-" + name, Width: 640, Height: 480,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// patience is how long a test waits for what must happen; only a broken gateway takes so long.
const patience = 30 * time.Second

// within waits for a value.
func within[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited %v for %s", patience, what)
		panic("unreachable")
	}
}
