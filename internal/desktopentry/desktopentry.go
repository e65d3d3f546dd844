// Package desktopentry reads and rewrites .desktop files, D-Bus service files and others of their form: groups of keys, as
// the Desktop Entry Specification (https://specifications.freedesktop.org/desktop-entry-spec/latest/) has it.
//
// Parse keeps the order of groups and keys, comments and empty lines, so that Write gives back what was read except for
// what was changed. Texts come from images of any origin: whatever is not certain to mean the same to every reader
// (control characters, invalid UTF-8, a line that is no key) is an error and not a guess. Two things that the specification
// forbids are common enough to be read as GLib reads them: of a key given twice the last counts, and two groups of one name
// are one.
//
// Values are read and written as strings of the specification: \s, \n, \t, \r and \\ stand for space, newline, tab, carriage
// return and backslash.
package desktopentry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"berth/orchestrator"
)

// MaxSize is the most bytes that Parse accepts. The largest files known, with names in a hundred languages, have 100 KiB.
const MaxSize = 1 << 20

// Main is the name of a desktop entry's first group.
const Main = "Desktop Entry"

// Entry is a file. The zero Entry is an empty one. It is not safe for concurrent use while it is changed.
type Entry struct {
	head   []string // comments before the first group
	groups []*Group
}

// Group is a group of an Entry. The methods that read may be called on a nil Group, which has no keys.
type Group struct {
	Name  string
	lines []line
	at    map[string]int // index in lines of each key
}

// line is a key with its value, or, with an empty key, a comment or empty line. A line that was deleted has neither.
type line struct {
	key     string // with the locale: "Name[de]"
	value   string // as in the file
	comment string
	dead    bool
}

// Error is the first mistake of a file. It is orchestrator.ErrInvalid.
type Error struct {
	Line    int // 1-based
	Message string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Message) }

// Is makes every Error an orchestrator.ErrInvalid.
func (e *Error) Is(target error) bool { return target == orchestrator.ErrInvalid }

// Parse reads a file. Errors are of type *Error.
func Parse(text []byte) (*Entry, error) {
	if len(text) > MaxSize {
		return nil, &Error{1, fmt.Sprintf("file has %d bytes; at most %d are read", len(text), MaxSize)}
	}
	e := &Entry{}
	var g *Group
	number := 0
	for l := range strings.Lines(string(text)) {
		number++
		fail := func(format string, args ...any) (*Entry, error) {
			return nil, &Error{number, fmt.Sprintf(format, args...)}
		}
		l = strings.TrimSuffix(strings.TrimSuffix(l, "\n"), "\r")
		if !utf8.ValidString(l) {
			return fail("not UTF-8")
		}
		if i := strings.IndexFunc(l, forbidden); i >= 0 {
			r, _ := utf8.DecodeRuneInString(l[i:])
			return fail("control character %U", r)
		}
		trimmed := strings.Trim(l, blanks)
		switch {
		case trimmed == "" || trimmed[0] == '#':
			if g == nil {
				e.head = append(e.head, l)
			} else {
				g.lines = append(g.lines, line{comment: l})
			}
		case trimmed[0] == '[':
			name, ok := strings.CutSuffix(trimmed[1:], "]")
			if !ok || !groupName(name) {
				return fail("group %s: want [NAME] without brackets in the name", quote(trimmed))
			}
			g = e.AddGroup(name)
		default:
			key, value, ok := strings.Cut(trimmed, "=")
			key, value = strings.TrimRight(key, blanks), strings.TrimLeft(value, blanks)
			switch {
			case !ok:
				return fail("%s is neither a group, a key nor a comment", quote(trimmed))
			case g == nil:
				return fail("key %s before the first group", quote(key))
			case !keyName(key):
				return fail("key %s: want letters, digits and dashes, and perhaps a locale in brackets", quote(key))
			}
			if _, err := unescape(value); err != nil {
				return fail("key %s: %v", quote(key), err)
			}
			g.put(key, value)
		}
	}
	return e, nil
}

// blanks are around keys and values for the eye.
const blanks = " \t"

// forbidden tells what may stand nowhere in a file.
func forbidden(r rune) bool { return unicode.IsControl(r) && r != '\t' }

// quote is %q of at most 60 bytes of s.
func quote(s string) string {
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "..."
	}
	return fmt.Sprintf("%q", s)
}

func groupName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r == '[' || r == ']' || r < ' ' || r > '~' })
}

// keyName tells whether s is a key with or without a locale. The underscore is not in the specification but in use.
func keyName(s string) bool {
	name, locale, has := strings.Cut(s, "[")
	if has {
		var ok bool
		if locale, ok = strings.CutSuffix(locale, "]"); !ok || locale == "" {
			return false
		}
	}
	letters := func(s, more string) bool {
		return !strings.ContainsFunc(s, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(more, r))
		})
	}
	return name != "" && letters(name, "-_") && letters(locale, "-_.@$") // [$e] is KConfig's
}

// Bytes is the file's text, whose lines end in newlines.
func (e *Entry) Bytes() []byte {
	var b bytes.Buffer
	for _, l := range e.head {
		b.WriteString(l + "\n")
	}
	for _, g := range e.groups {
		b.WriteString("[" + g.Name + "]\n")
		for _, l := range g.lines {
			switch {
			case l.dead:
			case l.key == "":
				b.WriteString(l.comment + "\n")
			default:
				b.WriteString(l.key + "=" + l.value + "\n")
			}
		}
	}
	return b.Bytes()
}

// Write writes the file's text.
func (e *Entry) Write(w io.Writer) error {
	_, err := w.Write(e.Bytes())
	return err
}

// Groups are the groups in their order. The list is a copy, the groups are not.
func (e *Entry) Groups() []*Group { return slices.Clone(e.groups) }

// Group returns the group called name, or nil.
func (e *Entry) Group(name string) *Group {
	for _, g := range e.groups {
		if g.Name == name {
			return g
		}
	}
	return nil
}

// Main returns the group that describes the entry itself, or nil if the file is no desktop entry: that group has to be the
// first.
func (e *Entry) Main() *Group {
	if len(e.groups) == 0 || e.groups[0].Name != Main {
		return nil
	}
	return e.groups[0]
}

// AddGroup returns the group called name, which is appended if there is none. It panics if name cannot be a group's: names
// are the program's own, or another group's.
func (e *Entry) AddGroup(name string) *Group {
	if g := e.Group(name); g != nil {
		return g
	}
	if !groupName(name) {
		panic(fmt.Sprintf("desktopentry: group name %q", name))
	}
	g := &Group{Name: name, at: map[string]int{}}
	e.groups = append(e.groups, g)
	return g
}

// DeleteGroup removes the group called name, if there is one.
func (e *Entry) DeleteGroup(name string) {
	e.groups = slices.DeleteFunc(e.groups, func(g *Group) bool { return g.Name == name })
}

// put sets a key to the text of its value. A key that is there already keeps its place.
func (g *Group) put(key, value string) {
	if i, ok := g.at[key]; ok {
		g.lines[i].value = value
		return
	}
	g.at[key] = len(g.lines)
	g.lines = append(g.lines, line{key: key, value: value})
}

// set is put that leaves empty lines and comments before the next group where they are.
func (g *Group) set(key, value string) {
	end := len(g.lines)
	for end > 0 && (g.lines[end-1].key == "" || g.lines[end-1].dead) {
		end--
	}
	if _, ok := g.at[key]; ok || end == len(g.lines) {
		g.put(key, value)
		return
	}
	g.at[key] = end
	g.lines = slices.Insert(g.lines, end, line{key: key, value: value})
}

// Keys are the keys in their order, with their locales: "Name", "Name[de]".
func (g *Group) Keys() []string {
	if g == nil {
		return nil
	}
	out := make([]string, 0, len(g.at))
	for _, l := range g.lines {
		if l.key != "" && !l.dead {
			out = append(out, l.key)
		}
	}
	return out
}

// Get returns the value of a key as a string, "" if it is missing. "Name[de]" is a key of its own; Localized chooses.
func (g *Group) Get(key string) string {
	v, _ := g.Lookup(key)
	return v
}

// Lookup is Get for who has to know whether the key is there.
func (g *Group) Lookup(key string) (value string, ok bool) {
	if g == nil {
		return "", false
	}
	i, ok := g.at[key]
	if !ok {
		return "", false
	}
	value, err := unescape(g.lines[i].value)
	if err != nil {
		panic(fmt.Sprintf("desktopentry: value of %q: %v", key, err)) // checked when it was put there
	}
	return value, true
}

// Localized returns the value of a key for a locale such as "de_DE.UTF-8@euro" or "C", by the specification's rules of
// matching; without one that fits it is the key's own value.
func (g *Group) Localized(key, locale string) string {
	for _, l := range Variants(locale) {
		if v, ok := g.Lookup(key + "[" + l + "]"); ok {
			return v
		}
	}
	return g.Get(key)
}

// Variants are the locales that stand for locale in a file, the best first. The encoding plays no part in it.
func Variants(locale string) []string {
	rest, modifier, _ := strings.Cut(locale, "@")
	rest, _, _ = strings.Cut(rest, ".")
	lang, country, _ := strings.Cut(rest, "_")
	if lang == "" || lang == "C" || lang == "POSIX" {
		return nil
	}
	var out []string
	if country != "" && modifier != "" {
		out = append(out, lang+"_"+country+"@"+modifier)
	}
	if country != "" {
		out = append(out, lang+"_"+country)
	}
	if modifier != "" {
		out = append(out, lang+"@"+modifier)
	}
	return append(out, lang)
}

// Bool tells whether a key is true. Files older than the specification's version 1.0 have 1 for it.
func (g *Group) Bool(key string) bool {
	v := strings.TrimSpace(g.Get(key))
	return v == "true" || v == "1"
}

// List returns the values of a key that has several, each followed by a semicolon in the file. Empty ones are left out.
func (g *Group) List(key string) []string {
	if g == nil {
		return nil
	}
	i, ok := g.at[key]
	if !ok {
		return nil
	}
	var out []string
	for _, part := range splitList(g.lines[i].value) {
		v, err := unescape(part)
		if err != nil {
			panic(fmt.Sprintf("desktopentry: value of %q: %v", key, err)) // what is right as a whole is so in its parts
		}
		if v != "" {
			out = append(out, v)
		}
	}
	return out
}

// splitList cuts the text of a value at semicolons that no backslash stands before.
func splitList(s string) []string {
	var out []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ';':
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	if start < len(s) {
		out = append(out, s[start:])
	}
	return out
}

// Set gives a key a value, whatever characters that has: those that cannot stand in a file are escaped, and what cannot be
// (other control characters, invalid UTF-8) is an error. A new key comes behind the others.
func (g *Group) Set(key, value string) error {
	if !keyName(key) {
		return fmt.Errorf("key %s: %w name", quote(key), orchestrator.ErrInvalid)
	}
	text, err := escape(value, false)
	if err != nil {
		return fmt.Errorf("key %s: %w", quote(key), err)
	}
	g.set(key, text)
	return nil
}

// SetList is Set for a key with several values.
func (g *Group) SetList(key string, values []string) error {
	if !keyName(key) {
		return fmt.Errorf("key %s: %w name", quote(key), orchestrator.ErrInvalid)
	}
	var b strings.Builder
	for _, v := range values {
		text, err := escape(v, true)
		if err != nil {
			return fmt.Errorf("key %s: %w", quote(key), err)
		}
		b.WriteString(text + ";")
	}
	g.set(key, b.String())
	return nil
}

// Delete removes a key together with its translations; of "Name[de]" only that one. A key that is not there is none to remove.
func (g *Group) Delete(key string) {
	for i, l := range g.lines {
		if l.key != "" && !l.dead && (l.key == key || strings.HasPrefix(l.key, key+"[")) {
			g.lines[i].dead = true
			delete(g.at, l.key)
		}
	}
}

// unescape turns the text of a value into the string it stands for. The escape of the semicolon belongs to lists; it is
// accepted everywhere, as GLib does for strings that were written as lists.
func unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", errors.New("ends in a backslash")
		}
		switch s[i] {
		case 's':
			b.WriteByte(' ')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case '\\':
			b.WriteByte('\\')
		case ';':
			b.WriteByte(';')
		case '"', '$', '`', '\'':
			// Exec lines are escaped twice, once for Exec and once as strings. Many forget the second: what they meant is
			// the backslash itself.
			b.WriteString(s[i-1 : i+1])
		default:
			return "", fmt.Errorf(`unknown escape \%c`, s[i])
		}
	}
	return b.String(), nil
}

// escape is the inverse of unescape. Only what would be lost or misread is escaped.
func escape(s string, list bool) (string, error) {
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("%w: not UTF-8", orchestrator.ErrInvalid)
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\\':
			b.WriteString(`\\`)
		case r == ' ' && (i == 0 || i == len(s)-1):
			b.WriteString(`\s`)
		case r == ';' && list:
			b.WriteString(`\;`)
		case unicode.IsControl(r):
			return "", fmt.Errorf("%w: control character %U", orchestrator.ErrInvalid, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String(), nil
}
