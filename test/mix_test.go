package test

import (
	"fmt"
	"image"
	"slices"
	"strings"
	"testing"

	"berth/display/x11"
	"berth/internal/desktopentry"
	"berth/session/api"
	"berth/test/berthtest"
)

// TestMixes starts every built-in profile that mixes desktops: the parts come from where the profile says, an application
// of each other image is started from the menu's own data, and the log-out of the desktop that owns the session ends it.
func TestMixes(t *testing.T) {
	kdeLogOut := []string{"panel", "dbus-send", "--session", "--print-reply", "--dest=org.kde.Shutdown", "/Shutdown", "org.kde.Shutdown.logout"}
	gnomeLogOut := []string{"session", "gdbus", "call", "--session", "--dest=org.gnome.SessionManager", "--object-path=/org/gnome/SessionManager",
		"--method=org.gnome.SessionManager.Logout", "1"}
	xfceLogOut := []string{"session", "xfce4-session-logout", "--logout", "--fast"}
	type app struct{ from, image, id, window string } // the component whose menu it is in, its image, desktop file and window
	for _, tc := range []struct {
		profile string
		wm      string
		docks   []image.Rectangle // in the order of their place, on a screen of 1280x800
		apps    []app
		logOut  []string
	}{
		{"kde-gnome", "KWin", []image.Rectangle{image.Rect(0, 700, 1280, 800)},
			[]app{{"panel", "gnome", "org.gnome.Calculator", "Calculator"}, {"panel", "gnome", "org.gnome.Nautilus", "org.gnome.Nautilus"}}, kdeLogOut},
		{"kde-13-gnome", "KWin", []image.Rectangle{image.Rect(0, 700, 1280, 800)},
			[]app{{"panel", "gnome", "org.gnome.TextEditor", "Text Editor"}}, kdeLogOut},
		{"gnome-kde", "GNOME Shell", nil,
			[]app{{"shell", "kde", "org.kde.dolphin", "dolphin"}, {"shell", "kde", "org.kde.konsole", "konsole"}}, gnomeLogOut},
		{"xfce-kwin", "KWin", []image.Rectangle{image.Rect(0, 700, 1280, 800)},
			[]app{{"panel", "kde", "org.kde.kwrite", "kwrite"}}, xfceLogOut},
		{"kde-xfwm4", "Xfwm4", []image.Rectangle{image.Rect(0, 700, 1280, 800)},
			[]app{{"panel", "xfce", "org.xfce.mousepad", "Mousepad"}}, kdeLogOut},
		{"kde-xfce", "KWin", []image.Rectangle{image.Rect(0, 0, 1280, 100), image.Rect(0, 700, 1280, 800)},
			[]app{{"panel", "xfce", "thunar", "Thunar"}, {"top-panel", "kde", "org.kde.dolphin", "dolphin"}}, kdeLogOut},
		{"kde-window-xfce", "KWin", []image.Rectangle{image.Rect(0, 700, 1280, 800)},
			[]app{{"panel", "xfce", "org.xfce.mousepad", "Mousepad"}}, kdeLogOut},
	} {
		t.Run(tc.profile, func(t *testing.T) {
			inst.NothingLeft(t)
			s := inst.Up(t, tc.profile, "--name", "t-"+tc.profile, "--set", `home.kind="ephemeral"`, "--set", "display.size=1280x800")
			for _, c := range s.Components {
				if !slices.Contains([]string{"ready", "exited", "idle"}, c.State) {
					t.Errorf("component %s is %s: %s", c.Name, c.State, c.Error)
				}
			}
			c := screen(t, s)
			waitFor(t, c, x11.WM)
			if name, _, err := c.WindowManager(t.Context()); err != nil || !strings.EqualFold(name, tc.wm) {
				t.Errorf("window manager %q, %v; want %s", name, err, tc.wm)
			}
			berthtest.WaitUntil(t, fmt.Sprintf("panels at %v", tc.docks), func() bool {
				return slices.Equal(places(windows(t, c), tc.docks), tc.docks)
			})
			awaitPicture(t, s.Name, tc.profile, func(img image.Image) string {
				if amiss := lookAt(t, c, img); amiss != "" || tc.docks == nil { // GNOME begins with its overview
					return amiss
				}
				sky := image.Rect(200, 120, 1080, 300)
				if n := wallpaperShare(t, img, sky); n < 0.5 && tc.profile != "kde-window-xfce" {
					return fmt.Sprintf("%.0f %% of the desktop show the wallpaper", 100*n)
				}
				return ""
			})
			opened := map[string]image.Rectangle{}
			for _, a := range tc.apps {
				startFromMenu(t, s, a.from, "apps-"+a.image, a.id)
				w := waitWindow(t, c, a.window)
				opened[a.id] = w.Bounds
				// Which is a process of that image's component.
				if exe := inst.Exec(t, s.Name, "apps-"+a.image, "ls", fmt.Sprintf("/proc/%d/exe", w.PID)); w.PID != 0 && exe == "" {
					t.Errorf("the window %q is no process of the session", w.Title)
				}
			}
			for _, w := range windows(t, c) {
				if w.Mapped && w.Is("DIALOG") {
					t.Errorf("a dialog nobody asked for: %q of %s", w.Title, w.Class)
				}
			}
			// A window is drawn a moment after it is mapped.
			awaitPicture(t, s.Name, tc.profile+"-apps", func(img image.Image) string {
				for id, r := range opened {
					if n := wallpaperShare(t, img, r.Intersect(img.Bounds())); n > 0.5 {
						return fmt.Sprintf("the window of %s at %v shows the wallpaper to %.0f %%", id, r, 100*n)
					}
				}
				return ""
			})
			logOut(t, s, tc.logOut[0], tc.logOut[1:]...)
		})
	}
}

// places says in which of the areas a panel lies, in their order.
func places(all []x11.Window, areas []image.Rectangle) (out []image.Rectangle) {
	for _, area := range areas {
		if slices.ContainsFunc(all, func(w x11.Window) bool {
			return w.Mapped && w.Is("DOCK") && !w.Bounds.Empty() && w.Bounds.In(area)
		}) {
			out = append(out, area)
		}
	}
	return out
}

// startFromMenu starts an application as the menus of component do, by what the export of another image says.
func startFromMenu(t *testing.T, s api.Session, component, apps, id string) {
	t.Helper()
	text := inst.Exec(t, s.Name, component, "cat", "/run/berth/exports/"+apps+"/share/applications/"+id+".desktop")
	e, err := desktopentry.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	argv, err := desktopentry.SplitExec(e.Main().Get("Exec"))
	if err != nil {
		t.Fatal(err)
	}
	if argv, err = desktopentry.Expand(argv, desktopentry.Fields{Name: e.Main().Get("Name"), Icon: e.Main().Get("Icon")}); err != nil {
		t.Fatal(err)
	}
	inst.Exec(t, s.Name, component, argv...)
}
