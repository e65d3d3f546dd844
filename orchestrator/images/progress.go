package images

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"berth/session/api"

	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// reporter hands progress to its consumer from one goroutine at a time. A nil reporter reports to nobody.
type reporter struct {
	mu sync.Mutex
	fn func(api.Build)
}

func newReporter(fn func(api.Build)) *reporter {
	if fn == nil {
		return nil
	}
	return &reporter{fn: fn}
}

// send reports one state of an image's build.
func (r *reporter) send(image string, st *bkclient.SolveStatus) {
	if r == nil {
		return
	}
	data, err := json.Marshal(st)
	if err != nil {
		return // plain data that came as protobuf; nothing in it can fail to marshal
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fn(api.Build{Image: image, Status: data})
}

// vertex is a step of ours that looks like one of BuildKit's, so that one display shows both.
type vertex struct {
	rep   *reporter
	image string
	v     bkclient.Vertex
}

// vertex starts a step.
func (r *reporter) vertex(image, name string) *vertex {
	now := time.Now()
	v := &vertex{r, image, bkclient.Vertex{Digest: digest.FromString(image + name + now.String()), Name: name, Started: &now}}
	v.send()
	return v
}

func (v *vertex) send() {
	c := v.v
	v.rep.send(v.image, &bkclient.SolveStatus{Vertexes: []*bkclient.Vertex{&c}})
}

// Write logs output of the step.
func (v *vertex) Write(p []byte) (int, error) {
	v.rep.send(v.image, &bkclient.SolveStatus{Logs: []*bkclient.VertexLog{{
		Vertex: v.v.Digest, Stream: 2, Data: bytes.Clone(p), Timestamp: time.Now(),
	}}})
	return len(p), nil
}

// done ends the step.
func (v *vertex) done(err error) {
	now := time.Now()
	v.v.Completed = &now
	if err != nil {
		v.v.Error = err.Error()
	}
	v.send()
}

// solveLog watches a solve and remembers enough to explain its failure.
type solveLog struct {
	names map[digest.Digest]string
	errs  map[digest.Digest]string
	tails map[digest.Digest]*lastLines
}

func newSolveLog() *solveLog {
	return &solveLog{map[digest.Digest]string{}, map[digest.Digest]string{}, map[digest.Digest]*lastLines{}}
}

func (l *solveLog) add(st *bkclient.SolveStatus) {
	for _, v := range st.Vertexes {
		l.names[v.Digest] = v.Name
		if v.Error != "" {
			l.errs[v.Digest] = v.Error
		}
	}
	for _, g := range st.Logs {
		t := l.tails[g.Vertex]
		if t == nil {
			t = &lastLines{}
			l.tails[g.Vertex] = t
		}
		t.add(g.Data)
	}
}

// failed returns the step that failed, its last output and its error; "" if none is known. BuildKit reports steps that
// were cancelled because another failed as errors too; they are not meant.
func (l *solveLog) failed() (step, output, cause string) {
	for d, e := range l.errs {
		if strings.Contains(e, "context canceled") {
			continue
		}
		step, cause = l.names[d], e
		if t := l.tails[d]; t != nil {
			output = t.String()
		}
		return step, output, cause
	}
	return "", "", ""
}

// lastLines remembers the last lines of a stream.
type lastLines struct {
	lines []string
	part  []byte
}

const (
	keptLines   = 20
	keptLineLen = 500
)

func (t *lastLines) add(p []byte) {
	t.part = append(t.part, p...)
	for {
		i := bytes.IndexByte(t.part, '\n')
		if i < 0 {
			break
		}
		t.push(t.part[:i])
		t.part = t.part[i+1:]
	}
	if len(t.part) > keptLineLen {
		t.part = append([]byte(nil), t.part[:keptLineLen]...)
	}
}

func (t *lastLines) push(line []byte) {
	// A progress bar redraws its line; only the last drawing counts.
	line = bytes.TrimRight(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	line = line[:min(len(line), keptLineLen)]
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	t.lines = append(t.lines, string(line))
	if len(t.lines) > keptLines {
		t.lines = t.lines[len(t.lines)-keptLines:]
	}
}

func (t *lastLines) String() string {
	lines := t.lines
	if s := strings.TrimSpace(string(t.part)); s != "" {
		lines = append(lines[:len(lines):len(lines)], s)
	}
	return strings.Join(lines, "\n")
}

// keyLock is a set of locks by name. The zero value is ready.
type keyLock struct {
	mu sync.Mutex
	m  map[string]chan struct{}
}

// lock waits for the lock called key or the end of ctx.
func (k *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]chan struct{}{}
	}
	c, ok := k.m[key]
	if !ok {
		c = make(chan struct{}, 1)
		k.m[key] = c
	}
	k.mu.Unlock()
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
