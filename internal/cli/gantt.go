package cli

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"

	"berth/session/api"
)

// A Gantt chart of a session's start: a row per component in the order in which they began, behind a row for each of the
// session's own steps, which go on side by side.

// phases in the order of a component's life, with their looks. The last one stands for every step of the session's own.
var phases = []struct {
	name, char, colour, meaning string
}{
	{"create", "c", "#9fc5e8", "prepare the container"},
	{"wait", ".", "#d9d9d9", "wait for others"},
	{"start", "s", "#f6b26b", "start the program"},
	{"probe", "#", "#6aa84f", "until it is ready"},
	{"", "=", "#8e7cc3", "a step of the session's own"},
}

// phaseIndex finds the phase of a span, -1 for one that is not known.
func phaseIndex(s api.Span) int {
	if s.Component == "" {
		return len(phases) - 1
	}
	for i, p := range phases {
		if p.name == s.Phase {
			return i
		}
	}
	return -1
}

type ganttRow struct {
	name  string
	spans []api.Span // by start
	end   float64
	note  string // what it waited for
}

func ganttRows(t api.Trace) []ganttRow {
	var rows []ganttRow
	at := map[string]int{}
	spans := slices.Clone(t.Spans)
	slices.SortStableFunc(spans, func(a, b api.Span) int {
		switch {
		case (a.Component == "") != (b.Component == ""):
			if a.Component == "" {
				return -1
			}
			return 1
		case a.Start != b.Start:
			if a.Start < b.Start {
				return -1
			}
			return 1
		}
		return 0
	})
	for _, s := range spans {
		name := s.Component
		if name == "" {
			name = "(" + s.Phase + ")"
		}
		i, ok := at[name]
		if !ok {
			i = len(rows)
			at[name] = i
			rows = append(rows, ganttRow{name: name})
		}
		r := &rows[i]
		r.spans = append(r.spans, s)
		r.end = max(r.end, s.End)
	}
	for i := range rows {
		var notes []string
		for _, s := range rows[i].spans {
			switch {
			case s.WaitedFor == "":
			case s.Phase == "wait":
				notes = append(notes, "after "+s.WaitedFor)
			default:
				notes = append(notes, s.WaitedFor)
			}
		}
		rows[i].note = strings.Join(notes, ", ")
	}
	return rows
}

// ganttCut returns the trace without the time in which images were built or pulled, if that would make everything else
// too small to see, and how much that was in milliseconds.
func ganttCut(t api.Trace) (api.Trace, float64) {
	var cut float64
	for _, s := range t.Spans {
		if s.Component == "" && s.Phase == "image" {
			cut = max(cut, s.End)
		}
	}
	if cut < ganttLength(t)/2 {
		return t, 0
	}
	out := api.Trace{Session: t.Session, ReadyMS: max(t.ReadyMS-cut, 0)}
	for _, s := range t.Spans {
		if s.End > cut {
			s.Start, s.End = max(s.Start-cut, 0), s.End-cut
			out.Spans = append(out.Spans, s)
		}
	}
	return out, cut
}

// ganttTitle says what the chart's numbers mean.
func ganttTitle(ready, cut float64) string {
	if cut > 0 {
		return fmt.Sprintf("ready after %.0f ms, counted from when the images were there (%.1f s)", ready, cut/1000)
	}
	return fmt.Sprintf("ready after %.0f ms", ready)
}

// ganttLength is the length of the axis in milliseconds, at least 1.
func ganttLength(t api.Trace) float64 {
	length := max(t.ReadyMS, 1)
	for _, s := range t.Spans {
		length = max(length, s.End)
	}
	return length
}

// ganttStep is a round distance of ticks, so that at most n of them fit.
func ganttStep(length float64, n int) float64 {
	raw := length / float64(max(n, 1))
	pow := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5, 10} {
		if m*pow >= raw {
			return m * pow
		}
	}
	return 10 * pow
}

// ganttText draws the chart in at most width columns (at least 60).
func ganttText(t api.Trace, width int) string {
	t, cut := ganttCut(t)
	rows := ganttRows(t)
	label, note := len("component"), 0
	for _, r := range rows {
		label, note = max(label, len(r.name)), max(note, len(r.note))
	}
	width = max(width, 60)
	// The notes get what they need up to a third of the line.
	note = min(note, width/3)
	bars := max(width-label-2-2-8-2-note, 20)
	length := ganttLength(t)
	cell := length / float64(bars)

	var out strings.Builder
	line := func(s string) { out.WriteString(strings.TrimRight(s, " ") + "\n") }
	line(fmt.Sprintf("session %s: %s", t.Session, ganttTitle(t.ReadyMS, cut)))
	out.WriteByte('\n')

	step := ganttStep(length, bars/8)
	axis := []byte(strings.Repeat(" ", bars+8))
	grid := make([]bool, bars)
	for v := 0.0; v <= length; v += step {
		x := int(v / cell)
		copy(axis[min(x, bars):], fmt.Sprintf("%.0f", v))
		if x < bars {
			grid[x] = true
		}
	}
	line(fmt.Sprintf("%-*s  %s", label, "component", bytes.TrimRight(axis, " ")))
	for _, r := range rows {
		bar := make([]byte, bars)
		for x := range bar {
			bar[x] = ' '
			if grid[x] {
				bar[x] = ':'
			}
			// The phase that has most of the cell.
			from, to, most := float64(x)*cell, float64(x+1)*cell, 0.0
			for _, s := range r.spans {
				if share := min(s.End, to) - max(s.Start, from); share > most {
					if p := phaseIndex(s); p >= 0 {
						bar[x], most = phases[p].char[0], share
					}
				}
			}
		}
		text := r.note
		if len(text) > note {
			text = text[:max(note-3, 0)] + "..."
		}
		line(fmt.Sprintf("%-*s  %s  %5.0f ms  %s", label, r.name, bar, r.end, text))
	}
	out.WriteByte('\n')
	var legend []string
	for _, p := range phases {
		legend = append(legend, p.char+" "+p.meaning)
	}
	line(strings.Join(legend, "   "))
	return out.String()
}

// ganttSVG draws the chart as a picture.
func ganttSVG(t api.Trace) []byte {
	const (
		left, barW, noteW = 170, 720, 310
		top, rowH, barH   = 84, 26, 16
		width             = left + barW + noteW
	)
	t, cut := ganttCut(t)
	rows := ganttRows(t)
	length := ganttLength(t)
	x := func(ms float64) float64 { return left + ms/length*barW }
	bottom := top + rowH*len(rows)
	height := bottom + 40

	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="%s" font-size="12">`,
		width, height, width, height, "'DejaVu Sans', 'Liberation Sans', Arial, sans-serif")
	p(`<title>Start of session %s</title>`, html.EscapeString(t.Session))
	p(`<rect width="100%%" height="100%%" fill="#ffffff"/>`)
	p(`<text x="16" y="29" font-size="17" font-weight="bold" fill="#222222">%s</text>`, html.EscapeString(t.Session))
	p(`<text x="%d" y="28" fill="#666666">%s</text>`, left, ganttTitle(t.ReadyMS, cut))
	lx := left
	for _, ph := range phases {
		p(`<rect x="%d" y="38" width="12" height="12" rx="2" fill="%s"/>`, lx, ph.colour)
		p(`<text x="%d" y="48" fill="#444444">%s</text>`, lx+17, ph.meaning)
		lx += 17 + 7*len(ph.meaning) + 18
	}
	for i := range rows {
		if i%2 == 0 {
			p(`<rect x="0" y="%d" width="%d" height="%d" fill="#f7f7f9"/>`, top+i*rowH, width, rowH)
		}
	}
	step := ganttStep(length, 10)
	for v := 0.0; v <= length; v += step {
		p(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#dddddd"/>`, x(v), top-4, x(v), bottom)
		p(`<text x="%.1f" y="%d" fill="#888888" font-size="11" text-anchor="middle">%.0f</text>`, x(v), top-8, v)
	}
	for i, r := range rows {
		y := top + i*rowH
		p(`<text x="%d" y="%d" fill="#222222" text-anchor="end">%s</text>`, left-10, y+17, html.EscapeString(r.name))
		for _, s := range r.spans {
			ph := phaseIndex(s)
			if ph < 0 {
				continue
			}
			what := fmt.Sprintf("%s, %s: %.1f to %.1f ms (%.1f ms)", r.name, phases[ph].meaning, s.Start, s.End, s.End-s.Start)
			if s.WaitedFor != "" {
				what += ", " + s.WaitedFor
			}
			h, dy := barH, (rowH-barH)/2
			if s.Phase == "wait" { // thin: nothing is done
				h, dy = 4, (rowH-4)/2
			}
			p(`<rect x="%.1f" y="%d" width="%.1f" height="%d" rx="2" fill="%s"><title>%s</title></rect>`,
				x(s.Start), y+dy, max((s.End-s.Start)/length*barW, 1), h, phases[ph].colour, html.EscapeString(what))
		}
		text := fmt.Sprintf("%.0f ms", r.end)
		if r.note != "" {
			text += "  " + r.note
		}
		const room = 48 // characters that fit beside the bars
		if len(text) > room {
			text = text[:room-3] + "..."
		}
		p(`<text x="%d" y="%d" fill="#666666" font-size="11">%s</text>`, left+barW+10, y+17, html.EscapeString(text))
	}
	if t.ReadyMS > 0 {
		p(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#cc0000" stroke-dasharray="4 3"/>`, x(t.ReadyMS), top-4, x(t.ReadyMS), bottom+6)
		p(`<text x="%.1f" y="%d" fill="#cc0000" font-size="11" text-anchor="end">ready</text>`, x(t.ReadyMS), bottom+20)
	}
	p(`<text x="%d" y="%d" fill="#888888" font-size="11">milliseconds since the request</text>`, left, bottom+20)
	p(`</svg>`)
	return b.Bytes()
}
