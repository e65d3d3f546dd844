package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"berth/docs"
)

// Checker is an http.RoundTripper that holds every request to a daemon, and every answer, against docs/openapi.yaml, in
// both directions: what the document forbids must not be accepted, what is answered must be described. It reads whole
// answers, so it is not for streams without an end. It is for one goroutine.
type Checker struct {
	t      testing.TB
	router routers.Router
	next   http.RoundTripper
	seen   map[string]bool // operations that succeeded
}

// NewChecker returns one for the daemon on a socket.
func NewChecker(t testing.TB, socket string) *Checker {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(docs.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"application/x-tar", "image/png", "application/yaml"} {
		openapi3filter.RegisterBodyDecoder(kind, openapi3filter.FileBodyDecoder)
	}
	return &Checker{t: t, router: router, seen: map[string]bool{}, next: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
}

// Seen tells whether a good request of an operation ("GET /v1/sessions/{name}") was made.
func (c *Checker) Seen(operation string) bool { return c.seen[operation] }

// RoundTrip implements http.RoundTripper.
func (c *Checker) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := context.Background()
	route, params, err := c.router.FindRoute(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: not in the document: %w", req.Method, req.URL.Path, err)
	}
	var body []byte
	if req.Body != nil {
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route, Options: &openapi3filter.Options{IncludeResponseStatus: true}}
	badRequest := openapi3filter.ValidateRequest(ctx, in)
	if body != nil {
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(got))
	good := resp.StatusCode < 300
	if good && badRequest != nil {
		c.t.Errorf("%s %s: the server accepts what the document forbids: %v", req.Method, req.URL, badRequest)
	}
	if resp.Header.Get("Content-Type") == "application/x-ndjson" {
		schema := route.Operation.Responses.Status(resp.StatusCode).Value.Content["application/x-ndjson"].Schema.Value
		for line := range strings.Lines(string(got)) {
			var v any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				c.t.Errorf("%s %s: line %q: %v", req.Method, req.URL, line, err)
			} else if err := schema.VisitJSON(v, openapi3.VisitAsResponse()); err != nil {
				c.t.Errorf("%s %s: line %q: %v", req.Method, req.URL, line, err)
			}
		}
	} else {
		out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header,
			Options: &openapi3filter.Options{IncludeResponseStatus: true}}
		out.SetBodyBytes(got)
		if err := openapi3filter.ValidateResponse(ctx, out); err != nil {
			c.t.Errorf("%s %s: answer %d %q: %v", req.Method, req.URL, resp.StatusCode, got, err)
		}
	}
	if good {
		c.seen[route.Method+" "+route.Path] = true
	}
	return resp, nil
}
