// Package server serves the daemon's API: HTTP/1.1 and JSON over a Unix socket, as docs/openapi.yaml describes it.
//
// # Who may do what
//
// The socket belongs to root and the group "berth" (mode 0660), or to root alone (0600) where that group does not
// exist. Who connected is known by SO_PEERCRED and SO_PEERGROUPS (unix(7), socket(7)), which the kernel fills in at
// connect(2): a caller that is neither root nor in the group is refused again by the server. Root sees all sessions,
// others their own. Everybody who gets in may look at images, build the built-in recipes and pull from registries that
// prove who they are, since starting a session does the same. Only root pushes (with root's credentials), imports,
// exports, tags, removes and prunes images, builds what is not outdated, pulls without verification or under the names
// of the built-in images, starts sessions as another user, and stops the daemon: each of these changes what other
// users' sessions run, or spends what is theirs.
//
// # Streams
//
// Answers that take long are JSON documents, one per line, written as they come; the last one says how it ended. What
// fails before the first line has the error's own HTTP status. A client that shuts down the writing side of its
// connection, or is gone, cancels the request: what was begun is undone, and the first kind of client still
// reads the outcome.
package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"berth/docs"
	"berth/orchestrator"
	"berth/session/api"
)

// Group is the group whose members may use the daemon, unless Config says otherwise.
const Group = api.Group

// MaxSource bounds a profile sent by a client, in bytes.
const MaxSource = 1 << 20

const (
	maxBody      = 64 << 10              // of JSON bodies in general
	maxUpBody    = 6*MaxSource + maxBody // JSON escapes a byte as up to six
	sniffTimeout = 10 * time.Second      // for a request's header
	bodyTimeout  = 30 * time.Second      // for a JSON body
	idleTimeout  = 2 * time.Minute       // between requests of a connection
)

// Config is what the API serves.
type Config struct {
	Manager api.Manager
	Images  api.Images
	// Info describes the daemon; Sessions is filled in by the server as far as the caller sees them, and AdminURL is
	// passed on to root only.
	Info func(context.Context) (api.DaemonInfo, error)
	// Shutdown begins the daemon's end and returns at once; nil: not offered.
	Shutdown func()
	// Group is the group whose members may use the API; "" means Group.
	Group string
	// Log gets what clients cannot be told; nil discards it.
	Log *slog.Logger
	// KeepAlive is the time between comments on a silent event stream; 0 means 15 seconds.
	KeepAlive time.Duration
}

// Server is the API's http.Handler and its listener loop. It is safe for concurrent use.
type Server struct {
	Config
	mux       *http.ServeMux
	lastEvent atomic.Int64 // the next event's ID; begins at the start time so that IDs grow over restarts
}

// New returns a server for cfg.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Group == "" {
		cfg.Group = Group
	}
	if cfg.KeepAlive == 0 {
		cfg.KeepAlive = 15 * time.Second
	}
	s := &Server{Config: cfg, mux: http.NewServeMux()}
	s.lastEvent.Store(time.Now().UnixMilli())
	for _, r := range s.routes() {
		s.mux.Handle(r.Method+" "+r.Path, s.handler(r))
	}
	return s
}

// Route is one operation of the API.
type Route struct {
	Method, Path string
	root         bool // root only
	handle       func(w http.ResponseWriter, r *http.Request, c api.Caller) error
}

// Routes lists the operations, for checking them against the document.
func (s *Server) Routes() []Route { return s.routes() }

func (s *Server) routes() []Route {
	return []Route{
		{Method: "GET", Path: "/v1/sessions", handle: s.list},
		{Method: "POST", Path: "/v1/sessions", handle: s.up},
		{Method: "GET", Path: "/v1/sessions/{name}", handle: s.show},
		{Method: "DELETE", Path: "/v1/sessions/{name}", handle: s.remove},
		{Method: "POST", Path: "/v1/sessions/{name}/stop", handle: s.stop},
		{Method: "GET", Path: "/v1/sessions/{name}/logs", handle: s.logs},
		{Method: "POST", Path: "/v1/sessions/{name}/exec", handle: s.exec},
		{Method: "GET", Path: "/v1/sessions/{name}/shot", handle: s.shot},
		{Method: "POST", Path: "/v1/sessions/{name}/resize", handle: s.resize},
		{Method: "POST", Path: "/v1/sessions/{name}/set", handle: s.set},
		{Method: "GET", Path: "/v1/sessions/{name}/trace", handle: s.trace},
		{Method: "GET", Path: "/v1/events", handle: s.events},
		{Method: "POST", Path: "/v1/plan", handle: s.plan},
		{Method: "POST", Path: "/v1/guess", handle: s.guess},
		{Method: "GET", Path: "/v1/images", handle: s.images},
		{Method: "DELETE", Path: "/v1/images", root: true, handle: s.imageRemove},
		{Method: "POST", Path: "/v1/images/build", handle: s.imageBuild},
		{Method: "POST", Path: "/v1/images/pull", handle: s.imagePull},
		{Method: "POST", Path: "/v1/images/push", root: true, handle: s.imagePush},
		{Method: "POST", Path: "/v1/images/import", root: true, handle: s.imageImport},
		{Method: "GET", Path: "/v1/images/export", root: true, handle: s.imageExport},
		{Method: "POST", Path: "/v1/images/tag", root: true, handle: s.imageTag},
		{Method: "POST", Path: "/v1/images/prune", root: true, handle: s.imagePrune},
		{Method: "GET", Path: "/v1/info", handle: s.info},
		{Method: "POST", Path: "/v1/shutdown", root: true, handle: s.shutdown},
		{Method: "GET", Path: "/v1/openapi.yaml", handle: s.openapi},
	}
}

// Serve answers on l until ctx ends; then it stops accepting, ends the open streams and returns when the handlers have.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	hs := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: sniffTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxBody,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       s.ConnContext,
	}
	done := make(chan error, 1)
	go func() { done <- hs.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("api: %w", err)
	case <-ctx.Done():
	}
	// Every request's context is a child of ctx, so the handlers are on their way out; one that undoes an `up` may take a while.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := hs.Shutdown(grace)
	<-done
	if err != nil {
		return fmt.Errorf("api: requests still running: %w", errors.Join(err, hs.Close()))
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := s.mux.Handler(r); pattern == "" {
		// The mux answers 404 and 405 itself, in plain text; here they look like every other error.
		rec := &statusOnly{header: http.Header{}}
		s.mux.ServeHTTP(rec, r)
		err := &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("path %q: not found", r.URL.Path), Hint: "GET /v1/openapi.yaml describes the API"}
		if rec.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", rec.header.Get("Allow"))
			err.Code, err.Message = api.CodeInvalid, fmt.Sprintf("path %q: method %s is not allowed", r.URL.Path, r.Method)
		} else {
			rec.status = http.StatusNotFound
		}
		writeJSON(w, rec.status, err)
		return
	}
	s.mux.ServeHTTP(w, r)
}

type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header         { return s.header }
func (s *statusOnly) Write(p []byte) (int, error) { return len(p), nil }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }

// handler puts what all routes share around one: the caller, the permission, the form of errors.
func (s *Server) handler(route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		track := &tracker{ResponseWriter: w}
		err := func() error {
			c, err := callerOf(r.Context())
			if err != nil {
				return err
			}
			if route.root && !c.Root() {
				return api.WithHint(fmt.Errorf("user %q: %w to do this", c.Name, api.ErrForbidden), "run the command as root")
			}
			if name := r.PathValue("name"); name != "" && !sessionName.MatchString(name) {
				return fmt.Errorf("session %q: %w", name, orchestrator.ErrNotFound)
			}
			return route.handle(track, r, c)
		}()
		if err == nil {
			return
		}
		if !track.begun {
			doc := api.ErrorOf(err)
			status := statusOf(doc.Code)
			var tooBig *http.MaxBytesError
			if errors.As(err, &tooBig) {
				status = http.StatusRequestEntityTooLarge
			}
			writeJSON(w, status, doc)
			return
		}
		if r.Context().Err() == nil {
			s.Log.Warn("answer broke off", "method", route.Method, "path", route.Path, "error", err)
		}
		// The status is long sent: only a broken connection can tell the client that the answer is not whole.
		panic(http.ErrAbortHandler)
	})
}

// tracker notes whether the answer has begun.
type tracker struct {
	http.ResponseWriter
	begun bool
}

func (t *tracker) WriteHeader(status int)      { t.begun = true; t.ResponseWriter.WriteHeader(status) }
func (t *tracker) Write(p []byte) (int, error) { t.begun = true; return t.ResponseWriter.Write(p) }
func (t *tracker) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// Hijack implements http.Hijacker.
func (t *tracker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err == nil {
		t.begun = true
	}
	return conn, buf, err
}

// sessionName is the form of a session's name (package session makes no others).
var sessionName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func statusOf(code string) int {
	switch code {
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeExists, api.CodeState:
		return http.StatusConflict
	case api.CodeInvalid:
		return http.StatusBadRequest
	case api.CodeForbidden:
		return http.StatusForbidden
	case api.CodeUnavailable, api.CodeCanceled:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func writeJSON(w http.ResponseWriter, status int, doc any) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, err = w.Write(append(body, '\n'))
	return err
}

// readJSON decodes a request's body strictly: one document, no unknown fields, at most limit bytes.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, doc any) error {
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(ct) != "application/json" {
		return fmt.Errorf("content type %q: %w: must be application/json", ct, orchestrator.ErrInvalid)
	}
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return fmt.Errorf("request body: %w", err)
	}
	// Afterwards the server goes on reading to see the client go, for as long as the answer takes.
	defer rc.SetReadDeadline(time.Time{})
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	dec.DisallowUnknownFields()
	err := dec.Decode(doc)
	if err == nil {
		if _, more := dec.Token(); more == nil {
			err = errors.New("more than one document")
		} else if more != io.EOF {
			err = more
		}
	}
	if err != nil {
		return fmt.Errorf("request body: %w: %w", orchestrator.ErrInvalid, err)
	}
	return nil
}

// lines writes an answer of one JSON document per line: progress, and at last the result. The header goes out with the
// first. Progress never waits for a client that does not read (a terminal's Ctrl-Z stops one for hours), since others may
// wait for what is under way: what such a client has no room for is dropped. All methods are safe for concurrent use.
type lines struct {
	w     http.ResponseWriter
	enc   *json.Encoder
	queue chan any
	done  chan struct{} // closed when the queue is closed and written
	err   error         // of writing; valid after done

	mu     sync.Mutex
	begun  bool // guarded by mu, as is closed
	closed bool
}

// linesQueued is how many documents of progress wait for a slow client, besides what its socket holds.
const linesQueued = 1024

func newLines(w http.ResponseWriter) *lines {
	l := &lines{w: w, enc: json.NewEncoder(w), queue: make(chan any, linesQueued), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		first := true
		for doc := range l.queue {
			if l.err == nil {
				l.err = l.write(doc, first)
			}
			first = false
		}
	}()
	return l
}

func (l *lines) write(doc any, first bool) error {
	if first {
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.w.WriteHeader(http.StatusOK)
	}
	if err := l.enc.Encode(doc); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

// progress adds a document, if there is room. After finish it does nothing.
func (l *lines) progress(doc any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.begun = true
	select {
	case l.queue <- doc:
	default:
	}
}

// finish waits until what was added is written, then writes the result, or, if err is not nil, fail(err). An error before
// any line was written is left to the caller, to be answered in the ordinary way.
func (l *lines) finish(result any, fail func(*api.Error) any, err error) error {
	l.mu.Lock()
	l.closed = true
	begun := l.begun
	l.mu.Unlock()
	close(l.queue)
	<-l.done
	switch {
	case l.err != nil:
		return l.err
	case err == nil:
		return l.write(result, !begun)
	case begun:
		return l.write(fail(api.ErrorOf(err)), false)
	}
	return err
}

// copyFlush copies a stream as it comes.
func copyFlush(w http.ResponseWriter, r io.Reader) error {
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if ferr := rc.Flush(); ferr != nil {
				return ferr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *Server) info(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	info, err := s.Info(r.Context())
	if err != nil {
		return err
	}
	list, err := s.Manager.Sessions(r.Context(), c)
	if err != nil {
		return err
	}
	info.Sessions = len(list)
	if !c.Root() {
		info.AdminURL = ""
	}
	return writeJSON(w, http.StatusOK, info)
}

func (s *Server) shutdown(w http.ResponseWriter, _ *http.Request, _ api.Caller) error {
	if s.Shutdown == nil {
		return fmt.Errorf("shutdown: %w: this daemon is ended by its supervisor", orchestrator.ErrState)
	}
	w.WriteHeader(http.StatusAccepted)
	s.Shutdown()
	return nil
}

func (s *Server) openapi(w http.ResponseWriter, _ *http.Request, _ api.Caller) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, err := w.Write(docs.OpenAPI)
	return err
}
