package test

import (
	"fmt"
	"image"
	"strings"
	"testing"

	"berth/display/x11"
)

// TestMATE uses MATE as a person would, from the first picture to the log-out.
func TestMATE(t *testing.T) {
	s, c := wholeDesktop(t, "mate")
	waitFor(t, c, x11.Dock, x11.Desktop)
	awaitPicture(t, s.Name, "mate", func(img image.Image) string {
		b := img.Bounds()
		const panel = 24 // they are a little higher
		for place, r := range map[string]image.Rectangle{"top": image.Rect(0, 0, b.Dx(), panel), "bottom": image.Rect(0, b.Dy()-panel, b.Dx(), b.Dy())} {
			if n := share(img, r, bright); n < 0.6 {
				return fmt.Sprintf("the panel at the %s is bright to %.0f %%", place, 100*n)
			}
			if n := colours(img, r); n < 64 {
				return fmt.Sprintf("the panel at the %s shows %d colours", place, n)
			}
		}
		icons := image.Rect(30, 40, 150, 230)
		if n := share(img, icons, bright); n < 0.02 {
			return fmt.Sprintf("home and trash are not at %v", icons)
		}
		// Right of the icons.
		if n := wallpaperShare(t, img, image.Rect(200, 40, b.Dx(), b.Dy()-80)); n < 0.95 {
			return fmt.Sprintf("%.0f %% of the desktop show the wallpaper", 100*n)
		}
		return ""
	})
	for _, app := range []struct{ id, window string }{{"pluma", "Unsaved Document 1"}, {"caja-browser", "Caja"}, {"mate-terminal", "Mate-terminal"},
		{"matecc", "Control Center"}} {
		inst.Exec(t, s.Name, "panel", "gtk-launch", app.id)
		waitWindow(t, c, app.window)
	}
	if out := inst.Exec(t, s.Name, "panel", "notify-send", "--print-id", "A notification", "你好"); strings.TrimSpace(out) == "" {
		t.Error("a notification has no number")
	}
	shot(t, s.Name, "mate-apps")
	logOut(t, s, "panel", "mate-session-save", "--logout")
}
