package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/session/api"
)

const small = `
name = "small"
description = "for tests"
extends = "openbox"
`

func writeProfile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "p.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func wantText(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("message lacks %q:\n%s", w, got)
		}
	}
}

func TestBadInput(t *testing.T) {
	ephemeral := []string{"--set", `home.kind="ephemeral"`}
	up := func(args ...string) []string { return append(append([]string{"up"}, args...), ephemeral...) }

	t.Run("command_not_in_image", func(t *testing.T) {
		inst.NothingLeft(t)
		file := writeProfile(t, small+"[components.broken]\nimage = \"openbox\"\ncommand = [\"no-such-program\"]\n")
		wantText(t, inst.Fail(t, up(file, "--name", "broken")...), `component "broken"`, "no-such-program", "openbox")
	})
	t.Run("never_ready", func(t *testing.T) {
		inst.NothingLeft(t)
		file := writeProfile(t, small+`[components.slow]
image = "openbox"
command = ["sh", "-c", "echo I am here and do nothing; sleep 1000"]
ready = "bus:org.example.Never"
timeout = "3s"
`)
		wantText(t, inst.Fail(t, up(file, "--name", "slow")...), `component "slow"`, "org.example.Never", "3s", "I am here and do nothing")
	})
	t.Run("crashes_at_once", func(t *testing.T) {
		inst.NothingLeft(t)
		file := writeProfile(t, small+`[components.crash]
image = "openbox"
command = ["sh", "-c", "echo I give up >&2; exit 3"]
ready = "bus:org.example.Never"
`)
		wantText(t, inst.Fail(t, up(file, "--name", "crash")...), `component "crash"`, "code 3", "I give up")
	})
	t.Run("image_missing", func(t *testing.T) {
		inst.NothingLeft(t)
		file := writeProfile(t, small+"[components.x]\nimage = \"127.0.0.1:1/none:latest\"\ncommand = [\"true\"]\n")
		wantText(t, inst.Fail(t, up(file, "--name", "noimage")...), "127.0.0.1:1/none")
	})
	t.Run("unknown_profile", func(t *testing.T) {
		wantText(t, inst.Fail(t, up("xfec")...), `"xfec"`, "xfce")
	})
	t.Run("profile_errors_come_together", func(t *testing.T) {
		file := writeProfile(t, "name = \"bad\"\nextends = \"openbox\"\n[display]\nserver = \"xvbf\"\nsiez = \"1x1\"\n[components.a]\nimage = 3\n")
		wantText(t, inst.Fail(t, up(file)...), file+":4:", "xvfb", file+":5:", "size", file+":7:")
	})
	t.Run("profile_of_10_MB", func(t *testing.T) {
		wantText(t, inst.Fail(t, up(writeProfile(t, "# "+strings.Repeat("x", 10<<20)))...), "1 MiB")
	})
	t.Run("profile_with_NUL", func(t *testing.T) {
		wantText(t, inst.Fail(t, up(writeProfile(t, "name = \"a\x00b\"\n"))...), "NUL")
	})
	t.Run("corrupted_archive", func(t *testing.T) {
		inst.NothingLeft(t)
		file := filepath.Join(t.TempDir(), "a.tar")
		inst.Run(t, "image", "export", "bus", file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i := len(b) / 2; i < len(b)/2+64; i++ {
			b[i] ^= 0xff
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		wantText(t, inst.Fail(t, "image", "import", file), "a.tar")
		if err := os.WriteFile(file, b[:len(b)/3], 0o644); err != nil {
			t.Fatal(err)
		}
		wantText(t, inst.Fail(t, "image", "import", file), "a.tar")
	})
	t.Run("name_and_port_taken", func(t *testing.T) {
		inst.NothingLeft(t)
		s := inst.Up(t, append([]string{"openbox", "--name", "first"}, ephemeral...)...)
		wantText(t, inst.Fail(t, up("openbox", "--name", "first")...), `"first"`, "already exists")
		_, port, err := net.SplitHostPort(s.Remote.VNC)
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, inst.Fail(t, up("openbox", "--name", "second", "--vnc-port", port)...), port)
		// Unless it is asked for, another port is taken.
		other := inst.Up(t, append([]string{"openbox", "--name", "third"}, ephemeral...)...)
		if other.Remote.VNC == s.Remote.VNC {
			t.Errorf("two sessions at %s", other.Remote.VNC)
		}
	})
	t.Run("crash_loop_leaves_the_rest_running", func(t *testing.T) {
		inst.NothingLeft(t)
		file := writeProfile(t, small+`[components.loop]
image = "openbox"
command = ["sh", "-c", "test -e /tmp/go && exit 1; sleep 1000"]
restart = "always"
`)
		s := inst.Up(t, append([]string{file, "--name", "loop"}, ephemeral...)...)
		inst.Exec(t, s.Name, "loop", "touch", "/tmp/go")
		if err := kill(component(t, s, "loop").PID); err != nil {
			t.Fatal(err)
		}
		waitState(t, s.Name, func(s api.Session) bool {
			return s.State == api.StateDegraded && component(t, s, "loop").Restarts >= 3
		})
		now := inst.Show(t, s.Name)
		for _, c := range now.Components {
			if c.Name != "loop" && c.State != "ready" && c.State != "exited" {
				t.Errorf("component %s is %s", c.Name, c.State)
			}
		}
	})
}

// TestInterrupt presses Ctrl-C at many moments of a start.
func TestInterrupt(t *testing.T) {
	inst.NothingLeft(t)
	rnd := rand.New(rand.NewPCG(1, 2)) // the same moments each time
	for n := range 8 {
		after := time.Duration(20+rnd.IntN(1200)) * time.Millisecond
		t.Run(fmt.Sprintf("%d_after_%v", n, after), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), after)
			defer cancel()
			cmd := inst.Command(ctx, "up", "xfce", "--name", "intr", "--set", `home.kind="ephemeral"`)
			out, err := cmd.CombinedOutput()
			if err == nil { // it was ready before
				inst.Run(t, "stop", "intr")
				return
			}
			for _, s := range inst.List(t) {
				if s.Name == "intr" {
					t.Errorf("session is left after an interrupt: %s; output:\n%s", s.State, out)
				}
			}
		})
	}
}
