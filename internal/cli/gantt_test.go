package cli

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"berth/session/api"
	"berth/session/api/apitest"
)

func TestGanttOfOddTraces(t *testing.T) {
	built := apitest.Trace("work")
	for i := range built.Spans {
		if built.Spans[i].Phase != "image" {
			built.Spans[i].Start += 180e3
			built.Spans[i].End += 180e3
		}
	}
	built.Spans[2].End, built.ReadyMS = 180e3, built.ReadyMS+180e3
	for name, tt := range map[string]struct {
		trace api.Trace
		width int
		want  string
	}{
		"empty":         {api.Trace{Session: "x"}, 0, "session x: ready after 0 ms"},
		"unknown_phase": {api.Trace{Session: "x", ReadyMS: 5, Spans: []api.Span{{Component: "a", Phase: "dream", Start: 1, End: 2}}}, 80, "a "},
		"backwards":     {api.Trace{Session: "x", ReadyMS: 5, Spans: []api.Span{{Component: "a", Phase: "start", Start: 4, End: 2}}}, 80, "a "},
		"tiny":          {api.Trace{Session: "x", ReadyMS: 0.4, Spans: []api.Span{{Component: "a", Phase: "start", Start: 0, End: 0.4}}}, 80, "ssssss"},
		"markup":        {api.Trace{Session: "x", Spans: []api.Span{{Component: "<b>&", Phase: "start", End: 3, WaitedFor: `"'<`}}}, 80, "<b>&"},
		"long_notes":    {api.Trace{Session: "x", ReadyMS: 9, Spans: []api.Span{{Component: "a", Phase: "probe", End: 9, WaitedFor: strings.Repeat("n", 300)}}}, 80, "..."},
		"images_first":  {built, 100, "ready after 1398 ms, counted from when the images were there (180.0 s)"},
		"only_image":    {api.Trace{Session: "x", Spans: []api.Span{{Phase: "image", End: 1e5}}}, 80, "(100.0 s)"},
	} {
		t.Run(name, func(t *testing.T) {
			text := ganttText(tt.trace, tt.width)
			if !strings.Contains(text, tt.want) {
				t.Errorf("text has no %q:\n%s", tt.want, text)
			}
			for line := range strings.Lines(text) {
				if len(line) > max(tt.width, 60)+1 && !strings.HasPrefix(line, "c prepare") && !strings.HasPrefix(line, "session") {
					t.Errorf("line of %d columns: %s", len(line), line)
				}
			}
			dec := xml.NewDecoder(strings.NewReader(string(ganttSVG(tt.trace))))
			for {
				if _, err := dec.Token(); err == io.EOF {
					break
				} else if err != nil {
					t.Fatalf("picture: %v", err)
				}
			}
		})
	}
}
