// Package client talks to the daemon's API (docs/openapi.yaml) over its Unix socket.
//
// Errors that the daemon answered are *api.Error and match the classes of package orchestrator with errors.Is. Ending
// the context of Up, Guess, Build, Pull, Push and Import asks the daemon to cancel, and the call still waits until the daemon
// has undone what was begun; ending it in any other call drops the connection.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"

	"berth/orchestrator"
	"berth/session/api"
	"berth/session/api/execstream"
)

// ErrNoDaemon says that no daemon answers on the socket.
var ErrNoDaemon = errors.New("the daemon is not running")

// Client is a client of one daemon. It is safe for concurrent use.
type Client struct {
	Socket string
	http   *http.Client
}

// New returns a client for the daemon on the Unix socket at path. It does not connect yet.
func New(path string) *Client {
	c := &Client{Socket: path}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
	}}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("socket %q: %w", c.Socket, ErrNoDaemon)
	case errors.Is(err, fs.ErrPermission):
		return nil, api.WithHint(fmt.Errorf("socket %q: %w to use the daemon", c.Socket, api.ErrForbidden),
			api.JoinHint(api.Group, api.NewCaller(os.Getuid(), os.Getgid()).Name))
	}
	return nil, fmt.Errorf("socket %q: %w", c.Socket, err)
}

// request makes a request; body is nil, an io.Reader, or a document for JSON.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, body any) (*http.Request, error) {
	u := url.URL{Scheme: "http", Host: "berth", Path: path, RawQuery: query.Encode()}
	var r io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case io.Reader:
		r, kind = b, "application/octet-stream"
	default:
		doc, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		r, kind = bytes.NewReader(doc), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	return req, nil
}

// answer turns an error answer into an error.
func answer(resp *http.Response) error {
	if resp.StatusCode < 300 {
		return nil
	}
	defer resp.Body.Close()
	doc := &api.Error{}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	if err := json.Unmarshal(body, doc); err != nil || doc.Code == "" {
		return fmt.Errorf("daemon answered %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return doc
}

// open sends a request and returns the body of a good answer.
func (c *Client) open(ctx context.Context, method, path string, query url.Values, body any) (io.ReadCloser, error) {
	req, err := c.request(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error // says nothing that the cause does not
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, err
	}
	if err := answer(resp); err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// call sends a request and decodes the answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, out any) error {
	r, err := c.open(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer r.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, r)
		return err
	}
	if err := json.NewDecoder(r).Decode(out); err != nil {
		return fmt.Errorf("daemon's answer: %w", err)
	}
	return nil
}

// fetch is call for an answer of type T.
func fetch[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (T, error) {
	var out T
	err := c.call(ctx, method, path, query, body, &out)
	return out, err
}

// stream sends a request whose answer is lines of JSON and calls each with every line. It uses a connection of its own:
// when ctx ends, only the writing side is shut down, which asks the daemon to cancel, and the answer is read to its end.
func (c *Client) stream(ctx context.Context, method, path string, body any, each func(json.RawMessage) error) error {
	req, err := c.request(context.WithoutCancel(ctx), method, path, nil, body)
	if err != nil {
		return err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// A body that is a stream is stopped at its source, since the answer may wait for its end.
	sent := make(chan error, 1)
	if req.Body != nil {
		req.Body = &stoppable{ReadCloser: req.Body, ctx: ctx}
	}
	go func() { sent <- req.Write(conn) }()
	stop := context.AfterFunc(ctx, func() {
		if uc, ok := conn.(*net.UnixConn); ok {
			_ = uc.CloseWrite() // the answer's end shows whether it worked
		}
	})
	defer stop()
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case werr := <-sent:
			if werr != nil {
				return fmt.Errorf("connection to the daemon: %w", werr)
			}
		default:
		}
		return fmt.Errorf("connection to the daemon: %w", broken(err))
	}
	defer resp.Body.Close()
	if err := answer(resp); err != nil {
		return err
	}
	dec := json.NewDecoder(resp.Body)
	for {
		var line json.RawMessage
		if err := dec.Decode(&line); err == io.EOF {
			return fmt.Errorf("connection to the daemon: %w", io.ErrUnexpectedEOF) // each has not seen the last line
		} else if err != nil {
			return fmt.Errorf("connection to the daemon: %w", broken(err))
		}
		if err := each(line); err == errLast {
			return nil
		} else if err != nil {
			return err
		}
	}
}

var errLast = errors.New("last line")

func broken(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

type stoppable struct {
	io.ReadCloser
	ctx context.Context
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.ReadCloser.Read(p)
}

func session(name, op string) string { return "/v1/sessions/" + name + op }

// Info returns what the daemon says of itself.
func (c *Client) Info(ctx context.Context) (api.DaemonInfo, error) {
	return fetch[api.DaemonInfo](ctx, c, "GET", "/v1/info", nil, nil)
}

// Shutdown asks the daemon to end. Sessions go on.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/shutdown", nil, nil, nil)
}

// Sessions lists the sessions the caller may see, by name.
func (c *Client) Sessions(ctx context.Context) ([]api.Session, error) {
	return fetch[[]api.Session](ctx, c, "GET", "/v1/sessions", nil, nil)
}

// Session returns one session.
func (c *Client) Session(ctx context.Context, name string) (api.Session, error) {
	return fetch[api.Session](ctx, c, "GET", session(name, ""), nil, nil)
}

// Up starts a session and returns when it is ready; progress may be nil.
func (c *Client) Up(ctx context.Context, req api.UpRequest, progress func(api.UpEvent)) (api.Session, error) {
	var out api.Session
	err := c.stream(ctx, "POST", "/v1/sessions", req, func(line json.RawMessage) error {
		var e api.UpEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("daemon's answer: %w", err)
		}
		switch {
		case e.Error != nil:
			return e.Error
		case e.Session != nil:
			out = *e.Session
			return errLast
		case progress != nil:
			progress(e)
		}
		return nil
	})
	return out, err
}

// Plan resolves a profile without starting anything.
func (c *Client) Plan(ctx context.Context, req api.UpRequest) (api.Plan, error) {
	return fetch[api.Plan](ctx, c, "POST", "/v1/plan", nil, req)
}

// Guess finds out how the desktop in an image is started; progress may be nil.
func (c *Client) Guess(ctx context.Context, req api.GuessRequest, progress func(api.UpEvent)) (api.Guess, error) {
	var out api.Guess
	err := c.stream(ctx, "POST", "/v1/guess", req, func(line json.RawMessage) error {
		var e api.GuessEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("daemon's answer: %w", err)
		}
		switch {
		case e.Error != nil:
			return e.Error
		case e.Guess != nil:
			out = *e.Guess
			return errLast
		case progress != nil:
			progress(api.UpEvent{Message: e.Message, Build: e.Build})
		}
		return nil
	})
	return out, err
}

// Stop ends a session; it returns when everything but a home volume is gone.
func (c *Client) Stop(ctx context.Context, name string) error {
	return c.call(ctx, "POST", session(name, "/stop"), nil, nil, nil)
}

// Remove removes a failed session; with force a running one too, with home its home volume as well.
func (c *Client) Remove(ctx context.Context, name string, force, home bool) error {
	q := url.Values{"force": {strconv.FormatBool(force)}, "home": {strconv.FormatBool(home)}}
	return c.call(ctx, "DELETE", session(name, ""), q, nil, nil)
}

// Logs reads the log of one component, or of all if component is ""; tail < 0 means from the start.
func (c *Client) Logs(ctx context.Context, name, component string, tail int, follow bool) (io.ReadCloser, error) {
	q := url.Values{"tail": {strconv.Itoa(tail)}, "follow": {strconv.FormatBool(follow)}}
	if component != "" {
		q.Set("component", component)
	}
	return c.open(ctx, "GET", session(name, "/logs"), q, nil)
}

// Exec runs a process in a component and returns its exit code.
func (c *Client) Exec(ctx context.Context, name string, req api.ExecRequest, s execstream.Streams) (int, error) {
	r, err := c.request(context.WithoutCancel(ctx), "POST", session(name, "/exec"), nil, req)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", execstream.Protocol)
	conn, err := c.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := r.Write(conn); err != nil {
		return 0, fmt.Errorf("connection to the daemon: %w", err)
	}
	buf := bufio.NewReader(conn)
	resp, err := http.ReadResponse(buf, r)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return 0, fmt.Errorf("connection to the daemon: %w", broken(err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		if err := answer(resp); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("daemon answered %s instead of an upgrade", resp.Status)
	}
	return execstream.Client(ctx, conn, buf, s)
}

// Events calls each with every event until ctx ends, each fails or the daemon goes away; ready, which may be nil, is
// called once no event can be missed any more. It returns ctx's error if that ended it.
func (c *Client) Events(ctx context.Context, ready func(), each func(api.Event) error) error {
	body, err := c.open(ctx, "GET", "/v1/events", nil, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	if ready != nil {
		ready()
	}
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// The daemon writes each event's data on one line; ids, types and comments say nothing more.
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e api.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("connection to the daemon: %w", err)
	}
	return fmt.Errorf("connection to the daemon: %w", io.ErrUnexpectedEOF)
}

// Shot returns the screen as PNG.
func (c *Client) Shot(ctx context.Context, name string) ([]byte, error) {
	body, err := c.open(ctx, "GET", session(name, "/shot"), nil, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// Resize sets the screen's size in pixels.
func (c *Client) Resize(ctx context.Context, name string, size api.Size) error {
	return c.call(ctx, "POST", session(name, "/resize"), nil, api.ResizeRequest{Size: size}, nil)
}

// Fit sets the screen's size to the nearest that the X server can have, which it returns.
func (c *Client) Fit(ctx context.Context, name string, size api.Size) (api.Size, error) {
	return fetch[api.Size](ctx, c, "POST", session(name, "/resize"), nil, api.ResizeRequest{Size: size, Nearest: true})
}

// Set changes keys of a running session's profile, each KEY=VALUE.
func (c *Client) Set(ctx context.Context, name string, set []string) error {
	return c.call(ctx, "POST", session(name, "/set"), nil, api.SetRequest{Set: set}, nil)
}

// Trace returns how a session started.
func (c *Client) Trace(ctx context.Context, name string) (api.Trace, error) {
	return fetch[api.Trace](ctx, c, "GET", session(name, "/trace"), nil, nil)
}

// Images lists the images and the recipes.
func (c *Client) Images(ctx context.Context) (api.ImageList, error) {
	return fetch[api.ImageList](ctx, c, "GET", "/v1/images", nil, nil)
}

// transfer is a change of images whose progress is streamed.
func (c *Client) transfer(ctx context.Context, op string, body any, progress func(api.ImageEvent)) ([]orchestrator.Image, error) {
	var out []orchestrator.Image
	err := c.stream(ctx, "POST", "/v1/images/"+op, body, func(line json.RawMessage) error {
		var e api.ImageEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("daemon's answer: %w", err)
		}
		switch {
		case e.Error != nil:
			return e.Error
		case e.Done:
			out = e.Images
			return errLast
		case progress != nil:
			progress(e)
		}
		return nil
	})
	return out, err
}

// Build builds built-in recipes; progress may be nil.
func (c *Client) Build(ctx context.Context, req api.BuildRequest, progress func(api.ImageEvent)) error {
	_, err := c.transfer(ctx, "build", req, progress)
	return err
}

// Pull fetches an image from its registry; progress may be nil.
func (c *Client) Pull(ctx context.Context, req api.RefRequest, progress func(api.ImageEvent)) (orchestrator.Image, error) {
	images, err := c.transfer(ctx, "pull", req, progress)
	if err != nil {
		return orchestrator.Image{}, err
	}
	if len(images) != 1 {
		return orchestrator.Image{}, fmt.Errorf("daemon's answer: %d images pulled", len(images))
	}
	return images[0], nil
}

// Push sends an image to its registry; progress may be nil.
func (c *Client) Push(ctx context.Context, req api.RefRequest, progress func(api.ImageEvent)) error {
	_, err := c.transfer(ctx, "push", req, progress)
	return err
}

// Import sends an archive and returns the images it held; progress may be nil.
func (c *Client) Import(ctx context.Context, r io.Reader, progress func(api.ImageEvent)) ([]orchestrator.Image, error) {
	return c.transfer(ctx, "import", r, progress)
}

// Export reads images as an OCI layout archive. A read that fails before io.EOF means that the archive is not whole.
func (c *Client) Export(ctx context.Context, refs ...string) (io.ReadCloser, error) {
	return c.open(ctx, "GET", "/v1/images/export", url.Values{"ref": refs}, nil)
}

// Tag gives an image a further name.
func (c *Client) Tag(ctx context.Context, src, dst string) error {
	return c.call(ctx, "POST", "/v1/images/tag", nil, api.TagRequest{Src: src, Dst: dst}, nil)
}

// RemoveImage removes an image's name.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.call(ctx, "DELETE", "/v1/images", url.Values{"ref": {ref}}, nil, nil)
}

// Prune removes what no image and no recipe needs any more and returns the bytes freed.
func (c *Client) Prune(ctx context.Context) (int64, error) {
	out, err := fetch[api.PruneResult](ctx, c, "POST", "/v1/images/prune", nil, nil)
	return out.Freed, err
}
