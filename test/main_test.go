// Package test is the second ring: the real program with its own containerd on a private root, starting real desktops.
package test

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/display/x11"
	"berth/display/xauth"
	"berth/session/api"
	"berth/test/berthtest"
)

var inst *berthtest.Instance

// images are those that the tests start sessions from; make builds them beforehand.
//
//go:embed images.txt
var images string

// pictures is where the tests leave screenshots, for people to look at: build/pictures, or what the environment says.
var pictures string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	var err error
	if inst, err = berthtest.New(); err != nil {
		fmt.Fprintln(os.Stderr, "the tests with real sessions cannot run:", err)
		return 1
	}
	defer func() {
		if err := inst.StopDaemon(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
		if words := inst.Crash(); words != "" {
			fmt.Fprintf(os.Stderr, "the daemon crashed:\n%s\n", words)
			code = max(code, 1)
		}
	}()
	if pictures = os.Getenv("BERTH_TEST_PICTURES"); pictures == "" {
		_, file, _, _ := runtime.Caller(0)
		pictures = filepath.Join(filepath.Dir(filepath.Dir(file)), "build", "pictures")
	}
	if err := os.MkdirAll(pictures, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// make has begun with this already; what is there costs a look. Who works on one test may narrow it down.
	if narrow := os.Getenv("BERTH_TEST_IMAGES"); narrow != "" {
		images = narrow
	}
	r, err := inst.Do(context.Background(), append([]string{"image", "build"}, strings.Fields(images)...)...)
	if err != nil || r.Code != 0 {
		fmt.Fprintf(os.Stderr, "building the images: code %d, %v\n%s\n", r.Code, err, r.Stderr[max(0, len(r.Stderr)-8000):])
		return 1
	}
	// The first session of a root makes the directories that all later ones use; they are no litter of a test.
	for _, args := range [][]string{{"up", "openbox", "--name", "first-of-all", "--set", `home.kind="ephemeral"`},
		{"exec", "first-of-all", "panel", "--", "true"}, {"stop", "first-of-all"}} {
		if r, err := inst.Do(context.Background(), args...); err != nil || r.Code != 0 {
			fmt.Fprintf(os.Stderr, "berth %s: code %d, %v\n%s\n", args[0], r.Code, err, r.Stderr)
			return 1
		}
	}
	return m.Run()
}

// screen connects to a session's display.
func screen(t testing.TB, s api.Session) *x11.Conn {
	t.Helper()
	entries, err := xauth.ReadFile(s.Display.XAuthority)
	if err != nil {
		t.Fatal(err)
	}
	cookie, _ := xauth.Cookie(entries, 0)
	ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
	t.Cleanup(cancel)
	c, err := x11.Dial(ctx, filepath.Dir(s.Display.Socket), filepath.Base(s.Display.Socket), cookie)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// waitFor waits until all conditions hold on a session's screen. A connection has one watcher at a time.
func waitFor(t testing.TB, c *x11.Conn, conds ...x11.Condition) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
	defer cancel()
	w, err := c.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, cond := range conds {
		if err := w.Wait(ctx, cond); err != nil {
			t.Fatal(err)
		}
	}
}

func windows(t testing.TB, c *x11.Conn) []x11.Window {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w, err := c.Windows(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func kill(pid int) error { return unix.Kill(pid, unix.SIGKILL) }

func waitState(t *testing.T, name string, cond func(api.Session) bool) {
	t.Helper()
	berthtest.WaitUntil(t, "the state of session "+name, func() bool { return cond(inst.Show(t, name)) })
}
