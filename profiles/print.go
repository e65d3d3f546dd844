package profiles

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Text writes the plan for people: what the session is, a table of its components in starting order, and what any of
// them may do beyond an ordinary program of the user.
func (p *Plan) Text(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s", p.Profile)
	if p.Description != "" {
		fmt.Fprintf(&b, ": %s", p.Description)
	}
	b.WriteString("\n\n")
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fact := func(name, text string) {
		if text != "" {
			fmt.Fprintf(tw, "%s\t%s\n", name, text)
		}
	}
	fact("display", fmt.Sprintf("%s, %dx%d, %d dpi", p.Display.Server, p.Display.Width, p.Display.Height, p.Display.DPI))
	fact("audio", p.Audio.Server)
	fact("system bus", p.SystemBus.Kind)
	fact("home", p.Home.text())
	fact("network", p.Network)
	fact("look", p.Look.text())
	fact("locale", p.Locale.text())
	fact("limits", p.Limits.text())
	fact("env", strings.Join(p.Env, " "))
	fact("session", p.Session)
	for _, a := range p.Apps {
		fact("apps", fmt.Sprintf("%s: %s, in %s", a.Image, strings.Join(a.Export, " "), a.Component))
	}
	tw.Flush()

	b.WriteByte('\n')
	fmt.Fprintln(tw, "COMPONENT\tIMAGE\tROLES\tAFTER\tREADY\tRESTART\tCOMMAND")
	for _, c := range p.Components {
		restart := c.Restart
		if c.OnDemand {
			restart = "on demand"
		}
		if c.Optional && !c.OnDemand {
			restart += ", optional"
		}
		if c.EndsSession {
			restart += ", ends session"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, clip(c.Image, 40), dash(c.Provides), dash(c.After), dash(probeTexts(c.Ready)), restart,
			clip(CommandText(c.Command), 72))
	}
	tw.Flush()

	b.WriteString("\nprivileges\n")
	none := true
	for _, c := range p.Components {
		if len(c.Devices)+len(c.Caps) > 0 {
			none = false
			fmt.Fprintf(tw, "  %s\t%s\n", c.Name, strings.Join(append(slices.Clone(c.Caps), c.Devices...), " "))
		}
	}
	tw.Flush()
	if none {
		b.WriteString("  none: no component has a capability or a device\n")
	}
	if len(p.Claims) > 0 {
		b.WriteString("\nnames on the bus that several images can start; the first one does\n")
		for _, c := range p.Claims {
			fmt.Fprintf(tw, "  %s\t%s\n", c.Name, strings.Join(c.Images, ", "))
		}
		tw.Flush()
	}
	if len(p.AutostartOff) > 0 {
		b.WriteString("\nautostart entries that are switched off, and what the session has instead\n")
		for _, a := range p.AutostartOff {
			fmt.Fprintf(tw, "  %s\t%s\t%s\n", clip(a.Image, 40), a.File, a.Owner)
		}
		tw.Flush()
	}
	_, err := w.Write(b.Bytes())
	return err
}

func dash(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

func probeTexts(probes []Probe) []string {
	out := make([]string, len(probes))
	for i, p := range probes {
		out[i] = p.String()
	}
	return out
}

// CommandText is a command as a shell would take it, on one line.
func CommandText(argv []string) string {
	out := make([]string, len(argv))
	for i, a := range argv {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,+@%${}", r)
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out[i] = strings.ReplaceAll(a, "\n", `\n`)
	}
	return strings.Join(out, " ")
}

func (h Home) text() string {
	switch {
	case h.Kind == "bind":
		return "bind of " + h.Path
	case h.Kind == "volume" && h.Name != "":
		return "volume " + h.Name
	case h.Kind == "volume":
		return "volume named like the session"
	}
	return h.Kind
}

func (l Look) text() string {
	var out []string
	if l.Dark != nil {
		out = append(out, map[bool]string{true: "dark", false: "light"}[*l.Dark])
	}
	for _, kv := range [][2]string{{"theme", l.Theme}, {"icons", l.Icons}, {"cursor", l.Cursor}, {"font", l.Font}} {
		if kv[1] != "" {
			out = append(out, kv[0]+" "+kv[1])
		}
	}
	if l.Scale != 0 {
		out = append(out, "scale "+strconv.FormatFloat(l.Scale, 'g', -1, 64))
	}
	return strings.Join(out, ", ")
}

func (l Locale) text() string {
	var out []string
	for _, s := range []string{l.Lang, l.Timezone} {
		if s != "" {
			out = append(out, s)
		}
	}
	if len(l.Keyboard) > 0 {
		out = append(out, "keyboard "+strings.Join(l.Keyboard, " "))
	}
	if l.InputMethod != "" {
		out = append(out, "input method "+l.InputMethod)
	}
	return strings.Join(out, ", ")
}

func (l Limits) text() string {
	var out []string
	if l.CPUs != 0 {
		out = append(out, strconv.FormatFloat(l.CPUs, 'g', -1, 64)+" cpus")
	}
	if l.Memory != 0 {
		out = append(out, formatBytes(l.Memory)+" memory")
	}
	if l.PIDs != 0 {
		out = append(out, strconv.FormatInt(l.PIDs, 10)+" pids")
	}
	return strings.Join(out, ", ")
}

// TOML writes the profile as one file, with all it extends and every --set in it.
func (p *Profile) TOML(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "name = %s\n", tomlString(p.Name))
	tree := *p.tree
	tree.keys = slices.DeleteFunc(slices.Clone(tree.keys), func(k string) bool { return k == "name" || k == "extends" })
	writeTable(&b, &tree, nil)
	_, err := w.Write(b.Bytes())
	return err
}

func writeTable(b *bytes.Buffer, t *node, path []string) {
	var tables []string
	for _, k := range t.keys {
		v := t.table[k]
		if v.kind == kindTable || isTables(v) {
			tables = append(tables, k)
			continue
		}
		fmt.Fprintf(b, "%s = %s\n", tomlKey(k), tomlValue(v))
	}
	for _, k := range tables {
		v := t.table[k]
		sub := append(slices.Clip(path), tomlKey(k))
		if v.kind == kindTable {
			// A table that only holds tables needs no header of its own.
			if len(v.keys) == 0 || slices.ContainsFunc(v.keys, func(k string) bool { return v.table[k].kind != kindTable }) {
				fmt.Fprintf(b, "\n[%s]\n", strings.Join(sub, "."))
			}
			writeTable(b, v, sub)
			continue
		}
		for _, e := range v.list {
			fmt.Fprintf(b, "\n[[%s]]\n", strings.Join(sub, "."))
			writeTable(b, e, sub)
		}
	}
}

// isTables tells whether a list can be written as [[NAME]].
func isTables(n *node) bool {
	return n.kind == kindArray && len(n.list) > 0 && !slices.ContainsFunc(n.list, func(e *node) bool { return e.kind != kindTable })
}

// TOMLString writes s as a string of TOML.
func TOMLString(s string) string { return tomlString(s) }

// TOMLStrings writes list as a TOML array, on one line.
func TOMLStrings(list []string) string {
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = tomlString(s)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// TOMLKey writes k as a key of TOML.
func TOMLKey(k string) string { return tomlKey(k) }

func tomlKey(k string) string {
	if k != "" && strings.Trim(k, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == "" {
		return k
	}
	return tomlString(k)
}

func tomlValue(n *node) string {
	switch n.kind {
	case kindString:
		return tomlString(n.str)
	case kindBool:
		return strconv.FormatBool(n.bool)
	case kindInt:
		return strconv.FormatInt(n.int, 10)
	case kindFloat:
		s := strconv.FormatFloat(n.num, 'g', -1, 64)
		if !strings.ContainsAny(s, ".eIN") {
			s += ".0"
		}
		return s
	case kindArray:
		parts := make([]string, len(n.list))
		for i, e := range n.list {
			parts[i] = tomlValue(e)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case kindTable:
		parts := make([]string, len(n.keys))
		for i, k := range n.keys {
			parts[i] = tomlKey(k) + " = " + tomlValue(n.table[k])
		}
		return "{ " + strings.Join(parts, ", ") + " }"
	}
	return n.str
}

// tomlString writes a basic string (TOML 1.0, "String").
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// reduced returns for every component, by name, what it waits for without what follows from the rest: if the panel waits
// for the window manager and that for the display, the panel's wait for the display goes without saying.
func (p *Plan) reduced() map[string][]string {
	above := map[string]map[string]bool{} // everything before it, at any distance
	out := map[string][]string{}
	for _, c := range p.Components { // sorted: what it waits for is done
		all := map[string]bool{}
		for _, a := range c.After {
			all[a] = true
			maps.Copy(all, above[a])
		}
		above[c.Name] = all
		for _, a := range c.After {
			if !slices.ContainsFunc(c.After, func(b string) bool { return b != a && above[b][a] }) {
				out[c.Name] = append(out[c.Name], a)
			}
		}
	}
	return out
}

// Graph writes the plan as a tree: each component stands below the last of those it waits for, with the others named
// behind it. Waits that follow from others are left out.
func (p *Plan) Graph(w io.Writer) error {
	after := p.reduced()
	depth, order := map[string]int{}, map[string]int{}
	children := map[string][]Component{}
	parent := map[string]string{}
	for i, c := range p.Components {
		order[c.Name] = i
		up := ""
		for _, a := range after[c.Name] {
			depth[c.Name] = max(depth[c.Name], depth[a]+1)
			if up == "" || depth[a] > depth[up] || depth[a] == depth[up] && order[a] > order[up] {
				up = a
			}
		}
		parent[c.Name] = up
		children[up] = append(children[up], c)
	}
	type line struct{ tree, notes string }
	var lines []line
	width := 0
	var walk func(name, indent string)
	walk = func(name, indent string) {
		for i, c := range children[name] {
			branch, below := "|-- ", "|   "
			if i == len(children[name])-1 {
				branch, below = "`-- ", "    "
			}
			if name == "" {
				branch, below = "", ""
			}
			var notes []string
			for _, a := range after[c.Name] {
				if a != parent[c.Name] {
					notes = append(notes, a)
				}
			}
			text := c.Image
			if len(c.Ready) > 0 {
				text += "  ready: " + strings.Join(probeTexts(c.Ready), ", ")
			}
			if len(notes) > 0 {
				text += "  also after: " + strings.Join(notes, ", ")
			}
			if c.Name == p.Session {
				text += "  (session)"
			}
			if c.Optional {
				text += "  (optional)"
			}
			lines = append(lines, line{indent + branch + c.Name, text})
			width = max(width, len(indent+branch+c.Name))
			walk(c.Name, indent+below)
		}
	}
	walk("", "")
	var b bytes.Buffer
	for _, l := range lines {
		fmt.Fprintf(&b, "%-*s  %s\n", width, l.tree, l.notes)
	}
	_, err := w.Write(b.Bytes())
	return err
}
