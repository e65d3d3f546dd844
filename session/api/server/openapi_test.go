package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"berth/docs"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
	"berth/session/api/apitest"
	"berth/session/api/server"
)

func document(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(docs.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background(), openapi3.EnableExamplesValidation()); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestRoutesAndDocumentAgree(t *testing.T) {
	described := map[string]bool{}
	for path, item := range document(t).Paths.Map() {
		for method := range item.Operations() {
			described[method+" "+path] = true
		}
	}
	served := map[string]bool{}
	for _, r := range server.New(server.Config{}).Routes() {
		served[r.Method+" "+r.Path] = true
	}
	for r := range served {
		if !described[r] {
			t.Errorf("%s is served but not in docs/openapi.yaml", r)
		}
	}
	for r := range described {
		if !served[r] {
			t.Errorf("%s is in docs/openapi.yaml but not served", r)
		}
	}
}

// sizes are answered alike by whoever is asked for one: the bounds are those of package profiles.
var sizes = map[string]int{
	`{"width":320,"height":200}`: 204, `{"width":8192,"height":8192,"nearest":true}`: 200,
	`{"width":2560,"height":1601}`: 400, // within the bounds, but not of the fake's screen
	`{"width":319,"height":200}`:   400, `{"width":320,"height":199}`: 400, `{"width":0,"height":600}`: 400,
	`{"width":8193,"height":8192}`: 400, `{"width":8192,"height":8193}`: 400,
}

// TestDocumentedSizes checks that the document has the bounds that hold.
func TestDocumentedSizes(t *testing.T) {
	for _, schema := range []string{"Size", "ResizeRequest"} {
		props := document(t).Components.Schemas[schema].Value.Properties
		for name, want := range map[string][2]float64{
			"width": {profiles.MinWidth, profiles.MaxWidth}, "height": {profiles.MinHeight, profiles.MaxHeight},
		} {
			p := props[name].Value
			if p.Min == nil || p.Max == nil || *p.Min != want[0] || *p.Max != want[1] {
				t.Errorf("%s of %s is from %v to %v; want from %v to %v", name, schema, p.Min, p.Max, want[0], want[1])
			}
		}
	}
}

// TestSchemasAndTypesAgree checks that documents have exactly the fields that their Go types write, the required ones
// being those that are always written.
func TestSchemasAndTypesAgree(t *testing.T) {
	types := map[string]any{
		"Session": api.Session{}, "Display": api.Display{}, "Audio": api.Audio{}, "Bus": api.Bus{}, "Remote": api.Remote{},
		"Component": api.Component{}, "UpRequest": api.UpRequest{}, "UpEvent": api.UpEvent{}, "Build": api.Build{}, "Error": api.Error{},
		"Event": api.Event{}, "Trace": api.Trace{}, "Span": api.Span{}, "ExecRequest": api.ExecRequest{}, "TermSize": orchestrator.TermSize{},
		"Size": api.Size{}, "ResizeRequest": api.ResizeRequest{}, "SetRequest": api.SetRequest{}, "ImageList": api.ImageList{}, "Image": orchestrator.Image{}, "ImageEvent": api.ImageEvent{},
		"Progress": orchestrator.Progress{}, "BuildRequest": api.BuildRequest{}, "RefRequest": api.RefRequest{}, "TagRequest": api.TagRequest{},
		"PruneResult": api.PruneResult{}, "DaemonInfo": api.DaemonInfo{}, "EngineInfo": orchestrator.Info{}, "Plan": api.Plan{},
		"PlanApp": profiles.App{}, "PlanComponent": profiles.Component{}, "Probe": profiles.Probe{}, "PlanDisplay": profiles.Display{}, "PlanAudio": profiles.Audio{}, "PlanSystemBus": profiles.SystemBus{},
		"GuessRequest": api.GuessRequest{}, "GuessEvent": api.GuessEvent{}, "Guess": api.Guess{}, "GuessedSession": api.GuessedSession{},
		"PlanHome": profiles.Home{}, "PlanLook": profiles.Look{}, "PlanLocale": profiles.Locale{}, "PlanLimits": profiles.Limits{},
	}
	schemas := document(t).Components.Schemas
	for name := range schemas {
		if types[name] == nil {
			t.Errorf("schema %s has no Go type in this test", name)
		}
	}
	for name, v := range types {
		s := schemas[name]
		if s == nil {
			t.Errorf("%T: schema %s is missing", v, name)
			continue
		}
		all, always := fields(reflect.TypeOf(v))
		var props []string
		for p := range s.Value.Properties {
			props = append(props, p)
		}
		required := slices.Clone(s.Value.Required)
		for _, l := range [][]string{all, always, props, required} {
			slices.Sort(l)
		}
		if !slices.Equal(all, props) {
			t.Errorf("schema %s has the properties\n%v, %T the fields\n%v", name, props, v, all)
		}
		if !slices.Equal(always, required) {
			t.Errorf("schema %s requires\n%v, %T always writes\n%v", name, required, v, always)
		}
	}
}

func fields(t reflect.Type) (all, always []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		if f.Anonymous && tag == "" {
			a, b := fields(f.Type)
			all, always = append(all, a...), append(always, b...)
			continue
		}
		name, opts, _ := strings.Cut(tag, ",")
		if name == "-" {
			continue
		}
		all = append(all, name)
		if !strings.Contains(opts, "omitempty") {
			always = append(always, name)
		}
	}
	return all, always
}

// TestConversationsKeepToTheDocument makes a real request of every operation, good and bad, over a real socket.
func TestConversationsKeepToTheDocument(t *testing.T) {
	fake := apitest.New("work", "spare")
	down := make(chan struct{}, 1)
	c := apitest.Serve(t, fake, func(cfg *server.Config) { cfg.Shutdown = func() { down <- struct{}{} } })
	check := apitest.NewChecker(t, c.Socket)
	hc := &http.Client{Transport: check}
	do := func(method, path, body string, want int) string {
		t.Helper()
		var r io.Reader
		if body != "" {
			r = strings.NewReader(body)
		}
		req, err := http.NewRequest(method, "http://berth"+path, r)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(body, "tar:"), strings.HasPrefix(body, "bad:"):
			req.Header.Set("Content-Type", "application/octet-stream")
		case body != "":
			req.Header.Set("Content-Type", "application/json")
		}
		if strings.HasSuffix(path, "/exec") {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "berth-exec/1")
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
			return ""
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want {
			t.Errorf("%s %s %s = %d %s; want %d", method, path, body, resp.StatusCode, got, want)
		}
		return string(got)
	}

	do("GET", "/v1/sessions", "", 200)
	do("POST", "/v1/sessions", `{"profile":"xfce","name":"new","set":["a=b"],"vnc_port":5909}`, 200)
	do("POST", "/v1/sessions", `{"profile":"xfce","name":"work"}`, 409)
	do("POST", "/v1/sessions", `{"profile":"xfce","nmae":"x"}`, 400)
	do("POST", "/v1/sessions", `{"profile":"xfce"} {}`, 400)
	do("POST", "/v1/sessions", `{"profile":""}`, 400)
	do("POST", "/v1/sessions", `{"profile":"xfce","vnc_port":70000}`, 400)
	do("POST", "/v1/sessions", `{"profile":"x","source":"`+strings.Repeat("a", server.MaxSource+1)+`"}`, 400)
	do("POST", "/v1/sessions", `{"profile":"x","source":"`+strings.Repeat("a", 6*server.MaxSource+64<<10)+`"}`, 413)
	fake.Fail["UpEnd"] = errors.New("component \"panel\": fake: never ready")
	if got := do("POST", "/v1/sessions", `{"profile":"xfce","name":"never"}`, 200); !strings.Contains(got, `{"error":{"code":"internal"`) {
		t.Errorf("a failure after progress = %s", got)
	}
	fake.Fail["Up"] = fmt.Errorf("engine: fake: %w", orchestrator.ErrUnavailable)
	do("POST", "/v1/sessions", `{"profile":"xfce","name":"never"}`, 503)
	do("GET", "/v1/sessions/work", "", 200)
	do("GET", "/v1/sessions/none", "", 404)
	do("GET", "/v1/sessions/work/logs", "", 200)
	do("GET", "/v1/sessions/work/logs?component=panel&tail=1&follow=false", "", 200)
	do("GET", "/v1/sessions/work/logs?tail=x", "", 400)
	do("GET", "/v1/sessions/work/logs?component=none", "", 404)
	do("GET", "/v1/sessions/work/shot", "", 200)
	do("POST", "/v1/sessions/work/resize", `{"width":800,"height":600}`, 204)
	for body, want := range sizes {
		do("POST", "/v1/sessions/work/resize", body, want)
	}
	do("POST", "/v1/sessions/work/set", `{"set":["look.dark=true"]}`, 204)
	do("POST", "/v1/sessions/none/set", `{"set":["look.dark=true"]}`, 404)
	do("POST", "/v1/sessions/work/set", `{"set":["display.size=800x600"]}`, 400)
	do("POST", "/v1/sessions/work/set", `{"set":[]}`, 400)
	do("GET", "/v1/sessions/work/trace", "", 200)
	do("POST", "/v1/sessions/work/exec", `{"component":"none","command":["true"]}`, 404)
	do("POST", "/v1/sessions/work/exec", `{"component":"panel","command":[]}`, 400)
	do("DELETE", "/v1/sessions/work", "", 409)
	do("DELETE", "/v1/sessions/work?force=yes", "", 400)
	do("DELETE", "/v1/sessions/work?force=true&home=true", "", 204)
	do("POST", "/v1/sessions/spare/stop", "", 204)
	do("POST", "/v1/sessions/spare/stop", "", 404)
	do("POST", "/v1/plan", `{"profile":"xfce"}`, 200)
	fake.Fail["Plan"] = api.WithHint(fmt.Errorf("fake: profile \"xfce\": %w", orchestrator.ErrInvalid), "read it")
	do("POST", "/v1/plan", `{"profile":"xfce"}`, 400)
	do("POST", "/v1/guess", `{"image":"desk:1","session":"lxde","profile":"d"}`, 200)
	do("POST", "/v1/guess", `{"image":""}`, 400)
	fake.Fail["Guess"] = fmt.Errorf("image \"none:1\": desktop: %w", orchestrator.ErrNotFound)
	do("POST", "/v1/guess", `{"image":"none:1"}`, 404)
	do("GET", "/v1/images", "", 200)
	do("POST", "/v1/images/build", `{"names":["xfce"],"force":true}`, 200)
	do("POST", "/v1/images/build", `{"names":["none"]}`, 404)
	do("POST", "/v1/images/build", `{"names":[]}`, 400)
	do("POST", "/v1/images/pull", `{"ref":"debian:trixie"}`, 200)
	do("POST", "/v1/images/pull", `{"ref":""}`, 400)
	do("POST", "/v1/images/push", `{"ref":"registry.example/a:1","insecure":true}`, 200)
	do("POST", "/v1/images/import", "tar:localhost/a:1", 200)
	if got := do("POST", "/v1/images/import", "bad:", 200); !strings.Contains(got, `"code":"invalid"`) {
		t.Errorf("import of a bad archive = %s", got)
	}
	do("GET", "/v1/images/export?ref=localhost/berth/xfce:latest", "", 200)
	do("GET", "/v1/images/export?ref=none", "", 404)
	do("GET", "/v1/images/export", "", 400)
	do("POST", "/v1/images/tag", `{"src":"xfce","dst":"a:1"}`, 204)
	do("POST", "/v1/images/prune", "", 200)
	do("DELETE", "/v1/images?ref=localhost/berth/xfce:latest", "", 204)
	do("DELETE", "/v1/images?ref=none", "", 404)
	do("GET", "/v1/info", "", 200)
	do("GET", "/v1/openapi.yaml", "", 200)
	do("POST", "/v1/shutdown", "", 202)
	<-down

	// What a plain round trip cannot show: the upgrade, and a stream without an end. Both have tests of their own.
	apart := map[string]bool{"POST /v1/sessions/{name}/exec": true, "GET /v1/events": true}
	for _, r := range server.New(server.Config{}).Routes() {
		if id := r.Method + " " + r.Path; !check.Seen(id) && !apart[id] {
			t.Errorf("%s: no good request was made in this test", id)
		}
	}
}
