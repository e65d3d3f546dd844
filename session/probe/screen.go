package probe

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"berth/display/x11"
)

// x11 waits for the X server's handshake.
func (r *Runner) x11(ctx context.Context) error {
	cookie, err := r.cookie()
	if err != nil {
		return err
	}
	dir, name := x11.Split(r.t.XSocket)
	return x11.Handshake(ctx, dir, name, cookie)
}

// watchers holds the watcher of each X server that somebody waits for something on, by the socket's path.
var watchers = struct {
	sync.Mutex
	m map[string]*shared
}{m: map[string]*shared{}}

// shared is a connection with its watcher, for as long as somebody uses it.
type shared struct {
	users int
	ready chan struct{} // closed when the following are set
	conn  *x11.Conn
	watch *x11.Watcher
	err   error
}

// acquire returns the shared watcher for the session, connecting if there is none. release must be called.
func (r *Runner) acquire(ctx context.Context) (w *x11.Watcher, release func(broken bool), err error) {
	key := r.t.XSocket
	watchers.Lock()
	s := watchers.m[key]
	if s == nil {
		s = &shared{ready: make(chan struct{})}
		watchers.m[key] = s
		go func() {
			defer close(s.ready)
			s.conn, s.watch, s.err = r.connect(ctx)
		}()
	}
	s.users++
	watchers.Unlock()
	release = func(broken bool) {
		watchers.Lock()
		defer watchers.Unlock()
		s.users--
		if (broken || s.users == 0) && watchers.m[key] == s {
			delete(watchers.m, key)
		}
		if s.users == 0 {
			go func() {
				<-s.ready
				if s.conn != nil {
					s.watch.Close()
					s.conn.Close()
				}
			}()
		}
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		release(false)
		return nil, nil, fmt.Errorf("connecting to the X server (%w)", ctx.Err())
	}
	if s.err != nil {
		release(true)
		return nil, nil, s.err
	}
	return s.watch, release, nil
}

func (r *Runner) connect(ctx context.Context) (*x11.Conn, *x11.Watcher, error) {
	cookie, err := r.cookie()
	if err != nil {
		return nil, nil, err
	}
	dir, name := x11.Split(r.t.XSocket)
	c, err := x11.Dial(ctx, dir, name, cookie)
	if err != nil {
		return nil, nil, err
	}
	w, err := c.Watch()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, w, nil
}

// screen waits for a condition on the screen. When the X server goes away meanwhile, it waits for the next one.
func (r *Runner) screen(ctx context.Context, cond x11.Condition) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		w, release, err := r.acquire(ctx)
		if err == nil {
			err = w.Wait(ctx, cond)
			release(errors.Is(err, x11.ErrLost))
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil, errors.Is(err, x11.ErrRefused):
			return err
		case !errors.Is(err, x11.ErrLost) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
			return err
		}
		// Lost, or another waiter's context ended while it was connecting for all.
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
