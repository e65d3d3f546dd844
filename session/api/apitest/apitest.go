// Package apitest is a daemon without containers: a Manager and Images that keep sessions in memory, and a real API
// server over them on a Unix socket. It is for tests of what talks to the API.
package apitest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
	"berth/session/api/client"
	"berth/session/api/server"
)

// Created is the creation time of every session and image.
var Created = time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)

// Fake implements api.Manager, and api.Images through Images. Its fields may be set before use; the methods are safe for concurrent use.
type Fake struct {
	// Steps is what Up reports before the session is ready.
	Steps []api.UpEvent
	// Hold, if not nil, keeps Up, Build and Pull waiting, after their progress, until it is closed or they are cancelled.
	Hold <-chan struct{}
	// Undone counts the calls that were cancelled while held.
	Undone int
	// Fail maps a method's name ("Up", "Pull") to the error it returns.
	Fail map[string]error
	// Run stands for the process of Exec.
	Run func(ctx context.Context, name, component string, spec orchestrator.ExecSpec) (int, error)
	// LogText is each component's log.
	LogText string

	mu       sync.Mutex
	sessions map[string]api.Session
	images   map[string]orchestrator.Image
	watchers map[chan api.Event]api.Caller
	calls    []string
}

// New returns a fake with the sessions, made by Session for root.
func New(names ...string) *Fake {
	f := &Fake{sessions: map[string]api.Session{}, images: map[string]orchestrator.Image{}, watchers: map[chan api.Event]api.Caller{},
		Fail: map[string]error{}, LogText: "one\ntwo\nthree\n",
		Steps: []api.UpEvent{{Message: "image xfce: present"}, {Component: "display", State: "starting"}, {Component: "display", State: "ready"}},
	}
	for _, n := range names {
		f.sessions[n] = Session(n, "root", 0)
	}
	f.images["localhost/berth/xfce:latest"] = Image("localhost/berth/xfce:latest")
	return f
}

// Session returns a session document with every field filled in.
func Session(name, user string, uid int) api.Session {
	dir := "/run/berth/sessions/" + name
	return api.Session{
		Name: name, ID: name + "-1f", Profile: "xfce", State: api.StateRunning, User: user, UID: uid, Created: Created, ReadyMS: 1480,
		Display: api.Display{Server: "xvfb", Size: "1920x1080", DPI: 96, Socket: dir + "/tmp/.X11-unix/X0", XAuthority: dir + "/berth/Xauthority"},
		Audio:   api.Audio{Server: "pipewire", PulseSocket: dir + "/runtime/pulse/native", PipeWireSocket: dir + "/runtime/pipewire-0"},
		Bus:     api.Bus{Address: "unix:path=" + dir + "/runtime/bus"},
		Remote:  api.Remote{VNC: "127.0.0.1:5901", Web: "http://127.0.0.1:6080/s/" + name + "?token=abc", Password: "k3JxPq9w", Socket: dir + "/runtime/vnc.sock"},
		Home:    "/var/lib/berth/volumes/" + name, IP: "10.88.0.7",
		Components: []api.Component{
			{Name: "display", Roles: []string{"display"}, Image: "display", State: "ready", PID: 4711, ReadyMS: 210, CPU: 1.5, Memory: 48 << 20},
			{Name: "panel", Roles: []string{"panel"}, Image: "xfce", State: "ready", PID: 4720, Restarts: 1, ReadyMS: 1390, CPU: 0.2, Memory: 31 << 20},
		},
	}
}

// Image returns an image document with every field filled in.
func Image(ref string) orchestrator.Image {
	return orchestrator.Image{Ref: ref, Digest: "sha256:" + strings.Repeat("5e", 32), Size: 812 << 20, Packed: 290 << 20, Created: Created,
		Labels: map[string]string{"berth.recipe": "xfce"}, InUse: true}
}

// Serve runs an API server over f on a socket of its own until the test ends and returns a client of it.
// change, which may be nil, edits the server's configuration.
func Serve(t testing.TB, f *Fake, change func(*server.Config)) *client.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "apitest") // t.TempDir's paths can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	cfg := server.Config{Manager: f, Images: f.Images(), Info: f.Info}
	if change != nil {
		change(&cfg)
	}
	socket := filepath.Join(dir, "berth.sock")
	l, err := server.Listen(socket, cmp.Or(cfg.Group, server.Group))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.New(cfg).Serve(ctx, l) }()
	c := client.New(socket)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Info is the daemon's description.
func (f *Fake) Info(context.Context) (api.DaemonInfo, error) {
	return api.DaemonInfo{Version: "1.2.3", PID: 1234, Root: "", Gateway: "https://127.0.0.1:6080",
		AdminURL: "https://127.0.0.1:6080/#token=all", Fingerprint: "5E:1F", Problems: []string{"disk: 1 GiB free; make room", "network: no nft"},
		Engine: orchestrator.Info{Name: "containerd", Version: "2.4.2", Runtime: "runc 1.5.2", Snapshotter: "overlayfs", Cgroup: "v2"}}, nil
}

// Calls returns the changing calls so far, one line each.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// note records a call and returns the error it shall fail with.
func (f *Fake) note(method string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.TrimSpace(method+" "+fmt.Sprintln(args...)))
	return f.Fail[method]
}

func (f *Fake) find(c api.Caller, name string) (api.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sessions[name]
	if !ok || !c.Root() && s.UID != c.UID {
		return api.Session{}, fmt.Errorf("session %q: %w", name, orchestrator.ErrNotFound)
	}
	s.Components = slices.Clone(s.Components)
	return s, nil
}

// Add puts a session there, or replaces one.
func (f *Fake) Add(s api.Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions[s.Name] = s
}

// Emit sends an event to everybody who may see it. It waits until they have taken it.
func (f *Fake) Emit(e api.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w, c := range f.watchers {
		if c.Root() || c.UID == e.UID {
			w <- e
		}
	}
}

// hold waits as Hold says.
func (f *Fake) hold(ctx context.Context) error {
	if f.Hold == nil {
		return nil
	}
	select {
	case <-f.Hold:
		return nil
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		f.Undone++
		return fmt.Errorf("undone: %w", ctx.Err())
	}
}

// WasUndone returns Undone.
func (f *Fake) WasUndone() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Undone
}

// Up implements api.Manager.
func (f *Fake) Up(ctx context.Context, c api.Caller, req api.UpRequest, progress func(api.UpEvent)) (api.Session, error) {
	if err := f.note("Up", req.Profile, req.Name, req.Set, req.Source, req.VNCPort, req.User); err != nil {
		return api.Session{}, err
	}
	name := req.Name
	if name == "" {
		name = "xfce"
	}
	f.mu.Lock()
	_, taken := f.sessions[name]
	f.mu.Unlock()
	if taken {
		return api.Session{}, fmt.Errorf("session %q: %w", name, orchestrator.ErrExists)
	}
	for _, e := range f.Steps {
		progress(e)
	}
	if err := f.hold(ctx); err != nil {
		return api.Session{}, err
	}
	if err := f.note("UpEnd"); err != nil {
		return api.Session{}, err
	}
	s := Session(name, c.Name, c.UID)
	s.Profile = req.Profile
	f.Add(s)
	return s, nil
}

// Sessions implements api.Manager.
func (f *Fake) Sessions(_ context.Context, c api.Caller) ([]api.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []api.Session
	for _, s := range f.sessions {
		if c.Root() || s.UID == c.UID {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b api.Session) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Session implements api.Manager.
func (f *Fake) Session(_ context.Context, c api.Caller, name string) (api.Session, error) {
	return f.find(c, name)
}

// Stop implements api.Manager.
func (f *Fake) Stop(ctx context.Context, c api.Caller, name string) error {
	return f.Remove(ctx, c, name, true, false)
}

// Remove implements api.Manager.
func (f *Fake) Remove(_ context.Context, c api.Caller, name string, force, home bool) error {
	s, err := f.find(c, name)
	if err != nil {
		return err
	}
	if !force && s.State == api.StateRunning {
		return fmt.Errorf("session %q: %w: it is running", name, orchestrator.ErrState)
	}
	if err := f.note("Remove", name, force, home); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sessions, name)
	return nil
}

// Logs implements api.Manager. A followed log goes on until ctx ends.
func (f *Fake) Logs(ctx context.Context, c api.Caller, name, component string, tail int, follow bool) (io.ReadCloser, error) {
	s, err := f.find(c, name)
	if err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(strings.TrimSuffix(f.LogText, "\n"), "\n")
	if tail >= 0 && tail < len(lines) {
		lines = lines[len(lines)-tail:]
	}
	var text strings.Builder
	for _, comp := range s.Components {
		if component != "" && comp.Name != component {
			continue
		}
		for _, l := range lines {
			if component == "" {
				text.WriteString(comp.Name + " | ")
			}
			text.WriteString(strings.TrimSuffix(l, "\n") + "\n")
		}
	}
	if text.Len() == 0 {
		return nil, fmt.Errorf("session %q: component %q: %w", name, component, orchestrator.ErrNotFound)
	}
	if !follow {
		return io.NopCloser(strings.NewReader(text.String())), nil
	}
	r, w := io.Pipe()
	go func() {
		if _, err := io.WriteString(w, text.String()); err != nil {
			return
		}
		<-ctx.Done()
		w.Close()
	}()
	return r, nil
}

// Exec implements api.Manager; the process is Run, by default one that copies stdin to stdout and ends with 0.
func (f *Fake) Exec(ctx context.Context, c api.Caller, name, component string, spec orchestrator.ExecSpec) (int, error) {
	if _, err := f.find(c, name); err != nil {
		return 0, err
	}
	if err := f.note("Exec", name, component, spec.Command, spec.Env, spec.Cwd, spec.TTY, spec.UID != nil); err != nil {
		return 0, err
	}
	if f.Run != nil {
		return f.Run(ctx, name, component, spec)
	}
	_, err := io.Copy(spec.Stdout, spec.Stdin)
	return 0, err
}

// Events implements api.Manager.
func (f *Fake) Events(ctx context.Context, c api.Caller) (<-chan api.Event, error) {
	ch := make(chan api.Event, 16)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[ch] = c
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, ch)
		close(ch)
	})
	return ch, nil
}

// Shot implements api.Manager with a picture of 4 by 3 pixels.
func (f *Fake) Shot(_ context.Context, c api.Caller, name string) ([]byte, error) {
	if _, err := f.find(c, name); err != nil {
		return nil, err
	}
	m := image.NewRGBA(image.Rect(0, 0, 4, 3))
	m.Set(1, 1, color.RGBA{R: 200, G: 30, B: 30, A: 255})
	var buf bytes.Buffer
	err := png.Encode(&buf, m)
	return buf.Bytes(), err
}

// Resize implements api.Manager with a screen that can have 2560x1600 pixels at most.
func (f *Fake) Resize(_ context.Context, c api.Caller, name string, req api.ResizeRequest) (api.Size, error) {
	s, err := f.find(c, name)
	if err != nil {
		return api.Size{}, err
	}
	size := api.Size{Width: min(req.Width, 2560), Height: min(req.Height, 1600)}
	if size != req.Size && !req.Nearest {
		return api.Size{}, fmt.Errorf("session %q: %w size", name, orchestrator.ErrInvalid)
	}
	s.Display.Size = fmt.Sprintf("%dx%d", size.Width, size.Height)
	f.Add(s)
	return size, f.note("Resize", name, req.Width, req.Height)
}

// Set implements api.Manager; it remembers the options and refuses what no session can change.
func (f *Fake) Set(_ context.Context, c api.Caller, name string, req api.SetRequest) error {
	if _, err := f.find(c, name); err != nil {
		return err
	}
	if _, err := profiles.Change(&profiles.Plan{}, req.Set...); err != nil {
		return err
	}
	return f.note("Set", name, strings.Join(req.Set, " "))
}

// Trace implements api.Manager.
func (f *Fake) Trace(_ context.Context, c api.Caller, name string) (api.Trace, error) {
	if _, err := f.find(c, name); err != nil {
		return api.Trace{}, err
	}
	return Trace(name), nil
}

// Trace returns the start of a small session.
func Trace(name string) api.Trace {
	return api.Trace{Session: name, ReadyMS: 1398, Spans: []api.Span{
		{Phase: "gateway", Start: 1, End: 2},
		{Phase: "wires", Start: 0, End: 20},
		{Phase: "image", Start: 2, End: 35},
		{Phase: "pod", Start: 3, End: 160},
		{Component: "display", Phase: "create", Start: 40, End: 150},
		{Component: "display", Phase: "start", Start: 160, End: 190},
		{Component: "display", Phase: "probe", Start: 190, End: 330, WaitedFor: "x11"},
		{Component: "bus", Phase: "create", Start: 42, End: 140},
		{Component: "bus", Phase: "start", Start: 160, End: 185},
		{Component: "bus", Phase: "probe", Start: 185, End: 230, WaitedFor: "socket:/run/user/1000/bus"},
		{Component: "window-manager", Phase: "create", Start: 45, End: 170},
		{Component: "window-manager", Phase: "wait", Start: 170, End: 330, WaitedFor: "display"},
		{Component: "window-manager", Phase: "start", Start: 330, End: 362},
		{Component: "window-manager", Phase: "probe", Start: 362, End: 780, WaitedFor: "wm"},
		{Component: "panel", Phase: "create", Start: 45, End: 200},
		{Component: "panel", Phase: "wait", Start: 200, End: 780, WaitedFor: "window-manager"},
		{Component: "panel", Phase: "start", Start: 780, End: 812},
		{Component: "panel", Phase: "probe", Start: 812, End: 1398, WaitedFor: "dock"},
	}}
}

// Plan implements api.Manager.
func (f *Fake) Plan(_ context.Context, _ api.Caller, req api.UpRequest) (api.Plan, error) {
	if err := f.note("Plan", req.Profile, req.Set); err != nil {
		return api.Plan{}, err
	}
	return Plan(req.Profile), nil
}

// Plan returns a plan with every field filled in.
func Plan(profile string) api.Plan {
	dark := true
	return api.Plan{
		Profile: profile, Description: "a small desktop", Network: "nat", Env: []string{"A=b"}, Session: "session", Unused: []string{"look.dark", "apps"},
		Display: profiles.Display{Server: "xvfb", Width: 1920, Height: 1080, DPI: 96},
		Audio:   profiles.Audio{Server: "pipewire"},
		Home:    profiles.Home{Kind: "volume", Name: "x"},
		Look:    profiles.Look{Dark: &dark, Font: "Sans 10", Cursor: "Adwaita", Icons: "Adwaita", Theme: "Adwaita", Scale: 1},
		Locale:  profiles.Locale{Lang: "C.UTF-8", Timezone: "Europe/Berlin", Keyboard: []string{"us", "de"}, InputMethod: "fcitx5"},
		Apps:    []profiles.App{{Image: "gnome", Export: []string{"*"}, Component: "apps-gnome", Idle: 10 * time.Minute}},
		Limits:  profiles.Limits{CPUs: 2, Memory: 4 << 30, PIDs: 4096},
		Components: []profiles.Component{
			{Name: "display", Image: "display", Command: []string{"Xvfb", ":0"}, Provides: []string{"display"}, Ready: []profiles.Probe{{Kind: "x11"}},
				Timeout: 20 * time.Second, Restart: "always", Needs: []string{"x11"}, Devices: []string{"/dev/dri/card0"}, Caps: []string{"CAP_SYS_TTY_CONFIG"},
				Files: map[string]string{"/run/berth/a": "b"}, StopSig: "SIGINT", Stop: time.Second},
			{Name: "panel", Image: "xfce", Command: []string{"xfce4-panel"}, Provides: []string{"panel"}, After: []string{"display"},
				Ready: []profiles.Probe{{Kind: "bus", Arg: "org.xfce.Panel"}}, Timeout: 30 * time.Second, Restart: "on-failure",
				Env: map[string]string{"X": "y"}, Cwd: "/", Optional: true},
		},
	}
}

// Guess implements api.Manager.
func (f *Fake) Guess(ctx context.Context, _ api.Caller, req api.GuessRequest, progress func(api.UpEvent)) (api.Guess, error) {
	if err := f.note("Guess", req.Image, req.Session, req.Profile); err != nil {
		return api.Guess{}, err
	}
	progress(api.UpEvent{Message: "pulling image " + req.Image})
	if err := f.hold(ctx); err != nil {
		return api.Guess{}, err
	}
	name := cmp.Or(req.Profile, "desk")
	return api.Guess{Image: req.Image, Reason: "it is the first", Profile: name,
		Session: api.GuessedSession{Name: "lxde", Title: "LXDE", Command: []string{"startlxde"}, From: "/usr/share/xsessions/lxde.desktop"},
		Others:  []api.GuessedSession{{Name: "openbox", Title: "Openbox", Command: []string{"openbox", "a b"}, From: "program /usr/bin/openbox"}},
		Notes:   []string{"there is no dbus-daemon in the image"},
		Source:  fmt.Sprintf("name = %q\n[components.desktop]\nimage = %q\ncommand = [\"startlxde\"]\n", name, req.Image)}, nil
}

// Images returns f as api.Images (a view, since both interfaces have a Remove).
func (f *Fake) Images() api.Images { return images{f} }

type images struct{ f *Fake }

func (i images) List(context.Context) ([]orchestrator.Image, error) {
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	var out []orchestrator.Image
	for _, m := range i.f.images {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b orchestrator.Image) int { return strings.Compare(a.Ref, b.Ref) })
	return out, nil
}

func (i images) Recipes() []string { return []string{"display", "xfce", "xfce-13"} }

func (i images) Build(ctx context.Context, names []string, opt api.BuildOptions, progress func(api.Build)) error {
	if err := i.f.note("Build", names, opt.NoCache, opt.Force); err != nil {
		return err
	}
	for _, n := range names {
		if !slices.Contains(i.Recipes(), n) {
			return fmt.Errorf("image %q: recipe: %w", n, orchestrator.ErrNotFound)
		}
		progress(api.Build{Image: n, Status: []byte(BuildStatus)})
	}
	return i.f.hold(ctx)
}

// BuildStatus is one status document of BuildKit.
const BuildStatus = `{"Vertexes":[{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000001",` +
	`"name":"[1/2] FROM debian:trixie","started":"2026-11-22T07:00:00Z","completed":"2026-11-22T07:00:01Z"}]}`

func (i images) Ensure(_ context.Context, names []string, _ api.EnsureOptions, _ func(api.UpEvent)) (map[string]string, error) {
	out := map[string]string{}
	for _, n := range names {
		out[n], _ = i.Resolve(n)
	}
	return out, nil
}

func (i images) Resolve(name string) (string, error) {
	switch {
	case slices.Contains(i.Recipes(), name):
		return "localhost/berth/" + name + ":latest", nil
	case strings.Contains(name, "/"):
		return name, nil
	case name == "" || strings.ContainsAny(name, " \x00"):
		return "", fmt.Errorf("image %q: %w", name, orchestrator.ErrInvalid)
	}
	return "docker.io/library/" + name, nil
}

func (i images) Pull(ctx context.Context, ref string, opt orchestrator.TransferOptions) (orchestrator.Image, error) {
	if err := i.f.note("Pull", ref, opt.Insecure, opt.Anonymous); err != nil {
		return orchestrator.Image{}, err
	}
	opt.Progress(orchestrator.Progress{ID: "sha256:aa", Status: "downloading", Done: 512, Total: 1024})
	opt.Progress(orchestrator.Progress{ID: "sha256:aa", Status: "done", Done: 1024, Total: 1024})
	if err := i.f.hold(ctx); err != nil {
		return orchestrator.Image{}, err
	}
	full, err := i.Resolve(ref)
	if err != nil {
		return orchestrator.Image{}, err
	}
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	i.f.images[full] = Image(full)
	return i.f.images[full], nil
}

func (i images) Push(_ context.Context, ref string, opt orchestrator.TransferOptions) error {
	if err := i.f.note("Push", ref, opt.Insecure); err != nil {
		return err
	}
	opt.Progress(orchestrator.Progress{ID: "sha256:aa", Status: "uploading", Done: 512, Total: 1024})
	return nil
}

func (i images) Import(_ context.Context, r io.Reader, opt orchestrator.TransferOptions) ([]orchestrator.Image, error) {
	opt.Progress(orchestrator.Progress{ID: "archive", Status: "extracting"})
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	if !bytes.HasPrefix(data, []byte("tar:")) {
		return nil, fmt.Errorf("archive: %w: no layers", orchestrator.ErrInvalid)
	}
	ref := strings.TrimSpace(strings.TrimPrefix(string(data), "tar:"))
	return []orchestrator.Image{Image(ref)}, i.f.note("Import", ref, len(data))
}

func (i images) Export(_ context.Context, w io.Writer, refs ...string) error {
	for _, r := range refs {
		if _, ok := i.f.images[r]; !ok {
			return fmt.Errorf("image %q: %w", r, orchestrator.ErrNotFound)
		}
	}
	if _, err := io.WriteString(w, "tar:"+strings.Join(refs, ",")); err != nil {
		return err
	}
	return i.f.note("Export", refs)
}

func (i images) Tag(_ context.Context, src, dst string) error { return i.f.note("Tag", src, dst) }

func (i images) Remove(_ context.Context, ref string) error {
	i.f.mu.Lock()
	_, ok := i.f.images[ref]
	i.f.mu.Unlock()
	if !ok {
		return fmt.Errorf("image %q: %w", ref, orchestrator.ErrNotFound)
	}
	return i.f.note("RemoveImage", ref)
}

func (i images) Prune(context.Context) (int64, error) { return 123 << 20, i.f.note("Prune") }

var _ api.Manager = (*Fake)(nil)
