package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/session/api"
	"berth/session/api/apitest"
	"berth/session/api/server"
)

// childEnv makes the test program behave as berth with a fake daemon: "serve", or "fail" for one that ends at once.
const childEnv = "BERTH_CLI_TEST_DAEMON"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		c := &CLI{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getuid: func() int { return 0 },
			Daemon: func(ctx context.Context, opt DaemonOptions) error { return fakeDaemon(ctx, opt, mode) }}
		os.Exit(c.Run(context.Background()))
	}
	os.Exit(m.Run())
}

func fakeDaemon(ctx context.Context, opt DaemonOptions, mode string) error {
	if mode == "fail" {
		return fmt.Errorf("cgroups: no controller is there")
	}
	// Each start leaves a mark, by which the test counts.
	marks, err := os.OpenFile(filepath.Join(opt.Layout.State, "starts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(marks, os.Getpid()); err != nil {
		return err
	}
	if err := marks.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fake := apitest.New("work")
	l, err := server.Listen(opt.Layout.APISocket(), server.Group)
	if err != nil {
		return err
	}
	return server.New(server.Config{Manager: fake, Images: fake.Images(), Shutdown: cancel, Log: slog.New(slog.NewTextHandler(opt.Log, nil)),
		Info: func(ctx context.Context) (api.DaemonInfo, error) {
			info, err := fake.Info(ctx)
			info.PID = os.Getpid()
			return info, err
		}}).Serve(ctx, l)
}

// instance returns a command line on a root of its own whose daemon is the test program.
func instance(t *testing.T, mode string) (run func(args ...string) (code int, out, errs string), l paths.Layout) {
	t.Helper()
	return instanceWith(t, mode, nil)
}

// instanceWith is instance with a Plan.
func instanceWith(t *testing.T, mode string, plan func(context.Context, api.UpRequest) (api.Plan, error)) (run func(args ...string) (code int, out, errs string), l paths.Layout) {
	t.Helper()
	root, err := os.MkdirTemp("", "berth") // t.TempDir's paths can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if l, err = paths.New(root); err != nil {
		t.Fatal(err)
	}
	run = func(args ...string) (int, string, string) {
		out, errs := newOutput(), newOutput()
		c := &CLI{Args: args, Stdin: strings.NewReader(""), Stdout: out, Stderr: errs, Getuid: func() int { return 0 }, Executable: exe, Plan: plan,
			Env: append(os.Environ(), childEnv+"="+mode, "BERTH_ROOT="+root)}
		return c.Run(context.Background()), out.String(), errs.String()
	}
	t.Cleanup(func() {
		if ping(l.APISocket()) == nil {
			if code, _, errs := run("daemon", "stop"); code != 0 {
				t.Errorf("berth daemon stop = %d: %s", code, errs)
			}
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	return run, l
}

func TestConcurrentUpsStartOneDaemon(t *testing.T) {
	run, l := instance(t, "serve")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if code, out, errs := run("up", "xfce", "--name", fmt.Sprint("s", i)); code != 0 || !strings.Contains(out, fmt.Sprint("s", i)) {
				t.Errorf("berth up s%d = %d, %s%s", i, code, out, errs)
			}
		})
	}
	wg.Wait()
	starts, err := os.ReadFile(filepath.Join(l.State, "starts"))
	if n := strings.Count(string(starts), "\n"); err != nil || n != 1 {
		t.Errorf("%d daemons were started, %v; want 1", n, err)
	}
	if code, out, errs := run("ls"); code != 0 || strings.Count(out, "\n") != 6 {
		t.Errorf("berth ls = %d, %s%s", code, out, errs)
	}
	if code, _, errs := run("daemon", "stop"); code != 0 {
		t.Errorf("berth daemon stop = %d: %s", code, errs)
	}
	if _, err := os.Lstat(l.APISocket()); !os.IsNotExist(err) {
		t.Errorf("socket after the stop: %v", err)
	}
	if code, _, errs := run("ls"); code != 1 || !strings.Contains(errs, "not running") {
		t.Errorf("berth ls without a daemon = %d: %s", code, errs)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	run, l := instance(t, "serve")
	if err := os.MkdirAll(l.Run, 0o755); err != nil {
		t.Fatal(err)
	}
	stale, err := server.Listen(l.APISocket(), server.Group)
	if err != nil {
		t.Fatal(err)
	}
	// As after SIGKILL: the socket stays and nobody listens.
	if err := os.Link(l.APISocket(), l.APISocket()+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(l.APISocket()+".kept", l.APISocket()); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := run("up", "xfce"); code != 0 {
		t.Errorf("berth up = %d: %s", code, errs)
	}
}

func TestDaemonThatEndsAtOnceIsReported(t *testing.T) {
	run, l := instance(t, "fail")
	code, _, errs := run("up", "xfce")
	if code != 1 {
		t.Errorf("berth up = %d; want 1", code)
	}
	for _, want := range []string{"berth: daemon: ended while starting: exit status 1", "cgroups: no controller is there", "hint: its log is " + l.State} {
		if !strings.Contains(errs, want) {
			t.Errorf("stderr = %q; want %q in it", errs, want)
		}
	}
}

func TestUpWarnsOfUnusedKeys(t *testing.T) {
	run, _ := instanceWith(t, "serve", func(_ context.Context, req api.UpRequest) (api.Plan, error) { return apitest.Plan(req.Profile), nil })
	if code, _, errs := run("up", "xfce"); code != 0 || !strings.HasPrefix(errs, "berth: warning: profile \"xfce\": not used yet and ignored: look.dark, apps\n") {
		t.Errorf("berth up = %d: %s", code, errs)
	}
}

func TestMistakenProfileStartsNoDaemon(t *testing.T) {
	run, l := instanceWith(t, "serve", func(context.Context, api.UpRequest) (api.Plan, error) {
		return api.Plan{}, fmt.Errorf("profile %q: %w", "xfec", orchestrator.ErrNotFound)
	})
	if code, _, errs := run("up", "xfec"); code != 1 || errs != "berth: profile \"xfec\": not found\n" {
		t.Errorf("berth up = %d: %s", code, errs)
	}
	if left, err := os.ReadDir(l.Root); err != nil || len(left) != 0 {
		t.Errorf("berth up left %v, %v", left, err)
	}
}

func TestDaemonNeedsRoot(t *testing.T) {
	errs := newOutput()
	c := &CLI{Args: []string{"daemon"}, Stdout: io.Discard, Stderr: errs, Env: []string{}, Getuid: func() int { return 1000 }}
	if code := c.Run(context.Background()); code != 1 || !strings.Contains(errs.String(), "run it as root") {
		t.Errorf("berth daemon as a user = %d: %s", code, errs)
	}
}
