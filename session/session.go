package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
)

// record is what a session's pod carries as its data: all that a new daemon needs to go on with it.
type record struct {
	Version   int               `json:"version"`
	Name      string            `json:"name"`
	Owner     int               `json:"owner"` // uid of who asked for it
	OwnerName string            `json:"owner_name"`
	User      Identity          `json:"user"`
	Plan      profiles.Plan     `json:"plan"`
	Images    map[string]string `json:"images"` // as the plan names them -> full reference
	Exports   []export          `json:"exports,omitempty"`
	// Off has the directories, below the wires, that switch autostart entries off, by the image as the plan names it.
	Off      map[string]string `json:"off,omitempty"`
	Home     string            `json:"home"` // on the host
	Volume   string            `json:"volume,omitempty"`
	Password string            `json:"password"`
	Token    string            `json:"token"`
	VNCPort  int               `json:"vnc_port,omitempty"`
	Exact    bool              `json:"exact,omitempty"`
	Created  time.Time         `json:"created"`
	ReadyMS  int64             `json:"ready_ms,omitempty"` // 0: the start was not finished
	Spans    []api.Span        `json:"spans,omitempty"`
}

const recordVersion = 1

// export is what an image shows to components of other images.
type export struct {
	Image     string `json:"image"`     // as the plan names it
	Component string `json:"component"` // where its programs run
	Dir       string `json:"dir"`       // on the host
}

// session is one running session.
type session struct {
	m      *Manager
	name   string
	id     string // the pod's
	wires  wires
	tracer *tracer
	// What the start adds to rec (images, home, port, time) and what Set changes (the plan's look and keyboard) mu guards; the
	// rest does not change.
	rec record
	// setMu lets one Set at a time through.
	setMu sync.Mutex

	ctx    context.Context // of supervision
	cancel context.CancelFunc
	wg     sync.WaitGroup // supervisors
	upDone chan struct{}  // closed when Up has stopped making things

	mu            sync.Mutex // guards all below
	changed       chan struct{}
	starting      bool
	ending        *takedown // under way; nil before the first, and after one that failed
	endErr        error     // of the last takedown, which failed: something is left
	startErr      error     // why the start failed
	vnc, web      string
	width, height int
	ip            string
	comps         map[string]*component
	lastState     string
}

// takedown is one try to end a session.
type takedown struct {
	done chan struct{} // closed when it is over
	err  error         // valid after done
}

// component is one container of a session; session.mu guards its mutable fields.
type component struct {
	profiles.Component
	ref     string                  // full image reference
	exits   chan orchestrator.Event // from dispatch to supervise
	created chan struct{}           // closed when the container is there
	wanted  chan struct{}           // somebody calls for it, if it is started on demand

	state    string
	pid      int
	since    time.Time // when it became ready last
	restarts int
	runs     int // of one that is started on demand: how many have ended
	ready    time.Duration
	err      error
	cpu      time.Duration // at the last look
	looked   time.Time
}

// Component states, as the API shows them.
const (
	compWaiting  = "waiting"
	compStarting = "starting"
	compReady    = "ready"
	compBackoff  = "backoff"
	compFailed   = "failed"
	compExited   = "exited"
	compIdle     = "idle" // on demand, and nobody has called for it
)

func newSession(m *Manager, rec record, id string) *session {
	s := &session{m: m, rec: rec, id: id, name: rec.Name, upDone: make(chan struct{}), changed: make(chan struct{}),
		starting: true, comps: map[string]*component{}, width: rec.Plan.Display.Width, height: rec.Plan.Display.Height,
		tracer: newTracer(rec.Created), lastState: api.StateStarting}
	s.ctx, s.cancel = context.WithCancel(m.ctx)
	s.wires = wires{m.opt.Layout.Session(s.name)}
	for _, c := range rec.Plan.Components {
		s.comps[c.Name] = &component{Component: c, state: compWaiting, exits: make(chan orchestrator.Event, 64),
			created: make(chan struct{}), wanted: make(chan struct{}, 1), ref: rec.Images[c.Image], looked: rec.Created}
	}
	return s
}

func (s *session) visible(c api.Caller) bool { return c.Root() || s.rec.Owner == c.UID }

func (s *session) volume() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.Volume
}

func (s *session) noComponent(name string) error {
	var names []string
	for _, c := range s.rec.Plan.Components {
		names = append(names, c.Name)
	}
	return fmt.Errorf("session %q: component %q: %w; it has: %s", s.name, name, orchestrator.ErrNotFound, strings.Join(names, ", "))
}

// note changes the session's state under its lock, wakes who waits for a change, and publishes a new overall state.
func (s *session) note(change func()) {
	s.mu.Lock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
	now := s.stateLocked()
	was := s.lastState
	s.lastState = now
	s.mu.Unlock()
	if now != was && now != api.StateStopping {
		s.m.publish(s, "session."+now, "", "")
	}
}

func (s *session) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stateLocked()
}

func (s *session) stateLocked() string {
	switch {
	case s.endErr != nil:
		return api.StateFailed
	case s.ending != nil:
		return api.StateStopping
	case s.starting:
		return api.StateStarting
	}
	state := api.StateRunning
	for _, c := range s.comps {
		switch c.state {
		case compReady, compExited, compIdle:
		case compFailed:
			if !c.Optional {
				return api.StateFailed
			}
			state = api.StateDegraded
		default: // one on its way back after an exit is not there either
			if !c.OnDemand {
				state = api.StateDegraded
			}
		}
	}
	return state
}

// settled tells whether a start need not wait for c any longer; mu is held. An optional component is tried again, with
// what comes after it, while the session is up already.
func (s *session) settled(c *component) bool {
	switch c.state {
	case compReady:
		// Nothing but its being alive says that one without a probe is ready. One that has died before has to show it.
		return c.restarts == 0 || len(c.Ready) > 0 || c.Optional || time.Since(c.since) >= provenAfter
	case compExited, compIdle:
		return true
	case compFailed, compBackoff:
		return c.Optional
	case compWaiting:
		return c.Optional && slices.ContainsFunc(c.After, func(n string) bool {
			a := s.comps[n]
			return a != nil && a.state != compReady && a.state != compExited && s.settled(a)
		})
	}
	return false
}

// provenAfter is how long a component without a probe that has died during the start has to run until the start believes it.
const provenAfter = 2 * time.Second

// await returns when every component in names is ready (or has ended well), with the one that became so last. One that
// has failed for good is an error.
func (s *session) await(ctx context.Context, names []string) (last string, err error) {
	for {
		s.mu.Lock()
		changed := s.changed
		waiting, failed := "", ""
		for _, n := range names {
			c := s.comps[n]
			if c == nil || c.state == compReady || c.state == compExited {
				continue
			}
			waiting = n
			if c.state == compFailed {
				failed = n
			}
		}
		s.mu.Unlock()
		if failed != "" {
			return failed, fmt.Errorf("needs component %q, which has failed: %w", failed, orchestrator.ErrInvalid)
		}
		if waiting == "" {
			return last, nil
		}
		last = waiting
		select {
		case <-changed:
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}

// engineEvent receives the engine's events of this session's pod. It never blocks.
func (s *session) engineEvent(e orchestrator.Event) {
	if e.Type != orchestrator.EventExit {
		return
	}
	if e.Container == "" {
		s.mu.Lock()
		ending := s.ending != nil
		s.mu.Unlock()
		if ending {
			return
		}
		// The anchor holds the namespaces: without it there is no session.
		s.m.opt.Log.Error("session lost its anchor", "session", s.name, "exit_code", e.ExitCode)
		go s.end(context.Background(), "the session's anchor process ended")
		return
	}
	c := s.comps[e.Container]
	if c == nil {
		return
	}
	select {
	case c.exits <- e:
	default: // more exits than anybody looked at: the newest ones are of no more use than these
	}
}

// document describes the session, without usage.
func (s *session) document() api.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.rec.Plan
	d := api.Session{Name: s.name, ID: s.id, Profile: p.Profile, State: s.stateLocked(), User: s.rec.OwnerName, UID: s.rec.Owner,
		Created: s.rec.Created, ReadyMS: s.rec.ReadyMS,
		Display: api.Display{Server: p.Display.Server, Size: fmt.Sprintf("%dx%d", s.width, s.height), DPI: p.Display.DPI,
			Socket: s.wires.xsocket(), XAuthority: s.wires.xauthority()},
		Audio:  api.Audio{Server: p.Audio.Server},
		Bus:    api.Bus{Address: "unix:path=" + s.wires.bus()},
		Remote: api.Remote{VNC: s.vnc, Web: s.web, Password: s.rec.Password, Socket: s.wires.vnc()},
		Home:   s.rec.Home, IP: s.ip, Components: []api.Component{}}
	if p.Audio.Server != "none" {
		d.Audio.PulseSocket = s.wires.pulse()
	}
	if p.Audio.Server == "pipewire" {
		d.Audio.PipeWireSocket = s.wires.pipewire()
	}
	for _, pc := range p.Components {
		c := s.comps[pc.Name]
		ac := api.Component{Name: c.Name, Roles: slices.Clone(c.Provides), Image: c.Image, State: c.state, PID: c.pid,
			Restarts: c.restarts, ReadyMS: c.ready.Milliseconds()}
		if ac.Roles == nil {
			ac.Roles = []string{}
		}
		if c.err != nil {
			ac.Error = c.err.Error()
			if d.Error == "" && !c.OnDemand {
				d.Error = fmt.Sprintf("component %q: %v", c.Name, c.err)
			}
		}
		d.Components = append(d.Components, ac)
	}
	if s.endErr != nil {
		d.Error = fmt.Sprintf("ending it failed, try again: %v", s.endErr)
	}
	return d
}

// addUsage fills in CPU, memory and the network address. CPU is the share of one core since the last look.
func (s *session) addUsage(ctx context.Context, d *api.Session) {
	stats, err := s.m.opt.Engine.Stats(ctx, s.id)
	if err != nil {
		s.m.opt.Log.Warn("session usage", "session", s.name, "error", err)
		return
	}
	// The pod's network may come up after the pod.
	if pod, err := s.m.opt.Engine.Pod(ctx, s.id); err == nil {
		d.IP, d.NetworkError = pod.IP, pod.NetworkError
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range d.Components {
		c, st := s.comps[d.Components[i].Name], stats[d.Components[i].Name]
		if c == nil {
			continue
		}
		if dt := now.Sub(c.looked); dt > 0 && st.CPU >= c.cpu {
			d.Components[i].CPU = 100 * float64(st.CPU-c.cpu) / float64(dt)
		}
		c.cpu, c.looked = st.CPU, now
		d.Components[i].Memory = st.Memory
	}
}

// save stores the record with the pod.
func (s *session) save(ctx context.Context) error {
	s.mu.Lock()
	b, err := json.Marshal(s.rec)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.m.opt.Engine.SetPodData(ctx, s.id, b)
}

// logTail returns the last lines of a component's log, for error messages; "" if there are none.
func (s *session) logTail(ctx context.Context, name string, lines int) string {
	r, err := s.m.opt.Engine.Logs(ctx, s.id, name, lines, false)
	if err != nil {
		return ""
	}
	defer r.Close()
	b, _ := io.ReadAll(io.LimitReader(r, 16<<10)) // what could be read is shown; the message has its own cause
	return strings.TrimRight(string(b), "\n")
}

// allLogs merges the logs of all components, each line led by its component's name.
func (s *session) allLogs(ctx context.Context, tail int, follow bool) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	var open []io.ReadCloser
	var names []string
	width := 0
	for _, c := range s.rec.Plan.Components {
		r, err := s.m.opt.Engine.Logs(ctx, s.id, c.Name, tail, follow)
		if errors.Is(err, orchestrator.ErrNotFound) {
			continue
		}
		if err != nil {
			cancel()
			for _, o := range open {
				o.Close()
			}
			return nil, err
		}
		open, names, width = append(open, r), append(names, c.Name), max(width, len(c.Name))
	}
	return mergeLines(cancel, open, names, width, follow), nil
}

// ephemeralHome is where a home of kind "ephemeral" lies.
func (s *session) ephemeralHome() string {
	return filepath.Join(s.m.opt.Layout.State, "ephemeral", s.id)
}
