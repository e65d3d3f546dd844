package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/session/api"
)

// maxBody bounds what a request may send.
const maxBody = 4 << 10

// webSession is a session as the API shows it. Fields are only ever added.
type webSession struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Profile string    `json:"profile"`
	State   string    `json:"state"`
	User    string    `json:"user"`
	Width   int       `json:"width"`
	Height  int       `json:"height"`
	Created time.Time `json:"created"`
}

func show(s Session) webSession {
	return webSession{Name: s.Name, ID: s.ID, Profile: s.Profile, State: s.State, User: s.User,
		Width: s.Width, Height: s.Height, Created: s.Created}
}

// handler is the whole web side, from the outermost check inwards.
func (g *Gateway) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", g.servePage("index.html"))
	mux.HandleFunc("GET /s/{name}/{$}", g.servePage("desktop.html"))
	mux.HandleFunc("GET /assets/{file}", g.serveAsset)
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "assets/icon.svg", http.StatusFound)
	})
	mux.HandleFunc("POST /login", g.login)
	mux.HandleFunc("POST /logout", g.logout)
	mux.HandleFunc("GET /api/sessions", g.apiSessions)
	mux.HandleFunc("GET /api/sessions/{name}", g.withSession(g.apiSession))
	mux.HandleFunc("GET /api/sessions/{name}/thumbnail.png", g.withSession(g.apiThumbnail))
	mux.HandleFunc("POST /api/sessions/{name}/resize", g.withSession(g.apiResize))
	mux.HandleFunc("GET /ws/{name}", g.withSession(g.serveWS))

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A panic is a bug that must be seen; net/http would end the connection and tell the debug log only.
		defer func() {
			if p := recover(); p != nil {
				g.log.Error("gateway request panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		securityHeaders(w.Header())
		if !hostAllowed(r.Host, g.cfg.AllowedHosts) {
			fail(w, http.StatusMisdirectedRequest, api.Error{Code: "forbidden",
				Message: "this gateway is not reached under that name",
				Hint:    "use its IP address or localhost, or add the name to allowed_hosts in the configuration"})
			return
		}
		if err := sameOrigin(r); err != nil {
			fail(w, http.StatusForbidden, api.Error{Code: "forbidden", Message: err.Error()})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r)
	})
}

// securityHeaders allow the page what it needs and nothing else. The page has no inline scripts or styles and loads
// nothing from elsewhere; data: images are the cursors that noVNC makes.
func securityHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "+
		"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "clipboard-read=(self), clipboard-write=(self), fullscreen=(self), keyboard-map=(self), "+
		"camera=(), microphone=(), geolocation=(), display-capture=(), payment=(), usb=()")
	h.Set("Cache-Control", "no-store") // what may be kept says so itself
}

// hostAllowed stops DNS rebinding: a page of another site whose name is made to resolve to our address still sends its
// own name as Host. IP addresses cannot be rebound, names under localhost resolve to loopback (RFC 6761 section 6.3).
func hostAllowed(hostport string, allowed []string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")); err == nil {
		return true
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(allowed, func(a string) bool { return strings.EqualFold(a, host) })
}

// sameOrigin refuses what a page of another origin sends, for everything that has an effect: POSTs and WebSockets, which
// the same-origin policy does not cover. No Origin and no Sec-Fetch-Site means that it is not a browser, which then has
// no cookie it could be tricked into using.
func sameOrigin(r *http.Request) error {
	if r.Method == http.MethodGet && !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Method == http.MethodHead {
		return nil
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin":
	default:
		return errors.New("request comes from a page of another site")
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
		return errors.New("request comes from a page of another site")
	}
	return nil
}

// fail writes an error as the API does.
func fail(w http.ResponseWriter, status int, e api.Error) { reply(w, status, e) }

func reply(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The status is sent: an error here means that the client has gone.
	_ = json.NewEncoder(w).Encode(doc)
}

// readBody decodes a JSON request. Forms of other sites cannot send this content type without asking (CORS preflight).
func readBody(w http.ResponseWriter, r *http.Request, doc any) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, api.Error{Code: "invalid", Message: "body is not application/json"})
		return false
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(doc); err != nil {
		fail(w, http.StatusBadRequest, api.Error{Code: "invalid", Message: "body: " + err.Error()})
		return false
	}
	return true
}

// cookieName differs per port: cookies do not, and instances of Berth live side by side on one host. The __Host- prefix
// makes browsers refuse one that another host or a plain HTTP page has set (RFC 6265bis section 4.1.3.2).
func (g *Gateway) cookieName(r *http.Request) string {
	name := "berth"
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		name += "-" + strconv.Itoa(a.Port)
	}
	if r.TLS != nil {
		name = "__Host-" + name
	}
	return name
}

// setCookie sets or, with an empty value, removes the cookie.
func (g *Gateway) setCookie(w http.ResponseWriter, r *http.Request, value string) {
	age := int(loginMax / time.Second)
	if value == "" {
		age = -1
	}
	http.SetCookie(w, &http.Cookie{Name: g.cookieName(r), Value: value, Path: "/", MaxAge: age,
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode})
}

func (g *Gateway) cookie(r *http.Request) string {
	c, err := r.Cookie(g.cookieName(r))
	if err != nil {
		return ""
	}
	return c.Value
}

// caller tells who asks: by cookie or, for scripts, by `Authorization: Bearer TOKEN` (RFC 6750 section 2.1).
// A nil error with ok false means that nobody has logged in.
func (g *Gateway) caller(r *http.Request) (who login, ok bool, err error) {
	if token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); found {
		admin, session, err := g.tryToken(r, token)
		if err != nil {
			return login{}, false, err
		}
		return login{Admin: admin, Sessions: map[string]bool{session: session != ""}}, true, nil
	}
	who, ok, err = g.logins.find(g.cookie(r))
	if err != nil {
		g.log.Warn("use of a login not saved", "error", err)
	}
	return who, ok, nil
}

var errWrongToken = errors.New("wrong token")

// tryToken looks up what a token opens, at a pace that makes guessing hopeless.
func (g *Gateway) tryToken(r *http.Request, token string) (admin bool, session string, err error) {
	err = g.webTries.try(addressKey(r.RemoteAddr), func() error {
		if admin, session = g.tokenRights(token); !admin && session == "" {
			return errWrongToken
		}
		return nil
	})
	return admin, session, err
}

// denied answers a caller that showed a wrong token or none.
func denied(w http.ResponseWriter, err error) {
	e := api.Error{Code: "forbidden", Message: "log in first", Hint: "`berth open NAME` prints an address that does"}
	var wait tooMany
	switch {
	case errors.As(err, &wait):
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.wait.Round(time.Second)/time.Second)))
		e.Message = err.Error()
		fail(w, http.StatusTooManyRequests, e)
		return
	case err != nil:
		e.Message = err.Error()
	}
	fail(w, http.StatusUnauthorized, e)
}

func (g *Gateway) login(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Token string `json:"token"`
	}
	if !readBody(w, r, &req) {
		return
	}
	admin, session, err := g.tryToken(r, req.Token)
	if err != nil {
		g.log.Warn("web login refused", "from", r.RemoteAddr, "error", err)
		denied(w, err)
		return
	}
	who, cookie, err := g.logins.grant(g.cookie(r), admin, session)
	if err != nil {
		g.log.Warn("login will not survive a restart", "error", err)
	}
	g.setCookie(w, r, cookie)
	g.replySessions(w, who)
}

func (g *Gateway) logout(w http.ResponseWriter, r *http.Request) {
	if c := g.cookie(r); c != "" {
		id, err := g.logins.end(c)
		if err != nil {
			g.log.Warn("logins not saved", "error", err)
		}
		g.closeLogin(id)
	}
	g.setCookie(w, r, "")
	w.WriteHeader(http.StatusNoContent)
}

func (g *Gateway) apiSessions(w http.ResponseWriter, r *http.Request) {
	who, ok, err := g.caller(r)
	if !ok {
		denied(w, err)
		return
	}
	g.replySessions(w, who)
}

func (g *Gateway) replySessions(w http.ResponseWriter, who login) {
	doc := struct {
		Admin    bool         `json:"admin"`
		Sessions []webSession `json:"sessions"`
	}{who.Admin, []webSession{}}
	for _, s := range g.sessions.List() {
		if who.may(s) {
			doc.Sessions = append(doc.Sessions, show(s))
		}
	}
	reply(w, http.StatusOK, doc)
}

// withSession wraps a handler of one session: the caller may see it, or is told that there is none.
func (g *Gateway) withSession(h func(http.ResponseWriter, *http.Request, login, Session)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who, ok, err := g.caller(r)
		if !ok {
			denied(w, err)
			return
		}
		s, found := g.sessions.Get(r.PathValue("name"))
		if !found || !who.may(s) {
			fail(w, http.StatusNotFound, api.Error{Code: "not_found",
				Message: "session " + strconv.Quote(r.PathValue("name")) + ": not found"})
			return
		}
		h(w, r, who, s)
	}
}

func (g *Gateway) apiSession(w http.ResponseWriter, _ *http.Request, _ login, s Session) {
	reply(w, http.StatusOK, show(s))
}

func (g *Gateway) apiThumbnail(w http.ResponseWriter, r *http.Request, _ login, s Session) {
	width := 480
	if q := r.URL.Query().Get("w"); q != "" {
		n, err := strconv.Atoi(q)
		if err != nil || n < 1 {
			fail(w, http.StatusBadRequest, api.Error{Code: "invalid", Message: "w: not a number of pixels"})
			return
		}
		width = n
	}
	png, etag, err := g.thumbs.get(r.Context(), s, width)
	if errors.Is(err, context.Canceled) {
		return
	}
	if err != nil {
		g.log.Debug("no thumbnail", "error", err)
		w.Header().Set("Retry-After", "2")
		fail(w, http.StatusServiceUnavailable, api.Error{Code: "unavailable", Message: "no picture yet"})
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "private, no-cache")
	h.Set("ETag", etag)
	if match := r.Header.Get("If-None-Match"); match == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "image/png")
	h.Set("Content-Length", strconv.Itoa(len(png)))
	_, _ = w.Write(png)
}

func (g *Gateway) apiResize(w http.ResponseWriter, r *http.Request, _ login, s Session) {
	var req struct {
		Width  int `json:"width"`
		Height int `json:"height"`
	}
	if !readBody(w, r, &req) {
		return
	}
	// A browser's window may be of any size; it gets the nearest there is.
	if req.Width < 1 || req.Height < 1 {
		fail(w, http.StatusBadRequest, api.Error{Code: "invalid", Message: "width and height must be numbers of pixels"})
		return
	}
	width, height, err := g.sessions.Resize(r.Context(), s.Name, req.Width, req.Height)
	if err != nil {
		g.log.Info("screen not resized", "session", s.Name, "error", err)
		fail(w, http.StatusConflict, api.Error{Code: "state", Message: err.Error()})
		return
	}
	s.Width, s.Height = width, height
	reply(w, http.StatusOK, show(s))
}
