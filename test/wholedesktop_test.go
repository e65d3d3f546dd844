package test

import (
	"image"
	"image/jpeg"
	"slices"
	"testing"

	"berth/assets"
	"berth/display/x11"
	"berth/session/api"
	"berth/test/berthtest"
)

// wholeDesktop starts a built-in profile and checks what all desktops have in common: every component is there, the screen
// has the size that was asked for, a window manager runs, and no dialog has come up by itself.
func wholeDesktop(t *testing.T, profile string) (api.Session, *x11.Conn) {
	t.Helper()
	inst.NothingLeft(t)
	s := inst.Up(t, profile, "--name", "t-"+profile, "--set", `home.kind="ephemeral"`, "--set", "display.size=1280x800")
	if s.State != api.StateRunning {
		t.Errorf("state = %q; want running", s.State)
	}
	for _, c := range s.Components {
		if c.State != "ready" && c.State != "exited" {
			t.Errorf("component %s is %s: %s", c.Name, c.State, c.Error)
		}
	}
	c := screen(t, s)
	waitFor(t, c, x11.WM)
	for _, w := range windows(t, c) {
		if w.Mapped && w.Is("DIALOG") {
			t.Errorf("a dialog nobody asked for: %q", w.Title)
		}
	}
	return s, c
}

// logOut runs a command in a component that logs the user out, and waits for the session's end. Until then nothing may
// have been restarted.
func logOut(t *testing.T, s api.Session, component string, argv ...string) {
	t.Helper()
	for _, c := range inst.Show(t, s.Name).Components {
		if c.Restarts != 0 {
			t.Errorf("component %s was restarted %d times: %s", c.Name, c.Restarts, c.Error)
		}
	}
	inst.Exec(t, s.Name, component, argv...)
	berthtest.WaitUntil(t, "the end of the session", func() bool {
		return !slices.ContainsFunc(inst.List(t), func(o api.Session) bool { return o.Name == s.Name })
	})
}

// awaitPicture takes pictures of a session until nothing is amiss with one. The last is kept under name.
func awaitPicture(t *testing.T, session, name string, amiss func(image.Image) string) {
	t.Helper()
	last := ""
	t.Cleanup(func() {
		if t.Failed() && last != "" {
			t.Logf("picture %s: %s", name, last)
		}
	})
	berthtest.WaitUntil(t, "picture "+name+" as it should be", func() bool {
		last = amiss(shot(t, session, name))
		return last == ""
	})
}

// share returns which share of the pixels of a rectangle have a colour for which is holds.
func share(img image.Image, r image.Rectangle, is func(r, g, b int) bool) float64 {
	r = r.Intersect(img.Bounds())
	n := 0
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			if r, g, b, _ := img.At(x, y).RGBA(); is(int(r>>8), int(g>>8), int(b>>8)) {
				n++
			}
		}
	}
	return float64(n) / float64(max(1, r.Dx()*r.Dy()))
}

func dark(r, g, b int) bool   { return max(r, g, b) < 64 }
func bright(r, g, b int) bool { return min(r, g, b) > 160 }

// wallpaperShare returns which share of a rectangle of a screen shows the wallpaper that Berth's images bring, scaled such
// that it covers the screen.
func wallpaperShare(t testing.TB, screen image.Image, r image.Rectangle) float64 {
	t.Helper()
	f, err := assets.Images.Open("desktop/files/usr/share/backgrounds/berth/harbour.jpg")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	paper, err := jpeg.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	sb, pb := screen.Bounds(), paper.Bounds()
	scale := max(float64(sb.Dx())/float64(pb.Dx()), float64(sb.Dy())/float64(pb.Dy()))
	// A point of the screen is here in the picture, of which the screen shows the middle.
	at := func(v, screen, paper int) int {
		return min(max(0, int((float64(v)+0.5-float64(screen)/2)/scale+float64(paper)/2)), paper-1)
	}
	const step, tolerance = 5, 20 // scaling blurs edges
	same, all := 0, 0
	for y := r.Min.Y; y < r.Max.Y; y += step {
		for x := r.Min.X; x < r.Max.X; x += step {
			ar, ag, ab, _ := screen.At(x, y).RGBA()
			br, bg, bb, _ := paper.At(at(x, sb.Dx(), pb.Dx()), at(y, sb.Dy(), pb.Dy())).RGBA()
			far := func(a, b uint32) bool { return max(a, b)>>8-min(a, b)>>8 > tolerance }
			all++
			if !far(ar, br) && !far(ag, bg) && !far(ab, bb) {
				same++
			}
		}
	}
	return float64(same) / float64(max(1, all))
}
