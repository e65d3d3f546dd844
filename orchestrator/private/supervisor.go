package private

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// The pause before a program that died is started again: none the first time, then doubling from backoffMin to
// backoffMax. One that ran for backoffReset counts as healthy again.
const (
	backoffMin   = 100 * time.Millisecond
	backoffMax   = 10 * time.Second
	backoffReset = 30 * time.Second
)

// supervisor keeps one program running.
type supervisor struct {
	program *program
	log     *slog.Logger

	mu       sync.Mutex
	proc     *process // the running one or the last one
	restarts int
}

func (s *supervisor) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

func (s *supervisor) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return status(s.program, s.proc, s.restarts)
}

func status(p *program, x *process, restarts int) Status {
	st := Status{Name: p.name, Restarts: restarts, Log: p.log}
	if x == nil {
		return st
	}
	if x.alive() {
		st.PID, st.Since, st.Adopted = x.pid, x.started, x.adopted
	}
	return st
}

// run starts the program again whenever it ends, until ctx does.
func (s *supervisor) run(ctx context.Context) {
	var pause time.Duration
	var last *process
	for {
		x := s.current()
		select {
		case <-ctx.Done():
			return
		case <-x.exited:
		}
		if x != last && time.Since(x.started) >= backoffReset {
			pause = 0
		}
		last = x // the same again if it could not be started
		s.log.Error("program died, starting it again", "program", s.program.name, "how", x.how, "pause", pause, "log", s.program.log)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = nextPause(pause)

		x, err := s.program.start()
		if err != nil {
			// The executable may be in the middle of an upgrade: the old process, which has ended, leads here again.
			s.log.Error("cannot start program", "program", s.program.name, "err", err)
			continue
		}
		s.mu.Lock()
		s.proc = x
		s.restarts++
		s.mu.Unlock()
		wait, cancel := context.WithTimeout(ctx, startTimeout)
		err = x.answers(wait)
		cancel()
		switch {
		case err == nil:
			s.log.Info("program runs again", "program", s.program.name, "pid", x.pid)
		case ctx.Err() != nil:
			return
		default:
			s.log.Error("program does not come up", "program", s.program.name, "err", err)
			if err := x.stop(ctx, stopGrace); err != nil {
				s.log.Error("cannot stop program", "program", s.program.name, "err", err)
			}
		}
	}
}

// nextPause follows pause.
func nextPause(pause time.Duration) time.Duration {
	return min(max(backoffMin, 2*pause), backoffMax)
}
