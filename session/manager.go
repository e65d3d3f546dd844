package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
	"berth/session/look"
)

// Labels on pods and containers.
const (
	labelKind      = "berth.kind"
	kindSession    = "session"
	labelSession   = "berth.session"
	labelComponent = "berth.component"
)

// Prober waits until a probe holds. Wait returns nil when it does, and when ctx ends an error that says what was
// waited for and what was seen last. exited tells of the component's own end, for the probe "exit".
type Prober interface {
	Wait(ctx context.Context, p profiles.Probe) error
	Close() error
}

// Target is what a Prober looks at: one session's wires on the host.
type Target struct {
	XSocket, XAuthority string
	RuntimeDir, TmpDir  string // on the host
	RuntimeInside       string // the runtime directory's path inside the containers
	UID, GID            int
	// Exec runs a command in the component being probed.
	Exec func(ctx context.Context, argv []string) (code int, output string, err error)
}

// Screen reads and changes a display.
type Screen interface {
	// Painted returns when every panel on the screen shows more than its background, or ctx ends.
	Painted(ctx context.Context, socket, xauthority string) error
	Shot(ctx context.Context, socket, xauthority string, maxWidth int) ([]byte, error)
	Resize(ctx context.Context, socket, xauthority string, width, height, dpi int) error
	// Fit is Resize to the nearest size that the display can have, which it returns.
	Fit(ctx context.Context, socket, xauthority string, width, height, dpi int) (w, h int, err error)
	Size(ctx context.Context, socket, xauthority string) (width, height int, err error)
	// SetResources sets X resources beside those that are there.
	SetResources(ctx context.Context, socket, xauthority string, values map[string]string) error
}

// Remote is what the gateway is told of a session.
type Remote struct {
	Name, ID, Profile, User string
	State                   string
	UID                     int // whom the VNC server runs as
	VNCSocket               string
	Password, Token         string
	Port                    int // asked for, or used before a restart of the daemon; 0 means any
	Exact                   bool
	Width, Height           int
	Created                 time.Time
}

// Gateway lets people in from outside.
type Gateway interface {
	// Attach starts to offer a session and returns its VNC address (host:port) and URL.
	Attach(ctx context.Context, r Remote) (vnc, web string, err error)
	// Detach ends it, with all connections. One that is not attached is not an error.
	Detach(r Remote)
}

// Exporter makes what an image shows to components of other images: applications that are started in the component
// app.Component, icons, MIME types and D-Bus services. Export returns a directory with the subdirectory share; it is the same
// for the same arguments and content, and stays as long as a session uses it.
type Exporter interface {
	Export(ctx context.Context, ref string, app profiles.App) (dir string, err error)
	// AutostartOff finds what the image ref, which a plan calls image, would start although the plan has it already.
	AutostartOff(ctx context.Context, ref, image string, p *profiles.Plan) ([]profiles.AutostartOff, error)
	// Complete adds to a plan what its images say, as far as they are there: claims, and autostart entries that are off.
	Complete(ctx context.Context, p *profiles.Plan) error
}

// Options of New. All fields but DefaultUser and Patience are required.
type Options struct {
	Engine  orchestrator.Engine
	Images  api.Images
	Layout  paths.Layout
	Exports Exporter
	// Plan resolves a profile as the caller sees it.
	Plan   func(ctx context.Context, c api.Caller, req api.UpRequest) (*profiles.Plan, error)
	Probe  func(Target) Prober
	Cookie func() (file []byte, err error) // a new Xauthority file
	// Tell sends messages over the session bus in a runtime directory on the host.
	Tell    func(ctx context.Context, runtimeDir string, messages []look.Message) error
	Screen  Screen
	Gateway Gateway
	Log     *slog.Logger
	// DefaultUser is the host user of root's sessions; "" means one that the host does not have, called "user" in its
	// containers.
	DefaultUser string
	// Patience is what every component gets at least until it is ready; 0 means what its plan says.
	Patience time.Duration
}

// Manager owns the sessions of one daemon. It implements api.Manager and is safe for concurrent use.
type Manager struct {
	opt Options
	hub hub

	ctx    context.Context // of supervision; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	sessions map[string]*session // by name, from the reservation to the end of takedown
}

// New returns a manager that supervises the sessions found in the engine. Close must be called.
func New(ctx context.Context, opt Options) (*Manager, error) {
	m := &Manager{opt: opt, sessions: map[string]*session{}}
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	events, err := opt.Engine.Events(m.ctx)
	if err != nil {
		m.cancel()
		return nil, fmt.Errorf("session manager: events: %w", err)
	}
	if err := m.adopt(ctx); err != nil {
		m.cancel()
		return nil, fmt.Errorf("session manager: %w", err)
	}
	m.wg.Go(func() { m.dispatch(events) })
	return m, nil
}

// Close stops supervising. Sessions go on running and are found again by the next New.
func (m *Manager) Close() error {
	m.cancel()
	m.wg.Wait()
	return nil
}

// dispatch hands the engine's events to the sessions they belong to.
func (m *Manager) dispatch(events <-chan orchestrator.Event) {
	for e := range events {
		m.mu.Lock()
		var s *session
		for _, c := range m.sessions {
			if c.id == e.Pod {
				s = c
				break
			}
		}
		m.mu.Unlock()
		if s != nil {
			s.engineEvent(e)
		}
	}
}

// nameRE is what a session may be called: it becomes a directory, a host name and a part of container IDs.
var nameRE = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// maxName is the longest name of a session: host names and container IDs are made from it.
const maxName = 32

// reserve puts s under its name, or, when no name was asked for, under the first free one made from base.
func (m *Manager) reserve(s *session, asked, base string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if asked != "" {
		if len(asked) > maxName || !nameRE.MatchString(asked) {
			return fmt.Errorf("session %q: a name has up to 32 of a-z, 0-9 and single dashes between them: %w", asked, orchestrator.ErrInvalid)
		}
		if m.sessions[asked] != nil {
			return fmt.Errorf("session %q: %w; choose another --name, or end it with: berth stop %s", asked, orchestrator.ErrExists, asked)
		}
		m.enter(s, asked)
		return nil
	}
	base = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(base), "-"), "-")
	if base == "" {
		base = "session"
	}
	base = strings.TrimRight(base[:min(len(base), 28)], "-")
	name := base
	for n := 2; m.sessions[name] != nil; n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	m.enter(s, name)
	return nil
}

// enter names s and puts it into the map; mu is held.
func (m *Manager) enter(s *session, name string) {
	s.name, s.rec.Name = name, name
	s.id = name + "-" + randomHex(3)
	s.wires = wires{m.opt.Layout.Session(name)}
	m.sessions[name] = s
}

// list puts an adopted session into the map, unless its name is taken. Those listed before may end meanwhile.
func (m *Manager) list(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[s.name] == nil {
		m.sessions[s.name] = s
	}
}

// named returns the session called name, or nil.
func (m *Manager) named(name string) *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions[name]
}

func (m *Manager) release(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[s.name] == s {
		delete(m.sessions, s.name)
	}
}

// UsesExport tells whether a session uses dir, which an Exporter has made.
func (m *Manager) UsesExport(dir string) bool {
	for _, s := range m.all() {
		s.mu.Lock()
		has := slices.ContainsFunc(s.rec.Exports, func(e export) bool { return e.Dir == dir })
		s.mu.Unlock()
		if has {
			return true
		}
	}
	return false
}

// find returns the session called name if c may see it.
func (m *Manager) find(c api.Caller, name string) (*session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[name]
	if s == nil || !s.visible(c) {
		return nil, fmt.Errorf("session %q: %w", name, orchestrator.ErrNotFound)
	}
	return s, nil
}

func (m *Manager) all() []*session {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*session, 0, len(m.sessions))
	for _, s := range m.sessions {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *session) int { return strings.Compare(a.name, b.name) })
	return out
}

// Sessions implements api.Manager. Usage per component is left out: a list has to be cheap.
func (m *Manager) Sessions(ctx context.Context, c api.Caller) ([]api.Session, error) {
	out := []api.Session{}
	for _, s := range m.all() {
		if s.visible(c) {
			out = append(out, s.document())
		}
	}
	return out, nil
}

// Session implements api.Manager.
func (m *Manager) Session(ctx context.Context, c api.Caller, name string) (api.Session, error) {
	s, err := m.find(c, name)
	if err != nil {
		return api.Session{}, err
	}
	d := s.document()
	s.addUsage(ctx, &d)
	return d, nil
}

// Stop implements api.Manager.
func (m *Manager) Stop(ctx context.Context, c api.Caller, name string) error {
	s, err := m.find(c, name)
	if err != nil {
		return err
	}
	return s.end(ctx, "stopped")
}

// Remove implements api.Manager.
func (m *Manager) Remove(ctx context.Context, c api.Caller, name string, force, home bool) error {
	s, err := m.find(c, name)
	if err != nil {
		if home && errors.Is(err, orchestrator.ErrNotFound) {
			return m.removeVolume(c, name)
		}
		return err
	}
	if st := s.state(); !force && st != api.StateFailed {
		return fmt.Errorf("session %q: %w: it is %s; stop it first, or use --force", name, orchestrator.ErrState, st)
	}
	volume := s.volume()
	if err := s.end(ctx, "removed"); err != nil {
		return err
	}
	if home && volume != "" {
		return m.dropVolume(nil, s.rec.User.UID, volume)
	}
	return nil
}

// Logs implements api.Manager.
func (m *Manager) Logs(ctx context.Context, c api.Caller, name, component string, tail int, follow bool) (io.ReadCloser, error) {
	s, err := m.find(c, name)
	if err != nil {
		return nil, err
	}
	if component != "" {
		if _, ok := s.rec.Plan.Component(component); !ok {
			return nil, s.noComponent(component)
		}
		return m.opt.Engine.Logs(ctx, s.id, component, tail, follow)
	}
	return s.allLogs(ctx, tail, follow)
}

// Exec implements api.Manager.
func (m *Manager) Exec(ctx context.Context, c api.Caller, name, component string, spec orchestrator.ExecSpec) (int, error) {
	s, err := m.find(c, name)
	if err != nil {
		return 0, err
	}
	if _, ok := s.rec.Plan.Component(component); !ok {
		return 0, s.noComponent(component)
	}
	// Only root may become somebody else in a container: it could reach the devices the component was given.
	if !c.Root() {
		spec.UID, spec.GID = nil, nil
	}
	return m.opt.Engine.Exec(ctx, s.id, component, spec)
}

// Events implements api.Manager.
func (m *Manager) Events(ctx context.Context, c api.Caller) (<-chan api.Event, error) {
	return m.hub.subscribe(ctx, func(e api.Event) bool { return c.Root() || e.Session == "" || e.UID == c.UID }), nil
}

// Shot implements api.Manager.
func (m *Manager) Shot(ctx context.Context, c api.Caller, name string) ([]byte, error) {
	s, err := m.find(c, name)
	if err != nil {
		return nil, err
	}
	return m.shot(ctx, s, 0)
}

// screenTimeout bounds one use of a session's X server, which belongs to the session's user and need not answer.
const screenTimeout = 10 * time.Second

// shot takes a picture, scaled down to width unless that is 0.
func (m *Manager) shot(ctx context.Context, s *session, width int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, screenTimeout)
	defer cancel()
	png, err := m.opt.Screen.Shot(ctx, s.wires.xsocket(), s.wires.xauthority(), width)
	if err != nil {
		return nil, fmt.Errorf("session %q: screenshot: %w", s.name, err)
	}
	return png, nil
}

// Thumbnail returns the screen of the session called name, scaled down to width, as PNG.
func (m *Manager) Thumbnail(ctx context.Context, name string, width int) ([]byte, error) {
	s, err := m.find(api.Caller{}, name)
	if err != nil {
		return nil, err
	}
	return m.shot(ctx, s, width)
}

// Resize implements api.Manager.
func (m *Manager) Resize(ctx context.Context, c api.Caller, name string, req api.ResizeRequest) (api.Size, error) {
	s, err := m.find(c, name)
	if err != nil {
		return api.Size{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, screenTimeout)
	defer cancel()
	size, dpi := req.Size, s.rec.Plan.Display.DPI
	if req.Nearest {
		size.Width, size.Height, err = m.opt.Screen.Fit(ctx, s.wires.xsocket(), s.wires.xauthority(), size.Width, size.Height, dpi)
	} else if err = profiles.CheckSize(size.Width, size.Height); err != nil {
		return api.Size{}, fmt.Errorf("session %q: %w: %w", name, orchestrator.ErrInvalid, err)
	} else {
		err = m.opt.Screen.Resize(ctx, s.wires.xsocket(), s.wires.xauthority(), size.Width, size.Height, dpi)
	}
	if err != nil {
		return api.Size{}, fmt.Errorf("session %q: size %dx%d: %w", name, req.Width, req.Height, err)
	}
	s.mu.Lock()
	s.width, s.height = size.Width, size.Height
	s.mu.Unlock()
	return size, nil
}

// Remotes returns what the gateway shows: all sessions that have been told to it.
func (m *Manager) Remotes() []Remote {
	var out []Remote
	for _, s := range m.all() {
		out = append(out, s.remote())
	}
	return out
}

// Remote returns one of Remotes by its session's name.
func (m *Manager) Remote(name string) (Remote, bool) {
	m.mu.Lock()
	s := m.sessions[name]
	m.mu.Unlock()
	if s == nil {
		return Remote{}, false
	}
	return s.remote(), true
}

// Trace implements api.Manager.
func (m *Manager) Trace(ctx context.Context, c api.Caller, name string) (api.Trace, error) {
	s, err := m.find(c, name)
	if err != nil {
		return api.Trace{}, err
	}
	return s.tracer.document(name), nil
}

// Plan implements api.Manager.
func (m *Manager) Plan(ctx context.Context, c api.Caller, req api.UpRequest) (api.Plan, error) {
	p, err := m.opt.Plan(ctx, c, req)
	if err != nil {
		return api.Plan{}, err
	}
	if err := m.opt.Exports.Complete(ctx, p); err != nil {
		return api.Plan{}, err
	}
	return *p, nil
}

func (m *Manager) publish(s *session, typ, component, message string) {
	m.hub.publish(api.Event{Time: time.Now(), Type: typ, Session: s.name, Component: component, Message: message, UID: s.rec.Owner})
}

// Announce publishes an event that belongs to no session; everybody gets it.
func (m *Manager) Announce(e api.Event) { m.hub.publish(e) }
