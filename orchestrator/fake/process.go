package fake

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"berth/orchestrator"
)

// Signals, as kill(2) counts them on Linux.
const (
	sigKill  = 9
	sigTerm  = 15
	sigChld  = 17
	sigCont  = 18
	sigURG   = 23
	sigWinch = 28
)

// Program is what a command does. It runs in a goroutine of its own and returns the exit code. ctx ends when the process
// has been killed, by SIGKILL or a signal it does not catch; what it does and returns after that is not seen.
type Program func(ctx context.Context, p *Process) int

// Process is one run of a program.
type Process struct {
	Pod, Container string
	PID            int
	Args           []string
	Env            []string // NAME=VALUE: the image's, the container's and, of an Exec, its own
	Cwd            string
	UID, GID       int
	Groups         []int
	Stdin          io.Reader // never nil
	Stdout, Stderr io.Writer
	TTY            bool
	Resize         <-chan orchestrator.TermSize // of an Exec with TTY; else nil

	w      *world
	c      *container
	ctx    context.Context
	kill   context.CancelFunc
	done   chan struct{} // closed when the process has ended
	code   int           // valid after done
	ready  bool          // guarded by w.mu, as is catch
	catch  map[int]bool
	notify chan int
}

// SetReady lets WaitReady return.
func (p *Process) SetReady() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.ready = true
	p.w.wake()
}

// Catch makes the process survive the given signals and returns the channel they arrive on. A signal that finds 16 of
// them waiting is lost, as with real ones.
func (p *Process) Catch(signals ...int) <-chan int {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for _, s := range signals {
		p.catch[s] = true
	}
	return p.notify
}

// signal delivers sig and reports whether the process dies of it. mu is held.
func (p *Process) signal(sig int) (dies bool) {
	switch {
	case sig == sigKill:
		return true
	case p.catch[sig]:
		select {
		case p.notify <- sig:
		default:
		}
		return false
	case sig == 0, sig == sigChld, sig == sigCont, sig == sigURG, sig == sigWinch:
		return false // signal(7): ignored by default
	}
	return true
}

// newProcess makes a process; mu is held.
func (w *world) newProcess(c *container, args, env []string) *Process {
	p := &Process{
		Pod: c.pod, Container: c.spec.Name, PID: w.nextPID, Args: args, Env: env, Cwd: c.spec.Cwd, UID: c.spec.UID, GID: c.spec.GID,
		Groups: c.spec.Groups, w: w, c: c, done: make(chan struct{}), catch: map[int]bool{}, notify: make(chan int, 16),
	}
	w.nextPID++
	p.ctx, p.kill = context.WithCancel(context.Background())
	return p
}

// ended records the end of a container's first process p, unless that is known already; everything else in the container
// dies with it. mu is held.
func (w *world) ended(c *container, p *Process, code int) {
	if c.proc != p || c.status.State != orchestrator.StateRunning {
		return
	}
	now := time.Now()
	c.status.State, c.status.ExitCode, c.status.FinishedAt, c.status.PID = orchestrator.StateExited, code, now, 0
	p.finish(code)
	for x := range c.others {
		x.finish(128 + sigKill)
	}
	c.others = map[*Process]struct{}{}
	w.wake()
	w.send(orchestrator.Event{Time: now, Type: orchestrator.EventExit, Pod: c.pod, Container: c.spec.Name, ExitCode: code, PID: p.PID})
}

// finish ends a process once. mu is held.
func (p *Process) finish(code int) {
	select {
	case <-p.done:
	default:
		p.code = code
		p.kill()
		close(p.done)
	}
}

// output writes to w only while the process lives.
type output struct {
	p *Process
	w io.Writer
}

func (o output) Write(b []byte) (int, error) {
	if o.p.ctx.Err() != nil {
		return 0, fmt.Errorf("process %d: %w", o.p.PID, io.ErrClosedPipe)
	}
	return o.w.Write(b)
}

// Spawn starts a child in the same container, with the same streams. It lives until it returns, or the container ends. At the
// pod's limit of processes it fails.
func (p *Process) Spawn(program Program, args ...string) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	pod := p.w.pods[p.Pod]
	if pod == nil || p.ctx.Err() != nil {
		return fmt.Errorf("process %d: it has ended", p.PID)
	}
	if max := pod.spec.Limits.PIDs; max > 0 && int64(pod.processes()) >= max {
		return fmt.Errorf("process %d: fork: the pod has %d processes: resource temporarily unavailable", p.PID, max)
	}
	child := p.w.newProcess(p.c, args, p.Env)
	child.Cwd, child.UID, child.GID, child.Groups = p.Cwd, p.UID, p.GID, p.Groups
	child.Stdin, child.Stdout, child.Stderr = p.Stdin, p.Stdout, p.Stderr
	p.c.others[child] = struct{}{}
	go func() {
		code := program(child.ctx, child)
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		delete(child.c.others, child)
		child.finish(code)
	}()
	return nil
}

// processes counts a pod's processes with its anchor; mu is held.
func (p *pod) processes() int {
	n := 0
	if p.Running {
		n++
	}
	for _, c := range p.containers {
		if c.status.State == orchestrator.StateRunning {
			n += 1 + len(c.others)
		}
	}
	return n
}

// HostPath says where on the host a path in the container lies, by the mounts of its specification; false if it lies in
// the image or the writable layer.
func (p *Process) HostPath(name string) (host string, readOnly, ok bool) {
	best := -1
	for _, m := range p.c.spec.Mounts {
		rest, under := strings.CutPrefix(name, strings.TrimSuffix(m.Target, "/"))
		if under && (rest == "" || rest[0] == '/') && len(m.Target) > best {
			best, host, readOnly, ok = len(m.Target), m.Source+rest, m.ReadOnly, true
		}
	}
	return host, readOnly, ok
}

// ReadFile reads a file as the container sees it: a mount's, the writable layer's or the image's.
func (p *Process) ReadFile(name string) ([]byte, error) {
	if host, _, ok := p.HostPath(name); ok {
		return os.ReadFile(host)
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if text, ok := p.c.layer[name]; ok {
		return []byte(text), nil
	}
	if at, err := p.c.image.resolve(name); err == nil {
		if text, ok := p.c.image.files[at]; ok {
			return []byte(text), nil
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// WriteFile writes a file as the container sees it. The writable layer is new with every start.
func (p *Process) WriteFile(name string, data []byte) error {
	host, readOnly, ok := p.HostPath(name)
	if ok && readOnly || !ok && p.c.spec.ReadOnly {
		return &fs.PathError{Op: "open", Path: name, Err: syscall.EROFS}
	}
	if ok {
		return os.WriteFile(host, data, 0o644)
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.c.layer[name] = string(data)
	return nil
}

// ReadDir lists the names in a directory as the container sees it, sorted.
func (p *Process) ReadDir(name string) ([]string, error) {
	if host, _, ok := p.HostPath(name); ok {
		entries, err := os.ReadDir(host)
		var out []string
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out, err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	seen := map[string]bool{}
	add := func(file string) {
		if rest, ok := strings.CutPrefix(file, strings.TrimSuffix(name, "/")+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			seen[first] = true
		}
	}
	for f := range p.c.layer {
		add(f)
	}
	for f := range p.c.image.files {
		add(f)
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// Step is one thing a scripted program does. It returns whether the program goes on, and if not its exit code.
type Step func(ctx context.Context, p *Process) (goOn bool, code int)

// Script is a program that takes steps in order and exits with 0 behind the last.
func Script(steps ...Step) Program {
	return func(ctx context.Context, p *Process) int {
		for _, s := range steps {
			if goOn, code := s(ctx, p); !goOn {
				return code
			}
		}
		return 0
	}
}

// Serve is a well-behaved server: ready at once, ends with 0 on SIGTERM and SIGINT.
func Serve() Program { return Script(Ready(), Await(sigTerm, 2)) }

// Ready calls SetReady.
func Ready() Step {
	return func(_ context.Context, p *Process) (bool, int) { p.SetReady(); return true, 0 }
}

// Print writes to standard output.
func Print(text string) Step {
	return func(_ context.Context, p *Process) (bool, int) {
		_, err := io.WriteString(p.Stdout, text)
		return err == nil, 1
	}
}

// Exit ends the program.
func Exit(code int) Step {
	return func(context.Context, *Process) (bool, int) { return false, code }
}

// Until waits for something the test does.
func Until(c <-chan struct{}) Step {
	return func(ctx context.Context, _ *Process) (bool, int) {
		select {
		case <-c:
			return true, 0
		case <-ctx.Done():
			return false, 1
		}
	}
}

// Await waits for one of the signals, which then does not kill.
func Await(signals ...int) Step {
	return func(ctx context.Context, p *Process) (bool, int) {
		select {
		case <-p.Catch(signals...):
			return true, 0
		case <-ctx.Done():
			return false, 1
		}
	}
}

// Hang waits for SIGKILL; SIGTERM, SIGINT and SIGHUP do nothing.
func Hang() Step {
	return func(ctx context.Context, p *Process) (bool, int) {
		p.Catch(sigTerm, 2, 1)
		<-ctx.Done()
		return false, 1
	}
}
