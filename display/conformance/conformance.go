// Package conformance tests what every display server promises (package display), with the real programs.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/display"
	"berth/display/rfbtest"
	"berth/display/x11"
	"berth/internal/hostsession"
	"berth/internal/unixsock"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/probe"
)

// Traits are what servers may differ in.
type Traits struct {
	// ClientResizes: VNC clients can set the size.
	ClientResizes bool
	// Grows: the screen can become larger than 2560x1600 without having been asked for at the start.
	Grows bool
	// Clipboard: any text is copied and pasted through VNC from the start. Without it, ASCII, after a minute.
	Clipboard bool
}

var table = profiles.Display{Width: 1024, Height: 768, DPI: 96}

func deadline(tb testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	tb.Cleanup(cancel)
	return c
}

// stage is a session with the server running.
type stage struct {
	*hostsession.Session
	t     *testing.T
	procs []*hostsession.Proc
}

// start starts the server's components, each after what it waits for, and sets the profile's size, as a session does.
func (s *stage) start(server display.Server) {
	s.t.Helper()
	table := table
	table.Server = server.Name()
	comps, err := server.Components(table)
	if err != nil {
		s.t.Fatal(err)
	}
	r := probe.New(probe.Target{XSocket: s.XSocket(), XAuthority: s.Xauthority(),
		RuntimeDir: s.Runtime, TmpDir: s.Tmp, RuntimeInside: s.RuntimeInside()})
	for _, c := range comps {
		s.procs = append(s.procs, s.Start(c))
		for _, p := range s.Ready(c) {
			if err := r.Wait(deadline(s.t), p); err != nil {
				s.t.Fatal(err)
			}
		}
		if slices.Contains(c.Provides, "display") {
			if err := s.screen().Resize(deadline(s.t), table.Width, table.Height, table.DPI); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

func newStage(t *testing.T, server display.Server) *stage {
	t.Helper()
	s := &stage{Session: hostsession.New(t), t: t}
	s.start(server)
	return s
}

// screen opens a connection to the X server.
func (s *stage) screen() *x11.Conn {
	s.t.Helper()
	c, err := x11.Open(deadline(s.t), s.XSocket(), s.Xauthority())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// vnc opens a connection to the VNC server.
func (s *stage) vnc() *rfbtest.Client {
	s.t.Helper()
	ctx := deadline(s.t)
	conn, err := unixsock.Dial(ctx, s.Runtime, "vnc.sock")
	if err != nil {
		s.t.Fatal(err)
	}
	d, _ := ctx.Deadline()
	conn.SetDeadline(d)
	c, err := rfbtest.New(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// until handles the VNC server's messages, asking for the screen after every update, until done says so.
func until(t *testing.T, c *rfbtest.Client, what string, done func() bool) {
	t.Helper()
	if err := c.Request(false); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
	for !done() {
		typ, err := c.Next()
		if err == nil && typ == 0 {
			err = c.Request(true)
		}
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// Run runs the suite.
func Run(t *testing.T, server display.Server, traits Traits) {
	t.Run("Components", func(t *testing.T) { components(t, server) })
	t.Run("Access", func(t *testing.T) { access(t, server) })
	t.Run("Extensions", func(t *testing.T) { extensions(t, server) })
	t.Run("Resize", func(t *testing.T) { resize(t, server, traits) })
	t.Run("Screenshot", func(t *testing.T) { screenshot(t, server) })
	t.Run("VNC", func(t *testing.T) { vnc(t, server, traits) })
	t.Run("VNCInput", func(t *testing.T) { input(t, server) })
	t.Run("Clipboard", func(t *testing.T) { clipboard(t, server, traits) })
	t.Run("Restart", func(t *testing.T) { restart(t, server) })
}

func components(t *testing.T, server display.Server) {
	comps, err := server.Components(table)
	if err != nil {
		t.Fatal(err)
	}
	provides := map[string]int{}
	for _, c := range comps {
		for _, r := range c.Provides {
			provides[r]++
		}
		if c.Name == "" || c.Image == "" || len(c.Command) == 0 || len(c.Ready) == 0 || c.Timeout == 0 {
			t.Errorf("component is incomplete: %+v", c)
		}
	}
	if provides["display"] != 1 || provides["vnc"] != 1 || !slices.Contains(comps[0].Provides, "display") {
		t.Errorf("roles %v; want display, by the first component, and vnc, once each", provides)
	}
	for _, bad := range []profiles.Display{
		{Width: 10, Height: 768, DPI: 96}, {Width: 1024, Height: 100000, DPI: 96}, {Width: 1024, Height: 768},
	} {
		if _, err := server.Components(bad); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", bad, err)
		}
	}
}

func access(t *testing.T, server display.Server) {
	s := newStage(t, server)
	dir, name := x11.Split(s.XSocket())
	if err := x11.Handshake(deadline(t), dir, name, s.Cookie); err != nil {
		t.Errorf("with the cookie: %v", err)
	}
	for what, cookie := range map[string][]byte{"without cookie": nil, "with a wrong one": make([]byte, 16)} {
		if err := x11.Handshake(deadline(t), dir, name, cookie); !errors.Is(err, x11.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", what, err)
		}
	}
	const listening = "0A" // proc(5), /proc/net/tcp
	for _, file := range []string{"tcp", "tcp6"} {
		for _, line := range strings.Split(s.NetProc(file), "\n") {
			if f := strings.Fields(line); len(f) > 3 && f[3] == listening {
				t.Errorf("listens on %s %s", file, f[1])
			}
		}
	}
	const acceptsConnections = "00010000" // /proc/net/unix, flags
	var sockets []string
	for _, line := range strings.Split(s.NetProc("unix"), "\n") {
		if f := strings.Fields(line); len(f) > 7 && f[3] == acceptsConnections {
			sockets = append(sockets, f[7])
		}
	}
	slices.Sort(sockets)
	want := []string{s.RuntimeInside() + "/vnc.sock", display.Socket}
	slices.Sort(want)
	if !slices.Equal(sockets, want) {
		t.Errorf("listens on %v, want %v", sockets, want)
	}
}

func extensions(t *testing.T, server display.Server) {
	s := newStage(t, server)
	have, err := s.screen().Extensions(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []string{"BIG-REQUESTS", "Composite", "DAMAGE", "GLX", "MIT-SCREEN-SAVER", "MIT-SHM", "RANDR",
		"RENDER", "X-Resource", "XFIXES", "XInputExtension", "XKEYBOARD", "XTEST"} {
		if !slices.Contains(have, e) {
			t.Errorf("extension %s is missing", e)
		}
	}
}

func resize(t *testing.T, server display.Server, traits Traits) {
	s := newStage(t, server)
	c := s.screen()
	check := func(w, h, dpi int) {
		t.Helper()
		if err := c.Resize(deadline(t), w, h, dpi); err != nil {
			t.Errorf("%dx%d: %v", w, h, err)
			return
		}
		if got, err := c.Size(deadline(t)); err != nil || got.Width != w || got.Height != h {
			t.Errorf("%dx%d: size is %v, %v", w, h, got, err)
		}
		fresh := s.screen() // a new client is told the physical size
		if got, err := fresh.Size(deadline(t)); err != nil || got.Width != w || got.Height != h || got.DPI() != dpi {
			t.Errorf("%dx%d at %d dpi: a new client sees %v at %d dpi, %v", w, h, dpi, got, got.DPI(), err)
		}
		fresh.Close()
	}
	check(1280, 1024, 96)
	check(1280, 1024, 96)
	check(800, 600, 96)
	check(1367, 771, 96)
	check(1366, 901, 120) // lower and higher at once
	check(320, 200, 96)
	check(2560, 1600, 192)
	if traits.Grows {
		check(4096, 2304, 96)
	}
	for i := range 40 { // somebody drags the corner of a window
		if err := c.Resize(deadline(t), 900+3*i, 700-2*i, 96); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range [][3]int{{319, 200, 96}, {320, 199, 96}, {16384, 16384, 96}, {800, 600, 0}} {
		if err := c.Resize(deadline(t), size[0], size[1], size[2]); !errors.Is(err, x11.ErrSize) {
			t.Errorf("%v: %v, want ErrSize", size, err)
		}
	}
	// Who takes the nearest gets it: all that a server without room to grow has, and the least that desktops fit in.
	most, err := c.Fit(deadline(t), profiles.MaxWidth+1, 800, 96)
	switch {
	case err != nil:
		t.Errorf("nearest to the widest: %v", err)
	case most.Height != 800 || most.Width < 2560 || most.Width > profiles.MaxWidth || traits.Grows && most.Width < 4096:
		t.Errorf("nearest to %dx800 is %v", profiles.MaxWidth+1, most)
	}
	if got, err := c.Size(deadline(t)); err != nil || got.String() != most.String() {
		t.Errorf("size is %v, %v; Fit said %v", got, err, most)
	}
	if !traits.Grows {
		err := c.Resize(deadline(t), most.Width+1, 800, 96)
		if !errors.Is(err, x11.ErrSize) || !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("exactly %dx800: %v, want ErrSize", most.Width+1, err)
		}
	}
	if least, err := c.Fit(deadline(t), 1, 1, 96); err != nil || least.String() != "320x200" {
		t.Errorf("nearest to 1x1 is %v, %v", least, err)
	}
	if xrandr, err := exec.LookPath("xrandr"); err == nil {
		p := s.Run(xrandr)
		<-p.Done
		if n := strings.Count(p.Log(), "berth-"); n > 1 {
			t.Errorf("%d modes are left of former sizes:\n%s", n, p.Log())
		}
	}
}

func screenshot(t *testing.T, server display.Server) {
	s := newStage(t, server)
	c := s.screen()
	if err := c.Resize(deadline(t), 1001, 703, 96); err != nil {
		t.Fatal(err)
	}
	want := image.NewRGBA(image.Rect(0, 0, 1001, 703))
	for i := range 64 {
		col := color.RGBA{uint8(4 * i), uint8(255 - 3*i), uint8(i*i) | 1, 255}
		r := image.Rect(i%8*126, i/8*88, min(i%8*126+126, 1001), min(i/8*88+88, 703))
		if err := c.Paint(deadline(t), r, col); err != nil {
			t.Fatal(err)
		}
		for y := r.Min.Y; y < r.Max.Y; y++ {
			for x := r.Min.X; x < r.Max.X; x++ {
				want.SetRGBA(x, y, col)
			}
		}
	}
	got, err := c.Screenshot(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := same(got, want); err != nil {
		t.Error(err)
	}
}

func same(got, want *image.RGBA) error {
	if got.Rect != want.Rect {
		return fmt.Errorf("picture of %v, want %v", got.Rect, want.Rect)
	}
	for y := range want.Rect.Dy() {
		for x := range want.Rect.Dx() {
			if g, w := got.RGBAAt(x, y), want.RGBAAt(x, y); g != w {
				return fmt.Errorf("pixel %d,%d is %v, want %v", x, y, g, w)
			}
		}
	}
	return nil
}

func vnc(t *testing.T, server display.Server, traits Traits) {
	s := newStage(t, server)
	x, v := s.screen(), s.vnc()
	if v.Version != "RFB 003.008" {
		t.Errorf("version %q", v.Version)
	}
	if size := v.Screen.Rect.Size(); size != image.Pt(table.Width, table.Height) {
		t.Errorf("a new client is told %v", size)
	}
	red := color.RGBA{250, 10, 20, 255}
	if err := x.Paint(deadline(t), image.Rect(100, 100, 300, 200), red); err != nil {
		t.Fatal(err)
	}
	until(t, v, "what was drawn", func() bool {
		return v.Screen.RGBAAt(100, 100) == red && v.Screen.RGBAAt(299, 199) == red && v.Screen.RGBAAt(300, 200) != red
	})
	for _, size := range []image.Point{{1300, 901}, {640, 480}, {1280, 1024}} {
		if err := x.Resize(deadline(t), size.X, size.Y, 96); err != nil {
			t.Fatal(err)
		}
		until(t, v, fmt.Sprintf("the size %v", size), func() bool { return v.Screen.Rect.Size() == size })
		green := color.RGBA{0, 200, uint8(size.X), 255}
		last := size.Sub(image.Pt(1, 1))
		if err := x.Paint(deadline(t), image.Rect(size.X-50, size.Y-50, size.X, size.Y), green); err != nil {
			t.Fatal(err)
		}
		until(t, v, fmt.Sprintf("the corner at %v", last), func() bool { return v.Screen.RGBAAt(last.X, last.Y) == green })
	}
	second := s.vnc() // shared
	until(t, second, "the picture on a second client", func() bool { return second.Screen.RGBAAt(1279, 1023).G == 200 })
	if traits.ClientResizes {
		if err := v.SetDesktopSize(1111, 777); err != nil {
			t.Fatal(err)
		}
		until(t, v, "the client's own size", func() bool { return v.Screen.Rect.Size() == image.Pt(1111, 777) })
		if got, err := x.Size(deadline(t)); err != nil || got.String() != "1111x777" {
			t.Errorf("after the client has set it, the size is %v, %v", got, err)
		}
	}
}

func input(t *testing.T, server display.Server) {
	if _, err := exec.LookPath("xterm"); err != nil {
		t.Skip("xterm is not installed")
	}
	s := newStage(t, server)
	x, v := s.screen(), s.vnc()
	s.Run("xterm", "-geometry", "80x24+0+0", "-e", "head -n1 >/tmp/typed.part; mv /tmp/typed.part /tmp/typed")
	w, err := x.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Wait(deadline(t), x11.Mapped("XTerm")); err != nil {
		t.Fatal(err)
	}
	if err := v.Pointer(60, 60, 0); err != nil { // without a window manager the focus follows the pointer
		t.Fatal(err)
	}
	const text = "Grüße, Welt! {1+1}=2 \\o/ @#~"
	for _, r := range text {
		if err := v.Key(uint32(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Key(x11.KeyReturn); err != nil {
		t.Fatal(err)
	}
	if err := unixsock.WaitFile(deadline(t), s.Tmp, "typed"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(s.Tmp + "/typed"); err != nil || string(b) != text+"\n" {
		t.Errorf("typed %q, %v; want %q", b, err, text)
	}
}

func clipboard(t *testing.T, server display.Server, traits Traits) {
	if _, err := exec.LookPath("xclip"); err != nil {
		t.Skip("xclip is not installed")
	}
	if !traits.Clipboard && testing.Short() {
		t.Skip("takes a minute")
	}
	s := newStage(t, server)
	v := s.vnc()
	until(t, v, "the first picture", func() bool { return v.Screen.RGBAAt(0, 0).A == 255 })
	text := "ahoy"
	if traits.Clipboard {
		text = "Grüße, 世界 €"
	} else {
		v.Caps = 0 // use what plain VNC has
	}
	// xclip holds the selection until somebody else takes it.
	write := s.Run("sh", "-c", `printf %s "$1" | xclip -selection clipboard -i -quiet 2>/dev/null`, "sh", text+"1")
	defer write.Kill()
	until(t, v, "text copied in the session", func() bool { return v.CutText == text+"1" })
	if err := v.SetCutText(text + "2"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(deadline(t))
	defer cancel(nil)
	pasted := errors.New("pasted")
	go func() {
		for ctx.Err() == nil { // no event tells that a selection's new owner is ready
			p := s.Run("xclip", "-selection", "clipboard", "-o")
			<-p.Done
			if p.Log() == text+"2" {
				cancel(pasted)
				v.Request(false) // so that the loop below wakes
				return
			}
		}
	}()
	for context.Cause(ctx) != pasted {
		typ, err := v.Next() // the server fetches the text when it is pasted
		if err == nil && typ == 0 {
			err = v.Request(true)
		}
		if err != nil {
			t.Fatalf("waiting for text copied outside: %v", err)
		}
	}
}

func restart(t *testing.T, server display.Server) {
	s := newStage(t, server)
	for range 2 {
		for _, p := range s.procs {
			p.Kill()
		}
		s.procs = nil
		s.start(server)
		if v := s.vnc(); v.Version != "RFB 003.008" {
			t.Errorf("version %q", v.Version)
		}
	}
}
