package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/internal/rmtree"
	"berth/orchestrator"
	"berth/session/api"
)

// supervise runs component c until the session ends or the component has ended for good. adopted > 0 is the process of
// a container that was running before this daemon: it counts as ready.
func (s *session) supervise(c *component, adopted int) {
	if c.OnDemand {
		s.superviseOnDemand(c, adopted)
		return
	}
	ctx := s.ctx
	attempts := 0
	for ctx.Err() == nil {
		started := time.Now()
		pid, ready := adopted, adopted > 0
		adopted = 0
		var code int
		var cause error
		if ready {
			s.noteComponent(c, compReady, func() { c.pid = pid })
			code, cause = s.waitExit(ctx, c, pid)
		} else {
			pid, ready, code, cause = s.runOnce(ctx, c)
		}
		if ctx.Err() != nil {
			return
		}
		ran := time.Since(started)
		if ready && ran >= healthyAfter {
			attempts = 0
		}
		attempts++
		s.mu.Lock()
		starting := s.starting
		s.mu.Unlock()
		f := exitFacts{code: code, wasReady: ready, attempts: attempts, starting: starting,
			isSession: c.EndsSession || c.Name == s.rec.Plan.Session && s.displayAlive(ctx)}
		act, pause := decide(c.Component, f)
		// What no new try can change: the command or image is not there, or what all wait for hangs in its start.
		if errors.Is(cause, orchestrator.ErrNotFound) || errors.Is(cause, orchestrator.ErrInvalid) ||
			(starting && !c.Optional && errors.Is(cause, errNotReady)) {
			act = actFail
		}
		err := cause
		if err == nil {
			err = fmt.Errorf("exited with %s", exitText(code))
		}
		s.m.opt.Log.Info("component ended", "session", s.name, "component", c.Name, "exit_code", code, "ran", ran.Round(time.Millisecond),
			"action", string(act), "pause", pause, "error", cause)
		s.m.publish(s, "component.exited", c.Name, err.Error())
		switch act {
		case actLogout:
			s.noteComponent(c, compExited, func() { c.pid = 0 })
			go s.end(context.Background(), "the user logged out")
			return
		case actDone:
			s.noteComponent(c, compExited, func() { c.pid = 0 })
			return
		case actFail:
			s.noteComponent(c, compFailed, func() {
				c.pid, c.err = 0, err
				if s.starting && !c.Optional && s.startErr == nil {
					s.startErr = s.startFailure(c, err)
				}
			})
			return
		}
		s.noteComponent(c, compBackoff, func() { c.pid, c.err = 0, err; c.restarts++ })
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

var errNotReady = errors.New("not ready")

// runOnce waits for what c comes after, starts it, waits until it is ready and then until it exits.
func (s *session) runOnce(ctx context.Context, c *component) (pid int, ready bool, code int, err error) {
	s.noteComponent(c, compWaiting, nil)
	endWait := s.tracer.begin(c.Name, "wait")
	last, err := s.await(ctx, c.After)
	if err != nil {
		return 0, false, -1, err
	}
	endWait(last)
	select {
	case <-c.created: // the step "create" shows how long that took
	case <-ctx.Done():
		return 0, false, 0, ctx.Err()
	}
	s.noteComponent(c, compStarting, nil)
	for len(c.exits) > 0 {
		<-c.exits // of earlier runs
	}
	endStart := s.tracer.begin(c.Name, "start")
	pid, err = s.m.opt.Engine.StartContainer(ctx, s.id, c.Name)
	endStart("")
	if err != nil {
		return 0, false, -1, err
	}
	s.note(func() { c.pid = pid })

	// The probes run beside the wait for an exit: what dies at once is not waited for.
	exited := make(chan int, 1)
	probeCtx, stopProbe := context.WithTimeout(ctx, c.Timeout)
	defer stopProbe()
	watchCtx, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	go func() {
		if code, err := s.waitExit(watchCtx, c, pid); err == nil {
			exited <- code
		}
	}()
	probed := make(chan error, 1)
	go func() { probed <- s.probe(probeCtx, c) }()
	select {
	case code = <-exited:
		if wantsExit(c) {
			return pid, true, code, nil
		}
		return pid, false, code, nil
	case err := <-probed:
		if ctx.Err() != nil {
			return pid, false, 0, ctx.Err()
		}
		if err != nil {
			// It may have died in the same moment; then that is the news.
			select {
			case code = <-exited:
				return pid, false, code, nil
			default:
			}
			if kerr := s.m.opt.Engine.StopContainer(ctx, s.id, c.Name, stopGrace(c)); kerr != nil {
				err = errors.Join(err, kerr)
			}
			return pid, false, -1, fmt.Errorf("%w within %v: %w", errNotReady, c.Timeout, err)
		}
	}
	s.noteComponent(c, compReady, func() {
		c.err = nil
		c.since = time.Now()
		if s.starting && c.restarts > 0 {
			time.AfterFunc(provenAfter, func() { s.note(func() {}) }) // the start looks again
		}
		if c.ready == 0 && s.starting && !c.OnDemand {
			c.ready = time.Since(s.rec.Created)
		}
	})
	select {
	case code = <-exited:
		return pid, true, code, nil
	case <-ctx.Done():
		return pid, true, 0, ctx.Err()
	}
}

func wantsExit(c *component) bool {
	for _, p := range c.Ready {
		if p.Kind == "exit" {
			return true
		}
	}
	return false
}

// probe waits until all of c's probes hold.
func (s *session) probe(ctx context.Context, c *component) error {
	if wantsExit(c) {
		<-ctx.Done()
		return fmt.Errorf("waited for its exit: %w", ctx.Err())
	}
	if len(c.Ready) == 0 {
		return nil
	}
	p := s.m.opt.Probe(Target{XSocket: s.wires.xsocket(), XAuthority: s.wires.xauthority(),
		RuntimeDir: s.wires.runtime(), TmpDir: s.wires.tmp(), RuntimeInside: specInput{id: s.rec.User}.runtimeDir(),
		UID: s.rec.User.UID, GID: s.rec.User.GID,
		Exec: func(ctx context.Context, argv []string) (int, string, error) {
			var out cappedBuffer
			code, err := s.m.opt.Engine.Exec(ctx, s.id, c.Name, orchestrator.ExecSpec{Command: argv, Stdout: &out, Stderr: &out})
			return code, out.String(), err
		}})
	defer p.Close()
	expand := specInput{session: s.name, id: s.rec.User, plan: &s.rec.Plan}.expander()
	for _, want := range c.Ready {
		want.Arg = expand(want.Arg)
		end := s.tracer.begin(c.Name, "probe")
		if err := p.Wait(ctx, want); err != nil {
			return err
		}
		// A display that was asked for in one size starts as large as it can get, so that it can be resized later; its
		// clients must see the right size from the first.
		if want.Kind == "x11" && c.Name == s.rec.Plan.Owner("display") {
			s.mu.Lock()
			w, h := s.width, s.height
			s.mu.Unlock()
			if err := s.m.opt.Screen.Resize(ctx, s.wires.xsocket(), s.wires.xauthority(), w, h, s.rec.Plan.Display.DPI); err != nil {
				return fmt.Errorf("size %dx%d: %w", w, h, err)
			}
			s.mu.Lock()
			plan := s.rec.Plan
			s.mu.Unlock()
			if err := s.dressDisplay(ctx, &plan); err != nil {
				return err
			}
		}
		end(want.String())
	}
	return nil
}

// waitExit waits for the exit of process pid of c.
func (s *session) waitExit(ctx context.Context, c *component, pid int) (code int, err error) {
	for {
		select {
		case e := <-c.exits:
			if e.PID == pid || e.PID == 0 {
				return e.ExitCode, nil
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// displayAlive tells whether the display server runs, or there is none: a session component that ends because its
// display did has not logged out.
func (s *session) displayAlive(ctx context.Context) bool {
	name := s.rec.Plan.Owner("display")
	if name == "" {
		return true
	}
	st, err := s.m.opt.Engine.Container(ctx, s.id, name)
	return err == nil && st.State == orchestrator.StateRunning
}

func (s *session) noteComponent(c *component, state string, change func()) {
	s.note(func() {
		c.state = state
		if change != nil {
			change()
		}
	})
	switch state {
	case compReady, compStarting, compBackoff, compFailed:
		s.m.publish(s, "component."+state, c.Name, "")
	}
}

// startFailure words why the start failed, with the end of the component's log.
func (s *session) startFailure(c *component, cause error) error {
	return &startError{session: s.name, component: c.Name, cause: cause}
}

type startError struct {
	session, component string
	cause              error
	log                string
}

func (e *startError) Error() string {
	msg := fmt.Sprintf("component %q: %v", e.component, e.cause)
	if e.log != "" {
		msg += "\nlast lines of its log:\n" + indent(e.log)
	}
	return msg
}

func (e *startError) Unwrap() error { return e.cause }

func exitText(code int) string {
	if code > 128 && code < 128+65 {
		return fmt.Sprintf("code %d (signal %d)", code, code-128)
	}
	return fmt.Sprintf("code %d", code)
}

const defaultGrace = 3 * time.Second

func stopGrace(c *component) time.Duration {
	if c.Stop > 0 {
		return c.Stop
	}
	return defaultGrace
}

// end takes the session down and returns when nothing of it is left. All callers share one takedown, which goes on when
// a caller's context ends. After one that failed the session stays, as failed, and end tries again.
func (s *session) end(ctx context.Context, why string) error {
	s.mu.Lock()
	t := s.ending
	begin := t == nil
	if begin {
		t = &takedown{done: make(chan struct{})}
		s.ending, s.endErr = t, nil
	}
	s.mu.Unlock()
	if begin {
		s.note(func() {})
		s.m.publish(s, "session.stopping", "", why)
		go func() {
			defer close(t.done)
			if t.err = s.takedown(context.WithoutCancel(ctx)); t.err != nil {
				s.m.opt.Log.Error("session takedown", "session", s.name, "error", t.err)
				s.note(func() { s.ending, s.endErr = nil, t.err })
				return
			}
			s.m.release(s)
			s.m.publish(s, "session.stopped", "", why)
		}()
	}
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takedown stops dependents before what they depend on, then removes everything, whatever state it is in.
func (s *session) takedown(ctx context.Context) error {
	s.cancel()
	<-s.upDone
	s.wg.Wait()
	s.m.opt.Gateway.Detach(s.remote())
	stopped := map[string]chan struct{}{}
	for n := range s.comps {
		stopped[n] = make(chan struct{})
	}
	for _, c := range s.comps {
		go func() {
			defer close(stopped[c.Name])
			for _, o := range s.comps {
				for _, a := range o.After {
					if a == c.Name {
						<-stopped[o.Name]
					}
				}
			}
			if err := s.m.opt.Engine.StopContainer(ctx, s.id, c.Name, stopGrace(c)); err != nil && !errors.Is(err, orchestrator.ErrNotFound) {
				s.m.opt.Log.Warn("component stop", "session", s.name, "component", c.Name, "error", err) // RemovePod kills it
			}
		}()
	}
	for _, ch := range stopped {
		<-ch
	}
	return s.remove(ctx)
}

// remove takes away the pod and the files.
func (s *session) remove(ctx context.Context) error {
	var errs []error
	if err := s.m.opt.Engine.RemovePod(ctx, s.id); err != nil {
		errs = append(errs, err)
	}
	if err := s.wires.remove(); err != nil {
		errs = append(errs, err)
	}
	if s.rec.Plan.Home.Kind == "ephemeral" {
		if err := rmtree.Remove(s.ephemeralHome()); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// finishStart marks the session as up.
func (s *session) finishStart(ctx context.Context) error {
	took := s.tracer.done()
	s.mu.Lock()
	s.rec.ReadyMS = max(took.Milliseconds(), 1)
	s.rec.Spans = s.tracer.document(s.name).Spans
	s.mu.Unlock()
	if err := s.save(ctx); err != nil {
		return err
	}
	s.note(func() { s.starting = false })
	return nil
}

var _ api.Manager = (*Manager)(nil)
