package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/orchestrator"
	"berth/session/api"
	"berth/session/api/apitest"
	"berth/session/api/client"
	"berth/session/api/execstream"
	"berth/session/api/server"
)

// childEnv makes the test program a client: it prints what an API call said and ends.
const childEnv = "BERTH_API_TEST_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(childEnv); socket != "" {
		c := client.New(socket)
		list, err := c.Sessions(context.Background())
		for _, s := range list {
			fmt.Println("sees", s.Name)
		}
		fmt.Println("class", errors.Is(err, api.ErrForbidden), err)
		if err != nil {
			fmt.Println("hint", api.ErrorOf(err).Hint)
		}
		info, _ := c.Info(context.Background()) // zero for whom it is refused
		fmt.Println("all sessions", info.AdminURL != "", info.Fingerprint)
		_, err = c.Prune(context.Background())
		fmt.Println("prune", errors.Is(err, api.ErrForbidden))
		err = c.Build(context.Background(), api.BuildRequest{Names: []string{"xfce"}}, nil)
		fmt.Println("build", err)
		_, err = c.Pull(context.Background(), api.RefRequest{Ref: "xfce"}, nil)
		fmt.Println("pull of a built-in", errors.Is(err, api.ErrForbidden))
		_, err = c.Pull(context.Background(), api.RefRequest{Ref: "registry.invalid/x:1"}, nil)
		fmt.Println("pull", err)
		_, err = c.Up(context.Background(), api.UpRequest{Profile: "xfce", User: "root"}, nil)
		fmt.Println("up as root", errors.Is(err, api.ErrForbidden))
		_, err = c.Exec(context.Background(), "mine", api.ExecRequest{Component: "panel", Command: []string{"true"}, Root: true}, execstream.Streams{})
		fmt.Println("exec as root", errors.Is(err, api.ErrForbidden))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestCallers connects as other users: one in the group, one not.
func TestCallers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("becoming other users needs root")
	}
	const uid = 54321
	const members = "games" // a group that every system has (Debian's base-passwd)
	group, err := user.LookupGroup(members)
	if err != nil {
		t.Skip(err)
	}
	gid, err := strconv.ParseUint(group.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	fake := apitest.New("rootly")
	fake.Add(apitest.Session("mine", "somebody", uid))
	c := apitest.Serve(t, fake, func(cfg *server.Config) { cfg.Group = members })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(c.Socket)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The test program lies where others cannot reach it.
	copied := filepath.Join(dir, "client")
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, data, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(cred *syscall.Credential) string {
		t.Helper()
		cmd := exec.Command(copied)
		cmd.Dir, cmd.Env = "/", []string{childEnv + "=" + c.Socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("client: %v\n%s", err, out)
		}
		return string(out)
	}
	outsider := &syscall.Credential{Uid: uid, Gid: uid}
	join := func(group string) string { return "groupadd -rf " + group + " && usermod -aG " + group + " 54321;" }
	if got := run(outsider); !strings.Contains(got, "class true") || !strings.Contains(got, "not allowed") || strings.Contains(got, "sees") || !strings.Contains(got, join(server.Group)) {
		t.Errorf("an outsider got\n%s", got)
	}
	// With the permissions out of the way the server refuses by itself.
	if err := os.Chmod(c.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := run(outsider); !strings.Contains(got, `class true user "54321": not allowed to use the daemon`) || strings.Contains(got, "sees") || !strings.Contains(got, join(members)) {
		t.Errorf("an outsider whom the socket lets in got\n%s", got)
	}
	member := "sees mine\nclass false <nil>\nall sessions false 5E:1F\nprune true\nbuild <nil>\npull of a built-in true\npull <nil>\nup as root true\nexec as root true\n"
	for name, cred := range map[string]*syscall.Credential{"primary": {Uid: uid, Gid: uint32(gid)}, "additional": {Uid: uid, Gid: uid, Groups: []uint32{7, uint32(gid)}}} {
		if got := run(cred); got != member {
			t.Errorf("a member by %s group got\n%swant\n%s", name, got, member)
		}
	}
	// Root's credentials are root's.
	if _, err := c.Pull(t.Context(), api.RefRequest{Ref: "registry.invalid/x:1"}, nil); err != nil {
		t.Error(err)
	}
	var pulls []string
	for _, call := range fake.Calls() {
		if strings.HasPrefix(call, "Pull ") {
			pulls = append(pulls, call)
		}
	}
	const insecure, anonymous = false, true
	asMember := fmt.Sprintf("Pull registry.invalid/x:1 %t %t", insecure, anonymous)
	asRoot := fmt.Sprintf("Pull registry.invalid/x:1 %t %t", insecure, !anonymous)
	if want := []string{asMember, asMember, asRoot}; !slices.Equal(pulls, want) {
		t.Errorf("pulls of two members and of root: %q; want %q", pulls, want)
	}
}

// TestExecBeginsOnceItIsTaken: a client makes its terminal raw then, and not for a request that is refused.
func TestExecBeginsOnceItIsTaken(t *testing.T) {
	c := apitest.Serve(t, apitest.New("work"), nil)
	begun := 0
	streams := execstream.Streams{Stdout: io.Discard, Stderr: io.Discard, Begin: func() error { begun++; return nil }}
	if _, err := c.Exec(context.Background(), "work", api.ExecRequest{Component: "none", Command: []string{"true"}}, streams); err == nil || begun != 0 {
		t.Errorf("Exec in no component = %v, begun %d times", err, begun)
	}
	if _, err := c.Exec(context.Background(), "work", api.ExecRequest{Component: "panel", Command: []string{"true"}}, streams); err != nil || begun != 1 {
		t.Errorf("Exec = %v, begun %d times", err, begun)
	}
	no := errors.New("no terminal")
	streams.Begin = func() error { return no }
	if _, err := c.Exec(context.Background(), "work", api.ExecRequest{Component: "panel", Command: []string{"true"}}, streams); !errors.Is(err, no) {
		t.Errorf("Exec = %v; want what Begin says", err)
	}
}

func TestListenModeAndSecondDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := server.Listen(path, server.Group)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	want := os.FileMode(0o600)
	if _, err := user.LookupGroup(server.Group); err == nil {
		want = 0o660
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("socket has mode %o; want %o", got, want)
	}
	go func() { // takes the probe of the second one
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	if _, err := server.Listen(path, server.Group); !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("a second Listen = %v; want a wrong state", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after Close: %v", err)
	}
}

func TestTCPIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	fake := apitest.New()
	go func() {
		done <- server.New(server.Config{Manager: fake, Images: fake.Images(), Info: fake.Info}).Serve(ctx, l)
	}()
	resp, err := http.Get("http://" + l.Addr().String() + "/v1/sessions")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("status over TCP = %d; want 403", resp.StatusCode)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	c := apitest.Serve(t, apitest.New(), nil)
	for _, tt := range []struct {
		line   string
		status int
		allow  string
	}{
		{"GET /v1/none", 404, ""}, {"PUT /v1/info", 405, "GET, HEAD"}, {"GET /v1/sessions/..%2fx", 404, ""}, {"GET /v1/sessions/UPPER", 404, ""},
	} {
		method, path, _ := strings.Cut(tt.line, " ")
		conn, err := net.Dial("unix", c.Socket)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		conn.Close()
		if resp.StatusCode != tt.status || resp.Header.Get("Allow") != tt.allow || !strings.HasPrefix(string(body), `{"code":"`) {
			t.Errorf("%s = %d, Allow %q, %s; want %d, %q", tt.line, resp.StatusCode, resp.Header.Get("Allow"), body, tt.status, tt.allow)
		}
	}
}

// TestClientThatIsGoneCancels closes the connection of an up without a word.
func TestClientThatIsGoneCancels(t *testing.T) {
	fake := apitest.New()
	fake.Hold = make(chan struct{})
	c := apitest.Serve(t, fake, nil)
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"profile":"xfce"}`
	fmt.Fprintf(conn, "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if _, err := bufio.NewReader(conn).ReadString('}'); err != nil { // the first line of progress
		t.Fatal(err)
	}
	conn.Close()
	deadline := time.Now().Add(time.Minute)
	for fake.WasUndone() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the up was not cancelled")
		}
		time.Sleep(time.Millisecond) // between looks at a condition
	}
}

// chatty reports much more progress than a socket and a queue hold, and tells when it has.
type chatty struct {
	*apitest.Fake
	said chan struct{}
}

func (c chatty) Up(ctx context.Context, caller api.Caller, req api.UpRequest, progress func(api.UpEvent)) (api.Session, error) {
	for range 1 << 16 {
		progress(api.UpEvent{Message: strings.Repeat("x", 64)})
	}
	close(c.said)
	return c.Fake.Up(ctx, caller, req, progress)
}

// TestStoppedClientHoldsNothingUp has a client that reads only after the work is done, as after a terminal's Ctrl-Z.
func TestStoppedClientHoldsNothingUp(t *testing.T) {
	fake := chatty{apitest.New(), make(chan struct{})}
	c := apitest.Serve(t, fake.Fake, func(cfg *server.Config) { cfg.Manager = fake })
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"profile":"xfce"}`
	fmt.Fprintf(conn, "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	select {
	case <-fake.said:
	case <-time.After(time.Minute):
		t.Fatal("progress waits for a client that does not read")
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var last api.UpEvent
	n := 0
	for dec := json.NewDecoder(res.Body); ; n++ {
		var e api.UpEvent
		if err := dec.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		last = e
	}
	if last.Session == nil || n >= 1<<16 {
		t.Errorf("%d lines, the last %+v; want fewer than were sent, and the session at the end", n, last)
	}
}

// TestCancelledUpTellsTheOutcome ends the context of a client's Up, which then waits for the roll-back.
func TestCancelledUpTellsTheOutcome(t *testing.T) {
	fake := apitest.New()
	fake.Hold = make(chan struct{})
	c := apitest.Serve(t, fake, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := c.Up(ctx, api.UpRequest{Profile: "xfce"}, func(e api.UpEvent) {
		if e.State == "ready" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "undone") || fake.WasUndone() != 1 {
		t.Errorf("Up = %v, undone %d times", err, fake.WasUndone())
	}
}

func TestEvents(t *testing.T) {
	fake := apitest.New()
	c := apitest.Serve(t, fake, func(cfg *server.Config) { cfg.KeepAlive = time.Millisecond })
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 7\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type = %q", got)
	}
	lines := bufio.NewScanner(resp.Body)
	read := func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("the stream ended:", lines.Err())
		}
		return lines.Text()
	}
	if got := read(); got != ": listening; earlier events are not kept" {
		t.Errorf("first line = %q", got)
	}
	for read() != ": keep-alive" {
	}
	fake.Emit(api.Event{Time: apitest.Created, Type: "component.ready", Session: "work", Component: "panel"})
	for {
		if line := read(); strings.HasPrefix(line, "id: ") {
			break
		}
	}
	if got := read(); got != "event: component.ready" {
		t.Errorf("event line = %q", got)
	}
	if got, want := read(), `data: {"time":"2026-11-22T07:00:00Z","type":"component.ready","session":"work","component":"panel"}`; got != want {
		t.Errorf("data line = %q; want %q", got, want)
	}
}

// TestExecKillsWhenTheClientIsGone ends a client whose process reads nothing and writes nothing.
func TestExecKillsWhenTheClientIsGone(t *testing.T) {
	fake := apitest.New("work")
	runs, killed := make(chan struct{}), make(chan struct{})
	fake.Run = func(ctx context.Context, _, _ string, _ orchestrator.ExecSpec) (int, error) {
		close(runs)
		<-ctx.Done()
		close(killed)
		return 0, ctx.Err()
	}
	c := apitest.Serve(t, fake, nil)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-runs; cancel() }()
	_, err := c.Exec(ctx, "work", api.ExecRequest{Component: "panel", Command: []string{"sleep"}}, execstream.Streams{Stdin: strings.NewReader(strings.Repeat("x", 1<<20))})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Exec = %v; want cancelled", err)
	}
	<-killed
}

func TestExecResize(t *testing.T) {
	fake := apitest.New("work")
	fake.Run = func(ctx context.Context, _, _ string, spec orchestrator.ExecSpec) (int, error) {
		for range 2 {
			size := <-spec.Resize
			fmt.Fprintf(spec.Stdout, "%dx%d\r\n", size.Cols, size.Rows)
		}
		return -1, nil
	}
	c := apitest.Serve(t, fake, nil)
	resize := make(chan orchestrator.TermSize)
	out := writerFunc(func(p []byte) {
		if strings.HasPrefix(string(p), "80x25") {
			resize <- orchestrator.TermSize{Cols: 132, Rows: 43}
		} else if string(p) != "132x43\r\n" {
			t.Errorf("output = %q", p)
		}
	})
	code, err := c.Exec(context.Background(), "work", api.ExecRequest{Component: "panel", Command: []string{"sh"}, TTY: true,
		Size: &orchestrator.TermSize{Cols: 80, Rows: 25}}, execstream.Streams{Stdout: out, Resize: resize})
	if code != -1 || err != nil {
		t.Errorf("Exec = %d, %v; want -1", code, err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func TestServeEndsOpenStreams(t *testing.T) {
	fake := apitest.New("work")
	dir := t.TempDir()
	l, err := server.Listen(filepath.Join(dir, "s"), server.Group)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- server.New(server.Config{Manager: fake, Images: fake.Images(), Info: fake.Info}).Serve(ctx, l)
	}()
	c := client.New(filepath.Join(dir, "s"))
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		ended <- c.Events(context.Background(), func() { close(ready) }, func(api.Event) error { return nil })
	}()
	<-ready
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if err := <-ended; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Events = %v; want an unexpected end", err)
	}
}

// TestBrokenExport fails after the first bytes: the client must not take them for an archive.
func TestBrokenExport(t *testing.T) {
	fake := apitest.New()
	fake.Fail["Export"] = errors.New("disk died")
	c := apitest.Serve(t, fake, nil)
	r, err := c.Export(context.Background(), "localhost/berth/xfce:latest")
	if err == nil {
		defer r.Close()
		_, err = io.ReadAll(r)
	}
	if err == nil {
		t.Error("a broken export ended like a good one")
	}
}
