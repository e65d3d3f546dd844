package profiles

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"berth/orchestrator"
)

// Error is one mistake in a profile, or in a --set option (File is then "--set").
type Error struct {
	File       string `json:"file"`
	Line       int    `json:"line"`                 // 1-based; 0 means the file as a whole
	Column     int    `json:"column"`               // 1-based, in characters
	Message    string `json:"message"`              // without place and suggestion
	Key        string `json:"key,omitempty"`        // dotted path of the key, where there is one
	Text       string `json:"text,omitempty"`       // the offending text
	Suggestion string `json:"suggestion,omitempty"` // the nearest valid word
	Source     string `json:"source,omitempty"`     // the line of the file, or the part of it around Column

	caret int // column of the caret below Source
	width int // of the underline, in characters
}

// Error is `FILE:LINE:COLUMN: message`, on one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	fmt.Fprintf(&b, ": %s", e.Message)
	if e.Suggestion != "" {
		fmt.Fprintf(&b, "; did you mean %q?", e.Suggestion)
	}
	return b.String()
}

// Is makes every Error an orchestrator.ErrInvalid.
func (e *Error) Is(target error) bool { return target == orchestrator.ErrInvalid }

// Detail is Error with the source line and a caret below it, as compilers print it, without a final newline.
func (e *Error) Detail() string {
	if e.Source == "" {
		return e.Error()
	}
	pad := strings.Repeat(" ", max(e.caret-1, 0))
	return fmt.Sprintf("%s\n    %s\n    %s%s", e.Error(), e.Source, pad, strings.Repeat("^", max(e.width, 1)))
}

// maxErrors bounds how many mistakes are looked for; a file with more has another problem, and finding the place of
// one takes time that grows with the file.
const maxErrors = 200

// Errors is every mistake that was found, sorted by place. It is never empty when it is an error.
type Errors []*Error

// Error prints all of them with their source lines.
func (e Errors) Error() string {
	parts := make([]string, len(e))
	for i, x := range e {
		parts[i] = x.Detail()
	}
	return strings.Join(parts, "\n")
}

// Unwrap makes errors.Is and errors.As look at each.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, x := range e {
		out[i] = x
	}
	return out
}

func (e Errors) full() bool { return len(e) > maxErrors }

// err is the list as an error, sorted; nil if it is empty. Files keep the order in which they were read.
func (e Errors) err() error {
	if len(e) == 0 {
		return nil
	}
	order := map[string]int{}
	for _, x := range e {
		if _, ok := order[x.File]; !ok {
			order[x.File] = len(order)
		}
	}
	sort.SliceStable(e, func(i, j int) bool {
		a, b := e[i], e[j]
		if a.File != b.File {
			return order[a.File] < order[b.File]
		}
		if a.File == setFile { // every option is a line 1 of its own
			return false
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Column < b.Column
	})
	if e.full() {
		e = append(e[:maxErrors:maxErrors], &Error{File: e[maxErrors].File, Message: fmt.Sprintf("too many errors; these are the first %d", maxErrors)})
	}
	return e
}

// source is a text that errors point into.
type source struct {
	name string
	text []byte
}

// errorAt makes an Error for the bytes [off, end) of s.
func (s *source) errorAt(off, end int, format string, args ...any) *Error {
	off = min(max(off, 0), len(s.text))
	end = min(max(end, off), len(s.text))
	for off > 0 && off < len(s.text) && !utf8.RuneStart(s.text[off]) {
		off-- // a parser that reads bytes may stop inside a character
	}
	for end < len(s.text) && !utf8.RuneStart(s.text[end]) {
		end++
	}
	start := lineStart(s.text, off)
	stop := off
	for stop < len(s.text) && s.text[stop] != '\n' {
		stop++
	}
	e := &Error{
		File:    s.name,
		Line:    1,
		Column:  utf8.RuneCount(s.text[start:off]) + 1,
		Message: fmt.Sprintf(format, args...),
		Text:    clip(string(s.text[off:min(end, stop)]), 80),
	}
	for _, c := range s.text[:start] {
		if c == '\n' {
			e.Line++
		}
	}
	e.Source, e.caret, e.width = excerpt(s.text[start:stop], off-start, min(end, stop)-start)
	return e
}

func lineStart(text []byte, off int) int {
	for off > 0 && text[off-1] != '\n' {
		off--
	}
	return off
}

// excerpt makes a line printable: control characters, which could drive a terminal, become '.', tabs a space, and of a
// long line only the surroundings of [off, end) remain. It returns the text, the caret's column and the underline's width.
func excerpt(line []byte, off, end int) (text string, caret, width int) {
	const before, after = 60, 60
	line = bytes.TrimSuffix(line, []byte("\r"))
	off, end = min(off, len(line)), min(end, len(line))
	// Lines of a whole file's length are not converted as a whole. A character has at most four bytes.
	near := func(b []byte, n int) []rune { return []rune(string(b[:min(len(b), 4*n+4)])) }
	head, mid, tail := []rune(string(line[max(0, off-4*before-4):off])), near(line[off:end], after), near(line[end:], after)
	var b strings.Builder
	if len(head) > before {
		head = head[len(head)-before:]
		b.WriteString("...")
	}
	put := func(rs []rune) {
		for _, r := range rs {
			switch {
			case r == '\t':
				b.WriteByte(' ')
			case !unicode.IsPrint(r):
				b.WriteByte('.')
			default:
				b.WriteRune(r)
			}
		}
	}
	put(head)
	caret = utf8.RuneCountInString(b.String()) + 1
	cut := false
	if len(mid) > after {
		mid, cut = mid[:after], true
	} else if len(tail) > after {
		tail, cut = tail[:after], true
	}
	put(mid)
	width = len(mid)
	if !(cut && len(mid) == after) {
		put(tail)
	}
	if cut {
		b.WriteString("...")
	}
	return b.String(), caret, width
}

// clip shortens s to at most n characters and makes it printable.
func clip(s string, n int) string {
	if len(s) > 4*n+4 {
		s = s[:4*n+4] // more than n characters, whatever they are; a cut one at the end is cut off below
	}
	rs := []rune(strings.TrimRight(s, "\r"))
	cut := len(rs) > n
	if cut {
		rs = rs[:n]
	}
	for i, r := range rs {
		if !unicode.IsPrint(r) && r != '\t' {
			rs[i] = '.'
		}
	}
	if cut {
		return string(rs) + "..."
	}
	return string(rs)
}

// quote is %q of at most 60 characters of s.
func quote(s string) string { return fmt.Sprintf("%q", clip(s, 60)) }
