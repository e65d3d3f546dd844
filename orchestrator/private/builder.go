package private

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"berth/internal/rmtree"
	"berth/orchestrator"
)

// builder runs buildkitd while somebody needs it and for a while longer.
type builder struct {
	program *program
	config  []byte
	cgroup  string // parent of the builds'
	idle    time.Duration
	log     *slog.Logger

	proc     atomic.Pointer[process] // nil: does not run; set under sem
	restarts atomic.Int32

	sem    chan struct{} // holds one token: a mutex that can be waited for with a context; guards what follows
	users  int
	timer  *time.Timer // ends proc when there are no users
	closed bool
}

func newBuilder(p *program, config []byte, cgroup string, idle time.Duration, log *slog.Logger) *builder {
	return &builder{program: p, config: config, cgroup: cgroup, idle: idle, log: log, sem: make(chan struct{}, 1)}
}

func (b *builder) lock()   { b.sem <- struct{}{} }
func (b *builder) unlock() { <-b.sem }

// adopt takes over a buildkitd from before, to end it when nobody asks for it in time.
func (b *builder) adopt(ctx context.Context) error {
	b.lock()
	defer b.unlock()
	x, err := b.program.adopt(ctx, b.config, b.log)
	if x != nil {
		b.proc.Store(x)
		b.rest()
	}
	return err
}

// acquire makes sure that buildkitd runs and answers, and counts a user. One that does not answer is replaced, but not while
// others use it: a host that is slow enough only makes it seem dead, and their builds would die with it.
func (b *builder) acquire(ctx context.Context) error {
	select {
	case b.sem <- struct{}{}:
		defer b.unlock()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.closed {
		return fmt.Errorf("buildkitd: %w: the daemon is stopping", orchestrator.ErrState)
	}
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if x := b.proc.Load(); x != nil {
		wait, cancel := context.WithTimeout(ctx, adoptTimeout)
		err := x.answers(wait)
		cancel()
		if err == nil {
			b.users++
			return nil
		}
		if ctx.Err() != nil {
			b.rest()
			return ctx.Err()
		}
		if b.users > 0 && x.alive() {
			b.log.Warn("buildkitd is slow to answer", "users", b.users, "err", err)
			b.users++
			return nil
		}
		b.log.Warn("replacing buildkitd", "err", err)
		if err := b.end(ctx); err != nil {
			return err
		}
		b.restarts.Add(1)
	}
	if err := os.MkdirAll(filepath.Dir(b.program.config), 0o711); err != nil {
		return fmt.Errorf("buildkitd: %w", err)
	}
	if err := os.WriteFile(b.program.config, b.config, 0o644); err != nil {
		return fmt.Errorf("buildkitd: %w", err)
	}
	x, err := b.program.start()
	if err != nil {
		return err
	}
	b.proc.Store(x)
	wait, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := x.answers(wait); err != nil {
		return errors.Join(err, b.end(context.WithoutCancel(ctx)))
	}
	b.log.Info("buildkitd runs", "pid", x.pid)
	b.users++
	return nil
}

// release undoes acquire.
func (b *builder) release() {
	b.lock()
	defer b.unlock()
	if b.users--; b.proc.Load() != nil {
		b.rest()
	}
}

// rest has buildkitd ended after the idle time, unless somebody comes. The lock is held.
func (b *builder) rest() {
	if b.users > 0 || b.closed {
		return
	}
	x := b.proc.Load()
	b.timer = time.AfterFunc(b.idle, func() {
		b.lock()
		defer b.unlock()
		if b.users > 0 || b.proc.Load() != x {
			return
		}
		b.log.Info("ending idle buildkitd", "pid", x.pid)
		if err := b.end(context.Background()); err != nil {
			b.log.Error("cannot end buildkitd", "err", err)
		}
	})
}

// end stops buildkitd and removes its files below Run and the cgroups it made. The lock is held.
func (b *builder) end(ctx context.Context) error {
	if x := b.proc.Load(); x != nil {
		if err := x.stop(ctx, stopGrace); err != nil {
			return err
		}
		b.proc.Store(nil)
	}
	// A cgroup that is busy is no reason to keep buildkitd: a RUN step that does not end holds it.
	if err := removeCgroup("/sys/fs/cgroup", b.cgroup); err != nil {
		b.log.Warn("cgroups of builds are left", "err", err)
	}
	return rmtree.Remove(filepath.Dir(b.program.socket))
}

// close ends buildkitd for good.
func (b *builder) close(ctx context.Context) error {
	b.lock()
	defer b.unlock()
	b.closed = true
	if b.timer != nil {
		b.timer.Stop()
	}
	return b.end(ctx)
}

func (b *builder) status() Status {
	return status(b.program, b.proc.Load(), int(b.restarts.Load()))
}
