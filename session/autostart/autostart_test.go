package autostart

import (
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"berth/profiles"
)

func TestOff(t *testing.T) {
	entry := func(exec string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte("[Desktop Entry]\nType=Application\nName=X\nExec=" + exec + "\n"), Mode: 0o644}
	}
	root := fstest.MapFS{
		"etc/xdg/autostart/xfce4-notifyd.desktop":   entry("/usr/lib/x86_64-linux-gnu/xfce4/notifyd/xfce4-notifyd"),
		"etc/xdg/autostart/xfsettingsd.desktop":     entry("xfsettingsd"),
		"etc/xdg/autostart/plasmashell.desktop":     entry("plasmashell"),
		"etc/xdg/autostart/polkit.desktop":          entry("/usr/lib/policykit-1-gnome/polkit-gnome-authentication-agent-1"),
		"etc/xdg/autostart/locker.desktop":          entry("env X=1 light-locker"),
		"etc/xdg/autostart/pulse.desktop":           entry("start-pulseaudio-x11"),
		"etc/xdg/autostart/applet.desktop":          entry("sh -c \"nm-applet --indicator\""),
		"etc/xdg/autostart/user-dirs.desktop":       entry("xdg-user-dirs-update"),
		"etc/xdg/autostart/hidden.desktop":          {Data: []byte("[Desktop Entry]\nType=Application\nExec=tint2\nHidden=true\n")},
		"etc/xdg/autostart/broken.desktop":          {Data: []byte("tint2\n")},
		"etc/xdg/autostart/README":                  entry("tint2"),
		"etc/xdg/autostart/escape.desktop":          {Data: []byte("../../../../etc/passwd"), Mode: 0o777 | fs.ModeSymlink},
		"etc/xdg/autostart/directory.desktop/hello": entry("tint2"),
	}
	entries, err := Entries(root)
	if err != nil {
		t.Fatal(err)
	}
	plan := &profiles.Plan{Components: []profiles.Component{
		{Name: "sound", Command: []string{"/usr/bin/pipewire"}, Provides: []string{"audio"}},
		{Name: "applet", Command: []string{"/usr/bin/nm-applet"}},
		{Name: "shell", Command: []string{"gnome-shell"}, Provides: []string{"window-manager", "panel", "desktop", "notifications"}},
		{Name: "look", Command: []string{"gsd-xsettings"}, Provides: []string{"settings"}},
	}}
	want := []profiles.AutostartOff{
		{Image: "xfce", File: "applet.desktop", Owner: "applet"},
		{Image: "xfce", File: "plasmashell.desktop", Owner: "shell"},
		{Image: "xfce", File: "pulse.desktop", Owner: "sound"},
		{Image: "xfce", File: "xfce4-notifyd.desktop", Owner: "shell"},
		{Image: "xfce", File: "xfsettingsd.desktop", Owner: "look"},
	}
	if diff := cmp.Diff(want, Off(entries, "xfce", plan)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
