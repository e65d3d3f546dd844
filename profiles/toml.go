package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// MaxFileSize is the size in bytes beyond which a profile is refused unread.
const MaxFileSize = 1 << 20

const (
	maxKeyParts = 8 // components.NAME.env.KEY has 4
	maxNesting  = 8 // apps = [{export = [..]}] has 3
)

type kind uint8

const (
	kindTable kind = iota
	kindArray
	kindString
	kindInt
	kindFloat
	kindBool
	kindTime
)

func (k kind) String() string {
	return [...]string{"a table", "a list", "a string", "an integer", "a number", "a boolean", "a date or time"}[k]
}

// opened says how a table came to be, which decides what may still add to it (TOML 1.0, "Table").
type opened uint8

const (
	byPath   opened = iota // named on the way to a deeper header
	byHeader               // [a]
	byDotted               // a.b = 1
	byInline               // a = {}
)

// node is a TOML value that knows where it stands. go-toml's decoder reports positions for some mistakes and only for
// the first of others; a tree with positions lets every check, early and late, name its place.
type node struct {
	kind   kind
	src    *source
	off    int // value's bytes [off, end); of a table its header's key
	end    int
	keyOff int // key's bytes; equal to off of a list element
	keyEnd int

	str  string
	num  float64
	int  int64
	bool bool
	list []*node

	keys   []string // in the file's order
	table  map[string]*node
	opened opened
	tables bool // an array made by [[a]]

	bad bool // reported already: neither its value nor its absence is worth another error
}

func newTable(src *source, off, end int, how opened) *node {
	return &node{kind: kindTable, src: src, off: off, end: end, keyOff: off, keyEnd: end, table: map[string]*node{}, opened: how}
}

func (n *node) put(key string, v *node) {
	if _, ok := n.table[key]; !ok {
		n.keys = append(n.keys, key)
	}
	n.table[key] = v
}

// get walks down tables; nil if anything is missing.
func (n *node) get(path ...string) *node {
	for _, k := range path {
		if n == nil || n.kind != kindTable {
			return nil
		}
		n = n.table[k]
	}
	return n
}

func (n *node) errorf(format string, args ...any) *Error {
	return n.src.errorAt(n.off, n.end, format, args...)
}

func (n *node) keyErrorf(format string, args ...any) *Error {
	return n.src.errorAt(n.keyOff, n.keyEnd, format, args...)
}

// line is the 1-based line of offset off.
func (s *source) line(off int) int {
	return 1 + bytes.Count(s.text[:min(off, len(s.text))], []byte{'\n'})
}

// precheck finds what makes a text no TOML document at all, with messages better than a parser's. It returns the text
// without a byte order mark.
func precheck(name string, text []byte) ([]byte, *Error) {
	whole := func(format string, args ...any) *Error {
		return &Error{File: name, Message: fmt.Sprintf(format, args...)}
	}
	if len(text) > MaxFileSize {
		return nil, whole("file has %d bytes; a profile has at most %d (1 MiB)", len(text), MaxFileSize)
	}
	if bytes.HasPrefix(text, []byte{0xff, 0xfe}) || bytes.HasPrefix(text, []byte{0xfe, 0xff}) {
		return nil, whole("file is UTF-16; save it as UTF-8")
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	src := &source{name, text}
	if i := bytes.IndexByte(text, 0); i >= 0 {
		return nil, src.errorAt(i, i+1, "NUL byte; a profile is plain text")
	}
	if !utf8.Valid(text) {
		for i := 0; i < len(text); {
			r, size := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && size == 1 {
				return nil, src.errorAt(i, i+1, "byte 0x%02x is not UTF-8", text[i])
			}
			i += size
		}
	}
	return text, nil
}

// parse reads a TOML document into a tree. The tree is nil only if the text cannot be read at all; otherwise it holds
// what stands before the first mistake of syntax, and everything but duplicates.
func parse(name string, text []byte) (*node, Errors) {
	text, bad := precheck(name, text)
	if bad != nil {
		return nil, Errors{bad}
	}
	// The capacity is cut so that offsets can be computed from the parser's sub-slices.
	src := &source{name, text[:len(text):len(text)]}
	b := &builder{src: src, root: newTable(src, 0, 0, byHeader)}
	b.parser.Reset(src.text)
	cur := b.root
	for b.parser.NextExpression() {
		n := b.parser.Expression()
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			cur = b.header(n)
		case unstable.KeyValue:
			b.keyValue(cur, n, 1)
		}
		if b.errs.full() {
			return b.root, b.errs
		}
	}
	if err := b.parser.Error(); err != nil {
		off, end := len(src.text), len(src.text)
		var perr *unstable.ParserError
		if errors.As(err, &perr) {
			off = cap(src.text) - cap(perr.Highlight)
			end = off + len(perr.Highlight)
		}
		b.errs = append(b.errs, src.errorAt(off, end, "%s", syntaxMessage(err.Error())))
		return nil, b.errs
	}
	return b.root, b.errs
}

// syntaxMessage makes go-toml's %#U notation, U+0041 'A', readable.
func syntaxMessage(s string) string {
	if strings.HasSuffix(s, "at start of value") || strings.HasPrefix(s, "expected keyword") {
		s += "; strings are written in quotes"
	}
	if i := strings.Index(s, "U+"); i >= 0 {
		if j := strings.IndexByte(s[i:], '\''); j > 0 {
			return "syntax: " + s[:i] + s[i+j:]
		}
	}
	return "syntax: " + s
}

type builder struct {
	parser unstable.Parser
	src    *source
	root   *node
	errs   Errors
}

func (b *builder) fail(off, end int, format string, args ...any) {
	b.errs = append(b.errs, b.src.errorAt(off, end, format, args...))
}

// keyPart is one part of a dotted key.
type keyPart struct {
	name     string
	off, end int
}

func keyParts(it unstable.Iterator) []keyPart {
	var out []keyPart
	for it.Next() {
		k := it.Node()
		off := int(k.Raw.Offset)
		out = append(out, keyPart{string(k.Data), off, off + int(k.Raw.Length)})
	}
	return out
}

// header opens [a.b] or [[a.b]] and returns the table that the following keys go to. After a mistake that is some
// table, so that those keys are still looked at.
func (b *builder) header(n *unstable.Node) *node {
	parts := keyParts(n.Key())
	first, last := parts[0], parts[len(parts)-1]
	loose := newTable(b.src, first.off, last.end, byHeader)
	if len(parts) > maxKeyParts {
		b.fail(first.off, last.end, "table name has %d parts; profiles nest at most %d deep", len(parts), maxKeyParts)
		return loose
	}
	t := b.root
	for _, p := range parts[:len(parts)-1] {
		next := t.table[p.name]
		switch {
		case next == nil:
			next = newTable(b.src, p.off, p.end, byPath)
			t.put(p.name, next)
		case next.tables:
			next = next.list[len(next.list)-1]
		case next.kind != kindTable:
			b.fail(p.off, p.end, "%s is %s here, but was given as %s in line %d", quote(p.name), kindTable, next.kind, b.src.line(next.keyOff))
			return loose
		case next.opened == byInline:
			b.fail(p.off, p.end, "table %s was written as { } in line %d and cannot be added to", quote(p.name), b.src.line(next.keyOff))
			return loose
		}
		t = next
	}
	old := t.table[last.name]
	if n.Kind == unstable.ArrayTable {
		elem := newTable(b.src, last.off, last.end, byHeader)
		switch {
		case old == nil:
			t.put(last.name, &node{kind: kindArray, src: b.src, off: last.off, end: last.end, keyOff: last.off, keyEnd: last.end, list: []*node{elem}, tables: true})
		case old.tables:
			old.list = append(old.list, elem)
		default:
			b.fail(last.off, last.end, "%s is a list of tables here, but was given as %s in line %d", quote(last.name), old.kind, b.src.line(old.keyOff))
		}
		return elem
	}
	switch {
	case old == nil:
		nt := newTable(b.src, last.off, last.end, byHeader)
		t.put(last.name, nt)
		return nt
	case old.kind == kindTable && old.opened == byPath:
		old.opened = byHeader
		old.off, old.end, old.keyOff, old.keyEnd = last.off, last.end, last.off, last.end
		return old
	case old.kind == kindTable:
		b.fail(last.off, last.end, "table %s is defined twice, first in line %d", quote(last.name), b.src.line(old.keyOff))
		if old.opened == byInline {
			return loose
		}
		return old
	default:
		b.fail(last.off, last.end, "%s is %s here, but was given as %s in line %d", quote(last.name), kindTable, old.kind, b.src.line(old.keyOff))
		return loose
	}
}

// keyValue adds `a.b = value` to t and returns the offset behind the value.
func (b *builder) keyValue(t *node, n *unstable.Node, depth int) int {
	parts := keyParts(n.Key())
	first, last := parts[0], parts[len(parts)-1]
	v, end := b.value(n.Value(), last.end, depth)
	v.keyOff, v.keyEnd = last.off, last.end
	if len(parts) > maxKeyParts {
		b.fail(first.off, last.end, "key has %d parts; profiles nest at most %d deep", len(parts), maxKeyParts)
		return end
	}
	for _, p := range parts[:len(parts)-1] {
		next := t.table[p.name]
		switch {
		case next == nil:
			next = newTable(b.src, p.off, p.end, byDotted)
			t.put(p.name, next)
		case next.kind != kindTable:
			b.fail(p.off, p.end, "%s is %s here, but was given as %s in line %d", quote(p.name), kindTable, next.kind, b.src.line(next.keyOff))
			return end
		case next.opened != byDotted:
			b.fail(p.off, p.end, "table %s is defined in line %d; add the key there", quote(p.name), b.src.line(next.keyOff))
			return end
		}
		t = next
	}
	if old := t.table[last.name]; old != nil {
		b.fail(last.off, last.end, "key %s is given twice, first in line %d", quote(last.name), b.src.line(old.keyOff))
		return end
	}
	t.put(last.name, v)
	return end
}

// value converts a value. from is an offset before it; the parser does not say where an array begins, so that is found
// by skipping what may stand between values. It returns the offset behind the value.
func (b *builder) value(n *unstable.Node, from, depth int) (*node, int) {
	off := b.skip(from, true)
	v := &node{src: b.src, off: off, end: off + 1}
	if n.Raw.Length > 0 {
		v.off = int(n.Raw.Offset)
		v.end = v.off + int(n.Raw.Length)
	}
	if depth > maxNesting && (n.Kind == unstable.Array || n.Kind == unstable.InlineTable) {
		b.fail(v.off, v.end, "values nest more than %d deep", maxNesting)
		v.kind, v.bad = kindArray, true
		return v, v.end
	}
	text := string(n.Data)
	switch n.Kind {
	case unstable.String:
		v.kind, v.str = kindString, text
	case unstable.Bool:
		v.kind, v.bool = kindBool, text == "true"
	case unstable.Integer:
		v.kind = kindInt
		i, err := strconv.ParseInt(strings.TrimPrefix(text, "+"), 0, 64)
		if err != nil {
			b.fail(v.off, v.end, "number %s is too large", quote(text))
			v.bad = true
		}
		v.int, v.num = i, float64(i)
	case unstable.Float:
		v.kind = kindFloat
		f, err := strconv.ParseFloat(text, 64)
		if err != nil {
			b.fail(v.off, v.end, "number %s is too large", quote(text))
			v.bad = true
		}
		v.num = f
	case unstable.Array:
		v.kind = kindArray
		pos := v.off + 1
		for it := n.Children(); it.Next() && !b.errs.full(); {
			var e *node
			e, pos = b.value(it.Node(), pos, depth+1)
			e.keyOff, e.keyEnd = e.off, e.end
			v.list = append(v.list, e)
		}
		v.end = min(b.skip(pos, false)+1, len(b.src.text))
	case unstable.InlineTable:
		v.kind, v.table, v.opened = kindTable, map[string]*node{}, byInline
		pos := v.off + 1
		for it := n.Children(); it.Next() && !b.errs.full(); {
			pos = b.keyValue(v, it.Node(), depth+1)
		}
		seal(v)
		v.end = min(b.skip(pos, false)+1, len(b.src.text))
	default:
		v.kind, v.str = kindTime, text
	}
	return v, v.end
}

// seal closes the tables that dotted keys opened inside an inline table.
func seal(n *node) {
	for _, k := range n.keys {
		if c := n.table[k]; c.kind == kindTable && c.opened == byDotted {
			c.opened = byInline
			seal(c)
		}
	}
}

// skip returns the offset of the next byte that is no space, newline, comma or comment, nor, with equals, '='.
func (b *builder) skip(i int, equals bool) int {
	t := b.src.text
	for i < len(t) {
		switch c := t[i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == ',' || c == '=' && equals:
			i++
		case c == '#':
			for i < len(t) && t[i] != '\n' {
				i++
			}
		default:
			return i
		}
	}
	return i
}
