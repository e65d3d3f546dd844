package profiles

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const (
	refBegin = "<!-- reference: generated from the schema by go test ./profiles -run Reference -update -->\n"
	refEnd   = "<!-- end of reference -->\n"
)

// TestReference keeps the reference in docs/profiles.md equal to the schema.
func TestReference(t *testing.T) {
	const file = "../docs/profiles.md"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(data), refBegin)
	got, tail, ok2 := strings.Cut(rest, refEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no markers %q and %q", file, refBegin, refEnd)
	}
	want := referenceText()
	if *update {
		if err := os.WriteFile(file, []byte(head+refBegin+want+refEnd+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s differs from the schema; run go test ./profiles -run Reference -update (-want +got):\n%s", file, diff)
	}
}

// TestDocExamples: every TOML block of the guide is a profile without mistakes.
func TestDocExamples(t *testing.T) {
	data, err := os.ReadFile("../docs/profiles.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(data), "```toml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("no examples")
	}
	src := append(testSources(), Source{Name: "docs", FS: docProfiles})
	for i, b := range blocks {
		text, _, _ := strings.Cut(b, "```")
		_, err := ResolveText(fmt.Sprintf("example-%d.toml", i+1), []byte(text), src, nil, func(*Profile) ([]Component, error) { return testInfra(), nil })
		if err != nil {
			t.Errorf("%v", err)
		}
	}
}

func referenceText() string {
	var b bytes.Buffer
	row := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	table := func(fields []*field) {
		row("key", "value", "default", "")
		row("---", "---", "---", "---")
		for _, f := range fields {
			value := f.typ.String()
			switch {
			case f.enum != nil:
				value = "`" + strings.Join(f.enum, "` `") + "`"
			case f.typ == tMap:
				value = "a table of strings"
			}
			def := f.def
			if strings.ContainsAny(def, "[0123456789") || slices.Contains(f.enum, def) || def == "false" {
				def = "`" + def + "`"
			}
			row("`"+f.name+"`", value, def, docOf(f))
		}
		b.WriteByte('\n')
	}
	heading := func(f *field, name string) {
		fmt.Fprintf(&b, "### `%s`\n\n%s\n\n", name, docOf(f))
	}
	b.WriteString("### At the top\n\n")
	table(cmpFilter(schema.fields, func(f *field) bool { return f.typ == tString }))
	for _, f := range schema.fields {
		switch {
		case f.typ == tTable:
			heading(f, "["+f.name+"]")
			table(f.fields)
		case f.typ == tTables:
			heading(f, "[["+f.name+"]]")
			table(f.fields)
		case f.typ == tMap && f.elem.typ == tTable:
			heading(f, "["+f.name+".NAME]")
			table(f.elem.fields)
		case f.typ == tMap:
			heading(f, "["+f.name+"]")
		}
	}
	b.WriteString("### Probes\n\n")
	row("probe", "holds when")
	row("---", "---")
	for _, k := range slices.Sorted(maps.Keys(probeKinds)) {
		p, name := probeKinds[k], k
		if p.arg != "" {
			name += ":" + p.arg
		}
		row("`"+name+"`", p.doc)
	}
	b.WriteString("\n### Roles\n\nAt most one component of a session has each of ")
	fmt.Fprintf(&b, "`%s`.\nAny number have ", strings.Join(exclusive, "`, `"))
	shared := cmpFilter(Roles, func(r string) bool { return !slices.Contains(exclusive, r) })
	fmt.Fprintf(&b, "`%s`.\n", strings.Join(shared, "`, `"))
	return b.String()
}

func docOf(f *field) string {
	if f.later {
		return f.doc + " **Not used yet.**"
	}
	return f.doc
}

// docProfiles stands for the built-in profiles the guide's examples extend.
var docProfiles = fstest.MapFS{"xfce.toml": {Data: []byte(`
[components.panel]
image = "xfce"
command = ["xfce4-panel"]
`)}}
