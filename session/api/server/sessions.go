package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
	"berth/session/api/execstream"
)

// whole makes the lists of a session lists in JSON even if they are nil.
func whole(s api.Session) api.Session {
	if s.Components == nil {
		s.Components = []api.Component{}
	}
	for i, c := range s.Components {
		if c.Roles == nil {
			s.Components[i].Roles = []string{}
		}
	}
	return s
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	sessions, err := s.Manager.Sessions(r.Context(), c)
	if err != nil {
		return err
	}
	out := make([]api.Session, 0, len(sessions))
	for _, one := range sessions {
		out = append(out, whole(one))
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) show(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	one, err := s.Manager.Session(r.Context(), c, r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, whole(one))
}

// upRequest reads what both an up and a plan are asked with.
func upRequest(w http.ResponseWriter, r *http.Request, c api.Caller) (api.UpRequest, error) {
	var req api.UpRequest
	if err := readJSON(w, r, maxUpBody, &req); err != nil {
		return req, err
	}
	switch {
	case req.Profile == "":
		return req, fmt.Errorf("profile: %w: must be named", orchestrator.ErrInvalid)
	case len(req.Source) > MaxSource:
		return req, fmt.Errorf("profile %q: %w: %d bytes, at most %d are read", req.Profile, orchestrator.ErrInvalid, len(req.Source), MaxSource)
	case req.VNCPort < 0 || req.VNCPort > 65535:
		return req, fmt.Errorf("vnc port %d: %w: must be 0 to 65535", req.VNCPort, orchestrator.ErrInvalid)
	case req.User != "" && req.User != c.Name && !c.Root():
		return req, api.WithHint(fmt.Errorf("user %q: %w to start sessions of others", c.Name, api.ErrForbidden), "run the command as root")
	}
	return req, nil
}

func (s *Server) up(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	req, err := upRequest(w, r, c)
	if err != nil {
		return err
	}
	out := newLines(w)
	started, err := s.Manager.Up(r.Context(), c, req, func(e api.UpEvent) {
		e.Session, e.Error = nil, nil // these end the stream
		out.progress(e)
	})
	started = whole(started)
	return out.finish(api.UpEvent{Session: &started}, func(e *api.Error) any { return api.UpEvent{Error: e} }, err)
}

func (s *Server) plan(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	req, err := upRequest(w, r, c)
	if err != nil {
		return err
	}
	plan, err := s.Manager.Plan(r.Context(), c, req)
	if err != nil {
		return err
	}
	if plan.Components == nil {
		plan.Components = []profiles.Component{}
	}
	for i, comp := range plan.Components {
		if comp.Command == nil {
			plan.Components[i].Command = []string{}
		}
	}
	for i, app := range plan.Apps {
		if app.Export == nil {
			plan.Apps[i].Export = []string{}
		}
	}
	return writeJSON(w, http.StatusOK, plan)
}

func (s *Server) guess(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	var req api.GuessRequest
	if err := readJSON(w, r, maxBody, &req); err != nil {
		return err
	}
	if req.Image == "" {
		return fmt.Errorf("image: %w: must be named", orchestrator.ErrInvalid)
	}
	out := newLines(w)
	g, err := s.Manager.Guess(r.Context(), c, req, func(e api.UpEvent) {
		out.progress(api.GuessEvent{Message: e.Message, Build: e.Build})
	})
	if g.Others == nil {
		g.Others = []api.GuessedSession{}
	}
	for _, one := range append([]*api.GuessedSession{&g.Session}, pointers(g.Others)...) {
		if one.Command == nil {
			one.Command = []string{}
		}
	}
	return out.finish(api.GuessEvent{Guess: &g}, func(e *api.Error) any { return api.GuessEvent{Error: e} }, err)
}

func pointers[T any](list []T) []*T {
	out := make([]*T, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	if err := s.Manager.Stop(r.Context(), c, r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	force, err := flag(r, "force")
	if err != nil {
		return err
	}
	home, err := flag(r, "home")
	if err != nil {
		return err
	}
	if err := s.Manager.Remove(r.Context(), c, r.PathValue("name"), force, home); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// flag reads a boolean of the query; absent means false.
func flag(r *http.Request, name string) (bool, error) {
	switch v := r.URL.Query().Get(name); v {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, fmt.Errorf("query %s=%q: %w: must be true or false", name, v, orchestrator.ErrInvalid)
	}
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	q := r.URL.Query()
	tail := -1
	if v := q.Get("tail"); v != "" {
		var err error
		if tail, err = strconv.Atoi(v); err != nil {
			return fmt.Errorf("query tail=%q: %w: must be a number of lines", v, orchestrator.ErrInvalid)
		}
	}
	follow, err := flag(r, "follow")
	if err != nil {
		return err
	}
	log, err := s.Manager.Logs(r.Context(), c, r.PathValue("name"), q.Get("component"), tail, follow)
	if err != nil {
		return err
	}
	defer log.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	return copyFlush(w, log)
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	if r.Header.Get("Upgrade") != execstream.Protocol || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
		return fmt.Errorf("exec: %w: the request must ask for an upgrade to %q", orchestrator.ErrInvalid, execstream.Protocol)
	}
	var req api.ExecRequest
	if err := readJSON(w, r, maxUpBody, &req); err != nil {
		return err
	}
	switch {
	case req.Component == "":
		return fmt.Errorf("component: %w: must be named", orchestrator.ErrInvalid)
	case len(req.Command) == 0:
		return fmt.Errorf("command: %w: must not be empty", orchestrator.ErrInvalid)
	case req.Root && !c.Root():
		return api.WithHint(fmt.Errorf("user %q: %w to be root in a component", c.Name, api.ErrForbidden), "run the command as root")
	}
	name := r.PathValue("name")
	one, err := s.Manager.Session(r.Context(), c, name)
	if err != nil {
		return err
	}
	known := make([]string, 0, len(one.Components))
	for _, comp := range one.Components {
		known = append(known, comp.Name)
	}
	if !slices.Contains(known, req.Component) {
		return api.WithHint(fmt.Errorf("session %q: component %q: %w", name, req.Component, orchestrator.ErrNotFound),
			"its components: "+strings.Join(known, ", "))
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", execstream.Protocol); err != nil {
		return err
	}
	err = execstream.Serve(r.Context(), conn, buf.Reader, req, func(ctx context.Context, spec orchestrator.ExecSpec) (int, error) {
		return s.Manager.Exec(ctx, c, name, req.Component, spec)
	})
	if err != nil {
		s.Log.Debug("exec", "session", name, "component", req.Component, "error", err)
	}
	return nil
}

func (s *Server) shot(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	png, err := s.Manager.Shot(r.Context(), c, r.PathValue("name"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "image/png")
	w.Header().Set("Cache-Control", "no-store")
	_, err = w.Write(png)
	return err
}

func (s *Server) resize(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	var req api.ResizeRequest
	if err := readJSON(w, r, maxBody, &req); err != nil {
		return err
	}
	if err := profiles.CheckSize(req.Width, req.Height); err != nil {
		return fmt.Errorf("%w: %w", orchestrator.ErrInvalid, err)
	}
	size, err := s.Manager.Resize(r.Context(), c, r.PathValue("name"), req)
	if err != nil {
		return err
	}
	if req.Nearest {
		return writeJSON(w, http.StatusOK, size)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) set(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	var req api.SetRequest
	if err := readJSON(w, r, maxBody, &req); err != nil {
		return err
	}
	if err := s.Manager.Set(r.Context(), c, r.PathValue("name"), req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) trace(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	trace, err := s.Manager.Trace(r.Context(), c, r.PathValue("name"))
	if err != nil {
		return err
	}
	if trace.Spans == nil {
		trace.Spans = []api.Span{}
	}
	return writeJSON(w, http.StatusOK, trace)
}

// events serves the HTML standard's event streams. Events are not kept: a client that comes back with Last-Event-ID
// is told so by a comment and gets what happens from then on.
func (s *Server) events(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	events, err := s.Manager.Events(r.Context(), c)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	hello := ": listening\n\n"
	if r.Header.Get("Last-Event-ID") != "" {
		hello = ": listening; earlier events are not kept\n\n"
	}
	rc := http.NewResponseController(w)
	send := func(text string) error {
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
		return rc.Flush()
	}
	if err := send(hello); err != nil {
		return err
	}
	tick := time.NewTicker(s.KeepAlive)
	defer tick.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				if r.Context().Err() != nil {
					return nil
				}
				return errors.New("event source ended")
			}
			doc, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if err := send(fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", s.lastEvent.Add(1), e.Type, doc)); err != nil {
				return err
			}
		case <-tick.C:
			if err := send(": keep-alive\n\n"); err != nil {
				return err
			}
		}
	}
}
