package desktopentry

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
)

const sample = `# A comment before
#   all groups

[Desktop Entry]
Type=Application
Name=Foo Viewer
Name[de]=Foo-Betrachter
Name[de_AT]=Foo-Schauer
Name[sr@latin]=Fu
Comment= The best viewer\sfor Foo\nthere is
Exec=fooview "two words" %F
MimeType=image/x-foo;image/x-\;bar;;
Terminal=false
NoDisplay = true

# of the second
[Desktop Action Gallery]
Exec=fooview --gallery

`

func TestParse(t *testing.T) {
	e, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	m := e.Main()
	for key, want := range map[string]string{
		"Name": "Foo Viewer", "Name[de]": "Foo-Betrachter", "Comment": "The best viewer for Foo\nthere is", "Missing": "",
		"NoDisplay": "true", "Exec": `fooview "two words" %F`,
	} {
		if got := m.Get(key); got != want {
			t.Errorf("Get(%q) = %q; want %q", key, got, want)
		}
	}
	if diff := cmp.Diff([]string{"image/x-foo", "image/x-;bar"}, m.List("MimeType")); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if m.Bool("Terminal") || !m.Bool("NoDisplay") || m.Bool("Missing") {
		t.Error("Bool")
	}
	for locale, want := range map[string]string{
		"de_DE.UTF-8": "Foo-Betrachter", "de_AT.UTF-8@euro": "Foo-Schauer", "sr_RS@latin": "Fu", "sr_RS": "Foo Viewer", "C": "Foo Viewer", "": "Foo Viewer",
	} {
		if got := m.Localized("Name", locale); got != want {
			t.Errorf("Localized(%q) = %q; want %q", locale, got, want)
		}
	}
	if got := e.Group("Desktop Action Gallery").Get("Exec"); got != "fooview --gallery" {
		t.Errorf("action's Exec = %q", got)
	}
	if e.Group("none").Get("Name") != "" || e.Group("none").List("X") != nil || e.Group("none").Keys() != nil {
		t.Error("a group that is not there has keys")
	}
	if want := strings.Replace(strings.Replace(sample, "Comment= ", "Comment=", 1), "NoDisplay = ", "NoDisplay=", 1); string(e.Bytes()) != want {
		t.Errorf("Write (-want +got):\n%s", cmp.Diff(want, string(e.Bytes())))
	}
}

func TestVariants(t *testing.T) {
	for locale, want := range map[string][]string{
		"de_DE.UTF-8@euro": {"de_DE@euro", "de_DE", "de@euro", "de"}, "pt_BR": {"pt_BR", "pt"}, "sr@latin": {"sr@latin", "sr"}, "C.UTF-8": nil, "POSIX": nil,
	} {
		if diff := cmp.Diff(want, Variants(locale)); diff != "" {
			t.Errorf("Variants(%q) (-want +got):\n%s", locale, diff)
		}
	}
}

func TestRewrite(t *testing.T) {
	e, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	m := e.Main()
	m.Delete("Name")
	m.Delete("Name") // again
	for _, kv := range [][2]string{{"Exec", `berth-launch "a\b" %F`}, {"Name", " x"}, {"X-Berth-Image", "gnome"}} {
		if err := m.Set(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SetList("MimeType", []string{"a/b", "c;d"}); err != nil {
		t.Fatal(err)
	}
	e.DeleteGroup("Desktop Action Gallery")
	e.AddGroup("New").put("Key", "1")
	const want = `# A comment before
#   all groups

[Desktop Entry]
Type=Application
Comment=The best viewer\sfor Foo\nthere is
Exec=berth-launch "a\\b" %F
MimeType=a/b;c\;d;
Terminal=false
NoDisplay=true
Name=\sx
X-Berth-Image=gnome

# of the second
[New]
Key=1
`
	if diff := cmp.Diff(want, string(e.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, kv := range [][2]string{{"Exec", "a\x00"}, {"Exec", "a\x1b[2J"}, {"Exec", "\xff"}, {"a b", ""}, {"", ""}, {"Name[", ""}} {
		if err := m.Set(kv[0], kv[1]); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("Set(%q, %q) = %v; want ErrInvalid", kv[0], kv[1], err)
		}
		if err := m.SetList(kv[0], []string{kv[1]}); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("SetList(%q, %q) = %v; want ErrInvalid", kv[0], kv[1], err)
		}
	}
}

// TestTolerance: what GLib reads in spite of the specification is read alike.
func TestTolerance(t *testing.T) {
	e, err := Parse([]byte("[Desktop Entry]\r\nName=a\r\nName=b\r\nExec=sh -c \"echo \\\"x\\\"\"\r\n[Other]\r\n[Desktop Entry]\r\nIcon=c"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(e.Bytes()), "[Desktop Entry]\nName=b\nExec=sh -c \"echo \\\"x\\\"\"\nIcon=c\n[Other]\n"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
	argv, err := SplitExec(e.Main().Get("Exec"))
	if diff := cmp.Diff([]string{"sh", "-c", `echo "x"`}, argv); err != nil || diff != "" {
		t.Errorf("SplitExec: %v (-want +got):\n%s", err, diff)
	}
	if e, err := Parse([]byte("[D-BUS Service]\nName=org.a\n")); err != nil || e.Main() != nil || e.Group("D-BUS Service").Get("Name") != "org.a" {
		t.Errorf("D-Bus service: %v, %v", e, err)
	}
	if e, err := Parse(nil); err != nil || len(e.Groups()) != 0 || len(e.Bytes()) != 0 {
		t.Errorf("empty file: %v, %v", e, err)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"Name=x\n":                          `line 1: key "Name" before the first group`,
		"[Desktop Entry\n":                  `line 1: group "[Desktop Entry": want [NAME] without brackets in the name`,
		"[a]b]\n":                           `line 1: group "[a]b]": want [NAME] without brackets in the name`,
		"[]\n":                              `line 1: group "[]": want [NAME] without brackets in the name`,
		"[Desktop Entry]\n\nNonsense\n":     `line 3: "Nonsense" is neither a group, a key nor a comment`,
		"[Desktop Entry]\nA B=1\n":          `line 2: key "A B": want letters, digits and dashes, and perhaps a locale in brackets`,
		"[Desktop Entry]\nName[]=1\n":       `line 2: key "Name[]": want letters, digits and dashes, and perhaps a locale in brackets`,
		"[Desktop Entry]\n=1\n":             `line 2: key "": want letters, digits and dashes, and perhaps a locale in brackets`,
		"[Desktop Entry]\nName=a\x00\n":     `line 2: control character U+0000`,
		"[Desktop Entry]\nExec=a\x1b[31m\n": `line 2: control character U+001B`,
		"[Desktop Entry]\nExec=a\u0085b\n":  `line 2: control character U+0085`,
		"[Desktop Entry]\nExec=a\rb\n":      `line 2: control character U+000D`,
		"[Desktop Entry]\n# \xff\n":         `line 2: not UTF-8`,
		"[Desktop Entry]\nExec=a\\\n":       `line 2: key "Exec": ends in a backslash`,
		"[Desktop Entry]\nExec=a\\x\n":      `line 2: key "Exec": unknown escape \x`,
		strings.Repeat("#", MaxSize+1):      `line 1: file has 1048577 bytes; at most 1048576 are read`,
	} {
		e, err := Parse([]byte(text))
		if err == nil || err.Error() != want || !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("Parse(%.40q) = %v, %v; want %q", text, e, err, want)
		}
	}
}

func TestSplitExec(t *testing.T) {
	for text, want := range map[string][]string{
		`fooview %F`:                    {"fooview", "%F"},
		`  a   b	c  `:                   {"a", "b", "c"},
		`"two words" ""`:                {"two words", ""},
		`sh -c "echo \"\$HOME\" \\ \x"`: {"sh", "-c", `echo "$HOME" \ \x`},
		`sh -c 'a "b" \c'`:              {"sh", "-c", `a "b" \c`},
		`a\ b c`:                        {"a b", "c"},
		`pre"fix"ed --x="1 2"`:          {"prefixed", "--x=1 2"},
		`env A=b c ~ $x ; * | & <`:      {"env", "A=b", "c", "~", "$x", ";", "*", "|", "&", "<"},
		`程序 "参 数"`:                      {"程序", "参 数"},
	} {
		got, err := SplitExec(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("SplitExec(%q): %v (-want +got):\n%s", text, err, diff)
		}
		again, err := SplitExec(JoinExec(got))
		if diff := cmp.Diff(want, again); err != nil || diff != "" {
			t.Errorf("SplitExec(JoinExec(%q)): %v (-want +got):\n%s", got, err, diff)
		}
	}
	for text, want := range map[string]string{
		``:           `command "": invalid: no program`,
		`  `:         `command "  ": invalid: no program`,
		`"" a`:       `command "\"\" a": invalid: no program`,
		`A=b c`:      `command "A=b c": invalid: a program's name has no =`,
		`a "b`:       `command "a \"b": invalid: a double quote is not closed`,
		`a "b\`:      `command "a \"b\\": invalid: a double quote is not closed`,
		`a 'b`:       `command "a 'b": invalid: a single quote is not closed`,
		`a b\`:       `command "a b\\": invalid: ends in a backslash`,
		"a\nb":       `command "a\nb": invalid: control character U+000A`,
		"a \"\x00\"": `command "a \"\x00\"": invalid: control character U+0000`,
		"a \xff":     `command "a \xff": invalid: not UTF-8`,
	} {
		argv, err := SplitExec(text)
		if err == nil || err.Error() != want || !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("SplitExec(%q) = %q, %v; want %q", text, argv, err, want)
		}
	}
}

func TestJoinExec(t *testing.T) {
	if got, want := JoinExec([]string{"berth-launch", "--image=gnome", "--", "a b", `"$x"`, "", "%U", Literal("50%")}),
		`berth-launch --image=gnome -- "a b" "\"\$x\"" "" %U 50%%`; got != want {
		t.Errorf("JoinExec = %s; want %s", got, want)
	}
}

func TestExpand(t *testing.T) {
	f := Fields{Files: []string{"/a b", "/c"}, URLs: []string{"file:///a"}, Icon: "foo", Name: "Foo", Path: "/x.desktop"}
	for _, tt := range []struct {
		in, want []string
		f        Fields
	}{
		{[]string{"p", "%F", "%U", "%i"}, []string{"p", "/a b", "/c", "file:///a", "--icon", "foo"}, f},
		{[]string{"p", "%f", "%u", "--title=%c", "%k", "100%%", "%d"}, []string{"p", "/a b", "file:///a", "--title=Foo", "/x.desktop", "100%"}, f},
		{[]string{"p", "%F", "%f", "%i", "--f=%f", "%c", ""}, []string{"p", "--f=", ""}, Fields{}},
		{[]string{Literal("%f")}, []string{"%f"}, f},
	} {
		got, err := Expand(tt.in, tt.f)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("Expand(%q): %v (-want +got):\n%s", tt.in, err, diff)
		}
	}
	for _, bad := range []string{"%x", "a%", "--f=%F", "-%U", "-%i"} {
		if got, err := Expand([]string{"p", bad}, f); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("Expand(%q) = %q, %v; want ErrInvalid", bad, got, err)
		}
	}
}

// FuzzParse: what is read and written is read again as the same, and no key, value or command can make anything panic.
func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("[a]\nb[c]=\\s;\\;\\\\\r\n[a]\nb=1\nb=2"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := Parse(text)
		if err != nil {
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Fatalf("error %v", err)
			}
			return
		}
		first := e.Bytes()
		again, err := Parse(first)
		if err != nil {
			t.Fatalf("written as %q, which is refused: %v", first, err)
		}
		if second := again.Bytes(); string(second) != string(first) {
			t.Fatalf("written as %q, then as %q", first, second)
		}
		for _, g := range again.Groups() {
			for _, k := range g.Keys() {
				value, list := g.Get(k), g.List(k)
				if err := g.Set(k, value); err != nil {
					t.Fatalf("Set(%q, %q): %v", k, value, err)
				}
				if got := g.Get(k); got != value {
					t.Fatalf("%q set to %q is %q", k, value, got)
				}
				if err := g.SetList(k, list); err != nil {
					t.Fatalf("SetList(%q, %q): %v", k, list, err)
				}
				if diff := cmp.Diff(list, g.List(k)); diff != "" {
					t.Fatalf("%q (-want +got):\n%s", k, diff)
				}
			}
		}
		if _, err := Parse(again.Bytes()); err != nil {
			t.Fatalf("with the same values set: %v", err)
		}
	})
}

// FuzzExec: a command that is read, written as a value of a file and read again is the same.
func FuzzExec(f *testing.F) {
	for _, s := range []string{`sh -c "a \"b\" \\$c" %U`, `a 'b c' d\ e`, "a\tb", `"`, `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		argv, err := SplitExec(text)
		if err != nil {
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Fatalf("error %v", err)
			}
			return
		}
		var e Entry
		if err := e.AddGroup(Main).Set("Exec", JoinExec(argv)); err != nil {
			t.Fatal(err)
		}
		again, err := Parse(e.Bytes())
		if err != nil {
			t.Fatalf("%q: %v", e.Bytes(), err)
		}
		got, err := SplitExec(again.Main().Get("Exec"))
		if diff := cmp.Diff(argv, got); err != nil || diff != "" {
			t.Fatalf("%q: %v (-want +got):\n%s", e.Bytes(), err, diff)
		}
		if _, err := Expand(argv, Fields{}); err != nil && !errors.Is(err, orchestrator.ErrInvalid) {
			t.Fatal(err)
		}
	})
}
