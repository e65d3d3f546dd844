package test

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"berth/display/x11"
	"berth/test/berthtest"
)

// TestApplicationsAcross starts, from the parts of one image, programs of another, in all the ways in which desktops do.
func TestApplicationsAcross(t *testing.T) {
	inst.NothingLeft(t)
	// The bus runs in an image of neither desktop, so that whatever it starts is somebody else's.
	profile := writeProfile(t, `
name    = "across"
extends = "xfce"
[home]
kind = "ephemeral"
[components.bus]
image = "bus"
[[apps]]
image = "openbox"
idle  = "1s"
`)
	s := inst.Up(t, profile, "--name", "t-across")
	c := screen(t, s)
	waitFor(t, c, x11.WM, x11.Dock)
	if st := component(t, s, "apps-openbox"); st.State != "idle" {
		t.Errorf("component %s is %s before anybody has called for it", st.Name, st.State)
	}
	is := func(name, state string) func() bool {
		return func() bool { return component(t, inst.Show(t, s.Name), name).State == state }
	}

	t.Run("menu", func(t *testing.T) {
		// As a panel does: GLib finds the application by the desktop file's name and runs its command.
		inst.Exec(t, s.Name, "panel", "gtk-launch", "debian-xterm")
		w := waitWindow(t, c, "XTerm")
		if st := component(t, inst.Show(t, s.Name), "apps-openbox"); st.State != "ready" {
			t.Errorf("component %s is %s", st.Name, st.State)
		}
		// It runs in its own image, as a process that all of the session see.
		if exe := inst.Exec(t, s.Name, "apps-openbox", "readlink", "/proc/"+strconv.Itoa(w.PID)+"/exe"); !strings.HasSuffix(strings.TrimSpace(exe), "xterm") {
			t.Errorf("the window's process is %s", exe)
		}
		icon := inst.Exec(t, s.Name, "panel", "sh", "-c", "find /run/berth/exports/apps-openbox/share/icons -name 'mini.xterm*'")
		if icon == "" {
			t.Error("the application's icon is not there")
		}
		inst.Exec(t, s.Name, "apps-openbox", "kill", strconv.Itoa(w.PID))
		// The image's component has nothing to do any more.
		berthtest.WaitUntil(t, "the component to be idle again", is("apps-openbox", "idle"))
	})

	t.Run("service", func(t *testing.T) {
		out := inst.Exec(t, s.Name, "panel", "dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.FileManager1", "/org/freedesktop/FileManager1",
			"org.freedesktop.DBus.Introspectable.Introspect")
		if !strings.Contains(out, "ShowItems") {
			t.Errorf("the file manager answers %s", out)
		}
		if st := component(t, inst.Show(t, s.Name), "apps-xfce"); st.State != "ready" {
			t.Errorf("component %s is %s", st.Name, st.State)
		}
	})

	t.Run("document", func(t *testing.T) {
		// In the other image nothing opens text: the default is found in the exports, and the document by the same path.
		inst.Exec(t, s.Name, "panel", "sh", "-c", `printf 'A document of all.\n' >"$HOME/note.txt"`)
		inst.Exec(t, s.Name, "panel", "/run/berth/bin/berth-launch", "--wait", "apps-openbox", "xdg-open", "/home/user/note.txt")
		w := waitWindow(t, c, "note.txt")
		if exe := inst.Exec(t, s.Name, "apps-xfce", "readlink", "/proc/"+strconv.Itoa(w.PID)+"/exe"); !strings.HasSuffix(strings.TrimSpace(exe), "mousepad") {
			t.Errorf("the document was opened by %s", exe)
		}
		shot(t, s.Name, "across")
	})

	t.Run("exit_code", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), berthtest.Patience)
		defer cancel()
		r, err := inst.Do(ctx, "exec", s.Name, "panel", "--", "/run/berth/bin/berth-launch", "--wait", "apps-openbox", "sh", "-c", "echo here; exit 5")
		if err != nil || r.Code != 5 || r.Stdout != "here\n" {
			t.Errorf("code %d, %q, %v; want 5 and here", r.Code, r.Stdout, err)
		}
		r, err = inst.Do(ctx, "exec", s.Name, "panel", "--", "/run/berth/bin/berth-launch", "apps-none", "true")
		if err != nil || r.Code == 0 || !strings.Contains(r.Stderr+r.Stdout, "apps-openbox") {
			t.Errorf("a component that is not there: code %d, %s%s, %v; want those there are", r.Code, r.Stdout, r.Stderr, err)
		}
	})

	t.Run("daemon_restarted", func(t *testing.T) {
		if err := inst.StopDaemon(); err != nil {
			t.Fatal(err)
		}
		inst.Up(t, "openbox", "--name", "t-starts-daemon", "--set", `home.kind="ephemeral"`)
		berthtest.WaitUntil(t, "the component to be idle", is("apps-openbox", "idle"))
		inst.Exec(t, s.Name, "panel", "gtk-launch", "debian-xterm")
		w := waitWindow(t, c, "XTerm")
		inst.Exec(t, s.Name, "apps-openbox", "kill", strconv.Itoa(w.PID))
	})

	t.Run("plan", func(t *testing.T) {
		out := inst.Run(t, "profile", "plan", profile)
		if !strings.Contains(out, "ca.desrt.dconf") || !strings.Contains(out, "openbox, xfce") {
			t.Errorf("the plan does not say who starts what both have:\n%s", out)
		}
	})
	inst.Run(t, "stop", s.Name)
}

// waitWindow waits for a mapped window of that class or with that in its title.
func waitWindow(t *testing.T, c *x11.Conn, name string) (found x11.Window) {
	t.Helper()
	berthtest.WaitUntil(t, "a window "+strconv.Quote(name), func() bool {
		for _, w := range windows(t, c) {
			if w.Mapped && (w.Class == name || strings.Contains(w.Title, name)) {
				found = w
				return true
			}
		}
		return false
	})
	return found
}
