// Package mix makes a profile of parts of other profiles: one desktop's shell with another's panel, window manager or
// applications.
//
// What can be taken from a profile is what it says itself: its components, by their roles. A component that is more than
// what is asked for, such as GNOME Shell, which is panel and window manager in one, cannot be taken apart. What the new
// part does in place of the old one, the old one is told to leave: every exclusive role ends up with one owner.
package mix

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/orchestrator"
	"berth/profiles"
)

// Source is a profile that parts are taken from.
type Source struct {
	Name        string
	Description string
	Plan        profiles.Plan
}

// Words that stand in place of a profile's name.
const (
	Own  = "own"  // the base's own part
	None = "none" // no such part
)

// Answers say what to mix. "" is the default of each but Base: Own, no applications, the base's size, a name made of
// the others.
type Answers struct {
	Base          string
	Panel         string // a profile of Panels, Own or None
	WindowManager string // a profile of WindowManagers, or Own
	Applications  []string
	Size          string // 1920x1080
	Name          string
}

const (
	panel   = "panel"
	manager = "window-manager"
	desktop = "desktop"
)

// Bases are the profiles that a mix can build on: those with a window manager.
func Bases(sources []Source) []string {
	var out []string
	for _, s := range sources {
		if s.Plan.Owner(manager) != "" {
			out = append(out, s.Name)
		}
	}
	return out
}

// Panels are the answers for whose panel base gets, Own first.
func Panels(sources []Source, base string) []string {
	out := append([]string{Own}, donors(sources, base, panel)...)
	b, _ := find(sources, base)
	if len(replaced(b.Plan, panel)) > 0 {
		out = append(out, None)
	}
	return out
}

// WindowManagers are the answers for whose window manager base gets, Own first. A base whose window manager is its panel,
// too, has no other.
func WindowManagers(sources []Source, base string) []string {
	b, _ := find(sources, base)
	if len(replaced(b.Plan, manager)) == 0 {
		return []string{Own}
	}
	return append([]string{Own}, donors(sources, base, manager)...)
}

// Applications are the profiles whose applications base can get: those of images that base does not have.
func Applications(sources []Source, base string) []string {
	b, _ := find(sources, base)
	var out []string
	for _, s := range sources {
		if img := image(s.Plan); img != "" && img != image(b.Plan) {
			out = append(out, s.Name)
		}
	}
	return out
}

// donors are the profiles, other than base, with a component that can be taken for role. Of several that have the same one
// the first stands for all.
func donors(sources []Source, base, role string) []string {
	var out []string
	b, _ := find(sources, base)
	seen := map[string]bool{}
	if c, ok := part(b.Plan, role); ok {
		seen[key(c)] = true
	}
	for _, s := range sources {
		c, ok := part(s.Plan, role)
		if s.Name != base && ok && !seen[key(c)] {
			seen[key(c)] = true
			out = append(out, s.Name)
		}
	}
	return out
}

func key(c profiles.Component) string { return c.Image + "\x00" + strings.Join(c.Command, "\x00") }

func find(sources []Source, name string) (Source, bool) {
	i := slices.IndexFunc(sources, func(s Source) bool { return s.Name == name })
	if i < 0 {
		return Source{}, false
	}
	return sources[i], true
}

// part is the component of a plan that can be taken for role: one that is not both panel and window manager.
func part(p profiles.Plan, role string) (profiles.Component, bool) {
	for _, c := range p.Components {
		if slices.Contains(c.Provides, role) && separable(c) {
			return c, true
		}
	}
	return profiles.Component{}, false
}

func separable(c profiles.Component) bool {
	if !slices.Contains(c.Provides, manager) {
		return true
	}
	return !slices.Contains(c.Provides, panel) && !slices.Contains(c.Provides, desktop)
}

// replaced are the components of a plan that go when another takes role: all that have it and can be done without. That
// whose end is the session's end stays: without it nobody can log out.
func replaced(p profiles.Plan, role string) []profiles.Component {
	var out []profiles.Component
	for _, c := range p.Components {
		if slices.Contains(c.Provides, role) && separable(c) && !(c.Name == p.Session && role != manager) {
			out = append(out, c)
		}
	}
	return out
}

// image is the image of the desktop in a plan: that of what one sees most of.
func image(p profiles.Plan) string {
	for _, role := range []string{desktop, panel, manager, "files", "terminal", "app"} {
		if c, ok := p.Component(p.Owner(role)); ok {
			return c.Image
		}
	}
	return ""
}

// table is one table of the profile to be written.
type table struct {
	name string // "" for the top
	rows [][2]string
	list bool // [[name]]
}

// maxName is the longest name of a profile or a component.
const maxName = 32

// maxLines is the most lines a mix shall have.
const maxLines = 10

// Write makes the profile. An answer that is none is orchestrator.ErrInvalid.
func Write(sources []Source, a Answers) (string, error) {
	base, ok := find(sources, a.Base)
	if !ok || !slices.Contains(Bases(sources), a.Base) {
		return "", bad("base desktop", a.Base, Bases(sources))
	}
	for _, one := range []struct {
		what   string
		answer *string
		of     []string
	}{{"panel", &a.Panel, Panels(sources, a.Base)}, {"window manager", &a.WindowManager, WindowManagers(sources, a.Base)}} {
		if *one.answer == "" || *one.answer == a.Base {
			*one.answer = Own
		}
		if !slices.Contains(one.of, *one.answer) {
			return "", bad(one.what, *one.answer, one.of)
		}
	}
	for _, app := range a.Applications {
		if of := Applications(sources, a.Base); !slices.Contains(of, app) {
			return "", bad("applications", app, of)
		}
	}
	if a.Name == "" {
		a.Name = DefaultName(a)
	}
	top := table{rows: [][2]string{{"name", str(a.Name)}, {"description", str(describe(base, a))}, {"extends", str(a.Base)}}}
	m := &mixer{base: base, taken: map[string]string{}}
	if a.Size != "" {
		w, h, err := profiles.ParseSize(a.Size)
		if err != nil {
			return "", fmt.Errorf("size: %w: %w", orchestrator.ErrInvalid, err)
		}
		if w != base.Plan.Display.Width || h != base.Plan.Display.Height {
			m.tables = append(m.tables, table{name: "display", rows: [][2]string{{"size", str(fmt.Sprintf("%dx%d", w, h))}}})
		}
	}
	if a.WindowManager != Own {
		from, _ := find(sources, a.WindowManager)
		m.take(from, manager)
	}
	switch a.Panel {
	case Own:
	case None:
		for _, c := range replaced(base.Plan, panel) {
			m.disable(c.Name)
		}
	default:
		from, _ := find(sources, a.Panel)
		m.take(from, panel)
	}
	var images []string
	for _, app := range a.Applications {
		from, _ := find(sources, app)
		if img := image(from.Plan); !slices.Contains(images, img) {
			images = append(images, img)
			m.tables = append(m.tables, table{name: "apps", list: true, rows: [][2]string{{"image", str(img)}}})
		}
	}
	if m.session != "" {
		top.rows = append(top.rows, [2]string{"session", str(m.session)})
	}
	return render(top, m.tables), nil
}

func bad(what, answer string, of []string) error {
	hint := ""
	if near := profiles.Nearest(answer, of); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	return fmt.Errorf("%s: %w answer %q; want one of %s%s", what, orchestrator.ErrInvalid, answer, strings.Join(of, ", "), hint)
}

// DefaultName is a name made of what is mixed.
func DefaultName(a Answers) string {
	parts := []string{a.Base}
	for _, p := range append([]string{a.WindowManager, a.Panel}, a.Applications...) {
		if p != "" && p != Own && p != None && !slices.Contains(parts, p) {
			parts = append(parts, p)
		}
	}
	if len(parts) == 1 {
		parts = []string{"my", a.Base}
	}
	name := strings.Join(parts, "-")
	return strings.TrimRight(name[:min(len(name), maxName)], "-")
}

// describe says what is mixed, in words.
func describe(base Source, a Answers) string {
	var with []string
	if a.WindowManager != Own {
		with = append(with, "the window manager of "+a.WindowManager)
	}
	switch a.Panel {
	case Own:
	case None:
		with = append(with, "no panel")
	default:
		with = append(with, "the panel of "+a.Panel)
	}
	if len(a.Applications) > 0 {
		with = append(with, "applications of "+strings.Join(a.Applications, ", "))
	}
	if len(with) == 0 {
		return base.Name + ", changed"
	}
	return base.Name + " with " + strings.Join(with, ", ")
}

type mixer struct {
	base    Source
	tables  []table
	given   []string          // roles that a further component was taken for
	session string            // the component whose end is the log-out, if it is another than the base's
	taken   map[string]string // components of the base that are gone or replaced, and by what
}

func (m *mixer) disable(name string) {
	if _, done := m.taken[name]; !done {
		m.taken[name] = ""
		m.tables = append(m.tables, table{name: "components." + name, rows: [][2]string{{"disable", "true"}}})
	}
}

// take puts the component of from that has role into the base.
func (m *mixer) take(from Source, role string) {
	c, _ := part(from.Plan, role)
	c.Provides = slices.Clone(c.Provides)
	out := replaced(m.base.Plan, role)
	// The other exclusive roles it brings: their owners go, too, unless more would be lost with them.
	for _, r := range slices.Clone(c.Provides) {
		owner, ok := m.base.Plan.Component(m.base.Plan.Owner(r))
		if !ok || !profiles.Exclusive(r) || slices.ContainsFunc(out, func(o profiles.Component) bool { return o.Name == owner.Name }) {
			continue
		}
		lost := slices.ContainsFunc(owner.Provides, func(x string) bool { return !slices.Contains(c.Provides, x) })
		if lost || owner.Name == m.base.Plan.Session || m.taken[owner.Name] != "" {
			c.Provides = slices.DeleteFunc(c.Provides, func(x string) bool { return x == r })
			continue
		}
		out = append(out, owner)
	}
	// In place of one that has nothing that would be merged into it; else beside, under a name of its own.
	at := slices.IndexFunc(out, func(o profiles.Component) bool {
		return (o.Name == c.Name || o.Name == m.base.Plan.Session) && len(o.Files) == 0 && len(o.Env) == 0
	})
	old, name := profiles.Component{}, from.Name+"-"+c.Name
	if at >= 0 {
		old, name = out[at], out[at].Name
		m.taken[name] = from.Name
	}
	name = strings.TrimRight(name[:min(len(name), maxName)], "-")
	if _, taken := m.base.Plan.Component(name); taken && at < 0 {
		name = strings.TrimRight(name[:min(len(name), maxName-2)], "-") + "-2"
	}
	if s := m.base.Plan.Session; s != name && slices.ContainsFunc(out, func(o profiles.Component) bool { return o.Name == s }) {
		m.session = name
	}
	m.tables = append(m.tables, table{name: "components." + name, rows: rows(m.component(from, c), old)})
	for _, o := range out {
		if o.Name != name {
			m.disable(o.Name)
		}
	}
	// What went with the old ones and the new one does not do, another component of the same desktop does.
	for _, o := range out {
		for _, r := range o.Provides {
			if slices.Contains(c.Provides, r) || slices.Contains(m.given, r) || !profiles.Exclusive(r) {
				continue
			}
			if _, ok := part(from.Plan, r); ok {
				m.given = append(m.given, r)
				m.take(from, r)
			}
		}
	}
}

// component is c as it has to be in the base: it waits for roles instead of components that the base does not have, and has
// what the profile that it comes from says for all its components.
func (m *mixer) component(from Source, c profiles.Component) profiles.Component {
	var after []string
	for _, name := range c.After {
		o, _ := from.Plan.Component(name)
		for _, r := range o.Provides {
			if r == "display" || r == "bus" { // what it needs it waits for without saying so
				break
			}
			if profiles.Exclusive(r) || r == panel {
				after = append(after, r)
				break
			}
		}
	}
	c.After = after
	env := map[string]string{}
	for _, kv := range from.Plan.Env {
		if !slices.Contains(m.base.Plan.Env, kv) {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
	}
	maps.Copy(env, c.Env)
	c.Env = env
	return c
}

// rows are the keys of c that differ from old, or from the defaults if old is the zero component.
func rows(c, old profiles.Component) [][2]string {
	fresh := old.Name == ""
	if fresh {
		old = profiles.Component{Needs: profiles.DefaultNeeds(), Timeout: profiles.DefaultTimeout, Restart: profiles.RestartOnFailure, Stop: profiles.DefaultStopTimeout}
	}
	var out [][2]string
	add := func(key string, differs bool, value string) {
		if differs {
			out = append(out, [2]string{key, value})
		}
	}
	list := func(key string, a, b []string) {
		value := profiles.TOMLStrings(a)
		add(key, !slices.Equal(a, b), value)
	}
	add("image", c.Image != old.Image, str(c.Image))
	list("command", c.Command, old.Command)
	list("provides", c.Provides, old.Provides)
	list("after", c.After, old.After)
	list("needs", c.Needs, old.Needs)
	ready := profiles.TOMLStrings(probes(c.Ready))
	if len(c.Ready) == 1 {
		ready = str(c.Ready[0].String())
	}
	add("ready", !slices.Equal(c.Ready, old.Ready), ready)
	duration := func(key string, a, b time.Duration) { add(key, a != b, str(short(a))) }
	duration("timeout", c.Timeout, old.Timeout)
	add("restart", c.Restart != old.Restart, str(c.Restart))
	add("optional", c.Optional != old.Optional, fmt.Sprint(c.Optional))
	add("cwd", c.Cwd != old.Cwd, str(c.Cwd))
	add("stop_signal", c.StopSig != old.StopSig, str(c.StopSig))
	duration("stop_timeout", c.Stop, old.Stop)
	list("devices", c.Devices, old.Devices)
	list("caps", c.Caps, old.Caps)
	add("env", len(c.Env) > 0, pairs(c.Env))
	add("files", len(c.Files) > 0, pairs(c.Files))
	return out
}

// short is a duration as people write it: 1m, not 1m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func probes(list []profiles.Probe) []string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return out
}

func str(s string) string { return profiles.TOMLString(s) }

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, profiles.TOMLKey(k)+" = "+str(m[k]))
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

// render writes tables as people do, or, where that would take too many lines, each on one.
func render(top table, tables []table) string {
	lines := len(top.rows)
	for _, t := range tables {
		lines += 1 + len(t.rows)
	}
	var b strings.Builder
	column(&b, top.rows)
	if lines <= maxLines {
		for _, t := range tables {
			name := "[" + t.name + "]"
			if t.list {
				name = "[" + name + "]"
			}
			fmt.Fprintf(&b, "\n%s\n", name)
			column(&b, t.rows)
		}
		return b.String()
	}
	b.WriteByte('\n')
	var lists []string
	inline := func(rows [][2]string) string {
		parts := make([]string, len(rows))
		for i, r := range rows {
			parts[i] = r[0] + " = " + r[1]
		}
		return "{ " + strings.Join(parts, ", ") + " }"
	}
	for _, t := range tables {
		switch {
		case t.list:
			lists = append(lists, inline(t.rows))
		case len(t.rows) == 1:
			fmt.Fprintf(&b, "%s.%s = %s\n", t.name, t.rows[0][0], t.rows[0][1])
		default:
			fmt.Fprintf(&b, "%s = %s\n", t.name, inline(t.rows))
		}
	}
	if len(lists) > 0 {
		fmt.Fprintf(&b, "apps = [%s]\n", strings.Join(lists, ", "))
	}
	return b.String()
}

// column writes rows with their values below one another.
func column(b *strings.Builder, rows [][2]string) {
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	for _, r := range rows {
		fmt.Fprintf(b, "%-*s = %s\n", width, r[0], r[1])
	}
}
