package profiles

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"berth/orchestrator"
)

// maxExtends bounds the chain of extends.
const maxExtends = 16

// setFile is the File of errors in --set options.
const setFile = "--set"

// Profile is a profile with everything it extends and every --set applied: checked against the schema, with defaults,
// but not yet against the components of display, audio and bus (Build does that).
type Profile struct {
	Name        string
	Description string
	// Files are the profile's own file and those it extends, nearest first.
	Files []string

	Session   string
	Display   Display
	Audio     Audio
	SystemBus SystemBus
	Home      Home
	Network   string
	Look      Look
	Locale    Locale
	Limits    Limits
	Env       map[string]string
	Apps      []App

	tree *node
	// partial: something it extends is not there, so what seems to be missing may well be in that.
	partial bool
}

// document is one file of a chain.
type document struct {
	stem   string // the name it is found by
	source int    // index in Sources, -1 for a file named by its path
	file   string
	tree   *node
}

// Load finds, reads and checks a profile. A ref with a slash, or that ends in .toml, is a file's path, any other a
// name looked up in src. Each set is a KEY=VALUE option. A profile that does not exist is orchestrator.ErrNotFound. With
// sources that have an Owner, so on behalf of somebody, paths are refused: who asks reads the file and passes its text.
//
// Mistakes in it are Errors, all of them at once. A Profile is returned beside Errors when the text could at
// least be parsed, so that Build can report what it finds too; it must not be used for anything else.
func Load(ref string, src Sources, set ...string) (*Profile, error) {
	if strings.Contains(ref, "/") || strings.HasSuffix(ref, ".toml") {
		if slices.ContainsFunc(src, func(s Source) bool { return s.Owner != nil }) {
			return nil, fmt.Errorf("profile %s: %w: files are read by who names them; pass the text", quote(ref), orchestrator.ErrInvalid)
		}
		text, err := ReadFile(ref)
		if err != nil {
			return nil, err
		}
		return LoadText(src.Path(ref), text, src, set...)
	}
	text, i, err := src.find(ref, 0)
	if err != nil {
		return nil, err
	}
	if i < 0 {
		return nil, notFound(ref, src)
	}
	return load(document{stem: ref, source: i, file: src[i].file(ref)}, text, src, set)
}

func notFound(ref string, src Sources) error {
	names := src.names(0)
	hint := "; there are " + strings.Join(names, ", ")
	if near := Nearest(ref, names); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	} else if len(names) == 0 {
		hint = ""
	}
	return fmt.Errorf("profile %s: %w%s", quote(ref), orchestrator.ErrNotFound, hint)
}

// LoadText is Load for a profile whose text the caller has; file is its name in messages. The file of a source, named as
// Path names it, is what a lookup there finds: it may extend its namesake of a later source.
func LoadText(file string, text []byte, src Sources, set ...string) (*Profile, error) {
	stem := strings.TrimSuffix(filepath.Base(file), ".toml")
	source := slices.IndexFunc(src, func(s Source) bool { return s.Dir != "" && profileName(stem) && file == s.file(stem) })
	return load(document{stem: stem, source: source, file: file}, text, src, set)
}

func load(d document, text []byte, src Sources, set []string) (*Profile, error) {
	var errs Errors
	chain := []document{}
	partial := false
	names := []string{}
	for {
		names = append(names, d.stem)
		var found Errors
		d.tree, found = parse(d.file, text)
		errs = append(errs, found...)
		if d.tree == nil {
			return nil, errs.err()
		}
		check(d.tree, schema, nil, &errs)
		if n := d.tree.get("name"); n != nil && !n.bad && d.source >= 0 && n.str != d.stem {
			errs = append(errs, n.errorf("name is %s, but the file is called %s.toml and found by that name", quote(n.str), d.stem))
		}
		chain = append(chain, d)
		ext := d.tree.get("extends")
		if ext == nil || ext.bad {
			break
		}
		partial = true
		from := 0
		if d.source >= 0 && ext.str == d.stem {
			from = d.source + 1 // a profile may extend the one it hides
		}
		parent, i, err := src.find(ext.str, from)
		if err != nil {
			errs = append(errs, ext.errorf("extends %v", err))
			break
		}
		if i < 0 {
			e := ext.errorf("extends %s, which does not exist", quote(ext.str))
			e.Key, e.Suggestion = "extends", Nearest(ext.str, src.names(from))
			errs = append(errs, e)
			break
		}
		if slices.ContainsFunc(chain, func(c document) bool { return c.source == i && c.stem == ext.str }) {
			errs = append(errs, ext.errorf("profiles extend each other: %s", strings.Join(append(names, ext.str), " -> ")))
			break
		}
		if len(chain) == maxExtends {
			errs = append(errs, ext.errorf("more than %d profiles extend one another: %s", maxExtends, strings.Join(names, " -> ")))
			break
		}
		partial = false
		text = parent
		d = document{stem: ext.str, source: i, file: src[i].file(ext.str)}
	}

	// From the root of the chain to the profile itself, then the options.
	tree := newTable(chain[0].tree.src, 0, 0, byHeader)
	for _, c := range slices.Backward(chain) {
		tree = merge(tree, c.tree)
	}
	for _, s := range set {
		opt, found := parseSet(s)
		errs = append(errs, found...)
		if opt != nil {
			tree = merge(tree, opt)
		}
	}
	p := newProfile(tree, chain)
	p.partial = partial
	p.crossCheck(&errs)
	return p, errs.err()
}

// merge returns parent with child over it: tables are merged key by key, everything else is replaced.
func merge(parent, child *node) *node {
	if parent == nil || parent.kind != kindTable || child.kind != kindTable || child.bad {
		return child
	}
	out := *child
	out.keys, out.table = nil, make(map[string]*node, len(parent.table)+len(child.table))
	for _, k := range parent.keys {
		out.put(k, parent.table[k])
	}
	for _, k := range child.keys {
		out.put(k, merge(parent.table[k], child.table[k]))
	}
	return &out
}

// parseSet reads one KEY=VALUE option into a tree and checks it. The value is TOML where the key's type is not a
// string; a string may go without quotes.
func parseSet(opt string) (*node, Errors) {
	text, bad := precheck(setFile, []byte(opt))
	if bad != nil {
		return nil, Errors{bad}
	}
	src := &source{setFile, text[:len(text):len(text)]}
	fail := func(off, end int, format string, args ...any) (*node, Errors) {
		return nil, Errors{src.errorAt(off, end, format, args...)}
	}
	eq := strings.IndexByte(string(text), '=')
	if eq < 0 {
		return fail(0, len(text), `option is not of the form KEY=VALUE, such as "display.size=1280x720"`)
	}
	var p unstable.Parser
	head := append(append([]byte{}, text[:eq]...), "=0"...)
	p.Reset(head)
	if !p.NextExpression() || p.Expression().Kind != unstable.KeyValue {
		return fail(0, eq, "%s is no key such as display.size", quote(string(text[:eq])))
	}
	parts := keyParts(p.Expression().Key())
	if p.NextExpression() || p.Error() != nil || len(parts) > maxKeyParts {
		return fail(0, eq, "%s is no key such as display.size", quote(string(text[:eq])))
	}
	for _, k := range parts {
		if k.end > eq {
			return fail(0, eq, "%s is no key such as display.size", quote(string(text[:eq])))
		}
	}
	if len(parts) == 1 && slices.Contains([]string{"name", "extends"}, parts[0].name) {
		return fail(0, eq, "%s cannot be set; it belongs to the file", parts[0].name)
	}

	value := setValue(src, eq+1, leafType(parts))
	last := parts[len(parts)-1]
	value.keyOff, value.keyEnd = last.off, last.end
	var errs Errors
	root := newTable(src, 0, 0, byHeader)
	t := root
	for _, k := range parts[:len(parts)-1] {
		next := newTable(src, k.off, k.end, byDotted)
		t.put(k.name, next)
		t = next
	}
	t.put(last.name, value)
	check(root, schema, nil, &errs)
	return root, errs
}

// leafType is the type of the key's value by the schema; tString for a key that is not in it.
func leafType(parts []keyPart) typ {
	f := schema
	for _, k := range parts {
		switch {
		case f.typ == tMap:
			f = f.elem
		case f.field(k.name) != nil:
			f = f.field(k.name)
		default:
			return tString
		}
	}
	return f.typ
}

// setValue reads src.text[off:] as a TOML value; as a string if it is none, or if a string is wanted and it is no
// quoted one. What is wrong with it the schema's check says.
func setValue(src *source, off int, want typ) *node {
	raw := src.text[off:]
	plain := &node{kind: kindString, src: src, off: off, end: len(src.text), str: string(raw)}
	// The same offsets as in the option: the text in front becomes a key.
	doc := append([]byte(strings.Repeat("k", off-1)+"="), raw...)
	b := &builder{src: &source{setFile, doc[:len(doc):len(doc)]}, root: newTable(src, 0, 0, byHeader)}
	b.parser.Reset(b.src.text)
	if !b.parser.NextExpression() || b.parser.Expression().Kind != unstable.KeyValue {
		return plain
	}
	v, _ := b.value(b.parser.Expression().Value(), off, 1)
	if b.parser.NextExpression() || b.parser.Error() != nil || len(b.errs) > 0 {
		return plain
	}
	if want == tString && v.kind != kindString {
		return plain
	}
	relocate(v, src)
	return v
}

func relocate(n *node, src *source) {
	n.src = src
	for _, e := range n.list {
		relocate(e, src)
	}
	for _, k := range n.keys {
		relocate(n.table[k], src)
	}
}

// newProfile reads a checked tree. Bad nodes count as absent here; their errors are already known.
func newProfile(t *node, chain []document) *Profile {
	p := &Profile{tree: t, Name: chain[0].stem, Network: t.text("nat", "network", "mode")}
	if n := chain[0].tree.get("name"); n.good() {
		p.Name = n.str
	}
	for _, c := range chain {
		p.Files = append(p.Files, c.file)
	}
	p.Description = t.text("", "description")
	p.Session = t.text("", "session")

	p.Display = Display{Server: t.text("xvfb", "display", "server"), DPI: int(t.integer(96, "display", "dpi"))}
	p.Display.Width, p.Display.Height, _ = ParseSize(t.text("1280x800", "display", "size")) // checked
	p.Audio = Audio{Server: t.text("pipewire", "audio", "server")}
	p.SystemBus = SystemBus{Kind: t.text("stub", "system_bus", "kind")}
	p.Home = Home{Kind: t.text("volume", "home", "kind"), Name: t.text("", "home", "name"), Path: t.text("", "home", "path")}
	overlay(&p.Look, &p.Locale, t)
	p.Limits = Limits{CPUs: t.number("limits", "cpus"), PIDs: t.integer(0, "limits", "pids")}
	if n := t.get("limits", "memory"); n.good() {
		if p.Limits.Memory = n.int; n.kind == kindString {
			p.Limits.Memory, _ = ParseBytes(n.str) // checked
		}
	}
	p.Env = t.get("env").stringMap()
	p.Apps = apps(t)
	return p
}

// crossCheck finds what is wrong between keys.
func (p *Profile) crossCheck(errs *Errors) {
	t := p.tree
	add := func(key string, e *Error) {
		e.Key = key
		*errs = append(*errs, e)
	}
	if n := t.get("locale", "keyboard"); n.good() && len(n.list) > MaxLayouts {
		add("locale.keyboard", n.list[MaxLayouts].errorf("locale.keyboard has %d layouts; X knows at most %d at a time", len(n.list), MaxLayouts))
	}
	kind := t.get("home", "kind")
	if kind != nil && kind.bad {
		return
	}
	if n := t.get("home", "name"); n.good() && p.Home.Kind != "volume" {
		add("home.name", n.keyErrorf(`home.name is the name of a volume, but home.kind is %q`, p.Home.Kind))
	}
	n := t.get("home", "path")
	switch {
	case n.good() && p.Home.Kind != "bind":
		add("home.path", n.keyErrorf(`home.path is the directory of a bind, but home.kind is %q`, p.Home.Kind))
	case n == nil && p.Home.Kind == "bind":
		add("home.path", kind.errorf(`home.kind is "bind", but home.path is missing`))
	}
	if apps := t.get("apps"); apps.good() {
		for _, a := range apps.list {
			if a.get("image") == nil && !a.bad && !errs.full() {
				add("apps.image", a.errorf("apps entry has no image"))
			}
		}
	}
}

func (n *node) good() bool { return n != nil && !n.bad }

func (n *node) text(def string, path ...string) string {
	if v := n.get(path...); v.good() {
		return v.str
	}
	return def
}

func (n *node) integer(def int64, path ...string) int64 {
	if v := n.get(path...); v.good() {
		return v.int
	}
	return def
}

func (n *node) number(path ...string) float64 {
	if v := n.get(path...); v.good() {
		return v.num
	}
	return 0
}

// strings is a list of strings, or a single one as a list; nil if absent.
func (n *node) strings(path ...string) []string {
	v := n.get(path...)
	if !v.good() {
		return nil
	}
	if v.kind == kindString {
		return []string{v.str}
	}
	out := make([]string, len(v.list))
	for i, e := range v.list {
		out[i] = e.str
	}
	return out
}

func (n *node) stringMap() map[string]string {
	if !n.good() || n.kind != kindTable {
		return nil
	}
	out := map[string]string{}
	for _, k := range n.keys {
		if v := n.table[k]; v.good() {
			out[k] = v.str
		}
	}
	return out
}

func (n *node) duration(def time.Duration, path ...string) time.Duration {
	if v := n.get(path...); v.good() {
		d, _ := parseDuration(v.str) // checked
		return d
	}
	return def
}

// Entry is a profile as List finds it.
type Entry struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	File        string `json:"file"`
	Extends     string `json:"extends,omitempty"`
	Hides       bool   `json:"hides,omitempty"` // a later source has one of this name, too
	Error       string `json:"error,omitempty"` // the first line of what is wrong with it
}

// List returns the profiles of all sources by name. One with mistakes is listed with its Error.
func List(src Sources) ([]Entry, error) {
	var out []Entry
	at := map[string]int{}
	for _, s := range src {
		names, err := s.names()
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if i, ok := at[name]; ok {
				out[i].Hides = true
				continue
			}
			e := Entry{Name: name, File: s.file(name)}
			p, err := Load(name, src)
			if p != nil {
				e.Description = p.Description
				if len(p.Files) > 1 {
					e.Extends = strings.TrimSuffix(filepath.Base(p.Files[1]), ".toml")
				}
			}
			if err != nil {
				e.Error, _, _ = strings.Cut(err.Error(), "\n")
			}
			at[name] = len(out)
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
