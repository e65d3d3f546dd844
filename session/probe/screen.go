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

// acquire returns the shared connection for the session, connecting if there is none. release must be called.
func (r *Runner) acquire(ctx context.Context) (_ *shared, release func(broken bool), _ error) {
	key := r.t.XSocket
	watchers.Lock()
	s := watchers.m[key] // no named result: the goroutines below go on with it after this has returned nil
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
	return s, release, nil
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

// condition waits for a condition on the screen.
func (r *Runner) condition(ctx context.Context, cond x11.Condition) error {
	return r.screen(ctx, func(s *shared) error { return s.watch.Wait(ctx, cond) })
}

// painted waits until there is more to be seen on the screen than a background.
func (r *Runner) painted(ctx context.Context) error {
	return r.screen(ctx, func(s *shared) error { return s.conn.Drawn(ctx) })
}

// screen waits for something on the screen. When the X server goes away meanwhile, it waits for the next one.
func (r *Runner) screen(ctx context.Context, wait func(*shared) error) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		s, release, err := r.acquire(ctx)
		if err == nil {
			err = wait(s)
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
