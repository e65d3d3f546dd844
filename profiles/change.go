package profiles

import (
	"fmt"
	"slices"
	"strings"

	"berth/orchestrator"
)

// LiveKeys are the keys that Change accepts.
func LiveKeys() []string {
	var out []string
	for _, t := range schema.fields {
		for _, f := range t.fields {
			if f.live {
				out = append(out, t.name+"."+f.name)
			}
		}
	}
	return out
}

// Change returns p with KEY=VALUE options, written as for Load, laid over its look and locale: what `berth set` does to the
// plan of a session that runs. Components are not changed. Mistakes are Errors, all of them at once; a key that a running
// session cannot change is one.
func Change(p *Plan, set ...string) (*Plan, error) {
	if len(set) == 0 {
		return nil, fmt.Errorf("%w: nothing to set; these can be: %s", orchestrator.ErrInvalid, strings.Join(LiveKeys(), ", "))
	}
	out, live := *p, LiveKeys()
	var errs Errors
	for _, opt := range set {
		t, bad := parseSet(opt)
		if t == nil {
			errs = append(errs, bad...)
			continue
		}
		path, at := leaf(t)
		if key := strings.Join(path, "."); !slices.Contains(live, key) && inSchema(path) {
			e := at.keyErrorf("%s cannot change while a session runs; these can: %s", key, strings.Join(live, ", "))
			e.Key = key
			errs = append(errs, e)
			continue
		}
		if errs = append(errs, bad...); len(bad) == 0 {
			overlay(&out.Look, &out.Locale, t)
		}
	}
	if err := errs.err(); err != nil {
		return nil, err
	}
	if n := len(out.Locale.Keyboard); n > MaxLayouts {
		return nil, fmt.Errorf("locale.keyboard has %d layouts: %w: X knows at most %d at a time", n, orchestrator.ErrInvalid, MaxLayouts)
	}
	return &out, nil
}

// Changed lists the live keys in which two plans differ.
func Changed(a, b *Plan) []string {
	value := func(p *Plan) []any {
		dark := "as it is"
		if p.Look.Dark != nil {
			dark = fmt.Sprint(*p.Look.Dark)
		}
		return []any{dark, p.Look.Font, p.Look.Cursor, p.Look.Icons, p.Look.Theme, p.Look.Scale, strings.Join(p.Locale.Keyboard, ",")}
	}
	var out []string
	va, vb := value(a), value(b)
	for i, k := range LiveKeys() {
		if va[i] != vb[i] {
			out = append(out, k)
		}
	}
	return out
}

// MaxLayouts is how many keyboard layouts can be switched between (XKB protocol, section 4: four groups).
const MaxLayouts = 4

// leaf is the one key of an option's tree.
func leaf(t *node) (path []string, at *node) {
	for t.kind == kindTable && len(t.keys) == 1 {
		path = append(path, t.keys[0])
		t = t.table[t.keys[0]]
	}
	return path, t
}

// inSchema tells whether there is a key of that path.
func inSchema(path []string) bool {
	f := schema
	for _, k := range path {
		switch {
		case f.typ == tMap:
			f = f.elem
		case f.field(k) == nil:
			return false
		default:
			f = f.field(k)
		}
	}
	return true
}

// overlay lays what t has of the tables look and locale over l and loc.
func overlay(l *Look, loc *Locale, t *node) {
	l.Font = t.text(l.Font, "look", "font")
	l.Cursor = t.text(l.Cursor, "look", "cursor")
	l.Icons = t.text(l.Icons, "look", "icons")
	l.Theme = t.text(l.Theme, "look", "theme")
	if n := t.get("look", "scale"); n.good() {
		l.Scale = n.num
	}
	if n := t.get("look", "dark"); n.good() {
		l.Dark = &n.bool
	}
	loc.Lang = t.text(loc.Lang, "locale", "lang")
	loc.Timezone = t.text(loc.Timezone, "locale", "timezone")
	loc.InputMethod = t.text(loc.InputMethod, "locale", "input_method")
	if n := t.get("locale", "keyboard"); n.good() {
		loc.Keyboard = t.strings("locale", "keyboard")
	}
}
