package test

import (
	"context"
	"image"
	"strings"
	"testing"
	"time"

	"berth/display/x11"
	"berth/session/api"
	"berth/test/berthtest"
)

// TestLook starts XFCE with a look, in a home in which the user had chosen another one, and changes it while it runs.
func TestLook(t *testing.T) {
	inst.NothingLeft(t)
	const name = "t-look"
	t.Cleanup(func() { inst.Do(context.Background(), "rm", "--home", name) })
	s := inst.Up(t, "xfce", "--name", name)
	inst.Exec(t, name, "settings", "xfconf-query", "-n", "-c", "xsettings", "-p", "/Net/ThemeName", "-t", "string", "-s", "Greybird")
	inst.Exec(t, name, "settings", "xfconf-query", "-n", "-c", "xsettings", "-p", "/Gtk/CursorThemeName", "-t", "string", "-s", "DMZ-Black")
	inst.Run(t, "stop", name)

	s = inst.Up(t, "xfce", "--name", name, "--set", "display.size=1280x800", "--set", "look.dark=true", "--set", "look.font=DejaVu Sans 11",
		"--set", "look.scale=1.5", "--set", `locale.keyboard=["us", "de(nodeadkeys)"]`)
	if s.State != api.StateRunning {
		t.Errorf("state = %q; want running", s.State)
	}
	c := screen(t, s)
	settings := func() string { return inst.Exec(t, name, "display", "env", "DISPLAY=:0", "dump_xsettings") }
	has := func(what, got string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s has no %q:\n%s", what, w, got)
			}
		}
	}
	// What the profile does not say the user has said.
	has("XSETTINGS", settings(), `Net/ThemeName "Greybird-dark"`, `Gtk/FontName "DejaVu Sans 11"`, "Xft/DPI 147456", "Gtk/CursorThemeSize 36",
		`Gtk/CursorThemeName "DMZ-Black"`)
	keyboard := func() string { return inst.Exec(t, name, "display", "env", "DISPLAY=:0", "setxkbmap", "-query") }
	has("the keyboard", keyboard(), "us,de\n", ",nodeadkeys\n", "grp:alt_shift_toggle")
	ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
	defer cancel()
	resources, err := c.Resources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	has("the resources", resources, "Xft.dpi:\t144\n", "Xcursor.size:\t36\n")

	inst.Exec(t, name, "panel", "sh", "-c", "thunar >/dev/null 2>&1 &")
	shows := func(what string, cond func(brightness int) bool) {
		t.Helper()
		last := -1
		berthtest.WaitUntil(t, "a window that is "+what, func() bool {
			for _, w := range windows(t, c) {
				if w.Mapped && w.Class == "Thunar" && w.Is("NORMAL") {
					b := brightness(shot(t, name, "look-"+what), w.Bounds)
					if b != last {
						t.Logf("%s: brightness %d of 255 at %v", what, b, w.Bounds)
						last = b
					}
					return cond(b)
				}
			}
			return false
		})
	}
	shows("dark", func(b int) bool { return b < 80 })
	inst.Run(t, "set", name, "look.dark=false", "look.scale=1", `locale.keyboard=["fr"]`)
	shows("light", func(b int) bool { return b > 170 })
	has("XSETTINGS", settings(), `Net/ThemeName "Greybird"`, `Gtk/FontName "DejaVu Sans 11"`, "Xft/DPI 98304")
	has("the keyboard", keyboard(), "fr\n")

	if got := inst.Fail(t, "set", name, "display.size=800x600"); !strings.Contains(got, "display.size cannot change while a session runs; these can: look.dark") {
		t.Errorf("a key that cannot change: %s", got)
	}
	if got := inst.Fail(t, "set", name, `locale.keyboard=["qq"]`); !strings.Contains(got, `keyboard "qq"`) {
		t.Errorf("an unknown layout: %s", got)
	}
	has("the keyboard", keyboard(), "fr\n")
}

// brightness is the middle of all pixels of r, from 0 to 255.
func brightness(img image.Image, r image.Rectangle) int {
	r = r.Intersect(img.Bounds())
	sum, n := 0, 0
	for y := r.Min.Y; y < r.Max.Y; y += 3 {
		for x := r.Min.X; x < r.Max.X; x += 3 {
			r, g, b, _ := img.At(x, y).RGBA()
			sum += int(r>>8+g>>8+b>>8) / 3
			n++
		}
	}
	if n == 0 {
		return -1
	}
	return sum / n
}

// TestLookOfOpenbox has a manager of XSETTINGS that Berth adds.
func TestLookOfOpenbox(t *testing.T) {
	inst.NothingLeft(t)
	s := inst.Up(t, "openbox", "--name", "t-look-openbox", "--set", `home.kind="ephemeral"`, "--set", "look.dark=true", "--set", "look.theme=Adwaita-dark")
	read := func() string { return inst.Exec(t, s.Name, "xsettings", "env", "DISPLAY=:0", "dump_xsettings") }
	if got := read(); !strings.Contains(got, `Net/ThemeName "Adwaita-dark"`) {
		t.Errorf("XSETTINGS:\n%s", got)
	}
	inst.Run(t, "set", s.Name, "look.theme=Greybird", "look.dark=false")
	berthtest.WaitUntil(t, "the new theme", func() bool { return strings.Contains(read(), `Net/ThemeName "Greybird"`) })
	if got := inst.Exec(t, s.Name, "panel", "cat", "/home/user/.config/openbox/rc.xml"); !strings.Contains(got, "<name>Greybird</name>") {
		t.Errorf("rc.xml:\n%s", got)
	}
}

// TestInputMethod types Chinese into a program of GTK and one of Qt, each in another image than the input method.
func TestInputMethod(t *testing.T) {
	inst.NothingLeft(t)
	s := inst.Up(t, "xfce", "--name", "t-input", "--set", `home.kind="ephemeral"`, "--set", "display.size=1280x800", "--set", "locale.lang=zh_CN.UTF-8",
		"--set", "locale.input_method=fcitx5", "--set", `components.qt={image="kde", command=["sleep", "infinity"], after=["window-manager"]}`)
	c := screen(t, s)
	for _, tc := range []struct{ toolkit, component, command, class string }{
		{"gtk", "panel", "mousepad", "Mousepad"},
		{"qt", "qt", "kate", "kate"},
	} {
		t.Run(tc.toolkit, func(t *testing.T) {
			file := "/home/user/" + tc.toolkit + ".txt"
			inst.Exec(t, s.Name, tc.component, "sh", "-c", ": >"+file+"; "+tc.command+" "+file+" >/tmp/"+tc.toolkit+".log 2>&1 &")
			typeChinese(t, c, tc.class)
			shot(t, s.Name, "input-"+tc.toolkit)
			ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
			defer cancel()
			berthtest.WaitUntil(t, "what was typed in "+file, func() bool {
				if err := c.Key(ctx, 's', x11.KeyCtrl); err != nil {
					t.Fatal(err)
				}
				return strings.Contains(inst.Exec(t, s.Name, "panel", "cat", file), "你好")
			})
		})
	}
}

// typeChinese types "nihao" into the window of a class, and takes the first candidate.
func typeChinese(t *testing.T, c *x11.Conn, class string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	find := func(match func(x11.Window) bool) (x11.Window, bool) {
		for _, w := range windows(t, c) {
			if w.Mapped && match(w) {
				return w, true
			}
		}
		return x11.Window{}, false
	}
	candidates := func() bool {
		_, ok := find(func(w x11.Window) bool { return w.Title == "Fcitx5 Input Window" })
		return ok
	}
	var target x11.Window
	berthtest.WaitUntil(t, "a window of "+class, func() (ok bool) {
		target, ok = find(func(w x11.Window) bool { return strings.EqualFold(w.Class, class) && w.Is("NORMAL") })
		return ok
	})
	// A program that has just begun does not know its input method yet: then letters arrive as they are, and it is tried
	// again. The switch is pressed in every other try only, since the one before may have worked.
	for try := 0; !candidates(); try++ {
		must(c.Move(ctx, (target.Bounds.Min.X+target.Bounds.Max.X)/2, (target.Bounds.Min.Y+target.Bounds.Max.Y)/2))
		must(c.Click(ctx, 1))
		if try > 0 {
			must(c.Key(ctx, 'a', x11.KeyCtrl))
			must(c.Key(ctx, x11.KeyBackspace))
		}
		if try%2 == 0 {
			must(c.Key(ctx, ' ', x11.KeyCtrl))
		}
		must(c.Type(ctx, "nihao"))
		for range 30 {
			if candidates() {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if ctx.Err() != nil {
			t.Fatalf("the input method offers nothing; windows: %+v", windows(t, c))
		}
	}
	must(c.Key(ctx, ' '))
	berthtest.WaitUntil(t, "the end of the choice", func() bool { return !candidates() })
}
