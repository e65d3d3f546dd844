package session

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator/fake"
	"berth/profiles"
	"berth/session/api"
	"berth/session/launch"
)

// exporter writes down what it was asked for.
type exporter struct{ dir string }

func (e exporter) Export(_ context.Context, ref string, app profiles.App) (string, error) {
	dir := filepath.Join(e.dir, ref+"-"+app.Component)
	return dir, os.MkdirAll(filepath.Join(dir, "share"), 0o755)
}

func (exporter) AutostartOff(_ context.Context, ref, image string, p *profiles.Plan) ([]profiles.AutostartOff, error) {
	if ref != "img" {
		return nil, nil
	}
	return []profiles.AutostartOff{{Image: image, File: "notifyd.desktop", Owner: "notifications"}}, nil
}

func (exporter) Complete(context.Context, *profiles.Plan) error { return nil }

// appsBed is a session with a panel of the image "img" and applications of "img2".
func appsBed(t *testing.T) (*bed, func() *session) {
	apps := profiles.Component{Name: "apps-img2", Command: []string{"launcher"}, OnDemand: true, Optional: true, Restart: "never",
		Ready: []profiles.Probe{{Kind: "bus", Arg: "apps-img2"}}}
	b := newBed(t, profiles.Component{Name: "panel", Provides: []string{"panel"}}, apps)
	if err := b.engine.AddImage(fake.ImageSpec{Ref: "img2", Files: map[string]string{"/etc/passwd": "root:x:0:0::/:/bin/sh\n"}}); err != nil {
		t.Fatal(err)
	}
	b.plan.Components[1].Image = "img2"
	b.plan.Apps = []profiles.App{{Image: "img", Component: "apps-img", Export: []string{"*"}}, {Image: "img2", Component: "apps-img2", Export: []string{"*"}}}
	// A launcher listens, ends with 0 when somebody says so ("idle" in its directory), and with SIGTERM.
	b.engine.Handle("launcher", func(ctx context.Context, p *fake.Process) int {
		s := b.m.named("duo")
		socket := launch.Socket(s.wires.runtime(), "apps-img2")
		if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
			return 9
		}
		os.Remove(socket)
		l, err := net.Listen("unix", socket)
		if err != nil {
			return 9
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		return fake.Serve()(ctx, p)
	})
	return b, func() *session { return b.m.named("duo") }
}

func stateOf(t *testing.T, b *bed, name string) api.Component {
	t.Helper()
	d, err := b.m.Session(t.Context(), api.Caller{}, "duo")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range d.Components {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no component %q", name)
	return api.Component{}
}

// A component that is started on demand costs nothing until it is called for, may end, and starts again.
func TestOnDemand(t *testing.T) {
	b, sess := appsBed(t)
	if _, err := b.m.Up(t.Context(), api.Caller{}, api.UpRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	if st := stateOf(t, b, "apps-img2"); st.State != "idle" {
		t.Errorf("before anybody calls: %+v", st)
	}
	if have, err := b.engine.Containers(t.Context(), sess().id); err != nil || len(have) != 1 {
		t.Errorf("containers: %+v, %v; want the panel's alone", have, err)
	}
	spec, err := b.engine.Spec(sess().id, "panel")
	if err != nil {
		t.Fatal(err)
	}
	var mounts []string
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Target, ExportsDir) {
			mounts = append(mounts, m.Target)
		}
	}
	if diff := cmp.Diff([]string{ExportsDir + "/apps-img2"}, mounts); diff != "" {
		t.Errorf("the panel's exports (-want +got):\n%s", diff)
	}
	if got := strings.Join(slices.DeleteFunc(slices.Clone(spec.Env), func(kv string) bool { return !strings.HasPrefix(kv, "XDG_DATA_DIRS=") }), " "); got != "XDG_DATA_DIRS="+"/usr/local/share:/usr/share:"+ExportsDir+"/apps-img2/share" {
		t.Errorf("got %s", got)
	}
	if want := "XDG_CONFIG_DIRS=/run/berth/autostart-0:/etc/xdg"; !slices.Contains(spec.Env, want) {
		t.Errorf("environment %q lacks %s", spec.Env, want)
	}
	if data, err := os.ReadFile(filepath.Join(sess().wires.berth(), "autostart-0/autostart/notifyd.desktop")); err != nil || !strings.Contains(string(data), "Hidden=true") {
		t.Errorf("the entry that is switched off: %q, %v", data, err)
	}
	// Many call at once, and it starts once.
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- callFor(t.Context(), sess(), "apps-img2") }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	st := stateOf(t, b, "apps-img2")
	if st.State != "ready" || st.Restarts != 0 {
		t.Errorf("called for: %+v", st)
	}
	if err := b.engine.StopContainer(t.Context(), sess().id, "apps-img2", time.Second); err != nil {
		t.Fatal(err)
	}
	b.until("it is idle again", func() bool { return stateOf(t, b, "apps-img2").State == "idle" })
	if d, err := b.m.Session(t.Context(), api.Caller{}, "duo"); err != nil || d.State != api.StateRunning {
		t.Errorf("session is %s, %v", d.State, err)
	}
	if err := callFor(t.Context(), sess(), "apps-img2"); err != nil {
		t.Error(err)
	}
	// A new daemon finds it, and hears calls.
	if err := b.m.Close(); err != nil {
		t.Fatal(err)
	}
	b.start()
	if st := stateOf(t, b, "apps-img2"); st.State != "ready" {
		t.Errorf("adopted: %+v", st)
	}
	if err := callFor(t.Context(), sess(), "apps-img2"); err != nil {
		t.Error(err)
	}
	if err := callFor(t.Context(), sess(), "panel"); err == nil || !strings.Contains(err.Error(), "apps-img2") {
		t.Errorf("call for a component that is not started on demand: %v; want what there is", err)
	}
	if err := b.m.Stop(t.Context(), api.Caller{}, "duo"); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

// One that cannot start says why to whom called for it, and the session goes on.
func TestOnDemandFails(t *testing.T) {
	b, sess := appsBed(t)
	b.engine.Handle("launcher", func(context.Context, *fake.Process) int { return 3 })
	if _, err := b.m.Up(t.Context(), api.Caller{}, api.UpRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := callFor(t.Context(), sess(), "apps-img2"); err == nil || !strings.Contains(err.Error(), "code 3") {
			t.Errorf("got %v", err)
		}
	}
	if d, err := b.m.Session(t.Context(), api.Caller{}, "duo"); err != nil || d.State != api.StateRunning || d.Error != "" {
		t.Errorf("session is %s (%s), %v", d.State, d.Error, err)
	}
	if err := b.m.Stop(t.Context(), api.Caller{}, "duo"); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

// callFor calls as berth-launch does, through the socket.
func callFor(ctx context.Context, s *session, component string) error {
	socket := filepath.Join(s.wires.berth(), filepath.Base(launch.DemandSocket))
	code, err := launch.Run(ctx, launch.Call{Component: component, RuntimeDir: s.wires.runtime(), Demand: socket, Args: []string{"true"}})
	if code == 125 && errors.Is(err, launch.ErrUnheard) {
		return nil // the launcher of these tests runs nothing
	}
	return err
}
