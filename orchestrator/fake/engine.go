package fake

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth/orchestrator"
)

var validName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

func checkName(noun, name string) error {
	if len(name) > 64 || !validName.MatchString(name) {
		return fmt.Errorf("%s %q: %w: use at most 64 of a-z, 0-9 and single dashes between them", noun, name, orchestrator.ErrInvalid)
	}
	return nil
}

// CreatePod implements orchestrator.Engine.
func (e *Engine) CreatePod(ctx context.Context, spec orchestrator.PodSpec) (orchestrator.Pod, error) {
	if err := e.enter(ctx, "CreatePod", spec.ID, ""); err != nil {
		return orchestrator.Pod{}, err
	}
	if err := checkName("pod", spec.ID); err != nil {
		return orchestrator.Pod{}, err
	}
	switch spec.Network {
	case "", orchestrator.NetworkNone, orchestrator.NetworkNAT, orchestrator.NetworkHost:
	default:
		return orchestrator.Pod{}, podErr(spec.ID, fmt.Errorf("network %q: %w", spec.Network, orchestrator.ErrInvalid))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.pods[spec.ID]; ok {
		return orchestrator.Pod{}, podErr(spec.ID, orchestrator.ErrExists)
	}
	spec.Labels, spec.Data = maps.Clone(spec.Labels), bytes.Clone(spec.Data)
	p := &pod{spec: spec, containers: map[string]*container{}, Pod: orchestrator.Pod{
		ID: spec.ID, Labels: spec.Labels, Data: spec.Data, Created: time.Now(), Running: true, AnchorPID: e.nextPID,
	}}
	if spec.Network == orchestrator.NetworkNAT {
		n := e.nextPID - firstPID
		p.IP = fmt.Sprintf("192.0.2.%d", 1+n%254) // TEST-NET-1, RFC 5737
	}
	e.nextPID++
	e.pods[spec.ID] = p
	e.send(orchestrator.Event{Time: p.Created, Type: orchestrator.EventStart, Pod: p.ID, PID: p.AnchorPID})
	return p.copy(), nil
}

func (p *pod) copy() orchestrator.Pod {
	c := p.Pod
	c.Labels, c.Data = maps.Clone(c.Labels), bytes.Clone(c.Data)
	return c
}

// Pod implements orchestrator.Engine.
func (e *Engine) Pod(ctx context.Context, id string) (orchestrator.Pod, error) {
	if err := e.enter(ctx, "Pod", id, ""); err != nil {
		return orchestrator.Pod{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[id]
	if !ok {
		return orchestrator.Pod{}, podErr(id, orchestrator.ErrNotFound)
	}
	return p.copy(), nil
}

// Pods implements orchestrator.Engine.
func (e *Engine) Pods(ctx context.Context, match map[string]string) ([]orchestrator.Pod, error) {
	if err := e.enter(ctx, "Pods", "", ""); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []orchestrator.Pod
	for _, id := range slices.Sorted(maps.Keys(e.pods)) {
		p := e.pods[id]
		fits := true
		for k, v := range match {
			got, ok := p.Labels[k]
			fits = fits && ok && got == v
		}
		if fits {
			out = append(out, p.copy())
		}
	}
	return out, nil
}

// SetPodData implements orchestrator.Engine.
func (e *Engine) SetPodData(ctx context.Context, id string, data []byte) error {
	if err := e.enter(ctx, "SetPodData", id, ""); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[id]
	if !ok {
		return podErr(id, orchestrator.ErrNotFound)
	}
	p.Data = bytes.Clone(data)
	return nil
}

// RemovePod implements orchestrator.Engine.
func (e *Engine) RemovePod(ctx context.Context, id string) error {
	if err := e.enter(ctx, "RemovePod", id, ""); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[id]
	if !ok {
		return nil
	}
	e.endAnchor(p)
	for _, c := range p.containers {
		c.log.close()
	}
	delete(e.pods, id)
	e.wake()
	return nil
}

// CreateContainer implements orchestrator.Engine.
func (e *Engine) CreateContainer(ctx context.Context, podID string, spec orchestrator.ContainerSpec) error {
	if err := e.enter(ctx, "CreateContainer", podID, spec.Name); err != nil {
		return err
	}
	if err := checkName("container", spec.Name); err != nil {
		return podErr(podID, err)
	}
	if err := checkSpec(spec); err != nil {
		return containerErr(podID, spec.Name, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[podID]
	if !ok {
		return podErr(podID, orchestrator.ErrNotFound)
	}
	if _, ok := p.containers[spec.Name]; ok {
		return containerErr(podID, spec.Name, orchestrator.ErrExists)
	}
	if !p.Running {
		return containerErr(podID, spec.Name, fmt.Errorf("%w: the pod's anchor does not run", orchestrator.ErrState))
	}
	img, ok := e.images.images[spec.Image]
	if !ok {
		return containerErr(podID, spec.Name, fmt.Errorf("image %q: %w", spec.Image, orchestrator.ErrNotFound))
	}
	if len(spec.Command) == 0 && len(img.Cmd) == 0 {
		return containerErr(podID, spec.Name, fmt.Errorf("command: %w: neither container nor image has one", orchestrator.ErrInvalid))
	}
	spec.Labels = maps.Clone(spec.Labels)
	p.containers[spec.Name] = &container{
		pod: podID, spec: spec, image: img, others: map[*Process]struct{}{}, log: newLogBuffer(),
		status: orchestrator.ContainerStatus{Name: spec.Name, Image: spec.Image, Digest: img.Digest, State: orchestrator.StateCreated, Labels: spec.Labels},
	}
	return nil
}

func checkSpec(spec orchestrator.ContainerSpec) error {
	for _, s := range spec.Command {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("command: %w: NUL in %q", orchestrator.ErrInvalid, s)
		}
	}
	for _, s := range spec.Env {
		if k, _, ok := strings.Cut(s, "="); !ok || k == "" || strings.ContainsRune(s, 0) {
			return fmt.Errorf("environment %q: %w: want NAME=VALUE", s, orchestrator.ErrInvalid)
		}
	}
	for _, m := range spec.Mounts {
		if !path.IsAbs(m.Source) || !path.IsAbs(m.Target) {
			return fmt.Errorf("mount %q on %q: %w: both must be absolute paths", m.Source, m.Target, orchestrator.ErrInvalid)
		}
		if _, err := os.Stat(m.Source); err != nil {
			return fmt.Errorf("mount %q: %w: %v", m.Source, orchestrator.ErrNotFound, err)
		}
	}
	for _, d := range spec.Devices {
		if _, err := os.Stat(d); err != nil {
			return fmt.Errorf("device %q: %w: %v", d, orchestrator.ErrNotFound, err)
		}
	}
	if spec.Seccomp != "" && spec.Seccomp != "unconfined" {
		return fmt.Errorf("seccomp profile %q: %w: unknown", spec.Seccomp, orchestrator.ErrInvalid)
	}
	return nil
}

// StartContainer implements orchestrator.Engine.
func (e *Engine) StartContainer(ctx context.Context, podID, name string) (int, error) {
	if err := e.enter(ctx, "StartContainer", podID, name); err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(podID, name)
	if err != nil {
		return 0, err
	}
	if c.status.State == orchestrator.StateRunning {
		return 0, containerErr(podID, name, fmt.Errorf("%w: it runs", orchestrator.ErrState))
	}
	if !e.pods[podID].Running {
		return 0, containerErr(podID, name, fmt.Errorf("%w: the pod's anchor does not run", orchestrator.ErrState))
	}
	args := c.spec.Command
	if len(args) == 0 {
		args = c.image.Cmd
	}
	program, err := e.program(args, c.spec.Image)
	if err != nil {
		return 0, containerErr(podID, name, err)
	}
	p := e.newProcess(c, args, mergeEnv(c.image.Env, c.spec.Env))
	p.Cwd = cmp.Or(p.Cwd, c.image.cwd, "/")
	c.layer = map[string]string{}
	p.Stdin, p.Stdout, p.Stderr = strings.NewReader(""), output{p, c.log}, output{p, c.log}
	c.proc = p
	c.status.State, c.status.PID, c.status.ExitCode = orchestrator.StateRunning, p.PID, 0
	c.status.StartedAt, c.status.FinishedAt = time.Now(), time.Time{}
	e.send(orchestrator.Event{Time: c.status.StartedAt, Type: orchestrator.EventStart, Pod: podID, Container: name, PID: p.PID})
	e.wake()
	go func() {
		code := program(p.ctx, p)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.ended(c, p, code&0xff)
	}()
	return p.PID, nil
}

// mergeEnv returns base with the variables of over replaced or added.
func mergeEnv(base, over []string) []string {
	out := slices.Clone(base)
	for _, kv := range over {
		k, _, _ := strings.Cut(kv, "=")
		if i := slices.IndexFunc(out, func(s string) bool { return strings.HasPrefix(s, k+"=") }); i >= 0 {
			out[i] = kv
		} else {
			out = append(out, kv)
		}
	}
	return out
}

// SignalContainer implements orchestrator.Engine.
func (e *Engine) SignalContainer(ctx context.Context, podID, name string, sig int) error {
	if err := e.enter(ctx, "SignalContainer", podID, name); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.running(podID, name)
	if err != nil {
		return err
	}
	if sig < 0 || sig > 64 {
		return containerErr(podID, name, fmt.Errorf("signal %d: %w", sig, orchestrator.ErrInvalid))
	}
	if c.proc.signal(sig) {
		e.ended(c, c.proc, 128+sig)
	}
	return nil
}

// StopContainer implements orchestrator.Engine.
func (e *Engine) StopContainer(ctx context.Context, podID, name string, grace time.Duration) error {
	if err := e.enter(ctx, "StopContainer", podID, name); err != nil {
		return err
	}
	e.mu.Lock()
	c, err := e.container(podID, name)
	if err != nil || c.status.State != orchestrator.StateRunning {
		e.mu.Unlock()
		return err
	}
	p := c.proc
	sig := c.spec.StopSignal
	if sig == 0 {
		sig = sigTerm
	}
	if grace <= 0 {
		sig = sigKill
	}
	if p.signal(sig) {
		e.ended(c, p, 128+sig)
	}
	e.mu.Unlock()

	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return containerErr(podID, name, ctx.Err())
	case <-t.C:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended(c, p, 128+sigKill)
	return nil
}

// RemoveContainer implements orchestrator.Engine.
func (e *Engine) RemoveContainer(ctx context.Context, podID, name string) error {
	if err := e.enter(ctx, "RemoveContainer", podID, name); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(podID, name)
	if err != nil {
		return nil
	}
	if c.proc != nil {
		e.ended(c, c.proc, 128+sigKill)
	}
	c.log.close()
	delete(e.pods[podID].containers, name)
	e.wake()
	return nil
}

// Container implements orchestrator.Engine.
func (e *Engine) Container(ctx context.Context, podID, name string) (orchestrator.ContainerStatus, error) {
	if err := e.enter(ctx, "Container", podID, name); err != nil {
		return orchestrator.ContainerStatus{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(podID, name)
	if err != nil {
		return orchestrator.ContainerStatus{}, err
	}
	return c.copy(), nil
}

func (c *container) copy() orchestrator.ContainerStatus {
	s := c.status
	s.Labels = maps.Clone(s.Labels)
	return s
}

// Containers implements orchestrator.Engine.
func (e *Engine) Containers(ctx context.Context, podID string) ([]orchestrator.ContainerStatus, error) {
	if err := e.enter(ctx, "Containers", podID, ""); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[podID]
	if !ok {
		return nil, podErr(podID, orchestrator.ErrNotFound)
	}
	out := []orchestrator.ContainerStatus{}
	for _, name := range slices.Sorted(maps.Keys(p.containers)) {
		out = append(out, p.containers[name].copy())
	}
	return out, nil
}

// Exec implements orchestrator.Engine. The command is looked up like a container's.
func (e *Engine) Exec(ctx context.Context, podID, name string, spec orchestrator.ExecSpec) (int, error) {
	if err := e.enter(ctx, "Exec", podID, name); err != nil {
		return 0, err
	}
	if len(spec.Command) == 0 {
		return 0, containerErr(podID, name, fmt.Errorf("exec: command: %w: empty", orchestrator.ErrInvalid))
	}
	e.mu.Lock()
	c, err := e.running(podID, name)
	if err != nil {
		e.mu.Unlock()
		return 0, err
	}
	program, err := e.program(spec.Command, c.spec.Image)
	if err != nil {
		e.mu.Unlock()
		return 0, containerErr(podID, name, err)
	}
	p := e.newProcess(c, spec.Command, mergeEnv(c.proc.Env, spec.Env))
	p.Cwd = c.proc.Cwd
	if spec.Cwd != "" {
		p.Cwd = spec.Cwd
	}
	if spec.UID != nil && *spec.UID != p.UID {
		p.UID, p.Groups = *spec.UID, nil
	}
	if spec.GID != nil {
		p.GID = *spec.GID
	}
	p.TTY, p.Resize = spec.TTY, spec.Resize
	p.Stdin = spec.Stdin
	if p.Stdin == nil {
		p.Stdin = strings.NewReader("")
	}
	stream := func(w io.Writer) io.Writer {
		if w == nil {
			w = io.Discard
		}
		return output{p, w}
	}
	p.Stdout, p.Stderr = stream(spec.Stdout), stream(spec.Stderr)
	if spec.TTY {
		p.Stderr = p.Stdout
	}
	c.others[p] = struct{}{}
	e.mu.Unlock()

	finish := func(code int) {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(c.others, p)
		p.finish(code)
	}
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		finish(program(p.ctx, p) & 0xff)
	}()
	select {
	case <-p.done:
		if p.ctx.Err() != nil {
			// Not to write into a caller's buffer that is no longer meant for it: programs end soon after their context.
			select {
			case <-returned:
			case <-ctx.Done():
			}
		}
		return p.code, nil
	case <-ctx.Done():
		finish(128 + sigKill)
		return 0, containerErr(podID, name, ctx.Err())
	}
}

// Logs implements orchestrator.Engine.
func (e *Engine) Logs(ctx context.Context, podID, name string, tail int, follow bool) (io.ReadCloser, error) {
	if err := e.enter(ctx, "Logs", podID, name); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(podID, name)
	if err != nil {
		return nil, err
	}
	return c.log.reader(ctx, tail, follow), nil
}

// Stats implements orchestrator.Engine, with what SetStats was given.
func (e *Engine) Stats(ctx context.Context, podID string) (map[string]orchestrator.Stats, error) {
	if err := e.enter(ctx, "Stats", podID, ""); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[podID]
	if !ok {
		return nil, podErr(podID, orchestrator.ErrNotFound)
	}
	out := map[string]orchestrator.Stats{}
	for name, c := range p.containers {
		if c.status.State == orchestrator.StateRunning {
			s := c.stats
			if s.PIDs == 0 {
				s.PIDs = int64(1 + len(c.others))
			}
			out[name] = s
		}
	}
	return out, nil
}

// Events implements orchestrator.Engine.
func (e *Engine) Events(ctx context.Context) (<-chan orchestrator.Event, error) {
	if err := e.enter(ctx, "Events", "", ""); err != nil {
		return nil, err
	}
	s := &subscriber{wake: make(chan struct{}, 1)}
	e.mu.Lock()
	e.subs[s] = struct{}{}
	e.mu.Unlock()
	out := make(chan orchestrator.Event)
	go func() {
		defer close(out)
		defer func() {
			e.mu.Lock()
			delete(e.subs, s)
			e.mu.Unlock()
		}()
		for {
			e.mu.Lock()
			queue := s.queue
			s.queue = nil
			e.mu.Unlock()
			for _, ev := range queue {
				select {
				case out <- ev:
				case <-ctx.Done():
					return
				case <-e.ctx.Done():
					return
				}
			}
			select {
			case <-s.wake:
			case <-ctx.Done():
				return
			case <-e.ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// subscriber is an unbounded queue: a slow reader must not hold up the others, nor lose exits. mu guards queue.
type subscriber struct {
	queue []orchestrator.Event
	wake  chan struct{}
}

// send queues an event for all; mu is held.
func (w *world) send(ev orchestrator.Event) {
	for s := range w.subs {
		s.queue = append(s.queue, ev)
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Images implements orchestrator.Engine.
func (e *Engine) Images() orchestrator.Images { return (*images)(e) }

// Info implements orchestrator.Engine.
func (e *Engine) Info(ctx context.Context) (orchestrator.Info, error) {
	if err := e.enter(ctx, "Info", "", ""); err != nil {
		return orchestrator.Info{}, err
	}
	return orchestrator.Info{Name: "fake", Version: "1", Runtime: "goroutines", Snapshotter: "none", Cgroup: "none"}, nil
}

// Close implements orchestrator.Engine. Pods go on, for other connections.
func (e *Engine) Close() error {
	e.close()
	return nil
}
