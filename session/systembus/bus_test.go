package systembus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"berth/internal/hostsession"
	"berth/profiles"
	"berth/session/probe"
	"berth/session/systembus"
)

// stage is a session with nothing but the two components in it, run by the host's dbus-daemon.
type stage struct {
	*hostsession.Session
	t        *testing.T
	ctx      context.Context
	bus      *hostsession.Proc
	services *hostsession.Proc
	comps    []profiles.Component
	probes   *probe.Runner
}

func newStage(t *testing.T) *stage {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	s := &stage{Session: hostsession.New(t), t: t, ctx: ctx,
		comps: systembus.Components(profiles.SystemBus{Kind: "stub"}, profiles.Locale{Keyboard: []string{"us", "de"}})}
	build := exec.Command("go", "build", "-o", s.Berth+"/bin/berth-systembus", "berth/cmd/berth-systembus")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s.probes = probe.New(probe.Target{RuntimeDir: s.Runtime, TmpDir: s.Tmp, RuntimeInside: s.RuntimeInside()})
	s.bus = s.start(0)
	s.services = s.start(1)
	return s
}

// start starts one of the components and waits until it is ready.
func (s *stage) start(n int) *hostsession.Proc {
	s.t.Helper()
	c := s.comps[n]
	env := map[string]string{"DBUS_SYSTEM_BUS_ADDRESS": systembus.Address}
	for k, v := range c.Env {
		env[k] = v
	}
	c.Env = env
	p := s.Start(c)
	for _, want := range s.Ready(c) {
		if err := s.probes.Wait(s.ctx, want); err != nil {
			s.t.Fatal(err)
		}
	}
	return p
}

func (s *stage) connect() *dbus.Conn {
	s.t.Helper()
	conn, err := dbus.Connect("unix:path="+s.Runtime+"/system_bus_socket", dbus.WithContext(s.ctx))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// exit waits for the end of the services and returns their exit code.
func (s *stage) exit() int {
	s.t.Helper()
	select {
	case <-s.services.Done:
		return s.services.Cmd.ProcessState.ExitCode()
	case <-s.ctx.Done():
		s.t.Fatal("the services do not end")
		return 0
	}
}

// signals receives those of login1, its sisters and their properties.
func (s *stage) signals(conn *dbus.Conn) <-chan *dbus.Signal {
	s.t.Helper()
	ch := make(chan *dbus.Signal, 100)
	conn.Signal(ch)
	if err := conn.AddMatchSignal(dbus.WithMatchPathNamespace("/org/freedesktop/login1")); err != nil {
		s.t.Fatal(err)
	}
	return ch
}

// await takes signals until one is called name.
func (s *stage) await(ch <-chan *dbus.Signal, name string) *dbus.Signal {
	s.t.Helper()
	for {
		select {
		case sig := <-ch:
			if sig == nil {
				s.t.Fatalf("the bus went away while waiting for %s", name)
			}
			if strings.HasSuffix(sig.Name, "."+name) {
				return sig
			}
		case <-s.ctx.Done():
			s.t.Fatalf("no signal %s", name)
		}
	}
}

const manager = "org.freedesktop.login1.Manager"

func login(conn *dbus.Conn) dbus.BusObject {
	return conn.Object("org.freedesktop.login1", "/org/freedesktop/login1")
}

// TestBus calls every service over a real bus, as a desktop would.
func TestBus(t *testing.T) {
	s := newStage(t)
	conn := s.connect()

	t.Run("names", func(t *testing.T) {
		for _, name := range []string{"login1", "locale1", "hostname1", "timedate1", "UPower", "Accounts"} {
			var owned bool
			if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop."+name).Store(&owned); err != nil || !owned {
				t.Errorf("%s: owned %v, %v", name, owned, err)
			}
		}
		var activatable []string
		if err := conn.BusObject().Call("org.freedesktop.DBus.ListActivatableNames", 0).Store(&activatable); err != nil || len(activatable) != 1 {
			t.Errorf("activatable names %v, %v; want the bus itself alone", activatable, err)
		}
	})
	t.Run("others_fail_at_once", func(t *testing.T) {
		for _, name := range []string{"org.freedesktop.PolicyKit1", "org.freedesktop.NetworkManager", "org.freedesktop.UDisks2",
			"net.hadess.PowerProfiles", "org.freedesktop.UPower.PowerProfiles", "org.freedesktop.systemd1"} {
			began := time.Now()
			err := conn.Object(name, "/").Call("org.freedesktop.DBus.Properties.GetAll", 0, name).Err
			var e dbus.Error
			if !errors.As(err, &e) || e.Name != "org.freedesktop.DBus.Error.ServiceUnknown" {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s: took %v", name, took)
			}
		}
	})
	t.Run("properties", func(t *testing.T) {
		for _, tc := range []struct {
			name, path, prop string
			want             any
		}{
			{"org.freedesktop.login1", "/org/freedesktop/login1/session/auto", "org.freedesktop.login1.Session.Active", true},
			{"org.freedesktop.login1", "/org/freedesktop/login1/session/_31", "org.freedesktop.login1.Session.Type", "x11"},
			{"org.freedesktop.login1", "/org/freedesktop/login1/user/self", "org.freedesktop.login1.User.UID", uint32(hostsession.UID)},
			{"org.freedesktop.locale1", "/org/freedesktop/locale1", "org.freedesktop.locale1.X11Layout", "us,de"},
			{"org.freedesktop.hostname1", "/org/freedesktop/hostname1", "org.freedesktop.hostname1.Chassis", "container"},
			{"org.freedesktop.timedate1", "/org/freedesktop/timedate1", "org.freedesktop.timedate1.CanNTP", false},
			{"org.freedesktop.UPower", "/org/freedesktop/UPower", "org.freedesktop.UPower.OnBattery", false},
			{"org.freedesktop.UPower", "/org/freedesktop/UPower/devices/DisplayDevice", "org.freedesktop.UPower.Device.IsPresent", false},
			{"org.freedesktop.Accounts", "/org/freedesktop/Accounts/User61234", "org.freedesktop.Accounts.User.UserName", "user"},
		} {
			v, err := conn.Object(tc.name, dbus.ObjectPath(tc.path)).GetProperty(tc.prop)
			if err != nil || v.Value() != tc.want {
				t.Errorf("%s of %s: %v, %v; want %v", tc.prop, tc.path, v, err, tc.want)
			}
		}
	})
	t.Run("errors", func(t *testing.T) {
		for _, tc := range []struct{ path, method, want string }{
			{"/org/freedesktop/login1/session/_32", "org.freedesktop.login1.Session.Lock", "org.freedesktop.DBus.Error.UnknownObject"},
			{"/org/freedesktop/login1", "org.freedesktop.nonsense.Lock", "org.freedesktop.DBus.Error.UnknownInterface"},
			{"/org/freedesktop/login1", manager + ".Nonsense", "org.freedesktop.DBus.Error.UnknownMethod"},
			{"/org/freedesktop/login1", manager + ".PowerOff", "org.freedesktop.DBus.Error.InvalidArgs"},
		} {
			var e dbus.Error
			err := conn.Object("org.freedesktop.login1", dbus.ObjectPath(tc.path)).Call(tc.method, 0).Err
			if !errors.As(err, &e) || e.Name != tc.want {
				t.Errorf("%s: %v, want %s", tc.method, err, tc.want)
			}
		}
	})
	t.Run("signals", func(t *testing.T) {
		ch := s.signals(conn)
		ses := conn.Object("org.freedesktop.login1", "/org/freedesktop/login1/session/auto")
		if err := ses.Call("org.freedesktop.login1.Session.SetLockedHint", 0, true).Err; err != nil {
			t.Fatal(err)
		}
		sig := s.await(ch, "PropertiesChanged")
		if v := sig.Body[1].(map[string]dbus.Variant)["LockedHint"]; sig.Path != "/org/freedesktop/login1/session/_31" || v.Value() != true {
			t.Errorf("signal %v", sig)
		}
		if err := login(conn).Call(manager+".LockSessions", 0).Err; err != nil {
			t.Fatal(err)
		}
		s.await(ch, "Lock")
	})
	t.Run("inhibitors", func(t *testing.T) {
		ch := s.signals(conn)
		var fd dbus.UnixFD
		if err := login(conn).Call(manager+".Inhibit", 0, "sleep:idle", "test", "why not", "block").Store(&fd); err != nil {
			t.Fatal(err)
		}
		if v := s.await(ch, "PropertiesChanged").Body[1].(map[string]dbus.Variant)["BlockInhibited"]; v.Value() != "sleep:idle" {
			t.Errorf("inhibited %v", v)
		}
		var list []struct {
			What, Who, Why, Mode string
			UID, PID             uint32
		}
		if err := login(conn).Call(manager+".ListInhibitors", 0).Store(&list); err != nil || len(list) != 1 ||
			list[0].Who != "test" || list[0].UID != 0 || list[0].PID == 0 {
			t.Errorf("inhibitors %+v, %v", list, err)
		}
		syscall.Close(int(fd))
		if v := s.await(ch, "PropertiesChanged").Body[1].(map[string]dbus.Variant)["BlockInhibited"]; v.Value() != "" {
			t.Errorf("inhibited %v after the release", v)
		}
	})
	t.Run("tools", func(t *testing.T) {
		for _, argv := range [][]string{
			{"gdbus", "introspect", "--system", "--dest", "org.freedesktop.login1", "--object-path", "/org/freedesktop/login1"},
			{"busctl", "--no-pager", "tree", "org.freedesktop.login1"},
			{"busctl", "--no-pager", "introspect", "org.freedesktop.Accounts", "/org/freedesktop/Accounts/User61234"},
			{"busctl", "call", "org.freedesktop.login1", "/org/freedesktop/login1", manager, "CanPowerOff"},
		} {
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Logf("%v is not tried: %v", argv, err)
				continue
			}
			p := s.Run(append([]string{"env", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + s.RuntimeInside() + "/system_bus_socket"}, argv...)...)
			select {
			case <-p.Done:
			case <-s.ctx.Done():
			}
			if p.Err != nil || p.Log() == "" {
				t.Errorf("%v: %v\n%s", argv, p.Err, p.Log())
			}
		}
	})
}

// TestPowerOff: the services tell all, wait for who holds a delay inhibitor, and end with 0.
func TestPowerOff(t *testing.T) {
	s := newStage(t)
	conn := s.connect()
	ch := s.signals(conn)
	var fd dbus.UnixFD
	if err := login(conn).Call(manager+".Inhibit", 0, "shutdown", "editor", "saving", "delay").Store(&fd); err != nil {
		t.Fatal(err)
	}
	if err := login(conn).Call(manager+".PowerOff", 0, true).Err; err != nil {
		t.Fatal(err)
	}
	if sig := s.await(ch, "PrepareForShutdown"); sig.Body[0] != true {
		t.Errorf("signal %v", sig)
	}
	// They still answer, so they have not ended.
	if v, err := login(conn).GetProperty(manager + ".PreparingForShutdown"); err != nil || v.Value() != true {
		t.Errorf("preparing %v, %v", v, err)
	}
	syscall.Close(int(fd))
	if code := s.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestPowerOffIsBounded: an inhibitor that nobody releases holds the end up no longer than announced.
func TestPowerOffIsBounded(t *testing.T) {
	s := newStage(t)
	conn := s.connect()
	var fd dbus.UnixFD
	if err := login(conn).Call(manager+".Inhibit", 0, "shutdown", "stuck", "", "delay").Store(&fd); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(int(fd))
	began := time.Now()
	if err := login(conn).Call(manager+".Reboot", 0, false).Err; err != nil {
		t.Fatal(err)
	}
	if code := s.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("waited only %v", took)
	}
}

// TestTerminate: the reply arrives although the services end with it.
func TestTerminate(t *testing.T) {
	s := newStage(t)
	if err := login(s.connect()).Call(manager+".TerminateSession", 0, "auto").Err; err != nil {
		t.Error(err)
	}
	if code := s.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestLostBus: without a bus the services end as after a crash, and can be started again with it.
func TestLostBus(t *testing.T) {
	s := newStage(t)
	s.bus.Kill()
	if code := s.exit(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	s.bus, s.services = s.start(0), s.start(1)
	var answer string
	if err := login(s.connect()).Call(manager+".CanReboot", 0).Store(&answer); err != nil || answer != "yes" {
		t.Errorf("CanReboot: %q, %v", answer, err)
	}
}

// TestFootprint shows what the services cost a session; -v prints it.
func TestFootprint(t *testing.T) {
	s := newStage(t)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.services.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "RssAnon") {
			t.Log(strings.TrimSpace(l))
		}
	}
	t.Logf("CPU time %v", s.services.CPU())
}
