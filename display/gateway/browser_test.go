package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"berth/assets/web"
)

// tab is a tab of a real Chromium.
type tab struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex
	problems []string
}

// newTab starts a Chromium with a profile of its own. Errors on the page's console fail the test unless they are
// expected, that is, contain one of the words in allow.
func newTab(t testing.TB, width, height int, allow ...string) *tab {
	t.Helper()
	path := program(t, "chromium", "chromium")
	dir, err := os.MkdirTemp("", "gw-chromium")
	if err != nil {
		t.Fatal(err)
	}
	// Registered first, so that it runs when Chromium has ended.
	t.Cleanup(func() { os.RemoveAll(dir) })
	alloc, stop := chromedp.NewExecAllocator(context.Background(), chromedp.ExecPath(path), chromedp.UserDataDir(dir),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.WindowSize(width, height),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("hide-scrollbars", true),
		chromedp.WSURLReadTimeout(patience), chromedp.Env("HOME="+dir))
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(end)
	b := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range b.problems {
			t.Errorf("the page complains: %s", p)
		}
	})
	// The first run starts the browser and must not have a deadline, which would end it.
	b.must(chromedp.Do(ctx, chromedp.Navigate("about:blank")))
	b.must(chromedp.Listen(ctx, func(ev any) {
		var text string
		switch ev := ev.(type) {
		case *cdplog.EventEntryAdded:
			if ev.Entry.Level != cdplog.EntryLevelError {
				return
			}
			text = ev.Entry.Text + " " + ev.Entry.URL
		case *runtime.EventExceptionThrown:
			text = ev.ExceptionDetails.Text
			if e := ev.ExceptionDetails.Exception; e != nil {
				text += " " + e.Description
			}
		case *runtime.EventConsoleAPICalled:
			if ev.Type != runtime.ConsoleAPICalledTypeError {
				return
			}
			for _, a := range ev.Args {
				text += string(a.Value) + " "
			}
		default:
			return
		}
		for _, word := range allow {
			if strings.Contains(text, word) {
				return
			}
		}
		b.mu.Lock()
		b.problems = append(b.problems, text)
		b.mu.Unlock()
	}))
	b.run(call(cdplog.Enable, cdp.Empty{}))
	b.resize(width, height, 1, false)
	return b
}

func (b *tab) must(err error) {
	b.t.Helper()
	if err != nil {
		b.picture("failed")
		b.t.Fatal(err)
	}
}

// call is an action that sends one command of the protocol.
func call[P, R any](cmd cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, cmd, params)
		return err
	})
}

func (b *tab) run(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	b.must(chromedp.Do(ctx, actions...))
}

// eval evaluates an expression on the page.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	b.must(err)
	return v
}

// until waits until an expression on the page is true, across navigations.
func (b *tab) until(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`Boolean(`+expression+`)`))
		if ok {
			return
		}
		if ctx.Err() != nil {
			b.picture("failed")
			text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.body.innerText`))
			b.t.Fatalf("waited %v for %s (%v); the page says %q", patience, expression, err, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// picture saves a picture of the page below BERTH_SHOTS, if that is set.
func (b *tab) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("BERTH_SHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Logf("picture %s: %v", name, err)
		return
	}
	file := filepath.Join(dir, strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name+".png")
	if err := os.WriteFile(file, png, 0o644); err != nil {
		b.t.Error(err)
	}
}

// quote writes a string for JavaScript.
func quote(s string) string {
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // cannot be for a string
	}
	return string(q)
}

func (b *tab) resize(width, height int, scale float64, mobile bool) {
	b.t.Helper()
	b.run(call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: int64(width), Height: int64(height), DeviceScaleFactor: scale, Mobile: mobile}))
}

// builtPages are the real pages, as built.
func builtPages(t testing.TB) func(*Config) {
	t.Helper()
	files := web.Files()
	if _, err := fs.Stat(files, "index.html"); err != nil {
		t.Skip("the web page is not built: make web")
	}
	return func(c *Config) { c.Pages = files }
}

// realSessions are fakeSessions whose screens are real.
type realSessions struct {
	fakeSessions
	screens map[string]*realX
}

func (r *realSessions) Thumbnail(ctx context.Context, name string, maxWidth int) ([]byte, error) {
	x := r.screens[name]
	if x == nil {
		return nil, errors.New("no screen")
	}
	return x.png(ctx, maxWidth)
}

func (r *realSessions) Resize(ctx context.Context, name string, w, h int) (int, int, error) {
	x := r.screens[name]
	if x == nil {
		return 0, 0, errors.New("no screen")
	}
	size, err := x.fit(ctx, w, h)
	if err != nil {
		return 0, 0, err
	}
	s, ok := r.Get(name)
	if !ok {
		return 0, 0, errors.New("gone")
	}
	s.Width, s.Height = size.Width, size.Height
	r.set(s)
	return s.Width, s.Height, nil
}

// barShown: the toolbar has come to rest, so that clicks hit.
const barShown = `document.querySelector('#bar').classList.contains('shown') && !document.querySelector('#bar .tools').getAnimations().length`

// openBar shows it by its handle, if it is not shown anyway.
const openBar = `(document.querySelector('#bar').classList.contains('shown') || document.querySelector('#handle').click(), ` + barShown + `)`

const connected = `document.querySelector('#light')?.dataset.state === 'connected'`

// One logs in by the URL that `berth up` prints, sees the desktop, types into it; the desktop follows the window.
func TestBrowserDesktop(t *testing.T) {
	pages := builtPages(t)
	for _, kind := range []string{"xvfb", "xvnc"} {
		t.Run(kind, func(t *testing.T) {
			x := startX(t, kind, 800, 600)
			x.xterm()
			s := &realSessions{screens: map[string]*realX{"tide": x}}
			s.set(x.session("tide"))
			g := newGateway(t, s, pages)
			if err := g.start(); err != nil {
				t.Fatal(err)
			}
			sess, _ := s.Get("tide")
			// Failed connections are what this test brings about.
			b := newTab(t, 1100, 700, "WebSocket", "Failed when connecting", "status of 401", "status of 404", "status of 503")
			b.run(chromedp.Navigate(g.URL() + "/s/tide/"))
			b.until(`document.querySelector('#token') !== null`)
			b.run(chromedp.SendKeys("#token", "wrong"+kb.Enter))
			b.until(`document.querySelector('#login-error').innerText === 'Wrong token.'`)
			b.picture("login")
			eval[bool](b, `location.assign(`+quote(g.SessionURL(sess))+`), true`)
			b.until(connected)
			if got := eval[string](b, `location.href + ' ' + document.title`); got != g.URL()+"/s/tide/ tide" {
				t.Errorf("address and title = %q; want no token, and the session's name", got)
			}

			// The X screen becomes as large as the window, the canvas shows it one to one.
			follows := func(w, h int) {
				t.Helper()
				until(t, fmt.Sprintf("a screen of %dx%d", w, h), func() bool { gw, gh := x.size(); return gw == w && gh == h })
				b.until(fmt.Sprintf(`(() => { const c = document.querySelector('#screen canvas'); const r = c.getBoundingClientRect();
					return c.width === %d && c.height === %d && r.width === c.width && r.height === c.height; })()`, w, h))
			}
			follows(1100, 700)
			b.until(`(() => { const c = document.querySelector('#screen canvas'); const d = c.getContext('2d').getImageData(0, 0, 200, 60).data;
				return new Set(new Uint32Array(d.buffer)).size > 3; })()`) // the prompt is drawn
			b.picture("desktop")

			// Typing makes things happen, with the characters of shifted keys right.
			typed := func(command, file, want string) {
				t.Helper()
				b.run(chromedp.MouseClickXY(800, 500), chromedp.KeyEvent(command+kb.Enter))
				var got []byte
				until(t, "the command typed to write "+file, func() bool {
					got, _ = os.ReadFile(filepath.Join(x.dir, file))
					return len(got) > 0 && got[len(got)-1] == '\n'
				})
				if string(got) != want {
					t.Errorf("%s holds %q; want %q", file, got, want)
				}
			}
			typed(`echo "Hello, World: ~{a}|B_c" > typed`, "typed", "Hello, World: ~{a}|B_c\n")
			// So are those of other layouts, which the X server's own lacks.
			press := func(key string) chromedp.Action[chromedp.Void] {
				return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
					for _, typ := range []input.DispatchKeyEventType{input.DispatchKeyEventTypeKeyDown, input.DispatchKeyEventTypeKeyUp} {
						p := input.DispatchKeyEventParams{Type: typ, Key: key, Code: "KeyQ"}
						if _, err := cdp.Call(ctx, t, input.DispatchKeyEvent, p); err != nil {
							return err
						}
					}
					return nil
				})
			}
			b.run(chromedp.KeyEvent("echo "), press("é"), press("ß"), press("€"), press("Ж"))
			typed(" > foreign", "foreign", "éß€Ж\n")
			b.picture("typed")

			// The clipboard: what is written into the page's box is pasted on the desktop ...
			b.run(chromedp.MouseEvent(chromedp.MouseMoved, 550, 1))
			b.until(barShown)
			b.picture("bar")
			b.run(chromedp.Click("#b-clip"), chromedp.SendKeys("#cliptext", "echo pasted > clip"+kb.Enter))
			b.picture("clipboard")
			b.run(chromedp.Click("#b-keys"))
			b.picture("keys")
			b.run(chromedp.Click("#b-view"))
			b.picture("view")
			b.run(chromedp.MouseClickXY(800, 500))
			b.until(`!document.querySelector('#bar').classList.contains('shown')`)
			b.run(chromedp.MouseClickXY(800, 500, chromedp.ButtonMiddle))
			until(t, "the pasted command", func() bool { _, err := os.Stat(filepath.Join(x.dir, "clip")); return err == nil })
			// ... and what is selected on the desktop (a line, by three clicks) appears in the box.
			typed("clear; echo from the desktop; echo done > cleared", "cleared", "done\n")
			// On a busy machine the clicks may come too slowly for the xterm, or before it has drawn.
			until(t, "the selected line", func() bool {
				for n := range 3 {
					b.run(chromedp.MouseClickXY(40, 24, chromedp.ClickCount(n+1)))
				}
				return eval[bool](b, `document.querySelector('#cliptext').value.includes('from the desktop')`)
			})

			// The window changes, and the desktop with it.
			b.resize(900, 620, 1, false)
			follows(900, 620)
			// A window may be larger than the screen can become: it gets the nearest, one to one in the middle, and says so.
			b.resize(3440, 1000, 1, false)
			if kind == "xvfb" {
				follows(2560, 1000)
				b.until(`!document.querySelector('#notice').hidden`)
				if got := eval[string](b, `document.querySelector('#notice').innerText`); !strings.HasPrefix(got, "2560 × 1000 is the nearest") {
					t.Errorf("the page says %q; want what the screen became", got)
				}
				b.picture("nearest")
				b.resize(3840, 2160, 1, false)
				until(t, "the largest screen", func() bool { w, h := x.size(); return w == 2560 && h == 1600 })
				b.until(`(() => { const c = document.querySelector('#screen canvas'); return c.width === 2560 && c.height === 1600 &&
					Math.round(c.getBoundingClientRect().height) === 2160; })()`)
			} else {
				follows(3440, 1000)
			}
			b.resize(900, 620, 1, false)
			follows(900, 620)
			b.until(`!document.querySelector('#size').textContent.includes('nearest')`)
			// On a phone the desktop is larger than the screen, and scaled.
			b.resize(360, 780, 2, true)
			follows720 := `(() => { const c = document.querySelector('#screen canvas'); return c.width === 720 && c.height === 1560; })()`
			b.until(follows720)
			b.until(openBar)
			b.run(chromedp.Click("#b-view"))
			b.picture("mobile")
			b.run(chromedp.Click("#b-view"))
			b.resize(1000, 640, 1, false)
			follows(1000, 640)

			if kind == "xvfb" { // the VNC server can be restarted while the session lives
				x.stopVNC()
				b.until(`document.querySelector('#light').dataset.state === 'waiting'`)
				b.picture("lost")
				x.startVNC()
				b.until(connected)
				typed("echo again > again", "again", "again\n")
			}
			s.remove("tide")
			g.CloseSession(sess)
			b.until(`document.querySelector('#veil-title').innerText === 'The session has ended' && !document.querySelector('#veil').hidden`)
			b.picture("ended")
			// A new one of the same name needs its own token.
			sess.ID, sess.Token, sess.State = "tide-again", "token-again", "starting"
			s.set(sess)
			eval[bool](b, `location.assign(`+quote(g.SessionURL(sess))+`), true`)
			b.until(`document.querySelector('#veil-title').innerText === 'The session is starting…'`)
			b.picture("starting")
			sess.State = "running"
			s.set(sess)
			b.until(connected)
		})
	}
}

// The list shows the sessions that the login may see, with pictures of their screens.
func TestBrowserList(t *testing.T) {
	pages := builtPages(t)
	s := &realSessions{screens: map[string]*realX{}}
	for i, name := range []string{"tide", "harbour", "xfce"} {
		x := startX(t, "xvnc", 1280, 800-100*i)
		x.xterm()
		s.screens[name] = x
		s.set(x.session(name))
	}
	starting := fakeSession("gnome-48", "")
	starting.State = "starting"
	s.set(starting)
	g := newGateway(t, s, pages)
	if err := g.start(); err != nil {
		t.Fatal(err)
	}
	b := newTab(t, 1100, 760, "status of 401", "status of 503", "ERR_CONNECTION_REFUSED")
	b.run(chromedp.Navigate(g.URL()))
	b.until(`document.querySelector('#token') !== null`)
	b.picture("login")
	b.run(chromedp.SendKeys("#token", "wrong"+kb.Enter))
	b.until(`document.querySelector('#login-error').innerText === 'Wrong token.'`)
	b.picture("wrong")
	b.run(chromedp.SendKeys("#token", "token-tide"+kb.Enter))
	shown := `[...document.querySelectorAll('.title')].map((e) => e.innerText).join(' ')`
	pictures := `[...document.querySelectorAll('.picture img')].filter((i) => !i.hidden && i.naturalWidth > 100).length`
	b.until(shown + ` === 'tide'`)
	b.until(pictures + ` === 1`)
	// The admin's address, opened in the same tab, shows them all.
	eval[bool](b, `location.assign(`+quote(g.AdminURL())+`), true`)
	b.until(shown + ` === 'tide harbour xfce gnome-48'`)
	b.until(pictures + ` === 3`)
	if hash := eval[string](b, `location.hash`); hash != "" {
		t.Errorf("the address keeps %q", hash)
	}
	b.picture("list")
	b.run(chromedp.SetValue("#theme", "dark"))
	eval[bool](b, `document.querySelector('#theme').dispatchEvent(new Event('change'))`)
	b.picture("dark")
	b.resize(390, 844, 2, true)
	b.picture("mobile")
	b.resize(1100, 760, 1, false)
	// Pictures follow the screens.
	before := eval[string](b, `document.querySelector('.picture img').src`)
	if _, _, err := s.Resize(t.Context(), "tide", 1024, 600); err != nil {
		t.Fatal(err)
	}
	b.until(`document.querySelector('.picture img').src !== ` + quote(before))
	b.until(`document.querySelector('.detail').innerText.includes('1024 × 600')`)
	// Sessions come and go by themselves.
	s.remove("gnome-48")
	b.until(`document.querySelectorAll('.card').length === 3`)
	// A card leads to its desktop.
	b.run(chromedp.Click(`a.card[href$="/s/harbour/"]`))
	b.until(connected)
	b.run(chromedp.Navigate(g.URL()))
	b.until(`document.querySelectorAll('.card').length === 3`)
	// Nothing is left after logging out.
	b.run(chromedp.Click("#logout"))
	b.until(`document.querySelector('#token') !== null && document.querySelectorAll('.card').length === 0`)
	for _, name := range []string{"tide", "harbour", "xfce"} {
		s.remove(name)
	}
	b.run(chromedp.SendKeys("#token", "admin-token"+kb.Enter))
	b.until(`document.querySelector('.empty') !== null`)
	b.picture("empty")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	b.until(`!document.querySelector('#notice').hidden`)
	b.picture("gone")
}

// Text goes through the on-screen keyboard's hidden field, corrections and other alphabets included.
func TestBrowserTouchKeyboard(t *testing.T) {
	pages := builtPages(t)
	x := startX(t, "xvnc", 800, 600)
	x.xterm()
	s := &realSessions{screens: map[string]*realX{"tide": x}}
	s.set(x.session("tide"))
	g := newGateway(t, s, pages)
	if err := g.start(); err != nil {
		t.Fatal(err)
	}
	sess, _ := s.Get("tide")
	b := newTab(t, 412, 800)
	b.resize(412, 800, 2, true)
	b.run(call(emulation.SetTouchEmulationEnabled, emulation.SetTouchEmulationEnabledParams{Enabled: true}),
		chromedp.Navigate(g.SessionURL(sess)))
	b.until(connected)
	b.until(openBar)
	b.run(chromedp.Click("#b-type"))
	b.until(`document.activeElement.id === 'typing'`)
	// Moving the pointer onto the xterm gives it the focus; there is no window manager.
	b.run(chromedp.MouseEvent(chromedp.MouseMoved, 200, 200))
	insert := func(text string) chromedp.Action[chromedp.Void] {
		return call(input.InsertText, input.InsertTextParams{Text: text})
	}
	compose := func(text string) chromedp.Action[chromedp.Void] {
		n := int64(len(text))
		return call(input.ImeSetComposition, input.ImeSetCompositionParams{Text: text, SelectionStart: n, SelectionEnd: n})
	}
	b.run(insert("echo tecxt"), chromedp.KeyEvent(kb.Backspace), chromedp.KeyEvent(kb.Backspace), chromedp.KeyEvent(kb.Backspace),
		compose("x"), compose("xt"), insert("xt é > touch"), chromedp.KeyEvent(kb.Enter))
	until(t, "the text typed", func() bool {
		got, _ := os.ReadFile(filepath.Join(x.dir, "touch"))
		return string(got) == "text é\n"
	})
	b.picture("typed")
}
