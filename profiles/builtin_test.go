package profiles_test

import (
	"io"
	"slices"
	"testing"

	"berth/assets"
	"berth/display/drivers"
	"berth/profiles"
	"berth/session/audio"
	"berth/session/bus"
	"berth/session/systembus"
)

// infra is what the daemon contributes.
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

// TestBuiltin: every built-in profile resolves with every display and sound server that needs nothing of the host, has
// what a desktop needs, and can be printed.
func TestBuiltin(t *testing.T) {
	src := profiles.Sources{{Name: "built-in", FS: assets.Profiles}}
	entries, err := profiles.List(src)
	if err != nil || len(entries) == 0 {
		t.Fatalf("no built-in profiles: %v", err)
	}
	for _, e := range entries {
		t.Run(e.Name, func(t *testing.T) {
			if e.Description == "" || e.Error != "" {
				t.Errorf("entry %+v, want a description and no error", e)
			}
			for _, set := range [][]string{nil, {"display.server=xvnc"}, {"audio.server=pulseaudio"}, {"audio.server=none"}, {"system_bus.kind=none"}} {
				plan, err := profiles.Resolve(e.Name, src, set, infra)
				if err != nil {
					t.Fatalf("%v: %v", set, err)
				}
				for _, role := range []string{"display", "vnc", "bus", "window-manager"} {
					if plan.Owner(role) == "" {
						t.Errorf("%v: nobody is the %s", set, role)
					}
				}
				if plan.Session == "" {
					t.Errorf("%v: no component's end is the log-out", set)
				}
				for _, c := range plan.Components {
					if len(c.Caps)+len(c.Devices) > 0 {
						t.Errorf("%v: component %q has privileges %v %v", set, c.Name, c.Caps, c.Devices)
					}
				}
				for _, write := range []func(io.Writer) error{plan.Text, plan.Graph, plan.SVG} {
					if err := write(io.Discard); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

func BenchmarkResolve(b *testing.B) {
	src := profiles.StandardSources("/nonexistent", -1, assets.Profiles)
	for b.Loop() {
		if _, err := profiles.Resolve("xfce", src, []string{"display.size=1280x720"}, infra); err != nil {
			b.Fatal(err)
		}
	}
}
