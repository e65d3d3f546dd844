package test

import (
	"bytes"
	"context"
	"fmt"
	"image"
	_ "image/jpeg" // what vncsnapshot writes
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"berth/test/berthtest"
)

// TestVNC takes a picture with a VNC client from a package, by the printed address and password.
func TestVNC(t *testing.T) {
	inst.NothingLeft(t)
	s := inst.Up(t, "xfce", "--name", "vnc", "--set", `home.kind="ephemeral"`, "--set", "display.size=1024x768")
	host, port, err := net.SplitHostPort(s.Remote.VNC)
	if err != nil {
		t.Fatal(err)
	}
	var display int
	fmt.Sscan(port, &display)
	dir := t.TempDir()
	snap := func(password string) (string, error) {
		pw, file := filepath.Join(dir, "passwd"), filepath.Join(dir, "shot.jpg")
		hash := exec.Command("vncpasswd", "-f")
		hash.Stdin = strings.NewReader(password + "\n")
		b, err := hash.Output()
		if err != nil {
			t.Fatalf("vncpasswd: %v", err)
		}
		if err := os.WriteFile(pw, b, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
		defer cancel()
		out, err := exec.CommandContext(ctx, "vncsnapshot", "-passwd", pw, "-quality", "90", fmt.Sprintf("%s:%d", host, display-5900), file).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		return file, nil
	}
	file, err := snap(s.Remote.Password)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, _, err := image.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if got := img.Bounds().Size(); got != image.Pt(1024, 768) {
		t.Errorf("the VNC picture is %v; want 1024x768", got)
	}
	if n := colours(img, img.Bounds()); n < 64 {
		t.Errorf("the VNC picture has %d colours", n)
	}
	if _, err := snap("wrong-pw"); err == nil {
		t.Error("a wrong password was accepted")
	}
}

// TestBrowser uses a session as a person does: opens the printed URL in Chromium, types into a terminal, makes the
// window smaller, and looks at the list.
func TestBrowser(t *testing.T) {
	inst.NothingLeft(t)
	s := inst.Up(t, "xfce", "--name", "web", "--set", `home.kind="ephemeral"`, "--set", "display.size=1024x768")
	page := browser(t, 1300, 850)
	do := func(actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		ctx, cancel := context.WithTimeout(page, berthtest.Patience/3)
		defer cancel()
		if err := chromedp.Do(ctx, actions...); err != nil {
			if shown, serr := chromedp.Run(page, chromedp.CaptureScreenshot()); serr == nil {
				keep(t, "page-failed.png", shown)
			}
			t.Fatal(err)
		}
	}
	do(chromedp.Navigate(s.Remote.Web), chromedp.WaitVisible("#screen canvas"))
	wantSize := func(w, h int) {
		t.Helper()
		want := fmt.Sprintf("%dx%d", w, h)
		berthtest.WaitUntil(t, "a screen of "+want, func() bool { return inst.Show(t, s.Name).Display.Size == want })
	}
	wantSize(1300, 850)

	inst.Exec(t, s.Name, "panel", "sh", "-c", "setsid xfce4-terminal >/dev/null 2>&1 &")
	c := screen(t, s)
	berthtest.WaitUntil(t, "a terminal", func() bool {
		for _, w := range windows(t, c) {
			if w.Mapped && strings.Contains(strings.ToLower(w.Class), "xfce4-terminal") {
				return true
			}
		}
		return false
	})
	before := shot(t, s.Name, "browser-before")
	berthtest.WaitUntil(t, "the typed command's file", func() bool {
		do(chromedp.Click("#screen canvas"), chromedp.KeyEvent("echo Typed_In_Chromium >/tmp/typed"+kb.Enter))
		r, err := inst.Do(context.Background(), "exec", s.Name, "panel", "--", "cat", "/tmp/typed")
		return err == nil && strings.TrimSpace(r.Stdout) == "Typed_In_Chromium"
	})
	berthtest.WaitUntil(t, "a changed picture in the page", func() bool {
		return same(before, shot(t, s.Name, "browser-after")) == false
	})
	shown, err := chromedp.Run(page, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	keep(t, "page-desktop.png", shown)
	img, err := png.Decode(bytes.NewReader(shown))
	if err != nil {
		t.Fatal(err)
	}
	if n := colours(img, img.Bounds()); n < 64 {
		t.Errorf("the page shows %d colours", n)
	}

	do(chromedp.EmulateViewport(900, 600))
	wantSize(900, 600)

	base, _, _ := strings.Cut(s.Remote.Web, "/s/")
	do(chromedp.Navigate(base+"/"), chromedp.WaitVisible(`a[href*="/s/web"] img`))
	text, err := chromedp.Run(page, chromedp.Text("body"))
	if err != nil {
		t.Fatal(err)
	}
	if shown, err = chromedp.Run(page, chromedp.CaptureScreenshot()); err != nil {
		t.Fatal(err)
	}
	keep(t, "page-list.png", shown)
	if !strings.Contains(text, "web") {
		t.Errorf("the list does not name the session: %q", text)
	}
}

// browser starts Chromium with a window of the given size in pixels and ends it with the test.
func browser(t *testing.T, width, height int) context.Context {
	t.Helper()
	alloc, stopAlloc := chromedp.NewExecAllocator(context.Background(), chromedp.ExecPath("/usr/bin/chromium"), chromedp.UserDataDir(t.TempDir()),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.WindowSize(width, height),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.WSURLReadTimeout(berthtest.Patience))
	t.Cleanup(stopAlloc)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(stop)
	// The first run starts the browser and must not have a deadline, which would end it.
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank"), chromedp.EmulateViewport(int64(width), int64(height))); err != nil {
		t.Fatal(err)
	}
	return ctx
}

func keep(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(pictures, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func same(a, b image.Image) bool {
	if a.Bounds() != b.Bounds() {
		return false
	}
	for y := a.Bounds().Min.Y; y < a.Bounds().Max.Y; y++ {
		for x := a.Bounds().Min.X; x < a.Bounds().Max.X; x++ {
			if a.At(x, y) != b.At(x, y) {
				return false
			}
		}
	}
	return true
}
