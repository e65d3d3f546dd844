package profiles

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"unicode"
)

// typ is what a key's value may be.
type typ uint8

const (
	tString typ = iota
	tInt
	tNumber
	tBool
	tStrings  // list of strings
	tOneOrAll // a string or a list of strings
	tMemory   // an integer or a string such as "4GiB"
	tTable
	tMap    // table with keys of the user's choice
	tTables // list of tables
)

func (t typ) String() string {
	return [...]string{"a string", "an integer", "a number", "true or false", "a list of strings",
		"a string or a list of strings", `a size such as "4GiB"`, "a table", "a table", "a list of tables"}[t]
}

// field describes one key. The whole schema is such data, so that checks, suggestions, --set and the reference in
// docs/profiles.md cannot disagree.
type field struct {
	name   string
	typ    typ
	doc    string
	def    string // default, for the reference
	enum   []string
	check  func(n *node) *problem // of a string or number whose type is right; of lists: of each element
	fields []*field               // of tTable and the tables of tTables
	elem   *field                 // of tMap: every value
	key    func(name string) *problem
	most   int // entries of tMap; 0 means any number
	// later: it is read and checked, but nothing makes use of it yet.
	later bool
	// live: `berth set` can change it while a session runs (Change).
	live bool
}

func (f *field) field(name string) *field {
	for _, c := range f.fields {
		if c.name == name {
			return c
		}
	}
	return nil
}

func (f *field) names() []string {
	out := make([]string, len(f.fields))
	for i, c := range f.fields {
		out[i] = c.name
	}
	return out
}

// oneOf checks a list's elements against words.
func oneOf(what string, words []string) func(n *node) *problem {
	return func(n *node) *problem {
		if slices.Contains(words, n.str) {
			return nil
		}
		return &problem{fmt.Sprintf("unknown %s %s (known: %s)", what, quote(n.str), strings.Join(words, ", ")), Nearest(n.str, words)}
	}
}

func matches(ok func(string) bool, what string) func(n *node) *problem {
	return func(n *node) *problem {
		if ok(n.str) {
			return nil
		}
		return &problem{fmt.Sprintf("%s is no %s", quote(n.str), what), ""}
	}
}

func between(lo, hi float64) func(n *node) *problem {
	return func(n *node) *problem {
		if n.num >= lo && n.num <= hi {
			return nil
		}
		return &problem{fmt.Sprintf("%s is out of range: %v to %v", n.literal(), lo, hi), ""}
	}
}

func failing(parse func(s string) error) func(n *node) *problem {
	return func(n *node) *problem {
		if err := parse(n.str); err != nil {
			return &problem{err.Error(), ""}
		}
		return nil
	}
}

func absolute(what string) func(n *node) *problem {
	return func(n *node) *problem {
		if path.IsAbs(n.str) && path.Clean(n.str) == strings.TrimSuffix(n.str, "/") || n.str == "/" {
			return nil
		}
		return &problem{fmt.Sprintf("%s %s is not an absolute path without . and ..", what, quote(n.str)), ""}
	}
}

func nonEmpty(what string) func(n *node) *problem {
	return func(n *node) *problem {
		if n.str == "" {
			return &problem{what + " is empty", ""}
		}
		return nil
	}
}

func noCheck(*node) *problem { return nil }

// maxComponents of a profile.
const maxComponents = 128

// schema is the document.
var schema = &field{typ: tTable, fields: []*field{
	{name: "name", doc: "The profile's name. Lower-case letters, digits and `-`. In a profile directory it must be the file's name without `.toml`.",
		def: "the file's name", check: matches(profileName, "profile name: use at most 32 of a-z, 0-9 and single dashes between them")},
	{name: "description", doc: "One line, shown by `berth profile ls`.", check: func(n *node) *problem {
		if strings.ContainsAny(n.str, "\n\r") {
			return &problem{"description has more than one line", ""}
		}
		return nil
	}},
	{name: "extends", doc: "The profile this one adds to. A profile of your own may extend the built-in one of the same name.",
		check: matches(profileName, "profile name")},
	{name: "session", doc: "The component whose clean exit means that the user has logged out; the session then ends.",
		check: nonEmpty("session")},
	{name: "display", typ: tTable, doc: "The X server.", fields: []*field{
		{name: "server", doc: "Which X server draws the desktop.", def: "xvfb", enum: []string{"xvfb", "xvnc", "xorg", "xephyr", "host"}},
		{name: "size", doc: fmt.Sprintf("Width and height in pixels, from %dx%d to %dx%d.", MinWidth, MinHeight, MaxWidth, MaxHeight), def: "1280x800",
			check: failing(func(s string) error { _, _, err := ParseSize(s); return err })},
		{name: "dpi", typ: tInt, doc: "Dots per inch the server reports.", def: "96", check: between(24, 960)},
	}},
	{name: "audio", typ: tTable, doc: "Sound.", fields: []*field{
		{name: "server", doc: "Which sound server runs.", def: "pipewire", enum: []string{"pipewire", "pulseaudio", "host", "none"}},
	}},
	{name: "system_bus", typ: tTable, doc: "The system bus.", fields: []*field{
		{name: "kind", doc: "`stub`: a bus of the session's own, on which Berth answers for login1, locale1, hostname1, timedate1, UPower and Accounts; `none`: there is no system bus.",
			def: "stub", enum: []string{"stub", "none"}},
	}},
	{name: "home", typ: tTable, doc: "The user's home directory.", fields: []*field{
		{name: "kind", doc: "`volume` is kept by Berth under a name, `bind` is a directory of the host, `ephemeral` goes with the session.",
			def: "volume", enum: []string{"volume", "bind", "ephemeral"}},
		{name: "name", doc: "Of the volume.", def: "the session's name", check: matches(volumeName, "volume name: use at most 64 of a-z, 0-9 and single dashes between them")},
		{name: "path", doc: "Of the bind: an absolute path on the host.", check: absolute("path")},
	}},
	{name: "network", typ: tTable, doc: "The session's network.", fields: []*field{
		{name: "mode", doc: "`nat`: an address of its own behind the host's; `none`: loopback only; `host`: the host's network.",
			def: "nat", enum: []string{"nat", "none", "host"}},
	}},
	{name: "look", typ: tTable, doc: "How every toolkit looks. What is not given stays as the images and the user have it.", fields: []*field{
		{name: "dark", typ: tBool, live: true, doc: "Dark or light themes."},
		{name: "font", live: true, doc: "Font and size, such as `Noto Sans 10`.", check: matches(isFont, "font such as Noto Sans 10")},
		{name: "cursor", live: true, doc: "Cursor theme.", check: matches(themeName.MatchString, "name of a theme")},
		{name: "icons", live: true, doc: "Icon theme.", check: matches(themeName.MatchString, "name of a theme")},
		{name: "theme", live: true, doc: "Widget theme, instead of the desktop's own dark or light one.", check: matches(themeName.MatchString, "name of a theme")},
		{name: "scale", typ: tNumber, live: true, doc: "Factor by which everything is enlarged.", check: between(0.5, 4)},
	}},
	{name: "locale", typ: tTable, doc: "Language, time zone and keyboard.", fields: []*field{
		{name: "lang", doc: "Locale, such as `zh_CN.UTF-8`.", check: matches(langName.MatchString, "locale such as de_DE.UTF-8")},
		{name: "timezone", doc: "Such as `Europe/Berlin`.", check: matches(zoneName.MatchString, "time zone such as Europe/Berlin")},
		{name: "keyboard", typ: tStrings, live: true, doc: "XKB layouts, at most four, the first is active: `us`, `de(nodeadkeys)`. Alt+Shift switches.",
			check: matches(layoutName.MatchString, "keyboard layout such as us or de(nodeadkeys)")},
		{name: "input_method", doc: "Input method: its daemon runs, and all toolkits use it. Ctrl+Space switches.", enum: []string{"fcitx5", "ibus"}},
	}},
	{name: "limits", typ: tTable, doc: "Bounds of the session as a whole. What is not given is not bounded.", fields: []*field{
		{name: "cpus", typ: tNumber, doc: "Cores, such as `2` or `0.5`.", check: between(0.01, 4096)},
		{name: "memory", typ: tMemory, doc: "Such as `4GiB`, or a number of bytes.", check: func(n *node) *problem {
			v := n.int
			if n.kind == kindString {
				var err error
				if v, err = ParseBytes(n.str); err != nil {
					return &problem{err.Error(), ""}
				}
			}
			if v < 16<<20 {
				return &problem{fmt.Sprintf("%s is too little memory for a desktop: at least 16MiB", n.literal()), ""}
			}
			return nil
		}},
		{name: "pids", typ: tInt, doc: "Processes and threads.", check: between(16, 4<<20)},
	}},
	{name: "env", typ: tMap, doc: "Environment variables of every component.", key: checkEnvName, elem: &field{check: noCheck}},
	{name: "components", typ: tMap, doc: "The containers of the session, by name.", key: checkComponentName, elem: componentSchema, most: maxComponents},
	{name: "apps", typ: tTables, doc: "Applications of further images, shown in every menu.", fields: []*field{
		{name: "image", doc: "The image.", check: func(n *node) *problem { return checkImage(n.str) }},
		{name: "export", typ: tStrings, doc: "Patterns of the names of `.desktop` files, without the suffix; `*` for all.",
			def: `["*"]`, check: checkPattern},
		{name: "idle", doc: "How long the container of these applications goes on without any of them running; `0s` for ever.", def: "10m",
			check: failing(func(s string) error {
				if s == "0s" {
					return nil
				}
				_, err := parseDuration(s)
				return err
			})},
	}},
}}

var componentSchema = &field{typ: tTable, fields: []*field{
	{name: "image", doc: "A built-in image's name or a reference such as `debian:trixie`. Required.",
		check: func(n *node) *problem { return checkImage(n.str) }},
	{name: "command", typ: tStrings, doc: "Program and arguments; no shell. Required.", check: noCheck},
	{name: "env", typ: tMap, doc: "Environment variables, in addition to the session's.", key: checkEnvName, elem: &field{check: noCheck}},
	{name: "cwd", doc: "Working directory.", def: "the image's", check: func(n *node) *problem {
		if strings.HasPrefix(n.str, "${HOME}") {
			return nil
		}
		return absolute("path")(n)
	}},
	{name: "provides", typ: tStrings, doc: "Its roles.", check: oneOf("role", Roles)},
	{name: "after", typ: tStrings, doc: "Components or roles that must be ready before it starts, besides those it needs. A role nobody has is not waited for.",
		check: nonEmpty("name")},
	{name: "needs", typ: tStrings, doc: "Wires it uses. `x11` and `bus` are waited for.", def: `["x11", "bus", "audio", "home"]`,
		check: oneOf("wire", Wires)},
	{name: "ready", typ: tOneOrAll, doc: "Probes that say when it is ready; all must hold.", def: "ready when started", check: func(n *node) *problem {
		_, bad := parseProbe(n.str)
		return bad
	}},
	{name: "timeout", doc: "How long it may take to become ready.", def: "30s",
		check: failing(func(s string) error { _, err := parseDuration(s); return err })},
	{name: "restart", doc: "When it is started again after it has exited.", def: "on-failure",
		enum: []string{RestartAlways, RestartOnFailure, RestartNever}},
	{name: "optional", typ: tBool, doc: "The session goes on without it when it fails for good.", def: "false"},
	{name: "ends_session", typ: tBool, doc: "Its clean exit ends the session, as that of the one named by `session` does.", def: "false"},
	{name: "devices", typ: tStrings, doc: "Device nodes of the host it gets, such as `/dev/dri/renderD128`.", check: func(n *node) *problem {
		if strings.HasPrefix(n.str, "/dev/") && path.Clean(n.str) == n.str {
			return nil
		}
		return &problem{fmt.Sprintf("%s is no path below /dev", quote(n.str)), ""}
	}},
	{name: "caps", typ: tStrings, doc: "Capabilities it keeps, such as `CAP_SYS_NICE`; all others are dropped.", check: func(n *node) *problem {
		if slices.Contains(capNames, n.str) {
			return nil
		}
		near := Nearest(n.str, capNames)
		if c := "CAP_" + strings.TrimPrefix(strings.ToUpper(n.str), "CAP_"); slices.Contains(capNames, c) {
			near = c
		}
		return &problem{fmt.Sprintf("unknown capability %s", quote(n.str)), near}
	}},
	{name: "files", typ: tMap, doc: "Files it finds, read-only: absolute path = content.", key: func(name string) *problem {
		if path.IsAbs(name) && path.Clean(name) == name && name != "/" {
			return nil
		}
		return &problem{fmt.Sprintf("file %s is not an absolute path", quote(name)), ""}
	}, elem: &field{check: noCheck}},
	{name: "stop_signal", doc: "The signal that asks it to end.", def: "SIGTERM", enum: signals},
	{name: "stop_timeout", doc: "How long it may take to end before it is killed.", def: "5s",
		check: failing(func(s string) error { _, err := parseDuration(s); return err })},
	{name: "disable", typ: tBool, doc: "Leaves out a component that an extended profile, or the display, audio or a bus, contributes.", def: "false"},
}}

func checkEnvName(name string) *problem {
	if envName.MatchString(name) {
		return nil
	}
	return &problem{fmt.Sprintf("%s is no name of an environment variable", quote(name)), ""}
}

func checkComponentName(name string) *problem {
	if componentName(name) {
		return nil
	}
	return &problem{fmt.Sprintf("%s is no component name: use at most 32 of a-z, 0-9 and single dashes between them", quote(name)), ""}
}

func checkPattern(n *node) *problem {
	if _, err := path.Match(n.str, ""); err != nil || n.str == "" {
		return &problem{fmt.Sprintf("%s is no pattern", quote(n.str)), ""}
	}
	return nil
}

// literal is a value as its file writes it.
func (n *node) literal() string { return clip(string(n.src.text[n.off:n.end]), 40) }

// check compares a tree with the schema and marks what is wrong as bad.
func check(n *node, f *field, path []string, errs *Errors) {
	if n.bad || errs.full() {
		return
	}
	fail := func(at *node, message, suggest string) {
		e := at.errorf("%s", message)
		e.Suggestion, e.Key = suggest, strings.Join(path, ".")
		*errs = append(*errs, e)
		at.bad, n.bad = true, true
	}
	if !typeFits(n, f.typ) {
		msg := fmt.Sprintf("%s is %s; want %s", keyText(path), n.kind, f.typ)
		if f.typ == tStrings && n.kind == kindString {
			msg += fmt.Sprintf(", [%s]", quote(n.str))
		}
		at := n
		if want, ok := elementKind[f.typ]; ok && n.kind == kindArray {
			at = n.list[slices.IndexFunc(n.list, func(e *node) bool { return e.kind != want })]
			msg = fmt.Sprintf("%s has %s in it; want %s", keyText(path), at.kind, f.typ)
		}
		fail(at, msg, "")
		return
	}
	switch f.typ {
	case tTable:
		for _, k := range n.keys {
			if errs.full() {
				return
			}
			child := n.table[k]
			sub := append(slices.Clip(path), k)
			if cf := f.field(k); cf != nil {
				check(child, cf, sub, errs)
				continue
			}
			e := child.keyErrorf("unknown key %s%s", quote(k), inTable(path))
			e.Key = strings.Join(sub, ".")
			if near := Nearest(k, f.names()); near != "" {
				e.Suggestion = near
			} else if len(path) > 0 && schema.field(k) != nil {
				e.Message += "; it belongs at the top of the file, before the first table"
			} else {
				e.Suggestion = elsewhere(k)
			}
			*errs = append(*errs, e)
			child.bad = true
		}
		return
	case tMap:
		if f.most > 0 && len(n.keys) > f.most {
			fail(n, fmt.Sprintf("%s has %d entries; at most %d", keyText(path), len(n.keys), f.most), "")
			return
		}
		for _, k := range n.keys {
			if errs.full() {
				return
			}
			child := n.table[k]
			if p := f.key(k); p != nil {
				e := child.keyErrorf("%s", p.message)
				e.Key = strings.Join(append(slices.Clip(path), k), ".")
				*errs = append(*errs, e)
				child.bad = true
			}
			check(child, f.elem, append(slices.Clip(path), k), errs)
		}
		return
	case tTables:
		for _, e := range n.list {
			check(e, &field{typ: tTable, fields: f.fields}, path, errs)
		}
		return
	}
	values := []*node{n}
	if n.kind == kindArray {
		values = n.list
	}
	for _, v := range values {
		switch {
		case v.bad || errs.full():
		case v.kind == kindString && strings.ContainsFunc(v.str, forbidden):
			// TOML can write them as \u0000. No argument, variable or file name can hold a NUL, and plans are printed.
			fail(v, fmt.Sprintf("%s holds a control character", keyText(path)), "")
		case f.enum != nil:
			if !slices.Contains(f.enum, v.str) {
				fail(v, fmt.Sprintf("%s is %s; want one of %s", keyText(path), quote(v.str), strings.Join(f.enum, ", ")), Nearest(v.str, f.enum))
			}
		case v.kind == kindFloat && (math.IsNaN(v.num) || math.IsInf(v.num, 0)):
			fail(v, fmt.Sprintf("%s is %s; want a finite number", keyText(path), v.literal()), "")
		case f.check != nil:
			if p := f.check(v); p != nil {
				fail(v, keyText(path)+": "+p.message, p.suggest)
			}
		}
	}
}

func forbidden(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }

var elementKind = map[typ]kind{tStrings: kindString, tOneOrAll: kindString, tTables: kindTable}

func typeFits(n *node, t typ) bool {
	switch t {
	case tString:
		return n.kind == kindString
	case tInt:
		return n.kind == kindInt
	case tNumber:
		return n.kind == kindInt || n.kind == kindFloat
	case tBool:
		return n.kind == kindBool
	case tMemory:
		return n.kind == kindInt || n.kind == kindString
	case tTable, tMap:
		return n.kind == kindTable
	case tOneOrAll:
		if n.kind == kindString {
			return true
		}
		fallthrough
	case tStrings:
		return n.kind == kindArray && !slices.ContainsFunc(n.list, func(e *node) bool { return e.kind != kindString })
	case tTables:
		return n.kind == kindArray && !slices.ContainsFunc(n.list, func(e *node) bool { return e.kind != kindTable })
	}
	return false
}

func keyText(path []string) string { return strings.Join(path, ".") }

func inTable(path []string) string {
	if len(path) == 0 {
		return ""
	}
	return fmt.Sprintf(" in [%s]", clip(strings.Join(path, "."), 60))
}

// elsewhere finds the table whose key an unknown top-level key is.
func elsewhere(k string) string {
	for _, t := range schema.fields {
		if t.typ == tTable && t.field(k) != nil {
			return t.name + "." + k
		}
	}
	return ""
}
