package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"image/png"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

func testPages(c *Config) {
	c.Pages = fstest.MapFS{
		"index.html":   {Data: []byte("<title>list</title>")},
		"desktop.html": {Data: []byte("<title>desktop</title>")},
		"app.js":       {Data: bytes.Repeat([]byte("let a = 1;\n"), 500)},
		".placeholder": {Data: []byte("x")},
	}
}

// browser is an HTTP client with cookies.
type browser struct {
	t    testing.TB
	base string
	http.Client
}

func newBrowser(t testing.TB, g *Gateway) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	return &browser{t: t, base: g.URL(), Client: http.Client{Jar: jar, Transport: tr, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// do sends a request; header lines are "Key: value". body is sent as JSON unless "".
func (b *browser) do(method, path, body string, header ...string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequest(method, b.base+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range header {
		k, v, _ := strings.Cut(h, ": ")
		if k == "Host" {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	res, err := b.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res, string(data)
}

func (b *browser) login(token string) {
	b.t.Helper()
	if res, body := b.do("POST", "/login", `{"token":"`+token+`"}`); res.StatusCode != 200 {
		b.t.Fatalf("login: %s %s", res.Status, body)
	}
}

// names lists the sessions that are shown.
func (b *browser) names() []string {
	b.t.Helper()
	res, body := b.do("GET", "/api/sessions", "")
	if res.StatusCode != 200 {
		b.t.Fatalf("sessions: %s %s", res.Status, body)
	}
	for _, secret := range []string{"secret-", "token-", "sock"} {
		if strings.Contains(body, secret) {
			b.t.Errorf("answer holds %q: %s", secret, body)
		}
	}
	var doc struct{ Sessions []webSession }
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		b.t.Fatal(err)
	}
	var names []string
	for _, s := range doc.Sessions {
		names = append(names, s.Name)
	}
	return names
}

func startWeb(t testing.TB, change ...func(*Config)) (*Gateway, *fakeSessions, *fakeVNC) {
	t.Helper()
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	s.set(fakeSession("one", srv.path))
	s.set(fakeSession("two", srv.path))
	g := newGateway(t, s, append([]func(*Config){testPages}, change...)...)
	if err := g.start(); err != nil {
		t.Fatal(err)
	}
	return g, s, srv
}

func TestLogin(t *testing.T) {
	g, s, _ := startWeb(t)
	b := newBrowser(t, g)
	for _, path := range []string{"/api/sessions", "/api/sessions/one", "/api/sessions/one/thumbnail.png", "/ws/one"} {
		if res, _ := b.do("GET", path, ""); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without login: %s; want 401", path, res.Status)
		}
	}
	res, _ := b.do("POST", "/login", `{"token":"token-one"}`)
	cookie := res.Header.Get("Set-Cookie")
	for _, attr := range []string{"HttpOnly", "SameSite=Strict", "Path=/"} {
		if !strings.Contains(cookie, attr) {
			t.Errorf("cookie %q lacks %s", cookie, attr)
		}
	}
	if diff := cmp.Diff([]string{"one"}, b.names()); diff != "" {
		t.Errorf("after login to one (-want +got):\n%s", diff)
	}
	if res, _ := b.do("GET", "/api/sessions/two", ""); res.StatusCode != http.StatusNotFound {
		t.Errorf("the other session: %s; want 404", res.Status)
	}
	b.login("token-two")
	if diff := cmp.Diff([]string{"one", "two"}, b.names()); diff != "" {
		t.Errorf("after login to both (-want +got):\n%s", diff)
	}
	// A new session under the old name is another one.
	renewed, _ := s.Get("two")
	renewed.ID, renewed.Token = "two-again", "token-again"
	s.set(renewed)
	if diff := cmp.Diff([]string{"one"}, b.names()); diff != "" {
		t.Errorf("after two was replaced (-want +got):\n%s", diff)
	}
	if res, _ := b.do("POST", "/logout", ""); res.StatusCode != http.StatusNoContent {
		t.Errorf("logout: %s", res.Status)
	}
	if res, _ := b.do("GET", "/api/sessions", "", "Cookie: "+strings.Split(cookie, ";")[0]); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("old cookie after logout: %s; want 401", res.Status)
	}
	admin := newBrowser(t, g)
	admin.login("admin-token")
	if diff := cmp.Diff([]string{"one", "two"}, admin.names()); diff != "" {
		t.Errorf("admin (-want +got):\n%s", diff)
	}
	for _, auth := range []string{"token-one", "admin-token"} {
		if res, _ := newBrowser(t, g).do("GET", "/api/sessions/one", "", "Authorization: Bearer "+auth); res.StatusCode != 200 {
			t.Errorf("bearer %s: %s", auth, res.Status)
		}
	}
}

func TestLoginWrongToken(t *testing.T) {
	g, s, _ := startWeb(t)
	open := fakeSession("open", "")
	open.Token = ""
	s.set(open)
	b := newBrowser(t, g)
	for _, body := range []string{`{"token":""}`, `{"token":"nope"}`, `{}`} {
		if res, _ := b.do("POST", "/login", body); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("login %s: %s; want 401", body, res.Status)
		}
	}
	for range throttleFree {
		b.do("GET", "/api/sessions", "", "Authorization: Bearer wrong")
	}
	res, _ := b.do("POST", "/login", `{"token":"token-one"}`)
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("after many wrong ones: %s, Retry-After %q; want 429 and a time", res.Status, res.Header.Get("Retry-After"))
	}
}

func TestLoginsSurvive(t *testing.T) {
	file := filepath.Join(t.TempDir(), "logins.json")
	keep := func(c *Config) { c.LoginFile = file }
	g, s, _ := startWeb(t, keep)
	b := newBrowser(t, g)
	b.login("token-one")
	b.login("token-two")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("login file: %v, %v; want mode 0600", st.Mode(), err)
	}
	again := newGateway(t, s, testPages, keep)
	if err := again.start(); err != nil {
		t.Fatal(err)
	}
	if b.base != again.URL() {
		t.Skipf("port of %s was taken meanwhile", b.base)
	}
	if diff := cmp.Diff([]string{"one", "two"}, b.names()); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	// That was a use, which Close saves.
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	for id, l := range readLogins(t, file) {
		if used := again.logins.all[id].Used; !l.Used.Equal(used) || !used.After(g.logins.all[id].Used) {
			t.Errorf("saved as used at %v; want %v, after %v", l.Used, used, g.logins.all[id].Used)
		}
	}
	two, _ := s.Get("two")
	again.CloseSession(two)
	for _, l := range readLogins(t, file) {
		if diff := cmp.Diff(map[string]bool{"one-id": true}, l.Sessions); diff != "" {
			t.Errorf("saved after a session ended (-want +got):\n%s", diff)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{LoginFile: file}, s); err == nil || !strings.Contains(err.Error(), "logins") {
		t.Errorf("damaged file: %v; want an error that names it", err)
	}
}

func readLogins(t *testing.T, file string) map[string]*login {
	t.Helper()
	l, err := openLogins(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.all) == 0 {
		t.Errorf("no logins in %s", file)
	}
	return l.all
}

// A login in daily use survives a daemon that is killed, and a daemon that is asked every second does not write as often.
func TestLoginsAreSavedInUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "logins.json")
	l, err := openLogins(file)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Unix(1e9, 0)
	now := start
	l.now = func() time.Time { return now }
	_, cookie, err := l.grant("", true, "")
	if err != nil {
		t.Fatal(err)
	}
	saves, last := 0, start
	for now.Sub(start) < 10*24*time.Hour {
		now = now.Add(10 * time.Minute)
		if _, ok, err := l.find(cookie); !ok || err != nil {
			t.Fatalf("after %v: login found: %v, %v", now.Sub(start), ok, err)
		}
		used := readLogins(t, file)[cookieID(cookie)].Used
		if stale := now.Sub(used); stale > loginSave {
			t.Fatalf("after %v the file says that the login was used %v ago", now.Sub(start), stale)
		}
		if !used.Equal(last) {
			saves, last = saves+1, used
		}
	}
	if most := 10 * 24; saves > most {
		t.Errorf("saved %d times in ten days; want at most %d", saves, most)
	}
	killed, err := openLogins(file)
	if err != nil {
		t.Fatal(err)
	}
	killed.now = l.now
	if _, ok, err := killed.find(cookie); !ok || err != nil {
		t.Errorf("after ten days of use and a restart: login found: %v, %v", ok, err)
	}
	// Where nothing can be saved, the login counts and the tries are as rare.
	if err := os.RemoveAll(filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for range 18 {
		now = now.Add(10 * time.Minute)
		_, ok, err := l.find(cookie)
		if !ok {
			t.Fatal("a login that cannot be saved does not count")
		}
		if err != nil {
			failed++
		}
	}
	if failed < 1 || failed > 3 {
		t.Errorf("%d errors in three hours without a directory; want one an hour", failed)
	}
}

func TestLoadToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	first, err := LoadToken(file)
	if err != nil || len(first) < 16 {
		t.Fatalf("LoadToken = %q, %v", first, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("token file: %v, %v; want mode 0600", st.Mode(), err)
	}
	if again, err := LoadToken(file); err != nil || again != first {
		t.Errorf("second LoadToken = %q, %v; want %q", again, err, first)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if empty, err := LoadToken(file); err == nil {
		t.Errorf("LoadToken of an empty file = %q; want an error", empty)
	}
}

func TestLoginsExpire(t *testing.T) {
	l, err := openLogins("")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1e9, 0)
	l.now = func() time.Time { return now }
	_, cookie, _ := l.grant("", true, "")
	if _, again, _ := l.grant("made-up-by-an-attacker", true, ""); again == "made-up-by-an-attacker" {
		t.Error("a cookie of the client's choice was accepted")
	}
	for range 4 {
		now = now.Add(loginIdle - time.Minute)
		if _, ok, _ := l.find(cookie); !ok {
			t.Fatal("a login in use has expired")
		}
	}
	now = now.Add(loginMax - 4*loginIdle + 5*time.Minute)
	if _, ok, _ := l.find(cookie); ok {
		t.Error("a login lives longer than loginMax")
	}
	for range loginsMax + 10 {
		if _, _, err := l.grant("", false, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.all) > loginsMax {
		t.Errorf("%d logins; want at most %d", len(l.all), loginsMax)
	}
}

func TestOriginAndHost(t *testing.T) {
	g, _, _ := startWeb(t, func(c *Config) { c.AllowedHosts = []string{"Desk.example"} })
	b := newBrowser(t, g)
	b.login("token-one")
	host := strings.TrimPrefix(g.URL(), "http://")
	_, port, _ := net.SplitHostPort(host)
	ws := []string{"Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="}
	for _, tt := range []struct {
		name, method, path string
		header             []string
		want               int
	}{
		{"own_origin", "POST", "/login", []string{"Origin: http://" + host, "Sec-Fetch-Site: same-origin"}, 200},
		{"other_origin", "POST", "/login", []string{"Origin: http://evil.example"}, 403},
		{"other_port", "POST", "/login", []string{"Origin: http://127.0.0.1:1"}, 403},
		{"null_origin", "POST", "/login", []string{"Origin: null"}, 403},
		{"cross_site", "POST", "/login", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"same_site", "POST", "/login", []string{"Sec-Fetch-Site: same-site"}, 403},
		{"ws_other_origin", "GET", "/ws/one", append(ws, "Origin: http://evil.example"), 403},
		{"form", "POST", "/login", []string{"Content-Type: text/plain"}, 415},
		{"link_from_elsewhere", "GET", "/", []string{"Sec-Fetch-Site: cross-site"}, 200},
		{"rebound_name", "GET", "/", []string{"Host: evil.example:" + port}, 421},
		{"rebound_ws", "GET", "/ws/one", append(ws, "Host: evil.example"), 421},
		{"localhost", "GET", "/", []string{"Host: localhost:" + port}, 200},
		{"sub_localhost", "GET", "/", []string{"Host: a.localhost"}, 200},
		{"ipv6", "GET", "/", []string{"Host: [::1]:" + port}, 200},
		{"ipv6_bare", "GET", "/", []string{"Host: [::1]"}, 200},
		{"configured", "GET", "/", []string{"Host: desk.EXAMPLE"}, 200},
		{"configured_dot", "GET", "/", []string{"Host: desk.example.:" + port}, 200},
		{"lookalike", "GET", "/", []string{"Host: 127.0.0.1.evil.example"}, 421},
		{"notlocalhost", "GET", "/", []string{"Host: notlocalhost"}, 421},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := ""
			if tt.method == "POST" {
				body = `{"token":"token-one"}`
			}
			if res, text := b.do(tt.method, tt.path, body, tt.header...); res.StatusCode != tt.want {
				t.Errorf("%s; want %d (%s)", res.Status, tt.want, text)
			}
		})
	}
}

func TestPages(t *testing.T) {
	g, _, _ := startWeb(t)
	b := newBrowser(t, g)
	for _, tt := range []struct {
		path string
		want int
		text string
	}{
		{"/", 200, "list"},
		{"/s/one/", 200, "desktop"},
		{"/s/none/", 200, "desktop"}, // nothing is told about which sessions there are
		{"/s/one", 307, ""},
		{"/assets/app.js", 200, "let a"},
		{"/assets/index.html", 404, ""},
		{"/assets/.placeholder", 404, ""},
		{"/assets/..%2f..%2fetc%2fpasswd", 404, ""},
		{"/favicon.ico", 302, ""},
		{"/none", 404, ""},
	} {
		res, body := b.do("GET", tt.path, "")
		if res.StatusCode != tt.want && !(tt.want == 307 && res.StatusCode/100 == 3) || !strings.Contains(body, tt.text) {
			t.Errorf("GET %s = %s %.80q; want %d with %q", tt.path, res.Status, body, tt.want, tt.text)
		}
		for k, v := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"} {
			if got := res.Header.Get(k); got != v {
				t.Errorf("GET %s: %s = %q; want %q", tt.path, k, got, v)
			}
		}
		csp := res.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("GET %s: policy %q", tt.path, csp)
		}
	}
	res, _ := b.do("GET", "/assets/app.js", "")
	if !res.Uncompressed || res.Header.Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("script: compressed %v, type %q", res.Uncompressed, res.Header.Get("Content-Type"))
	}
	if again, _ := b.do("GET", "/assets/app.js", "", "If-None-Match: "+res.Header.Get("ETag"), "Accept-Encoding: gzip"); again.StatusCode != 304 {
		t.Errorf("known script: %s; want 304", again.Status)
	}
	if head, body := b.do("HEAD", "/", ""); head.StatusCode != 200 || body != "" {
		t.Errorf("HEAD / = %s %q", head.Status, body)
	}
	bare := newGateway(t, &fakeSessions{})
	if err := bare.start(); err != nil {
		t.Fatal(err)
	}
	if res, body := newBrowser(t, bare).do("GET", "/", ""); res.StatusCode != 503 || !strings.Contains(body, "make web") {
		t.Errorf("without pages: %s %q; want 503 and how to build them", res.Status, body)
	}
}

func TestThumbnail(t *testing.T) {
	g, s, _ := startWeb(t)
	b := newBrowser(t, g)
	b.login("token-one")
	res, body := b.do("GET", "/api/sessions/one/thumbnail.png?w=300", "")
	img, err := png.Decode(strings.NewReader(body))
	if err != nil || img.Bounds().Dx() != 320 {
		t.Fatalf("thumbnail: %s, %v; want 320 pixels wide", res.Status, err)
	}
	if again, _ := b.do("GET", "/api/sessions/one/thumbnail.png?w=320", "", "If-None-Match: "+res.Header.Get("ETag")); again.StatusCode != 304 {
		t.Errorf("same picture: %s; want 304", again.Status)
	}
	if big, body := b.do("GET", "/api/sessions/one/thumbnail.png?w=100000", ""); big.StatusCode != 200 {
		t.Errorf("huge: %s %s", big.Status, body)
	} else if img, err := png.Decode(strings.NewReader(body)); err != nil || img.Bounds().Dx() != 960 {
		t.Errorf("huge: %v wide, %v; want 960", img.Bounds().Dx(), err)
	}
	if bad, _ := b.do("GET", "/api/sessions/one/thumbnail.png?w=x", ""); bad.StatusCode != 400 {
		t.Errorf("w=x: %s; want 400", bad.Status)
	}
	s.mu.Lock()
	s.thumbErr = errors.New("no screen")
	s.mu.Unlock()
	if no, _ := b.do("GET", "/api/sessions/one/thumbnail.png?w=160", ""); no.StatusCode != 503 {
		t.Errorf("no screen: %s; want 503", no.Status)
	}
}

// Many browsers that look at the same time make one picture.
func TestThumbnailShared(t *testing.T) {
	s := &fakeSessions{}
	th := newThumbs(s)
	sess := fakeSession("one", "")
	errs := make(chan error)
	for range 20 {
		go func() {
			_, _, err := th.get(context.Background(), sess, 320)
			errs <- err
		}()
	}
	start := time.Now()
	for range 20 {
		if err := within(t, "thumbnail", errs); err != nil {
			t.Error(err)
		}
	}
	if limit := 1 + int(time.Since(start)/thumbFresh); s.thumbs > limit {
		t.Errorf("made %d pictures; want %d", s.thumbs, limit)
	}
	th.forget(sess.ID)
	if len(th.all) != 0 {
		t.Error("pictures of a session that is gone are kept")
	}
}

func TestResize(t *testing.T) {
	g, s, _ := startWeb(t)
	b := newBrowser(t, g)
	b.login("token-one")
	res, body := b.do("POST", "/api/sessions/one/resize", `{"width":1024,"height":768}`)
	var got webSession
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Width != 1024 || got.Height != 768 {
		t.Errorf("resize = %s %s, %v", res.Status, body, err)
	}
	// A window may be larger than any desktop. The nearest is what it gets, and is told.
	res, body = b.do("POST", "/api/sessions/one/resize", `{"width":3840,"height":1000}`)
	if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != 200 || got.Width != 2560 || got.Height != 1000 {
		t.Errorf("resize beyond what there is = %s %s, %v; want 2560x1000", res.Status, body, err)
	}
	for _, tt := range []struct {
		path, body string
		want       int
	}{
		{"/api/sessions/one/resize", `{"width":0,"height":768}`, 400},
		{"/api/sessions/one/resize", `{"width":1024,"height":-1}`, 400},
		{"/api/sessions/one/resize", `{"width":"x"}`, 400},
		{"/api/sessions/one/resize", `{"width":800,"height":600,"depth":8}`, 400},
		{"/api/sessions/one/resize", `{"width":800,` + strings.Repeat(" ", maxBody) + `"height":600}`, 400},
		{"/api/sessions/two/resize", `{"width":800,"height":600}`, 404},
	} {
		if res, body := b.do("POST", tt.path, tt.body); res.StatusCode != tt.want {
			t.Errorf("POST %s %.60s = %s %s; want %d", tt.path, tt.body, res.Status, body, tt.want)
		}
	}
	if res, _ := b.do("GET", "/api/sessions/one/resize", ""); res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET resize: %s; want 405", res.Status)
	}
	s.resize = func(context.Context, string, int, int) (int, int, error) {
		return 0, 0, errors.New(`display "host": cannot be resized`)
	}
	if res, body := b.do("POST", "/api/sessions/one/resize", `{"width":800,"height":600}`); res.StatusCode != 409 || !strings.Contains(body, "cannot be resized") {
		t.Errorf("refused resize = %s %s; want 409 and why", res.Status, body)
	}
}

// wsDial opens the desktop's WebSocket with the browser's cookie.
func (b *browser) wsDial(path string) (net.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.t.Cleanup(cancel)
	c, res, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(b.base, "http")+path, &websocket.DialOptions{
		HTTPClient: &http.Client{Jar: b.Jar, Transport: b.Transport}, Subprotocols: []string{"binary"},
		HTTPHeader: http.Header{"Origin": {b.base}}})
	if err != nil {
		return nil, res, err
	}
	b.t.Cleanup(func() { c.CloseNow() })
	c.SetReadLimit(-1)
	return websocket.NetConn(ctx, c, websocket.MessageBinary), res, nil
}

func TestWebSocket(t *testing.T) {
	g, s, srv := startWeb(t)
	b := newBrowser(t, g)
	b.login("token-one")
	c, _, err := b.wsDial("/ws/one")
	if err != nil {
		t.Fatal(err)
	}
	if err := viewerHandshake(c, "", 1); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { _, _ = c.Write(want) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("echo differs (%v)", err)
	}
	if _, res, err := b.wsDial("/ws/two"); err == nil || res == nil || res.StatusCode != 404 {
		t.Errorf("the other session: %v; want 404", err)
	}
	// Log-out ends the connection, on the server's side too.
	within(t, "the server's connection", srv.open)
	b.do("POST", "/logout", "")
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("connection is open after logout")
	}
	if within(t, "the server's end", srv.open) != -1 {
		t.Error("the VNC server's connection is open after logout")
	}
	// So does the session's end.
	b.login("token-one")
	if c, _, err = b.wsDial("/ws/one"); err != nil {
		t.Fatal(err)
	}
	if err := viewerHandshake(c, "", 1); err != nil {
		t.Fatal(err)
	}
	sess, _ := s.Get("one")
	s.remove("one")
	g.CloseSession(sess)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("connection is open after the session's end")
	}
	// And a session without a VNC server is an answer, not a hang.
	s.set(fakeSession("one", filepath.Join(t.TempDir(), "none")))
	b.login("token-one")
	if _, res, err := b.wsDial("/ws/one"); err == nil || res == nil || res.StatusCode != 503 {
		t.Errorf("no VNC server: %v; want 503", err)
	}
}

// A browser that has vanished without a word is found out by its missing pong.
func TestWebSocketDead(t *testing.T) {
	g, _, srv := startWeb(t)
	g.limits.ping = 50 * time.Millisecond
	b := newBrowser(t, g)
	b.login("token-one")
	c, _, err := b.wsDial("/ws/one")
	if err != nil {
		t.Fatal(err)
	}
	if err := viewerHandshake(c, "", 1); err != nil {
		t.Fatal(err)
	}
	within(t, "the connection", srv.open)
	if within(t, "its end", srv.open) != -1 { // nothing reads from c, so nothing answers pings
		t.Error("another connection was made")
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	own := func(c *Config) { c.TLS = TLS{SelfSigned: true, Dir: dir, Hosts: []string{"desk.example"}} }
	g, _, _ := startWeb(t, own)
	if !strings.HasPrefix(g.URL(), "https://127.0.0.1:") {
		t.Errorf("URL = %s; want https", g.URL())
	}
	b := newBrowser(t, g)
	res, _ := b.do("POST", "/login", `{"token":"token-one"}`)
	if c := res.Header.Get("Set-Cookie"); !strings.HasPrefix(c, "__Host-berth-") || !strings.Contains(c, "Secure") {
		t.Errorf("cookie = %q; want a __Host- one, Secure", c)
	}
	leaf := res.TLS.PeerCertificates[0]
	for _, name := range []string{"localhost", "127.0.0.1", "::1", "desk.example"} {
		if err := leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if c, _, err := b.wsDial("/ws/one"); err != nil {
		t.Error(err)
	} else if err := viewerHandshake(c, "", 1); err != nil {
		t.Error(err)
	}
	// It is kept for the next start, and replaced when the names change.
	fp := g.Fingerprint()
	if len(fp) != 32*3-1 {
		t.Errorf("fingerprint = %q", fp)
	}
	again, _, _ := startWeb(t, own)
	if again.Fingerprint() != fp {
		t.Error("a new certificate was made though the old one fits")
	}
	other, _, _ := startWeb(t, own, func(c *Config) { c.TLS.Hosts = []string{"new.example"} })
	if other.Fingerprint() == fp {
		t.Error("the certificate was kept though a name is missing")
	}
	if st, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v; want mode 0600", st.Mode(), err)
	}
	// Given files are served, and read again when they change.
	third := newGateway(t, &fakeSessions{}, func(c *Config) {
		c.TLS = TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	})
	if err := third.start(); err != nil {
		t.Fatal(err)
	}
	before := third.Fingerprint()
	if err := selfSign(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), []string{"renewed.example"}); err != nil {
		t.Fatal(err)
	}
	third.cert.mu.Lock()
	third.cert.checked = time.Now().Add(-2 * certCheck)
	third.cert.mu.Unlock()
	if _, err := third.cert.get(nil); err != nil || third.Fingerprint() == before {
		t.Errorf("renewed certificate is not used (%v)", err)
	}
	for name, bad := range map[string]TLS{
		"missing":  {Cert: "/nonexistent", Key: "/nonexistent"},
		"no key":   {Cert: filepath.Join(dir, "cert.pem")},
		"nowhere":  {SelfSigned: true},
		"mismatch": {Cert: filepath.Join(dir, "key.pem"), Key: filepath.Join(dir, "key.pem")},
	} {
		g := newGateway(t, &fakeSessions{}, func(c *Config) { c.TLS = bad })
		if err := g.start(); err == nil || !strings.Contains(err.Error(), "gateway tls") {
			t.Errorf("%s: Start = %v; want an error", name, err)
		}
		if g.URL() != "" {
			t.Errorf("%s: listens on %s all the same", name, g.URL())
		}
	}
}

// What connects before Serve waits for it: a daemon that adopts its sessions must not tell viewers that there are none.
func TestServeLater(t *testing.T) {
	srv := newFakeVNC(t)
	s := &fakeSessions{}
	g, err := New(Config{Web: "127.0.0.1:16080", VNCBase: 15900}, s)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	addr := openVNC(t, g, "one")
	viewer := make(chan error, 1)
	go func() {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			defer c.Close()
			err = viewerHandshake(c, "secret-one", 1)
		}
		viewer <- err
	}()
	b := newBrowser(t, g)
	status := make(chan int, 1)
	go func() {
		res, _ := b.do("POST", "/login", `{"token":"token-one"}`)
		status <- res.StatusCode
	}()
	s.set(fakeSession("one", srv.path))
	g.Serve()
	if err := within(t, "the viewer", viewer); err != nil {
		t.Error(err)
	}
	if code := within(t, "the browser", status); code != 200 {
		t.Errorf("login: %d; want 200", code)
	}
}

// Close ends what serves without an error, however far Serve has come, and nothing is logged as a failure.
func TestClose(t *testing.T) {
	var log bytes.Buffer
	for _, serve := range []bool{false, true} {
		for range 50 {
			g, err := New(Config{Web: "127.0.0.1:16080", Log: slog.New(slog.NewTextHandler(&log, nil))}, &fakeSessions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Listen(); err != nil {
				t.Fatal(err)
			}
			addr := strings.TrimPrefix(g.URL(), "http://")
			if serve {
				g.Serve()
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			if err := g.Close(); err != nil {
				t.Fatalf("close, served %v: %v", serve, err)
			}
			if c, err := net.Dial("tcp", addr); err == nil {
				c.Close()
				t.Fatalf("%s listens after close, served %v", addr, serve)
			}
		}
	}
	if strings.Contains(log.String(), "ERROR") {
		t.Errorf("a close was logged as a failure:\n%s", log.String())
	}
}

// The port that was used is used again, also when a lower one has become free; one that is taken meanwhile is not missed.
func TestWebPortIsKept(t *testing.T) {
	low, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "port")
	open := func() *Gateway {
		t.Helper()
		g := newGateway(t, &fakeSessions{}, func(c *Config) { c.Web, c.WebPortFile = low.Addr().String(), file })
		if err := g.start(); err != nil {
			t.Fatal(err)
		}
		return g
	}
	first := open()
	was := first.URL()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	low.Close()
	second := open()
	if second.URL() != was {
		t.Errorf("second gateway at %s; want %s", second.URL(), was)
	}
	if third := open(); third.URL() == was {
		t.Errorf("two gateways at %s", was)
	}
}

func TestWebPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	at := func(exact bool) func(*Config) {
		return func(c *Config) { c.Web, c.WebExact = taken.Addr().String(), exact }
	}
	if err := newGateway(t, &fakeSessions{}, at(true)).start(); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Errorf("exact port that is taken: %v; want an error", err)
	}
	g := newGateway(t, &fakeSessions{}, at(false))
	if err := g.start(); err != nil {
		t.Fatal(err)
	}
	if g.URL() == "http://"+taken.Addr().String() {
		t.Error("two listeners on one port")
	}
	if err := g.start(); err == nil {
		t.Error("started twice")
	}
	for _, bad := range []string{"127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "nonexistent.invalid:0"} {
		if err := newGateway(t, &fakeSessions{}, func(c *Config) { c.Web = bad }).start(); err == nil {
			t.Errorf("address %q: no error", bad)
		}
	}
	s := fakeSession("a b", "")
	s.Token = "x/y&z"
	if got, want := g.SessionURL(s), g.URL()+"/s/a%20b/#token=x%2Fy%26z"; got != want {
		t.Errorf("SessionURL = %s; want %s", got, want)
	}
}
