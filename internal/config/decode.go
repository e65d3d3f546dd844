package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"berth/orchestrator"
)

// Error is one mistake in a file.
type Error struct {
	File    string `json:"file"`
	Line    int    `json:"line"`   // 1-based; 0 means the file as a whole
	Column  int    `json:"column"` // 1-based, in characters
	Message string `json:"message"`
}

// Error is `FILE:LINE:COLUMN: message`.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Is makes every Error an orchestrator.ErrInvalid.
func (e *Error) Is(target error) bool { return target == orchestrator.ErrInvalid }

// Errors is every mistake of a file, in the order of the file; one line each.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.Is and errors.As look at each.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, x := range e {
		out[i] = x
	}
	return out
}

// maxErrors bounds how many are kept; a file with more is not a configuration.
const maxErrors = 100

// place is an offset into the text; absent for a key that is not there.
type place struct {
	off   int
	known bool
}

// decoder walks the syntax tree of a file. go-toml's own decoder stops at the first wrong type, so that all errors can be
// reported at once the tree is walked here; go-toml still judges what TOML itself forbids.
type decoder struct {
	file string
	text []byte
	p    unstable.Parser
	errs Errors
	at   map[string]place // dotted path of a known key -> where its value is
	bad  map[string]bool  // known keys with an error
}

func newDecoder(file string, text []byte) *decoder {
	return &decoder{file: file, text: text, at: map[string]place{}, bad: map[string]bool{}}
}

func (d *decoder) fail(p place, format string, args ...any) {
	if len(d.errs) >= maxErrors {
		return
	}
	e := &Error{File: d.file, Message: fmt.Sprintf(format, args...)}
	if p.known {
		before := d.text[:p.off]
		bol := 1 + strings.LastIndexByte(string(before), '\n')
		e.Line = 1 + strings.Count(string(before), "\n")
		e.Column = 1 + utf8.RuneCount(before[bol:])
	}
	d.errs = append(d.errs, e)
}

func (d *decoder) decode(c *Config) {
	// Syntax, and keys or tables given twice.
	var all map[string]any
	if err := toml.Unmarshal(d.text, &all); err != nil {
		msg := strings.TrimPrefix(err.Error(), "toml: ")
		if derr := (*toml.DecodeError)(nil); errors.As(err, &derr) {
			row, col := derr.Position()
			d.errs = append(d.errs, &Error{d.file, max(row, 1), max(col, 1), msg})
		} else {
			d.fail(place{}, "%s", msg)
		}
	}
	d.p.Reset(d.text)
	var prefix []string
	skip := false // in a table that is reported already
	for d.p.NextExpression() && len(d.errs) < maxErrors {
		switch n := d.p.Expression(); n.Kind {
		case unstable.Table, unstable.ArrayTable:
			var at place
			prefix, at = d.key(n.Key())
			name := strings.Join(prefix, ".")
			skip = true
			switch {
			case len(prefix) != 1 || !slices.Contains(tables(), name):
				d.fail(at, "[%s]: no such table; there are %s", name, strings.Join(tables(), ", "))
			case n.Kind == unstable.ArrayTable:
				d.fail(at, "[[%s]]: write [%s]; there is only one", name, name)
			default:
				skip = false
			}
		case unstable.KeyValue:
			if !skip {
				d.keyValue(c, prefix, n)
			}
		}
	}
}

// keyValue takes one `key = value` below prefix, which may be empty.
func (d *decoder) keyValue(c *Config, prefix []string, n *unstable.Node) {
	parts, at := d.key(n.Key())
	path := slices.Concat(prefix, parts)
	name := strings.Join(path, ".")
	v := n.Value()
	if v.Kind == unstable.InlineTable && len(path) == 1 && slices.Contains(tables(), name) {
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				d.keyValue(c, path, it.Node())
			}
		}
		return
	}
	i := slices.IndexFunc(fields, func(f field) bool { return f.table+"."+f.key == name })
	if i < 0 || len(path) != 2 {
		switch {
		case slices.Contains(tables(), name):
			d.fail(at, "%s: is a table, written [%s]", name, name)
		case len(path) > 1 && slices.Contains(tables(), path[0]):
			d.fail(at, "%s: no such key; [%s] has %s", name, path[0], strings.Join(keys(path[0]), ", "))
		default:
			d.fail(at, "%s: no such key; there are the tables %s", name, strings.Join(tables(), ", "))
		}
		return
	}
	if v.Raw.Length > 0 {
		at.off = int(v.Raw.Offset)
	}
	d.at[name] = at
	if err := fields[i].assign(c, value(v)); err != nil {
		d.bad[name] = true
		d.fail(at, "%s: %v", name, err)
	}
}

// key returns the parts of a dotted key and where it begins.
func (d *decoder) key(it unstable.Iterator) (parts []string, at place) {
	for it.Next() {
		n := it.Node()
		if !at.known {
			at = place{int(n.Raw.Offset), true}
		}
		parts = append(parts, string(n.Data))
	}
	return parts, at
}

// other is a value of a kind that no key has.
type other string

// value is a node as string, bool, int64, []any or other.
func value(n *unstable.Node) any {
	switch n.Kind {
	case unstable.String:
		return string(n.Data)
	case unstable.Bool:
		return string(n.Data) == "true"
	case unstable.Integer:
		i, err := strconv.ParseInt(string(n.Data), 0, 64)
		if err != nil {
			return other("the number " + string(n.Data)) // too big; go-toml has said so
		}
		return i
	case unstable.Float:
		return other("the number " + string(n.Data))
	case unstable.Array:
		list := []any{}
		for it := n.Children(); it.Next(); {
			if it.Node().Kind != unstable.Comment {
				list = append(list, value(it.Node()))
			}
		}
		return list
	case unstable.InlineTable:
		return other("a table")
	}
	return other("a date or time")
}

func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return "a string"
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return fmt.Sprintf("the number %d", v)
	case []any:
		return "an array"
	case other:
		return string(v)
	}
	return fmt.Sprintf("%T", v)
}

// tables are the names of the file's tables.
func tables() (names []string) {
	for _, f := range fields {
		if !slices.Contains(names, f.table) {
			names = append(names, f.table)
		}
	}
	return names
}

// keys are the names of a table's keys.
func keys(table string) (names []string) {
	for _, f := range fields {
		if f.table == table {
			names = append(names, f.key)
		}
	}
	return names
}
