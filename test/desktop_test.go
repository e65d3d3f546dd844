package test

import (
	"context"
	"fmt"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/display/x11"
	"berth/session/api"
	"berth/test/berthtest"
)

// TestDesktops starts every built-in profile with every display server it is meant for, and looks at the screen.
func TestDesktops(t *testing.T) {
	for _, tc := range []struct {
		name    string
		args    []string
		desktop bool // has a window of type DESKTOP
	}{
		{"xfce", []string{"xfce"}, true},
		{"xfce-xvnc", []string{"xfce", "--set", `display.server="xvnc"`}, true},
		{"xfce-13", []string{"xfce-13"}, true},
		{"openbox", []string{"openbox"}, false},
		{"openbox-pulseaudio", []string{"openbox", "--set", `audio.server="pulseaudio"`}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inst.NothingLeft(t)
			s := inst.Up(t, append(tc.args, "--name", "t-"+tc.name, "--set", `home.kind="ephemeral"`, "--set", "display.size=1280x800")...)
			if s.State != api.StateRunning {
				t.Errorf("state = %q; want running", s.State)
			}
			for _, c := range s.Components {
				if c.State != "ready" && c.State != "exited" {
					t.Errorf("component %s is %s: %s", c.Name, c.State, c.Error)
				}
			}
			if s.Display.Size != "1280x800" {
				t.Errorf("size = %s; want 1280x800", s.Display.Size)
			}
			c := screen(t, s)
			conds := []x11.Condition{x11.WM, x11.Dock}
			if tc.desktop {
				conds = append(conds, x11.Desktop)
			}
			waitFor(t, c, conds...)
			for _, w := range windows(t, c) {
				if w.Mapped && w.Is("DIALOG") {
					t.Errorf("a dialog nobody asked for: %q", w.Title)
				}
			}
			// A mapped window is drawn a moment later.
			berthtest.WaitUntil(t, "a drawn desktop", func() bool {
				amiss := lookAt(t, c, shot(t, s.Name, tc.name))
				if amiss != "" {
					t.Log(amiss)
				}
				return amiss == ""
			})
		})
	}
}

// shot takes a picture by berth shot and keeps it.
func shot(t testing.TB, session, name string) image.Image {
	t.Helper()
	file := filepath.Join(pictures, name+".png")
	inst.Run(t, "shot", session, "-o", file)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// lookAt checks what a person would see first: every panel has something drawn on it, and the rest is no empty grey. It
// returns what is amiss.
func lookAt(t testing.TB, c *x11.Conn, img image.Image) string {
	t.Helper()
	for _, w := range windows(t, c) {
		if w.Mapped && w.Is("DOCK") && w.Bounds.Dx() > 50 && w.Bounds.Dy() > 10 {
			if n := colours(img, w.Bounds); n < 16 {
				return fmt.Sprintf("panel at %v shows %d colours", w.Bounds, n)
			}
		}
	}
	if n := colours(img, img.Bounds()); n < 64 {
		return fmt.Sprintf("the screen shows %d colours; there is no wallpaper", n)
	}
	return ""
}

func colours(img image.Image, r image.Rectangle) int {
	seen := map[[3]uint32]bool{}
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			r, g, b, _ := img.At(x, y).RGBA()
			seen[[3]uint32{r >> 8, g >> 8, b >> 8}] = true
		}
	}
	return len(seen)
}

// TestSession walks through what can be done to one session.
func TestSession(t *testing.T) {
	inst.NothingLeft(t)
	s := inst.Up(t, "xfce", "--name", "walk", "--set", `home.kind="ephemeral"`)

	t.Run("programs_are_not_root", func(t *testing.T) {
		for _, c := range s.Components {
			if c.PID == 0 {
				continue
			}
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				switch f[0] {
				case "Uid:":
					if slices.Contains(f[1:], "0") {
						t.Errorf("%s runs with uid %v", c.Name, f[1:])
					}
				case "CapEff:", "CapBnd:", "CapPrm:":
					if strings.Trim(f[1], "0") != "" {
						t.Errorf("%s has capabilities: %s", c.Name, strings.TrimSpace(line))
					}
				case "NoNewPrivs:":
					if f[1] != "1" {
						t.Errorf("%s may gain privileges", c.Name)
					}
				case "Seccomp:":
					if f[1] != "2" {
						t.Errorf("%s runs without seccomp filter", c.Name)
					}
				}
			}
		}
	})

	t.Run("namespaces_are_shared_and_private", func(t *testing.T) {
		for _, kind := range []string{"net", "ipc", "pid"} {
			own, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, c := range s.Components {
				if c.PID != 0 {
					ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.PID, kind))
					if err != nil {
						t.Fatal(err)
					}
					seen[ns] = true
				}
			}
			if len(seen) != 1 || seen[own] {
				t.Errorf("%s namespaces: %v, host's %s; want one, not the host's", kind, seen, own)
			}
		}
	})

	t.Run("one_shim", func(t *testing.T) {
		n := 0
		comms, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range comms {
			b, _ := os.ReadFile(p)
			if strings.Contains(string(b), "containerd-shim-runc-v2") && strings.Contains(string(b), s.ID) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d shims for session %s; want 1", n, s.ID)
		}
	})

	t.Run("a_killed_part_comes_back", func(t *testing.T) {
		before := component(t, s, "panel")
		inst.Exec(t, s.Name, "panel", "kill", "-9", fmt.Sprint(pidInside(t, before.PID)))
		berthtest.WaitUntil(t, "a new panel", func() bool {
			now := component(t, inst.Show(t, s.Name), "panel")
			return now.State == "ready" && now.PID != before.PID && now.Restarts == 1
		})
		waitFor(t, screen(t, s), x11.Dock)
	})

	t.Run("the_display_comes_back_with_everything", func(t *testing.T) {
		before := component(t, s, "display")
		p, err := os.FindProcess(before.PID)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		berthtest.WaitUntil(t, "a running session with a new display", func() bool {
			now := inst.Show(t, s.Name)
			return now.State == api.StateRunning && component(t, now, "display").PID != before.PID
		})
		c := screen(t, s)
		waitFor(t, c, x11.WM, x11.Dock)
	})

	t.Run("a_killed_daemon_finds_its_session_again", func(t *testing.T) {
		before := inst.Show(t, s.Name)
		pid, err := inst.DaemonPID()
		if err != nil {
			t.Fatal(err)
		}
		p, _ := os.FindProcess(pid)
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		berthtest.WaitUntil(t, "the daemon's end", func() bool { _, err := inst.DaemonPID(); return err != nil })
		// The desktop does not notice.
		for _, c := range before.Components {
			if c.PID != 0 {
				if _, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID)); err != nil {
					t.Errorf("%s did not outlive the daemon", c.Name)
				}
			}
		}
		other := inst.Up(t, "openbox", "--name", "starts-daemon", "--set", `home.kind="ephemeral"`)
		after := inst.Show(t, s.Name)
		if after.State != api.StateRunning {
			t.Errorf("state after adoption = %q (%s); want running", after.State, after.Error)
		}
		for _, c := range before.Components {
			if now := component(t, after, c.Name); now.PID != c.PID {
				t.Errorf("%s: pid %d before, %d after adoption", c.Name, c.PID, now.PID)
			}
		}
		if after.Remote != before.Remote {
			t.Errorf("remote access before %+v, after %+v", before.Remote, after.Remote)
		}
		// And it is supervised again.
		panel := component(t, after, "panel")
		inst.Exec(t, s.Name, "panel", "kill", "-9", fmt.Sprint(pidInside(t, panel.PID)))
		berthtest.WaitUntil(t, "a new panel", func() bool {
			now := component(t, inst.Show(t, s.Name), "panel")
			return now.State == "ready" && now.PID != panel.PID
		})
		inst.Run(t, "stop", other.Name)
	})

	t.Run("logs_and_trace", func(t *testing.T) {
		inst.Run(t, "logs", s.Name)
		inst.Run(t, "logs", s.Name, "display")
		if out := inst.Run(t, "trace", s.Name); !strings.Contains(out, "panel") {
			t.Errorf("trace shows no panel:\n%s", out)
		}
		svg := filepath.Join(pictures, "trace.svg")
		inst.Run(t, "trace", s.Name, "--svg", svg)
		if b, err := os.ReadFile(svg); err != nil || !strings.Contains(string(b), "<svg") {
			t.Errorf("trace --svg: %v", err)
		}
	})

	t.Run("the_new_panel_is_drawn", func(t *testing.T) {
		c := screen(t, s)
		waitFor(t, c, x11.WM, x11.Dock)
		berthtest.WaitUntil(t, "a drawn desktop", func() bool { return lookAt(t, c, shot(t, s.Name, "walk")) == "" })
	})

	t.Run("log_out_ends_it", func(t *testing.T) {
		events := inst.Command(context.Background(), "events", "--json")
		out, err := events.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := events.Start(); err != nil {
			t.Fatal(err)
		}
		inst.Exec(t, s.Name, "panel", "xfce4-session-logout", "--logout", "--fast")
		berthtest.WaitUntil(t, "the end of the session", func() bool {
			return !slices.ContainsFunc(inst.List(t), func(o api.Session) bool { return o.Name == s.Name })
		})
		if err := events.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64<<10)
		n, _ := out.Read(b)
		events.Wait()
		if !strings.Contains(string(b[:n]), "session.") {
			t.Errorf("events showed no session event:\n%s", b[:n])
		}
	})
}

func component(t testing.TB, s api.Session, name string) api.Component {
	t.Helper()
	for _, c := range s.Components {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("session %s has no component %s", s.Name, name)
	return api.Component{}
}

// pidInside returns a host process's ID in its own PID namespace.
func pidInside(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(rest)
			var n int
			fmt.Sscan(f[len(f)-1], &n)
			return n
		}
	}
	t.Fatalf("process %d has no NSpid", pid)
	return 0
}
