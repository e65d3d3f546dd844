package test

import (
	"strings"
	"testing"

	"berth/session/api"
	"berth/test/berthtest"
)

// TestShutDown ends sessions in the ways in which desktops shut a machine down, and with them their containers.
func TestShutDown(t *testing.T) {
	up := func(t *testing.T, name string) api.Session {
		inst.NothingLeft(t)
		s := inst.Up(t, "xfce", "--name", name, "--set", `home.kind="ephemeral"`)
		for _, c := range []string{"system-bus", "system-services"} {
			if c := component(t, s, c); c.State != "ready" {
				t.Errorf("component %s is %s: %s", c.Name, c.State, c.Error)
			}
		}
		return s
	}
	gone := func(t *testing.T, name string) {
		berthtest.WaitUntil(t, "the end of the session", func() bool {
			for _, s := range inst.List(t) {
				if s.Name == name {
					return false
				}
			}
			return true
		})
		inst.NothingLeft(t)
	}
	t.Run("from_the_menu", func(t *testing.T) {
		s := up(t, "t-halt")
		const manager = "dbus-send --session --print-reply --dest=org.xfce.SessionManager /org/xfce/SessionManager org.xfce.Session.Manager."
		for method, want := range map[string]string{"CanShutdown": "true", "CanRestart": "true", "CanSuspend": "false"} {
			if out := inst.Exec(t, s.Name, "panel", strings.Fields(manager+method)...); !strings.Contains(out, "boolean "+want) {
				t.Errorf("%s: %s, want %s", method, out, want)
			}
		}
		inst.Exec(t, s.Name, "panel", "xfce4-session-logout", "--halt", "--fast")
		gone(t, s.Name)
	})
	t.Run("over_the_system_bus", func(t *testing.T) {
		s := up(t, "t-poweroff")
		call := func(dest, rest string) string {
			return inst.Exec(t, s.Name, "panel", strings.Fields("dbus-send --system --print-reply --dest=org.freedesktop."+dest+" "+rest)...)
		}
		if out := call("hostname1", "/org/freedesktop/hostname1 org.freedesktop.DBus.Properties.Get "+
			"string:org.freedesktop.hostname1 string:Hostname"); !strings.Contains(out, s.Name) {
			t.Errorf("host name: %s", out)
		}
		call("login1", "/org/freedesktop/login1 org.freedesktop.login1.Manager.PowerOff boolean:true")
		gone(t, s.Name)
	})
	t.Run("without_a_system_bus", func(t *testing.T) {
		inst.NothingLeft(t)
		s := inst.Up(t, "xfce", "--name", "t-nobus", "--set", `home.kind="ephemeral"`, "--set", "system_bus.kind=none")
		for _, c := range s.Components {
			if strings.HasPrefix(c.Name, "system-") {
				t.Errorf("there is a component %s", c.Name)
			}
		}
		if out := inst.Exec(t, s.Name, "panel", "env"); strings.Contains(out, "DBUS_SYSTEM_BUS_ADDRESS") {
			t.Errorf("there is an address of a system bus:\n%s", out)
		}
		inst.Run(t, "stop", s.Name)
		gone(t, s.Name)
	})
}
