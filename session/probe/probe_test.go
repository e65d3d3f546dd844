package probe_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"berth/display/drivers"
	"berth/internal/hostsession"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/audio"
	"berth/session/bus"
	"berth/session/probe"
)

func deadline(tb testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	tb.Cleanup(cancel)
	return c
}

func soon(tb testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	tb.Cleanup(cancel)
	return c
}

func runner(s *hostsession.Session) *probe.Runner {
	return probe.New(probe.Target{XSocket: s.XSocket(), XAuthority: s.Xauthority(), RuntimeDir: s.Runtime, TmpDir: s.Tmp,
		RuntimeInside: s.RuntimeInside(), UID: hostsession.UID, GID: hostsession.GID})
}

// TestDisplay starts a display after its probes wait already, kills it, and starts it again.
func TestDisplay(t *testing.T) {
	for _, driver := range []string{"xvfb", "xvnc"} {
		t.Run(driver, func(t *testing.T) {
			s := hostsession.New(t)
			r := runner(s)
			defer r.Close()
			comps, err := drivers.Components(profiles.Display{Server: driver, Width: 800, Height: 600, DPI: 96})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Wait(soon(t), profiles.Probe{Kind: "x11"}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, os.ErrNotExist) {
				t.Errorf("before the start: %v", err)
			}
			all := func() {
				var wg sync.WaitGroup
				for _, kind := range []string{"x11", "vnc", "wm", "dock", "painted"} {
					wg.Go(func() {
						if err := r.Wait(deadline(t), profiles.Probe{Kind: kind}); err != nil {
							t.Error(err)
						}
					})
				}
				var procs []*hostsession.Proc
				for _, c := range comps {
					p := s.Start(c)
					procs = append(procs, p)
					for _, want := range s.Ready(c) {
						if err := r.Wait(deadline(t), want); err != nil {
							t.Error(err)
						}
					}
				}
				procs = append(procs, s.Run("openbox", "--sm-disable"), s.Run("tint2"))
				wg.Wait()
				for _, p := range procs {
					p.Kill()
				}
			}
			all()
			all() // over the lock and sockets that the killed ones left
		})
	}
}

func TestBus(t *testing.T) {
	s := hostsession.New(t)
	r := runner(s)
	done := make(chan error, 2)
	const name = "org.example.Berth"
	go func() { done <- r.Wait(deadline(t), profiles.Probe{Kind: "bus"}) }()
	s.Start(bus.Components()[0])
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	err := r.Wait(soon(t), profiles.Probe{Kind: "bus", Arg: name})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nobody owns "+name) {
		t.Errorf("without owner: %v", err)
	}
	go func() { done <- r.Wait(deadline(t), profiles.Probe{Kind: "bus", Arg: name}) }()
	conn, err := dbus.Dial("unix:path=" + s.Runtime + "/bus")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := errors.Join(conn.Auth(nil), conn.Hello()); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(name, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := r.Wait(deadline(t), profiles.Probe{Kind: "bus", Arg: name}); err != nil {
		t.Errorf("with owner: %v", err)
	}
}

func TestSound(t *testing.T) {
	for _, server := range []string{"pipewire", "pulseaudio"} {
		t.Run(server, func(t *testing.T) {
			s := hostsession.New(t)
			s.Overlay("../../assets/images/" + server + "/files/etc")
			r := runner(s)
			comps, err := audio.Components(profiles.Audio{Server: server})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range comps {
				s.Start(c)
				for _, p := range s.Ready(c) {
					if err := r.Wait(deadline(t), p); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// TestFakes has servers that accept and then misbehave.
func TestFakes(t *testing.T) {
	dir := t.TempDir()
	r := probe.New(probe.Target{RuntimeDir: dir, TmpDir: t.TempDir(), RuntimeInside: "/run/user/1"})
	serve := func(name string, f func(net.Conn)) {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { f(c); c.Close() }()
			}
		}()
	}
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	for name, kind := range map[string]string{"vnc.sock": "vnc", "pulse/native": "pulse", "pipewire-0": "pipewire", "bus": "bus"} {
		serve(name, silent)
		err := r.Wait(soon(t), profiles.Probe{Kind: kind})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "does not") {
			t.Errorf("%s, silent: %v", kind, err)
		}
		os.Remove(filepath.Join(dir, name))
		serve(name, func(c net.Conn) {})
		if err := r.Wait(soon(t), profiles.Probe{Kind: kind}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, hangs up: %v", kind, err)
		}
		os.Remove(filepath.Join(dir, name))
		serve(name, func(c net.Conn) { c.Write([]byte(strings.Repeat("\xff", 4096))); silent(c) })
		if err := r.Wait(soon(t), profiles.Probe{Kind: kind}); err == nil {
			t.Errorf("%s: garbage was taken for an answer", kind)
		}
		os.Remove(filepath.Join(dir, name))
	}
	serve("app/s", silent)
	if err := r.Wait(deadline(t), profiles.Probe{Kind: "socket", Arg: "/run/user/1/app/s"}); err != nil {
		t.Error(err)
	}
	for _, arg := range []string{"/etc/x", "/run/user/1/../../x", "/run/user/10/x"} {
		if err := r.Wait(soon(t), profiles.Probe{Kind: "socket", Arg: arg}); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

func TestExec(t *testing.T) {
	tries := 0
	r := probe.New(probe.Target{Exec: func(_ context.Context, argv []string) (int, string, error) {
		if argv[2] == "never" {
			return 3, "first\nnot yet\n", nil
		}
		tries++
		return 3 - tries, "", nil
	}})
	if err := r.Wait(deadline(t), profiles.Probe{Kind: "exec", Arg: "third"}); err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if err := r.Wait(soon(t), profiles.Probe{Kind: "exec", Arg: "never"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "exit code 3: not yet") {
		t.Errorf("never: %v", err)
	}
	if err := r.Wait(deadline(t), profiles.Probe{Kind: "sock"}); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("unknown kind: %v", err)
	}
}

// TestGivenUpWhileConnecting ends waits whose connection is still being made: what goes on in the background is then
// nobody's any more, and must not bring the process down.
func TestGivenUpWhileConnecting(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "X0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // a server that accepts (the kernel does) and never says a word
	authority := filepath.Join(dir, "Xauthority")
	if err := os.WriteFile(authority, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Millisecond, cancel)
			r := probe.New(probe.Target{XSocket: filepath.Join(dir, "X0"), XAuthority: authority, RuntimeDir: dir, TmpDir: dir})
			if err := r.Wait(ctx, profiles.Probe{Kind: "wm"}); err == nil {
				t.Error("a server that never answers has a window manager")
			}
		})
	}
	wg.Wait()
	if n := probe.Connections(); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
}
