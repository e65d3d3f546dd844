package look

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/profiles"
)

var update = flag.Bool("update", false, "write the golden files")

func on() *bool  { v := true; return &v }
func off() *bool { v := false; return &v }

// desk is a plan with the parts of a desktop of one image.
func desk(image string, comps ...profiles.Component) *profiles.Plan {
	p := &profiles.Plan{Profile: "desk", Display: profiles.Display{Server: "xvfb", Width: 1920, Height: 1080, DPI: 96}, Env: []string{"XDG_CONFIG_DIRS=/etc/xdg"},
		Components: []profiles.Component{
			{Name: "display", Image: "xvfb", Command: []string{"Xvfb"}, Provides: []string{"display"}, Needs: []string{"x11"}},
			{Name: "bus", Image: image, Command: []string{"dbus-daemon"}, Provides: []string{"bus"}, Needs: []string{"home"}},
		}}
	for _, c := range comps {
		if c.Image == "" {
			c.Image = image
		}
		c.Needs = []string{"x11", "bus", "home"}
		c.After = append([]string{"display", "bus"}, c.After...)
		p.Components = append(p.Components, c)
	}
	return p
}

func plans() map[string]*profiles.Plan {
	return map[string]*profiles.Plan{
		"xfce": desk("xfce", profiles.Component{Name: "settings", Command: []string{"xfconfd"}, Provides: []string{"settings"}},
			profiles.Component{Name: "panel", Command: []string{"xfce4-panel"}, Provides: []string{"panel"}, After: []string{"settings"}},
			profiles.Component{Name: "session", Command: []string{"xfce4-session"}, After: []string{"settings"}}),
		"gnome": desk("gnome", profiles.Component{Name: "settings", Command: []string{"gsd-xsettings"}, Provides: []string{"settings"}},
			profiles.Component{Name: "shell", Command: []string{"gnome-shell", "--x11"}, Provides: []string{"window-manager", "panel"}}),
		"mate": desk("mate", profiles.Component{Name: "settings", Command: []string{"mate-settings-daemon"}, Provides: []string{"settings"}},
			profiles.Component{Name: "panel", Command: []string{"mate-panel"}, Provides: []string{"panel"}}),
		"kde": desk("kde-13", profiles.Component{Name: "settings", Command: []string{"kded6"}, Provides: []string{"settings"}},
			profiles.Component{Name: "panel", Command: []string{"plasmashell"}, Provides: []string{"panel"}}),
		"lxqt": desk("lxqt", profiles.Component{Name: "wm", Command: []string{"openbox"}, Provides: []string{"window-manager"}},
			profiles.Component{Name: "panel", Command: []string{"lxqt-panel"}, Provides: []string{"panel"}}),
		"openbox": desk("openbox", profiles.Component{Name: "panel", Command: []string{"tint2"}, Provides: []string{"panel"}}),
		"kde-gnome": desk("kde", profiles.Component{Name: "settings", Command: []string{"kded5"}, Provides: []string{"settings"}},
			profiles.Component{Name: "panel", Command: []string{"plasmashell"}, Provides: []string{"panel"}},
			profiles.Component{Name: "apps-gnome", Image: "gnome", Command: []string{"berth-launch", "--serve"}, OnDemand: true, Restart: profiles.RestartNever},
			profiles.Component{Name: "apps-xfce", Image: "xfce", Command: []string{"berth-launch", "--serve"}, OnDemand: true, Restart: profiles.RestartNever}),
		"mixed": desk("own:latest", profiles.Component{Name: "wm", Image: "kde", Command: []string{"kwin_x11"}, Provides: []string{"window-manager"}},
			profiles.Component{Name: "settings", Image: "xfce", Command: []string{"xfconfd"}, Provides: []string{"settings"}},
			profiles.Component{Name: "panel", Image: "other:1", Command: []string{"sh", "-c", "exec /usr/bin/xfce4-panel"}, Provides: []string{"panel"}, After: []string{"settings"}}),
	}
}

var everything = profiles.Look{Dark: on(), Font: "Noto Sans 11", Cursor: "DMZ-Black", Icons: "Papirus", Scale: 1.5}

// render is all that the package makes of a plan.
func render(p *profiles.Plan) string {
	var b strings.Builder
	Extend(p)
	fmt.Fprintf(&b, "env:\n")
	for _, kv := range p.Env {
		fmt.Fprintf(&b, "  %s\n", kv)
	}
	b.WriteString("components:\n")
	for _, c := range p.Components {
		fmt.Fprintf(&b, "  %s (%s) after %s", c.Name, c.Image, strings.Join(c.After, ", "))
		if strings.HasPrefix(c.Name, prefix) || c.Name == xsettingsName || c.Name == "input-method" {
			fmt.Fprintf(&b, ", needs %s, ready %v, %s", strings.Join(c.Needs, ", "), c.Ready, c.Restart)
			for _, a := range c.Command {
				if strings.Contains(a, "\n") {
					a = "\n" + strings.TrimRight(a, "\n")
				}
				fmt.Fprintf(&b, " | %s", strings.ReplaceAll(a, "\n", "\n      "))
			}
		}
		b.WriteString("\n")
	}
	files := Files(p)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "file %s:\n  %s\n", name, strings.ReplaceAll(strings.TrimRight(files[name], "\n"), "\n", "\n  "))
	}
	for _, r := range Resources(p) {
		fmt.Fprintf(&b, "resource %s: %s\n", r.Name, r.Value)
	}
	if k := KeyboardOf(p); k != nil {
		fmt.Fprintf(&b, "keyboard: %q\n", k.Command())
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs; if that is meant, run with -update (-want +got):\n%s", file, d)
	}
}

func TestEveryDesktop(t *testing.T) {
	for name, p := range plans() {
		t.Run(name, func(t *testing.T) {
			p.Look = everything
			p.Locale.Keyboard = []string{"us", "de(nodeadkeys)"}
			got := render(p)
			got += "changes:\n"
			change := Changes(p, []string{"look.dark", "look.font", "look.cursor", "look.scale", "locale.keyboard"})
			for _, s := range change.Scripts {
				got += fmt.Sprintf("  in %s:\n      %s\n", s.Component, strings.ReplaceAll(strings.TrimRight(s.Text, "\n"), "\n", "\n      "))
			}
			for _, w := range change.Writers {
				got += "  again: " + w + "\n"
			}
			for _, m := range change.Messages {
				got += fmt.Sprintf("  on the bus: %s %s %s", m.Dest, m.Path, m.Member)
				for _, a := range m.Args {
					if groups, ok := a.(map[string][][]byte); ok {
						for _, g := range slices.Sorted(maps.Keys(groups)) {
							got += fmt.Sprintf(" [%s] %s", g, groups[g])
						}
						continue
					}
					got += fmt.Sprintf(" %v", a)
				}
				got += "\n"
			}
			golden(t, name, got)
			checkOrder(t, p)
		})
	}
}

// checkOrder fails unless each component stands behind what it waits for.
func checkOrder(t *testing.T, p *profiles.Plan) {
	t.Helper()
	seen := map[string]bool{}
	for _, c := range p.Components {
		for _, a := range c.After {
			if !seen[a] {
				t.Errorf("%s stands before %s, which it waits for", c.Name, a)
			}
		}
		seen[c.Name] = true
	}
}

func TestInputMethods(t *testing.T) {
	for _, tc := range []struct{ name, im, lang, keyboard string }{
		{"fcitx5-zh", "fcitx5", "zh_CN.UTF-8", ""}, {"fcitx5-de", "fcitx5", "de_DE.UTF-8", "de(nodeadkeys)"}, {"ibus-ja", "ibus", "ja_JP.UTF-8", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := plans()["openbox"]
			p.Locale = profiles.Locale{InputMethod: tc.im, Lang: tc.lang}
			if tc.keyboard != "" {
				p.Locale.Keyboard = []string{tc.keyboard}
			}
			golden(t, tc.name, render(p))
			checkOrder(t, p)
		})
	}
}

func TestNothingAskedNothingDone(t *testing.T) {
	for name, p := range plans() {
		p.Locale = profiles.Locale{Lang: "de_DE.UTF-8", Timezone: "Europe/Berlin"}
		before := fmt.Sprintf("%+v", p)
		Extend(p)
		if after := fmt.Sprintf("%+v", p); after != before {
			t.Errorf("%s was changed:\n%s\n%s", name, before, after)
		}
		if f, r, k, c := Files(p), Resources(p), KeyboardOf(p), Changes(p, nil); len(f)+len(r)+len(c.Scripts)+len(c.Messages) > 0 || k != nil {
			t.Errorf("%s: files %v, resources %v, keyboard %v, changes %v", name, f, r, k, c)
		}
	}
}

// What the profile has of its own stands.
func TestProfileWins(t *testing.T) {
	p := desk("own:1", profiles.Component{Name: "panel", Command: []string{"tint2"}, Provides: []string{"panel"}})
	p.Look.Dark, p.Locale.InputMethod = off(), "fcitx5"
	p.Env = append(p.Env, "QT_QPA_PLATFORMTHEME=qt5ct", "GTK_IM_MODULE=xim")
	p.Components = append(p.Components, profiles.Component{Name: "xsettings", Image: "own:1", Command: []string{"mine"}},
		profiles.Component{Name: "typing", Image: "own:1", Command: []string{"mine"}, Provides: []string{"input-method"}})
	n := len(p.Components)
	Extend(p)
	if len(p.Components) != n {
		t.Errorf("components were added: %+v", p.Components)
	}
	for _, kv := range []string{"QT_QPA_PLATFORMTHEME=qt5ct", "GTK_IM_MODULE=xim", "QT_IM_MODULE=fcitx"} {
		if !slices.Contains(p.Env, kv) {
			t.Errorf("environment %q has no %s", p.Env, kv)
		}
	}
}

func TestChangesLeaveAloneWhatDidNotChange(t *testing.T) {
	p := plans()["xfce"]
	p.Look = everything
	c := Changes(p, []string{"look.font"})
	if s := c.Scripts; len(s) != 1 || s[0].Component != "settings" || !strings.Contains(s[0].Text, "/Gtk/FontName") ||
		strings.Contains(s[0].Text, "Theme") || strings.Contains(s[0].Text, "DPI") {
		t.Errorf("changes of the font: %+v", c)
	}
	if c := Changes(p, []string{"locale.keyboard"}); len(c.Scripts)+len(c.Messages) != 0 {
		t.Errorf("XFCE leaves the keyboard to the X server, but: %+v", c)
	}
}

func TestScale(t *testing.T) {
	for _, tc := range []struct {
		scale float64
		dpi   int
		want  scaling
	}{
		{1, 96, scaling{96, 1, 24}}, {1.5, 96, scaling{144, 1, 36}}, {2, 96, scaling{192, 2, 48}}, {2.5, 96, scaling{240, 2, 60}},
		{0.5, 96, scaling{48, 1, 12}}, {2, 120, scaling{240, 2, 48}},
	} {
		p := &profiles.Plan{Display: profiles.Display{DPI: tc.dpi}, Look: profiles.Look{Scale: tc.scale}}
		if got := scaleOf(p); got != tc.want {
			t.Errorf("scale %v of %d dpi = %+v, want %+v", tc.scale, tc.dpi, got, tc.want)
		}
	}
}

func TestMonitorScale(t *testing.T) {
	for _, tc := range []struct {
		scale         float64
		width, height int
		want          int
	}{{1.5, 1920, 1080, 1}, {2, 1920, 1080, 2}, {2, 1280, 800, 1}, {3, 1920, 1080, 2}, {4, 3840, 2160, 4}, {0, 1920, 1080, 1}} {
		p := &profiles.Plan{Display: profiles.Display{Width: tc.width, Height: tc.height, DPI: 96}, Look: profiles.Look{Scale: tc.scale}}
		if got := MonitorScale(p); got != tc.want {
			t.Errorf("scale %v of %dx%d = %d, want %d", tc.scale, tc.width, tc.height, got, tc.want)
		}
	}
}

// The functions of the scripts are run on files.
func TestKDEScript(t *testing.T) {
	for _, tc := range []struct{ name, before, want string }{
		{"new", "", "[Icons]\nTheme=breeze-dark\n"},
		{"replaced", "[General]\nName=a\n\n[Icons]\nTheme=old\nOther=1\n[KDE]\nx=y\n", "[General]\nName=a\n\n[Icons]\nTheme=breeze-dark\nOther=1\n[KDE]\nx=y\n"},
		{"added", "[Icons]\nOther=1\n", "[Icons]\nTheme=breeze-dark\nOther=1\n"},
		{"appended", "[A][B]\nTheme=no\n", "[A][B]\nTheme=no\n\n[Icons]\nTheme=breeze-dark\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			home := t.TempDir()
			file := filepath.Join(home, ".config", "kdeglobals")
			if tc.before != "" {
				os.Mkdir(filepath.Dir(file), 0o755)
				if err := os.WriteFile(file, []byte(tc.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			sh(t, home, iniFunctions+"ini kdeglobals Icons Theme breeze-dark\n")
			if got := read(t, file); strings.TrimLeft(got, "\n") != tc.want {
				t.Errorf("kdeglobals = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestColours(t *testing.T) {
	home := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(".config/kdeglobals", "[Colors:View]\nBackgroundNormal=255,255,255\nOld=1\n\n[General]\nfont=x\n\n[WM]\nactiveFont=y\nactiveBackground=1\n")
	write(".local/share/color-schemes/Night.colors", "[General]\nName=Night\n\n[Colors:View]\nBackgroundNormal=0,0,0\n\n[ColorEffects:Disabled]\nColor=1\n\n[WM]\nactiveBackground=2\n")
	sh(t, home, iniFunctions+coloursFunction+"colours kdeglobals Night\ncolours kdeglobals Missing\n")
	got := read(t, filepath.Join(home, ".config", "kdeglobals"))
	want := "[General]\nfont=x\n\n[WM]\nactiveBackground=2\nactiveFont=y\n[Colors:View]\nBackgroundNormal=0,0,0\n\n[ColorEffects:Disabled]\nColor=1\n\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("kdeglobals (-want +got):\n%s", d)
	}
}

// Every script is one that the shell can read.
func TestScriptsParse(t *testing.T) {
	for name, p := range plans() {
		p.Look = everything
		p.Locale = profiles.Locale{Keyboard: []string{"us", "de"}, InputMethod: "ibus"}
		Extend(p)
		scripts := []string{}
		for _, c := range p.Components {
			if len(c.Command) == 3 && c.Command[0] == "sh" {
				scripts = append(scripts, c.Command[2])
			}
		}
		for name, text := range Files(p) {
			if strings.HasSuffix(name, ".sh") {
				scripts = append(scripts, text)
			}
		}
		for _, s := range Changes(p, profiles.LiveKeys()).Scripts {
			scripts = append(scripts, s.Text)
		}
		for _, s := range scripts {
			cmd := exec.Command("sh", "-n")
			cmd.Stdin = strings.NewReader(s)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s\n%s", name, err, out, s)
			}
		}
	}
}

func sh(t *testing.T, home, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "failed=0\n"+script+"exit $failed\n")
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
