// Package berthtest drives the real berth program against a private root, for the tests and benchmarks that start real
// sessions. One root with its images is shared by all of them: images are built once.
package berthtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/hoststate"
	"berth/internal/paths"
	"berth/session/api"
	"berth/session/api/client"
)

// Env names the directory of the shared root; Default is used without it. It is short: sockets lie below it.
const (
	Env     = "BERTH_TEST_ROOT"
	Default = "/var/tmp/berth-test-2" // as in Makefile; the number changes when an older root cannot be used any more
)

// EnvInstalled names an installed program, which is then tested at the places it has without a root, instead of the one
// that make built. The machines of the third ring set it.
const EnvInstalled = "BERTH_TEST_INSTALLED"

// Patience is how long a test waits for what should happen at once on an idle machine. It is no measure of speed.
const Patience = 3 * time.Minute

// Instance is a Berth with a root of its own.
type Instance struct {
	Bin    string
	Layout paths.Layout
	lock   *os.File

	read int64 // of the daemon's log, up to where Crash has looked
}

// New finds the program that make built and the shared root, which is this process's alone until it ends: tests that count
// what is left behind, or stop the daemon, must not meet those of another package.
func New() (*Instance, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("sessions need root")
	}
	if bin := os.Getenv(EnvInstalled); bin != "" {
		l, err := paths.New("")
		return newInstance(bin, l, nil), err
	}
	_, file, _, _ := runtime.Caller(0)
	top := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	bin := filepath.Join(top, "bin", "berth")
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("program: %w; build it with: make", err)
	}
	root := os.Getenv(Env)
	if root == "" {
		root = Default
	}
	l, err := paths.New(root)
	if err != nil {
		return nil, err
	}
	lock, err := lockRoot(l.Root)
	return newInstance(bin, l, lock), err
}

func newInstance(bin string, l paths.Layout, lock *os.File) *Instance {
	i := &Instance{Bin: bin, Layout: l, lock: lock}
	if info, err := os.Stat(i.daemonLog()); err == nil {
		i.read = info.Size()
	}
	return i
}

func (i *Instance) daemonLog() string { return filepath.Join(i.Layout.State, "daemon.log") }

// crashed is how the Go runtime begins its last words.
var crashed = regexp.MustCompile(`(?m)^(panic: |fatal error: |unexpected fault address|SIG[A-Z]+: )`)

// Crash returns the last words of a daemon that has crashed since the last call, or nothing. A crash can go unnoticed
// otherwise: sessions live on, and the next command starts another daemon. For one goroutine at a time.
func (i *Instance) Crash() string {
	f, err := os.Open(i.daemonLog())
	if err != nil {
		return "" // an installed one logs to the journal
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, i.read, 64<<20))
	if err != nil {
		return err.Error()
	}
	i.read += int64(len(text))
	if at := crashed.FindIndex(text); at != nil {
		return string(text[at[0]:min(at[0]+4000, len(text))])
	}
	return ""
}

func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(root, "test.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		fmt.Fprintf(os.Stderr, "waiting for other tests on %s\n", root)
		for err = syscall.EINTR; err == syscall.EINTR; {
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		}
		if err != nil {
			return nil, fmt.Errorf("lock %q: %w", f.Name(), err)
		}
	}
	return f, nil
}

// Command is berth with args on this instance.
func (i *Instance) Command(ctx context.Context, args ...string) *exec.Cmd {
	if i.Layout.Root != "" {
		args = append([]string{"--root", i.Layout.Root}, args...)
	}
	cmd := exec.CommandContext(ctx, i.Bin, args...)
	// An interrupt first, as a person would: a kill would leave the daemon with half a request.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	return cmd
}

// Result of a command.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Do runs berth and returns what came of it.
func (i *Instance) Do(ctx context.Context, args ...string) (Result, error) {
	cmd := i.Command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	r := Result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		err = nil
	}
	return r, err
}

// Run runs berth, which has to succeed, and returns its standard output.
func (i *Instance) Run(t testing.TB, args ...string) string {
	t.Helper()
	r, err := i.Do(context.Background(), args...)
	if err != nil || r.Code != 0 {
		t.Fatalf("berth %s: code %d, %v\n%s%s", strings.Join(args, " "), r.Code, err, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Fail runs berth, which has to fail with exit code 1, and returns its standard error.
func (i *Instance) Fail(t testing.TB, args ...string) string {
	t.Helper()
	r, err := i.Do(context.Background(), args...)
	if err != nil || r.Code != 1 {
		t.Fatalf("berth %s: code %d, %v; want code 1\n%s%s", strings.Join(args, " "), r.Code, err, r.Stdout, r.Stderr)
	}
	return r.Stderr
}

// Up starts a session and stops it when the test ends.
func (i *Instance) Up(t testing.TB, args ...string) api.Session {
	t.Helper()
	var s api.Session
	decode(t, i.Run(t, append([]string{"up", "--json"}, args...)...), &s)
	t.Cleanup(func() {
		if words := i.Crash(); words != "" {
			t.Errorf("the daemon crashed:\n%s", words)
		}
		if t.Failed() {
			r, _ := i.Do(context.Background(), "logs", s.Name)
			t.Logf("logs of session %s:\n%s", s.Name, tail(r.Stdout, 6000))
		}
		// Some tests have ended it already.
		if r, err := i.Do(context.Background(), "stop", s.Name); err != nil || (r.Code != 0 && !strings.Contains(r.Stderr, "not found")) {
			t.Errorf("stop %s: code %d, %v\n%s", s.Name, r.Code, err, r.Stderr)
		}
	})
	return s
}

// Show returns the state of a session.
func (i *Instance) Show(t testing.TB, name string) api.Session {
	t.Helper()
	var s api.Session
	decode(t, i.Run(t, "show", name, "--json"), &s)
	return s
}

// List returns all sessions.
func (i *Instance) List(t testing.TB) []api.Session {
	t.Helper()
	var s []api.Session
	decode(t, i.Run(t, "ls", "--json"), &s)
	return s
}

// Exec runs a command in a component and returns its output; it has to succeed.
func (i *Instance) Exec(t testing.TB, name, component string, argv ...string) string {
	t.Helper()
	return i.Run(t, append([]string{"exec", name, component, "--"}, argv...)...)
}

// WaitUntil polls cond until it holds.
func WaitUntil(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", Patience, what)
		}
		<-tick.C
	}
}

// NothingLeft fails the test, at its end, if the host then has more than now. Call it before starting anything.
func (i *Instance) NothingLeft(t testing.TB) {
	t.Helper()
	before, err := hoststate.Take(i.Layout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var left []string
		defer func() {
			if len(left) > 0 {
				t.Errorf("left on the host, %d in all:\n%s", len(left), strings.Join(left[:min(len(left), 100)], "\n"))
			}
		}()
		WaitUntil(t, "the host as it was before", func() bool {
			after, err := hoststate.Take(i.Layout)
			if err != nil {
				t.Fatal(err)
			}
			if left = hoststate.Diff(before, after); len(left) == 0 {
				return true
			}
			if err := hoststate.Collect(context.Background(), i.Layout, ""); err != nil {
				t.Fatal(err)
			}
			return false
		})
	})
}

// StopDaemon ends the instance's daemon, if one runs, and waits until it has.
func (i *Instance) StopDaemon() error {
	pid, err := i.DaemonPID()
	if err != nil {
		return nil // none runs
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for end := time.Now().Add(Patience); hoststate.Alive(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("daemon %d: did not end within %v", pid, Patience)
		}
	}
	return nil
}

// DaemonPID asks the daemon for its process ID.
func (i *Instance) DaemonPID() (int, error) {
	c := client.New(i.Layout.APISocket())
	defer c.Close()
	info, err := c.Info(context.Background())
	return info.PID, err
}

func decode(t testing.TB, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
