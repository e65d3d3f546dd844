package session

import (
	"context"
	"sync"

	"berth/session/api"
)

// hub hands events to any number of subscribers. A subscriber that does not read loses the oldest ones rather than
// hold up the sessions.
type hub struct {
	mu   sync.Mutex
	subs map[chan api.Event]func(api.Event) bool
}

const hubBuffer = 256

// subscribe delivers the events for which want holds until ctx ends, then closes the channel.
func (h *hub) subscribe(ctx context.Context, want func(api.Event) bool) <-chan api.Event {
	ch := make(chan api.Event, hubBuffer)
	h.mu.Lock()
	if h.subs == nil {
		h.subs = map[chan api.Event]func(api.Event) bool{}
	}
	h.subs[ch] = want
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs, ch)
		close(ch)
	})
	return ch
}

func (h *hub) publish(e api.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch, want := range h.subs {
		if !want(e) {
			continue
		}
		for {
			select {
			case ch <- e:
			default:
				select {
				case <-ch:
				default:
				}
				continue
			}
			break
		}
	}
}
