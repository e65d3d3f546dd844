package session

import (
	"sync"
	"time"

	"berth/session/api"
)

// tracer records what happened when during a session's start. It is safe for concurrent use.
type tracer struct {
	mu    sync.Mutex
	zero  time.Time
	spans []api.Span
	ready time.Duration
}

func newTracer(zero time.Time) *tracer { return &tracer{zero: zero} }

// begin starts a span; the returned function ends it. waitedFor may be "".
func (t *tracer) begin(component, phase string) func(waitedFor string) {
	start := time.Since(t.zero)
	return func(waitedFor string) {
		end := time.Since(t.zero)
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.ready != 0 {
			return // restarts are not part of the start
		}
		t.spans = append(t.spans, api.Span{Component: component, Phase: phase, Start: ms(start), End: ms(end), WaitedFor: waitedFor})
	}
}

// done closes the trace: the session is ready. It returns the time that took.
func (t *tracer) done() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ready == 0 {
		t.ready = time.Since(t.zero)
	}
	return t.ready
}

func (t *tracer) document(name string) api.Trace {
	t.mu.Lock()
	defer t.mu.Unlock()
	return api.Trace{Session: name, Spans: append([]api.Span{}, t.spans...), ReadyMS: ms(t.ready)}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
