package private

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/internal/atomicfile"
	"berth/internal/paths"
	"berth/internal/revert"
	"berth/internal/rmtree"
	"berth/orchestrator"
)

const (
	inspectTimeout = 30 * time.Second // until a containerd that answers has said what it has
	startTimeout   = 2 * time.Minute  // until a started program answers; a cold disk under load is slow
	logInterval    = 10 * time.Minute // between looks at the logs' sizes
)

// Variables only so that the test with a program that hangs need not wait.
var (
	adoptTimeout = 15 * time.Second // until a program that runs already answers
	stopGrace    = 20 * time.Second // between SIGTERM and SIGKILL
)

// Options say what to run.
type Options struct {
	Layout paths.Layout
	// Containerd is the Unix socket of an existing containerd to be used instead of a private one; "" for private.
	Containerd string
	// Snapshotter is "overlayfs" (also if empty), "btrfs" or "native"; with an existing containerd any it has.
	Snapshotter string
	// Runtime is the OCI runtime that builds use; "" means Libexec's runc, with an existing containerd what it has.
	Runtime string
	// BuildkitIdle is how long buildkitd is kept after its last user; 0 means five minutes.
	BuildkitIdle time.Duration
	// Log receives what happens to the programs; nil discards it.
	Log *slog.Logger
}

// Engine is the running programs. It is safe for concurrent use.
type Engine struct {
	opt     Options
	socket  string
	version string
	lock    *os.File

	ctx    context.Context // of supervision; ends with Stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	containerd *supervisor // nil with an existing containerd
	buildkit   *builder

	stopOnce sync.Once
	stopErr  error
}

// Status is the state of one program.
type Status struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid"` // 0: does not run
	Since    time.Time `json:"since,omitzero"`
	Adopted  bool      `json:"adopted"`  // it ran already when the daemon started
	Restarts int       `json:"restarts"` // because it had died
	Log      string    `json:"log"`
}

// Start brings the engine up and returns when containerd answers. The programs outlive ctx; end them with Stop. Errors
// that mean that this host or its configuration cannot do it wrap orchestrator.ErrUnavailable. After an error nothing
// runs that did not run before.
func Start(ctx context.Context, opt Options) (_ *Engine, err error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Snapshotter == "" {
		opt.Snapshotter = "overlayfs"
	}
	if opt.BuildkitIdle == 0 {
		opt.BuildkitIdle = 5 * time.Minute
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("engine: %w: containerd needs root", orchestrator.ErrUnavailable)
	}
	e := &Engine{opt: opt, socket: opt.Containerd}
	if e.socket == "" {
		e.socket = opt.Layout.ContainerdSocket()
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())

	var undo revert.Stack
	defer func() {
		if err != nil {
			e.cancel()
			err = errors.Join(err, undo.Run(ctx))
		}
	}()

	l := opt.Layout
	logs := filepath.Join(l.State, "log")
	for dir, mode := range map[string]os.FileMode{l.State: 0o711, logs: 0o750, l.Run: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, fmt.Errorf("engine: %w", err)
		}
	}
	if e.lock, err = lock(filepath.Join(l.Run, "engine.lock")); err != nil {
		return nil, err
	}
	undo.Add("engine's lock", func(context.Context) error { return unlock(e.lock) })

	if opt.Containerd == "" {
		config, err := ContainerdConfig(l, opt.Snapshotter)
		if err != nil {
			return nil, fmt.Errorf("engine: %w: %w", orchestrator.ErrUnavailable, err)
		}
		p := &program{
			name: "containerd", exe: filepath.Join(l.Libexec, "containerd"),
			config: filepath.Join(filepath.Dir(e.socket), "config.toml"),
			log:    filepath.Join(logs, "containerd.log"), path: l.Libexec, socket: e.socket, probe: probeContainerd,
		}
		var proc *process
		undo.Add("containerd's files", func(context.Context) error {
			if proc != nil && proc.adopted {
				return nil
			}
			return sweep(l)
		})
		if proc, err = p.adopt(ctx, config, opt.Log); err != nil {
			return nil, err
		}
		if proc == nil {
			if proc, err = p.start(); err != nil {
				return nil, err
			}
			undo.Add("start of containerd", func(ctx context.Context) error { return proc.stop(ctx, stopGrace) })
			wait, cancel := context.WithTimeout(ctx, startTimeout)
			err = proc.answers(wait)
			cancel()
			if err != nil {
				return nil, err
			}
		}
		e.containerd = &supervisor{program: p, proc: proc, log: opt.Log}
	}

	wait, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	var d net.Dialer
	if c, err := d.DialContext(wait, "unix", e.socket); err != nil { // at once, where gRPC would go on trying
		return nil, fmt.Errorf("containerd %q: %w: %w; start it, or take engine.containerd out of %q to let Berth run its own",
			e.socket, orchestrator.ErrUnavailable, err, l.Config)
	} else if err := c.Close(); err != nil {
		return nil, fmt.Errorf("containerd %q: %w", e.socket, err)
	}
	s, err := inspect(wait, e.socket)
	if err != nil {
		return nil, fmt.Errorf("containerd %q: %w", e.socket, err)
	}
	if err := s.check(opt.Snapshotter, l); err != nil {
		return nil, err
	}
	e.version = s.version

	config, err := BuildkitConfig(l, e.socket, opt.Snapshotter, opt.Runtime)
	if err != nil {
		return nil, fmt.Errorf("engine: %w: %w", orchestrator.ErrUnavailable, err)
	}
	e.buildkit = newBuilder(&program{
		name: "buildkitd", exe: filepath.Join(l.Libexec, "buildkitd"),
		config: filepath.Join(filepath.Dir(l.BuildkitSocket()), "config.toml"),
		log:    filepath.Join(logs, "buildkitd.log"), path: l.Libexec, socket: l.BuildkitSocket(), probe: probeBuildkit,
	}, config, buildCgroup(l), opt.BuildkitIdle, opt.Log)
	if err := e.buildkit.adopt(ctx); err != nil {
		return nil, err
	}

	if e.containerd != nil {
		e.wg.Go(func() { e.containerd.run(e.ctx) })
	}
	e.wg.Go(func() { e.trimLogs(e.ctx) })
	return e, nil
}

// Socket is the Unix socket of the containerd in use.
func (e *Engine) Socket() string { return e.socket }

// Snapshotter is the snapshotter in use.
func (e *Engine) Snapshotter() string { return e.opt.Snapshotter }

// Version is containerd's version, as it was at the start.
func (e *Engine) Version() string { return e.version }

// Buildkit returns the address of a running buildkitd ("unix:///..."), which it starts if need be. The caller holds it
// until it calls release, which may be called more than once.
func (e *Engine) Buildkit(ctx context.Context) (address string, release func(), err error) {
	if err := e.buildkit.acquire(ctx); err != nil {
		return "", nil, err
	}
	return "unix://" + e.buildkit.program.socket, sync.OnceFunc(e.buildkit.release), nil
}

// Status returns the state of the programs that are Berth's own.
func (e *Engine) Status() []Status {
	var all []Status
	if e.containerd != nil {
		all = append(all, e.containerd.status())
	}
	return append(all, e.buildkit.status())
}

// Stop ends the programs and removes what they leave below Run; containers go on. When ctx ends before they have ended by
// themselves they are killed. Further calls return the result of the first.
func (e *Engine) Stop(ctx context.Context) error {
	e.stopOnce.Do(func() {
		e.cancel()
		e.wg.Wait()
		err := e.buildkit.close(ctx)
		if e.containerd != nil {
			err = errors.Join(err, e.containerd.current().stop(ctx, stopGrace), sweep(e.opt.Layout))
		}
		e.stopErr = errors.Join(err, unlock(e.lock))
	})
	return e.stopErr
}

// trimLogs keeps the programs' logs from growing without bound.
func (e *Engine) trimLogs(ctx context.Context) {
	t := time.NewTicker(logInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, s := range e.Status() {
			if err := trimLog(s.Log); err != nil {
				e.opt.Log.Warn("cannot trim a log", "err", err)
			}
		}
	}
}

// adopt writes the configuration and looks for the program running from before. One that is what start would start and
// answers is returned, any other is ended; nil means that start has to be called.
func (p *program) adopt(ctx context.Context, config []byte, log *slog.Logger) (*process, error) {
	if err := os.MkdirAll(filepath.Dir(p.config), 0o711); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	old, err := os.ReadFile(p.config)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("engine: %w", err)
	}
	same := bytes.Equal(old, config)
	if !same {
		if err := atomicfile.Write(p.config, config, 0o644); err != nil {
			return nil, err
		}
	}
	running, err := p.find()
	if err != nil {
		return nil, err
	}
	var kept *process
	for _, x := range running {
		why := ""
		switch {
		case kept != nil:
			why = "there is another"
		case !same:
			why = "its configuration has changed"
		case !x.current():
			why = "its program has changed"
		default:
			wait, cancel := context.WithTimeout(ctx, adoptTimeout)
			if err := x.answers(wait); err != nil {
				why = err.Error()
			}
			cancel()
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if why == "" {
			log.Info("adopting a running program", "program", p.name, "pid", x.pid)
			kept = x
			continue
		}
		log.Info("replacing a running program", "program", p.name, "pid", x.pid, "why", why)
		if err := x.stop(ctx, stopGrace); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// check returns an error that says what to do when the containerd lacks the snapshotter.
func (s server) check(name string, l paths.Layout) error {
	problem, ok := s.snapshotters[name]
	switch {
	case !ok:
		var usable []string
		for _, n := range slices.Sorted(maps.Keys(s.snapshotters)) {
			if s.snapshotters[n] == "" {
				usable = append(usable, n)
			}
		}
		return fmt.Errorf("snapshotter %q: %w: containerd %s has no such; set engine.snapshotter in %q to one of %q",
			name, orchestrator.ErrUnavailable, s.version, l.Config, usable)
	case problem != "":
		other := "native" // works everywhere, at the price of a copy per layer
		var st unix.Statfs_t
		if err := unix.Statfs(l.State, &st); err == nil && st.Type == unix.BTRFS_SUPER_MAGIC && name != "btrfs" {
			other = "btrfs"
		}
		return fmt.Errorf("snapshotter %q: %w: %s; set engine.snapshotter = %q in %q, or move %q to another file system",
			name, orchestrator.ErrUnavailable, problem, other, l.Config, l.State)
	}
	return nil
}

// lock takes the lock that one daemon per instance holds. The kernel drops it when the daemon dies in whatever way.
func lock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("engine: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("engine below %q: %w: another berth daemon runs it; stop that one or choose another --root",
					filepath.Dir(path), orchestrator.ErrState)
			}
			return nil, fmt.Errorf("lock %q: %w", path, err)
		}
		// The former holder may have removed the file between our open and our lock.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return f, nil
		}
		f.Close()
		if err1 != nil || err2 != nil && !errors.Is(err2, os.ErrNotExist) {
			return nil, fmt.Errorf("lock %q: %w", path, errors.Join(err1, err2))
		}
	}
}

// unlock removes the lock's file while it is still locked, then releases it.
func unlock(f *os.File) error {
	return errors.Join(os.Remove(f.Name()), f.Close())
}

// sweep removes what a stopped containerd has left below Run. What belongs to a container that goes on stays.
func sweep(l paths.Layout) error {
	var errs []error
	// A killed containerd may leave its temporary mounts, in which it looks at snapshots.
	errs = append(errs, rmtree.Unmount(filepath.Join(l.State, "containerd", "tmpmounts")))

	dir := filepath.Dir(l.ContainerdSocket())
	bundles, err := filepath.Glob(filepath.Join(dir, "state", "io.containerd.runtime.v2.task", "*", "*"))
	errs = append(errs, err)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	errs = append(errs, err)
	gone := []string{dir, l.ShimSockets()}
	if err != nil || len(bundles)+len(mounts) > 0 {
		gone = []string{l.ContainerdSocket(), l.ContainerdSocket() + ".ttrpc"}
	}
	for _, f := range gone {
		errs = append(errs, rmtree.Remove(f))
	}
	// The directory of the shims' sockets may be all there is in its parent; if not, that is fine.
	if parent := filepath.Dir(l.ShimSockets()); strings.HasPrefix(parent, "/run/"+l.Instance()) && parent != l.Run {
		if err := os.Remove(parent); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
