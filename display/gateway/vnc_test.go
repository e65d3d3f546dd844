package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func openVNC(t testing.TB, g *Gateway, name string) string {
	t.Helper()
	addr, err := g.OpenVNC(name, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestVNC(t *testing.T) {
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	s.set(fakeSession("one", srv.path))
	g := newGateway(t, s)
	addr := openVNC(t, g, "one")
	if again := openVNC(t, g, "one"); again != addr {
		t.Errorf("opened again = %s; want the same %s", again, addr)
	}
	for _, shared := range []byte{0, 1} {
		c := dial(t, addr)
		if err := viewerHandshake(c, "secret-one", shared); err != nil {
			t.Fatal(err)
		}
		if got := within(t, "ClientInit", srv.shared); got != shared {
			t.Errorf("shared flag = %d; want %d", got, shared)
		}
		// Echoed: more than fits into any buffer on the way, so both directions run at the same time.
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		go func() { _, _ = c.Write(want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("echo differs (%v)", err)
		}
		c.Close()
		if within(t, "the server's connection", srv.open) != 1 || within(t, "its end", srv.open) != -1 {
			t.Error("the VNC server's connection did not end with the viewer's")
		}
	}
}

func TestVNCWrongPassword(t *testing.T) {
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	s.set(fakeSession("one", srv.path))
	g := newGateway(t, s)
	addr := openVNC(t, g, "one")
	for range throttleFree {
		if err := viewerHandshake(dial(t, addr), "wrong", 1); err == nil || !strings.Contains(err.Error(), "wrong password") {
			t.Fatalf("error = %v; want wrong password", err)
		}
	}
	// Another address is no way around it: on loopback all of 127/8 is everybody's.
	elsewhere := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 2, 3)}}
	c, err := elsewhere.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := viewerHandshake(c, "wrong", 1); err == nil || !strings.Contains(err.Error(), "too many wrong tries") {
		t.Errorf("error from another address = %v; want too many wrong tries", err)
	}
	// Now even the right one has to wait, and is told so before it is asked for.
	if err := viewerHandshake(dial(t, addr), "secret-one", 1); err == nil || !strings.Contains(err.Error(), "too many wrong tries") {
		t.Errorf("error = %v; want too many wrong tries", err)
	}
	// Other sessions are not affected.
	s.set(fakeSession("two", srv.path))
	if err := viewerHandshake(dial(t, openVNC(t, g, "two")), "secret-two", 1); err != nil {
		t.Error(err)
	}
	if within(t, "the only connection", srv.open) != 1 || len(srv.open) != 0 {
		t.Error("the VNC server was connected to before the viewer had authenticated")
	}
}

func TestVNCPorts(t *testing.T) {
	s := &fakeSessions{}
	g := newGateway(t, s)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	if addr, err := g.OpenVNC("a", port, true); err == nil || !strings.Contains(err.Error(), fmt.Sprint("port ", port)) {
		t.Errorf("OpenVNC(exact, taken) = %q, %v; want an error that names port %d", addr, err, port)
	}
	addr, err := g.OpenVNC("a", port, false)
	if err != nil {
		t.Fatalf("OpenVNC(taken) = %v; want another port", err)
	}
	second := openVNC(t, g, "b")
	if addr == second {
		t.Errorf("two sessions on %s", addr)
	}
	g.CloseSession(Session{Name: "a"})
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Errorf("%s is open after CloseSession", addr)
	}
	if _, err := g.OpenVNC("c", 70000, true); err == nil {
		t.Error("port 70000 accepted")
	}
}

func TestVNCSessionEnds(t *testing.T) {
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	s.set(fakeSession("one", srv.path))
	g := newGateway(t, s)
	addr := openVNC(t, g, "one")
	shown, asked := dial(t, addr), dial(t, addr)
	if err := viewerHandshake(shown, "secret-one", 1); err != nil {
		t.Fatal(err)
	}
	var version [12]byte
	if _, err := io.ReadFull(asked, version[:]); err != nil { // one that is still in its handshake
		t.Fatal(err)
	}
	sess, _ := s.Get("one")
	s.remove("one")
	g.CloseSession(sess)
	for name, c := range map[string]net.Conn{"shown": shown, "in handshake": asked} {
		if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read = %d, %v; want the connection closed", name, n, err)
		}
	}
}

func TestVNCServerAbsent(t *testing.T) {
	s := &fakeSessions{}
	s.set(fakeSession("one", filepath.Join(t.TempDir(), "none")))
	g := newGateway(t, s)
	err := viewerHandshake(dial(t, openVNC(t, g, "one")), "secret-one", 1)
	if err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("error = %v; want that the VNC server does not answer", err)
	}
	s.remove("one")
	err = viewerHandshake(dial(t, openVNC(t, g, "one")), "secret-one", 1)
	if err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("error = %v; want that the session has ended", err)
	}
}

// A user who links another session's socket into their own runtime directory must not see that session.
func TestVNCForeignSocket(t *testing.T) {
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	sess := fakeSession("one", srv.path)
	sess.UID = os.Getuid() + 1
	s.set(sess)
	g := newGateway(t, s)
	if err := viewerHandshake(dial(t, openVNC(t, g, "one")), "secret-one", 1); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("error = %v; want the socket refused", err)
	}
	if len(srv.shared) != 0 {
		t.Error("the foreign server was talked to")
	}
}

func TestVNCLimits(t *testing.T) {
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	s.set(fakeSession("one", srv.path))
	g := newGateway(t, s)
	g.limits.perSession, g.limits.handshakes = 2, 1
	addr := openVNC(t, g, "one")
	waiting := dial(t, addr)
	if _, err := io.ReadFull(waiting, make([]byte, 12)); err != nil {
		t.Fatal(err)
	}
	if n, err := dial(t, addr).Read(make([]byte, 1)); err == nil {
		t.Errorf("second handshake: read %d bytes; want it closed", n)
	}
	waiting.Close()
	// Each ends its handshake, so a third is refused for the number of viewers only.
	var kept []net.Conn
	for len(kept) < 2 {
		c := dial(t, addr)
		if err := viewerHandshake(c, "secret-one", 1); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "reset") {
				continue // the one before has not been cleaned up yet
			}
			t.Fatal(err)
		}
		kept = append(kept, c)
	}
	if err := viewerHandshake(dial(t, addr), "secret-one", 1); err == nil {
		t.Error("a third viewer was let in")
	}
}

// Those who connect and say nothing are shown the door.
func TestVNCSilent(t *testing.T) {
	s := &fakeSessions{}
	s.set(fakeSession("one", ""))
	g := newGateway(t, s)
	g.limits.greet = 50 * time.Millisecond
	c := dial(t, openVNC(t, g, "one"))
	if data, err := io.ReadAll(c); err != nil || string(data) != v38 {
		t.Errorf("silent client got %q, %v; want the version and the end", data, err)
	}
}

// After viewers have come and gone, in the handshake or behind it, no goroutine and no file descriptor is left.
func TestVNCLeavesNothing(t *testing.T) {
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	s.set(fakeSession("one", srv.path))
	fds := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	g, err := New(Config{VNCBase: 15900, Web: "127.0.0.1:16080"}, s)
	if err != nil {
		t.Fatal(err)
	}
	before, beforeFD := runtime.NumGoroutine(), fds()
	if err := g.start(); err != nil {
		t.Fatal(err)
	}
	addr := openVNC(t, g, "one")
	for i := range 50 {
		c := dial(t, addr)
		if i%2 == 0 {
			if err := viewerHandshake(c, "secret-one", 1); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 != 0 {
			c.Close()
		} else {
			defer c.Close()
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		// The test's own unclosed ends (17) and the fake server's goroutines end with them or shortly after.
		runtime.GC() // closes the pipes that package net pools for splice
		left, leftFD := runtime.NumGoroutine()-before, fds()-beforeFD
		if left <= 0 && leftFD <= 17 {
			return
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d descriptors more than before\n%s", left, leftFD, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

func TestThrottle(t *testing.T) {
	now := time.Unix(0, 0)
	th := newThrottle()
	th.now = func() time.Time { return now }
	wrong, right := func() error { return errWrongPassword }, func() error { return nil }
	for i := range throttleFree {
		if err := th.try("a", wrong); !errors.Is(err, errWrongPassword) {
			t.Fatalf("try %d = %v; want it looked at", i, err)
		}
	}
	var wait tooMany
	for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		if err := th.try("a", right); !errors.As(err, &wait) || wait.wait != want {
			t.Errorf("blocked for %v, %v; want %v", wait.wait, err, want)
		}
		now = now.Add(want)
		if err := th.try("a", wrong); !errors.Is(err, errWrongPassword) {
			t.Errorf("after %v: %v; want it looked at", want, err)
		}
	}
	if err := th.try("b", right); err != nil {
		t.Errorf("another address is blocked: %v", err)
	}
	for range 20 {
		now = now.Add(throttleMax)
		_ = th.try("a", wrong)
	}
	if err := th.blocked("a"); !errors.As(err, &wait) || wait.wait > throttleMax {
		t.Errorf("blocked = %v; want at most %v", err, throttleMax)
	}
	now = now.Add(throttleMax)
	if err := th.try("a", right); err != nil {
		t.Errorf("right one after the wait: %v", err)
	}
	if err := th.try("a", wrong); !errors.Is(err, errWrongPassword) || th.blocked("a") != nil {
		t.Errorf("the record was not cleared: %v", err)
	}
	for i := range throttleKeys * 2 {
		_ = th.try(fmt.Sprint("key", i), wrong)
	}
	if len(th.keys) > throttleKeys {
		t.Errorf("%d records kept; want at most %d", len(th.keys), throttleKeys)
	}
}

func TestAddressKey(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7:99":                "192.0.2.7",
		"127.0.0.1:99":                "loopback",
		"127.255.255.254:99":          "loopback",
		"[::1]:99":                    "loopback",
		"[::ffff:127.9.9.9]:99":       "loopback",
		"[2001:db8:1:2:3:4:5:6]:99":   "2001:db8:1:2::",
		"[2001:db8:1:2:ff:ff::1]:100": "2001:db8:1:2::",
		"@":                           "@",
	} {
		if got := addressKey(in); got != want {
			t.Errorf("addressKey(%q) = %q; want %q", in, got, want)
		}
	}
}
