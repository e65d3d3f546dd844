package profiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"berth/orchestrator"
)

func mustBuild(t *testing.T, text string, set ...string) *Plan {
	t.Helper()
	p, err := LoadText("test.toml", []byte(text), testSources(), set...)
	if err != nil {
		t.Fatalf("LoadText: %v", err)
	}
	plan, err := Build(p, testInfra())
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return plan
}

func names(p *Plan) []string {
	var out []string
	for _, c := range p.Components {
		out = append(out, c.Name)
	}
	return out
}

func TestLoadEverything(t *testing.T) {
	text := `
name        = "duo"
description = "All there is"
extends     = "base"
session     = "panel"
[display]
server = "xvnc"
size   = "1920x1080"
dpi    = 120
[audio]
server = "pulseaudio"
[system_bus]
kind = "none"
[home]
kind = "volume"
name = "duo"
[network]
mode = "none"
[look]
dark = true
font = "Noto Sans 10"
scale = 1.5
[locale]
lang     = "zh_CN.UTF-8"
timezone = "Asia/Shanghai"
keyboard = ["us", "cn"]
input_method = "fcitx5"
[limits]
cpus   = 2
memory = "4GiB"
pids   = 1000
[env]
B = "2"
A = "1"
[components.panel]
image    = "gnome"
command  = ["gnome-panel"]
provides = ["panel"]
after    = ["window-manager"]
ready    = ["dock", "bus:org.gnome.Panel"]
timeout  = "1m"
restart  = "always"
optional = true
ends_session = true
devices  = ["/dev/dri/renderD128"]
caps     = ["CAP_SYS_NICE"]
cwd      = "${HOME}"
files    = { "/etc/x" = "y\n" }
stop_signal = "SIGINT"
stop_timeout = "2s"
[components.panel.env]
X = "1"
[[apps]]
image  = "gnome"
export = ["org.gnome.*"]
[[apps]]
image = "kde"
`
	dark := true
	want := &Plan{
		Profile: "duo", Description: "All there is", Session: "panel", Network: "none",
		Display: Display{Server: "xvnc", Width: 1920, Height: 1080, DPI: 120},
		Audio:   Audio{Server: "pulseaudio"}, SystemBus: SystemBus{Kind: "none"},
		Home:   Home{Kind: "volume", Name: "duo"},
		Look:   Look{Dark: &dark, Font: "Noto Sans 10", Scale: 1.5},
		Locale: Locale{Lang: "zh_CN.UTF-8", Timezone: "Asia/Shanghai", Keyboard: []string{"us", "cn"}, InputMethod: "fcitx5"},
		Limits: Limits{CPUs: 2, Memory: 4 << 30, PIDs: 1000},
		Env:    []string{"A=1", "B=2"},
		Apps: []App{
			{Image: "gnome", Export: []string{"org.gnome.*"}, Component: "apps-gnome", Idle: 10 * time.Minute},
			{Image: "kde", Export: []string{"*"}, Component: "apps-kde", Idle: 10 * time.Minute},
			// Not listed, but the panel is made of it.
			{Image: "openbox", Export: []string{"*"}, Component: "apps-openbox", Idle: 10 * time.Minute},
		},
	}
	plan := mustBuild(t, text)
	if diff := cmp.Diff(want, plan, cmpopts.IgnoreFields(Plan{}, "Components")); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	got, _ := plan.Component("panel")
	wantPanel := Component{
		Name: "panel", Image: "gnome", Command: []string{"gnome-panel"}, Env: map[string]string{"X": "1"}, Cwd: "${HOME}",
		Provides: []string{"panel"}, After: []string{"wm", "display", "bus"}, Needs: []string{"x11", "bus", "audio", "home"},
		Ready:   []Probe{{"dock", ""}, {"bus", "org.gnome.Panel"}},
		Timeout: time.Minute, Restart: "always", Optional: true, EndsSession: true, Devices: []string{"/dev/dri/renderD128"}, Caps: []string{"CAP_SYS_NICE"},
		Files: map[string]string{"/etc/x": "y\n"}, StopSig: "SIGINT", Stop: 2 * time.Second,
	}
	if diff := cmp.Diff(wantPanel, got); diff != "" {
		t.Errorf("panel (-want +got):\n%s", diff)
	}
}

func TestDefaults(t *testing.T) {
	plan := mustBuild(t, "")
	want := &Plan{
		Profile: "test", Network: "nat", Display: Display{Server: "xvfb", Width: 1280, Height: 800, DPI: 96},
		Audio: Audio{Server: "pipewire"}, SystemBus: SystemBus{Kind: "stub"}, Home: Home{Kind: "volume"},
	}
	if diff := cmp.Diff(want, plan, cmpopts.IgnoreFields(Plan{}, "Components")); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	c, _ := plan.Component("vnc")
	if c.Timeout != DefaultTimeout || c.Restart != RestartOnFailure || c.Stop != DefaultStopTimeout {
		t.Errorf("defaults of an infra component are %v, %v, %v", c.Timeout, c.Restart, c.Stop)
	}
	if diff := cmp.Diff([]string{"display"}, c.After); diff != "" {
		t.Errorf("vnc waits for (-want +got):\n%s", diff)
	}
}

func TestExtends(t *testing.T) {
	plan := mustBuild(t, `
extends = "base"
[locale]
keyboard = ["fr"]
[components.wm]
command = ["openbox"]
env = { B = "3", C = "4" }
[components.clock]
image = "openbox"
command = ["xclock"]
needs = ["x11"]
`)
	wm, _ := plan.Component("wm")
	if diff := cmp.Diff(map[string]string{"A": "1", "B": "3", "C": "4"}, wm.Env); diff != "" {
		t.Errorf("env is merged per key (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"openbox"}, wm.Command); diff != "" {
		t.Errorf("lists are replaced (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"fr"}, plan.Locale.Keyboard); diff != "" {
		t.Errorf("lists are replaced (-want +got):\n%s", diff)
	}
	// user/base extends built-in/base: both are in the chain.
	if plan.Look.Dark == nil || !*plan.Look.Dark || plan.Display.Width != 1024 || plan.Description != "The base" {
		t.Errorf("base of the user and of Berth are not both there: %+v", plan)
	}
	if diff := cmp.Diff([]string{"display", "bus", "audio", "pipewire-pulse", "vnc", "wm", "panel", "clock"}, names(plan)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	clock, _ := plan.Component("clock")
	if diff := cmp.Diff([]string{"display"}, clock.After); diff != "" {
		t.Errorf("clock needs x11 only (-want +got):\n%s", diff)
	}
}

func TestDisable(t *testing.T) {
	plan := mustBuild(t, `
extends = "base"
session = "panel"
[components.wm]
disable = true
[components.audio]
disable = true
`)
	if diff := cmp.Diff([]string{"display", "bus", "pipewire-pulse", "vnc", "panel"}, names(plan)); diff != "" {
		t.Errorf("components (-want +got):\n%s", diff)
	}
	panel, _ := plan.Component("panel")
	if diff := cmp.Diff([]string{"display", "bus"}, panel.After); diff != "" {
		t.Errorf("a disabled component is not waited for (-want +got):\n%s", diff)
	}
}

func TestInfraOverride(t *testing.T) {
	infra := testInfra()
	p, err := LoadText("test.toml", []byte("[components.bus]\ntimeout = \"5s\"\n[components.bus.env]\nX = \"1\"\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := Build(p, infra)
	if err != nil {
		t.Fatal(err)
	}
	bus, _ := plan.Component("bus")
	if bus.Timeout != 5*time.Second || bus.Env["X"] != "1" || bus.Image != "bus" || len(bus.Ready) != 1 {
		t.Errorf("bus = %+v", bus)
	}
	if diff := cmp.Diff(testInfra(), infra); diff != "" {
		t.Errorf("Build changed its argument:\n%s", diff)
	}
}

func TestSet(t *testing.T) {
	plan := mustBuild(t, `extends = "base"`,
		"display.size=1280x720", "display.dpi = 120", "look.dark=false", "look.scale=2", "look.theme=12",
		"components.panel.restart=never", "components.panel.ready=x11", `components.wm.command=["openbox", "--debug"]`,
		"limits.memory=2GiB", `env.GREETING="a = b"`, "env.NUMBER=7", `components."panel".env.X=y=z`, "network.mode='host'",
		"components.extra={image='openbox', command=['xclock']}", "limits.memory=1073741824", "home.name=7")
	panel, _ := plan.Component("panel")
	wm, _ := plan.Component("wm")
	_, extra := plan.Component("extra")
	got := map[string]any{
		"size": plan.Display.Width, "dpi": plan.Display.DPI, "dark": *plan.Look.Dark, "scale": plan.Look.Scale, "font": plan.Look.Theme,
		"restart": panel.Restart, "ready": panel.Ready[0].String(), "command": wm.Command, "memory": plan.Limits.Memory,
		"env": plan.Env, "x": panel.Env["X"], "network": plan.Network, "extra": extra, "home": plan.Home.Name,
	}
	want := map[string]any{
		"size": 1280, "dpi": 120, "dark": false, "scale": 2.0, "font": "12",
		"restart": "never", "ready": "x11", "command": []string{"openbox", "--debug"}, "memory": int64(1 << 30),
		"env": []string{"GREETING=a = b", "NUMBER=7"}, "x": "y=z", "network": "host", "extra": true, "home": "7",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSetErrors(t *testing.T) {
	for _, tc := range []struct{ set, want string }{
		{"display.size", `--set:1:1: option is not of the form KEY=VALUE, such as "display.size=1280x720"`},
		{"=x", `--set:1:1: "" is no key such as display.size`},
		{"a b=x", `--set:1:1: "a b" is no key such as display.size`},
		{"[display]\nsize=1x1", `--set:1:1: "[display].size" is no key such as display.size`},
		{"name=x", `--set:1:1: name cannot be set; it belongs to the file`},
		{"display.sise=1280x720", `--set:1:9: unknown key "sise" in [display]; did you mean "size"?`},
		{"display.size=12", `--set:1:14: display.size: size "12" is not of the form WIDTHxHEIGHT, such as "1920x1080"`},
		{"display.server=xvbf", `--set:1:16: display.server is "xvbf"; want one of xvfb, xvnc, xorg, xephyr, host; did you mean "xvfb"?`},
		{"display.dpi=many", `--set:1:13: display.dpi is a string; want an integer`},
		{"look.dark=yes", `--set:1:11: look.dark is a string; want true or false`},
		{"locale.keyboard=us", `--set:1:17: locale.keyboard is a string; want a list of strings, ["us"]`},
		{"display=x", `--set:1:9: display is a string; want a table`},
		{"size=1x1", `--set:1:1: unknown key "size"; did you mean "display.size"?`},
		{"look.font=a\x00b", `--set:1:12: NUL byte; a profile is plain text`},
	} {
		_, err := LoadText("test.toml", nil, nil, tc.set)
		var errs Errors
		if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Error() != tc.want {
			t.Errorf("--set %q:\n got %v\nwant %v", tc.set, err, tc.want)
		}
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo.toml")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, path, want string
		class            error
	}{
		{"missing", filepath.Join(dir, "no.toml"), "not found", orchestrator.ErrNotFound},
		{"directory", dir + "/", "is a directory", orchestrator.ErrInvalid},
		{"fifo", fifo, "not a regular file", orchestrator.ErrInvalid},
		{"large", write("large.toml", make([]byte, 10<<20)), "file has 10485760 bytes; a profile has at most 1048576 (1 MiB)", orchestrator.ErrInvalid},
		{"nul", write("nul.toml", []byte("name = \"a\"\ndescription = \"b\x00\"\n")), "nul.toml:2:17: NUL byte", orchestrator.ErrInvalid},
		{"not_utf8", write("latin.toml", []byte("# \xe9\n")), "latin.toml:1:3: byte 0xe9 is not UTF-8", orchestrator.ErrInvalid},
		{"utf16", write("utf16.toml", []byte("\xff\xfen\x00")), "file is UTF-16; save it as UTF-8", orchestrator.ErrInvalid},
		{"deep_list", write("deep.toml", []byte("x = "+strings.Repeat("[", 1<<19))), "nested more than the maximum", orchestrator.ErrInvalid},
		{"deep_key", write("key.toml", []byte(strings.Repeat("a.", 1<<18)+"a = 1")), "profiles nest at most 8 deep", orchestrator.ErrInvalid},
		{"many_errors", write("many.toml", []byte(strings.Repeat("[a]\n", 1<<17))), "too many errors", orchestrator.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Load(tc.path, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, tc.class) {
				t.Errorf("Load: %.300v\nwant %q, %v", err, tc.want, tc.class)
			}
		})
	}
}

// TestLargeInputs: what fills a whole MiB is dealt with in time that does not grow with its square.
func TestLargeInputs(t *testing.T) {
	fill := func(line func(i int) string) string {
		var b strings.Builder
		for i := 0; b.Len() < MaxFileSize-200; i++ {
			b.WriteString(line(i))
		}
		return b.String()
	}
	comp := "[components.a]\nimage = \"x\"\ncommand = [\"x\"]\n"
	for name, text := range map[string]string{
		"unknown_keys":   fill(func(i int) string { return fmt.Sprintf("k%d = 1\n", i) }),
		"unknown_tables": fill(func(i int) string { return fmt.Sprintf("[t%d.x]\n", i) }),
		"one_line":       "look = {" + fill(func(i int) string { return fmt.Sprintf("k%d=1,", i) }) + "}",
		"components":     fill(func(i int) string { return strings.Replace(comp, ".a", fmt.Sprintf(".a%d", i), 1) }),
		"after":          comp + "after = [" + fill(func(i int) string { return fmt.Sprintf("\"k%d\",", i) }) + "]",
		"roles":          comp + "provides = [" + fill(func(i int) string { return "\"panl\"," }) + "]",
		"good_list":      comp + "provides = [" + fill(func(i int) string { return "\"panel\"," }) + "]",
		"numbers":        "look = [" + fill(func(i int) string { return "99999999999999999999," }) + "]",
		"env":            "[env]\n" + fill(func(i int) string { return fmt.Sprintf("K%d = \"1\"\n", i) }),
		"apps":           fill(func(i int) string { return "[[apps]]\n" }),
		"newlines":       strings.Repeat("\n", MaxFileSize-10) + "x = 1",
		"comment":        "#" + strings.Repeat("x", MaxFileSize-10) + "\nx = 1",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, err := ResolveText("large.toml", []byte(text), nil, nil, func(*Profile) ([]Component, error) { return testInfra(), nil })
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
			if ok := name == "env" || name == "good_list"; ok != (err == nil) {
				t.Errorf("error %.200v", err)
			}
			if err != nil && len(err.Error()) > 200_000 {
				t.Errorf("error text has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestBOMAndCRLF(t *testing.T) {
	_, err := LoadText("t.toml", []byte("\xef\xbb\xbfname = \"a\"\r\n[display]\r\nsise = 1 # x\r\n"), nil)
	want := "t.toml:3:1: unknown key \"sise\" in [display]; did you mean \"size\"?\n    sise = 1 # x\n    ^^^^"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestSourcesPrecedence(t *testing.T) {
	home, uid := t.TempDir(), os.Getuid()
	dir := filepath.Join(home, ".config", "berth", "profiles")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	builtin := fstest.MapFS{
		"xfce.toml": {Data: []byte("description = \"built-in\"\n[display]\nsize = \"800x600\"\n")},
		"tiny.toml": {Data: []byte("description = \"tiny\"\n")},
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("xfce.toml", "extends = \"xfce\"\ndescription = \"mine\"\n")
	write("wrong.toml", "name = \"right\"\n")
	src := StandardSources(home, uid, builtin)
	p, err := Load("xfce", src)
	if err != nil {
		t.Fatal(err)
	}
	if p.Description != "mine" || p.Display.Width != 800 || len(p.Files) != 2 {
		t.Errorf("profile = %+v", p)
	}
	// The same as a text: extended is the built-in one, and by a text from elsewhere the file of the source as well.
	for file, want := range map[string]int{filepath.Join(dir, "xfce.toml"): 2, "xfce.toml": 3, "built-in/xfce.toml": 3} {
		p, err := LoadText(file, []byte("extends = \"xfce\"\n"), src)
		if err != nil || len(p.Files) != want {
			t.Errorf("LoadText(%q) = %+v, %v; want %d files", file, p, err, want)
		}
	}
	entries, err := List(src)
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(dir, "wrong.toml")
	want := []Entry{
		{Name: "tiny", Description: "tiny", File: "built-in/tiny.toml"},
		{Name: "wrong", File: mine, Error: mine + `:1:8: name is "right", but the file is called wrong.toml and found by that name`},
		{Name: "xfce", Description: "mine", File: filepath.Join(dir, "xfce.toml"), Extends: "xfce", Hides: true},
	}
	// /etc/berth/profiles of the machine may hold more.
	entries = cmpFilter(entries, func(e Entry) bool { return !strings.HasPrefix(e.File, "/etc/") })
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}

	_, err = Load("xfse", src)
	if !errors.Is(err, orchestrator.ErrNotFound) || !strings.Contains(err.Error(), `did you mean "xfce"?`) {
		t.Errorf("misspelt name: %v", err)
	}

	if _, err := Load(filepath.Join(dir, "xfce.toml"), src); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("path on behalf of somebody: %v", err)
	}

	// What belongs to another is not read, whatever links say.
	if os.Getuid() != 0 {
		t.Skip("needs root to make a file of another user")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("root:secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "spy.toml")); err != nil {
		t.Fatal(err)
	}
	_, err = Load("spy", StandardSources(home, 1000, builtin))
	if err == nil || strings.Contains(err.Error(), "secret\"") || !strings.Contains(err.Error(), "belongs to user 0") {
		t.Errorf("foreign file: %v", err)
	}
}

func cmpFilter[T any](list []T, keep func(T) bool) []T {
	var out []T
	for _, x := range list {
		if keep(x) {
			out = append(out, x)
		}
	}
	return out
}

func TestErrorsJSON(t *testing.T) {
	_, err := LoadText("t.toml", []byte("[display]\nsise = 1\n"), nil)
	got, jerr := json.Marshal(err)
	if jerr != nil {
		t.Fatal(jerr)
	}
	want := `[{"file":"t.toml","line":2,"column":1,"message":"unknown key \"sise\" in [display]","key":"display.sise","text":"sise","suggestion":"size","source":"sise = 1"}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCheckImages(t *testing.T) {
	p, err := LoadText("t.toml", []byte("[components.a]\nimage = \"xfcee\"\ncommand = [\"a\"]\n[[apps]]\nimage = \"gnome\"\n[[apps]]\nimage = \"mine:1\"\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = p.CheckImages([]string{"xfce", "openbox", "gnome"})
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Line != 2 || errs[0].Suggestion != "xfce" {
		t.Errorf("CheckImages: %v", err)
	}
	if e := p.ErrorAt([]string{"components", "a", "command"}, "no such program"); e.Line != 3 || e.Column != 11 {
		t.Errorf("ErrorAt: %v", e)
	}
}

// TestResolveTogether: what Load, the contributors and Build find is one list.
func TestResolveTogether(t *testing.T) {
	text := "[display]\nsise = 1\n[components.a]\nimage = \"xfcee\"\ncommand = [\"a\"]\nafter = [\"b\"]\n"
	_, err := ResolveText("t.toml", []byte(text), nil, nil, func(p *Profile) ([]Component, error) {
		return testInfra(), p.CheckImages([]string{"xfce"})
	})
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 3 || errs[0].Line != 2 || errs[1].Line != 4 || errs[2].Line != 6 {
		t.Errorf("got %v", err)
	}
	boom := errors.New("no such server")
	_, err = ResolveText("t.toml", []byte(text), nil, nil, func(*Profile) ([]Component, error) { return nil, boom })
	if !errors.Is(err, boom) || !errors.As(err, &errs) || len(errs) != 1 {
		t.Errorf("got %v", err)
	}
}

func TestStableOrder(t *testing.T) {
	plan := mustBuild(t, `
[components.c]
image = "x"
command = ["c"]
after = ["a"]
[components.b]
image = "x"
command = ["b"]
[components.a]
image = "x"
command = ["a"]
`)
	if diff := cmp.Diff([]string{"display", "bus", "audio", "pipewire-pulse", "vnc", "b", "a", "c"}, names(plan)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}
