package x11

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/xproto"
)

// Condition is something on the screen that a Watcher waits for.
type Condition struct {
	name  string
	holds func(screenState) bool
	saw   func(screenState) string
}

// String says what the condition waits for: "a mapped window of type DOCK".
func (c Condition) String() string { return c.name }

// WM holds when a window manager runs: the root's _NET_SUPPORTING_WM_CHECK names a window that names itself (EWMH).
var WM = Condition{
	name:  "a window manager (_NET_SUPPORTING_WM_CHECK)",
	holds: func(s screenState) bool { return s.hasWM },
	saw:   func(s screenState) string { return "no window manager; " + summary(s) },
}

// Dock holds when a window of type DOCK, a panel, is on the screen.
var Dock = ofType("DOCK")

// Desktop holds when a window of type DESKTOP, the one with wallpaper and icons, is on the screen.
var Desktop = ofType("DESKTOP")

func ofType(typ string) Condition {
	return Condition{
		name: "a mapped window of type " + typ,
		holds: func(s screenState) bool {
			return slices.ContainsFunc(s.windows, func(w Window) bool { return w.Mapped && w.Is(typ) })
		},
		saw: func(s screenState) string {
			for _, w := range s.windows {
				if w.Is(typ) {
					return fmt.Sprintf("window 0x%x of type %s, not mapped; %s", w.ID, typ, summary(s))
				}
			}
			return summary(s) + ", none of type " + typ
		},
	}
}

// summary counts the mapped windows: "3 windows mapped (1 DIALOG, 2 without type)".
func summary(s screenState) string {
	count, total := map[string]int{}, 0
	for _, w := range s.windows {
		if !w.Mapped {
			continue
		}
		total++
		if len(w.Types) == 0 {
			count["without type"]++
		} else {
			count[w.Types[0]]++
		}
	}
	if total == 0 {
		return "no window mapped"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d %s", count[k], k))
	}
	noun := "windows"
	if total == 1 {
		noun = "window"
	}
	return fmt.Sprintf("%d %s mapped (%s)", total, noun, strings.Join(parts, ", "))
}

// Watcher answers when conditions on the screen come true. It subscribes once to the events that can change an
// answer and looks again, once for all waiters, after a burst of them.
type Watcher struct {
	c     *Conn
	dirty chan struct{} // one pending note that something changed
	stop  context.CancelFunc

	mu      sync.Mutex
	seen    bool // state is valid
	state   screenState
	err     error // the watcher has ended
	waiters map[chan struct{}]struct{}
}

// Watch starts watching. A connection has one watcher at a time. Close it when nothing more is waited for: while it
// runs, it costs a little for every window that appears or changes.
func (c *Conn) Watch() (*Watcher, error) {
	ctx, stop := context.WithCancel(context.Background())
	w := &Watcher{c: c, dirty: make(chan struct{}, 1), stop: stop, waiters: map[chan struct{}]struct{}{}}
	c.mu.Lock()
	if c.watcher != nil {
		c.mu.Unlock()
		stop()
		return nil, errors.New("x11: the connection has a watcher already")
	}
	c.watcher = w
	c.mu.Unlock()
	go w.run(ctx)
	return w, nil
}

// Close ends the watcher and the events. Waiters return.
func (w *Watcher) Close() { w.stop() }

// event notes that an event may have changed an answer.
func (w *Watcher) event(ev xgb.Event) {
	switch e := ev.(type) {
	case xproto.PropertyNotifyEvent:
		a := e.Atom
		if a != w.c.atom(atomCheck) && a != w.c.atom(atomType) && a != w.c.atom(atomClientList) && a != xproto.AtomWmClass {
			return
		}
	case xproto.CreateNotifyEvent, xproto.DestroyNotifyEvent, xproto.MapNotifyEvent, xproto.UnmapNotifyEvent,
		xproto.ReparentNotifyEvent:
	default:
		return
	}
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// run scans at the start and after events until the watcher is closed or the connection lost.
func (w *Watcher) run(ctx context.Context) {
	watched := map[xproto.Window]bool{}
	_, err := call(ctx, w.c, func(x *xgb.Conn) (struct{}, error) {
		return struct{}{}, xproto.ChangeWindowAttributesChecked(x, w.c.screen.Root, xproto.CwEventMask,
			[]uint32{xproto.EventMaskSubstructureNotify | xproto.EventMaskPropertyChange}).Check()
	})
	for err == nil {
		var s screenState
		s, err = call(ctx, w.c, func(x *xgb.Conn) (screenState, error) { return w.c.scan(x, watched, false) })
		if err != nil {
			break
		}
		w.mu.Lock()
		w.state, w.seen = s, true
		w.wake()
		w.mu.Unlock()
		select {
		case <-w.dirty:
		case <-w.c.Done():
			err = ErrLost
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if ctx.Err() != nil {
		err = errors.New("x11: watcher is closed")
	}
	w.mu.Lock()
	w.err = err
	w.wake()
	w.mu.Unlock()
	w.c.mu.Lock()
	w.c.watcher = nil
	w.c.mu.Unlock()
	// Unsubscribe. It does not matter if the connection is lost.
	_, _ = call(context.Background(), w.c, func(x *xgb.Conn) (struct{}, error) {
		for win := range watched {
			xproto.ChangeWindowAttributes(x, win, xproto.CwEventMask, []uint32{0})
		}
		xproto.ChangeWindowAttributes(x, w.c.screen.Root, xproto.CwEventMask, []uint32{0})
		return struct{}{}, nil
	})
}

// wake lets every waiter look. The caller holds mu.
func (w *Watcher) wake() {
	for ch := range w.waiters {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Wait returns nil as soon as the condition holds. When ctx ends first, or the server goes away, the error says what
// was waited for and what was seen last.
func (w *Watcher) Wait(ctx context.Context, cond Condition) error {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	w.waiters[ch] = struct{}{}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.waiters, ch)
		w.mu.Unlock()
	}()
	for {
		w.mu.Lock()
		s, seen, err := w.state, w.seen, w.err
		w.mu.Unlock()
		saw := "nothing seen yet"
		if seen {
			saw = cond.saw(s)
		}
		switch {
		case err != nil:
			return fmt.Errorf("waited for %s: %s: %w", cond.name, saw, err)
		case seen && cond.holds(s):
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("waited for %s; %s (%w)", cond.name, saw, ctx.Err())
		}
	}
}

// Mapped holds when a window of the given class (WM_CLASS) is on the screen.
func Mapped(class string) Condition {
	return Condition{
		name: "a mapped window of class " + class,
		holds: func(s screenState) bool {
			return slices.ContainsFunc(s.windows, func(w Window) bool { return w.Mapped && w.Class == class })
		},
		saw: func(s screenState) string { return summary(s) + ", none of class " + class },
	}
}
