package session

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/internal/diskfull"
	"berth/internal/revert"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
	"berth/session/autostart"
)

// Up implements api.Manager.
func (m *Manager) Up(ctx context.Context, c api.Caller, req api.UpRequest, progress func(api.UpEvent)) (_ api.Session, err error) {
	created := time.Now()
	if progress == nil {
		progress = func(api.UpEvent) {}
	}
	plan, err := m.opt.Plan(ctx, c, req)
	if err != nil {
		return api.Session{}, err
	}
	id, err := m.identity(c, req)
	if err != nil {
		return api.Session{}, err
	}
	if err := allow(c, id, plan); err != nil {
		return api.Session{}, err
	}
	for i := range plan.Components {
		if c := &plan.Components[i]; c.Timeout < m.opt.Patience {
			c.Timeout = m.opt.Patience
		}
	}
	rec := record{Version: recordVersion, Owner: c.UID, OwnerName: c.Name, User: id, Plan: *plan, Password: password(),
		Token: token(), VNCPort: req.VNCPort, Exact: req.VNCPort != 0, Created: created, Images: map[string]string{}}
	if c.Root() && req.User != "" {
		rec.Owner, rec.OwnerName = id.UID, id.Name
	}
	s := newSession(m, rec, "")
	if err := m.reserve(s, req.Name, plan.Profile); err != nil {
		s.cancel()
		return api.Session{}, err
	}

	var undo revert.Stack
	defer func() {
		if err == nil {
			undo.Disarm()
			return
		}
		// The pod, the wires and the gateway go with end; undo has what only a failed start takes back.
		if endErr := s.end(context.WithoutCancel(ctx), "the start failed"); endErr != nil {
			err = errors.Join(err, endErr)
		}
		if undoErr := undo.Run(ctx); undoErr != nil {
			err = errors.Join(err, undoErr)
		}
		err = diskfull.Explain(err, m.opt.Layout.State)
		if prefix := fmt.Sprintf("session %q: ", s.name); !strings.HasPrefix(err.Error(), prefix) {
			err = fmt.Errorf("%s%w", prefix, err)
		}
	}()
	m.publish(s, "session.starting", "", "")
	// A stop that comes while the start runs ends the start.
	startCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(errEnded) })()
	err = s.start(startCtx, c, &undo, progress)
	close(s.upDone)
	if err != nil {
		if cause := context.Cause(startCtx); cause != nil {
			err = cause
		}
		return api.Session{}, err
	}
	return s.document(), nil
}

var errEnded = fmt.Errorf("%w: it was ended while it started", orchestrator.ErrState)

// identity decides whom the session runs as.
func (m *Manager) identity(c api.Caller, req api.UpRequest) (Identity, error) {
	switch {
	case !c.Root() && req.User != "" && req.User != c.Name:
		return Identity{}, fmt.Errorf("user %q: only root starts sessions for others: %w", req.User, orchestrator.ErrInvalid)
	case req.User != "":
		return lookupIdentity(req.User)
	case !c.Root():
		return Identity{UID: c.UID, GID: c.GID, Name: c.Name, Home: "/home/" + c.Name}, nil
	case m.opt.DefaultUser != "":
		return lookupIdentity(m.opt.DefaultUser)
	}
	return Identity{UID: defaultUID, GID: defaultUID, Name: defaultName, Home: "/home/" + defaultName}, nil
}

// allow refuses plans that would give a caller other than root more than its own rights on the host.
func allow(c api.Caller, id Identity, p *profiles.Plan) error {
	if p.Home.Kind == "bind" {
		path, err := filepath.EvalSymlinks(p.Home.Path)
		if err != nil {
			return fmt.Errorf("home %q: %w", p.Home.Path, err)
		}
		owner, err := ownerOf(path)
		if err != nil {
			return err
		}
		if owner != id.UID {
			return fmt.Errorf("home %q: belongs to uid %d, the session runs as %s (uid %d); choose a user with --user, or another home: %w",
				path, owner, id.Name, id.UID, orchestrator.ErrInvalid)
		}
		p.Home.Path = path
	}
	if c.Root() {
		return nil
	}
	if p.Network == string(orchestrator.NetworkHost) {
		return fmt.Errorf("network \"host\": only root may share the host's network: %w", orchestrator.ErrInvalid)
	}
	for _, comp := range p.Components {
		if len(comp.Caps) > 0 || len(comp.Devices) > 0 {
			return fmt.Errorf("component %q: asks for %s: only root may start it: %w", comp.Name,
				strings.Join(slices.Concat(comp.Caps, comp.Devices), ", "), orchestrator.ErrInvalid)
		}
	}
	return nil
}

// start brings the session up for caller. On error it is taken down by whoever called start.
func (s *session) start(ctx context.Context, caller api.Caller, undo *revert.Stack, progress func(api.UpEvent)) error {
	opt := s.m.opt
	// One progress function may be called from many components at once.
	var pmu sync.Mutex
	say := func(e api.UpEvent) {
		pmu.Lock()
		defer pmu.Unlock()
		progress(e)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer s.tracer.begin("", "image")("")
		var names []string
		for _, c := range s.rec.Plan.Components {
			if !slices.Contains(names, c.Image) {
				names = append(names, c.Image)
			}
		}
		refs, err := opt.Images.Ensure(gctx, names, api.EnsureOptions{Anonymous: !caller.Root()}, say)
		if err != nil {
			return err
		}
		exports, err := s.export(gctx, refs)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.rec.Images = refs
		s.rec.Exports = exports
		for _, c := range s.comps {
			c.ref = refs[c.Image]
		}
		return nil
	})
	g.Go(func() error {
		defer s.tracer.begin("", "wires")("")
		cookie, err := opt.Cookie()
		if err != nil {
			return fmt.Errorf("cookie: %w", err)
		}
		if err := s.wires.lay(gctx, s.rec.User, s.name, cookie, s.rec.Plan.Apps); err != nil {
			return err
		}
		if err := s.wires.layLook(&s.rec.Plan); err != nil {
			return err
		}
		return s.claimHome()
	})
	g.Go(func() error {
		defer s.tracer.begin("", "gateway")("")
		vnc, web, err := opt.Gateway.Attach(gctx, s.remote())
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.vnc, s.web = vnc, web
		s.rec.VNCPort = portOf(vnc)
		s.mu.Unlock()
		return nil
	})
	g.Go(func() error {
		defer s.tracer.begin("", "pod")("")
		p := s.rec.Plan
		pod, err := opt.Engine.CreatePod(gctx, orchestrator.PodSpec{ID: s.id, Hostname: s.name,
			Labels: map[string]string{labelKind: kindSession, labelSession: s.name},
			Data:   []byte("{}"), // the record follows once it is complete; a start that was cut short is recognised by this
			Limits: orchestrator.Limits{CPUs: p.Limits.CPUs, Memory: p.Limits.Memory, PIDs: p.Limits.PIDs}, Network: orchestrator.NetworkMode(cmp.Or(p.Network, "nat"))})
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.ip = pod.IP
		s.mu.Unlock()
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.makeHome(ctx, undo); err != nil {
		return err
	}
	if err := s.switchOff(ctx); err != nil {
		return err
	}
	if err := s.listen(); err != nil {
		return err
	}
	for _, c := range s.comps {
		s.wg.Go(func() { s.supervise(c, 0) })
	}
	createErr := make(chan error, 1)
	createCtx, stopCreate := context.WithCancel(ctx)
	defer stopCreate()
	var creating sync.WaitGroup
	creating.Go(func() { createErr <- s.createAll(createCtx) })
	// Nothing may be created behind the back of a takedown.
	defer creating.Wait()
	defer stopCreate()
	return s.awaitStart(ctx, createErr, say)
}

// export has every image whose applications the others see show them. refs are the images' full references.
func (s *session) export(ctx context.Context, refs map[string]string) ([]export, error) {
	out := make([]export, len(s.rec.Plan.Apps))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.NumCPU()))
	for i, app := range s.rec.Plan.Apps {
		g.Go(func() error {
			defer s.tracer.begin(app.Component, "export")("")
			dir, err := s.m.opt.Exports.Export(ctx, refs[app.Image], app)
			out[i] = export{Image: app.Image, Component: app.Component, Dir: dir}
			return err
		})
	}
	return out, g.Wait()
}

// DesktopImages are the images whose components may start autostart entries: those on the display.
func DesktopImages(p *profiles.Plan) []string {
	var out []string
	for _, c := range p.Components {
		if needs(c, profiles.WireX11) && needs(c, profiles.WireBus) && !slices.Contains(out, c.Image) {
			out = append(out, c.Image)
		}
	}
	return out
}

// switchOff hides the autostart entries of images that would start what the session has already.
func (s *session) switchOff(ctx context.Context) error {
	for i, image := range DesktopImages(&s.rec.Plan) {
		off, err := s.m.opt.Exports.AutostartOff(ctx, s.rec.Images[image], image, &s.rec.Plan)
		if err != nil {
			return err
		}
		if len(off) == 0 {
			continue
		}
		name := "autostart-" + strconv.Itoa(i)
		dir := filepath.Join(s.wires.berth(), name, "autostart")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, o := range off {
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(o.File)), []byte(autostart.Hidden), 0o644); err != nil {
				return fmt.Errorf("autostart entry %q: %w", o.File, err)
			}
		}
		if s.rec.Off == nil {
			s.rec.Off = map[string]string{}
		}
		s.rec.Off[image] = "/run/berth/" + name
	}
	return nil
}

// awaitStart waits until every required component is ready, or one has failed.
func (s *session) awaitStart(ctx context.Context, createErr <-chan error, say func(api.UpEvent)) error {
	shown := map[string]string{}
	for {
		s.mu.Lock()
		changed, startErr, ready := s.changed, s.startErr, true
		var news []api.UpEvent
		for _, pc := range s.rec.Plan.Components {
			c := s.comps[pc.Name]
			if shown[c.Name] != c.state {
				shown[c.Name] = c.state
				news = append(news, api.UpEvent{Component: c.Name, State: c.state})
			}
			ready = ready && s.settled(c)
		}
		s.mu.Unlock()
		for _, e := range news {
			say(e)
		}
		if startErr != nil {
			var se *startError
			if errors.As(startErr, &se) {
				se.log = s.logTail(ctx, se.component, 10)
			}
			return startErr
		}
		if ready {
			s.awaitPaint(ctx)
			return s.finishStart(ctx)
		}
		select {
		case <-changed:
		case err := <-createErr:
			if err != nil {
				return err
			}
			createErr = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// paintTimeout is how long a start that is ready otherwise waits for panels to be painted. Some never show anything.
const paintTimeout = 2 * time.Second

// awaitPaint waits until the panels that are on the screen can also be seen there: who takes a picture or opens the page at
// once shall not find them black.
func (s *session) awaitPaint(ctx context.Context) {
	if s.rec.Plan.Owner("display") == "" || s.rec.Plan.Owner("panel") == "" {
		return
	}
	defer s.tracer.begin("", "paint")("")
	ctx, cancel := context.WithTimeout(ctx, paintTimeout)
	defer cancel()
	if err := s.m.opt.Screen.Painted(ctx, s.wires.xsocket(), s.wires.xauthority()); err != nil {
		s.m.opt.Log.Debug("panels", "session", s.name, "error", err)
	}
}

// createAll creates the containers in createOrder, as many at a time as there are processors: more would only slow down
// the one that everybody waits for.
func (s *session) createAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.NumCPU()))
	for _, name := range createOrder(s.rec.Plan.Components) {
		if s.comps[name].OnDemand {
			continue
		}
		g.Go(func() error {
			c := s.comps[name]
			end := s.tracer.begin(c.Name, "create")
			if err := s.create(ctx, c); err != nil {
				return fmt.Errorf("component %q: %w", c.Name, err)
			}
			end("")
			close(c.created)
			return nil
		})
	}
	return g.Wait()
}

// createOrder says in which order containers are created: first what the desktop consists of for the eye, and what that
// waits for, then the rest; within both, those with the longest chain of dependents first.
func createOrder(comps []profiles.Component) []string {
	height := map[string]int{}
	seen := map[string]bool{}                  // belongs to, or is waited for by, what one sees first
	for _, c := range slices.Backward(comps) { // a plan is sorted: dependents come behind
		if slices.ContainsFunc(c.Provides, func(r string) bool { return r == "window-manager" || r == "panel" || r == "desktop" }) {
			seen[c.Name] = true
		}
		for _, a := range c.After {
			height[a] = max(height[a], height[c.Name]+1)
			seen[a] = seen[a] || seen[c.Name]
		}
	}
	order := slices.Clone(comps)
	slices.SortStableFunc(order, func(a, b profiles.Component) int {
		if seen[a.Name] != seen[b.Name] {
			if seen[a.Name] {
				return -1
			}
			return 1
		}
		return height[b.Name] - height[a.Name]
	})
	var names []string
	for _, c := range order {
		names = append(names, c.Name)
	}
	return names
}

func (s *session) create(ctx context.Context, c *component) error {
	passwd, group, err := s.accounts(ctx, c.ref)
	if err != nil {
		return err
	}
	shell, err := s.shell(passwd)
	if err != nil {
		return err
	}
	in := specInput{session: s.name, id: s.rec.User, wires: s.wires, home: s.homeSource(), image: c.ref, passwd: passwd, group: group,
		shell: shell, tools: s.m.opt.Layout.Tools(), exports: s.rec.Exports, off: s.rec.Off[c.Image], plan: &s.rec.Plan}
	if in.files, err = writeFiles(s.wires, c.Component, in.expander()); err != nil {
		return err
	}
	spec, err := containerSpec(c.Component, in)
	if err != nil {
		return err
	}
	return s.m.opt.Engine.CreateContainer(ctx, s.id, spec)
}

// accounts writes passwd and group for image ref, once per image, and returns their paths.
func (s *session) accounts(ctx context.Context, ref string) (passwd, group string, err error) {
	key := hex.EncodeToString(sum(ref))
	write := func(file string, with func([]byte, Identity) []byte) (string, error) {
		path := filepath.Join(s.wires.etc(), file+"-"+key)
		s.mu.Lock()
		_, err := os.Stat(path)
		s.mu.Unlock()
		if err == nil {
			return path, nil
		}
		base, err := s.m.opt.Engine.Images().ReadFile(ctx, ref, "/etc/"+file)
		if err != nil && !errors.Is(err, orchestrator.ErrNotFound) {
			return "", err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return path, os.WriteFile(path, with(base, s.rec.User), 0o644)
	}
	if passwd, err = write("passwd", passwdWith); err != nil {
		return "", "", err
	}
	group, err = write("group", groupWith)
	return passwd, group, err
}

// shell is the user's in a passwd of accounts.
func (s *session) shell(passwd string) (string, error) {
	s.mu.Lock() // another component of the same image may be writing it
	defer s.mu.Unlock()
	text, err := os.ReadFile(passwd)
	return shellOf(text, s.rec.User.UID), err
}

func (s *session) remote() Remote {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Remote{Name: s.name, ID: s.id, Profile: s.rec.Plan.Profile, User: s.rec.OwnerName, UID: s.rec.User.UID, State: s.stateLocked(),
		VNCSocket: s.wires.vnc(), Password: s.rec.Password, Token: s.rec.Token, Port: s.rec.VNCPort, Exact: s.rec.Exact,
		Width: s.width, Height: s.height, Created: s.rec.Created}
}

// adopt finds the sessions that run already, and clears away what is left of others.
func (m *Manager) adopt(ctx context.Context) error {
	pods, err := m.opt.Engine.Pods(ctx, map[string]string{labelKind: kindSession})
	if err != nil {
		return err
	}
	for _, pod := range pods {
		var rec record
		if err := json.Unmarshal(pod.Data, &rec); err == nil && m.adoptable(pod, rec) {
			if err := m.adoptOne(ctx, pod, rec); err != nil {
				return fmt.Errorf("session %q: %w", rec.Name, err) // somebody may be at work in it
			}
			continue
		}
		// A start that was cut short, a host that was rebooted, or a record of another version: nobody can use it.
		rec.Name = pod.Labels[labelSession]
		s := newSession(m, rec, pod.ID)
		m.opt.Log.Info("clearing away a dead session", "session", s.name, "running", pod.Running)
		if rec.Plan.Home.Kind == "" { // the record never came; both kinds of home are recognised by their place
			s.rec.Plan.Home.Kind = "ephemeral"
		}
		s.cancel()
		if err := s.remove(ctx); err != nil { // nothing runs in it that wants to be asked first
			m.opt.Log.Error("dead session", "session", s.name, "error", err)
			s.starting, s.endErr = false, err
			close(s.upDone)
			m.list(s) // as failed, so that its name stays taken and it can be stopped
		}
	}
	return errors.Join(m.clearStray(), m.clearHomes())
}

// adoptable tells whether a pod is a session that somebody can go on using: its start was finished, it runs, and its wires
// are there, which are the first thing that an end takes away.
func (m *Manager) adoptable(pod orchestrator.Pod, rec record) bool {
	if rec.ReadyMS == 0 || !pod.Running || rec.Version != recordVersion || m.named(rec.Name) != nil {
		return false
	}
	_, err := os.Lstat(wires{m.opt.Layout.Session(rec.Name)}.xauthority())
	return err == nil
}

// clearStray removes session directories that belong to no session.
func (m *Manager) clearStray() error {
	dirs, err := os.ReadDir(filepath.Dir(m.opt.Layout.Session("x")))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, d := range dirs {
		if m.named(d.Name()) == nil {
			if err := (wires{m.opt.Layout.Session(d.Name())}).remove(); err != nil {
				m.opt.Log.Error("stray session directory", "error", err)
			}
		}
	}
	return nil
}

// adoptTimeout is how long an adopted session's X server may take to tell its size: all sessions wait for it.
const adoptTimeout = time.Second

// adoptOne goes on with a session that runs. The only error is that of an engine that does not answer.
func (m *Manager) adoptOne(ctx context.Context, pod orchestrator.Pod, rec record) error {
	have, err := m.opt.Engine.Containers(ctx, pod.ID)
	if err != nil {
		return err
	}
	s := newSession(m, rec, pod.ID)
	s.starting = false
	close(s.upDone)
	s.ip = pod.IP
	s.tracer.ready = time.Duration(rec.ReadyMS) * time.Millisecond
	s.tracer.spans = rec.Spans
	vnc, web, err := m.opt.Gateway.Attach(ctx, s.remote())
	if err != nil { // the port may be taken by now; people in the session matter more
		r := s.remote()
		r.Exact, r.Port = false, 0
		vnc, web, err = m.opt.Gateway.Attach(ctx, r)
	}
	if err != nil {
		m.opt.Log.Error("session is not to be reached from outside", "session", s.name, "error", err)
	}
	s.vnc, s.web = vnc, web
	// What does not answer at once is perhaps the very thing that has to be restarted; the plan's size stands until then.
	sizeCtx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	if w, h, err := m.opt.Screen.Size(sizeCtx, s.wires.xsocket(), s.wires.xauthority()); err == nil {
		s.width, s.height = w, h
	} else {
		m.opt.Log.Warn("size of an adopted session's screen", "session", s.name, "error", err)
	}
	for _, st := range have { // before anybody looks
		if c := s.comps[st.Name]; c != nil {
			close(c.created)
		}
		if c := s.comps[st.Name]; c != nil && st.State == orchestrator.StateRunning {
			c.state, c.pid = compReady, st.PID
		}
	}
	s.lastState = s.stateLocked()
	m.list(s)
	// The first supervisor may find that the session is to end; its end waits until all have been started.
	s.wg.Add(1)
	defer s.wg.Done()
	for _, st := range have {
		c := s.comps[st.Name]
		if c == nil {
			continue
		}
		if st.State == orchestrator.StateRunning {
			s.wg.Go(func() { s.supervise(c, st.PID) })
			continue
		}
		if c.OnDemand { // what it was called for has ended
			s.wg.Go(func() { s.supervise(c, 0) })
			continue
		}
		// It ended while no daemon was there: that exit is still to be decided on.
		c.exits <- orchestrator.Event{Type: orchestrator.EventExit, Pod: pod.ID, Container: st.Name, ExitCode: st.ExitCode, PID: st.PID}
		s.wg.Go(func() { s.supervise(c, max(st.PID, 1)) })
	}
	for _, c := range s.comps {
		if c.OnDemand && !slices.ContainsFunc(have, func(st orchestrator.ContainerStatus) bool { return st.Name == c.Name }) {
			s.wg.Go(func() { s.supervise(c, 0) }) // nobody has ever called for it
		}
	}
	if err := s.listen(); err != nil {
		m.opt.Log.Error("programs of an adopted session cannot be started in other components", "session", s.name, "error", err)
	}
	m.opt.Log.Info("session adopted", "session", s.name)
	return nil
}

// ownerOf returns the uid that owns path.
func ownerOf(path string) (int, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return int(fi.Sys().(*syscall.Stat_t).Uid), nil
}

// password makes a VNC password: VNC authentication uses 8 characters (RFC 6143, 7.2.2). No letter looks like another.
func password() string {
	const letters = "abcdefghijkmnpqrstuvwxyz23456789" // 32: five bits each
	b := make([]byte, 8)
	rand.Read(b)
	for i := range b {
		b[i] = letters[b[i]&31]
	}
	return string(b)
}

// token makes a login token of 128 bits.
func token() string {
	b := make([]byte, 16)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func portOf(addr string) int {
	var n int
	if i := strings.LastIndexByte(addr, ':'); i >= 0 {
		fmt.Sscanf(addr[i+1:], "%d", &n)
	}
	return n
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

// cappedBuffer keeps the first few KiB written to it.
type cappedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *cappedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := 4096 - b.b.Len(); room > 0 {
		b.b.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func (b *cappedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
