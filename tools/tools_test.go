// Package tools tests the scripts that the Makefile runs.
package tools

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// stage is a directory with programs in place of berth and gotestsum. They note what they are asked for in a log; the
// daemon is a file.
type stage struct {
	dir string
	env []string
}

const fakeBerth = `#!/bin/sh
cd "$(dirname "$0")"
[ "$1" = --root ] && shift 2
case $1 in
ls) [ -e daemon ] && { echo NAME; cat sessions; } ;;
image) touch daemon; echo image build >>log; sleep 0.3; echo image build ended >>log ;;
stop) shift; echo "stop $*" >>log; : >sessions ;;
daemon)
	if [ "$2" = stop ]; then
		echo daemon stop >>log; rm daemon
	else
		echo daemon >>log; touch daemon
	fi ;;
esac
`

func newStage(t *testing.T, gotestsum string) *stage {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"berth": fakeBerth, "gotestsum": "#!/bin/sh\ncd \"$(dirname \"$0\")\"\n" + gotestsum} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"log", "sessions"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &stage{dir, append(os.Environ(), "BERTH="+filepath.Join(dir, "berth"), "GOTESTSUM="+filepath.Join(dir, "gotestsum"), "BERTH_TEST_ROOT="+root)}
}

func (s *stage) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("./"+name, args...)
	cmd.Env, cmd.Stderr = s.env, os.Stderr
	return cmd
}

func (s *stage) log(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

func TestRunTests(t *testing.T) {
	for _, tt := range []struct {
		name, gotestsum string
		args            []string
		code            int
		log             []string
	}{
		{name: "all", args: []string{"./...", "--", "-run", "A|B C"},
			gotestsum: `until [ -s log ]; do :; done; echo "tests $#: $8 $9" >>log`,
			log:       []string{"image build", "tests 9: A|B C ./...", "image build ended", "daemon stop"}},
		{name: "tests_fail", args: []string{"./profiles", "./test"}, code: 3,
			gotestsum: `until [ -s log ]; do :; done; echo tests >>log; exit 3`,
			log:       []string{"image build", "tests", "image build ended", "daemon stop"}},
		{name: "without_sessions", args: []string{"./profiles", "--", "-v"},
			gotestsum: `echo tests >>log`,
			log:       []string{"tests"}},
		{name: "daemon_left_by_a_test", args: []string{"./orchestrator"}, code: 1,
			gotestsum: `touch daemon; exit 1`,
			log:       []string{"daemon stop"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t, tt.gotestsum)
			if code := exitCode(t, s.command("runtests", tt.args...).Run()); code != tt.code {
				t.Errorf("exit code %d; want %d", code, tt.code)
			}
			if d := cmp.Diff(tt.log, s.log(t)); d != "" {
				t.Errorf("what was done (-want +got):\n%s", d)
			}
		})
	}
}

// Ctrl-C reaches all processes of the terminal; the daemon, which has a session of its own, is stopped nevertheless.
func TestRunTestsInterrupted(t *testing.T) {
	s := newStage(t, "touch daemon; echo tests >>log; sleep 1000")
	cmd := s.command("runtests", "./profiles")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); s.log(t)[0] != "tests"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the tests do not start")
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != 130 {
		t.Errorf("exit code %d; want 130", code)
	}
	if d := cmp.Diff([]string{"tests", "daemon stop"}, s.log(t)); d != "" {
		t.Errorf("what was done (-want +got):\n%s", d)
	}
}

func TestEndRoot(t *testing.T) {
	for _, tt := range []struct {
		name    string
		args    []string
		daemon  bool
		session string
		mount   bool
		code    int
		log     []string
	}{
		{name: "nothing", log: []string{""}},
		{name: "daemon", daemon: true, session: "desk", log: []string{"daemon stop"}},
		{name: "sessions", args: []string{"--sessions"}, daemon: true, session: "desk", log: []string{"stop desk", "daemon stop"}},
		{name: "sessions_without_daemon", args: []string{"--sessions"}, session: "desk", mount: true, code: 1,
			log: []string{"daemon", "stop desk", "daemon stop"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t, "")
			root := filepath.Join(s.dir, "root")
			if tt.daemon {
				if err := os.WriteFile(filepath.Join(s.dir, "daemon"), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if tt.session != "" {
				if err := os.WriteFile(filepath.Join(s.dir, "sessions"), []byte(tt.session+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if tt.mount { // which stays: the session is none
				if os.Getuid() != 0 {
					t.Skip("needs root to mount")
				}
				if err := unix.Mount("berth-test", root, "tmpfs", 0, ""); err != nil {
					t.Skipf("cannot mount a tmpfs: %v", err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(root, 0); err != nil {
						t.Error(err)
					}
				})
			}
			if code := exitCode(t, s.command("end-root", append(tt.args, root)...).Run()); code != tt.code {
				t.Errorf("exit code %d; want %d", code, tt.code)
			}
			if d := cmp.Diff(tt.log, s.log(t)); d != "" {
				t.Errorf("what was done (-want +got):\n%s", d)
			}
		})
	}
}

// TestInstall installs what is no program at all, and takes it away again.
func TestInstall(t *testing.T) {
	top, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	host := []string{"groupadd -rf berth"}
	gone := []string{"berth ls", "berth daemon stop"}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		host = []string{"systemd-sysusers PREFIX/lib/sysusers.d/berth.conf", "systemctl daemon-reload"}
		gone = []string{"systemctl cat berth", "systemctl disable --now berth", "berth ls", "berth daemon stop", "systemctl daemon-reload"}
	}
	for _, tt := range []struct {
		name             string
		destdir          bool
		uid              string
		install, removal []string // what is done to the host
	}{
		{name: "host", uid: "0", install: host, removal: gone},
		{name: "package", uid: "0", destdir: true},
		{name: "home_of_a_user", uid: "1000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, bin := t.TempDir(), t.TempDir()
			log := filepath.Join(bin, "log")
			write := func(name, text string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			note := "#!/bin/sh\necho ${0##*/} $* >>" + log + "\n"
			for _, name := range []string{"systemctl", "systemd-sysusers", "groupadd"} {
				write(filepath.Join(bin, name), note)
			}
			write(filepath.Join(bin, "id"), "#!/bin/sh\necho "+tt.uid+"\n")
			for _, name := range []string{"Makefile", "README.md", "assets", "tools"} {
				if err := os.Symlink(filepath.Join(top, name), filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			write(filepath.Join(dir, "bin/berth"), note)
			for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc", "buildkitd", "ptp", "host-local", "berth-anchor", "tools/berth-launch", "tools/berth-systembus"} {
				write(filepath.Join(dir, "libexec", name), name)
			}
			prefix, destdir := filepath.Join(t.TempDir(), "usr"), ""
			at := prefix
			if tt.destdir {
				destdir = t.TempDir()
				at = destdir + prefix
			}
			run := func(target string) (calls []string, out string) {
				t.Helper()
				cmd := exec.Command("make", "-s", "-o", "build", target, "PREFIX="+prefix, "DESTDIR="+destdir)
				cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MAKEFLAGS=", "MAKELEVEL=")
				text, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("make %s: %v\n%s", target, err, text)
				}
				b, err := os.ReadFile(log)
				if errors.Is(err, os.ErrNotExist) {
					return nil, string(text)
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(log); err != nil {
					t.Fatal(err)
				}
				return strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), prefix, "PREFIX")), "\n"), string(text)
			}
			calls, _ := run("install")
			if d := cmp.Diff(tt.install, calls); d != "" {
				t.Errorf("done to the host by install (-want +got):\n%s", d)
			}
			for _, name := range []string{"bin/berth", "libexec/berth/runc", "libexec/berth/berth-anchor", "libexec/berth/tools/berth-launch", "libexec/berth/tools/berth-systembus", "lib/sysusers.d/berth.conf"} {
				if _, err := os.Stat(filepath.Join(at, name)); err != nil {
					t.Error(err)
				}
			}
			unit, err := os.ReadFile(filepath.Join(at, "lib/systemd/system/berth.service"))
			if err != nil || !strings.Contains(string(unit), "\nExecStart="+prefix+"/bin/berth daemon\n") {
				t.Errorf("unit: %v\n%s", err, unit)
			}
			calls, out := run("uninstall")
			if d := cmp.Diff(tt.removal, calls); d != "" {
				t.Errorf("done to the host by uninstall (-want +got):\n%s", d)
			}
			if says := strings.Contains(out, "/var/lib/berth"); says != (tt.removal != nil) {
				t.Errorf("uninstall says %q", out)
			}
			err = filepath.WalkDir(at, func(p string, e os.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					t.Errorf("left: %s", p)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
