package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"berth/orchestrator"
	"berth/session/api"
)

// newTerminal returns a terminal of 100 by 30 and what is written to it; type writes as a person would.
func newTerminal(t *testing.T) (tty *os.File, screen *output, typed func(string)) {
	t.Helper()
	pty, path, err := console.NewPty()
	if err != nil {
		t.Skip("no pseudo terminal: ", err)
	}
	if err := pty.Resize(console.WinSize{Width: 100, Height: 30}); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	screen = newOutput()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(screen, pty) // ends with an error when the last user of the terminal is gone
	}()
	t.Cleanup(func() {
		io.WriteString(pty, "\n") // for a reader of stdin that outlives its command; the terminal closes only behind it
		tty.Close()
		<-done
		pty.Close()
	})
	return tty, screen, func(text string) {
		if _, err := io.WriteString(pty, text); err != nil {
			t.Error(err)
		}
	}
}

func TestProgressLine(t *testing.T) {
	b := newBench(t)
	hold := make(chan struct{})
	b.fake.Hold = hold
	b.fake.Steps = []api.UpEvent{{Message: "image xfce: present"}, {Component: "display", State: "ready"}, {Component: "panel", State: "starting"},
		{Component: "dock", State: "failed", Message: "no such program"}}
	tty, screen, _ := newTerminal(t)
	c := *b.CLI
	c.Args, c.Stdout, c.Stderr = []string{"up", "xfce"}, newOutput(), tty
	code := make(chan int)
	go func() { code <- c.Run(context.Background()) }()
	screen.await(t, "dock: failed: no such program\r\n")
	screen.await(t, "\rstarting xfce [######..............] 1 of 3, waiting for panel 1s\x1b[K")
	close(hold)
	if got := <-code; got != 0 {
		t.Errorf("berth up = %d\n%s", got, screen)
	}
	screen.await(t, "\r\x1b[K")
	if strings.Contains(screen.String(), "image xfce") {
		t.Errorf("messages are printed as lines on a terminal:\n%s", screen)
	}
}

func TestBuildOnTerminal(t *testing.T) {
	b := newBench(t)
	tty, screen, _ := newTerminal(t)
	c := *b.CLI
	c.Args, c.Stdout, c.Stderr, c.Env = []string{"image", "build", "xfce"}, newOutput(), tty, append(b.Env, "TERM=xterm")
	if got := c.Run(context.Background()); got != 0 {
		t.Errorf("berth image build = %d\n%s", got, screen)
	}
	screen.await(t, "xfce [1/2] FROM debian:trixie")
}

func TestExecOnTerminal(t *testing.T) {
	b := newBench(t, "work")
	tty, screen, typed := newTerminal(t)
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	b.fake.Run = func(_ context.Context, _, _ string, spec orchestrator.ExecSpec) (int, error) {
		size := <-spec.Resize
		fmt.Fprintf(spec.Stdout, "tty %v, %dx%d, %v\r\n", spec.TTY, size.Cols, size.Rows, spec.Env)
		key := make([]byte, 1)
		if _, err := spec.Stdin.Read(key); err != nil {
			return 0, err
		}
		fmt.Fprintf(spec.Stdout, "key %d\r\n", key[0])
		return 3, nil
	}
	c := *b.CLI
	c.Args, c.Stdin, c.Stdout, c.Stderr, c.Env = []string{"exec", "work", "panel", "--", "sh"}, tty, tty, tty, append(b.Env, "TERM=vt220")
	code := make(chan int)
	go func() { code <- c.Run(context.Background()) }()
	screen.await(t, "tty true, 100x30, [TERM=vt220]\r\n")
	typed("\x03") // Ctrl-C belongs to the process
	screen.await(t, "key 3\r\n")
	if got := <-code; got != 3 {
		t.Errorf("berth exec = %d; want the process's 3\n%s", got, screen)
	}
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *after != *before {
		t.Errorf("the terminal is left as %+v; it was %+v", after, before)
	}
}

// stuck is a terminal whose output is held up, as by Ctrl-S, until it is closed.
type stuck struct {
	*os.File
	writes chan struct{} // one for each write
	hold   chan struct{}
}

func (s stuck) Write([]byte) (int, error) {
	s.writes <- struct{}{}
	<-s.hold
	return 0, os.ErrClosed
}

// TestSecondInterruptRestoresTheTerminal, though exec itself cannot any more.
func TestSecondInterruptRestoresTheTerminal(t *testing.T) {
	b := newBench(t, "work")
	tty, screen, _ := newTerminal(t)
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	b.fake.Run = func(ctx context.Context, _, _ string, spec orchestrator.ExecSpec) (int, error) {
		fmt.Fprint(spec.Stdout, "output")
		<-ctx.Done()
		return 0, ctx.Err()
	}
	out := stuck{tty, make(chan struct{}), make(chan struct{})}
	interrupts, left, ended := make(chan os.Signal), make(chan *unix.Termios), make(chan int)
	c := *b.CLI
	c.Args, c.Stdin, c.Stdout, c.Stderr, c.Interrupts = []string{"exec", "work", "panel", "--", "sh"}, tty, out, screen, interrupts
	c.Exit = func(int) {
		now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Error(err)
		}
		left <- now
	}
	go func() { ended <- c.Run(context.Background()) }()
	<-out.writes
	if raw, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || *raw == *before {
		t.Errorf("the terminal is %+v, %v; want it raw", raw, err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var after *unix.Termios
	for after == nil {
		select {
		case <-tick.C:
			select {
			case interrupts <- os.Interrupt: // those soon after the first do not count
			case after = <-left:
			}
		case after = <-left:
		}
	}
	if *after != *before {
		t.Errorf("the terminal is left as %+v; it was %+v", after, before)
	}
	close(out.hold)
	<-ended
}

func TestMeter(t *testing.T) {
	for _, tt := range []struct {
		m    meter
		want string
	}{
		{meter{title: "stopping work"}, "stopping work 2s"},
		{meter{title: "starting work", message: "building images xfce"}, "starting work: building images xfce 2s"},
		{meter{title: "pulling x", parts: map[string]orchestrator.Progress{"a": {ID: "a", Status: "done", Total: 1 << 20}, "b": {ID: "b", Status: "downloading", Done: 1 << 20, Total: 3 << 20}}},
			"pulling x [##########..........] 2.0 MiB of 4.0 MiB, 1 of 2 parts 2s"},
		{meter{title: "pulling x", parts: map[string]orchestrator.Progress{"a": {ID: "a", Status: "waiting"}}}, "pulling x 0 of 1 parts 2s"},
		{meter{title: "importing x", sent: 1 << 20, total: 2 << 20}, "importing x [##########..........] 1.0 MiB of 2.0 MiB 2s"},
		{meter{title: "exporting", sent: 3 << 20}, "exporting 3.0 MiB 2s"},
		{meter{title: strings.Repeat("long ", 30)}, strings.Repeat("long ", 30)[:77] + " 2s"},
	} {
		if got := tt.m.line(80, 2*1e9); got != tt.want {
			t.Errorf("line = %q; want %q", got, tt.want)
		}
	}
}
