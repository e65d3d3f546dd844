package fake

import (
	"bytes"
	"context"
	"io"
	"sync"
)

// logBuffer holds a container's output for any number of readers.
type logBuffer struct {
	mu     sync.Mutex
	data   []byte
	closed bool          // the container is removed
	more   chan struct{} // closed and replaced at every change
}

func newLogBuffer() *logBuffer { return &logBuffer{more: make(chan struct{})} }

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, b...)
	l.changed()
	return len(b), nil
}

func (l *logBuffer) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed()
}

func (l *logBuffer) changed() {
	close(l.more)
	l.more = make(chan struct{})
}

func (l *logBuffer) reader(ctx context.Context, tail int, follow bool) io.ReadCloser {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	return &logReader{l: l, ctx: ctx, cancel: cancel, off: tailOffset(l.data, tail), end: len(l.data), follow: follow}
}

// tailOffset is where the last n lines begin; 0 if n is negative.
func tailOffset(data []byte, n int) int {
	if n < 0 {
		return 0
	}
	off := len(data)
	for range n {
		if off == 0 {
			return 0
		}
		off = bytes.LastIndexByte(data[:off-1], '\n') + 1
	}
	return off
}

type logReader struct {
	l      *logBuffer
	ctx    context.Context
	cancel context.CancelFunc
	off    int
	end    int // without follow: what there was when the reader was made
	follow bool
}

func (r *logReader) Read(b []byte) (int, error) {
	for {
		r.l.mu.Lock()
		data, closed, more := r.l.data, r.l.closed, r.l.more
		r.l.mu.Unlock()
		if !r.follow {
			data, closed = data[:r.end], true
		}
		switch {
		case len(b) == 0:
			return 0, nil
		case r.off < len(data):
			n := copy(b, data[r.off:])
			r.off += n
			return n, nil
		case closed || r.ctx.Err() != nil:
			return 0, io.EOF
		}
		select {
		case <-more:
		case <-r.ctx.Done():
		}
	}
}

func (r *logReader) Close() error {
	r.cancel()
	return nil
}
