package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"

	"berth/orchestrator"
	"berth/session/api"
)

// progress shows on Stderr how something goes that may take long: on a terminal as one line that is redrawn, from the
// first second on; elsewhere as plain lines. BuildKit's own display takes over while images are built.
// It is safe for concurrent use until close.
type progress struct {
	c     *CLI
	tty   bool
	begun time.Time
	stop  chan struct{}
	ended chan struct{}

	mu     sync.Mutex
	state  meter
	drawn  bool                       // the line stands on the terminal
	builds chan *bkclient.SolveStatus // open while BuildKit's display is
	built  chan error                 // its end
	said   map[string]string          // on plain output: the last status of each part
}

// quiet is how long something runs before a terminal shows it.
const quiet = time.Second

// redraw is how often a terminal's line is drawn anew.
const redraw = 100 * time.Millisecond

func (c *CLI) startProgress(title string) *progress {
	p := &progress{c: c, begun: time.Now(), stop: make(chan struct{}), ended: make(chan struct{}), said: map[string]string{},
		state: meter{title: title, components: map[string]string{}, parts: map[string]orchestrator.Progress{}}}
	if _, p.tty = terminal(c.Stderr); !p.tty {
		close(p.ended)
		return p
	}
	go p.animate()
	return p
}

func (p *progress) animate() {
	defer close(p.ended)
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if since := time.Since(p.begun); since >= quiet {
				p.mu.Lock()
				if p.builds == nil {
					fmt.Fprintf(p.c.Stderr, "\r%s\x1b[K", p.state.line(p.c.width(p.c.Stderr, 80)-1, since))
					p.drawn = true
				}
				p.mu.Unlock()
			}
		case <-p.stop:
			return
		}
	}
}

// close ends the display and leaves nothing of the line.
func (p *progress) close() {
	close(p.stop)
	<-p.ended
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endBuild()
	p.wipe()
}

func (p *progress) wipe() {
	if p.drawn {
		fmt.Fprint(p.c.Stderr, "\r\x1b[K")
		p.drawn = false
	}
}

// message says what happens now.
func (p *progress) message(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endBuild()
	p.state.message = text
	if !p.tty {
		p.c.note("%s", text)
	}
}

// up shows an event of an up.
func (p *progress) up(e api.UpEvent) {
	if e.Build != nil {
		p.build(*e.Build)
	}
	if e.Message != "" && e.Component == "" {
		p.message(e.Message)
	}
	if e.Component == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.components[e.Component] = e.State
	line := e.Component + ": " + e.State
	if e.Message != "" {
		line += ": " + e.Message
	}
	switch e.State {
	case "ready", "exited", "stopped":
		if !p.tty {
			p.c.note("%s", line)
		}
	case "failed", "backoff": // worth keeping on a terminal, too
		p.endBuild()
		p.wipe()
		p.c.note("%s", line)
	}
}

// image shows an event of a change of images.
func (p *progress) image(e api.ImageEvent) {
	if e.Build != nil {
		p.build(*e.Build)
	}
	if e.Progress == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endBuild()
	part := *e.Progress
	p.state.parts[part.ID] = part
	if !p.tty && p.said[part.ID] != part.Status {
		p.said[part.ID] = part.Status
		p.c.note("%s", strings.TrimRight(fmt.Sprintf("%-12s %s", part.Status, shorten(part.ID)), " "))
	}
}

// counted passes r on and shows how much of total bytes (0 if unknown) was read.
func (p *progress) counted(r io.Reader, total int64) io.Reader {
	return readerFunc(func(buf []byte) (int, error) {
		n, err := r.Read(buf)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.state.sent += int64(n)
		p.state.total = total
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// shorten cuts a digest to what people compare.
func shorten(id string) string {
	if algo, hex, ok := strings.Cut(id, ":"); ok && len(hex) == 64 {
		return algo + ":" + hex[:12]
	}
	return id
}

// build shows a step of an image's build through BuildKit's display, with the image's name before each step's.
func (p *progress) build(b api.Build) {
	var status bkclient.SolveStatus
	if err := json.Unmarshal(b.Status, &status); err != nil {
		p.message(fmt.Sprintf("image %s: status of its build: %v", b.Image, err))
		return
	}
	for _, v := range status.Vertexes {
		v.Name = b.Image + " " + v.Name
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.builds == nil {
		p.wipe()
		mode := progressui.PlainMode
		if p.tty && p.c.getenv("TERM") != "dumb" {
			mode = progressui.TtyMode
		}
		display, err := progressui.NewDisplay(p.c.Stderr, mode)
		if err != nil {
			p.c.note("image %s: display of its build: %v", b.Image, err)
			return
		}
		p.builds, p.built = make(chan *bkclient.SolveStatus), make(chan error, 1)
		go func(ch chan *bkclient.SolveStatus, done chan error) {
			_, err := display.UpdateFrom(context.Background(), ch)
			done <- err
		}(p.builds, p.built)
	}
	p.builds <- &status
}

// endBuild waits until BuildKit's display has printed everything. p.mu is held.
func (p *progress) endBuild() {
	if p.builds == nil {
		return
	}
	close(p.builds)
	if err := <-p.built; err != nil {
		p.c.note("display of a build: %v", err)
	}
	p.builds = nil
}

// meter is what a progress line says.
type meter struct {
	title      string
	message    string
	components map[string]string // name -> state
	parts      map[string]orchestrator.Progress
	sent       int64 // bytes of an archive
	total      int64
}

// line draws the meter into at most width columns.
func (m meter) line(width int, since time.Duration) string {
	out := m.title
	switch {
	case m.sent > 0 && m.sent < m.total:
		out += fmt.Sprintf(" %s %s of %s", bar(float64(m.sent)/float64(m.total)), size(m.sent), size(m.total))
	case m.sent > 0 && m.total == 0:
		out += " " + size(m.sent)
	case len(m.parts) > 0:
		var done, total int64
		ended := 0
		for part := range maps.Values(m.parts) {
			if part.Status == "done" || part.Status == "exists" {
				ended++
				part.Done = max(part.Done, part.Total)
			}
			done, total = done+part.Done, total+part.Total
		}
		if total > 0 {
			out += fmt.Sprintf(" %s %s of %s,", bar(float64(done)/float64(total)), size(done), size(total))
		}
		out += fmt.Sprintf(" %d of %d parts", ended, len(m.parts))
	case len(m.components) > 0:
		ready := 0
		var waiting []string
		for _, name := range slices.Sorted(maps.Keys(m.components)) {
			switch m.components[name] {
			case "ready", "exited":
				ready++
			case "starting", "backoff":
				waiting = append(waiting, name)
			}
		}
		out += fmt.Sprintf(" %s %d of %d", bar(float64(ready)/float64(len(m.components))), ready, len(m.components))
		if len(waiting) > 0 {
			out += ", waiting for " + strings.Join(waiting, ", ")
		}
	case m.message != "":
		out += ": " + m.message
	}
	clock := fmt.Sprintf(" %ds", int(since.Seconds()))
	if room := width - len(clock); len(out) > room {
		out = out[:max(room, 0)]
	}
	return out + clock
}

// bar draws a share of 0 to 1.
func bar(share float64) string {
	const cells = 20
	n := min(max(int(share*cells), 0), cells)
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", cells-n) + "]"
}
