package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
	"berth/orchestrator/fake"
	"berth/profiles"
	"berth/session/api"
	"berth/session/look"
)

// dressed is a bed with a component that keeps XFCE's settings, and a record of what was run in which component.
type dressed struct {
	*bed
	mu  sync.Mutex
	ran []string // "COMPONENT: COMMAND"
	// refuse is what setxkbmap fails with, fail what a script does; "" if they do not.
	refuse, fail string
}

func newDressed(t *testing.T, l profiles.Look, loc profiles.Locale) *dressed {
	comps := chain()
	comps[0].Ready = []profiles.Probe{{Kind: "bus", Arg: "display"}, {Kind: "x11"}}
	comps = append(comps, profiles.Component{Name: "settings", Command: []string{"xfconfd"}, Provides: []string{"settings"}, After: []string{"display", "bus"}})
	d := &dressed{bed: newBed(t, comps...)}
	d.plan.Look, d.plan.Locale = l, loc
	d.again()
	d.engine.Handle("xfconfd", fake.Serve())
	program := func(fail *string) fake.Program {
		return func(_ context.Context, p *fake.Process) int {
			d.mu.Lock()
			defer d.mu.Unlock()
			if !slices.Contains(p.Env, "DISPLAY=:0") || !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "DBUS_SESSION_BUS_ADDRESS=unix:") }) {
				t.Errorf("%v has no display or no bus: %q", p.Args, p.Env)
			}
			d.ran = append(d.ran, p.Container+": "+strings.Join(p.Args, " "))
			if *fail != "" {
				fmt.Fprintln(p.Stderr, *fail)
				return 1
			}
			return 0
		}
	}
	d.engine.Handle("setxkbmap", program(&d.refuse))
	d.engine.Handle("sh", program(&d.fail))
	return d
}

// again makes the manager of a daemon that starts.
func (d *dressed) again() {
	d.m.Close()
	d.start()
	d.m.opt.Probe = func(Target) Prober { return x11Prober{prober{d.engine}} }
}

func (d *dressed) set(keys ...string) error {
	return d.m.Set(context.Background(), root, "duo", api.SetRequest{Set: keys})
}

func (d *dressed) file(name string) string {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(wires{d.layout.Session("duo")}.look(), name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.t.Fatal(err)
	}
	return string(b)
}

func TestLookAtTheStart(t *testing.T) {
	dark := true
	d := newDressed(t, profiles.Look{Dark: &dark, Scale: 2}, profiles.Locale{Keyboard: []string{"us", "de(nodeadkeys)"}})
	d.up(api.UpRequest{})
	if got := d.file("xdg/gtk-3.0/settings.ini"); !strings.Contains(got, "gtk-theme-name=Greybird-dark\n") {
		t.Errorf("settings.ini = %q", got)
	}
	if diff := cmp.Diff([]map[string]string{{"Xft.dpi": "192", "Xcursor.size": "48"}}, d.resources); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"display: setxkbmap -model pc105 -layout us,de -variant ,nodeadkeys -option  -option grp:alt_shift_toggle"}, d.ran); diff != "" {
		t.Errorf("run (-want +got):\n%s", diff)
	}
	// A display server that comes back gets all again.
	if err := d.engine.Exit(d.pods()[0].ID, "display", 1); err != nil {
		t.Fatal(err)
	}
	d.until("the keyboard of the new display server", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.ran) == 2
	})
}

func TestNoLookNoWork(t *testing.T) {
	d := newDressed(t, profiles.Look{}, profiles.Locale{Lang: "de_DE.UTF-8"})
	d.up(api.UpRequest{})
	if _, err := os.Stat(wires{d.layout.Session("duo")}.look()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the look's directory: %v", err)
	}
	if len(d.ran)+len(d.resources) != 0 {
		t.Errorf("run %q, resources %v", d.ran, d.resources)
	}
}

func TestUnknownKeyboardFailsTheStart(t *testing.T) {
	d := newDressed(t, profiles.Look{}, profiles.Locale{Keyboard: []string{"xx"}})
	d.refuse = "Error loading new keyboard description"
	_, err := d.m.Up(context.Background(), root, api.UpRequest{}, nil)
	if !errors.Is(err, orchestrator.ErrInvalid) || !strings.Contains(err.Error(), `keyboard "xx"`) || !strings.Contains(err.Error(), d.refuse) {
		t.Errorf("Up: %v", err)
	}
	d.clean()
}

func TestSet(t *testing.T) {
	d := newDressed(t, profiles.Look{}, profiles.Locale{})
	d.up(api.UpRequest{})
	if err := d.set("look.dark=true", `locale.keyboard=["fr"]`, "look.cursor=DMZ-Black"); err != nil {
		t.Fatal(err)
	}
	if len(d.ran) != 2 || !strings.HasPrefix(d.ran[0], "display: setxkbmap -model pc105 -layout fr ") ||
		!strings.HasPrefix(d.ran[1], "settings: sh -c ") || !strings.Contains(d.ran[1], "/Net/ThemeName string 'Greybird-dark'") {
		t.Errorf("run: %q", d.ran)
	}
	if diff := cmp.Diff([]map[string]string{{"Xcursor.theme": "DMZ-Black"}}, d.resources); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	// The record has it: a daemon started later changes one key and keeps the others.
	d.again()
	d.ran = nil
	if err := d.set("look.font=Noto Sans 11"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"gtk-theme-name=Greybird-dark\n", "gtk-font-name=Noto Sans 11\n", "gtk-cursor-theme-name=DMZ-Black\n"} {
		if got := d.file("xdg/gtk-3.0/settings.ini"); !strings.Contains(got, want) {
			t.Errorf("settings.ini = %q, has no %q", got, want)
		}
	}
	if len(d.ran) != 1 || strings.Contains(d.ran[0], "Theme") || !strings.Contains(d.ran[0], "/Gtk/FontName") {
		t.Errorf("run: %q", d.ran)
	}
	// The same again changes nothing.
	d.ran = nil
	if err := d.set("look.font=Noto Sans 11"); err != nil || len(d.ran) != 0 {
		t.Errorf("the same again: %v, run %q", err, d.ran)
	}
}

func TestSetRefuses(t *testing.T) {
	d := newDressed(t, profiles.Look{}, profiles.Locale{})
	d.up(api.UpRequest{})
	d.refuse = "Error loading new keyboard description"
	var errs profiles.Errors
	if err := d.set("look.dark=true", "locale.lang=de_DE.UTF-8"); !errors.As(err, &errs) || !strings.Contains(err.Error(), "these can: look.dark") {
		t.Errorf("another key: %v", err)
	}
	if err := d.set(`locale.keyboard=["xx"]`, "look.dark=true"); !errors.Is(err, orchestrator.ErrInvalid) || !strings.Contains(err.Error(), `keyboard "xx"`) {
		t.Errorf("an unknown layout: %v", err)
	}
	if err := d.m.Set(context.Background(), api.Caller{UID: 7, Name: "eve"}, "duo", api.SetRequest{Set: []string{"look.dark=true"}}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("somebody else's session: %v", err)
	}
	if got := d.file("xdg/gtk-3.0/settings.ini"); got != "" || len(d.ran) != 1 {
		t.Errorf("something was changed: %q, run %q", got, d.ran)
	}
	// What a desktop refuses is said, and stays in the record all the same.
	d.fail = "xfconf-query: no such channel"
	if err := d.set("look.dark=true"); err == nil || !strings.Contains(err.Error(), `component "settings"`) || !strings.Contains(err.Error(), d.fail) {
		t.Errorf("a script that fails: %v", err)
	}
	if got := d.file("xdg/gtk-3.0/settings.ini"); got == "" {
		t.Error("there is no settings.ini")
	}
}

func TestSetWithoutAnybodyToTell(t *testing.T) {
	b := newBed(t, chain()...)
	b.up(api.UpRequest{})
	err := b.m.Set(context.Background(), root, "duo", api.SetRequest{Set: []string{"look.dark=true"}})
	if !errors.Is(err, orchestrator.ErrState) || !strings.Contains(err.Error(), "berth up duo --set look.dark=true") {
		t.Errorf("Set: %v", err)
	}
}

// Where a desktop has nothing but applications that are started on demand, its writer runs again.
func TestSetRunsWritersAgain(t *testing.T) {
	dark := true
	d := newDressed(t, profiles.Look{Dark: &dark}, profiles.Locale{})
	d.plan.Components = append(d.plan.Components, profiles.Component{Name: "apps", Image: "img", Command: []string{"gnome-apps"},
		OnDemand: true, Optional: true, Restart: profiles.RestartNever})
	look.Extend(&d.plan)
	for _, name := range []string{"xsettingsd", "gnome-apps"} {
		d.engine.Handle(name, fake.Serve())
	}
	var wrote []string
	d.engine.Handle("sh", func(_ context.Context, p *fake.Process) int {
		d.mu.Lock()
		defer d.mu.Unlock()
		wrote = append(wrote, p.Container+": "+strings.Join(p.Args, " ")[:min(len(strings.Join(p.Args, " ")), 40)])
		return 0
	})
	d.up(api.UpRequest{})
	wrote = slices.DeleteFunc(wrote, func(s string) bool { return !strings.HasPrefix(s, "look-gnome: sh "+look.Dir+"/gnome.sh") })
	if len(wrote) != 1 {
		t.Errorf("the writer at the start: %q", wrote)
	}
	if got := d.file("gnome.sh"); !strings.Contains(got, "color-scheme='prefer-dark'") {
		t.Errorf("gnome.sh = %q", got)
	}
	if err := d.set("look.dark=false"); err != nil {
		t.Fatal(err)
	}
	if got := d.file("gnome.sh"); !strings.Contains(got, "color-scheme='default'") {
		t.Errorf("gnome.sh = %q", got)
	}
	if n := len(slices.DeleteFunc(slices.Clone(wrote), func(s string) bool { return !strings.HasPrefix(s, "look-gnome: ") })); n != 2 {
		t.Errorf("the writer ran %d times: %q", n, wrote)
	}
}
