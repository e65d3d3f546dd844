package desktopentry

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"berth/orchestrator"
)

// SplitExec cuts the value of an Exec key, as Get returns it, into the program and its arguments, in which field codes are
// left as they are: Expand replaces them.
//
// Quoting is what the specification says (double quotes, in which a backslash stands before ", `, $ and \), and what GLib's
// and KDE's readers accept beyond: single quotes, a backslash outside quotes, and quotes within a word. Characters that mean
// something to a shell mean nothing here. Empty text, an open quote, a backslash at the end, a control character other than
// tab, and a program's name with = in it are orchestrator.ErrInvalid.
func SplitExec(text string) ([]string, error) {
	fail := func(format string, args ...any) ([]string, error) {
		return nil, fmt.Errorf("command %s: %w: %s", quote(text), orchestrator.ErrInvalid, fmt.Sprintf(format, args...))
	}
	if !utf8.ValidString(text) {
		return fail("not UTF-8")
	}
	if i := strings.IndexFunc(text, forbidden); i >= 0 {
		r, _ := utf8.DecodeRuneInString(text[i:])
		return fail("control character %U", r)
	}
	var argv []string
	var word strings.Builder
	in := false // a word, which may be empty when it was quoted
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case ' ', '\t':
			if in {
				argv = append(argv, word.String())
				word.Reset()
				in = false
			}
		case '"':
			in = true
			for i++; ; i++ {
				if i >= len(text) {
					return fail("a double quote is not closed")
				}
				if text[i] == '"' {
					break
				}
				if text[i] == '\\' {
					if i+1 >= len(text) {
						return fail("a double quote is not closed")
					}
					if strings.IndexByte("\"`$\\", text[i+1]) >= 0 {
						i++
					}
				}
				word.WriteByte(text[i])
			}
		case '\'':
			in = true
			end := strings.IndexByte(text[i+1:], '\'')
			if end < 0 {
				return fail("a single quote is not closed")
			}
			word.WriteString(text[i+1 : i+1+end])
			i += 1 + end
		case '\\':
			if i+1 >= len(text) {
				return fail("ends in a backslash")
			}
			in = true
			i++
			word.WriteByte(text[i])
		default:
			in = true
			word.WriteByte(c)
		}
	}
	if in {
		argv = append(argv, word.String())
	}
	switch {
	case len(argv) == 0 || argv[0] == "":
		return fail("no program")
	case strings.Contains(argv[0], "="):
		return fail("a program's name has no =")
	}
	return argv, nil
}

// reserved are the characters for which an argument has to be quoted.
const reserved = " \t\"'\\><~|&;$*?#()`"

// JoinExec is the inverse of SplitExec: the value of an Exec key for Set. Arguments may hold field codes; a % that is meant
// as one is written %%. An argument with a control character other than tab makes a text that SplitExec refuses.
func JoinExec(argv []string) string {
	var b strings.Builder
	for i, a := range argv {
		if i > 0 {
			b.WriteByte(' ')
		}
		if a != "" && !strings.ContainsAny(a, reserved) && !strings.ContainsFunc(a, unicode.IsControl) {
			b.WriteString(a)
			continue
		}
		b.WriteByte('"')
		for j := 0; j < len(a); j++ {
			if strings.IndexByte("\"`$\\", a[j]) >= 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(a[j])
		}
		b.WriteByte('"')
	}
	return b.String()
}

// Fields is what field codes stand for.
type Fields struct {
	Files []string // %f (the first) and %F: paths
	URLs  []string // %u (the first) and %U
	Icon  string   // %i becomes --icon and this, or nothing
	Name  string   // %c: the entry's name in the user's language
	Path  string   // %k: where the entry's file lies
}

// Expand replaces the field codes of a command. An argument that is nothing but a code without a value goes; the deprecated
// codes %d, %D, %n, %N, %v and %m are removed, as the specification asks for. An unknown code, and %F or %U within an
// argument, are orchestrator.ErrInvalid.
func Expand(argv []string, f Fields) ([]string, error) {
	var out []string
	first := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return list[0]
	}
	for _, a := range argv {
		fail := func(what string) ([]string, error) {
			return nil, fmt.Errorf("command argument %s: %w: %s", quote(a), orchestrator.ErrInvalid, what)
		}
		switch a {
		case "%F":
			out = append(out, f.Files...)
			continue
		case "%U":
			out = append(out, f.URLs...)
			continue
		case "%i":
			if f.Icon != "" {
				out = append(out, "--icon", f.Icon)
			}
			continue
		}
		var b strings.Builder
		removed := false
		for i := 0; i < len(a); i++ {
			if a[i] != '%' {
				b.WriteByte(a[i])
				continue
			}
			i++
			if i == len(a) {
				return fail("ends in %")
			}
			switch a[i] {
			case '%':
				b.WriteByte('%')
			case 'f':
				b.WriteString(first(f.Files))
				removed = true
			case 'u':
				b.WriteString(first(f.URLs))
				removed = true
			case 'c':
				b.WriteString(f.Name)
				removed = true
			case 'k':
				b.WriteString(f.Path)
				removed = true
			case 'd', 'D', 'n', 'N', 'v', 'm':
				removed = true
			case 'F', 'U', 'i':
				return fail(fmt.Sprintf("%%%c has to be an argument of its own", a[i]))
			default:
				return fail("unknown field code")
			}
		}
		if b.Len() == 0 && removed {
			continue
		}
		out = append(out, b.String())
	}
	return out, nil
}

// Literal is an argument that Expand leaves as s.
func Literal(s string) string { return strings.ReplaceAll(s, "%", "%%") }
