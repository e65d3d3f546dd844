package mix

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/assets"
	"berth/display/drivers"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/audio"
	"berth/session/bus"
	"berth/session/systembus"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The shapes that desktops come in, beside the built-in profiles of XFCE (everything apart) and Openbox (whose window
// manager is the session): a shell that is all in one, and one whose panel is desktop and notifications, too.
var made = map[string]string{
	"shell": `description = "all in one"
session = "shell"
[components.shell]
image = "shell:1"
command = ["shell", "--x11"]
provides = ["window-manager", "panel", "desktop", "notifications"]
ready = ["wm", "bus:org.example.Shell"]
[components.settings]
image = "shell:1"
command = ["settingsd"]
provides = ["settings"]
[env]
XDG_CURRENT_DESKTOP = "Shell"`,
	"plasmoid": `description = "panel, desktop and notifications in one"
session = "session"
[components.session]
image = "plasmoid:1"
command = ["ksession"]
[components.window-manager]
image = "plasmoid:1"
command = ["kwm", "--replace"]
provides = ["window-manager"]
ready = "wm"
restart = "always"
needs = ["x11", "bus"]
[components.panel]
image = "plasmoid:1"
command = ["kshell"]
provides = ["panel", "desktop", "notifications"]
after = ["session", "window-manager"]
ready = ["dock", "desktop"]
timeout = "1m"
env = { QT_QUICK_BACKEND = "software" }
files = { "/etc/xdg/kshellrc" = "a=1\n" }
[env]
XDG_CURRENT_DESKTOP = "KDE"`,
}

func infra(p *profiles.Profile) ([]profiles.Component, error) {
	out, err := drivers.Components(p.Display)
	if err != nil {
		return nil, err
	}
	sound, err := audio.Components(p.Audio)
	if err != nil {
		return nil, err
	}
	return slices.Concat(out, sound, bus.Components(), systembus.Components(p.SystemBus, p.Locale)), nil
}

// places has the built-in profiles and made.
func places(t *testing.T) profiles.Sources {
	t.Helper()
	dir := t.TempDir()
	for name, text := range made {
		if err := os.WriteFile(filepath.Join(dir, name+".toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return profiles.Sources{{Name: dir, Dir: dir}, {Name: "built-in", FS: assets.Profiles}}
}

func sources(t *testing.T, src profiles.Sources) []Source {
	t.Helper()
	var out []Source
	for _, name := range []string{"openbox", "plasmoid", "shell", "xfce", "xfce-13"} {
		plan, err := profiles.Resolve(name, src, nil, infra)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Source{Name: name, Description: plan.Description, Plan: *plan})
	}
	return out
}

func TestChoices(t *testing.T) {
	all := sources(t, places(t))
	for _, tt := range []struct {
		what string
		of   func([]Source, string) []string
		base string
		want string
	}{
		{"bases", func(s []Source, _ string) []string { return Bases(s) }, "", "openbox plasmoid shell xfce xfce-13"},
		{"panels", Panels, "xfce", "own openbox plasmoid xfce-13 none"},
		{"panels", Panels, "shell", "own openbox plasmoid xfce xfce-13"},
		{"window managers", WindowManagers, "xfce", "own openbox plasmoid xfce-13"},
		{"window managers", WindowManagers, "openbox", "own plasmoid xfce xfce-13"},
		{"window managers", WindowManagers, "shell", "own"},
		{"applications", Applications, "xfce", "openbox plasmoid shell xfce-13"},
	} {
		if got := strings.Join(tt.of(all, tt.base), " "); got != tt.want {
			t.Errorf("%s for %s: %s; want %s", tt.what, tt.base, got, tt.want)
		}
	}
}

// TestWrite: every mix has few lines, resolves, and has one owner of each exclusive role.
func TestWrite(t *testing.T) {
	src := places(t)
	all := sources(t, src)
	for name, a := range map[string]Answers{
		"nothing":                    {Base: "xfce"},
		"size":                       {Base: "xfce", Size: "1280x720", Name: "small"},
		"same_size":                  {Base: "xfce", Size: "1920x1080", Panel: "xfce", WindowManager: Own},
		"panel":                      {Base: "xfce", Panel: "openbox"},
		"no_panel":                   {Base: "xfce", Panel: None},
		"panel_beside_shell":         {Base: "shell", Panel: "xfce"},
		"panel_that_is_more":         {Base: "xfce", Panel: "plasmoid"},
		"panel_that_is_less":         {Base: "plasmoid", Panel: "xfce"},
		"panel_that_is_more_beside":  {Base: "shell", Panel: "plasmoid"},
		"window_manager":             {Base: "plasmoid", WindowManager: "xfce"},
		"window_manager_of_session":  {Base: "openbox", WindowManager: "plasmoid", Panel: "xfce", Applications: []string{"shell"}},
		"applications":               {Base: "xfce", Applications: []string{"shell", "openbox"}, Name: "apps"},
		"everything":                 {Base: "xfce", WindowManager: "plasmoid", Panel: "plasmoid", Applications: []string{"shell", "plasmoid"}, Size: "800x600", Name: "all"},
		"both_from_different_places": {Base: "xfce", WindowManager: "plasmoid", Panel: "openbox", Name: "three"},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := Write(all, a)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for l := range strings.Lines(text) {
				if strings.TrimSpace(l) != "" {
					n++
				}
			}
			if n > maxLines {
				t.Errorf("%d lines; at most %d:\n%s", n, maxLines, text)
			}
			plan, err := profiles.ResolveText(name+".toml", []byte(text), src, nil, infra)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			var b strings.Builder
			b.WriteString(text + "---\n")
			for _, c := range plan.Components {
				if len(c.Provides) > 0 && !slices.Contains([]string{"bus", "display", "vnc", "audio", "system-services"}, c.Provides[0]) {
					b.WriteString(c.Name + ": " + strings.Join(c.Provides, " ") + ", " + c.Image + "\n")
				}
			}
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("%s (-want +got), -update writes it:\n%s", file, diff)
			}
		})
	}
}

func TestWrongAnswers(t *testing.T) {
	all := sources(t, places(t))
	for _, tt := range []struct {
		a    Answers
		want string
	}{
		{Answers{}, `base desktop: invalid answer ""; want one of openbox, plasmoid, shell, xfce, xfce-13`},
		{Answers{Base: "xfec"}, `base desktop: invalid answer "xfec"; want one of openbox, plasmoid, shell, xfce, xfce-13; did you mean "xfce"?`},
		{Answers{Base: "xfce", Panel: "shell"}, `panel: invalid answer "shell"; want one of own, openbox, plasmoid, xfce-13, none`},
		{Answers{Base: "shell", WindowManager: "xfce"}, `window manager: invalid answer "xfce"; want one of own`},
		{Answers{Base: "xfce", Applications: []string{"xfce"}}, `applications: invalid answer "xfce"; want one of openbox, plasmoid, shell, xfce-13`},
		{Answers{Base: "xfce", Size: "big"}, `size: invalid: `},
	} {
		text, err := Write(all, tt.a)
		if !errors.Is(err, orchestrator.ErrInvalid) || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("Write(%+v) = %q, %v; want %s", tt.a, text, err, tt.want)
		}
	}
}
