// Package fake is a container engine inside the test process. It keeps the contract of orchestrator.Engine, so that what
// drives an engine can be tested without root, images and kernel features, and can be shown things no real engine does on
// demand: a program that hangs, dies at a chosen moment, or a call that fails.
//
// # Programs
//
// A container's command is looked up among the Programs registered with Handle, by its first word's base name. A program
// is a Go function that runs in a goroutine and returns an exit code; Script and Serve make the usual ones. What nobody
// registered is not in the image: starting it is ErrNotFound.
//
//	e := fake.New()
//	e.AddImage(fake.ImageSpec{Ref: "localhost/berth/xfce:latest"})
//	e.Handle("Xvfb", fake.Serve())                                           // ready at once, ends on SIGTERM
//	e.Handle("xfce4-panel", fake.Script(fake.Print("no display\n"), fake.Exit(1)))
//	e.Handle("tumbler", fake.Script(fake.Hang()))                            // never ready, ignores SIGTERM
//
// A process that is killed counts as dead at that moment, even if its goroutine has not looked at its context yet.
//
// # Control
//
// Readiness is not the engine's business, but the tests' probers need something to look at: a program says SetReady and
// WaitReady waits for it. Exit, OOM and ExitAnchor make things end from outside. Intercept sees every call before it is
// carried out and can delay or fail it. Connect gives a second connection to the same pods, as a restarted daemon has.
//
// There is no isolation: mounts, users, capabilities and limits are recorded, not applied.
package fake

import (
	"context"
	"fmt"
	"path"
	"sync"
	"time"

	"berth/orchestrator"
)

// firstPID lies above the largest process ID Linux gives (PID_MAX_LIMIT, 4194304), so that a test that signals one by
// mistake reaches nobody.
const firstPID = 1 << 23

// Engine implements orchestrator.Engine. It is one connection; those made by Connect share everything but Close.
type Engine struct {
	*world
	ctx   context.Context // ends with Close
	close context.CancelFunc
}

var _ orchestrator.Engine = (*Engine)(nil)

// world is what all connections share.
type world struct {
	mu        sync.Mutex // guards everything that follows, and all pods and containers
	pods      map[string]*pod
	programs  map[string]Program
	subs      map[*subscriber]struct{}
	nextPID   int
	intercept func(ctx context.Context, c Call) error
	calls     []Call
	images    imageStore
	changed   chan struct{} // closed and replaced when a process becomes ready or ends
}

type pod struct {
	orchestrator.Pod
	spec       orchestrator.PodSpec
	containers map[string]*container
}

type container struct {
	pod    string
	spec   orchestrator.ContainerSpec
	image  *image // which it was made of, whatever bears the name now
	status orchestrator.ContainerStatus
	proc   *Process              // of the last start
	others map[*Process]struct{} // execs, and children of any
	layer  map[string]string     // what the running program has written
	log    *logBuffer
	stats  orchestrator.Stats
}

// Call is one call of an engine's method.
type Call struct {
	Op        string // the method's name: "StartContainer"
	Pod       string
	Container string
}

func (c Call) String() string {
	s := c.Op
	if c.Pod != "" {
		s += " " + c.Pod
	}
	if c.Container != "" {
		s += "/" + c.Container
	}
	return s
}

// New returns an engine without pods, images and programs.
func New() *Engine {
	return (&Engine{world: &world{
		pods: map[string]*pod{}, programs: map[string]Program{}, subs: map[*subscriber]struct{}{}, nextPID: firstPID,
		images: newImageStore(), changed: make(chan struct{}),
	}}).Connect()
}

// Connect returns a further connection to the same pods.
func (e *Engine) Connect() *Engine {
	c := &Engine{world: e.world}
	c.ctx, c.close = context.WithCancel(context.Background())
	return c
}

// Handle registers the program for commands called name, for containers and for Exec. A later one replaces it for
// processes started from then on.
func (e *Engine) Handle(name string, p Program) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.programs[name] = p
}

// FailNetwork takes the network of a pod away, for the reason why.
func (e *Engine) FailNetwork(id, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.pods[id]; p != nil {
		p.IP, p.NetworkError = "", why
	}
}

// Intercept makes f see every call of a method, from any goroutine; if it returns an error the call fails with it and
// has no effect. nil ends that.
func (e *Engine) Intercept(f func(ctx context.Context, c Call) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.intercept = f
}

// Calls returns the calls made so far, of all connections.
func (e *Engine) Calls() []Call {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Call(nil), e.calls...)
}

// Spec returns what a container was created from.
func (e *Engine) Spec(podID, name string) (orchestrator.ContainerSpec, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(podID, name)
	if err != nil {
		return orchestrator.ContainerSpec{}, err
	}
	return c.spec, nil
}

// PodSpec returns what a pod was created from.
func (e *Engine) PodSpec(id string) (orchestrator.PodSpec, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[id]
	if !ok {
		return orchestrator.PodSpec{}, podErr(id, orchestrator.ErrNotFound)
	}
	return p.spec, nil
}

// Exit makes the running program of a container end with code, now.
func (e *Engine) Exit(podID, name string, code int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.running(podID, name)
	if err != nil {
		return err
	}
	e.ended(c, c.proc, code)
	return nil
}

// OOM does what the kernel does to a container over its limit: the event, then SIGKILL.
func (e *Engine) OOM(podID, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.running(podID, name)
	if err != nil {
		return err
	}
	e.send(orchestrator.Event{Time: time.Now(), Type: orchestrator.EventOOM, Pod: podID, Container: name})
	e.ended(c, c.proc, 128+sigKill)
	return nil
}

// ExitAnchor ends a pod's anchor and with it, as it is PID 1 of their namespace, all its processes.
func (e *Engine) ExitAnchor(podID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.pods[podID]
	if !ok {
		return podErr(podID, orchestrator.ErrNotFound)
	}
	e.endAnchor(p)
	return nil
}

func (w *world) endAnchor(p *pod) {
	if !p.Running {
		return
	}
	pid := p.AnchorPID
	p.Running, p.AnchorPID = false, 0
	for _, c := range p.containers {
		if c.status.State == orchestrator.StateRunning {
			w.ended(c, c.proc, 128+sigKill)
		}
	}
	w.send(orchestrator.Event{Time: time.Now(), Type: orchestrator.EventExit, Pod: p.ID, ExitCode: 128 + sigKill, PID: pid})
}

// Processes counts the processes of a pod, with its anchor.
func (e *Engine) Processes(podID string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p, ok := e.pods[podID]; ok {
		return p.processes()
	}
	return 0
}

// SetStats sets what Stats says of a container.
func (e *Engine) SetStats(podID, name string, s orchestrator.Stats) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(podID, name)
	if err == nil {
		c.stats = s
	}
	return err
}

// WaitReady waits until the container's running program has called SetReady. It also waits for the container and its
// start.
func (e *Engine) WaitReady(ctx context.Context, podID, name string) error {
	for {
		e.mu.Lock()
		c, err := e.running(podID, name)
		ready := err == nil && c.proc.ready
		changed := e.changed
		e.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err == nil {
				err = containerErr(podID, name, fmt.Errorf("its program has not said that it is ready"))
			}
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// wake tells WaitReady to look again. mu is held.
func (w *world) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// enter is the beginning of every method.
func (e *Engine) enter(ctx context.Context, op, podID, name string) error {
	c := Call{op, podID, name}
	e.mu.Lock()
	e.calls = append(e.calls, c)
	f := e.intercept
	e.mu.Unlock()
	if f != nil {
		if err := f(ctx, c); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	if e.ctx.Err() != nil {
		return fmt.Errorf("%s: %w: the engine is closed", c, orchestrator.ErrState)
	}
	return nil
}

// container finds one; mu is held.
func (w *world) container(podID, name string) (*container, error) {
	p, ok := w.pods[podID]
	if !ok {
		return nil, podErr(podID, orchestrator.ErrNotFound)
	}
	c, ok := p.containers[name]
	if !ok {
		return nil, containerErr(podID, name, orchestrator.ErrNotFound)
	}
	return c, nil
}

// running finds a container whose program runs; mu is held.
func (w *world) running(podID, name string) (*container, error) {
	c, err := w.container(podID, name)
	if err == nil && c.status.State != orchestrator.StateRunning {
		err = containerErr(podID, name, fmt.Errorf("%w: it does not run", orchestrator.ErrState))
	}
	return c, err
}

// program finds what a command runs; mu is held.
func (w *world) program(command []string, image string) (Program, error) {
	name := command[0]
	// A file of the image that cannot be executed hides what is registered.
	if img := w.images.images[image]; img != nil {
		for _, file := range []string{name, path.Join("/bin", name), path.Join("/usr/bin", name)} {
			if at, err := img.resolve(file); err == nil && path.IsAbs(file) {
				if mode, ok := img.modes[at]; ok && mode&0o111 == 0 {
					return nil, fmt.Errorf("command %q: %w: not executable in image %q", name, orchestrator.ErrInvalid, image)
				}
			}
		}
	}
	if p, ok := w.programs[name]; ok {
		return p, nil
	}
	if p, ok := w.programs[path.Base(name)]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("command %q: %w in image %q", name, orchestrator.ErrNotFound, image)
}

func podErr(id string, err error) error { return fmt.Errorf("pod %q: %w", id, err) }

func containerErr(podID, name string, err error) error {
	return fmt.Errorf("pod %q: container %q: %w", podID, name, err)
}
