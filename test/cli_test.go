package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"berth/session/api/apitest"
	"berth/test/berthtest"
)

// TestCommandLine tries on a real session what the tests of package cli try on a fake one.
func TestCommandLine(t *testing.T) {
	s := inst.Up(t, "openbox", "--set", `home.kind="ephemeral"`)
	ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
	defer cancel()

	t.Run("exec_carries_stdin_and_code", func(t *testing.T) {
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
		cmd := inst.Command(ctx, "exec", s.Name, "panel", "--", "sh", "-c", "sha256sum; echo done >&2; exit 9")
		cmd.Stdin = bytes.NewReader(data)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		sum := sha256.Sum256(data)
		if code := cmd.ProcessState.ExitCode(); code != 9 || !strings.HasPrefix(out.String(), hex.EncodeToString(sum[:])) || errOut.String() != "done\n" {
			t.Errorf("exec = %d, %v, %q, %q", code, err, out.String(), errOut.String())
		}
	})
	t.Run("exec_has_the_sessions_environment", func(t *testing.T) {
		out := inst.Exec(t, s.Name, "panel", "sh", "-c", `echo "$DISPLAY $XDG_RUNTIME_DIR"; id -u`)
		var uid int
		var display, dir string
		if _, err := fmt.Sscan(out, &display, &dir, &uid); err != nil || display != ":0" || uid == 0 || dir != fmt.Sprintf("/run/user/%d", uid) {
			t.Errorf("exec sees %q, %v", out, err)
		}
		if out := inst.Run(t, "exec", "-e", "A=b", "-w", "/usr", "--as-root", s.Name, "panel", "--", "sh", "-c", "echo $A; pwd; id -u"); out != "b\n/usr\n0\n" {
			t.Errorf("exec -e -w --as-root prints %q", out)
		}
		wantText(t, inst.Fail(t, "exec", s.Name, "panel", "--", "no-such-program"), "no-such-program")
	})
	t.Run("exec_on_a_terminal", func(t *testing.T) {
		pty, path, err := console.NewPty()
		if err != nil {
			t.Skip(err)
		}
		if err := pty.Resize(console.WinSize{Width: 91, Height: 33}); err != nil {
			t.Fatal(err)
		}
		tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := inst.Command(ctx, "exec", s.Name, "panel", "--", "sh", "-c", "stty size; read line; stty size; echo got $line; exit 4")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		tty.Close()
		defer pty.Close()
		screen := &strings.Builder{}
		await := func(text string) {
			t.Helper()
			buf := make([]byte, 4096)
			for !strings.Contains(screen.String(), text) {
				n, err := pty.Read(buf)
				screen.Write(buf[:n])
				if err != nil {
					t.Fatalf("terminal: %v; it showed\n%s", err, screen)
				}
			}
		}
		await("33 91")
		if err := pty.Resize(console.WinSize{Width: 120, Height: 40}); err != nil {
			t.Fatal(err)
		}
		// The size reaches the process on its own way, so the answer is asked for until it is the new one.
		if _, err := io.WriteString(pty, "hello\r"); err != nil {
			t.Fatal(err)
		}
		await("got hello")
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 4 {
			t.Errorf("exec = %d; want 4\n%s", code, screen)
		}
	})
	t.Run("logs_follow_until_interrupted", func(t *testing.T) {
		follow := inst.Command(ctx, "logs", s.Name, "panel", "-f")
		out, err := follow.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := follow.Start(); err != nil {
			t.Fatal(err)
		}
		// tint2 restarts itself at this signal and says so.
		inst.Exec(t, s.Name, "panel", "kill", "-USR1", fmt.Sprint(pidInside(t, component(t, s, "panel").PID)))
		var text strings.Builder
		buf := make([]byte, 4096)
		for !strings.Contains(text.String(), "restarting tint2") {
			n, err := out.Read(buf)
			text.Write(buf[:n])
			if err != nil {
				t.Fatalf("logs -f: %v after\n%s", err, text.String())
			}
		}
		if err := follow.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, out)
		if err := follow.Wait(); err != nil {
			t.Errorf("logs -f after an interrupt: %v", err)
		}
	})
	t.Run("others_are_refused", func(t *testing.T) {
		if got := asUser(t, "ls", nil); !strings.Contains(got, "not allowed") && !strings.Contains(got, "permission denied") {
			t.Errorf("berth ls of somebody: %s", got)
		}
		group, err := user.LookupGroup("berth")
		if err != nil {
			t.Skip("there is no group berth on this host; its members were not tried")
		}
		gid, err := strconv.Atoi(group.Gid)
		if err != nil {
			t.Fatal(err)
		}
		if got := asUser(t, "ls", []uint32{uint32(gid)}); strings.Contains(got, s.Name) || !strings.HasPrefix(got, "NAME") {
			t.Errorf("berth ls of a member who has no session: %s", got)
		}
	})
	t.Run("images", func(t *testing.T) {
		inst.Run(t, "image", "tag", "bus", "registry.example/of-the-test:1")
		if out := inst.Run(t, "image", "ls"); !strings.Contains(out, "registry.example/of-the-test:1") {
			t.Errorf("image ls does not show the tag:\n%s", out)
		}
		inst.Run(t, "image", "rm", "registry.example/of-the-test:1")
		if out := inst.Run(t, "image", "ls"); strings.Contains(out, "registry.example/of-the-test:1") {
			t.Errorf("image ls shows the tag after rm:\n%s", out)
		}
		wantText(t, inst.Fail(t, "image", "rm", "xvfb"), "xvfb") // a container uses it
	})
	t.Run("open", func(t *testing.T) {
		cmd := inst.Command(ctx, "open", s.Name)
		cmd.Env = append(cmd.Env, "DISPLAY=", "WAYLAND_DISPLAY=")
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != s.Remote.Web {
			t.Errorf("open = %q, %v; want %q", out, err, s.Remote.Web)
		}
	})
	t.Run("doctor", func(t *testing.T) { inst.Run(t, "doctor") })
	t.Run("answers_keep_to_the_document", func(t *testing.T) {
		hc := &http.Client{Transport: apitest.NewChecker(t, inst.Layout.APISocket())}
		for _, r := range []struct {
			method, path, body string
			status             int
		}{
			{"GET", "/v1/sessions", "", 200},
			{"GET", "/v1/sessions/" + s.Name, "", 200},
			{"GET", "/v1/sessions/none", "", 404},
			{"GET", "/v1/sessions/" + s.Name + "/logs?tail=5", "", 200},
			{"GET", "/v1/sessions/" + s.Name + "/shot", "", 200},
			{"GET", "/v1/sessions/" + s.Name + "/trace", "", 200},
			{"POST", "/v1/sessions/" + s.Name + "/resize", `{"width":1024,"height":768}`, 204},
			{"POST", "/v1/plan", `{"profile":"xfce"}`, 200},
			{"POST", "/v1/plan", `{"profile":"none"}`, 404},
			{"POST", "/v1/sessions", `{"profile":"openbox","name":"` + s.Name + `"}`, 409},
			{"POST", "/v1/sessions", `{"profile":"openbox","name":"by-hand","set":["home.kind=\"ephemeral\""]}`, 200},
			{"POST", "/v1/sessions/by-hand/stop", "", 204},
			{"GET", "/v1/images", "", 200},
			{"POST", "/v1/images/build", `{"names":["bus"]}`, 200},
			{"GET", "/v1/info", "", 200},
			{"GET", "/v1/openapi.yaml", "", 200},
		} {
			req, err := http.NewRequestWithContext(ctx, r.method, "http://berth"+r.path, strings.NewReader(r.body))
			if err != nil {
				t.Fatal(err)
			}
			if r.body != "" {
				req.Header.Set("Content-Type", "application/json")
			} else {
				req.Body, req.ContentLength = nil, 0
			}
			resp, err := hc.Do(req)
			if err != nil {
				t.Errorf("%s %s: %v", r.method, r.path, err)
				continue
			}
			if resp.StatusCode != r.status {
				body, _ := io.ReadAll(resp.Body)
				t.Errorf("%s %s = %d %s; want %d", r.method, r.path, resp.StatusCode, body, r.status)
			}
			resp.Body.Close()
		}
	})
}

// asUser runs berth as a user that the host does not know and returns what it said.
func asUser(t *testing.T, verb string, groups []uint32) string {
	t.Helper()
	// The program may lie where only root gets.
	dir, err := os.MkdirTemp("", "berth-as-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "berth")
	data, err := os.ReadFile(inst.Bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	as := *inst
	as.Bin = bin
	cmd := as.Command(context.Background(), verb)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321, Groups: groups}}
	out, _ := cmd.CombinedOutput() // the code is in what it says
	return string(out)
}
