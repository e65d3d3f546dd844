package profiles

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Defaults of a component.
const (
	DefaultTimeout     = 30 * time.Second
	DefaultStopTimeout = 5 * time.Second
)

// defaultNeeds is what a profile's component needs unless it says otherwise: a program of a desktop is an X client with
// a bus connection that sometimes makes sounds and has a home directory.
var defaultNeeds = []string{WireX11, WireBus, WireAudio, WireHome}

// DefaultNeeds are the wires of a component that does not list its needs.
func DefaultNeeds() []string { return slices.Clone(defaultNeeds) }

// Resolve is Load followed by Build, with the mistakes that either finds reported together. infra returns the components
// of display, audio and the buses for a profile; it may return Errors beside them, of CheckImages or made by ErrorAt, which are
// reported with the rest.
func Resolve(ref string, src Sources, set []string, infra func(*Profile) ([]Component, error)) (*Plan, error) {
	p, err := Load(ref, src, set...)
	return resolve(p, err, infra)
}

// ResolveText is Resolve for a profile whose text the caller has.
func ResolveText(file string, text []byte, src Sources, set []string, infra func(*Profile) ([]Component, error)) (*Plan, error) {
	p, err := LoadText(file, text, src, set...)
	return resolve(p, err, infra)
}

func resolve(p *Profile, err error, infra func(*Profile) ([]Component, error)) (*Plan, error) {
	if p == nil {
		return nil, err
	}
	if p.partial {
		return nil, err
	}
	var all, more Errors
	errors.As(err, &all)
	comps, err := infra(p)
	if err != nil && !errors.As(err, &more) {
		return nil, errors.Join(all.err(), err)
	}
	all, more = append(all, more...), nil
	plan, err := Build(p, comps)
	if err != nil && !errors.As(err, &more) {
		return nil, errors.Join(all.err(), err)
	}
	if err := append(all, more...).err(); err != nil {
		return nil, err
	}
	return plan, nil
}

// Build turns a profile and the components that display, audio and the buses contribute into a plan. A [components.NAME] of
// the profile with the name of an infra component changes single keys of that one.
//
// Every component waits for the owners of the roles and the components in its after, and for the display and the bus if
// it needs the wires x11 and bus. A component of a profile that does not list its needs has all of x11, bus, audio and
// home; audio is a wire it has but does not wait for, since sound servers are connected to when something plays.
// A disabled component and a role without owner are not waited for. Infra components have exactly what they state;
// their After may hold roles too.
//
// Mistakes in the profile are Errors, all of them at once.
func Build(p *Profile, infra []Component) (*Plan, error) {
	b := &planner{profile: p, tables: p.tree.get("components"), disabled: map[string]bool{}}
	for _, c := range infra {
		c.Provides, c.After, c.Needs = slices.Clone(c.Provides), slices.Clone(c.After), slices.Clone(c.Needs)
		c.Env, c.Files = maps.Clone(c.Env), maps.Clone(c.Files)
		setDefaults(&c)
		b.add(c, b.tables.get(c.Name))
	}
	if b.tables.good() {
		for _, name := range b.tables.keys {
			if !slices.ContainsFunc(infra, func(c Component) bool { return c.Name == name }) {
				b.add(Component{Name: name, Needs: slices.Clone(defaultNeeds)}, b.tables.table[name])
			}
		}
	}
	b.checkRoles()
	b.checkSession()
	b.connect()
	var sorted []Component
	if !b.errs.full() {
		sorted = b.sort()
	}
	if err := b.errs.err(); err != nil {
		return nil, err
	}
	plan := &Plan{
		Profile: p.Name, Description: p.Description, Display: p.Display, Audio: p.Audio, SystemBus: p.SystemBus,
		Home: p.Home, Network: p.Network,
		Look: p.Look, Locale: p.Locale, Limits: p.Limits, Components: sorted, Apps: p.Apps, Session: p.Session,
		Unused: unused(p.tree, schema, ""),
	}
	for _, k := range slices.Sorted(maps.Keys(p.Env)) {
		plan.Env = append(plan.Env, k+"="+p.Env[k])
	}
	return plan, nil
}

// unused lists the keys of t that the schema f has for later. Tables of the user's own keys have none.
func unused(t *node, f *field, prefix string) []string {
	var out []string
	for _, c := range f.fields {
		n := t.get(c.name)
		switch {
		case n == nil:
		case c.typ == tTable && c.later:
			for _, k := range n.keys {
				out = append(out, prefix+c.name+"."+k)
			}
		case c.typ == tTable:
			out = append(out, unused(n, c, prefix+c.name+".")...)
		case c.later:
			out = append(out, prefix+c.name)
		}
	}
	return out
}

func setDefaults(c *Component) {
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.Stop = cmp.Or(c.Stop, DefaultStopTimeout)
	c.Restart = cmp.Or(c.Restart, RestartOnFailure)
}

type planner struct {
	profile  *Profile
	tables   *node // [components], may be nil
	comps    []Component
	disabled map[string]bool
	edges    [][]edge // of each component
	errs     Errors
}

// edge is one thing a component waits for.
type edge struct {
	to   int
	at   *node  // the entry of after that says so; nil for a need and in infra
	need string // the wire that implies it
}

// add puts one component into the plan, with the keys of t, which may be nil, over what it has.
func (b *planner) add(c Component, t *node) {
	if t != nil && (t.bad || t.kind != kindTable) {
		b.disabled[c.Name] = true // reported; nothing follows from it
		return
	}
	if t != nil {
		if n := t.get("disable"); n.good() && n.bool {
			b.disabled[c.Name] = true
			return
		}
		override(&c, t)
		for _, key := range []string{"image", "command"} {
			b.require(c, t, key)
		}
	}
	setDefaults(&c)
	b.comps = append(b.comps, c)
}

func (b *planner) require(c Component, t *node, key string) {
	n := t.get(key)
	path := fmt.Sprintf("components.%s.%s", c.Name, key)
	switch {
	case key == "image" && n == nil && c.Image == "", key == "command" && n == nil && len(c.Command) == 0:
		e := t.keyErrorf("component %q has no %s", c.Name, key)
		e.Key = path
		b.errs = append(b.errs, e)
	case key == "command" && n.good() && (len(n.list) == 0 || n.list[0].str == ""):
		e := n.errorf("component %q has an empty command", c.Name)
		e.Key = path
		b.errs = append(b.errs, e)
	}
}

// override changes c by the keys of a profile's table.
func override(c *Component, t *node) {
	list := func(key string, to *[]string) {
		if v := t.strings(key); v != nil {
			*to = v
		}
	}
	table := func(key string, to *map[string]string) {
		for k, v := range t.get(key).stringMap() {
			if *to == nil {
				*to = map[string]string{}
			}
			(*to)[k] = v
		}
	}
	c.Image = t.text(c.Image, "image")
	c.Cwd = t.text(c.Cwd, "cwd")
	c.Restart = t.text(c.Restart, "restart")
	c.StopSig = t.text(c.StopSig, "stop_signal")
	c.Timeout = t.duration(c.Timeout, "timeout")
	c.Stop = t.duration(c.Stop, "stop_timeout")
	list("command", &c.Command)
	list("provides", &c.Provides)
	list("after", &c.After)
	c.After = unique(c.After)
	list("needs", &c.Needs)
	list("devices", &c.Devices)
	list("caps", &c.Caps)
	table("env", &c.Env)
	table("files", &c.Files)
	if n := t.get("optional"); n.good() {
		c.Optional = n.bool
	}
	if n := t.get("ends_session"); n.good() {
		c.EndsSession = n.bool
	}
	if n := t.get("ready"); n.good() {
		c.Ready = nil
		for _, s := range t.strings("ready") {
			probe, _ := parseProbe(s) // checked
			c.Ready = append(c.Ready, probe)
		}
	}
	c.Provides, c.Needs = unique(c.Provides), unique(c.Needs)
}

func unique(list []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// element finds the entry of components.NAME.KEY that is word, or the nearest thing that has a place.
func (b *planner) element(name, key, word string) *node {
	t := b.tables.get(name)
	if n := t.get(key); n.good() {
		for _, e := range n.list {
			if e.str == word {
				return e
			}
		}
	}
	return t
}

func (b *planner) checkRoles() {
	owner := map[string]string{}
	for _, c := range b.comps {
		for _, r := range c.Provides {
			first, taken := owner[r]
			if !taken || !slices.Contains(exclusive, r) {
				owner[r] = c.Name
				continue
			}
			at, loser := b.element(c.Name, "provides", r), first
			if at == nil { // the profile's one came first
				at, loser = b.element(first, "provides", r), c.Name
			}
			if at == nil {
				b.errs = append(b.errs, &Error{File: b.profile.Files[0], Message: fmt.Sprintf("role %q has two owners, %q and %q", r, first, c.Name)})
				continue
			}
			e := at.errorf("role %q has two owners, %q and %q; leave one out with components.%s.disable = true", r, first, c.Name, loser)
			e.Key = "components." + c.Name + ".provides"
			b.errs = append(b.errs, e)
		}
	}
}

func (b *planner) checkSession() {
	n := b.profile.tree.get("session")
	if !n.good() || b.index(n.str) >= 0 {
		return
	}
	e := n.errorf("session names %s, which is no component of this profile", quote(n.str))
	if b.disabled[n.str] {
		e = n.errorf("session names %s, which is disabled", quote(n.str))
	}
	e.Key, e.Suggestion = "session", Nearest(n.str, b.names())
	b.errs = append(b.errs, e)
}

func (b *planner) index(name string) int {
	return slices.IndexFunc(b.comps, func(c Component) bool { return c.Name == name })
}

func (b *planner) names() []string {
	out := make([]string, len(b.comps))
	for i, c := range b.comps {
		out[i] = c.Name
	}
	return out
}

// connect resolves what every component waits for into edges.
func (b *planner) connect() {
	b.edges = make([][]edge, len(b.comps))
	for i, c := range b.comps {
		link := func(e edge) {
			if !slices.ContainsFunc(b.edges[i], func(x edge) bool { return x.to == e.to }) {
				b.edges[i] = append(b.edges[i], e)
			}
		}
		for _, word := range c.After {
			if b.errs.full() {
				return
			}
			var at *node
			if n := b.element(c.Name, "after", word); n != nil && n.kind == kindString {
				at = n
			}
			if j := b.index(word); j >= 0 {
				link(edge{to: j, at: at})
				continue
			}
			if b.disabled[word] || slices.Contains(Roles, word) {
				for j, o := range b.comps {
					// A component that shares the role it waits for waits for the others that have it.
					if j != i && slices.Contains(o.Provides, word) {
						link(edge{to: j, at: at})
					}
				}
				continue
			}
			e := &Error{File: b.profile.Files[0], Message: fmt.Sprintf("component %q: after %q: neither a component nor a role", c.Name, word)}
			if at != nil {
				e = at.errorf("after names %s, which is neither a component of this profile nor a role", quote(word))
			}
			e.Key, e.Suggestion = "components."+c.Name+".after", Nearest(word, append(b.names(), Roles...))
			b.errs = append(b.errs, e)
		}
		for _, wire := range c.Needs {
			for j, o := range b.comps {
				if role := waits[wire]; role != "" && j != i && slices.Contains(o.Provides, role) {
					link(edge{to: j, need: wire})
				}
			}
		}
	}
}

// sort orders the components so that each stands behind what it waits for and otherwise as given, and fills in After.
// Cycles are errors.
func (b *planner) sort() []Component {
	done := make([]bool, len(b.comps))
	var out []Component
	for len(out) < len(b.comps) {
		next := -1
		for i := range b.comps {
			if !done[i] && !slices.ContainsFunc(b.edges[i], func(e edge) bool { return !done[e.to] }) {
				next = i
				break
			}
		}
		if next < 0 {
			b.reportCycles(done)
			return nil
		}
		done[next] = true
		c := b.comps[next]
		c.After = nil
		for _, e := range b.edges[next] {
			c.After = append(c.After, b.comps[e.to].Name)
		}
		out = append(out, c)
	}
	return out
}

// reportCycles names, for every component that can never start, the shortest cycle through it, each cycle once.
func (b *planner) reportCycles(done []bool) {
	seen := make([]bool, len(b.comps))
	for start := range b.comps {
		if done[start] || seen[start] {
			continue
		}
		path := b.cycle(start)
		if path == nil {
			continue // only waits for a cycle
		}
		var names, why []string
		var at *node
		for k, from := range path {
			seen[from] = true
			names = append(names, b.comps[from].Name)
			to := path[(k+1)%len(path)]
			for _, e := range b.edges[from] {
				if e.to != to {
					continue
				}
				if e.need != "" {
					why = append(why, fmt.Sprintf("%q needs %s", b.comps[from].Name, e.need))
				}
				if at == nil {
					at = e.at
				}
			}
		}
		names = append(names, names[0])
		msg := "components wait for each other: " + strings.Join(names, " -> ")
		if len(why) > 0 {
			msg += " (" + strings.Join(why, ", ") + ")"
		}
		for _, i := range path {
			if at == nil {
				at = b.tables.get(b.comps[i].Name)
			}
		}
		e := &Error{File: b.profile.Files[0], Message: msg}
		if at != nil {
			e = at.errorf("%s", msg)
		}
		b.errs = append(b.errs, e)
	}
}

// cycle is the shortest path from start back to itself, without the final start; nil if there is none.
func (b *planner) cycle(start int) []int {
	from := map[int]int{}
	queue := []int{start}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		for _, e := range b.edges[i] {
			if e.to == start {
				path := []int{i}
				for i != start {
					i = from[i]
					path = append(path, i)
				}
				slices.Reverse(path)
				return path
			}
			if _, ok := from[e.to]; !ok {
				from[e.to] = i
				queue = append(queue, e.to)
			}
		}
	}
	return nil
}

// CheckImages reports every image of the profile that can only be a built-in's misspelt name: a word without tag or
// registry that is not in recipes.
func (p *Profile) CheckImages(recipes []string) error {
	var errs Errors
	look := func(n *node, key string) {
		if !n.good() || strings.ContainsAny(n.str, "/:@") || slices.Contains(recipes, n.str) {
			return
		}
		e := n.errorf("image %s is not built in; an image of a registry or of your own is written with its tag, %q", quote(n.str), n.str+":latest")
		e.Key, e.Suggestion = key, Nearest(n.str, recipes)
		errs = append(errs, e)
	}
	if t := p.tree.get("components"); t.good() {
		for _, name := range t.keys {
			look(t.get(name, "image"), "components."+name+".image")
		}
	}
	if apps := p.tree.get("apps"); apps.good() {
		for _, a := range apps.list {
			look(a.get("image"), "apps.image")
		}
	}
	return errs.err()
}

// ErrorAt makes an Error that stands at the value of the key path, or at the nearest table above it that the profile
// has: for what only the session can find out, such as an image that lacks a command.
func (p *Profile) ErrorAt(path []string, format string, args ...any) *Error {
	for i := len(path); i > 0; i-- {
		if n := p.tree.get(path[:i]...); n != nil {
			e := n.errorf(format, args...)
			e.Key = strings.Join(path, ".")
			return e
		}
	}
	return &Error{File: p.Files[0], Message: fmt.Sprintf(format, args...), Key: strings.Join(path, ".")}
}
