package session

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"berth/internal/unixsock"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/launch"
)

// demandTimeout is how long a component that is called for may take, from the call to its readiness, beyond its own time-out.
const demandTimeout = 10 * time.Second

// superviseOnDemand runs component c whenever somebody calls for it, until the session ends. adopted > 0 is the process of a
// container that was running before this daemon.
func (s *session) superviseOnDemand(c *component, adopted int) {
	ctx := s.ctx
	for ctx.Err() == nil {
		var code int
		var cause error
		if adopted > 0 {
			pid := adopted
			adopted = 0
			s.noteComponent(c, compReady, func() { c.pid = pid })
			code, cause = s.waitExit(ctx, c, pid)
		} else {
			s.noteComponent(c, compIdle, func() { c.pid = 0 })
			select {
			case <-c.wanted:
			case <-ctx.Done():
				return
			}
			if cause = s.ensureCreated(ctx, c); cause == nil {
				_, _, code, cause = s.runOnce(ctx, c)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if cause == nil && code != 0 {
			cause = fmt.Errorf("exited with %s", exitText(code))
		}
		why := ""
		if cause != nil {
			why = cause.Error()
		}
		s.m.opt.Log.Info("component ended", "session", s.name, "component", c.Name, "exit_code", code, "error", cause)
		s.m.publish(s, "component.exited", c.Name, why)
		s.note(func() {
			c.err = cause
			c.runs++
			if cause != nil {
				c.restarts++
			}
		})
	}
}

// ensureCreated makes the container of a component that is started on demand, at its first start: most are never called for.
func (s *session) ensureCreated(ctx context.Context, c *component) error {
	select {
	case <-c.created:
		return nil
	default:
	}
	if err := s.create(ctx, c); err != nil {
		return err
	}
	close(c.created)
	return nil
}

// demand starts the component called name, one that is started on demand, and returns when it is ready.
func (s *session) demand(ctx context.Context, name string) error {
	c := s.comps[name]
	if c == nil || !c.OnDemand {
		var names []string
		for _, pc := range s.rec.Plan.Components {
			if pc.OnDemand {
				names = append(names, pc.Name)
			}
		}
		return fmt.Errorf("session %q: component %q: %w among those that are started on demand: %q", s.name, name, orchestrator.ErrNotFound, names)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout+demandTimeout)
	defer cancel()
	s.mu.Lock()
	before := c.runs
	s.mu.Unlock()
	for {
		s.mu.Lock()
		changed, state, runs, err := s.changed, c.state, c.runs, c.err
		s.mu.Unlock()
		switch {
		case state == compIdle && runs != before && err != nil:
			return fmt.Errorf("component %q: %w", name, err)
		case state == compIdle:
			before = runs
			select {
			case c.wanted <- struct{}{}:
			default: // somebody else has asked
			}
		case state == compReady:
			// It may be about to end, for want of work; then this is heard of soon.
			if ok, err := s.answers(ctx, c); ok || err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return fmt.Errorf("session %q: %w: it ends", s.name, orchestrator.ErrState)
		case <-ctx.Done():
			return fmt.Errorf("component %q: %s: %w", name, state, ctx.Err())
		}
	}
}

// answers tells whether somebody listens on the socket of a component that runs programs.
func (s *session) answers(ctx context.Context, c *component) (bool, error) {
	conn, err := unixsock.Connect(ctx, s.wires.runtime(), launch.Socket("", c.Name))
	if err == nil {
		return true, conn.Close()
	}
	if errors.Is(err, unixsock.ErrNotSocket) {
		return false, err
	}
	s.m.opt.Log.Debug("component does not answer", "session", s.name, "component", c.Name, "error", err)
	return false, nil
}

// listen hears calls for components until the session ends, if it has any that are started on demand.
func (s *session) listen() error {
	if !slices.ContainsFunc(s.rec.Plan.Components, func(c profiles.Component) bool { return c.OnDemand }) {
		return nil
	}
	d, err := launch.Listen(filepath.Join(s.wires.berth(), filepath.Base(launch.DemandSocket)), s.rec.User.UID, s.demand, s.m.opt.Log)
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		<-s.ctx.Done()
		if err := d.Close(); err != nil {
			s.m.opt.Log.Warn("launch socket", "session", s.name, "error", err)
		}
	})
	return nil
}
