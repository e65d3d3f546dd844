package fake_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
	"berth/orchestrator/fake"
)

const ref = "localhost/berth/test:latest"

func newEngine(t *testing.T) (*fake.Engine, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	e := fake.New()
	if err := e.AddImage(fake.ImageSpec{Ref: ref, Files: map[string]string{"/etc/release": "1\n"}, Env: []string{"A=image", "B=image"}, Cmd: []string{"serve"}}); err != nil {
		t.Fatal(err)
	}
	e.Handle("serve", fake.Serve())
	if _, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: "p"}); err != nil {
		t.Fatal(err)
	}
	return e, ctx
}

func start(t *testing.T, e *fake.Engine, ctx context.Context, spec orchestrator.ContainerSpec) int {
	t.Helper()
	spec.Image = ref
	if err := e.CreateContainer(ctx, "p", spec); err != nil {
		t.Fatal(err)
	}
	pid, err := e.StartContainer(ctx, "p", spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func nextExit(t *testing.T, ctx context.Context, events <-chan orchestrator.Event) orchestrator.Event {
	t.Helper()
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				t.Fatal("events ended")
			}
			if ev.Type == orchestrator.EventExit {
				return ev
			}
		case <-ctx.Done():
			t.Fatal("no exit event")
		}
	}
}

func TestScripts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		program fake.Program
		act     func(ctx context.Context, e *fake.Engine) error
		want    int
	}{
		{"exits", fake.Script(fake.Print("x\n"), fake.Exit(3)), nil, 3},
		{"runs_out", fake.Script(), nil, 0},
		{"serves_until_term", fake.Serve(), func(ctx context.Context, e *fake.Engine) error {
			return errors.Join(e.WaitReady(ctx, "p", "c"), e.StopContainer(ctx, "p", "c", time.Minute))
		}, 0},
		{"hangs_until_kill", fake.Script(fake.Ready(), fake.Hang()), func(ctx context.Context, e *fake.Engine) error {
			return errors.Join(e.WaitReady(ctx, "p", "c"), e.StopContainer(ctx, "p", "c", 10*time.Millisecond))
		}, 137},
		{"dies_of_term", fake.Script(fake.Until(nil)), func(ctx context.Context, e *fake.Engine) error {
			return e.StopContainer(ctx, "p", "c", time.Minute)
		}, 143},
		{"crashes", fake.Serve(), func(_ context.Context, e *fake.Engine) error { return e.Exit("p", "c", 11) }, 11},
		{"out_of_memory", fake.Serve(), func(_ context.Context, e *fake.Engine) error { return e.OOM("p", "c") }, 137},
		{"anchor_dies", fake.Serve(), func(_ context.Context, e *fake.Engine) error { return e.ExitAnchor("p") }, 137},
		{"pod_removed", fake.Serve(), func(ctx context.Context, e *fake.Engine) error { return e.RemovePod(ctx, "p") }, 137},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, ctx := newEngine(t)
			events, err := e.Events(ctx)
			if err != nil {
				t.Fatal(err)
			}
			e.Handle("c", tc.program)
			pid := start(t, e, ctx, orchestrator.ContainerSpec{Name: "c", Command: []string{"/usr/bin/c"}})
			if tc.act != nil {
				if err := tc.act(ctx, e); err != nil {
					t.Fatal(err)
				}
			}
			ev := nextExit(t, ctx, events)
			if ev.Pod != "p" || ev.Container != "c" || ev.PID != pid || ev.ExitCode != tc.want {
				t.Errorf("exit event %+v, want code %d of process %d", ev, tc.want, pid)
			}
		})
	}
}

func TestRestartAndLogs(t *testing.T) {
	e, ctx := newEngine(t)
	events, err := e.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e.Handle("hello", func(_ context.Context, p *fake.Process) int {
		io.WriteString(p.Stdout, strings.Join(p.Env, " ")+"\n")
		return 1
	})
	start(t, e, ctx, orchestrator.ContainerSpec{Name: "c", Command: []string{"hello"}, Env: []string{"B=mine", "C=mine"}})
	follow, err := e.Logs(ctx, "p", "c", -1, true)
	if err != nil {
		t.Fatal(err)
	}
	nextExit(t, ctx, events)
	if _, err := e.StartContainer(ctx, "p", "c"); err != nil {
		t.Fatal(err)
	}
	nextExit(t, ctx, events)
	if err := e.RemoveContainer(ctx, "p", "c"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(follow)
	if err != nil {
		t.Fatal(err)
	}
	want := "A=image B=mine C=mine\n"
	if string(got) != want+want {
		t.Errorf("log %q, want %q twice", got, want)
	}
	if _, err := e.Logs(ctx, "p", "c", -1, false); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("log of a removed container: %v", err)
	}
}

func TestExec(t *testing.T) {
	e, ctx := newEngine(t)
	start(t, e, ctx, orchestrator.ContainerSpec{Name: "c"})
	e.Handle("cat", func(_ context.Context, p *fake.Process) int {
		if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
			return 1
		}
		return 7
	})
	e.Handle("sleep", fake.Script(fake.Until(nil)))
	var out bytes.Buffer
	code, err := e.Exec(ctx, "p", "c", orchestrator.ExecSpec{Command: []string{"cat"}, Stdin: strings.NewReader("hi"), Stdout: &out})
	if code != 7 || err != nil || out.String() != "hi" {
		t.Errorf("Exec = %d, %v, output %q", code, err, out.String())
	}
	cctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := e.Exec(cctx, "p", "c", orchestrator.ExecSpec{Command: []string{"sleep"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Exec: %v", err)
	}
	if _, err := e.Exec(ctx, "p", "c", orchestrator.ExecSpec{Command: []string{"nosuch"}}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("Exec of nothing: %v", err)
	}
	done := make(chan int, 1)
	e.Handle("loop", fake.Script(func(ctx context.Context, _ *fake.Process) (bool, int) {
		close(done)
		<-ctx.Done()
		return false, 0
	}))
	result := make(chan int, 1)
	go func() {
		code, err := e.Exec(ctx, "p", "c", orchestrator.ExecSpec{Command: []string{"loop"}})
		if err != nil {
			code = -1
		}
		result <- code
	}()
	<-done
	if err := e.Exit("p", "c", 0); err != nil {
		t.Fatal(err)
	}
	if code := <-result; code != 137 {
		t.Errorf("exec in a container that exited: %d, want 137", code)
	}
}

func TestInterceptAndConnect(t *testing.T) {
	e, ctx := newEngine(t)
	boom := errors.New("boom")
	e.Intercept(func(_ context.Context, c fake.Call) error {
		if c.String() == "StartContainer p/c" {
			return boom
		}
		return nil
	})
	if err := e.CreateContainer(ctx, "p", orchestrator.ContainerSpec{Name: "c", Image: ref}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.StartContainer(ctx, "p", "c"); !errors.Is(err, boom) {
		t.Errorf("intercepted start: %v", err)
	}
	e.Intercept(nil)
	if _, err := e.StartContainer(ctx, "p", "c"); err != nil {
		t.Fatal(err)
	}
	other := e.Connect()
	events, err := e.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for range events { // ends
	}
	if _, err := e.Pods(ctx, nil); !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("closed engine: %v", err)
	}
	s, err := other.Container(ctx, "p", "c")
	if err != nil || s.State != orchestrator.StateRunning {
		t.Errorf("after the first connection closed: %+v, %v", s, err)
	}
	var ops []string
	for _, c := range other.Calls() {
		ops = append(ops, c.Op)
	}
	if want := []string{"CreatePod", "CreateContainer", "StartContainer", "StartContainer", "Events", "Pods", "Container"}; !slices.Equal(ops, want) {
		t.Errorf("calls %v, want %v", ops, want)
	}
}

func TestImageArchive(t *testing.T) {
	e, ctx := newEngine(t)
	var archive bytes.Buffer
	if err := e.Images().Export(ctx, &archive, ref); err != nil {
		t.Fatal(err)
	}
	before, err := e.Images().Get(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(archive.Bytes())
	if err := e.Images().Remove(ctx, ref); err != nil {
		t.Fatal(err)
	}
	got, err := e.Images().Import(ctx, &archive, orchestrator.TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]orchestrator.Image{before}, got); diff != "" {
		t.Errorf("image after export and import (-want +got):\n%s", diff)
	}
	text, err := e.Images().ReadFile(ctx, ref, "/etc/release")
	if err != nil || string(text) != "1\n" {
		t.Errorf("ReadFile = %q, %v", text, err)
	}
	for i := 600; i < len(whole); i += len(whole) / 7 {
		if whole[i] == 0 {
			continue
		}
		bad := bytes.Clone(whole)
		bad[i] ^= 0x20
		if _, err := e.Images().Import(ctx, bytes.NewReader(bad), orchestrator.TransferOptions{}); err != nil && !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("archive damaged at %d: %v", i, err)
		}
	}
	if _, err := e.Images().Import(ctx, bytes.NewReader(whole[:len(whole)/2]), orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("half an archive: %v", err)
	}
}
