// Package conformance is the executable form of package orchestrator's documentation: every engine runs it.
//
//	func TestConformance(t *testing.T) {
//		conformance.Run(t, func(t *testing.T) conformance.Host { ... })
//	}
//
// A Host is an engine with the suite's image (Image, ImageRef) in its store and what the suite may do to it. The tests
// share one Host, each has pods of its own, and all of them wait for conditions: a slow host only takes longer.
package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/orchestrator"

	"github.com/google/go-cmp/cmp"
)

// Host is what the suite runs on.
type Host struct {
	Engine orchestrator.Engine
	// Image is the name of the suite's image in the engine's store.
	Image string
	// Reopen returns a further engine on the same store, as an owner that was killed and started again has it; the suite
	// closes it. Nil: tests that need it are skipped.
	Reopen func(t *testing.T) orchestrator.Engine
	// Restart kills the engine's own programs with SIGKILL and starts them again. Nil: tests that need it are skipped.
	Restart func(t *testing.T)
	// State lists what pods could leave behind on the host, by kind. Nil: tests that need it are skipped.
	State func(t *testing.T) map[string][]string
	// NAT says that pods get a network with NetworkNAT on this host.
	NAT bool
	// NoOOM says that containers that run out of memory are killed without an EventOOM.
	NoOOM bool
	// Local says that containers' processes are processes of this host.
	Local bool
}

// patience is for conditions that come true soon on a host that is not broken, however slow.
const patience = 2 * time.Minute

// Run runs the suite. factory is called once; what it starts, it ends with t.Cleanup.
func Run(t *testing.T, factory func(t *testing.T) Host) {
	s := &suite{Host: factory(t)}
	for _, c := range []struct {
		name string
		run  func(*suite, *testing.T)
	}{
		{"info", (*suite).info},
		{"images", (*suite).images},
		{"image_in_use", (*suite).imageInUse},
		{"image_view", (*suite).imageView},
		{"image_rebuilt", (*suite).imageRebuilt},
		{"pod", (*suite).pod},
		{"pod_names", (*suite).podNames},
		{"container", (*suite).container},
		{"exit_codes", (*suite).exitCodes},
		{"fresh_layer", (*suite).freshLayer},
		{"signal_and_stop", (*suite).signalAndStop},
		{"process", (*suite).process},
		{"privileges", (*suite).privileges},
		{"mounts", (*suite).mounts},
		{"namespaces", (*suite).namespaces},
		{"children_die", (*suite).childrenDie},
		{"anchor_dies", (*suite).anchorDies},
		{"exec", (*suite).exec},
		{"exec_terminal", (*suite).execTerminal},
		{"logs", (*suite).logs},
		{"logs_follow", (*suite).logsFollow},
		{"events", (*suite).events},
		{"stats", (*suite).stats},
		{"limits", (*suite).limits},
		{"errors", (*suite).errors},
		{"network", (*suite).network},
		{"concurrency", (*suite).concurrency},
		{"remove_while_creating", (*suite).removeWhileCreating},
		{"cancelled_creation", (*suite).cancelledCreation},
		{"reopen", (*suite).reopen},
		{"restart", (*suite).restart},
		{"leaves_nothing", (*suite).leavesNothing},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(s, t) })
	}
}

type suite struct {
	Host
	count atomic.Int64
}

// newPod creates a pod that is removed with the test.
func (s *suite) newPod(t *testing.T, change ...func(*orchestrator.PodSpec)) string {
	t.Helper()
	spec := orchestrator.PodSpec{ID: fmt.Sprintf("t%d", s.count.Add(1)), Hostname: "seat", Labels: map[string]string{"test": "conformance"}}
	for _, f := range change {
		f(&spec)
	}
	if _, err := s.Engine.CreatePod(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Engine.RemovePod(context.Background(), spec.ID); err != nil {
			t.Error(err)
		}
	})
	return spec.ID
}

func (s *suite) spec(name string, command ...string) orchestrator.ContainerSpec {
	return orchestrator.ContainerSpec{Name: name, Image: s.Image, Command: append([]string{"toolbox"}, command...), UID: 1000, GID: 1000}
}

func (s *suite) create(t *testing.T, pod string, spec orchestrator.ContainerSpec) {
	t.Helper()
	if err := s.Engine.CreateContainer(t.Context(), pod, spec); err != nil {
		t.Fatal(err)
	}
}

func (s *suite) start(t *testing.T, pod, name string) int {
	t.Helper()
	pid, err := s.Engine.StartContainer(t.Context(), pod, name)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// run creates and starts a container.
func (s *suite) run(t *testing.T, pod string, spec orchestrator.ContainerSpec) int {
	t.Helper()
	s.create(t, pod, spec)
	return s.start(t, pod, spec.Name)
}

// output runs a container until it exits and returns its log.
func (s *suite) output(t *testing.T, pod string, spec orchestrator.ContainerSpec) string {
	t.Helper()
	s.run(t, pod, spec)
	if st := s.exited(t, pod, spec.Name); st.ExitCode != 0 {
		t.Fatalf("%s: exit code %d, log:\n%s", spec.Name, st.ExitCode, s.log(t, pod, spec.Name, -1))
	}
	return s.log(t, pod, spec.Name, -1)
}

func (s *suite) log(t *testing.T, pod, name string, tail int) string {
	t.Helper()
	r, err := s.Engine.Logs(t.Context(), pod, name, tail, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// eventually waits for ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; !ok(); pause = min(2*pause, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(pause)
	}
}

// exited waits until a container has exited.
func (s *suite) exited(t *testing.T, pod, name string) (st orchestrator.ContainerStatus) {
	t.Helper()
	eventually(t, name+" has exited", func() bool {
		var err error
		if st, err = s.Engine.Container(t.Context(), pod, name); err != nil {
			t.Fatal(err)
		}
		return st.State == orchestrator.StateExited
	})
	return st
}

// logged waits until a container's log holds text.
func (s *suite) logged(t *testing.T, pod, name, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has printed %q", name, text), func() bool { return strings.Contains(s.log(t, pod, name, -1), text) })
}

func (s *suite) execOutput(t *testing.T, pod, name string, command ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code, err := s.Engine.Exec(t.Context(), pod, name, orchestrator.ExecSpec{Command: append([]string{"toolbox"}, command...), Stdout: &out, Stderr: &errs})
	if err != nil || code != 0 {
		t.Fatalf("exec %v: code %d, error %v, stderr %q", command, code, err, &errs)
	}
	return out.String()
}

func wantClass(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: got error %v, want class %q", what, err, class)
	}
}

func (s *suite) info(t *testing.T) {
	i, err := s.Engine.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Name == "" || i.Version == "" || i.Runtime == "" {
		t.Errorf("got %+v, want name, version and runtime", i)
	}
}

func (s *suite) pod(t *testing.T) {
	ctx := t.Context()
	before := time.Now().Add(-time.Minute)
	spec := orchestrator.PodSpec{
		ID: "pod-" + strconv.FormatInt(s.count.Add(1), 10), Hostname: "seat",
		Labels: map[string]string{"a": "1", "b": "x y/z"}, Data: []byte(`{"any":"thing"}` + "\x00"),
	}
	made, err := s.Engine.CreatePod(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Engine.RemovePod(context.Background(), spec.ID)
	got, err := s.Engine.Pod(ctx, spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(made, got); diff != "" {
		t.Errorf("Pod differs from what CreatePod returned (-made +got):\n%s", diff)
	}
	if !got.Running || got.AnchorPID <= 0 || got.Created.Before(before) {
		t.Errorf("got %+v, want a running pod, made now", got)
	}
	if diff := cmp.Diff(spec.Labels, got.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if !bytes.Equal(got.Data, spec.Data) {
		t.Errorf("data: got %q, want %q", got.Data, spec.Data)
	}
	_, err = s.Engine.CreatePod(ctx, spec)
	wantClass(t, "second creation", err, orchestrator.ErrExists)
	if err := s.Engine.SetPodData(ctx, spec.ID, []byte("other")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		match map[string]string
		want  bool
	}{
		{nil, true}, {map[string]string{"a": "1"}, true}, {map[string]string{"a": "1", "b": "x y/z"}, true},
		{map[string]string{"a": "2"}, false}, {map[string]string{"c": ""}, false},
	} {
		pods, err := s.Engine.Pods(ctx, c.match)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(pods, func(p orchestrator.Pod) bool { return p.ID == spec.ID })
		if (i >= 0) != c.want {
			t.Errorf("Pods(%v): found %v, want %v", c.match, i >= 0, c.want)
		}
		if i >= 0 && (string(pods[i].Data) != "other" || !pods[i].Running || pods[i].AnchorPID != got.AnchorPID) {
			t.Errorf("Pods(%v): got %+v, want the new data, running", c.match, pods[i])
		}
	}
	for range 2 {
		if err := s.Engine.RemovePod(ctx, spec.ID); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.Engine.Pod(ctx, spec.ID)
	wantClass(t, "removed pod", err, orchestrator.ErrNotFound)
	wantClass(t, "data of a removed pod", s.Engine.SetPodData(ctx, spec.ID, nil), orchestrator.ErrNotFound)
	// The name is free again.
	if _, err := s.Engine.CreatePod(ctx, spec); err != nil {
		t.Error(err)
	}
}

func (s *suite) podNames(t *testing.T) {
	for _, id := range []string{"", "A", "a_b", "a.b", "-a", "a/b", "..", "a b", "ä", strings.Repeat("a", 65), "a\x00"} {
		_, err := s.Engine.CreatePod(t.Context(), orchestrator.PodSpec{ID: id})
		wantClass(t, fmt.Sprintf("pod %q", id), err, orchestrator.ErrInvalid)
		if err := s.Engine.RemovePod(t.Context(), id); err != nil {
			t.Errorf("removal of pod %q: %v", id, err)
		}
	}
	pod := s.newPod(t)
	for _, name := range []string{"", "A", "a_b", "a.b", "-a", "a/b", "..", strings.Repeat("a", 65)} {
		err := s.Engine.CreateContainer(t.Context(), pod, s.spec(name, "wait"))
		wantClass(t, fmt.Sprintf("container %q", name), err, orchestrator.ErrInvalid)
		if err := s.Engine.RemoveContainer(t.Context(), pod, name); err != nil {
			t.Errorf("removal of container %q: %v", name, err)
		}
	}
	_, err := s.Engine.CreatePod(t.Context(), orchestrator.PodSpec{ID: "a", Network: "carrier-pigeon"})
	wantClass(t, "network", err, orchestrator.ErrInvalid)
}

func (s *suite) container(t *testing.T) {
	ctx := t.Context()
	pod := s.newPod(t)
	spec := s.spec("c", "wait")
	spec.Labels = map[string]string{"role": "panel"}
	s.create(t, pod, spec)
	st, err := s.Engine.Container(ctx, pod, "c")
	if err != nil {
		t.Fatal(err)
	}
	if st.Name != "c" || st.Image != s.Image || st.State != orchestrator.StateCreated || st.Digest == "" || !maps.Equal(st.Labels, spec.Labels) {
		t.Errorf("after creation: got %+v", st)
	}
	wantClass(t, "second creation", s.Engine.CreateContainer(ctx, pod, spec), orchestrator.ErrExists)
	before := time.Now().Add(-time.Minute)
	pid := s.start(t, pod, "c")
	if st, err = s.Engine.Container(ctx, pod, "c"); err != nil {
		t.Fatal(err)
	}
	if st.State != orchestrator.StateRunning || st.PID != pid || pid <= 0 || st.StartedAt.Before(before) {
		t.Errorf("after start as process %d: got %+v", pid, st)
	}
	if s.Local && !alive(pid) {
		t.Errorf("process %d is not on this host", pid)
	}
	_, err = s.Engine.StartContainer(ctx, pod, "c")
	wantClass(t, "second start", err, orchestrator.ErrState)

	s.create(t, pod, s.spec("b", "wait"))
	list, err := s.Engine.Containers(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Name != "b" || list[0].State != orchestrator.StateCreated || list[1].Name != "c" || list[1].State != orchestrator.StateRunning {
		t.Errorf("got list %+v, want b created and c running", list)
	}
	for range 2 {
		if err := s.Engine.RemoveContainer(ctx, pod, "c"); err != nil {
			t.Fatal(err)
		}
	}
	if s.Local && alive(pid) {
		t.Errorf("process %d outlives its container", pid)
	}
	_, err = s.Engine.Container(ctx, pod, "c")
	wantClass(t, "removed container", err, orchestrator.ErrNotFound)
	s.run(t, pod, spec) // the name is free again
	s.start(t, pod, "b")
}

// alive tells whether process pid runs; a zombie does not.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func (s *suite) exitCodes(t *testing.T) {
	pod := s.newPod(t)
	for _, code := range []int{0, 1, 7, 255} {
		name := fmt.Sprintf("exit-%d", code)
		s.run(t, pod, s.spec(name, "exit", strconv.Itoa(code)))
		if st := s.exited(t, pod, name); st.ExitCode != code || st.FinishedAt.Before(st.StartedAt.Add(-time.Second)) || st.PID != 0 {
			t.Errorf("got %+v, want exit code %d, finished after it started", st, code)
		}
	}
	s.run(t, pod, s.spec("killed", "wait"))
	if err := s.Engine.SignalContainer(t.Context(), pod, "killed", int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if st := s.exited(t, pod, "killed"); st.ExitCode != 137 {
		t.Errorf("killed: got exit code %d, want 137", st.ExitCode)
	}
}

func (s *suite) freshLayer(t *testing.T) {
	pod := s.newPod(t)
	// Started again it does not see what it wrote itself: the file is there in the same layer only.
	s.create(t, pod, s.spec("c", "create", "/srv/mark"))
	for range 3 {
		s.start(t, pod, "c")
		if st := s.exited(t, pod, "c"); st.ExitCode != 0 {
			t.Fatalf("exit code %d: %s", st.ExitCode, s.log(t, pod, "c", -1))
		}
	}
	if got := s.output(t, pod, s.spec("ls", "ls", "/srv")); got != "" {
		t.Errorf("another container sees %q in its layer", got)
	}
}

func (s *suite) signalAndStop(t *testing.T) {
	ctx := t.Context()
	pod := s.newPod(t)
	usr1 := s.spec("usr1", "trap")
	usr1.StopSignal = int(syscall.SIGUSR1)
	for _, c := range []struct {
		spec  orchestrator.ContainerSpec
		grace time.Duration
		want  int
	}{
		{s.spec("term", "trap"), patience, 15},
		{usr1, patience, 10},
		{s.spec("stubborn", "stubborn"), 50 * time.Millisecond, 137},
		{s.spec("at-once", "stubborn"), 0, 137},
	} {
		s.run(t, pod, c.spec)
		s.logged(t, pod, c.spec.Name, "ready")
		if err := s.Engine.StopContainer(ctx, pod, c.spec.Name, c.grace); err != nil {
			t.Fatal(err)
		}
		st, err := s.Engine.Container(ctx, pod, c.spec.Name)
		if err != nil || st.State != orchestrator.StateExited || st.ExitCode != c.want {
			t.Errorf("%s: got %+v, %v, want exited with %d", c.spec.Name, st, err, c.want)
		}
		if err := s.Engine.StopContainer(ctx, pod, c.spec.Name, 0); err != nil {
			t.Errorf("%s: stop of an exited container: %v", c.spec.Name, err)
		}
		wantClass(t, "signal to an exited container", s.Engine.SignalContainer(ctx, pod, c.spec.Name, 15), orchestrator.ErrState)
	}
	s.create(t, pod, s.spec("idle", "wait"))
	if err := s.Engine.StopContainer(ctx, pod, "idle", time.Second); err != nil {
		t.Errorf("stop of a created container: %v", err)
	}
	wantClass(t, "stop of what is not there", s.Engine.StopContainer(ctx, pod, "none", 0), orchestrator.ErrNotFound)
	wantClass(t, "signal to what is not there", s.Engine.SignalContainer(ctx, pod, "none", 15), orchestrator.ErrNotFound)
}

func (s *suite) process(t *testing.T) {
	pod := s.newPod(t)
	spec := s.spec("id", "id")
	spec.UID, spec.GID, spec.Groups = 1234, 2345, []int{44, 29}
	if got, want := s.output(t, pod, spec), "1234 2345 [29 44] /etc\n"; got != want {
		t.Errorf("id: got %q, want %q", got, want)
	}
	spec = s.spec("cwd", "id")
	spec.Cwd = "/tmp"
	if got := s.output(t, pod, spec); !strings.HasSuffix(got, " /tmp\n") {
		t.Errorf("cwd: got %q, want /tmp", got)
	}
	spec = s.spec("env", "env")
	spec.Env = []string{"REPLACED=spec", "ADDED=a=b c"}
	env := strings.Split(strings.TrimSpace(s.output(t, pod, spec)), "\n")
	for _, want := range []string{"FROM_IMAGE=yes", "REPLACED=spec", "ADDED=a=b c", "PATH=/bin"} {
		if !slices.Contains(env, want) {
			t.Errorf("environment %q lacks %q", env, want)
		}
	}
	if slices.Contains(env, "REPLACED=image") {
		t.Errorf("environment %q holds a variable twice", env)
	}
	// Without a command it is the image's.
	spec = s.spec("default")
	spec.Command = nil
	s.run(t, pod, spec)
	if st, err := s.Engine.Container(t.Context(), pod, "default"); err != nil || st.State != orchestrator.StateRunning {
		t.Errorf("got %+v, %v, want the image's command running", st, err)
	}
	if got := s.output(t, pod, s.spec("release", "cat", "/etc/release")); got != "top\n" {
		t.Errorf("file of both layers: got %q, want the upper layer's", got)
	}
}

// field returns a line of /proc/self/status.
func field(status, key string) string {
	for line := range strings.Lines(status) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (s *suite) privileges(t *testing.T) {
	pod := s.newPod(t)
	none := "0000000000000000"
	for _, c := range []struct {
		name   string
		change func(*orchestrator.ContainerSpec)
		want   map[string]string
	}{
		{"user", func(*orchestrator.ContainerSpec) {}, map[string]string{
			"CapEff": none, "CapPrm": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2"}},
		{"root", func(c *orchestrator.ContainerSpec) { c.UID, c.GID = 0, 0 }, map[string]string{"CapEff": none, "CapBnd": none}},
		{"caps", func(c *orchestrator.ContainerSpec) { c.Caps = []string{"CAP_KILL", "CAP_SYS_NICE"} }, map[string]string{
			"CapEff": "0000000000800020", "CapBnd": "0000000000800020"}},
		{"new-privileges", func(c *orchestrator.ContainerSpec) { c.NewPrivileges = true }, map[string]string{"NoNewPrivs": "0", "Seccomp": "2"}},
		{"unconfined", func(c *orchestrator.ContainerSpec) { c.Seccomp = "unconfined" }, map[string]string{"Seccomp": "0", "NoNewPrivs": "1"}},
	} {
		spec := s.spec(c.name, "status")
		c.change(&spec)
		status := s.output(t, pod, spec)
		for k, want := range c.want {
			if got := field(status, k); got != want {
				t.Errorf("%s: %s: got %s, want %s", c.name, k, got, want)
			}
		}
	}
	bad := s.spec("bad", "wait")
	bad.Seccomp = "no-such-profile"
	wantClass(t, "unknown seccomp profile", s.Engine.CreateContainer(t.Context(), pod, bad), orchestrator.ErrInvalid)
	ro := s.spec("ro", "write", "/srv/x", "x")
	ro.ReadOnly = true
	s.run(t, pod, ro)
	if st := s.exited(t, pod, "ro"); st.ExitCode == 0 {
		t.Error("a read-only root file system was written to")
	}
}

func (s *suite) mounts(t *testing.T) {
	if !s.Local {
		t.Skip("the engine's host is another")
	}
	pod := s.newPod(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	sub, file := filepath.Join(dir, "sub"), filepath.Join(dir, "file")
	if err := errors.Join(os.Mkdir(sub, 0o777), os.Chmod(sub, 0o777), os.WriteFile(file, []byte("from the host"), 0o644)); err != nil {
		t.Fatal(err)
	}
	bind := func(name string, ro bool, command ...string) orchestrator.ContainerSpec {
		spec := s.spec(name, command...)
		// Children come before their parents here: order is the engine's business.
		spec.Mounts = []orchestrator.Mount{
			{Source: sub, Target: "/data/sub", ReadOnly: ro}, {Source: file, Target: "/etc/file", ReadOnly: ro},
			{Source: dir, Target: "/data", ReadOnly: ro}, {Source: sub, Target: "/dev/shm", ReadOnly: ro}, {Source: sub, Target: "/run/user/1000"},
		}
		return spec
	}
	if got := s.output(t, pod, bind("file", true, "cat", "/etc/file")); got != "from the host" {
		t.Errorf("single file: got %q", got)
	}
	s.output(t, pod, bind("write", false, "write", "/data/sub/new", "x"))
	if got := s.output(t, pod, bind("shm", false, "cat", "/dev/shm/new")); got != "x" {
		t.Errorf("/dev/shm: got %q", got)
	}
	if got := s.output(t, pod, bind("run", true, "cat", "/run/user/1000/new")); got != "x" {
		t.Errorf("/run/user/1000: got %q", got)
	}
	s.run(t, pod, bind("ro", true, "write", "/data/other", "x"))
	if st := s.exited(t, pod, "ro"); st.ExitCode == 0 {
		t.Error("a read-only mount was written to")
	}
	missing := s.spec("missing", "wait")
	missing.Mounts = []orchestrator.Mount{{Source: filepath.Join(dir, "none"), Target: "/x"}}
	wantClass(t, "missing source", s.Engine.CreateContainer(t.Context(), pod, missing), orchestrator.ErrNotFound)
	missing.Mounts = []orchestrator.Mount{{Source: dir, Target: "x"}}
	wantClass(t, "relative target", s.Engine.CreateContainer(t.Context(), pod, missing), orchestrator.ErrInvalid)

	device := s.spec("device", "ls", dir)
	device.Devices = []string{filepath.Join(dir, "node")}
	wantClass(t, "missing device", s.Engine.CreateContainer(t.Context(), pod, device), orchestrator.ErrNotFound)
	const full = 1<<8 | 7 // major 1, minor 7
	if err := syscall.Mknod(filepath.Join(dir, "node"), syscall.S_IFCHR|0o666, full); err != nil {
		t.Logf("no device test: mknod: %v", err)
		return
	}
	if got := s.output(t, pod, device); !strings.Contains(got, "node") {
		t.Errorf("device: directory holds %q, want node", got)
	}
}

func (s *suite) namespaces(t *testing.T) {
	pod, other := s.newPod(t), s.newPod(t)
	ns := func(pod, name string) []string {
		s.run(t, pod, s.spec(name, "wait"))
		return strings.Fields(s.execOutput(t, pod, name, "ns"))
	}
	a, b, c := ns(pod, "a"), ns(pod, "b"), ns(other, "c")
	if len(a) != 5 || len(b) != 5 || len(c) != 5 {
		t.Fatalf("got %v, %v, %v, want five namespaces each", a, b, c)
	}
	for i, kind := range []string{"pid", "ipc", "net", "uts", "mnt"} {
		if (a[i] == b[i]) != (kind != "mnt") {
			t.Errorf("%s namespaces of containers of one pod: %s, %s", kind, a[i], b[i])
		}
		if a[i] == c[i] {
			t.Errorf("two pods share the %s namespace", kind)
		}
	}
	if got := s.output(t, pod, s.spec("host", "host")); got != "seat\n" {
		t.Errorf("host name: got %q, want seat", got)
	}
}

// processes counts the processes in a pod by an exec in one of its containers, without that itself.
func (s *suite) processes(t *testing.T, pod, name string) int {
	n := -1
	for line := range strings.Lines(s.execOutput(t, pod, name, "ls", "/proc")) {
		if _, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			n++
		}
	}
	return n
}

func (s *suite) childrenDie(t *testing.T) {
	ctx := t.Context()
	pod := s.newPod(t)
	s.run(t, pod, s.spec("observer", "wait"))
	base := s.processes(t, pod, "observer") // the anchor and the observer
	for _, c := range []struct {
		name string
		spec orchestrator.ContainerSpec
		end  func() error
	}{
		{"first process is killed", s.spec("killed", "spawn", "3"), func() error { return s.Engine.SignalContainer(ctx, pod, "killed", 9) }},
		{"container is stopped", s.spec("stopped", "spawn", "3"), func() error { return s.Engine.StopContainer(ctx, pod, "stopped", patience) }},
		{"first process exits", s.spec("exits", "spawn", "3", "exit"), func() error { return nil }},
	} {
		s.run(t, pod, c.spec)
		s.logged(t, pod, c.spec.Name, "ready")
		if err := c.end(); err != nil {
			t.Fatal(err)
		}
		s.exited(t, pod, c.spec.Name)
		eventually(t, "no process is left when "+c.name, func() bool { return s.processes(t, pod, "observer") == base })
	}
	// An orphan does not stay a zombie.
	s.run(t, pod, s.spec("parent", "wait"))
	if code, err := s.Engine.Exec(ctx, pod, "parent", orchestrator.ExecSpec{Command: []string{"toolbox", "spawn", "2", "exit"}}); err != nil || code != 0 {
		t.Fatalf("exec: %d, %v", code, err)
	}
	if got := s.processes(t, pod, "observer"); got != base+3 {
		t.Errorf("got %d processes with orphans, want %d", got, base+3)
	}
	if err := s.Engine.StopContainer(ctx, pod, "parent", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "orphans are reaped", func() bool { return s.processes(t, pod, "observer") == base })
}

func (s *suite) anchorDies(t *testing.T) {
	if !s.Local {
		t.Skip("the engine's host is another")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pod := s.newPod(t)
	events, err := s.Engine.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pid := s.run(t, pod, s.spec("c", "wait"))
	s.create(t, pod, s.spec("d", "wait"))
	p, err := s.Engine.Pod(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.AnchorPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for !seen[""] || !seen["c"] {
		ev := s.next(t, events)
		if ev.Pod == pod && ev.Type == orchestrator.EventExit {
			seen[ev.Container] = true
		}
	}
	if alive(pid) {
		t.Error("a process outlives its anchor")
	}
	if p, err = s.Engine.Pod(ctx, pod); err != nil || p.Running || p.AnchorPID != 0 {
		t.Errorf("got %+v, %v, want a pod that does not run", p, err)
	}
	if st := s.exited(t, pod, "c"); st.ExitCode != 137 {
		t.Errorf("got exit code %d, want 137", st.ExitCode)
	}
	wantClass(t, "creation in a dead pod", s.Engine.CreateContainer(ctx, pod, s.spec("e", "wait")), orchestrator.ErrState)
	for _, name := range []string{"c", "d"} {
		_, err = s.Engine.StartContainer(ctx, pod, name)
		wantClass(t, "start in a dead pod", err, orchestrator.ErrState)
	}
	if err := s.Engine.RemovePod(ctx, pod); err != nil {
		t.Error(err)
	}
}

func (s *suite) exec(t *testing.T) {
	ctx := t.Context()
	pod := s.newPod(t)
	spec := s.spec("c", "wait")
	spec.Env, spec.Groups = []string{"OWN=1"}, []int{44}
	s.run(t, pod, spec)
	var out, errs bytes.Buffer
	code, err := s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "split"}, Stdout: &out, Stderr: &errs})
	if err != nil || code != 0 || out.String() != "to stdout\n" || errs.String() != "to stderr\n" {
		t.Errorf("streams: got %d, %v, %q, %q", code, err, &out, &errs)
	}
	for _, want := range []int{0, 3, 255} {
		code, err := s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "exit", strconv.Itoa(want)}})
		if err != nil || code != want {
			t.Errorf("exit code: got %d, %v, want %d", code, err, want)
		}
	}
	input := strings.Repeat("a line of input\n", 20000)
	out.Reset()
	code, err = s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "cat"}, Stdin: strings.NewReader(input), Stdout: &out})
	if err != nil || code != 0 || out.String() != input {
		t.Errorf("input: got %d, %v, %d bytes, want all %d back", code, err, out.Len(), len(input))
	}
	out.Reset()
	code, err = s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "cat"}, Stdout: &out})
	if err != nil || code != 0 || out.Len() != 0 {
		t.Errorf("no input: got %d, %v, %q, want the end of input at once", code, err, &out)
	}
	out.Reset()
	if _, err := s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "env"}, Env: []string{"MORE=2"}, Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"OWN=1\n", "MORE=2\n", "FROM_IMAGE=yes\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("environment %q lacks %q", &out, want)
		}
	}
	if got := s.execOutput(t, pod, "c", "id"); got != "1000 1000 [44] /etc\n" {
		t.Errorf("user: got %q, want the container's", got)
	}
	out.Reset()
	zero := 0
	if _, err := s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "id"}, UID: &zero, GID: &zero, Cwd: "/tmp", Stdout: &out}); err != nil || out.String() != "0 0 [] /tmp\n" {
		t.Errorf("other user: got %q, %v", &out, err)
	}
	status := s.execOutput(t, pod, "c", "status")
	if field(status, "CapEff") != "0000000000000000" || field(status, "Seccomp") != "2" || field(status, "NoNewPrivs") != "1" {
		t.Errorf("an exec has other privileges than its container:\n%s", status)
	}
	_, err = s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"no-such-program"}})
	wantClass(t, "missing program", err, orchestrator.ErrNotFound)
	_, err = s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{})
	wantClass(t, "no command", err, orchestrator.ErrInvalid)
	_, err = s.Engine.Exec(ctx, pod, "none", orchestrator.ExecSpec{Command: []string{"toolbox"}})
	wantClass(t, "missing container", err, orchestrator.ErrNotFound)
	s.create(t, pod, s.spec("idle", "wait"))
	_, err = s.Engine.Exec(ctx, pod, "idle", orchestrator.ExecSpec{Command: []string{"toolbox"}})
	wantClass(t, "created container", err, orchestrator.ErrState)

	// A cancelled exec is gone when Exec returns.
	if err := s.Engine.RemoveContainer(ctx, pod, "idle"); err != nil { // an engine may or may not have a process for it
		t.Fatal(err)
	}
	const before = 2 // the anchor and this container's process
	eventually(t, "earlier execs are gone", func() bool { return s.processes(t, pod, "c") == before })
	r, w := io.Pipe()
	ectx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := s.Engine.Exec(ectx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "stubborn"}, Stdout: w})
		done <- err
	}()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, r)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled exec: got %v", err)
	}
	eventually(t, "the cancelled exec's process is gone", func() bool { return s.processes(t, pod, "c") == before })

	// Many at once, on one container.
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			var out bytes.Buffer
			code, err := s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "echo", strconv.Itoa(i)}, Stdout: &out})
			if err != nil || code != 0 || out.String() != fmt.Sprintln(i) {
				t.Errorf("exec %d: got %d, %v, %q", i, code, err, &out)
			}
		})
	}
	g.Wait()
	// It ends with its container.
	go func() {
		_, err := s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{Command: []string{"toolbox", "stubborn"}})
		done <- err
	}()
	eventually(t, "the exec runs", func() bool { return s.processes(t, pod, "c") == before+1 })
	if err := s.Engine.StopContainer(ctx, pod, "c", 0); err != nil {
		t.Fatal(err)
	}
	<-done
}

func (s *suite) execTerminal(t *testing.T) {
	pod := s.newPod(t)
	s.run(t, pod, s.spec("c", "wait"))
	resize := make(chan orchestrator.TermSize, 1)
	r, w := io.Pipe()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		code, err := s.Engine.Exec(ctx, pod, "c", orchestrator.ExecSpec{
			Command: []string{"toolbox", "size", "132", "50"}, TTY: true, Stdout: w, Stdin: strings.NewReader(""), Resize: resize,
		})
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		w.Close()
		done <- err
	}()
	first := make([]byte, 4)
	if _, err := io.ReadFull(r, first); err != nil || string(first) != "size" {
		t.Fatalf("got %q, %v, %v, want the program's output on the terminal", first, err, <-done)
	}
	resize <- orchestrator.TermSize{Cols: 132, Rows: 50}
	rest, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(rest), "size 132 50\r\n") {
		t.Errorf("after resize: got %q, %v", rest, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func (s *suite) logs(t *testing.T) {
	pod := s.newPod(t)
	s.run(t, pod, s.spec("lines", "lines", "5000"))
	s.logged(t, pod, "lines", "line 5000\n")
	all := s.log(t, pod, "lines", -1)
	if n := strings.Count(all, "\n"); n != 5000 || !strings.HasPrefix(all, "line 1\n") {
		t.Errorf("got %d lines, beginning %.20q, want 5000 from line 1", n, all)
	}
	for _, c := range []struct {
		tail int
		want string
	}{
		{0, ""}, {1, "line 5000\n"}, {3, "line 4998\nline 4999\nline 5000\n"}, {5000, all}, {100000, all},
	} {
		if got := s.log(t, pod, "lines", c.tail); got != c.want {
			t.Errorf("tail %d: got %d bytes %.60q, want %d bytes %.60q", c.tail, len(got), got, len(c.want), c.want)
		}
	}
	// Neither stream's end takes anything of the other with it.
	s.run(t, pod, s.spec("split", "split"))
	s.logged(t, pod, "split", "to stdout\n")
	s.logged(t, pod, "split", "to stderr\n")
	s.run(t, pod, s.spec("mute", "mute", "20"))
	s.logged(t, pod, "mute", "line 20\n")
	if got := s.log(t, pod, "mute", -1); strings.Count(got, "\n") != 21 {
		t.Errorf("got %q, want 21 lines", got)
	}
	_, err := s.Engine.Logs(t.Context(), pod, "none", -1, false)
	wantClass(t, "log of what is not there", err, orchestrator.ErrNotFound)
	// The log goes on when the container is started again.
	s.create(t, pod, s.spec("twice", "echo", "hello"))
	for range 2 {
		s.start(t, pod, "twice")
		s.exited(t, pod, "twice")
	}
	eventually(t, "the log holds both runs", func() bool { return s.log(t, pod, "twice", -1) == "hello\nhello\n" })
}

func (s *suite) logsFollow(t *testing.T) {
	pod := s.newPod(t)
	s.create(t, pod, s.spec("c", "lines", "100"))
	follow := func(ctx context.Context, tail int) (io.ReadCloser, <-chan string) {
		r, err := s.Engine.Logs(ctx, pod, "c", tail, true)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		go func() {
			data, err := io.ReadAll(r)
			if err != nil {
				data = fmt.Appendf(data, "error: %v", err)
			}
			got <- string(data)
		}()
		return r, got
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r1, byContext := follow(ctx, -1)
	defer r1.Close()
	r2, byRemoval := follow(t.Context(), -1)
	defer r2.Close()
	r3, byClose := follow(t.Context(), -1)
	s.start(t, pod, "c")
	s.logged(t, pod, "c", "line 100\n")
	all := s.log(t, pod, "c", -1)
	// Each ends in its own way, with everything read by then.
	r4, err := s.Engine.Logs(t.Context(), pod, "c", 1, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r4.Close()
	buf := make([]byte, len("line 100\n"))
	if _, err := io.ReadFull(r4, buf); err != nil || string(buf) != "line 100\n" {
		t.Errorf("follow from the last line: got %q, %v", buf, err)
	}
	cancel()
	if got := <-byContext; !strings.HasPrefix(all, got) {
		t.Errorf("ended by its context: got %.100q", got)
	}
	r3.Close()
	<-byClose
	if err := s.Engine.RemoveContainer(t.Context(), pod, "c"); err != nil {
		t.Fatal(err)
	}
	if got := <-byRemoval; got != all {
		t.Errorf("ended by removal: got %d bytes %.100q, want %d", len(got), got, len(all))
	}
}

// next returns the next event.
func (s *suite) next(t *testing.T, events <-chan orchestrator.Event) orchestrator.Event {
	t.Helper()
	select {
	case ev, ok := <-events:
		if !ok {
			t.Fatal("the channel of events was closed")
		}
		return ev
	case <-time.After(patience):
		t.Fatal("no event came")
	}
	panic("unreachable")
}

func (s *suite) events(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pod := s.newPod(t)
	events, err := s.Engine.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const n = 6
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() {
			name := fmt.Sprintf("c%d", i)
			if err := s.Engine.CreateContainer(ctx, pod, s.spec(name, "exit", strconv.Itoa(i))); err != nil {
				t.Error(err)
			} else if _, err := s.Engine.StartContainer(ctx, pod, name); err != nil {
				t.Error(err)
			}
		})
	}
	started, exited := map[string]int{}, map[string]int{}
	for len(exited) < n {
		ev := s.next(t, events)
		if ev.Pod != pod || ev.Container == "" {
			continue
		}
		switch ev.Type {
		case orchestrator.EventStart:
			started[ev.Container] = ev.PID
		case orchestrator.EventExit:
			if _, ok := exited[ev.Container]; ok {
				t.Errorf("two exits of %s", ev.Container)
			}
			if pid, ok := started[ev.Container]; !ok || pid != ev.PID || pid == 0 {
				t.Errorf("exit of %s as process %d, started as %d", ev.Container, ev.PID, pid)
			}
			if ev.Time.Before(time.Now().Add(-time.Hour)) {
				t.Errorf("%s exited at %v", ev.Container, ev.Time)
			}
			exited[ev.Container] = ev.ExitCode
		}
	}
	g.Wait()
	for i := range n {
		if got := exited[fmt.Sprintf("c%d", i)]; got != i {
			t.Errorf("c%d: exit code %d in its event", i, got)
		}
	}
	// Execs are no starts and exits.
	s.run(t, pod, s.spec("last", "wait"))
	s.execOutput(t, pod, "last", "echo")
	if err := s.Engine.StopContainer(ctx, pod, "last", 0); err != nil {
		t.Fatal(err)
	}
	var types []orchestrator.EventType
	for len(types) < 2 {
		if ev := s.next(t, events); ev.Pod == pod {
			types = append(types, ev.Type)
		}
	}
	if diff := cmp.Diff([]orchestrator.EventType{orchestrator.EventStart, orchestrator.EventExit}, types); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	cancel()
	eventually(t, "the channel is closed", func() bool {
		select {
		case _, ok := <-events:
			return !ok
		default:
			return false
		}
	})
}

func (s *suite) stats(t *testing.T) {
	pod := s.newPod(t)
	s.run(t, pod, s.spec("memory", "memory", "48"))
	s.run(t, pod, s.spec("burn", "burn"))
	s.run(t, pod, s.spec("over", "exit", "0"))
	s.logged(t, pod, "memory", "ready")
	s.exited(t, pod, "over")
	eventually(t, "usage is counted", func() bool {
		st, err := s.Engine.Stats(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		return st["memory"].Memory >= 48<<20 && st["memory"].Memory < 400<<20 && st["memory"].PIDs >= 1 && st["burn"].CPU > 20*time.Millisecond && st["burn"].Memory < 48<<20
	})
	_, err := s.Engine.Stats(t.Context(), "none")
	wantClass(t, "stats of a missing pod", err, orchestrator.ErrNotFound)
}

func (s *suite) limits(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := s.Engine.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	oom := func(pod, name string) {
		t.Helper()
		killed, told := false, s.NoOOM
		for !killed || !told {
			ev := s.next(t, events)
			if ev.Pod != pod || ev.Container != name {
				continue
			}
			told = told || ev.Type == orchestrator.EventOOM
			if ev.Type == orchestrator.EventExit {
				if killed = true; ev.ExitCode != 137 {
					t.Errorf("%s: exit code %d, want 137", name, ev.ExitCode)
				}
			}
		}
	}
	pod := s.newPod(t)
	spec := s.spec("small", "memory", "256")
	spec.Limits.Memory = 64 << 20
	s.run(t, pod, spec)
	oom(pod, "small")

	// Of the pod as a whole.
	pod = s.newPod(t, func(p *orchestrator.PodSpec) {
		p.Limits = orchestrator.Limits{Memory: 96 << 20, PIDs: 100, CPUs: 1.5}
	})
	s.run(t, pod, s.spec("fits", "memory", "32"))
	s.logged(t, pod, "fits", "ready")
	s.run(t, pod, s.spec("crowd", "spawn", "200"))
	if st := s.exited(t, pod, "crowd"); st.ExitCode == 0 {
		t.Error("more processes than the pod's limit")
	}
	if err := s.Engine.RemoveContainer(ctx, pod, "crowd"); err != nil {
		t.Fatal(err)
	}
	if s.Local {
		// Over the limit together; the kernel chooses whom to kill.
		s.run(t, pod, s.spec("greedy", "memory", "256"))
		if st := s.exited(t, pod, "greedy"); st.ExitCode != 137 {
			t.Errorf("greedy: exit code %d, want 137", st.ExitCode)
		}
	}
}

func (s *suite) errors(t *testing.T) {
	ctx := t.Context()
	pod := s.newPod(t)
	missing := s.spec("c", "wait")
	missing.Image = "localhost/berth/none:latest"
	err := s.Engine.CreateContainer(ctx, pod, missing)
	wantClass(t, "missing image", err, orchestrator.ErrNotFound)
	if err != nil && !strings.Contains(err.Error(), missing.Image) {
		t.Errorf("error %q does not name the image", err)
	}
	for _, program := range []string{"no-such-program", "/usr/bin/no-such-program"} {
		spec := s.spec("c")
		spec.Command = []string{program, "--flag"}
		err := s.Engine.CreateContainer(ctx, pod, spec)
		if err == nil {
			_, err = s.Engine.StartContainer(ctx, pod, "c")
			s.Engine.RemoveContainer(ctx, pod, "c")
		}
		wantClass(t, "missing program", err, orchestrator.ErrNotFound)
		if err != nil && (!strings.Contains(err.Error(), strconv.Quote(program)) || !strings.Contains(err.Error(), s.Image)) {
			t.Errorf("error %q does not name program and image", err)
		}
	}
	spec := s.spec("c")
	spec.Command = []string{"/bin/notexec"}
	err = s.Engine.CreateContainer(ctx, pod, spec)
	if err == nil {
		_, err = s.Engine.StartContainer(ctx, pod, "c")
		s.Engine.RemoveContainer(ctx, pod, "c")
	}
	if err == nil {
		t.Error("a file that is not executable was run")
	}
	for _, spec := range []orchestrator.ContainerSpec{
		func() orchestrator.ContainerSpec { c := s.spec("c", "wait"); c.Env = []string{"NOVALUE"}; return c }(),
		func() orchestrator.ContainerSpec { c := s.spec("c", "a\x00b"); return c }(),
	} {
		wantClass(t, "bad specification", s.Engine.CreateContainer(ctx, pod, spec), orchestrator.ErrInvalid)
	}
	// A method that fails leaves nothing behind.
	if list, err := s.Engine.Containers(ctx, pod); err != nil || len(list) != 0 {
		t.Errorf("after failures: got containers %+v, %v, want none", list, err)
	}
	_, err = s.Engine.Containers(ctx, "none")
	wantClass(t, "containers of a missing pod", err, orchestrator.ErrNotFound)
	wantClass(t, "container in a missing pod", s.Engine.CreateContainer(ctx, "none", s.spec("c", "wait")), orchestrator.ErrNotFound)
	_, err = s.Engine.StartContainer(ctx, pod, "none")
	wantClass(t, "start of a missing container", err, orchestrator.ErrNotFound)
	for _, err := range []error{s.Engine.RemoveContainer(ctx, pod, "none"), s.Engine.RemoveContainer(ctx, "none", "none"), s.Engine.RemovePod(ctx, "none")} {
		if err != nil {
			t.Errorf("removal of what is not there: %v", err)
		}
	}
}

func (s *suite) network(t *testing.T) {
	none := s.newPod(t, func(p *orchestrator.PodSpec) { p.Network = orchestrator.NetworkNone })
	got := strings.Fields(s.output(t, none, s.spec("c", "interfaces")))
	if len(got) < 2 || !slices.Contains(got, "lo") || slices.Contains(got, "eth0") {
		t.Errorf("network none: got interfaces %v, want loopback only", got)
	}
	if i := slices.Index(got, "lo"); i >= 0 && i+1 < len(got) {
		flags, err := strconv.ParseInt(got[i+1], 0, 64)
		if err != nil || flags&syscall.IFF_UP == 0 {
			t.Errorf("loopback: flags %s, %v, want it up", got[i+1], err)
		}
	}
	if s.Local {
		host := s.newPod(t, func(p *orchestrator.PodSpec) { p.Network = orchestrator.NetworkHost })
		own, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if ns := s.output(t, host, s.spec("c", "ns")); !strings.Contains(ns, own) {
			t.Errorf("network host: got namespaces %q, want %s among them", ns, own)
		}
	}
	if !s.NAT {
		t.Skip("no NAT on this host")
	}
	seen := map[string]bool{}
	for range 2 {
		nat := s.newPod(t, func(p *orchestrator.PodSpec) { p.Network = orchestrator.NetworkNAT })
		s.run(t, nat, s.spec("c", "wait"))
		eventually(t, "the pod has an address", func() bool {
			p, err := s.Engine.Pod(t.Context(), nat)
			if err != nil {
				t.Fatal(err)
			}
			if p.IP != "" && seen[p.IP] {
				t.Fatalf("two pods have the address %s", p.IP)
			}
			seen[p.IP] = true
			return p.IP != ""
		})
		if got := s.execOutput(t, nat, "c", "interfaces"); !strings.Contains(got, "eth0") {
			t.Errorf("network nat: got interfaces %q, want eth0", got)
		}
	}
}

func (s *suite) concurrency(t *testing.T) {
	ctx := t.Context()
	var pods sync.WaitGroup
	for p := range 3 {
		pods.Go(func() {
			pod := fmt.Sprintf("many-%d", p)
			if _, err := s.Engine.CreatePod(ctx, orchestrator.PodSpec{ID: pod}); err != nil {
				t.Error(err)
				return
			}
			var g sync.WaitGroup
			for c := range 4 {
				g.Go(func() {
					name := fmt.Sprintf("c%d", c)
					if err := s.Engine.CreateContainer(ctx, pod, s.spec(name, "wait")); err != nil {
						t.Error(err)
						return
					}
					if _, err := s.Engine.StartContainer(ctx, pod, name); err != nil {
						t.Error(err)
						return
					}
					var out bytes.Buffer
					if code, err := s.Engine.Exec(ctx, pod, name, orchestrator.ExecSpec{Command: []string{"toolbox", "echo", name}, Stdout: &out}); err != nil || code != 0 || out.String() != name+"\n" {
						t.Errorf("exec: %d, %v, %q", code, err, &out)
					}
					if c%2 == 0 {
						if err := s.Engine.StopContainer(ctx, pod, name, 0); err != nil {
							t.Error(err)
						}
						if err := s.Engine.RemoveContainer(ctx, pod, name); err != nil {
							t.Error(err)
						}
					}
				})
			}
			g.Wait()
			var r sync.WaitGroup
			for range 2 { // both at once
				r.Go(func() {
					if err := s.Engine.RemovePod(ctx, pod); err != nil {
						t.Error(err)
					}
				})
			}
			r.Wait()
		})
	}
	pods.Wait()
	// One name, asked for by many: one gets it.
	pod := s.newPod(t)
	var got atomic.Int32
	var g sync.WaitGroup
	for range 4 {
		g.Go(func() {
			switch err := s.Engine.CreateContainer(ctx, pod, s.spec("same", "wait")); {
			case err == nil:
				got.Add(1)
			case !errors.Is(err, orchestrator.ErrExists):
				t.Error(err)
			}
		})
	}
	g.Wait()
	if got.Load() != 1 {
		t.Errorf("%d creations of one name succeeded", got.Load())
	}
	if _, err := s.Engine.StartContainer(ctx, pod, "same"); err != nil {
		t.Error(err)
	}
}

func (s *suite) removeWhileCreating(t *testing.T) {
	ctx := t.Context()
	for i := range 3 {
		pod := s.newPod(t)
		var g sync.WaitGroup
		for c := range 4 {
			g.Go(func() {
				name := fmt.Sprintf("c%d", c)
				if err := s.Engine.CreateContainer(ctx, pod, s.spec(name, "wait")); err == nil {
					s.Engine.StartContainer(ctx, pod, name)
				}
			})
		}
		time.Sleep(time.Duration(i*20) * time.Millisecond) // different moments, not a wait for anything
		if err := s.Engine.RemovePod(ctx, pod); err != nil {
			t.Error(err)
		}
		g.Wait()
		_, err := s.Engine.Pod(ctx, pod)
		wantClass(t, "removed pod", err, orchestrator.ErrNotFound)
		_, err = s.Engine.Container(ctx, pod, "c0")
		wantClass(t, "container of a removed pod", err, orchestrator.ErrNotFound)
	}
}

func (s *suite) cancelledCreation(t *testing.T) {
	var before map[string][]string
	if s.State != nil {
		before = s.State(t)
	}
	for i := range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*10)*time.Millisecond) // different moments
		id := fmt.Sprintf("cancelled-%d", i)
		if _, err := s.Engine.CreatePod(ctx, orchestrator.PodSpec{ID: id}); err == nil {
			err = s.Engine.CreateContainer(ctx, id, s.spec("c", "wait"))
			if list, lerr := s.Engine.Containers(t.Context(), id); err != nil && (lerr != nil || len(list) != 0) {
				t.Errorf("after a cancelled creation: got containers %v, %v", list, lerr)
			}
			if err := s.Engine.RemovePod(t.Context(), id); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled creation: %v", err)
		}
		cancel()
		_, err := s.Engine.Pod(t.Context(), id)
		wantClass(t, "cancelled pod", err, orchestrator.ErrNotFound)
	}
	s.same(t, before)
}

// same waits until the host's state is again what it was.
func (s *suite) same(t *testing.T, before map[string][]string) {
	t.Helper()
	if s.State == nil {
		return
	}
	var diff string
	deadline := time.Now().Add(patience)
	for {
		if diff = cmp.Diff(before, s.State(t)); diff == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the host is not as it was (-before +after):\n%s", diff)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *suite) reopen(t *testing.T) {
	if s.Reopen == nil {
		t.Skip("the engine cannot be opened twice")
	}
	ctx := t.Context()
	pod := s.newPod(t, func(p *orchestrator.PodSpec) { p.Data = []byte("plan") })
	pid := s.run(t, pod, s.spec("runs", "trap"))
	s.create(t, pod, s.spec("created", "wait"))
	s.run(t, pod, s.spec("exited", "exit", "9"))
	s.exited(t, pod, "exited")
	s.logged(t, pod, "runs", "ready")
	e := s.Reopen(t)
	defer e.Close()
	p, err := e.Pod(ctx, pod)
	if err != nil || !p.Running || string(p.Data) != "plan" {
		t.Fatalf("adopted pod: got %+v, %v", p, err)
	}
	list, err := e.Containers(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]orchestrator.State{"runs": orchestrator.StateRunning, "created": orchestrator.StateCreated, "exited": orchestrator.StateExited}
	for _, c := range list {
		if c.State != want[c.Name] || c.Name == "runs" && (c.PID != pid || c.StartedAt.IsZero()) || c.Name == "exited" && c.ExitCode != 9 {
			t.Errorf("adopted container: got %+v, want %s", c, want[c.Name])
		}
	}
	events, err := e.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.StartContainer(ctx, pod, "created"); err != nil {
		t.Error(err)
	}
	if _, err := e.StartContainer(ctx, pod, "exited"); err != nil {
		t.Error(err)
	}
	if err := e.CreateContainer(ctx, pod, s.spec("new", "wait")); err != nil {
		t.Error(err)
	}
	if _, err := e.StartContainer(ctx, pod, "new"); err != nil {
		t.Error(err)
	}
	if err := e.SignalContainer(ctx, pod, "runs", int(syscall.SIGTERM)); err != nil {
		t.Error(err)
	}
	for {
		if ev := s.next(t, events); ev.Pod == pod && ev.Container == "runs" && ev.Type == orchestrator.EventExit {
			if ev.ExitCode != 15 || ev.PID != pid {
				t.Errorf("exit of an adopted container: got %+v", ev)
			}
			break
		}
	}
	if err := e.RemovePod(ctx, pod); err != nil {
		t.Error(err)
	}
}

func (s *suite) restart(t *testing.T) {
	if s.Restart == nil {
		t.Skip("the engine has no program to restart")
	}
	ctx := t.Context()
	pod := s.newPod(t)
	pid := s.run(t, pod, s.spec("runs", "trap"))
	s.create(t, pod, s.spec("created", "wait"))
	s.run(t, pod, s.spec("ends", "wait"))
	s.run(t, pod, s.spec("ended", "exit", "5"))
	s.exited(t, pod, "ended")
	s.logged(t, pod, "runs", "ready")
	events, err := s.Engine.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ends, err := s.Engine.Container(ctx, pod, "ends")
	if err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	if s.Local {
		if !alive(pid) {
			t.Fatal("a container did not survive the engine's restart")
		}
		if err := syscall.Kill(ends.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for {
			ev := s.next(t, events)
			if ev.Pod == pod && ev.Container == "runs" {
				t.Errorf("a container that runs on had an event: %+v", ev)
			}
			if ev.Pod == pod && ev.Container == "ends" {
				if ev.Type != orchestrator.EventExit || ev.ExitCode != 137 {
					t.Errorf("got %+v, want the exit", ev)
				}
				break
			}
		}
	}
	for name, want := range map[string]orchestrator.State{"runs": orchestrator.StateRunning, "created": orchestrator.StateCreated, "ended": orchestrator.StateExited} {
		st, err := s.Engine.Container(ctx, pod, name)
		if err != nil || st.State != want || name == "runs" && st.PID != pid || name == "ended" && st.ExitCode != 5 {
			t.Errorf("after a restart: got %+v, %v, want %s", st, err, want)
		}
	}
	if p, err := s.Engine.Pod(ctx, pod); err != nil || !p.Running {
		t.Errorf("after a restart: got %+v, %v, want a running pod", p, err)
	}
	s.start(t, pod, "created")
	s.run(t, pod, s.spec("new", "wait"))
	s.execOutput(t, pod, "runs", "echo")
	s.start(t, pod, "ended")
	if err := s.Engine.StopContainer(ctx, pod, "runs", patience); err != nil {
		t.Error(err)
	}
	if st := s.exited(t, pod, "runs"); st.ExitCode != 15 {
		t.Errorf("after a restart: exit code %d, want 15", st.ExitCode)
	}
}

func (s *suite) leavesNothing(t *testing.T) {
	if s.State == nil {
		t.Skip("the host's state cannot be listed")
	}
	ctx := t.Context()
	cycle := func(i int) {
		id := fmt.Sprintf("cycle-%d", i)
		spec := orchestrator.PodSpec{ID: id, Limits: orchestrator.Limits{PIDs: 1000}}
		if s.NAT {
			spec.Network = orchestrator.NetworkNAT
		}
		if _, err := s.Engine.CreatePod(ctx, spec); err != nil {
			t.Fatal(err)
		}
		for _, c := range []orchestrator.ContainerSpec{s.spec("a", "spawn", "2"), s.spec("b", "exit", "1"), s.spec("c", "wait")} {
			s.run(t, id, c)
		}
		s.create(t, id, s.spec("d", "wait"))
		s.execOutput(t, id, "c", "echo")
		s.exited(t, id, "b")
		s.start(t, id, "b")
		if err := s.Engine.RemovePod(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	cycle(0) // makes what stays: the anchor's root, address pool, rules' tables
	before := s.State(t)
	for i := range 3 {
		cycle(i + 1)
	}
	s.same(t, before)
}
