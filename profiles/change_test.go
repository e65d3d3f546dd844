package profiles

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChange(t *testing.T) {
	on, off := true, false
	p := &Plan{Profile: "x", Look: Look{Dark: &on, Font: "Noto Sans 10", Scale: 2}, Locale: Locale{Lang: "de_DE.UTF-8", Keyboard: []string{"us"}}}
	got, err := Change(p, "look.dark=false", "look.theme=Arc", `locale.keyboard=["de(nodeadkeys)", "us"]`, "look.scale=1.5")
	if err != nil {
		t.Fatal(err)
	}
	want := &Plan{Profile: "x", Look: Look{Dark: &off, Font: "Noto Sans 10", Theme: "Arc", Scale: 1.5},
		Locale: Locale{Lang: "de_DE.UTF-8", Keyboard: []string{"de(nodeadkeys)", "us"}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("plan (-want +got):\n%s", d)
	}
	if !*p.Look.Dark || p.Look.Theme != "" {
		t.Errorf("Change changed its argument: %+v", p.Look)
	}
}

func TestChangeRefuses(t *testing.T) {
	for _, tc := range []struct {
		set  []string
		want []string
	}{
		{nil, []string{"look.dark, look.font, look.cursor, look.icons, look.theme, look.scale, locale.keyboard"}},
		{[]string{"display.size=800x600"}, []string{"display.size cannot change while a session runs; these can: look.dark, "}},
		{[]string{"locale.lang=de_DE.UTF-8"}, []string{"locale.lang cannot change"}},
		{[]string{"look={dark=true}"}, nil},
		{[]string{"look.drak=true", "look.scale=9", "look.font=Sans"}, []string{`unknown key "drak"`, `"dark"`, "out of range", "no font such as"}},
		{[]string{`locale.keyboard=["us","de","fr","es","it"]`}, []string{"5 layouts", "at most 4"}},
		{[]string{"look.theme=a/../b"}, []string{"no name of a theme"}},
		{[]string{"look.dark"}, []string{"KEY=VALUE"}},
	} {
		_, err := Change(&Plan{}, tc.set...)
		if tc.want == nil {
			if err != nil {
				t.Errorf("Change(%q): %v", tc.set, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("Change(%q) took it", tc.set)
			continue
		}
		for _, w := range tc.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("Change(%q) = %q, has no %q", tc.set, err, w)
			}
		}
	}
}

func TestParseFont(t *testing.T) {
	for _, tc := range []struct {
		in, family string
		points     float64
		ok         bool
	}{
		{"Noto Sans 10", "Noto Sans", 10, true}, {"Open Sans 9.5", "Open Sans", 9.5, true}, {"Noto Sans CJK SC 11", "Noto Sans CJK SC", 11, true},
		{"思源黑体 12", "思源黑体", 12, true}, {"Sans", "", 0, false}, {"10", "", 0, false}, {"Sans 0", "Sans", 0, false}, {"a\nb 10", "", 0, false}, {"a' 10", "", 0, false},
	} {
		family, points, ok := ParseFont(tc.in)
		if ok != tc.ok || ok && (family != tc.family || points != tc.points) {
			t.Errorf("ParseFont(%q) = %q, %v, %v", tc.in, family, points, ok)
		}
	}
}
