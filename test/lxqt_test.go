package test

import (
	"fmt"
	"image"
	"strings"
	"testing"

	"berth/display/x11"
)

// TestLXQt uses LXQt as a person would, from the first picture to the log-out.
func TestLXQt(t *testing.T) {
	s, c := wholeDesktop(t, "lxqt")
	waitFor(t, c, x11.Dock, x11.Desktop)
	if name, _, err := c.WindowManager(t.Context()); err != nil || name != "Openbox" {
		t.Errorf("window manager %q, %v; want Openbox", name, err)
	}
	awaitPicture(t, s.Name, "lxqt", func(img image.Image) string {
		b := img.Bounds()
		panel := image.Rect(0, b.Max.Y-34, b.Max.X, b.Max.Y)
		if n := share(img, panel, bright); n < 0.7 {
			return fmt.Sprintf("the panel at %v is bright to %.0f %%", panel, 100*n)
		}
		launchers := image.Rect(0, panel.Min.Y, 160, panel.Max.Y)
		if n := colours(img, launchers); n < 100 {
			return fmt.Sprintf("the launchers at %v show %d colours; there are no icons", launchers, n)
		}
		clock := image.Rect(b.Max.X-160, panel.Min.Y, b.Max.X, panel.Max.Y)
		if share(img, clock, dark) == 0 {
			return fmt.Sprintf("there are no clock and indicators at %v", clock)
		}
		icons := image.Rect(20, 10, 120, 200)
		if n := share(img, icons, bright); n < 0.02 {
			return fmt.Sprintf("home and trash are not at %v", icons)
		}
		// Right of the icons.
		if n := wallpaperShare(t, img, image.Rect(160, 0, b.Max.X, b.Max.Y-60)); n < 0.95 {
			return fmt.Sprintf("%.0f %% of the desktop show the wallpaper", 100*n)
		}
		return ""
	})
	if out := inst.Exec(t, s.Name, "panel", "dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.Notifications",
		"/org/freedesktop/Notifications", "org.freedesktop.Notifications.GetServerInformation"); !strings.Contains(out, "lxqt") {
		t.Errorf("notifications are shown by %s", out)
	}
	for _, app := range []struct{ id, window string }{
		{"pcmanfm-qt", "user"}, {"qterminal", "qterminal"}, {"featherpad", "FeatherPad"}, {"lxqt-config", "Configuration Center"},
	} {
		inst.Exec(t, s.Name, "panel", "gtk-launch", app.id)
		waitWindow(t, c, app.window)
	}
	shot(t, s.Name, "lxqt-apps")
	logOut(t, s, "panel", "dbus-send", "--session", "--print-reply", "--dest=org.lxqt.session", "/LXQtSession", "org.lxqt.session.logout")
}
