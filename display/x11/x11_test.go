package x11_test

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/display/drivers"
	"berth/display/x11"
	"berth/internal/hostsession"
	"berth/internal/unixsock"
	"berth/profiles"
)

func deadline(tb testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	tb.Cleanup(cancel)
	return c
}

// server starts an X server and returns a connection to it.
func server(tb testing.TB, driver string) (*hostsession.Session, *hostsession.Proc, *x11.Conn) {
	tb.Helper()
	s := hostsession.New(tb)
	comps, err := drivers.Components(profiles.Display{Server: driver, Width: 1280, Height: 800, DPI: 96})
	if err != nil {
		tb.Fatal(err)
	}
	p := s.Start(comps[0])
	dir, name := x11.Split(s.XSocket())
	c, err := x11.Dial(deadline(tb), dir, name, s.Cookie)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	if err := c.Resize(deadline(tb), 1280, 800, 96); err != nil {
		tb.Fatal(err)
	}
	return s, p, c
}

func TestWatcher(t *testing.T) {
	s, _, c := server(t, "xvfb")
	w, err := c.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := c.Watch(); err == nil {
		t.Error("a second watcher was made")
	}

	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err = w.Wait(short, x11.Dock)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waited for a mapped window of type DOCK") {
		t.Errorf("no dock: %v", err)
	}

	var wg sync.WaitGroup
	for _, cond := range []x11.Condition{x11.WM, x11.Dock} {
		wg.Go(func() {
			if err := w.Wait(deadline(t), cond); err != nil {
				t.Error(err)
			}
		})
	}
	s.Run("openbox", "--sm-disable")
	s.Run("tint2")
	wg.Wait()
	name, ok, err := c.WindowManager(deadline(t))
	if err != nil || !ok || name != "Openbox" {
		t.Errorf("window manager %q, %v, %v", name, ok, err)
	}
	wins, err := c.Windows(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, win := range wins {
		if win.Is("DOCK") && win.Mapped { // tint2 has another, never mapped
			found = true
			if win.Class != "Tint2" || win.PID == 0 || win.Bounds.Empty() || win.Title == "" {
				t.Errorf("dock: %+v", win)
			}
		}
	}
	if !found {
		t.Errorf("no dock among %+v", wins)
	}
	// A condition that holds already is seen at once, by a later watcher too.
	w.Close()
	var w2 *x11.Watcher
	for w2 == nil {
		w2, _ = c.Watch() // refused until the first has ended
		runtime.Gosched()
	}
	defer w2.Close()
	if err := w2.Wait(deadline(t), x11.Dock); err != nil {
		t.Error(err)
	}
	short, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := w2.Wait(short, x11.Desktop); err == nil || !strings.Contains(err.Error(), "1 DOCK") {
		t.Errorf("no desktop: %v", err)
	}
}

// A window two levels below the root is found, by one who waits for it and in the list, and once.
func TestWrappedTwice(t *testing.T) {
	_, _, c := server(t, "xvfb")
	w, err := c.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	id, err := c.MakeDock(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.Wait(deadline(t), x11.Dock) }()
	if err := c.WrapTwice(deadline(t), id); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wins, err := c.Windows(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	docks := 0
	for _, win := range wins {
		if win.ID == id && win.Is("DOCK") && win.Mapped {
			docks++
		}
	}
	if docks != 1 {
		t.Errorf("the dock is listed %d times: %+v", docks, wins)
	}
}

// A panel with something on it is painted at some time, one with nothing on it is not.
func TestPainted(t *testing.T) {
	for name, tc := range map[string]struct {
		config  string
		painted bool
	}{"usual": {"/etc/xdg/tint2/tint2rc", true}, "plain": {"/tmp/plain", false}} {
		t.Run(name, func(t *testing.T) {
			s, _, c := server(t, "xvfb")
			if err := c.Painted(deadline(t)); err != nil {
				t.Errorf("a screen without panels: %v", err)
			}
			w, err := c.Watch()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			s.Run("openbox", "--sm-disable") // tint2 waits for a window manager
			s.Run("sh", "-c", `echo 'panel_items =' >/tmp/plain; exec tint2 -c "$1"`, "sh", tc.config)
			if err := w.Wait(deadline(t), x11.Dock); err != nil {
				t.Fatal(err)
			}
			ctx := deadline(t)
			if !tc.painted {
				short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
				ctx = short
			}
			err = c.Painted(ctx)
			if tc.painted && err != nil || !tc.painted && (!errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "to be painted")) {
				t.Errorf("painted: %v", err)
			}
		})
	}
}

func TestDrawn(t *testing.T) {
	_, _, c := server(t, "xvfb")
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := c.Drawn(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an empty screen: %v", err)
	}
	for i := range 8 {
		r := image.Rect(100*i, 100, 100*i+50, 200)
		if err := c.Paint(deadline(t), r, color.RGBA{R: uint8(30 * i), G: 100, B: 50, A: 255}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Drawn(deadline(t)); err != nil {
		t.Errorf("a screen with something on it: %v", err)
	}
}

// No resize looks to clients like a monitor that has been plugged in. They tell by the order of two times; Mutter then
// sets a size of its own.
func TestResizeIsNoHotplug(t *testing.T) {
	_, _, c := server(t, "xvfb")
	// The server's clock ticks in milliseconds, and within one everything has the same time: one resize proves nothing.
	for i := range 50 {
		size := image.Pt(800+i, 600)
		if err := c.Resize(deadline(t), size.X, size.Y, 96); err != nil {
			t.Fatal(err)
		}
		set, changed, err := c.ConfigTimes(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		if set < changed {
			t.Errorf("after resizing to %v: configuration set at %d, before what can be set changed at %d", size, set, changed)
		}
	}
}

func TestLost(t *testing.T) {
	_, p, c := server(t, "xvfb")
	w, err := c.Watch()
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- w.Wait(deadline(t), x11.WM) }()
	var wg sync.WaitGroup
	for range 20 { // in flight while the server dies
		wg.Go(func() {
			for {
				if _, err := c.Screenshot(deadline(t)); err != nil {
					if !errors.Is(err, x11.ErrLost) {
						t.Errorf("screenshot: %v", err)
					}
					return
				}
			}
		})
	}
	p.Kill()
	wg.Wait()
	if err := <-waited; !errors.Is(err, x11.ErrLost) {
		t.Errorf("waiter: %v", err)
	}
	select {
	case <-c.Done():
	case <-deadline(t).Done():
		t.Error("Done is not closed")
	}
	if _, err := c.Size(deadline(t)); !errors.Is(err, x11.ErrLost) {
		t.Errorf("later: %v", err)
	}
	c.Close()
	if _, err := c.Size(deadline(t)); !errors.Is(err, x11.ErrLost) {
		t.Errorf("after Close: %v", err)
	}
}

// TestManyConnections sees to it that a closed connection leaves nothing behind.
func TestManyConnections(t *testing.T) {
	s, _, _ := server(t, "xvfb")
	dir, name := x11.Split(s.XSocket())
	before := 0
	for i := range 300 {
		c, err := x11.Dial(deadline(t), dir, name, s.Cookie)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Size(deadline(t)); err != nil || got.String() != "1280x800" {
			t.Fatalf("connection %d: %v, %v", i, got, err)
		}
		c.Close()
		if i == 50 {
			before = runtime.NumGoroutine()
		}
	}
	if n := runtime.NumGoroutine(); n > before+30 {
		t.Errorf("%d goroutines after 300 connections, %d after 50", n, before)
	}
}

func TestTypeAndIdle(t *testing.T) {
	s, _, c := server(t, "xvfb")
	out := s.Tmp + "/typed"
	s.Run("xterm", "-e", "head -n1 >/tmp/typed.part; mv /tmp/typed.part /tmp/typed")
	ctx := deadline(t)
	for mapped := false; !mapped; {
		wins, err := c.Windows(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wins {
			mapped = mapped || w.Class == "XTerm" && w.Mapped
		}
	}
	if err := c.Move(ctx, 100, 100); err != nil { // without a window manager the focus follows the pointer
		t.Fatal(err)
	}
	if err := c.Type(ctx, "Hello, World! 1+1=2 \\o/\n"); err != nil {
		t.Fatal(err)
	}
	if idle, err := c.IdleTime(ctx); err != nil || idle > 10*time.Second {
		t.Errorf("idle %v, %v", idle, err)
	}
	if err := unixsock.WaitFile(ctx, s.Tmp, "typed"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || string(b) != "Hello, World! 1+1=2 \\o/\n" {
		t.Errorf("typed %q, %v", b, err)
	}
}

func TestThumbnailAndPNG(t *testing.T) {
	img := image.NewRGBA(image.Rect(0, 0, 101, 77))
	for y := range 77 {
		for x := range 101 {
			img.SetRGBA(x, y, color.RGBA{uint8(x), uint8(y), 200, 255})
		}
	}
	for _, tc := range []struct{ w, h, ww, wh int }{{50, 50, 50, 38}, {101, 77, 101, 77}, {500, 500, 101, 77}, {1, 1, 1, 1}, {100, 3, 3, 3}} {
		got := x11.Thumbnail(img, tc.w, tc.h)
		if got.Rect.Dx() != tc.ww || got.Rect.Dy() != tc.wh {
			t.Errorf("%dx%d: got %v", tc.w, tc.h, got.Rect)
		}
		mid := got.RGBAAt(tc.ww/2, tc.wh/2)
		if mid.B != 200 || mid.A != 255 || mid.R < 40 || mid.R > 62 {
			t.Errorf("%dx%d: middle %v", tc.w, tc.h, mid)
		}
	}
	b, err := x11.PNG(img)
	if err != nil {
		t.Fatal(err)
	}
	back, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if back.Bounds() != img.Bounds() {
		t.Errorf("bounds %v", back.Bounds())
	}
	for _, p := range []image.Point{{0, 0}, {100, 76}, {33, 44}} {
		if got, want := color.RGBAModel.Convert(back.At(p.X, p.Y)), img.RGBAAt(p.X, p.Y); got != want {
			t.Errorf("%v: %v, want %v", p, got, want)
		}
	}
}
