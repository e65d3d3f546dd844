package containerd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"berth/orchestrator"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
)

// watcher turns containerd's task events into orchestrator.Event for any number of subscribers, over one subscription
// for the life of the engine. When the stream breaks, as when containerd is restarted, it subscribes again and compares
// the tasks with what it knew, so no exit is lost.
type watcher struct {
	e      *Engine
	cancel context.CancelFunc
	done   chan struct{}

	ready chan struct{} // closed when the first subscription is in place

	mu   sync.Mutex
	subs map[*subscriber]struct{}
	// running holds the process ID of each started container, by containerd identifier: an exit that is reported twice,
	// or of a container that never was started, is no event.
	running map[string]int
}

// subscriber is an unbounded queue: a slow reader must not hold up the others, and must not lose exits.
type subscriber struct {
	mu    sync.Mutex
	queue []orchestrator.Event
	wake  chan struct{} // holds one token when the queue is not empty
}

func (s *subscriber) put(ev orchestrator.Event) {
	s.mu.Lock()
	s.queue = append(s.queue, ev)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) take() []orchestrator.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

func newWatcher(e *Engine) *watcher {
	ctx, cancel := context.WithCancel(e.withNamespace(context.Background()))
	w := &watcher{
		e: e, cancel: cancel, done: make(chan struct{}), ready: make(chan struct{}),
		subs: make(map[*subscriber]struct{}), running: make(map[string]int),
	}
	go w.run(ctx)
	return w
}

func (w *watcher) close() {
	w.cancel()
	<-w.done
}

// Events implements orchestrator.Engine.
func (e *Engine) Events(ctx context.Context) (<-chan orchestrator.Event, error) {
	select {
	case <-e.watch.ready:
	case <-e.watch.done:
		return nil, fmt.Errorf("events: %w: the engine is closed", orchestrator.ErrState)
	case <-ctx.Done():
		return nil, fmt.Errorf("events: %w", ctx.Err())
	}
	sub := &subscriber{wake: make(chan struct{}, 1)}
	e.watch.mu.Lock()
	e.watch.subs[sub] = struct{}{}
	e.watch.mu.Unlock()
	out := make(chan orchestrator.Event)
	go func() {
		defer close(out)
		defer func() {
			e.watch.mu.Lock()
			delete(e.watch.subs, sub)
			e.watch.mu.Unlock()
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-e.watch.done:
				return
			case <-sub.wake:
			}
			for _, ev := range sub.take() {
				select {
				case out <- ev:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

// markerTopic is where the watcher publishes to itself: containerd's answer to a subscription says nothing until the
// first event, so only an event that has come back tells that none can be missed any more.
const markerTopic = "/berth/marker"

func eventFilters(n namespace) []string {
	return []string{
		`namespace=="` + string(n) + `",topic~="^/tasks/(start|exit|delete|oom)$"`,
		`namespace=="` + string(n) + `",topic=="` + markerTopic + `"`,
	}
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.done)
	first := true
	const minPause, maxPause = 20 * time.Millisecond, time.Second
	pause := minPause
	for ctx.Err() == nil {
		err := w.follow(ctx, func() {
			pause = minPause
			if first {
				close(w.ready)
				first = false
			}
		}, first)
		if ctx.Err() != nil {
			return
		}
		w.e.log.Debug("containerd's event stream ended", "error", err)
		select {
		case <-time.After(pause):
			pause = min(2*pause, maxPause)
		case <-ctx.Done():
		}
	}
}

// follow subscribes, calls synced when nothing can be missed any more, and delivers until the stream ends.
func (w *watcher) follow(ctx context.Context, synced func(), first bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, errs := w.e.client.EventService().Subscribe(ctx, eventFilters(w.e.namespace)...)
	nonce := fmt.Sprintf("%p-%d", w, time.Now().UnixNano())
	var held []*events.Envelope // arrived before the marker
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	publish := func() error {
		return w.e.client.EventService().Publish(ctx, markerTopic, &apievents.ContainerUpdate{ID: nonce})
	}
	if err := publish(); err != nil {
		return err
	}
	for marked := false; !marked; {
		select {
		case env := <-stream:
			v, err := typeurl.UnmarshalAny(env.Event)
			if err != nil {
				return err
			}
			if m, ok := v.(*apievents.ContainerUpdate); ok {
				marked = m.ID == nonce
				continue
			}
			held = append(held, env)
		case err := <-errs:
			return err
		case <-again.C:
			if err := publish(); err != nil {
				return err
			}
		}
	}
	if err := w.sync(ctx, first); err != nil {
		return err
	}
	synced()
	for _, env := range held {
		w.handle(env)
	}
	for {
		select {
		case env := <-stream:
			w.handle(env)
		case err := <-errs:
			return err
		}
	}
}

// sync compares containerd's tasks with what the watcher knows. The first time it only takes them in.
func (w *watcher) sync(ctx context.Context, first bool) error {
	resp, err := w.e.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return errgrpc.ToNative(err)
	}
	now := make(map[string]*tasktypes.Process, len(resp.Tasks))
	for _, t := range resp.Tasks {
		now[t.ID] = t
	}
	w.mu.Lock()
	known := make(map[string]int, len(w.running))
	for id, pid := range w.running {
		known[id] = pid
	}
	w.mu.Unlock()
	for id, pid := range known {
		t := now[id]
		switch {
		case t == nil:
			w.vanished(ctx, id, pid)
		case !w.e.runs(id, t):
			w.exited(id, pid, int(t.ExitStatus), t.ExitedAt.AsTime())
		}
	}
	for id, t := range now {
		if !w.e.runs(id, t) {
			continue
		}
		if first {
			w.mu.Lock()
			w.running[id] = int(t.Pid)
			w.mu.Unlock()
			continue
		}
		w.started(id, int(t.Pid), time.Now())
	}
	return nil
}

// lateEvent is how long the shim may take to deliver an exit to a containerd that has just been started.
const lateEvent = 2 * time.Second

// vanished reports the exit of a container whose task a restarted containerd has cleaned away. How it ended is in our own
// record, or the shim still tells, or nobody knows.
func (w *watcher) vanished(ctx context.Context, id string, pid int) {
	pod, name := splitID(id)
	if code, at := w.e.exitRecord(pod, name); name != "" && !at.IsZero() {
		w.exited(id, pid, code, at)
		return
	}
	time.AfterFunc(lateEvent, func() {
		if ctx.Err() == nil {
			w.exited(id, pid, unknownExit, time.Now()) // no event if the real one has come
		}
	})
}

func (w *watcher) handle(env *events.Envelope) {
	v, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		w.e.log.Warn("containerd sent an event that cannot be read", "topic", env.Topic, "error", err)
		return
	}
	switch ev := v.(type) {
	case *apievents.TaskStart:
		w.started(ev.ContainerID, int(ev.Pid), env.Timestamp)
	case *apievents.TaskExit:
		if ev.ID == ev.ContainerID { // else of an exec
			w.exited(ev.ContainerID, int(ev.Pid), int(ev.ExitStatus), ev.ExitedAt.AsTime())
		}
	case *apievents.TaskDelete:
		// After a restart of containerd it may be all that is told of an exit.
		w.exited(ev.ContainerID, int(ev.Pid), int(ev.ExitStatus), ev.ExitedAt.AsTime())
	case *apievents.TaskOOM:
		pod, name := splitID(ev.ContainerID)
		w.send(orchestrator.Event{Time: env.Timestamp, Type: orchestrator.EventOOM, Pod: pod, Container: name})
	}
}

func (w *watcher) started(id string, pid int, at time.Time) {
	w.mu.Lock()
	old, was := w.running[id]
	w.running[id] = pid
	w.mu.Unlock()
	if was && old == pid {
		return
	}
	pod, name := splitID(id)
	w.send(orchestrator.Event{Time: at, Type: orchestrator.EventStart, Pod: pod, Container: name, PID: pid})
}

// forget takes back a start that failed.
func (w *watcher) forget(id string, pid int) {
	w.exited(id, pid, unknownExit, time.Now())
}

func (w *watcher) exited(id string, pid, code int, at time.Time) {
	w.mu.Lock()
	old, was := w.running[id]
	// After the death of a shim containerd reports the exit without a process ID.
	was = was && (pid == 0 || pid == old)
	if was {
		delete(w.running, id)
	}
	w.mu.Unlock()
	if !was {
		return
	}
	pod, name := splitID(id)
	if name != "" {
		w.e.recordExit(pod, name, code, at)
	} else {
		w.e.pods.Delete(pod)
	}
	w.send(orchestrator.Event{Time: at, Type: orchestrator.EventExit, Pod: pod, Container: name, ExitCode: code, PID: old})
}

func (w *watcher) send(ev orchestrator.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.subs {
		s.put(ev)
	}
}
