package containerd

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// lockTable orders the operations on one pod: those on different containers run side by side, those on one container one
// after another, and creating or removing the pod excludes them all. Locks are granted in the order they were asked
// for and waiting for one ends with the context.
type lockTable struct {
	mu sync.Mutex
	m  map[string]*lockEntry // by containerd identifier
}

type lockEntry struct {
	sem   *semaphore.Weighted
	users int // holders and waiters, guarded by lockTable.mu
}

const exclusive = 1 << 20

// pod locks a pod with all of its containers.
func (t *lockTable) pod(ctx context.Context, id string) (unlock func(), err error) {
	return t.acquire(ctx, id, exclusive)
}

// container locks one container.
func (t *lockTable) container(ctx context.Context, pod, name string) (unlock func(), err error) {
	unlockPod, err := t.acquire(ctx, pod, 1)
	if err != nil {
		return nil, err
	}
	unlockContainer, err := t.acquire(ctx, pod+"."+name, exclusive)
	if err != nil {
		unlockPod()
		return nil, err
	}
	return func() { unlockContainer(); unlockPod() }, nil
}

func (t *lockTable) acquire(ctx context.Context, key string, weight int64) (func(), error) {
	t.mu.Lock()
	if t.m == nil {
		t.m = make(map[string]*lockEntry)
	}
	e := t.m[key]
	if e == nil {
		e = &lockEntry{sem: semaphore.NewWeighted(exclusive)}
		t.m[key] = e
	}
	e.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(t.m, key)
		}
	}
	if err := e.sem.Acquire(ctx, weight); err != nil {
		leave()
		return nil, err
	}
	return func() { e.sem.Release(weight); leave() }, nil
}
