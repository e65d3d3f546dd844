package test

import (
	"context"
	"fmt"
	"image"
	"strings"
	"testing"

	"berth/test/berthtest"
)

// TestGNOME uses GNOME as a person would, from the first picture to the log-out.
func TestGNOME(t *testing.T) {
	for _, profile := range []string{"gnome", "gnome-13"} {
		t.Run(profile, func(t *testing.T) {
			s, c := wholeDesktop(t, profile)
			if s.Display.Size != "1280x800" {
				t.Errorf("size = %s; want 1280x800: the window manager has chosen one of its own", s.Display.Size)
			}
			call := func(argv ...string) string {
				return inst.Exec(t, s.Name, "shell", append([]string{"gdbus", "call", "--session"}, argv...)...)
			}

			// It comes up with the overview: the workspace in the middle, the dash below.
			awaitPicture(t, s.Name, profile+"-overview", func(img image.Image) string {
				workspace := image.Rect(300, 200, 980, 600)
				if n := share(img, workspace, dark); n > 0.5 {
					return fmt.Sprintf("%.0f %% of the workspace at %v are dark", 100*n, workspace)
				}
				dash := image.Rect(430, 690, 850, 790)
				if n := colours(img, dash); n < 1000 {
					return fmt.Sprintf("the dash at %v shows %d colours; there are no icons", dash, n)
				}
				return ""
			})

			call("--dest=org.gnome.Shell", "--object-path=/org/gnome/Shell", "--method=org.freedesktop.DBus.Properties.Set",
				"org.gnome.Shell", "OverviewActive", "<false>")
			desktop := func(img image.Image) string { return amissOnGNOME(t, img) }
			awaitPicture(t, s.Name, profile, desktop)

			// A viewer changes the size, and the window manager follows instead of insisting on its own.
			ctx, cancel := context.WithTimeout(t.Context(), berthtest.Patience)
			defer cancel()
			for _, size := range []image.Point{{1024, 700}, {1280, 800}} {
				if err := c.Resize(ctx, size.X, size.Y, 96); err != nil {
					t.Fatal(err)
				}
				awaitPicture(t, s.Name, profile, func(img image.Image) string {
					if got := img.Bounds().Size(); got != size {
						return fmt.Sprintf("the screen has %v; want %v", got, size)
					}
					return desktop(img)
				})
			}

			if out := call("--dest=org.freedesktop.Notifications", "--object-path=/org/freedesktop/Notifications",
				"--method=org.freedesktop.Notifications.GetServerInformation"); !strings.Contains(out, "gnome-shell") {
				t.Errorf("notifications are shown by %s", out)
			}
			for method, want := range map[string]string{"CanShutdown": "true", "IsSessionRunning": "true"} {
				if out := call("--dest=org.gnome.SessionManager", "--object-path=/org/gnome/SessionManager",
					"--method=org.gnome.SessionManager."+method); !strings.Contains(out, want) {
					t.Errorf("%s: %s; want %s", method, out, want)
				}
			}

			// As the dash does: by the desktop file's name.
			for _, app := range []struct{ id, window string }{
				{"org.gnome.TextEditor", "New Document"}, {"org.gnome.Nautilus", "org.gnome.Nautilus"}, {"org.gnome.Settings", "Settings"},
			} {
				inst.Exec(t, s.Name, "shell", "gtk-launch", app.id)
				waitWindow(t, c, app.window)
			}
			shot(t, s.Name, profile+"-apps")
			for _, w := range windows(t, c) {
				if strings.Contains(w.Class, "gnome-session-failed") {
					t.Error("gnome-session shows its page of failure")
				}
			}
			logOut(t, s, "session", "gdbus", "call", "--session", "--dest=org.gnome.SessionManager",
				"--object-path=/org/gnome/SessionManager", "--method=org.gnome.SessionManager.Logout", "1")
		})
	}
}

// amissOnGNOME says what is wrong with a picture of GNOME's desktop without windows: a black bar on top with something
// bright left, in the middle and right, and the wallpaper below.
func amissOnGNOME(t *testing.T, img image.Image) string {
	const bar = 24 // its height depends on the release and is more
	width := img.Bounds().Dx()
	top := image.Rect(0, 0, width, bar)
	if n := share(img, top, dark); n < 0.9 {
		return fmt.Sprintf("the bar is dark to %.0f %%", 100*n)
	}
	for part, r := range map[string]image.Rectangle{"left": {Max: image.Pt(100, bar)},
		"middle": image.Rect(width/2-60, 0, width/2+60, bar), "right": image.Rect(width-80, 0, width, bar)} {
		if share(img, r, bright) == 0 {
			return "nothing is on the bar " + part
		}
	}
	below := image.Rect(0, 40, width, img.Bounds().Dy())
	if n := wallpaperShare(t, img, below); n < 0.95 {
		return fmt.Sprintf("%.0f %% of the desktop show the wallpaper", 100*n)
	}
	return ""
}
