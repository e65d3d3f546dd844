package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/internal/atomicfile"
)

// Session is what the gateway knows of a session. Password, Token and VNCSocket never leave it.
type Session struct {
	Name    string // unique among the living
	ID      string // unique for ever
	Profile string
	State   string // as in session/api: "running", ...
	User    string // host user who owns it
	// UID is the user in the host's user namespace that the session's VNC server runs as, whoever owns the session.
	// A socket that listens as someone else is not used.
	UID       int
	VNCSocket string // path on the host
	Password  string // of VNC; only the first eight bytes count (RFC 6143 section 7.2.2)
	Token     string // of the web; empty means that only the admin token opens it
	Width     int    // pixels
	Height    int
	Created   time.Time
}

// Sessions is where the gateway learns about sessions. All methods are safe for concurrent use.
type Sessions interface {
	// List returns the living sessions, in the order they are shown.
	List() []Session
	Get(name string) (Session, bool)
	// Thumbnail returns the screen as PNG, scaled down to at most maxWidth pixels.
	Thumbnail(ctx context.Context, name string, maxWidth int) ([]byte, error)
	// Resize sets the screen's size in pixels, or to the nearest that the X server can have, and returns what it became.
	Resize(ctx context.Context, name string, w, h int) (width, height int, err error)
}

// Config of a gateway. The zero value listens on loopback without TLS and without an admin token.
type Config struct {
	// Web is the address of the HTTP listener, "host:port". "" means 127.0.0.1:6080.
	Web string
	// WebExact: a taken port is an error; else the next free one is used.
	WebExact bool
	// WebPortFile keeps the port that was used, which the next gateway tries first, so that addresses that were told stay
	// right when a lower port has become free; "" means that it is not kept. With WebExact it has no say.
	WebPortFile string
	// VNCHost is the address VNC listens on, without port. "" means 127.0.0.1.
	VNCHost string
	// VNCBase is the port at which the search for a free one begins; 0 means 5900.
	VNCBase int
	TLS     TLS
	// AllowedHosts are DNS names under which browsers may reach the gateway, besides localhost and IP addresses.
	AllowedHosts []string
	// AdminToken opens all sessions; "" means that there is none.
	AdminToken string
	// LoginFile keeps logins across restarts of the daemon (mode 0600); "" means in memory only.
	LoginFile string
	// Pages is the built web page (assets/web). Nil or empty: the API works, the pages say how to build them.
	Pages fs.FS
	Log   *slog.Logger // nil discards
}

// limits keep connections from piling up.
type limits struct {
	perSession int           // viewers of one session
	handshakes int           // VNC connections that have not authenticated yet, of all sessions
	greet      time.Duration // for a viewer's program to answer
	password   time.Duration // for a person to type a password
	ping       time.Duration // between two looks whether a browser is still there
}

var defaultLimits = limits{perSession: 32, handshakes: 64, greet: 10 * time.Second, password: 2 * time.Minute, ping: 20 * time.Second}

// serverTimeout is how long a session's VNC server may take for its handshake.
const serverTimeout = 10 * time.Second

// portsTried is how many ports are tried from the base on for one that is free.
const portsTried = 1000

// Gateway is described in the package comment. All methods are safe for concurrent use.
type Gateway struct {
	cfg      Config
	sessions Sessions
	log      *slog.Logger
	limits   limits
	vncTries *throttle
	webTries *throttle
	logins   *logins
	thumbs   *thumbs
	pages    map[string]page
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	running  sync.WaitGroup // every goroutine the gateway started
	serving  chan struct{}  // closed by Serve

	mu         sync.Mutex
	closed     bool                    // guarded by mu, as is all that follows
	vnc        map[string]*vncListener // by session name
	viewers    map[*viewer]struct{}
	handshakes int
	web        *http.Server // nil before Listen
	listener   net.Listener
	webAddr    net.Addr
	webServing bool
	cert       *certificate // nil without TLS
}

// viewer is one connection that shows or is about to show a session.
type viewer struct {
	session string // name
	login   string // of a browser, else ""
	cancel  context.CancelFunc
}

// New returns a gateway that listens nowhere yet.
func New(cfg Config, s Sessions) (*Gateway, error) {
	if cfg.Web == "" {
		cfg.Web = "127.0.0.1:6080"
	}
	if cfg.VNCHost == "" {
		cfg.VNCHost = "127.0.0.1"
	}
	if cfg.VNCBase == 0 {
		cfg.VNCBase = 5900
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	pages, err := loadPages(cfg.Pages)
	if err != nil {
		return nil, err
	}
	l, err := openLogins(cfg.LoginFile)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg: cfg, sessions: s, log: cfg.Log, limits: defaultLimits, logins: l, pages: pages,
		vncTries: newThrottle(), webTries: newThrottle(), thumbs: newThumbs(s),
		serving: make(chan struct{}), vnc: map[string]*vncListener{}, viewers: map[*viewer]struct{}{},
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g, nil
}

// Listen opens the HTTP or, with Config.TLS, HTTPS listener: from now on URL tells where. Whoever connects waits for Serve.
func (g *Gateway) Listen() error {
	host, portText, err := net.SplitHostPort(g.cfg.Web)
	if err != nil {
		return fmt.Errorf("gateway address %q: %w; write it as 127.0.0.1:6080", g.cfg.Web, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return fmt.Errorf("gateway address %q: port %q is not a number from 0 to 65535", g.cfg.Web, portText)
	}
	var ln *net.TCPListener
	if last := g.lastPort(); last != 0 {
		ln, _ = listen(host, last, true) // taken by now: any other will do
	}
	if ln == nil {
		if ln, err = listen(host, int(port), g.cfg.WebExact); err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
	}
	if err := g.keepPort(ln.Addr().(*net.TCPAddr).Port); err != nil {
		ln.Close()
		return fmt.Errorf("gateway: port: %w", err)
	}
	cert, err := g.cfg.TLS.load(host)
	if err != nil {
		ln.Close()
		return err
	}
	srv := &http.Server{
		Handler:           g.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // neither holds for a WebSocket: hijacking clears the deadlines
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return g.ctx },
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	var serve net.Listener = ln
	if cert != nil {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get, NextProtos: []string{"http/1.1"}}
		serve = tls.NewListener(ln, srv.TLSConfig)
	} else if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		g.log.Warn("gateway listens beyond loopback without TLS; desktops and tokens can be read on the way",
			"address", ln.Addr().String())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.web != nil {
		ln.Close()
		return errors.New("gateway: listens or is closed already")
	}
	g.web, g.listener, g.webAddr, g.cert = srv, serve, ln.Addr(), cert
	return nil
}

// lastPort is the port that keepPort kept; 0 if there is none or it has no say.
func (g *Gateway) lastPort() int {
	if g.cfg.WebExact || g.cfg.WebPortFile == "" {
		return 0
	}
	text, err := os.ReadFile(g.cfg.WebPortFile)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}

func (g *Gateway) keepPort(port int) error {
	if g.cfg.WebExact || g.cfg.WebPortFile == "" {
		return nil
	}
	return atomicfile.Write(g.cfg.WebPortFile, []byte(strconv.Itoa(port)+"\n"), 0o600)
}

// Serve begins to answer, over VNC and, after Listen, over HTTP. Sessions must be ready to be asked.
func (g *Gateway) Serve() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.serving:
	default:
		close(g.serving)
	}
	srv, ln := g.web, g.listener
	if g.closed || srv == nil || g.webServing {
		return
	}
	g.webServing = true
	g.running.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			g.log.Error("gateway stopped serving", "error", err)
		}
	})
}

// Close ends all listeners and connections and returns when everything the gateway started has ended.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.closed = true
	web, ln, serving := g.web, g.listener, g.webServing
	for _, l := range g.vnc {
		l.Close()
	}
	clear(g.vnc)
	g.mu.Unlock()
	g.cancel()
	var err error
	switch {
	case serving:
		err = web.Close() // and with it the listener, which is the server's since Serve; closing it here too would race
	case web != nil:
		err = ln.Close()
	}
	g.running.Wait()
	return errors.Join(err, g.logins.close())
}

// URL is the base URL of the web page, without a trailing slash; "" before Listen.
func (g *Gateway) URL() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	tcp, ok := g.webAddr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "127.0.0.1"
		if len(g.cfg.AllowedHosts) > 0 {
			host = g.cfg.AllowedHosts[0]
		}
	}
	scheme := "http"
	if g.cert != nil {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// SessionURL is the URL that logs in to a session and shows it. It holds the token: whoever has it is let in.
func (g *Gateway) SessionURL(s Session) string {
	return g.URL() + "/s/" + url.PathEscape(s.Name) + "/#token=" + url.QueryEscape(s.Token)
}

// AdminURL is the URL that logs in to all sessions and lists them.
func (g *Gateway) AdminURL() string {
	return g.URL() + "/#token=" + url.QueryEscape(g.cfg.AdminToken)
}

// Fingerprint is the SHA-256 of the certificate in use as browsers show it; "" without TLS.
func (g *Gateway) Fingerprint() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cert == nil {
		return ""
	}
	return g.cert.fingerprint()
}

// CloseSession ends everything that belongs to a session that is gone: its VNC listener, its viewers, its place in
// logins. Closing one that has nothing open is fine.
func (g *Gateway) CloseSession(s Session) {
	g.mu.Lock()
	if l := g.vnc[s.Name]; l != nil {
		l.Close()
		delete(g.vnc, s.Name)
	}
	for v := range g.viewers {
		if v.session == s.Name {
			v.cancel()
		}
	}
	g.mu.Unlock()
	g.thumbs.forget(s.ID)
	if err := g.logins.forgetSession(s.ID); err != nil {
		g.log.Warn("logins not saved", "error", err)
	}
}

// closeLogin ends the viewers of a login that was ended.
func (g *Gateway) closeLogin(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for v := range g.viewers {
		if v.login == id {
			v.cancel()
		}
	}
}

// admit registers a viewer. The context ends when the viewer has to go, the caller calls done when it went.
func (g *Gateway) admit(session, login string) (ctx context.Context, done func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, errors.New("gateway is closing")
	}
	n := 0
	for v := range g.viewers {
		if v.session == session {
			n++
		}
	}
	if n >= g.limits.perSession {
		return nil, nil, fmt.Errorf("session %q: has %d viewers already, close one", session, n)
	}
	ctx, cancel := context.WithCancel(g.ctx)
	v := &viewer{session: session, login: login, cancel: cancel}
	g.viewers[v] = struct{}{}
	g.running.Add(1)
	return ctx, func() {
		cancel()
		g.mu.Lock()
		delete(g.viewers, v)
		g.mu.Unlock()
		g.running.Done()
	}, nil
}

// listen opens a TCP listener at port or, unless exact, at the next one that is free.
func listen(host string, port int, exact bool) (*net.TCPListener, error) {
	for p := port; ; p++ {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		switch {
		case err == nil:
			return ln.(*net.TCPListener), nil
		case !errors.Is(err, syscall.EADDRINUSE):
			return nil, fmt.Errorf("listen on %s: %w", net.JoinHostPort(host, strconv.Itoa(p)), err)
		case exact:
			return nil, fmt.Errorf("port %d on %s: taken, by another program or session; ask for another port, or leave it out to get a free one", port, host)
		case p >= min(port+portsTried, 65535):
			return nil, fmt.Errorf("ports %d to %d on %s: all taken by other programs", port, p, host)
		}
	}
}

// ended tells the ways in which a connection ends as it should from those worth a line in the log.
func ended(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
