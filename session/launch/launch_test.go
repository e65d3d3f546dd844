package launch

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/internal/unixsock"
)

// The test program is berth-launch itself where a test wants processes of its own.
func TestMain(m *testing.M) {
	if os.Getenv("LAUNCH_TEST_MAIN") != "" {
		os.Unsetenv("LAUNCH_TEST_MAIN")
		os.Exit(Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// patience bounds what should happen at once.
const patience = time.Minute

func command(t *testing.T, runtime string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "LAUNCH_TEST_MAIN=1", "XDG_RUNTIME_DIR="+runtime, "BERTH_COMPONENT=apps")
	return cmd
}

// serve starts a server and returns its runtime directory and the process.
func serve(t *testing.T, args ...string) (string, *exec.Cmd, *bytes.Buffer) {
	t.Helper()
	dir, err := os.MkdirTemp("", "launch") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd := command(t, dir, append([]string{"--serve"}, args...)...)
	log := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := answers(ctx, dir); err != nil {
		t.Fatal(err)
	}
	return dir, cmd, log
}

// answers returns when the server below the runtime directory accepts a connection.
func answers(ctx context.Context, dir string) error {
	c, err := unixsock.Dial(ctx, dir, Socket("", "apps"))
	if err != nil {
		return err
	}
	return c.Close()
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"PATH=/bin", "LANG=C", "BERTH_COMPONENT=apps"},
		[]string{"PATH=/other", "LANG=de_DE.UTF-8", "XDG_ACTIVATION_TOKEN=t", "LD_PRELOAD=x.so", "BERTH_COMPONENT=panel", "=odd", "bare", "EMPTY="})
	want := []string{"PATH=/bin", "LANG=de_DE.UTF-8", "BERTH_COMPONENT=apps", "XDG_ACTIVATION_TOKEN=t", "EMPTY="}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWait(t *testing.T) {
	dir, _, _ := serve(t)
	work := t.TempDir()
	cmd := command(t, dir, "--wait", "apps", "--", "sh", "-c", `cat; pwd; echo "$TOKEN"; echo "$BERTH_COMPONENT" >&2; exit 7`)
	cmd.Dir = work
	cmd.Env = append(cmd.Env, "TOKEN=t0", "BERTH_COMPONENT=caller")
	cmd.Stdin = strings.NewReader("input\n")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("got %v, want code 7", err)
	}
	if want := "input\n" + work + "\nt0\n"; out.String() != want {
		t.Errorf("output %q, want %q", out.String(), want)
	}
	if errs.String() != "apps\n" {
		t.Errorf("standard error %q", errs.String())
	}
}

func TestSignals(t *testing.T) {
	dir, _, _ := serve(t)
	cmd := command(t, dir, "--wait", "apps", "sh", "-c", `trap 'exit 9' INT; echo up; while :; do sleep 0.05; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("got %v, want the program's code 9", err)
	}
}

func TestMissingProgram(t *testing.T) {
	dir, _, _ := serve(t)
	for name, want := range map[string]int{"no-such-program": 127, "/no/such/program": 127, "/etc/passwd": 126} {
		out, err := command(t, dir, "apps", name).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != want || !strings.Contains(string(out), name) {
			t.Errorf("%s: %v, %s; want code %d and its name", name, err, out, want)
		}
	}
}

// A program that was not waited for outlives its caller, and its output is in the server's log; the server ends when that
// program, and an orphan it has left, have ended.
func TestIdle(t *testing.T) {
	dir, srv, log := serve(t, "--idle", "300ms")
	go1 := filepath.Join(t.TempDir(), "go")
	if err := syscall.Mkfifo(go1, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, dir, "apps", "sh", "-c", "echo started; (read x <"+go1+"; echo orphan) & exit 0").CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v, %s", err, out)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("ended while a program ran: %v", err)
	case <-time.After(time.Second):
	}
	if err := os.WriteFile(go1, []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("end: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the server goes on")
	}
	if log.String() != "started\norphan\n" {
		t.Errorf("log %q", log)
	}
	if _, err := os.Stat(Socket(dir, "apps")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket: %v", err)
	}
}

// At its end a server takes its programs with it.
func TestTerminate(t *testing.T) {
	dir, srv, log := serve(t)
	mark := filepath.Join(t.TempDir(), "mark")
	if err := syscall.Mkfifo(mark, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, dir, "apps", "sh", "-c", `trap 'echo ended; exit' TERM; : >`+mark+`; while :; do sleep 0.05; done`).CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	if _, err := os.ReadFile(mark); err != nil { // until the program has started
		t.Fatal(err)
	}
	if err := srv.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := srv.Wait(); err != nil || log.String() != "ended\n" {
		t.Errorf("%v, log %q", err, log)
	}
}

// Who finds nobody asks the daemon.
func TestDemand(t *testing.T) {
	dir, err := os.MkdirTemp("", "launch")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "demand")
	call := Call{Component: "apps", RuntimeDir: dir, Demand: socket, Args: []string{"true"}}
	if code, err := Run(t.Context(), call); code != 125 || !strings.Contains(err.Error(), "daemon") {
		t.Errorf("without a daemon: %d, %v", code, err)
	}
	asked := make(chan string, 10)
	refuse := true
	d, err := Listen(socket, os.Getuid(), func(ctx context.Context, component string) error {
		asked <- component
		if refuse {
			return errors.New("component \"apps\" has failed")
		}
		return nil
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if code, err := Run(t.Context(), call); code != 125 || !strings.Contains(err.Error(), "has failed") {
		t.Errorf("refused: %d, %v", code, err)
	}
	if got := <-asked; got != "apps" {
		t.Errorf("asked for %q", got)
	}
	// The next daemon takes the place of the first.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = Listen(socket, os.Getuid(), func(ctx context.Context, component string) error {
		cmd := command(t, dir, "--serve")
		if err := cmd.Start(); err != nil {
			return err
		}
		t.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() })
		return answers(ctx, dir)
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if code, err := Run(t.Context(), call); code != 0 || err != nil {
		t.Errorf("on demand: %d, %v", code, err)
	}
}

// A client that goes away ends the start it asked for.
func TestDemandCancelled(t *testing.T) {
	dir, err := os.MkdirTemp("", "launch")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	began, ended := make(chan struct{}), make(chan struct{})
	socket := filepath.Join(dir, "demand")
	d, err := Listen(socket, os.Getuid(), func(ctx context.Context, _ string) error {
		close(began)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if err := demand(ctx, socket, "apps"); err == nil {
		t.Error("no error")
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the start goes on")
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"apps"}, {"--serve", "apps"}, {"a/b", "true"}, {"--idle", "-1s", "--serve"}, {"--no", "apps", "x"}} {
		var out, errs bytes.Buffer
		if code := Main(args, []string{"XDG_RUNTIME_DIR=/tmp"}, &out, &errs); code != 2 || !strings.Contains(errs.String(), "usage") {
			t.Errorf("%q: code %d, %s", args, code, errs.String())
		}
	}
}
