package private

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/internal/paths"
	"berth/orchestrator"
)

// These tests run the real programs on a root of their own. The deadline is for a machine under any load.
const deadline = 3 * time.Minute

// realLayout is the layout of an instance below a new directory. It skips where the programs cannot run.
func realLayout(t *testing.T) paths.Layout {
	t.Helper()
	return realLayoutOf(t, 0)
}

// realLayoutOf is realLayout with a root of so many bytes, if that is more than needed.
func realLayoutOf(t *testing.T, length int) paths.Layout {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containerd needs root")
	}
	// Not t.TempDir: its name is too long for sockets.
	root, err := os.MkdirTemp("", "berth-pt-")
	if err != nil {
		t.Fatal(err)
	}
	l, err := paths.New(filepath.Join(root, strings.Repeat("r", max(0, length-len(root)-1))))
	if err != nil {
		os.Remove(root)
		t.Skipf("the directory for temporary files is too long: %v", err)
	}
	if _, err := os.Stat(filepath.Join(l.Libexec, "containerd")); err != nil {
		os.Remove(root)
		t.Skipf("the engine's programs are not built: %v; run `make engine` and set BERTH_LIBEXEC", err)
	}
	t.Cleanup(func() {
		assertNothingLeft(t, l)
		if t.Failed() {
			for _, n := range []string{"containerd", "buildkitd"} {
				b, _ := os.ReadFile(filepath.Join(l.State, "log", n+".log"))
				t.Logf("%s.log:\n%s", n, b)
			}
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	return l
}

// assertNothingLeft fails when a process, mount, cgroup or file below Run belongs to the instance still.
func assertNothingLeft(t *testing.T, l paths.Layout) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if s := strings.ReplaceAll(string(b), "\x00", " "); strings.Contains(s, l.Root+"/") {
			t.Errorf("process %s goes on: %s", p, s)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(l.Root))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		t.Errorf("mount %s is left", m.Mountpoint)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		left, err := filepath.Glob(pattern + l.Instance() + "*")
		if err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %q, %v", left, err)
		}
	}
	var files []string
	err = filepath.WalkDir(l.Run, func(p string, d os.DirEntry, err error) error {
		if err == nil && p != l.Run {
			files = append(files, p)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if len(files) > 0 {
		t.Errorf("left below Run: %q", files)
	}
}

func start(t *testing.T, opt Options) *Engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	opt.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	e, err := Start(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, e) })
	return e
}

func stop(t *testing.T, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := e.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// abandon leaves an engine as a killed daemon does: the programs run, nobody watches, the lock is free.
func abandon(t *testing.T, e *Engine) {
	t.Helper()
	e.cancel()
	e.wg.Wait()
	if err := e.lock.Close(); err != nil {
		t.Fatal(err)
	}
	e.stopOnce.Do(func() {})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func connect(t *testing.T, e *Engine) (*containerd.Client, context.Context) {
	t.Helper()
	c, err := containerd.New(e.Socket(), containerd.WithTimeout(deadline))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), e.opt.Layout.Instance()), deadline)
	t.Cleanup(cancel)
	return c, ctx
}

func assertAnswers(t *testing.T, ctx context.Context, c *containerd.Client) {
	t.Helper()
	eventually(t, "containerd answers", func() bool {
		_, err := c.Version(ctx)
		return err == nil
	})
}

func TestStartAndStop(t *testing.T) {
	l := realLayout(t)
	e := start(t, Options{Layout: l})
	c, ctx := connect(t, e)
	v, err := c.Version(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if v.Version != e.Version() || !strings.HasPrefix(v.Version, "v2.") {
		t.Errorf("containerd says %q, the engine %q", v.Version, e.Version())
	}
	if got := e.Status(); len(got) != 2 || got[0].PID == 0 || got[0].Restarts != 0 || got[1].PID != 0 {
		t.Errorf("status: %+v; want containerd running and buildkitd not", got)
	}
	_, err = Start(ctx, Options{Layout: l})
	if !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("a second engine of the same instance: %v; want %v", err, orchestrator.ErrState)
	}
	pid := e.Status()[0].PID
	stop(t, e)
	stop(t, e) // again
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("containerd, process %d, after Stop: %v", pid, err)
	}
	assertNothingLeft(t, l)
	if _, _, err := e.Buildkit(ctx); !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("Buildkit after Stop: %v", err)
	}
}

func TestDeadContainerdComesBack(t *testing.T) {
	l := realLayout(t)
	e := start(t, Options{Layout: l})
	c, ctx := connect(t, e)
	task := runSleep(t, ctx, c, l)

	for i := 1; i <= 3; i++ {
		old := e.Status()[0].PID
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "containerd runs again", func() bool {
			s := e.Status()[0]
			return s.Restarts >= i && s.PID != 0 && s.PID != old
		})
		assertAnswers(t, ctx, c) // the same client, which reconnects by itself
	}
	st, err := task.Status(ctx)
	if err != nil || st.Status != containerd.Running {
		t.Errorf("the container after three deaths of containerd: %v, %v", st, err)
	}
	removeSleep(t, ctx, c, task)
}

// TestLongRoot: where Run is too long for the shims' sockets they lie elsewhere, and are gone all the same.
func TestLongRoot(t *testing.T) {
	l := realLayoutOf(t, 40)
	if strings.HasPrefix(l.ShimSockets(), l.Root) {
		t.Fatalf("sockets of shims in %q; the root %q is meant to be too long", l.ShimSockets(), l.Root)
	}
	e := start(t, Options{Layout: l})
	c, ctx := connect(t, e)
	task := runSleep(t, ctx, c, l)
	if left, err := os.ReadDir(l.ShimSockets()); err != nil || len(left) == 0 {
		t.Errorf("sockets of shims: %v, %v; want one", left, err)
	}
	removeSleep(t, ctx, c, task)
	stop(t, e)
	if _, err := os.Stat(filepath.Dir(l.ShimSockets())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of the shims' sockets after Stop: %v", err)
	}
}

func TestContainersOutliveTheEngine(t *testing.T) {
	l := realLayout(t)
	e := start(t, Options{Layout: l})
	c, ctx := connect(t, e)
	task := runSleep(t, ctx, c, l)
	pid := int(task.Pid())
	stop(t, e)
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("the container's process %d after Stop: %v", pid, err)
	}

	e = start(t, Options{Layout: l})
	c, ctx = connect(t, e)
	ctr, err := c.LoadContainer(ctx, "sleep")
	if err != nil {
		t.Fatal(err)
	}
	if task, err = ctr.Task(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if st, err := task.Status(ctx); err != nil || st.Status != containerd.Running || int(task.Pid()) != pid {
		t.Errorf("the container in the next engine: %v, %v, process %d; want running, process %d", st, err, task.Pid(), pid)
	}
	removeSleep(t, ctx, c, task)
}

func TestKilledDaemonsContainerdIsAdopted(t *testing.T) {
	l := realLayout(t)
	first := start(t, Options{Layout: l})
	pid := first.Status()[0].PID
	abandon(t, first)

	second := start(t, Options{Layout: l})
	if s := second.Status()[0]; s.PID != pid || !s.Adopted {
		t.Fatalf("status %+v; want process %d adopted", s, pid)
	}
	// It is supervised like a child.
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the adopted containerd is replaced", func() bool {
		s := second.Status()[0]
		return s.Restarts == 1 && s.PID != 0 && !s.Adopted
	})
	c, ctx := connect(t, second)
	assertAnswers(t, ctx, c)

	// And it can be stopped.
	pid = second.Status()[0].PID
	abandon(t, second)
	third := start(t, Options{Layout: l})
	if s := third.Status()[0]; s.PID != pid || !s.Adopted {
		t.Fatalf("status %+v; want process %d adopted", s, pid)
	}
	stop(t, third)
	// This process, its parent, reaps it, elsewhere.
	eventually(t, "containerd is gone", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
}

// TestRealDaemonIsKilled is the same with a daemon that is another process, so that containerd is nobody's child after it.
func TestRealDaemonIsKilled(t *testing.T) {
	l := realLayout(t)
	daemon := exec.Command("/proc/self/exe", "--daemon", l.Root)
	daemon.Stderr = t.Output()
	in, err := daemon.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Options{Layout: l}); !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("while the other daemon lives: %v; want %v", err, orchestrator.ErrState)
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	daemon.Wait() // "signal: killed"
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("containerd, process %d, after its daemon: %v", pid, err)
	}

	e := start(t, Options{Layout: l})
	if s := e.Status()[0]; s.PID != pid || !s.Adopted {
		t.Fatalf("status %+v; want process %d adopted", s, pid)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the adopted containerd is replaced", func() bool {
		s := e.Status()[0]
		return s.Restarts == 1 && s.PID != 0 && !s.Adopted
	})
	c, ctx := connect(t, e)
	assertAnswers(t, ctx, c)
}

func TestOutdatedContainerdIsReplaced(t *testing.T) {
	t.Run("configuration", func(t *testing.T) {
		l := realLayout(t)
		first := start(t, Options{Layout: l})
		pid := first.Status()[0].PID
		abandon(t, first)
		second := start(t, Options{Layout: l, Snapshotter: "native"})
		if s := second.Status()[0]; s.PID == pid || s.Adopted {
			t.Errorf("status %+v; want a new containerd", s)
		}
	})
	t.Run("program", func(t *testing.T) {
		l := realLayout(t)
		old := filepath.Join(l.Root, "libexec")
		if err := os.CopyFS(old, os.DirFS(l.Libexec)); err != nil {
			t.Fatal(err)
		}
		before := l
		before.Libexec = old
		first := start(t, Options{Layout: before})
		pid := first.Status()[0].PID
		abandon(t, first)
		second := start(t, Options{Layout: l})
		if s := second.Status()[0]; s.PID == pid || s.Adopted {
			t.Errorf("status %+v; want a new containerd", s)
		}
	})
	t.Run("hung", func(t *testing.T) {
		l := realLayout(t)
		first := start(t, Options{Layout: l})
		pid := first.Status()[0].PID
		abandon(t, first)
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		long, grace := adoptTimeout, stopGrace
		adoptTimeout, stopGrace = time.Second, time.Second // the first one never answers, however long one waits
		second, err := Start(t.Context(), Options{Layout: l})
		adoptTimeout, stopGrace = long, grace
		if err != nil {
			t.Fatal(err)
		}
		if s := second.Status()[0]; s.PID == pid || s.Adopted {
			t.Errorf("status %+v; want a new containerd", s)
		}
		stop(t, second)
	})
}

// TestMain makes this binary a stand-in, that lives until its stdin closes: with --config for a program of the engine,
// with --daemon for a daemon, which prints containerd's PID.
func TestMain(m *testing.M) {
	if len(os.Args) != 3 {
		os.Exit(m.Run())
	}
	switch os.Args[1] {
	case "--daemon":
		l, err := paths.New(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		e, err := Start(context.Background(), Options{Layout: l})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Status()[0].PID)
	case "--config":
	default:
		os.Exit(m.Run())
	}
	io.Copy(io.Discard, os.Stdin)
}

func TestFind(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to run a process as somebody else and in another namespace")
	}
	dir, err := os.MkdirTemp("", "berth-pt-") // readable for the other user, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	for _, n := range []string{"prog", "other"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, n), self, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &program{name: "prog", exe: filepath.Join(dir, "prog"), config: filepath.Join(dir, "config.toml"), log: filepath.Join(dir, "log")}

	tests := []struct {
		name, exe, config string
		attr              syscall.SysProcAttr
		want, current     bool
	}{
		{name: "ours", exe: "prog", config: p.config, want: true, current: true},
		{name: "another_instance", exe: "prog", config: p.config + "x"},
		{name: "another_program", exe: "other", config: p.config},
		{name: "another_user", exe: "prog", config: p.config,
			attr: syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}},
		{name: "another_pid_namespace", exe: "prog", config: p.config, attr: syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			exe := filepath.Join(dir, tt.exe)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := &exec.Cmd{Path: exe, Args: []string{exe, "--config", tt.config}, Stdin: r, SysProcAttr: &tt.attr}
			err = cmd.Start()
			r.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { w.Close(); cmd.Wait() }()
			found, err := p.find()
			if err != nil {
				t.Fatal(err)
			}
			if got := len(found) == 1 && found[0].pid == cmd.Process.Pid; got != tt.want {
				t.Fatalf("find() = %v; want %v", found, tt.want)
			}
			if !tt.want {
				return
			}
			x := found[0]
			if x.current() != tt.current {
				t.Errorf("current() = %v; want %v", x.current(), tt.current)
			}
			if err := os.Rename(filepath.Join(dir, "other"), p.exe); err != nil { // an upgrade
				t.Fatal(err)
			}
			if x.current() {
				t.Error("current() after the program was replaced")
			}
			if err := os.WriteFile(filepath.Join(dir, "other"), self, 0o755); err != nil {
				t.Fatal(err)
			}
			w.Close()
			<-x.exited
			if err := x.signal(unix.SIGKILL); err != nil {
				t.Errorf("signal to one that has ended: %v", err)
			}
		})
	}
}

func TestSnapshotters(t *testing.T) {
	t.Run("native", func(t *testing.T) {
		e := start(t, Options{Layout: realLayout(t), Snapshotter: "native"})
		assertSnapshots(t, e)
		assertBuild(t, e)
	})
	t.Run("overlayfs", func(t *testing.T) {
		e := start(t, Options{Layout: realLayout(t), Snapshotter: "overlayfs"})
		assertSnapshots(t, e)
		assertBuild(t, e)
	})
	t.Run("btrfs", func(t *testing.T) {
		l := realLayout(t)
		mountBtrfs(t, l.State)
		e := start(t, Options{Layout: l, Snapshotter: "btrfs"})
		assertSnapshots(t, e)
		assertBuild(t, e)
	})
	t.Run("btrfs_on_another_file_system", func(t *testing.T) {
		l := realLayout(t)
		mountTmpfs(t, l.State)
		_, err := Start(t.Context(), Options{Layout: l, Snapshotter: "btrfs"})
		if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), `engine.snapshotter = "native"`) {
			t.Errorf("got %v; want %v, with what to use instead", err, orchestrator.ErrUnavailable)
		}
		assertNothingLeft(t, paths.Layout{Root: l.Root + "/none", Run: l.Run})
	})
	t.Run("unknown", func(t *testing.T) {
		l := realLayout(t)
		_, err := Start(t.Context(), Options{Layout: l, Snapshotter: "overlay2"})
		if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "overlayfs") {
			t.Errorf("got %v; want %v, with the known ones", err, orchestrator.ErrUnavailable)
		}
	})
}

func TestExistingContainerd(t *testing.T) {
	theirs := start(t, Options{Layout: realLayout(t), Snapshotter: "native"})
	l := realLayout(t)
	e := start(t, Options{Layout: l, Containerd: theirs.Socket(), Snapshotter: "native"})
	if e.Socket() != theirs.Socket() || e.Version() != theirs.Version() {
		t.Errorf("socket %q, version %q", e.Socket(), e.Version())
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if _, release, err := e.Buildkit(ctx); err != nil {
		t.Error(err)
	} else {
		release()
	}
	stop(t, e)
	if s := theirs.Status()[0]; s.PID == 0 || s.Restarts != 0 {
		t.Errorf("the existing containerd after Stop: %+v", s)
	}

	_, err := Start(ctx, Options{Layout: l, Containerd: theirs.Socket(), Snapshotter: "zfs"})
	if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), `"native"`) {
		t.Errorf("a snapshotter it lacks: %v", err)
	}
	_, err = Start(ctx, Options{Layout: l, Containerd: filepath.Join(l.Run, "none.sock")})
	if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("a containerd that is not there: %v", err)
	}
}

func TestProgramThatCannotStart(t *testing.T) {
	t.Run("missing", func(t *testing.T) {
		l := realLayout(t)
		l.Libexec = filepath.Join(l.Root, "none")
		_, err := Start(t.Context(), Options{Layout: l})
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "make engine") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("dies", func(t *testing.T) {
		l := realLayout(t)
		l.Libexec = filepath.Join(l.Root, "libexec")
		if err := os.MkdirAll(l.Libexec, 0o755); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\necho no disk for me >&2\nexit 7\n"
		if err := os.WriteFile(filepath.Join(l.Libexec, "containerd"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := Start(t.Context(), Options{Layout: l})
		if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "no disk for me") {
			t.Errorf("got %v; want the exit status and the end of the log", err)
		}
	})
}

func TestBuildkit(t *testing.T) {
	l := realLayout(t)
	e := start(t, Options{Layout: l, BuildkitIdle: 50 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()

	type result struct {
		release func()
		err     error
	}
	results := make(chan result)
	for range 3 { // at the same time
		go func() {
			_, release, err := e.Buildkit(ctx)
			results <- result{release, err}
		}()
	}
	var held []func()
	for range 3 {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		held = append(held, r.release)
	}
	s := e.Status()[1]
	if s.PID == 0 || s.Restarts != 0 {
		t.Fatalf("status %+v; want buildkitd started once", s)
	}
	for _, release := range held[1:] {
		release()
		release()
	}
	// A user is left: it is there, whatever the idle time says.
	if err := probeBuildkit(ctx, l.BuildkitSocket(), s.PID); err != nil {
		t.Fatal(err)
	}
	held[0]()
	eventually(t, "an idle buildkitd ends", func() bool { return e.Status()[1].PID == 0 })

	// It comes back, also when it was killed.
	_, release, err := e.Buildkit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(e.Status()[1].PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its death is noticed", func() bool { return e.Status()[1].PID == 0 })
	_, again, err := e.Buildkit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s := e.Status()[1]; s.PID == 0 || s.Restarts != 1 {
		t.Errorf("status %+v; want one restart", s)
	}
	release()
	again()

	// A start that is cancelled leaves nothing running.
	eventually(t, "an idle buildkitd ends", func() bool { return e.Status()[1].PID == 0 })
	gone, leave := context.WithCancel(ctx)
	var seen int
	go func() {
		defer leave()
		for end := time.Now().Add(deadline); seen == 0 && time.Now().Before(end); {
			seen = e.Status()[1].PID
		}
	}()
	_, release, err = e.Buildkit(gone)
	<-gone.Done()
	switch {
	case err == nil: // it was up before the cancellation was seen
		release()
	case !errors.Is(err, context.Canceled):
		t.Errorf("with a cancelled context: %v", err)
	}
	eventually(t, "buildkitd is gone", func() bool { return errors.Is(unix.Kill(seen, 0), unix.ESRCH) })
	if _, _, err := e.Buildkit(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context cancelled before: %v", err)
	}
}

// A buildkitd that is too slow to answer keeps the builds of others; only one that nobody uses is replaced.
func TestSlowBuildkitIsKept(t *testing.T) {
	l := realLayout(t)
	e := start(t, Options{Layout: l})
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	_, first, err := e.Buildkit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pid := e.Status()[1].PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	long, grace := adoptTimeout, stopGrace
	adoptTimeout, stopGrace = 300*time.Millisecond, time.Second // it never answers, however long one waits
	defer func() { adoptTimeout, stopGrace = long, grace }()
	_, second, err := e.Buildkit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s := e.Status()[1]; s.PID != pid || s.Restarts != 0 {
		t.Errorf("with a user: %+v; want process %d kept", s, pid)
	}
	first()
	second()
	_, third, err := e.Buildkit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer third()
	if s := e.Status()[1]; s.PID == pid || s.Restarts != 1 {
		t.Errorf("without users: %+v; want process %d replaced", s, pid)
	}
}

func TestKilledDaemonsBuildkitEnds(t *testing.T) {
	l := realLayout(t)
	first := start(t, Options{Layout: l})
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if _, _, err := first.Buildkit(ctx); err != nil {
		t.Fatal(err)
	}
	pid := first.Status()[1].PID
	abandon(t, first)
	second := start(t, Options{Layout: l, BuildkitIdle: time.Millisecond})
	var adopted atomic.Bool
	eventually(t, "the buildkitd nobody uses ends", func() bool {
		s := second.Status()[1]
		adopted.Store(adopted.Load() || s.PID == pid && s.Adopted)
		return s.PID == 0
	})
}

// runSleep runs a container with the host's programs, read-only, and no image: sleep.
func runSleep(t *testing.T, ctx context.Context, c *containerd.Client, l paths.Layout) containerd.Task {
	t.Helper()
	rootfs, cgroup := filepath.Join(l.Root, "rootfs"), "/"+l.Instance()+"-sleep"
	var mounts []specs.Mount
	for _, d := range []string{"usr", "bin", "lib", "lib64"} {
		if _, err := os.Stat("/" + d); err == nil {
			mounts = append(mounts, specs.Mount{Type: "bind", Source: "/" + d, Destination: "/" + d, Options: []string{"rbind", "ro"}})
		}
	}
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	ctr, err := c.NewContainer(ctx, "sleep", containerd.WithRuntime("io.containerd.runc.v2", nil), containerd.WithNewSpec(
		oci.WithRootFSPath(rootfs), oci.WithProcessArgs(sleep, "infinity"), oci.WithMounts(mounts),
		oci.WithCgroup(cgroup),
	))
	if err != nil {
		t.Fatal(err)
	}
	task, err := ctr.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return task
}

func removeSleep(t *testing.T, ctx context.Context, c *containerd.Client, task containerd.Task) {
	t.Helper()
	if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
		t.Fatal(err)
	}
	ctr, err := c.LoadContainer(ctx, "sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := ctr.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}

// assertSnapshots makes a layer and one on top of it with the engine's snapshotter.
func assertSnapshots(t *testing.T, e *Engine) {
	t.Helper()
	c, ctx := connect(t, e)
	ctx, done, err := c.WithLease(ctx) // else the layer may be collected as garbage between two calls
	if err != nil {
		t.Fatal(err)
	}
	defer done(ctx)
	s := c.SnapshotService(e.Snapshotter())
	if _, err := s.Prepare(ctx, "first", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "layer", "first"); err != nil {
		t.Fatal(err)
	}
	mounts, err := s.Prepare(ctx, "second", "layer")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"overlayfs": "overlay", "native": "bind", "btrfs": "btrfs"}[e.Snapshotter()]
	if len(mounts) != 1 || mounts[0].Type != want {
		t.Errorf("mounts of the second layer: %+v; want type %q", mounts, want)
	}
	for _, key := range []string{"second", "layer"} {
		if err := s.Remove(ctx, key); err != nil {
			t.Error(err)
		}
	}
}

func mountBtrfs(t *testing.T, dir string) {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.btrfs")
	if err != nil {
		t.Skip("no mkfs.btrfs; install btrfs-progs")
	}
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "\tbtrfs\n") {
		t.Skip("this kernel has no btrfs")
	}
	img := filepath.Join(t.TempDir(), "img")
	err = errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 256<<20), os.MkdirAll(dir, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", img).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.btrfs: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", img, dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a loop device: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestRemoveCgroup(t *testing.T) {
	mount := t.TempDir()
	for _, d := range []string{"x-build/buildkit/1", "memory/x-build/buildkit", "memory/x", "pids"} {
		if err := os.MkdirAll(filepath.Join(mount, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeCgroup(mount, "x-build"); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(mount, "*", "*"))
	if want := filepath.Join(mount, "memory/x"); err != nil || len(left) != 1 || left[0] != want {
		t.Errorf("left %q, %v; want only %q", left, err, want)
	}
	if err := removeCgroup(mount, "x-build"); err != nil {
		t.Errorf("again: %v", err)
	}
}
