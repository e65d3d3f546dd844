package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/internal/paths"
	"berth/internal/rmtree"
	"berth/orchestrator"
	"berth/orchestrator/fake"
	"berth/profiles"
	"berth/session/api"
	"berth/session/look"
)

const patience = 30 * time.Second

// bed is a manager on a fake engine, with a display and a gateway that only remember.
type bed struct {
	t      *testing.T
	engine *fake.Engine
	layout paths.Layout
	plan   profiles.Plan
	m      *Manager
	// patience is for the managers that start makes from now on.
	patience time.Duration
	log      *bytes.Buffer

	mu       sync.Mutex
	attached map[string]int // name -> port
	sizes    []string
	// resources are what SetResources was told, in order.
	resources []map[string]string
	told      []look.Message
	deaf      bool // neither does the gateway let anybody in, nor does the display answer
	ensured   []api.EnsureOptions
}

func newBed(t *testing.T, comps ...profiles.Component) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("the session's tmpfs needs root")
	}
	root, err := os.MkdirTemp("", "bs")
	if err != nil {
		t.Fatal(err)
	}
	l, err := paths.New(root)
	if err != nil {
		t.Fatal(err)
	}
	l.Libexec = filepath.Join(root, "libexec")
	if err := os.MkdirAll(l.Tools(), 0o755); err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, engine: fake.New(), layout: l, attached: map[string]int{}, log: &bytes.Buffer{},
		plan: profiles.Plan{Profile: "duo", Home: profiles.Home{Kind: "ephemeral"}, Audio: profiles.Audio{Server: "none"},
			Display: profiles.Display{Server: "xvfb", Width: 800, Height: 600, DPI: 96}, Components: comps}}
	if err := b.engine.AddImage(fake.ImageSpec{Ref: "img", Files: map[string]string{"/etc/passwd": "root:x:0:0::/:/bin/sh\n", "/etc/skel/.bashrc": "# hello\n"}}); err != nil {
		t.Fatal(err)
	}
	for i := range comps {
		c := &b.plan.Components[i]
		c.Image = "img"
		if c.Command == nil {
			c.Command = []string{"serve"}
		}
		if c.Ready == nil {
			c.Ready = []profiles.Probe{{Kind: "bus", Arg: c.Name}}
		}
		if c.Timeout == 0 {
			c.Timeout = patience
		}
		if c.Needs == nil { // as profiles.Build does
			c.Needs = []string{profiles.WireX11, profiles.WireBus, profiles.WireAudio, profiles.WireHome}
		}
	}
	b.engine.Handle("serve", fake.Serve())
	b.start()
	t.Cleanup(func() {
		b.m.Close()
		for _, p := range b.pods() {
			b.engine.RemovePod(context.Background(), p.ID)
		}
		dirs, _ := filepath.Glob(l.Session("*"))
		for _, d := range dirs {
			(wires{d}).remove()
		}
		os.RemoveAll(root)
	})
	return b
}

// start makes a manager, as a daemon that starts does.
func (b *bed) start() {
	b.t.Helper()
	var err error
	b.m, err = New(context.Background(), Options{Engine: b.engine.Connect(), Images: imagesAsNamed{b: b}, Layout: b.layout, Exports: exporter{filepath.Join(b.layout.State, "exports")},
		Plan: func(context.Context, api.Caller, api.UpRequest) (*profiles.Plan, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			p := b.plan
			return &p, nil
		},
		Probe:  func(Target) Prober { return prober{b.engine} },
		Cookie: func() ([]byte, error) { return []byte("cookie"), nil }, Tell: b.tell, Screen: b, Gateway: b, Patience: b.patience,
		Log: slog.New(slog.NewTextHandler(&syncWriter{w: b.log}, nil))})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) pods() []orchestrator.Pod {
	p, err := b.engine.Pods(context.Background(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// clean fails the test if anything of a session is left.
func (b *bed) clean() {
	b.t.Helper()
	if p := b.pods(); len(p) != 0 {
		b.t.Errorf("%d pods are left: %+v", len(p), p)
	}
	for _, dir := range []string{filepath.Dir(b.layout.Session("x")), filepath.Join(b.layout.State, "ephemeral"), b.layout.Volumes()} {
		left, _ := filepath.Glob(dir + "/*")
		for _, l := range left {
			if below, _ := filepath.Glob(l + "/*"); dir != b.layout.Volumes() || len(below) > 0 {
				b.t.Errorf("left behind: %s %v", l, below)
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.attached) > 0 {
		b.t.Errorf("the gateway still offers %v", b.attached)
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if len(b.m.sessions) > 0 {
		b.t.Errorf("the manager still has %d sessions", len(b.m.sessions))
	}
}

func (b *bed) until(what string, cond func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited for: %s\n%s", what, b.log)
		}
		time.Sleep(time.Millisecond)
	}
}

func (b *bed) Attach(_ context.Context, r Remote) (string, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deaf {
		return "", "", errors.New("no such address")
	}
	if r.Exact && r.Port == 1 {
		return "", "", fmt.Errorf("port 1: in use")
	}
	port := r.Port
	if port == 0 {
		port = 5900 + len(b.attached)
	}
	b.attached[r.Name] = port
	return fmt.Sprintf("127.0.0.1:%d", port), "http://x/s/" + r.Name, nil
}

func (b *bed) Detach(r Remote) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.attached, r.Name)
}

func (b *bed) Painted(context.Context, string, string) error             { return nil }
func (b *bed) Shot(context.Context, string, string, int) ([]byte, error) { return []byte("PNG"), nil }
func (b *bed) Size(ctx context.Context, _, _ string) (int, int, error) {
	if b.deaf {
		<-ctx.Done()
		return 0, 0, ctx.Err()
	}
	return 640, 480, nil
}
func (b *bed) Resize(_ context.Context, _, _ string, w, h, dpi int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sizes = append(b.sizes, fmt.Sprintf("%dx%d@%d", w, h, dpi))
	return nil
}

func (b *bed) SetResources(_ context.Context, _, _ string, values map[string]string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resources = append(b.resources, values)
	return nil
}

func (b *bed) tell(_ context.Context, runtimeDir string, messages []look.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = append(b.told, messages...)
	return nil
}

func (b *bed) Fit(_ context.Context, _, _ string, w, h, dpi int) (int, int, error) {
	return min(w, 2560), min(h, 1600), nil
}

// prober finds a component ready when its program has said so.
type prober struct{ e *fake.Engine }

func (p prober) Wait(ctx context.Context, want profiles.Probe) error {
	pods, err := p.e.Pods(ctx, nil)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if _, err := p.e.Container(ctx, pod.ID, want.Arg); err == nil {
			if err := p.e.WaitReady(ctx, pod.ID, want.Arg); err != nil {
				return fmt.Errorf("waited for %s: %w", want, err)
			}
			return nil
		}
	}
	return fmt.Errorf("waited for %s: no such container", want)
}
func (prober) Close() error { return nil }

// imagesAsNamed is an image service whose images all exist under the names they are asked for by.
type imagesAsNamed struct {
	api.Images
	b *bed
}

func (i imagesAsNamed) Ensure(_ context.Context, names []string, opt api.EnsureOptions, _ func(api.UpEvent)) (map[string]string, error) {
	i.b.mu.Lock()
	i.b.ensured = append(i.b.ensured, opt)
	i.b.mu.Unlock()
	out := map[string]string{}
	for _, n := range names {
		out[n] = n
	}
	return out, nil
}

type syncWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

var root = api.Caller{Name: "root"}

func chain() []profiles.Component {
	return []profiles.Component{
		{Name: "display", Provides: []string{"display"}, Restart: "always"},
		{Name: "bus", Provides: []string{"bus"}, Restart: "always"},
		{Name: "wm", After: []string{"display", "bus"}, Restart: "always"},
		{Name: "session", After: []string{"display", "bus"}, Restart: "on-failure"},
		{Name: "panel", After: []string{"wm"}, Restart: "on-failure"},
	}
}

func (b *bed) up(req api.UpRequest) api.Session {
	b.t.Helper()
	s, err := b.m.Up(context.Background(), root, req, nil)
	if err != nil {
		b.t.Fatalf("%v\n%s", err, b.log)
	}
	return s
}

func TestUpStartsInOrderAndStopTakesDownInReverse(t *testing.T) {
	b := newBed(t, chain()...)
	s := b.up(api.UpRequest{Profile: "duo"})
	if s.Name != "duo" || s.State != api.StateRunning || s.ReadyMS == 0 || s.Remote.VNC == "" || len(s.Remote.Password) != 8 {
		t.Errorf("session: %+v", s)
	}
	order := b.ops("StartContainer")
	before := func(x, y string) {
		t.Helper()
		if slices.Index(order, x) > slices.Index(order, y) {
			t.Errorf("%s did not start before %s: %v", x, y, order)
		}
	}
	before("display", "wm")
	before("bus", "wm")
	before("wm", "panel")
	if err := b.m.Stop(context.Background(), root, "duo"); err != nil {
		t.Fatal(err)
	}
	stops := b.ops("StopContainer")
	for _, pair := range [][2]string{{"panel", "wm"}, {"wm", "display"}, {"wm", "bus"}, {"session", "display"}} {
		if slices.Index(stops, pair[0]) > slices.Index(stops, pair[1]) {
			t.Errorf("%s was not stopped before %s: %v", pair[0], pair[1], stops)
		}
	}
	b.clean()
}

// ops lists the containers of the calls of one method, in order.
func (b *bed) ops(op string) (out []string) {
	for _, c := range b.engine.Calls() {
		if c.Op == op {
			out = append(out, c.Container)
		}
	}
	return out
}

func TestDisplayGetsItsSizeBeforeItsClients(t *testing.T) {
	comps := chain()
	comps[0].Ready = []profiles.Probe{{Kind: "bus", Arg: "display"}, {Kind: "x11"}}
	b := newBed(t, comps...)
	b.m.opt.Probe = func(Target) Prober { return x11Prober{prober{b.engine}} }
	b.up(api.UpRequest{})
	if d := cmp.Diff([]string{"800x600@96"}, b.sizes); d != "" {
		t.Errorf("sizes (-want +got):\n%s", d)
	}
}

func TestResize(t *testing.T) {
	b := newBed(t, chain()...)
	b.up(api.UpRequest{})
	for _, tc := range []struct {
		w, h    int
		nearest bool
		want    string // "" is ErrInvalid
	}{
		{319, 200, false, ""}, {320, 199, false, ""}, {8193, 600, false, ""}, {800, 8193, false, ""},
		{8192, 8192, false, "8192x8192"}, {1024, 768, false, "1024x768"},
		{8193, 600, true, "2560x600"}, {1024, 768, true, "1024x768"},
	} {
		got, err := b.m.Resize(t.Context(), root, "duo", api.ResizeRequest{Size: api.Size{Width: tc.w, Height: tc.h}, Nearest: tc.nearest})
		if tc.want == "" {
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Errorf("size %dx%d: %v; want ErrInvalid", tc.w, tc.h, err)
			}
			continue
		}
		s, serr := b.m.Session(t.Context(), root, "duo")
		if is := fmt.Sprintf("%dx%d", got.Width, got.Height); err != nil || serr != nil || is != tc.want || s.Display.Size != tc.want {
			t.Errorf("size %dx%d, nearest %v: became %s, %v, shown is %s, %v; want %s", tc.w, tc.h, tc.nearest, is, err, s.Display.Size, serr, tc.want)
		}
	}
}

type x11Prober struct{ prober }

func (p x11Prober) Wait(ctx context.Context, want profiles.Probe) error {
	if want.Kind == "x11" {
		return nil
	}
	return p.prober.Wait(ctx, want)
}

func TestNames(t *testing.T) {
	b := newBed(t, chain()...)
	for _, want := range []string{"duo", "duo-2", "duo-3"} {
		if s := b.up(api.UpRequest{}); s.Name != want {
			t.Errorf("name = %q; want %q", s.Name, want)
		}
	}
	for name, class := range map[string]error{"duo": orchestrator.ErrExists, "A b": orchestrator.ErrInvalid,
		"../x": orchestrator.ErrInvalid, strings.Repeat("x", 33): orchestrator.ErrInvalid} {
		if _, err := b.m.Up(context.Background(), root, api.UpRequest{Name: name}, nil); !errors.Is(err, class) {
			t.Errorf("up %q: %v; want %v", name, err, class)
		}
	}
	for _, n := range []string{"duo", "duo-2", "duo-3"} {
		if err := b.m.Stop(context.Background(), root, n); err != nil {
			t.Error(err)
		}
	}
	b.clean()
}

func TestFailedStarts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		program fake.Program // of the component "bad"; nil: not in the image
		change  func(*profiles.Component)
		req     api.UpRequest
		want    []string
	}{
		{"command_not_in_image", nil, nil, api.UpRequest{}, []string{`component "bad"`, "no-such", "img"}},
		{"never_ready", fake.Script(fake.Print("I wait\n"), fake.Hang()), func(c *profiles.Component) { c.Timeout = 50 * time.Millisecond; c.Stop = time.Millisecond },
			api.UpRequest{}, []string{`component "bad"`, "waited for bus:bad", "I wait"}},
		{"crashes", fake.Script(fake.Print("oh no\n"), fake.Exit(7)), func(c *profiles.Component) { c.Restart = "always" }, api.UpRequest{},
			[]string{`component "bad"`, "code 7", "oh no"}},
		{"port_taken", fake.Serve(), nil, api.UpRequest{VNCPort: 1}, []string{"port 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bad := profiles.Component{Name: "bad", Command: []string{"no-such"}, After: []string{"bus"}}
			if tc.change != nil {
				tc.change(&bad)
			}
			b := newBed(t, append(chain(), bad)...)
			b.plan.Home = profiles.Home{Kind: "volume"}
			if tc.program != nil {
				b.engine.Handle("no-such", tc.program)
			}
			_, err := b.m.Up(context.Background(), root, tc.req, nil)
			if err == nil {
				t.Fatal("up succeeded")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error lacks %q: %v", w, err)
				}
			}
			b.clean()
		})
	}
}

// TestPatience has the configuration give a component more time than its plan does.
func TestPatience(t *testing.T) {
	b := newBed(t, append(chain(), profiles.Component{Name: "bad", Command: []string{"no-such"}, After: []string{"bus"}, Timeout: time.Millisecond, Stop: time.Millisecond})...)
	b.engine.Handle("no-such", fake.Script(fake.Hang()))
	b.m.Close()
	b.patience = 50 * time.Millisecond
	b.start()
	if _, err := b.m.Up(context.Background(), root, api.UpRequest{}, nil); err == nil || !strings.Contains(err.Error(), "not ready within 50ms") {
		t.Errorf("up = %v; want that a component was not ready within 50ms", err)
	}
	b.clean()
}

// TestEveryStepCanFail lets each engine call of a start fail in turn, and cancels the start at each.
func TestEveryStepCanFail(t *testing.T) {
	for _, how := range []string{"fails", "is_cancelled"} {
		t.Run(how, func(t *testing.T) {
			boom := errors.New("boom")
			for n := 0; ; n++ {
				b := newBed(t, chain()...)
				b.plan.Home = profiles.Home{Kind: "volume"}
				ctx, cancel := context.WithCancel(context.Background())
				var mu sync.Mutex
				seen, hit := 0, ""
				b.engine.Intercept(func(_ context.Context, c fake.Call) error {
					mu.Lock()
					defer mu.Unlock()
					if !slices.Contains([]string{"CreatePod", "CreateContainer", "StartContainer", "SetPodData", "ReadFile"}, c.Op) {
						return nil
					}
					seen++
					if seen-1 != n {
						return nil
					}
					hit = c.String()
					if how == "fails" {
						return boom
					}
					cancel()
					return nil
				})
				_, err := b.m.Up(ctx, root, api.UpRequest{}, nil)
				cancel()
				if hit == "" {
					if err != nil {
						t.Fatalf("without a failure: %v", err)
					}
					return
				}
				// A call that fails once may be tried again by policy; a cancelled start never succeeds, unless it was done.
				if err == nil {
					if err := b.m.Stop(context.Background(), root, "duo"); err != nil {
						t.Error(err)
					}
					rmtree.Remove(b.layout.Volumes())
				} else if how == "fails" && !errors.Is(err, boom) {
					t.Errorf("%s failed, up said: %v", hit, err)
				}
				b.clean()
				if t.Failed() {
					t.Fatalf("at %s", hit)
				}
			}
		})
	}
}

func TestOptionalFailureDoesNotHoldUpTheRest(t *testing.T) {
	b := newBed(t, append(chain(),
		profiles.Component{Name: "extra", Command: []string{"no-such"}, Optional: true},
		profiles.Component{Name: "on-extra", After: []string{"extra"}, Optional: true})...)
	s := b.up(api.UpRequest{})
	if s.State != api.StateDegraded || find(s, "extra").State != compFailed || !strings.Contains(find(s, "on-extra").Error, `"extra"`) {
		t.Errorf("session: %+v", s)
	}
	if err := b.m.Stop(context.Background(), root, s.Name); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

func TestRestartDegradesAndHeals(t *testing.T) {
	b := newBed(t, chain()...)
	events, err := b.m.Events(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	s := b.up(api.UpRequest{})
	if err := b.engine.Exit(s.ID, "panel", 1); err != nil {
		t.Fatal(err)
	}
	b.until("the panel's second life", func() bool {
		s, _ := b.m.Session(context.Background(), root, "duo")
		return s.State == api.StateRunning && find(s, "panel").Restarts == 1 && find(s, "panel").State == compReady
	})
	if err := b.m.Stop(context.Background(), root, "duo"); err != nil {
		t.Fatal(err)
	}
	var types []string
	for e := range events {
		types = append(types, e.Type)
		if e.Type == "session.stopped" {
			break
		}
	}
	for _, want := range []string{"session.starting", "session.running", "component.exited", "component.backoff", "session.degraded", "session.stopped"} {
		if !slices.Contains(types, want) {
			t.Errorf("no event %s in %v", want, types)
		}
	}
	b.clean()
}

func find(s api.Session, name string) api.Component {
	for _, c := range s.Components {
		if c.Name == name {
			return c
		}
	}
	return api.Component{}
}

func TestLogOutEndsTheSession(t *testing.T) {
	b := newBed(t, chain()...)
	b.plan.Session = "session"
	s := b.up(api.UpRequest{})
	if err := b.engine.Exit(s.ID, "session", 0); err != nil {
		t.Fatal(err)
	}
	b.until("the end", func() bool { return len(b.m.all()) == 0 })
	b.clean()
}

// TestPowerOffEndsTheSession: the component that is asked to power off says so by its clean exit, which is told from a
// crash, also by a daemon that was not there at the time.
func TestPowerOffEndsTheSession(t *testing.T) {
	services := profiles.Component{Name: "services", Restart: "always", EndsSession: true}
	t.Run("while_running", func(t *testing.T) {
		b := newBed(t, append(chain(), services)...)
		s := b.up(api.UpRequest{})
		if err := b.engine.Exit(s.ID, "services", 1); err != nil {
			t.Fatal(err)
		}
		b.until("the second life after a crash", func() bool {
			s, _ := b.m.Session(context.Background(), root, "duo")
			return find(s, "services").Restarts == 1 && s.State == api.StateRunning
		})
		if err := b.engine.Exit(s.ID, "services", 0); err != nil {
			t.Fatal(err)
		}
		b.until("the end", func() bool { return len(b.m.all()) == 0 })
		b.clean()
	})
	t.Run("without_a_daemon", func(t *testing.T) {
		b := newBed(t, append(chain(), services)...)
		s := b.up(api.UpRequest{})
		b.m.Close()
		if err := b.engine.Exit(s.ID, "services", 0); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.until("the end", func() bool { return len(b.m.all()) == 0 })
		b.clean()
	})
}

func TestNewHomeIsFilledOnce(t *testing.T) {
	b := newBed(t, chain()...)
	b.plan.Home = profiles.Home{Kind: "volume"}
	file := ""
	for _, want := range []string{"# hello\n", "# mine\n"} {
		s := b.up(api.UpRequest{})
		file = filepath.Join(s.Home, ".bashrc")
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Errorf(".bashrc = %q, %v; want %q", got, err, want)
		}
		for _, p := range []string{file, s.Home} {
			if uid, err := ownerOf(p); err != nil || uid != defaultUID {
				t.Errorf("%s belongs to %d, %v", p, uid, err)
			}
		}
		if err := b.m.Stop(context.Background(), root, s.Name); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("# mine\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.m.Remove(context.Background(), root, "duo", false, true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(file)); !os.IsNotExist(err) {
		t.Errorf("the volume is still there: %v", err)
	}
	b.clean()
}

func TestAnchorsDeathEndsTheSession(t *testing.T) {
	b := newBed(t, chain()...)
	s := b.up(api.UpRequest{})
	if err := b.engine.ExitAnchor(s.ID); err != nil {
		t.Fatal(err)
	}
	b.until("the end", func() bool { return len(b.m.all()) == 0 })
	b.clean()
}

func TestAdoption(t *testing.T) {
	b := newBed(t, chain()...)
	b.plan.Session = "session"
	s := b.up(api.UpRequest{})
	other := b.up(api.UpRequest{Name: "leaves"})
	b.m.Close()
	// While no daemon runs one program dies, and one user logs out.
	if err := b.engine.Exit(s.ID, "panel", 1); err != nil {
		t.Fatal(err)
	}
	if err := b.engine.Exit(other.ID, "session", 0); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.until("one whole session", func() bool {
		all, _ := b.m.Sessions(context.Background(), root)
		return len(all) == 1 && all[0].State == api.StateRunning && find(all[0], "panel").Restarts == 1
	})
	now, err := b.m.Session(context.Background(), root, "duo")
	if err != nil {
		t.Fatal(err)
	}
	if now.Remote != s.Remote || now.ID != s.ID || now.ReadyMS != s.ReadyMS || now.Display.Size != "640x480" {
		t.Errorf("adopted %+v; was %+v", now, s)
	}
	if tr, err := b.m.Trace(context.Background(), root, "duo"); err != nil || len(tr.Spans) == 0 {
		t.Errorf("the trace is gone: %v", err)
	}
	if err := b.m.Stop(context.Background(), root, "duo"); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

// A gateway that cannot listen and an X server that does not answer keep nobody from their session.
func TestAdoptionWithoutGatewayAndDisplay(t *testing.T) {
	b := newBed(t, chain()...)
	s := b.up(api.UpRequest{})
	b.m.Close()
	b.mu.Lock()
	b.deaf = true
	b.mu.Unlock()
	b.start()
	now, err := b.m.Session(context.Background(), root, "duo")
	if err != nil || now.ID != s.ID || now.State != api.StateRunning || now.Remote.VNC != "" {
		t.Errorf("adopted %+v, %v", now, err)
	}
	if err := b.m.Stop(context.Background(), root, "duo"); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

// An end that fails leaves the session listed as failed, and can be tried again.
func TestFailedEndIsTriedAgain(t *testing.T) {
	b := newBed(t, chain()...)
	b.up(api.UpRequest{})
	boom := errors.New("boom")
	fail := func(_ context.Context, c fake.Call) error {
		if c.Op == "RemovePod" {
			return boom
		}
		return nil
	}
	b.engine.Intercept(fail)
	if err := b.m.Stop(context.Background(), root, "duo"); !errors.Is(err, boom) {
		t.Fatalf("stop: %v; want the engine's error", err)
	}
	now, err := b.m.Session(context.Background(), root, "duo")
	if err != nil || now.State != api.StateFailed || !strings.Contains(now.Error, "boom") {
		t.Errorf("after a failed stop: %+v, %v", now, err)
	}
	// So it is for the next daemon: the wires are gone, so nobody can use it, and its name stays taken.
	b.m.Close()
	b.start()
	if now, err = b.m.Session(context.Background(), root, "duo"); err != nil || now.State != api.StateFailed {
		t.Errorf("after a restart: %+v, %v", now, err)
	}
	b.engine.Intercept(nil)
	if err := b.m.Remove(context.Background(), root, "duo", false, false); err != nil {
		t.Errorf("rm of a failed session: %v", err)
	}
	b.clean()
}

// An optional component that is late is waited for by nobody, and comes back all the same.
func TestLateOptionalComponentComesBack(t *testing.T) {
	late := profiles.Component{Name: "late", Command: []string{"late"}, Optional: true, Restart: "always", Timeout: 30 * time.Millisecond, Stop: time.Millisecond}
	b := newBed(t, append(chain(), late, profiles.Component{Name: "on-late", After: []string{"late"}, Optional: true, Restart: "always"})...)
	var mu sync.Mutex
	hang := true
	b.engine.Handle("late", func(ctx context.Context, p *fake.Process) int {
		mu.Lock()
		h := hang
		mu.Unlock()
		if h {
			<-ctx.Done()
			return 1
		}
		return fake.Serve()(ctx, p)
	})
	s := b.up(api.UpRequest{})
	if s.State != api.StateDegraded || find(s, "late").State == compReady || find(s, "on-late").State == compReady {
		t.Errorf("session: %+v", s)
	}
	mu.Lock()
	hang = false
	mu.Unlock()
	b.until("all components", func() bool {
		s, _ := b.m.Session(context.Background(), root, "duo")
		return s.State == api.StateRunning
	})
	if err := b.m.Stop(context.Background(), root, "duo"); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

// A failed start takes back the home it made, unless another session lives in it by then; a killed one leaves none behind.
func TestHomeOfAFailedStart(t *testing.T) {
	b := newBed(t, append(chain(), profiles.Component{Name: "bad", Command: []string{"bad"}, Restart: "never"})...)
	b.plan.Home = profiles.Home{Kind: "volume", Name: "shared"}
	release := make(chan struct{})
	b.engine.Handle("bad", func(ctx context.Context, p *fake.Process) int {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return 1
	})
	failed := make(chan error, 1)
	go func() {
		_, err := b.m.Up(context.Background(), root, api.UpRequest{Name: "first"}, nil)
		failed <- err
	}()
	dir := b.m.volumeDir(defaultUID, "shared")
	b.until("the home", func() bool { _, err := os.Stat(dir); return err == nil })
	b.mu.Lock()
	b.plan.Components = b.plan.Components[:len(b.plan.Components)-1] // without the bad one
	b.mu.Unlock()
	b.up(api.UpRequest{Name: "second"})
	close(release)
	if err := <-failed; err == nil || !strings.Contains(err.Error(), `"second" uses it`) {
		t.Errorf("up: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".bashrc")); err != nil {
		t.Errorf("the second session's home: %v", err)
	}
	if err := b.m.Stop(context.Background(), root, "second"); err != nil {
		t.Fatal(err)
	}
	b.m.Close()
	if err := os.Mkdir(filepath.Join(filepath.Dir(dir), unfinishedHome+"first-00"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.start()
	if err := b.m.Remove(context.Background(), root, "shared", false, true); err != nil {
		t.Error(err)
	}
	b.clean()
}

// What was mounted as a home stays, whatever its owner puts in its place later.
func TestBindHome(t *testing.T) {
	b := newBed(t, chain()...)
	mine, theirs := filepath.Join(b.layout.Root, "mine"), filepath.Join(b.layout.Root, "theirs")
	for dir, uid := range map[string]int{mine: 4001, theirs: 4002} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "whose"), []byte(filepath.Base(dir)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	ann := api.Caller{UID: 4001, GID: 4001, Name: "ann"}
	b.plan.Home = profiles.Home{Kind: "bind", Path: theirs}
	if _, err := b.m.Up(context.Background(), ann, api.UpRequest{}, nil); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("up in somebody else's directory: %v", err)
	}
	b.plan.Home.Path = mine
	s, err := b.m.Up(context.Background(), ann, api.UpRequest{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Home != mine {
		t.Errorf("home = %q; want %q", s.Home, mine)
	}
	if err := os.Rename(mine, mine+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(theirs, mine); err != nil {
		t.Fatal(err)
	}
	spec, err := b.engine.Spec(s.ID, "wm")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(spec.Mounts, func(m orchestrator.Mount) bool { return m.Target == "/home/ann" })
	if i < 0 {
		t.Fatalf("no home among the mounts %+v", spec.Mounts)
	}
	if got, err := os.ReadFile(filepath.Join(spec.Mounts[i].Source, "whose")); err != nil || string(got) != "mine" {
		t.Errorf("the home is %q, %v; want mine", got, err)
	}
	if err := b.m.Stop(context.Background(), ann, "duo"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(mine+".old", "whose")); err != nil || string(got) != "mine" {
		t.Errorf("after the end the directory holds %q, %v", got, err)
	}
	b.clean()
}

// A required component that is not restarted makes the session fail when it ends badly.
func TestFailedSession(t *testing.T) {
	b := newBed(t, append(chain(), profiles.Component{Name: "once", Restart: "never"})...)
	s := b.up(api.UpRequest{})
	if err := b.m.Remove(context.Background(), root, "duo", false, false); !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("rm of a running session: %v", err)
	}
	if err := b.engine.Exit(s.ID, "once", 1); err != nil {
		t.Fatal(err)
	}
	b.until("the failure", func() bool {
		s, _ := b.m.Session(context.Background(), root, "duo")
		return s.State == api.StateFailed && strings.Contains(s.Error, `"once"`)
	})
	if err := b.m.Remove(context.Background(), root, "duo", false, false); err != nil {
		t.Errorf("rm of a failed session: %v", err)
	}
	b.clean()
}

func TestFailedNetworkIsShown(t *testing.T) {
	b := newBed(t, chain()...)
	b.up(api.UpRequest{Name: "s"})
	const why = "network plugin: no address left"
	b.engine.FailNetwork(b.pods()[0].ID, why)
	if s, err := b.m.Session(t.Context(), root, "s"); err != nil || s.NetworkError != why || s.IP != "" {
		t.Errorf("got address %q, network error %q, %v", s.IP, s.NetworkError, err)
	}
}

func TestUnfinishedStartIsClearedAway(t *testing.T) {
	b := newBed(t, chain()...)
	b.m.Close()
	if _, err := b.engine.CreatePod(context.Background(), orchestrator.PodSpec{ID: "duo-00", Data: []byte("{}"),
		Labels: map[string]string{labelKind: kindSession, labelSession: "duo"}}); err != nil {
		t.Fatal(err)
	}
	if err := (wires{b.layout.Session("duo")}).lay(context.Background(), Identity{UID: 1000, GID: 1000}, "duo", nil, nil); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.clean()
}

func TestUsersSeeTheirOwn(t *testing.T) {
	b := newBed(t, chain()...)
	ann, bob := api.Caller{UID: 4001, GID: 4001, Name: "ann"}, api.Caller{UID: 4002, GID: 4002, Name: "bob"}
	ctx := context.Background()
	if _, err := b.m.Up(ctx, ann, api.UpRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	for c, want := range map[api.Caller]int{ann: 1, bob: 0, root: 1} {
		if all, _ := b.m.Sessions(ctx, c); len(all) != want {
			t.Errorf("%s sees %d sessions; want %d", c.Name, len(all), want)
		}
	}
	if err := b.m.Stop(ctx, bob, "duo"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("bob's stop of ann's session: %v", err)
	}
	spec, err := b.engine.Spec(b.pods()[0].ID, "wm")
	if err != nil || spec.UID != 4001 || spec.GID != 4001 {
		t.Errorf("ann's program runs as %d:%d, %v", spec.UID, spec.GID, err)
	}
	if err := b.m.Stop(ctx, ann, "duo"); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

// A session's images are pulled with root's credentials only if it is root who starts it.
func TestWhoseCredentialsPull(t *testing.T) {
	b := newBed(t, chain()...)
	for _, c := range []api.Caller{{UID: 4001, GID: 4001, Name: "ann"}, root} {
		if _, err := b.m.Up(context.Background(), c, api.UpRequest{}, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.m.Stop(context.Background(), c, "duo"); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]api.EnsureOptions{{Anonymous: true}, {}}, b.ensured); d != "" {
		t.Errorf("images of ann's session, then root's (-want +got):\n%s", d)
	}
	b.clean()
}

func TestStopWhileStarting(t *testing.T) {
	slow := profiles.Component{Name: "slow", Command: []string{"slow"}}
	b := newBed(t, append(chain(), slow)...)
	b.engine.Handle("slow", fake.Script(fake.Await(15)))
	failed := make(chan error, 1)
	go func() {
		_, err := b.m.Up(context.Background(), root, api.UpRequest{}, nil)
		failed <- err
	}()
	b.until("a started program", func() bool { return slices.Contains(b.ops("StartContainer"), "slow") })
	if err := b.m.Stop(context.Background(), root, "duo"); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("up of a session that was stopped meanwhile: %v", err)
	}
	b.clean()
}
