package test

import (
	"fmt"
	"image"
	"strings"
	"testing"

	"berth/display/x11"
)

// TestKDE uses Plasma as a person would, from the first picture to the log-out, on Debian 13 by shutting down.
func TestKDE(t *testing.T) {
	for _, tc := range []struct {
		profile string
		end     string // method of org.kde.Shutdown
	}{{"kde", "logout"}, {"kde-13", "logoutAndShutdown"}} {
		t.Run(tc.profile, func(t *testing.T) {
			s, c := wholeDesktop(t, tc.profile)
			waitFor(t, c, x11.Dock, x11.Desktop)
			if name, _, err := c.WindowManager(t.Context()); err != nil || name != "KWin" {
				t.Errorf("window manager %q, %v; want KWin", name, err)
			}
			call := func(dest, path, method string) string {
				return inst.Exec(t, s.Name, "panel", "dbus-send", "--session", "--print-reply", "--dest="+dest, path, method)
			}
			awaitPicture(t, s.Name, tc.profile, func(img image.Image) string { return amissOnPlasma(t, img) })
			if out := call("org.freedesktop.Notifications", "/org/freedesktop/Notifications",
				"org.freedesktop.Notifications.GetServerInformation"); !strings.Contains(out, "Plasma") {
				t.Errorf("notifications are shown by %s", out)
			}
			// What the bus starts when it is asked: the keyboard shortcuts that all parts of Plasma have.
			if out := call("org.kde.kglobalaccel", "/kglobalaccel", "org.kde.KGlobalAccel.allComponents"); !strings.Contains(out, "/component/kwin") {
				t.Errorf("the window manager has no shortcuts: %s", out)
			}
			for _, app := range []struct{ id, window string }{
				{"org.kde.dolphin", "dolphin"}, {"org.kde.konsole", "konsole"}, {"org.kde.kwrite", "kwrite"}, {"systemsettings", "systemsettings"},
			} {
				inst.Exec(t, s.Name, "panel", "gtk-launch", app.id)
				waitWindow(t, c, app.window)
			}
			shot(t, s.Name, tc.profile+"-apps")
			logOut(t, s, "panel", "dbus-send", "--session", "--print-reply", "--dest=org.kde.Shutdown", "/Shutdown", "org.kde.Shutdown."+tc.end)
		})
	}
}

// amissOnPlasma says what is wrong with a picture of Plasma's desktop without windows: a bright panel at the bottom with
// icons at its left and the clock at its right, and the wallpaper above.
func amissOnPlasma(t *testing.T, img image.Image) string {
	b := img.Bounds()
	// Plasma 6 leaves a margin around it.
	panel := image.Rect(12, b.Max.Y-36, b.Max.X-12, b.Max.Y-12)
	if n := share(img, panel, bright); n < 0.7 {
		return fmt.Sprintf("the panel at %v is bright to %.0f %%", panel, 100*n)
	}
	icons := image.Rect(12, panel.Min.Y, 400, panel.Max.Y)
	if n := colours(img, icons); n < 200 {
		return fmt.Sprintf("the launchers at %v show %d colours; there are no icons", icons, n)
	}
	clock := image.Rect(b.Max.X-200, panel.Min.Y, b.Max.X-20, panel.Max.Y)
	if share(img, clock, dark) == 0 {
		return fmt.Sprintf("there is no clock at %v", clock)
	}
	if n := wallpaperShare(t, img, image.Rect(0, 0, b.Max.X, b.Max.Y-80)); n < 0.95 {
		return fmt.Sprintf("%.0f %% of the desktop show the wallpaper", 100*n)
	}
	return ""
}
