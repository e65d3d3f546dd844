package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/internal/atomicfile"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
	"berth/session/look"
)

// layLook writes the files of a plan's look; without any there is no directory.
func (w wires) layLook(p *profiles.Plan) error {
	for name, text := range look.Files(p) {
		path := filepath.Join(w.look(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("look: %w", err)
		}
		// Programs read them at any time: never half of one.
		if err := atomicfile.Write(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("look: %w", err)
		}
	}
	return nil
}

// dressDisplay gives a display server that has just started the keyboard and the resources of the plan.
func (s *session) dressDisplay(ctx context.Context, p *profiles.Plan) error {
	if err := s.setKeyboard(ctx, p); err != nil {
		return err
	}
	return s.setResources(ctx, p)
}

func (s *session) setResources(ctx context.Context, p *profiles.Plan) error {
	values := map[string]string{}
	for _, r := range look.Resources(p) {
		values[r.Name] = r.Value
	}
	if len(values) == 0 {
		return nil
	}
	return s.m.opt.Screen.SetResources(ctx, s.wires.xsocket(), s.wires.xauthority(), values)
}

// setKeyboard has the display server's image set the plan's layouts. A layout that XKB does not know is ErrInvalid.
func (s *session) setKeyboard(ctx context.Context, p *profiles.Plan) error {
	k, display := look.KeyboardOf(p), p.Owner("display")
	if k == nil || display == "" {
		return nil
	}
	code, out, err := s.execIn(ctx, display, k.Command())
	if err != nil {
		return fmt.Errorf("keyboard: %w", err)
	}
	if code != 0 {
		return fmt.Errorf("keyboard %s: %w: the X server does not take it: %s", quoted(p.Locale.Keyboard), orchestrator.ErrInvalid, strings.TrimSpace(out))
	}
	return nil
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

// execIn runs a command in a component as a client of the display and the session bus, which not every component is.
func (s *session) execIn(ctx context.Context, component string, argv []string) (code int, output string, err error) {
	var out cappedBuffer
	env := []string{"DISPLAY=:0", "DBUS_SESSION_BUS_ADDRESS=unix:path=" + specInput{id: s.rec.User}.runtimeDir() + "/bus"}
	code, err = s.m.opt.Engine.Exec(ctx, s.id, component, orchestrator.ExecSpec{Command: argv, Env: env, Stdout: &out, Stderr: &out})
	return code, out.String(), err
}

// setTimeout bounds `berth set`: what it asks are programs of the session's user.
const setTimeout = 30 * time.Second

// Set implements api.Manager.
func (m *Manager) Set(ctx context.Context, c api.Caller, name string, req api.SetRequest) error {
	s, err := m.find(c, name)
	if err != nil {
		return err
	}
	s.setMu.Lock()
	defer s.setMu.Unlock()
	if st := s.state(); st != api.StateRunning && st != api.StateDegraded {
		return fmt.Errorf("session %q: %w: it is %s", name, orchestrator.ErrState, st)
	}
	s.mu.Lock()
	old := s.rec.Plan
	s.mu.Unlock()
	plan, err := profiles.Change(&old, req.Set...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, setTimeout)
	defer cancel()
	if err := s.change(ctx, &old, plan); err != nil {
		return fmt.Errorf("session %q: %w", name, err)
	}
	return nil
}

// change brings a session from one plan to another that differs in its look and keyboard only. What can be refused comes
// first: a keyboard that does not exist changes nothing. Then what a component that is restarted finds, then the record,
// then the programs that run.
func (s *session) change(ctx context.Context, old, plan *profiles.Plan) error {
	keys := profiles.Changed(old, plan)
	changes := look.Changes(plan, keys)
	if looks := slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, "look.") }); looks && len(changes.Scripts)+len(changes.Writers) == 0 {
		return fmt.Errorf("%w: nothing in it can change its look while it runs; a session that is started with a look can, such as: berth up %s --set look.dark=true",
			orchestrator.ErrState, plan.Profile)
	}
	if slices.Contains(keys, "locale.keyboard") {
		if err := s.setKeyboard(ctx, plan); err != nil {
			return err
		}
	}
	if err := s.wires.layLook(plan); err != nil {
		return err
	}
	s.mu.Lock()
	s.rec.Plan.Look, s.rec.Plan.Locale.Keyboard = plan.Look, plan.Locale.Keyboard
	s.mu.Unlock()
	if err := s.save(ctx); err != nil {
		return err
	}
	errs := []error{s.setResources(ctx, plan)}
	for _, c := range changes.Scripts {
		code, out, err := s.execIn(ctx, c.Component, []string{"sh", "-c", c.Text})
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("component %q: %w", c.Component, err))
		case code != 0:
			errs = append(errs, fmt.Errorf("component %q: not all of its look could be changed: %s", c.Component, strings.TrimSpace(out)))
		case out != "":
			s.m.opt.Log.Info("look", "session", s.name, "component", c.Component, "output", strings.TrimSpace(out))
		}
	}
	for _, name := range changes.Writers {
		if err := s.runAgain(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("component %q: %w", name, err))
		}
	}
	if len(changes.Messages) > 0 {
		errs = append(errs, s.m.opt.Tell(ctx, s.wires.runtime(), changes.Messages))
	}
	return errors.Join(errs...)
}

// runAgain runs a component that has ended and is never restarted once more, and waits for its end. Its supervisor is gone.
func (s *session) runAgain(ctx context.Context, name string) error {
	c := s.comps[name]
	s.mu.Lock()
	over := c.state == compExited || c.state == compFailed
	s.mu.Unlock()
	if !over {
		return nil // it has not run yet, and will find the new files
	}
	for len(c.exits) > 0 {
		<-c.exits // of earlier runs
	}
	pid, err := s.m.opt.Engine.StartContainer(ctx, s.id, name)
	if err != nil {
		return err
	}
	code, err := s.waitExit(ctx, c, pid)
	if err == nil && code != 0 {
		err = fmt.Errorf("exited with %s", exitText(code))
	}
	return err
}
