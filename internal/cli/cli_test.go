package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/internal/hostcheck"
	"berth/internal/paths"
	"berth/orchestrator"
	"berth/session/api"
	"berth/session/api/apitest"
	"berth/session/api/server"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got, -update writes it anew):\n%s", name, diff)
	}
}

// output may be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	ch  chan struct{} // a write happened
}

func newOutput() *output { return &output{ch: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.ch <- struct{}{}:
	default:
	}
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// await returns when text was written.
func (o *output) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !strings.Contains(o.String(), text) {
		select {
		case <-o.ch:
		case <-deadline:
			t.Fatalf("%q was not written; there is only:\n%s", text, o)
		}
	}
}

// bench is a command line in front of a fake daemon.
type bench struct {
	*CLI
	fake     *apitest.Fake
	out, err *output
}

// newBench makes one; its root is a directory in which the fake's socket lies where the layout has it.
func newBench(t testing.TB, sessions ...string) *bench {
	t.Helper()
	return newBenchWith(t, nil, sessions...)
}

// newBenchWith is newBench with a change of the server's configuration.
func newBenchWith(t testing.TB, change func(*server.Config), sessions ...string) *bench {
	t.Helper()
	b := &bench{fake: apitest.New(sessions...), out: newOutput(), err: newOutput()}
	cl := apitest.Serve(t, b.fake, change)
	root := filepath.Join(filepath.Dir(cl.Socket), "r")
	if err := os.MkdirAll(filepath.Join(root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(cl.Socket, filepath.Join(root, "run", "berth.sock")); err != nil {
		t.Fatal(err)
	}
	b.CLI = &CLI{Stdin: strings.NewReader(""), Stdout: b.out, Stderr: b.err, Home: "/nonexistent", Env: []string{"BERTH_ROOT=" + root},
		Now: func() time.Time { return apitest.Created.Add(90 * time.Minute) },
		Doctor: func(context.Context, paths.Layout) ([]hostcheck.Finding, error) {
			return []hostcheck.Finding{{Check: "cgroups", Status: hostcheck.OK, Detail: "v2"}, {Check: "disk", Status: hostcheck.Warning, Detail: "1 GiB free", Hint: "make room"}}, nil
		},
		Profiles: fstest.MapFS{"tiny.toml": {Data: []byte(tiny)}}}
	return b
}

const tiny = `name = "tiny"
description = "a test"
session = "app"

[components.app]
image = "xfce"
command = ["xterm"]
provides = ["app"]
`

// run runs a command line and returns the exit code; out and err hold this run's output only.
func (b *bench) run(args ...string) int {
	b.out, b.err = newOutput(), newOutput()
	c := *b.CLI
	c.Args, c.Stdout, c.Stderr = args, b.out, b.err
	return c.Run(context.Background())
}

func TestVerbs(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"own.toml": tiny, "good.tar": "tar:localhost/a:1", "bad.tar": "no archive"} {
		if err := os.WriteFile(file(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		args  []string
		code  int
		out   string // golden text, with the directory as DIR; "-" for any
		err   string // is part of stderr
		calls []string
	}{
		{args: []string{"ls"}, out: `NAME   PROFILE  STATE    USER  SIZE       WEB                                      VNC             AGE
spare  xfce     running  root  1920x1080  http://127.0.0.1:6080/s/spare?token=abc  127.0.0.1:5901  90m
work   xfce     running  root  1920x1080  http://127.0.0.1:6080/s/work?token=abc   127.0.0.1:5901  90m
`},
		{args: []string{"up", "xfce", "--name", "new", "--set", "a=b", "--vnc-port", "5910"}, err: "image xfce: present\ndisplay: ready\n", out: `session   new
web       http://127.0.0.1:6080/s/new?token=abc
vnc       127.0.0.1:5901
password  k3JxPq9w
ready     1.48 s
`, calls: []string{"Up xfce new [a=b]  5910", "UpEnd"}},
		{args: []string{"up", "xfce", "--name", "work"}, code: 1, err: `berth: session "work": already exists`},
		{args: []string{"up", file("own.toml"), "--name", "own"}, err: "display: ready", out: `session   own
web       http://127.0.0.1:6080/s/own?token=abc
vnc       127.0.0.1:5901
password  k3JxPq9w
ready     1.48 s
`, calls: []string{"Up DIR/own.toml own [] " + strings.TrimSpace(tiny) + "\n 0", "UpEnd"}},
		{args: []string{"up", file("none.toml")}, code: 1, err: `none.toml": not found`},
		{args: []string{"up"}, code: 2, err: "hint: berth up --help"},
		{args: []string{"up", "xfce", "--vnc-port", "70000"}, code: 2, err: "70000"},
		{args: []string{"up", "a", "b"}, code: 2, err: `unexpected argument "b"`},
		{args: []string{"up"}, code: 2, err: "missing argument: berth up PROFILE, or --image REF"},
		{args: []string{"up", "xfce", "--image", "a:1"}, code: 2, err: `profile "xfce" and --image "a:1": only one can be started`},
		{args: []string{"up", "xfce", "--session", "a"}, code: 2, err: "goes with --image"},
		{args: []string{"up", "--image", "desk:1", "--session", "a b", "--name", "guessed"}, err: `pulling image desk:1
berth: image desk:1: LXDE (startlxde), from /usr/share/xsessions/lxde.desktop; it is the first
berth: also there, with --session openbox: Openbox (openbox 'a b'), from program /usr/bin/openbox
berth: note: there is no dbus-daemon in the image
berth: to keep or change it: berth profile new --image desk:1 --session 'a b' -o desk.toml
`, out: `session   guessed
web       http://127.0.0.1:6080/s/guessed?token=abc
vnc       127.0.0.1:5901
password  k3JxPq9w
ready     1.48 s
`, calls: []string{"Guess desk:1 a b", "Up desk.toml guessed [] " + strings.TrimSpace(strings.ReplaceAll(guessed, "NAME", "desk")) + "\n 0", "UpEnd"}},
		{args: []string{"profile", "new", "--image", "desk:1", "--panel", "a"}, code: 2, err: "does not go with --image"},
		{args: []string{"profile", "new", "--session", "a"}, code: 2, err: "goes with --image"},
		{args: []string{"profile", "new", "--image", "desk:1", "--name", "A"}, code: 2, err: "up to 32 of a-z"},
		{args: []string{"profile", "new", "--save", "-o", "x"}, code: 2, err: "one place"},
		{args: []string{"profile", "new", "--image", "desk:1", "--name", "mine"}, out: strings.ReplaceAll(guessed, "NAME", "mine"), err: "pulling image desk:1\n",
			calls: []string{"Guess desk:1  mine"}},
		{args: []string{"show", "none"}, code: 1, err: "berth: session \"none\": not found\nhint: berth ls lists the sessions\n"},
		{args: []string{"stop", "spare", "none"}, code: 1, out: "spare\n", err: `session "none": not found`, calls: []string{"Remove spare true false"}},
		{args: []string{"rm", "work"}, code: 1, err: "it is running"},
		{args: []string{"rm", "-f", "--home", "work"}, out: "work\n", calls: []string{"Remove work true true"}},
		{args: []string{"logs", "work", "panel"}, out: "one\ntwo\nthree\n"},
		{args: []string{"logs", "work", "--tail", "1"}, out: "display | three\npanel | three\n"},
		{args: []string{"logs", "work", "none"}, code: 1, err: `component "none": not found`},
		{args: []string{"exec", "work", "panel", "-e", "A=b", "--", "cat", "--x"}, calls: []string{"Exec work panel [-e A=b -- cat --x] []  false false"}},
		{args: []string{"exec", "-e", "A=b", "-w", "/tmp", "--as-root", "work", "panel", "--", "cat", "--x"}, calls: []string{"Exec work panel [cat --x] [A=b] /tmp false true"}},
		{args: []string{"exec", "work", "none", "--", "cat"}, code: 1, err: "hint: its components: display, panel"},
		{args: []string{"exec", "work", "panel"}, code: 2, err: "missing argument"},
		{args: []string{"exec", "work", "panel", "--"}, code: 2, err: "missing argument"},
		{args: []string{"open", "work"}, out: "http://127.0.0.1:6080/s/work?token=abc\n"},
		{args: []string{"open", "none"}, code: 1, err: `session "none": not found`},
		{args: []string{"profile", "show", "tiny"}, out: tiny},
		{args: []string{"profile", "show", "tinny"}, code: 1, err: `did you mean "tiny"?`},
		{args: []string{"profile", "check", "tiny"}, out: "built-in/tiny.toml: ok\n",
			err: "berth: warning: profile \"tiny\": not used yet and ignored: look.dark, apps\n", calls: []string{"Plan tiny []"}},
		{args: []string{"profile", "check", "tiny", "--set", "display.sizze=1x1"}, code: 1, err: "sizze"},
		{args: []string{"profile", "plan", "tiny", "--json"}, err: "berth: warning: profile \"tiny\": not used yet and ignored: look.dark, apps\n", out: "-", calls: []string{"Plan tiny []"}},
		{args: []string{"image", "build", "xfce", "--force"}, err: "xfce [1/2] FROM debian:trixie", calls: []string{"Build [xfce] false true"}},
		{args: []string{"image", "build", "none"}, code: 1, err: `image "none": recipe: not found`},
		{args: []string{"image", "pull", "debian:trixie", "--insecure"}, out: "docker.io/library/debian:trixie\n", err: "downloading  sha256:aa\ndone         sha256:aa\n",
			calls: []string{"Pull debian:trixie true false"}},
		{args: []string{"image", "push", "registry.example/a:1"}, err: "uploading", calls: []string{"Push registry.example/a:1 false"}},
		{args: []string{"image", "import", file("good.tar")}, out: "localhost/a:1\n", err: "extracting", calls: []string{"Import localhost/a:1 17"}},
		{args: []string{"image", "import", file("bad.tar")}, code: 1, err: "no layers"},
		{args: []string{"image", "import", file("none.tar")}, code: 1, err: "no such file"},
		{args: []string{"image", "export", "localhost/berth/xfce:latest", "-"}, out: "tar:localhost/berth/xfce:latest", calls: []string{"Export [localhost/berth/xfce:latest]"}},
		{args: []string{"image", "export", "none", file("x.tar")}, code: 1, err: `image "none": not found`},
		{args: []string{"image", "tag", "xfce", "a:1"}, calls: []string{"Tag xfce a:1"}},
		{args: []string{"image", "rm", "localhost/berth/xfce:latest"}, out: "localhost/berth/xfce:latest\n", calls: []string{"RemoveImage localhost/berth/xfce:latest"}},
		{args: []string{"image", "prune"}, out: "freed 123.0 MiB\n", calls: []string{"Prune"}},
		{args: []string{"image", "puhs"}, code: 2, err: `unknown command "image puhs"; did you mean "push"?`},
		{args: []string{"lss"}, code: 2, err: `unknown command "lss"; did you mean "ls"?`},
		{args: []string{"LS"}, code: 2, err: `unknown command "LS"; did you mean "ls"?`},
		{args: []string{"--bogus"}, code: 2, err: "unknown flag: --bogus"},
		{args: []string{"completion", "tcsh"}, code: 2, err: `shell "tcsh"`},
		{args: []string{"trace", "work", "--svg", "-", "--json"}, code: 2, err: "exclude"},
		{args: []string{"doctor"}, out: `ok       cgroups  v2
warning  disk     1 GiB free
                  -> make room
ok       daemon   version 1.2.3, process 1234, containerd 2.4.2, snapshotter overlayfs, cgroups v2
ok       gateway  https://127.0.0.1:6080, certificate SHA-256 5E:1F
warning  daemon   network: no nft
`},
	}
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(strings.Join(tt.args, " "), dir+"/", ""), func(t *testing.T) {
			b := newBench(t, "work", "spare")
			code := b.run(tt.args...)
			if code != tt.code {
				t.Errorf("exit code = %d; want %d\n%s", code, tt.code, b.err)
			}
			if tt.out == "-" && b.out.String() != "" {
				tt.out = b.out.String()
			}
			if diff := cmp.Diff(tt.out, strings.ReplaceAll(b.out.String(), dir, "DIR")); diff != "" {
				t.Errorf("stdout (-want +got):\n%s", diff)
			}
			if !strings.Contains(b.err.String(), tt.err) || tt.err == "" && tt.code == 0 && b.err.String() != "" {
				t.Errorf("stderr = %q; want %q in it", b.err, tt.err)
			}
			calls := b.fake.Calls()
			for i := range calls {
				calls[i] = strings.ReplaceAll(calls[i], dir, "DIR")
			}
			if tt.calls != nil && !cmp.Equal(tt.calls, calls) {
				t.Errorf("calls = %q; want %q", calls, tt.calls)
			}
		})
	}
}

// TestNamesakeIsCheckedOnce: a profile of one's own that extends the built-in one of its name, by name and by any path.
func TestNamesakeIsCheckedOnce(t *testing.T) {
	b := newBench(t)
	b.Home = t.TempDir()
	dir := filepath.Join(b.Home, ".config", "berth", "profiles")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tiny.toml"), []byte("extends = \"tiny\"\n[display]\nsizze = \"1x1\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, ref := range []string{"tiny", "tiny.toml", filepath.Join(dir, "tiny.toml"), filepath.Join(link, "tiny.toml")} {
		code := b.run("profile", "check", ref)
		if want := filepath.Join(dir, "tiny.toml") + ":3:1: unknown key"; code != 1 || strings.Count(b.err.String(), "unknown key") != 1 || !strings.Contains(b.err.String(), want) {
			t.Errorf("berth profile check %s = %d; want %q once\n%s", ref, code, want, b.err)
		}
	}
	if code := b.run("up", "tiny.toml"); code != 0 || !slices.ContainsFunc(b.fake.Calls(), func(call string) bool {
		return strings.HasPrefix(call, "Up "+filepath.Join(dir, "tiny.toml")+" ")
	}) {
		t.Errorf("berth up = %d, %q; want the file's full name\n%s", code, b.fake.Calls(), b.err)
	}
}

func TestPrinted(t *testing.T) {
	b := newBench(t, "work")
	b.Env = append(b.Env, "COLUMNS=110", "TZ=UTC")
	for name, args := range map[string][]string{
		"show.txt": {"show", "work"}, "show.json": {"show", "work", "--json"}, "trace.txt": {"trace", "work"}, "trace.svg": {"trace", "work", "--svg", "-"},
		"plan.txt": {"profile", "plan", "xfce"}, "graph.txt": {"profile", "graph", "xfce"}, "image-ls.txt": {"image", "ls"}, "profile-ls.txt": {"profile", "ls"},
	} {
		if code := b.run(args...); code != 0 {
			t.Errorf("berth %v = %d\n%s", args, code, b.err)
		}
		got := strings.ReplaceAll(b.out.String(), apitest.Created.Local().Format("2006-01-02 15:04:05"), "2026-11-22 07:00:00")
		golden(t, name, got)
	}
}

// TestJSON checks that every list and show has --json and prints one document with it.
func TestJSON(t *testing.T) {
	for _, args := range [][]string{{"ls"}, {"show", "work"}, {"up", "xfce", "--name", "n"}, {"trace", "work"}, {"profile", "ls"}, {"profile", "show", "tiny"},
		{"profile", "plan", "tiny"}, {"profile", "check", "tiny"}, {"image", "ls"}, {"image", "prune"}, {"doctor"}, {"version"}} {
		b := newBench(t, "work")
		if code := b.run(append(args, "--json")...); code != 0 {
			t.Errorf("berth %v --json = %d\n%s", args, code, b.err)
		}
		dec := json.NewDecoder(strings.NewReader(b.out.String()))
		var doc any
		if err := dec.Decode(&doc); err != nil {
			t.Errorf("berth %v --json: %v", args, err)
		} else if _, err := dec.Token(); err != io.EOF {
			t.Errorf("berth %v --json prints more than one document", args)
		}
	}
}

func TestShot(t *testing.T) {
	b := newBench(t, "work")
	t.Chdir(t.TempDir())
	if code := b.run("shot", "work"); code != 0 || b.out.String() != "work.png\n" {
		t.Errorf("berth shot = %d, %q\n%s", code, b.out, b.err)
	}
	data, err := os.ReadFile("work.png")
	if err != nil || !bytes.HasPrefix(data, []byte("\x89PNG")) {
		t.Errorf("work.png = %q, %v", data, err)
	}
	if code := b.run("shot", "work", "-o", "-"); code != 0 || b.out.String() != string(data) {
		t.Errorf("berth shot -o - = %d, other bytes", code)
	}
}

// TestOutputGoesWhereItIsSent: a pipe and a link stay what they are.
func TestOutputGoesWhereItIsSent(t *testing.T) {
	ref := "localhost/berth/xfce:latest"
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"shot", "work", "-o"}, "\x89PNG"},
		{[]string{"trace", "work", "-o"}, "<svg"},
		{[]string{"profile", "graph", "tiny", "-o"}, "<svg"},
		{[]string{"image", "export", ref}, "tar:" + ref},
	} {
		t.Run(strings.Join(tt.args[:2], " "), func(t *testing.T) {
			b := newBench(t, "work")
			t.Chdir(t.TempDir())
			if err := syscall.Mkfifo("fifo", 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("fifo", "link"); err != nil {
				t.Fatal(err)
			}
			// Open for both, so that the writer does not wait and what it wrote is kept.
			f, err := os.OpenFile("fifo", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if code := b.run(append(tt.args, "link")...); code != 0 {
				t.Errorf("berth %v link = %d\n%s", tt.args, code, b.err)
			}
			for name, want := range map[string]os.FileMode{"fifo": os.ModeNamedPipe, "link": os.ModeSymlink} {
				if info, err := os.Lstat(name); err != nil || info.Mode().Type() != want {
					t.Fatalf("%s is now %v, %v", name, info.Mode(), err)
				}
			}
			data := make([]byte, 1<<16)
			n, err := f.Read(data)
			if err != nil || !strings.HasPrefix(string(data[:n]), tt.want) {
				t.Errorf("the pipe got %.20q, %v; want %q", data[:n], err, tt.want)
			}
		})
	}
}

// TestStdoutByAnotherName: what goes to /dev/stdout is not followed by the file's name.
func TestStdoutByAnotherName(t *testing.T) {
	b := newBench(t, "work")
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := *b.CLI
	c.Args, c.Stdout, c.Stderr = []string{"trace", "work", "-o", fmt.Sprint("/dev/fd/", out.Fd())}, out, b.err
	if code := c.Run(context.Background()); code != 0 {
		t.Errorf("berth trace = %d\n%s", code, b.err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil || !strings.HasPrefix(string(text), "<svg") || !strings.HasSuffix(string(text), "</svg>\n") {
		t.Errorf("stdout = %q, %v; want a picture and nothing else", text, err)
	}
}

func TestExecPassesStreamsAndCode(t *testing.T) {
	b := newBench(t, "work")
	b.fake.Run = func(_ context.Context, _, _ string, spec orchestrator.ExecSpec) (int, error) {
		in, err := io.ReadAll(spec.Stdin)
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(spec.Stdout, "got %d", len(in))
		fmt.Fprint(spec.Stderr, "warned")
		return 7, nil
	}
	b.Stdin = strings.NewReader(strings.Repeat("x", 1<<20)) // more than the window
	if code := b.run("exec", "work", "panel", "--", "wc"); code != 7 || b.out.String() != "got 1048576" || b.err.String() != "warned" {
		t.Errorf("berth exec = %d, %q, %q", code, b.out, b.err)
	}
}

// TestInterruptWaitsForTheUndo interrupts an up: the daemon undoes it, the command waits for that and fails.
func TestInterruptWaitsForTheUndo(t *testing.T) {
	for _, args := range [][]string{{"up", "xfce"}, {"image", "build", "xfce"}, {"image", "pull", "debian:1"}} {
		t.Run(args[0], func(t *testing.T) {
			b := newBench(t)
			b.fake.Hold = make(chan struct{})
			interrupts := make(chan os.Signal, 2)
			b.Interrupts = interrupts
			out, errs := newOutput(), newOutput()
			c := *b.CLI
			c.Args, c.Stdout, c.Stderr = args, out, errs
			code := make(chan int)
			go func() { code <- c.Run(context.Background()) }()
			for len(b.fake.Calls()) == 0 {
				select {
				case got := <-code:
					t.Fatalf("ended with %d: %s", got, errs)
				case <-time.After(time.Millisecond):
				}
			}
			interrupts <- os.Interrupt
			if got := <-code; got != 1 || !strings.Contains(errs.String(), "berth: interrupted; what was begun is undone\n") {
				t.Errorf("exit code = %d; want 1\n%s", got, errs)
			}
			if n := b.fake.WasUndone(); n != 1 {
				t.Errorf("undone %d times when the command had ended; want once", n)
			}
			if out.String() != "" {
				t.Errorf("stdout = %q", out)
			}
		})
	}
}

func TestInterruptedSaysWhatIsLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	if err := interrupted(ctx, context.Canceled, undone); err != context.Canceled {
		t.Errorf("without an interrupt: %v", err)
	}
	cancel()
	undo := fmt.Errorf("session %q: %w", "x", errors.Join(context.Canceled, errors.New(`undo "unmount /x": busy`)))
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("session %q: %w", "x", context.Canceled), "interrupted; what was begun is undone"},
		{undo, "interrupted: session \"x\": context canceled\nundo \"unmount /x\": busy"},
		{exitError(130), "exit code 130"},
	} {
		if got := interrupted(ctx, tt.err, undone).Error(); got != tt.want {
			t.Errorf("interrupted(%v) = %q; want %q", tt.err, got, tt.want)
		}
	}
}

func TestSecondInterruptLeaves(t *testing.T) {
	b := newBench(t)
	interrupts := make(chan os.Signal)
	left := make(chan int, 1)
	b.CLI.Interrupts, b.CLI.Exit = interrupts, func(code int) { left <- code }
	b.CLI.defaults()
	cancelled := make(chan struct{})
	stop := b.CLI.watchInterrupts(func() { close(cancelled) })
	defer stop()
	interrupts <- os.Interrupt
	<-cancelled
	interrupts <- os.Interrupt // the same one, delivered twice
	select {
	case code := <-left:
		t.Errorf("left with %d at an interrupt that came twice", code)
	case <-time.After(sameInterrupt + 50*time.Millisecond):
	}
	interrupts <- os.Interrupt
	if code := <-left; code != 1 {
		t.Errorf("second interrupt left with %d; want 1", code)
	}
}

func TestFollowing(t *testing.T) {
	for _, args := range [][]string{{"logs", "work", "-f"}, {"events"}} {
		b := newBench(t, "work")
		interrupts := make(chan os.Signal, 1)
		out, errs := newOutput(), newOutput()
		c := *b.CLI
		c.Args, c.Stdout, c.Stderr, c.Interrupts = args, out, errs, interrupts
		code := make(chan int)
		go func() { code <- c.Run(context.Background()) }()
		if args[0] == "events" {
			errs.await(t, "listening")
			b.fake.Emit(api.Event{Time: apitest.Created, Type: "session.running", Session: "work"})
			out.await(t, "session.running      work\n")
		} else {
			out.await(t, "panel | three\n")
		}
		interrupts <- os.Interrupt
		if got := <-code; got != 0 {
			t.Errorf("berth %v = %d after an interrupt; want 0\n%s", args, got, errs)
		}
	}
}

func TestNoDaemon(t *testing.T) {
	dir, err := os.MkdirTemp("", "berth")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var out, errs bytes.Buffer
	for _, uid := range []int{0, 1000} {
		c := &CLI{Args: []string{"--root", dir, "ls"}, Stdout: &out, Stderr: &errs, Env: []string{}, Getuid: func() int { return uid }}
		errs.Reset()
		want := map[int]string{0: "hint: berth up PROFILE starts it", 1000: "hint: root can start it"}[uid]
		if code := c.Run(context.Background()); code != 1 || !strings.Contains(errs.String(), "the daemon is not running") || !strings.Contains(errs.String(), want) {
			t.Errorf("uid %d: berth ls = %d, %s", uid, code, errs.String())
		}
	}
	c := &CLI{Args: []string{"--root", dir, "up", "xfce"}, Stdout: &out, Stderr: &errs, Env: []string{}, Getuid: func() int { return 1000 }}
	if code := c.Run(context.Background()); code != 1 {
		t.Errorf("berth up as a user without a daemon = %d", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "run")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it made directories: %v", err)
	}
}

// commands walks all visible commands.
func commands(t *testing.T) []*cobra.Command {
	t.Helper()
	c := &CLI{Stdout: io.Discard, Stderr: io.Discard, Stdin: strings.NewReader("")}
	c.defaults()
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if !cmd.Hidden {
			all = append(all, cmd)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(c.rootCommand())
	return all
}

func TestHelpForm(t *testing.T) {
	short := regexp.MustCompile(`^[A-Z].*[^.]$`)
	flagUse := regexp.MustCompile(`^[a-z]|^[A-Z]+[,:]`)
	for _, cmd := range commands(t) {
		path := cmd.CommandPath()
		if !short.MatchString(cmd.Short) || len(cmd.Short) > 60 {
			t.Errorf("%s: short help %q: must be a phrase of at most 60 characters, upper case first, without a full stop", path, cmd.Short)
		}
		if cmd.Long != "" && !strings.HasSuffix(cmd.Long, ".") {
			t.Errorf("%s: long help must end with a full stop", path)
		}
		if cmd.Example == "" {
			t.Errorf("%s: has no example", path)
		}
		for line := range strings.Lines(cmd.Example) {
			if !strings.HasPrefix(line, "  ") || !strings.Contains(line, "berth") {
				t.Errorf("%s: example %q: must be indented by two and call berth", path, line)
			}
		}
		text := cmd.Short + cmd.Long + cmd.Example + cmd.Use
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !flagUse.MatchString(f.Usage) || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: %q: must be a phrase in lower case without a full stop", path, f.Name, f.Usage)
			}
			text += f.Usage
		})
		if strings.Contains(cmd.LocalFlags().FlagUsages(), "(default )") {
			t.Errorf("%s: a flag's help says (default )", path)
		}
		for line := range strings.Lines(cmd.Long) {
			if len(line) > 121 {
				t.Errorf("%s: long help has a line of %d characters", path, len(line))
			}
		}
		for _, r := range text {
			if r > 126 {
				t.Errorf("%s: help has the character %q; only ASCII is shown everywhere", path, r)
			}
		}
	}
}

func TestHelpGolden(t *testing.T) {
	var all strings.Builder
	for _, cmd := range commands(t) {
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		var out bytes.Buffer
		c := &CLI{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, Env: []string{}}
		if code := c.Run(context.Background()); code != 0 {
			t.Errorf("berth %v = %d", args, code)
		}
		fmt.Fprintf(&all, "$ berth %s\n%s\n", strings.Join(args, " "), out.String())
	}
	golden(t, "help.txt", all.String())
}

func TestContractIsThere(t *testing.T) {
	have := map[string]bool{}
	for _, cmd := range commands(t) {
		have[cmd.CommandPath()] = true
	}
	for _, want := range strings.Split("up ls show stop rm logs exec events shot open set trace profile/ls profile/show profile/check profile/plan profile/graph "+
		"image/ls image/build image/pull image/push image/import image/export image/tag image/rm image/prune daemon doctor version completion", " ") {
		if path := "berth " + strings.ReplaceAll(want, "/", " "); !have[path] {
			t.Errorf("command %q is missing", path)
		}
	}
	for _, later := range []string{"share", "login", "machine"} {
		if have["berth "+later] {
			t.Errorf("command %q is listed but belongs to a later issue", later)
		}
	}
}

func TestCompletion(t *testing.T) {
	b := newBench(t, "work", "spare")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"stop", "work", ""}, "spare\txfce, running\n:4\n"},
		{[]string{"show", ""}, "spare\txfce, running\nwork\txfce, running\n:4\n"},
		{[]string{"logs", "work", ""}, "display\tready\npanel\tready\n:4\n"},
		{[]string{"up", ""}, "tiny\ta test\n:0\n"},
		{[]string{"image", "build", ""}, "display\nxfce\nxfce-13\n:4\n"},
	} {
		if code := b.run(append([]string{"__complete"}, tt.args...)...); code != 0 || b.out.String() != tt.want {
			t.Errorf("completion of %q = %d %q; want %q", tt.args, code, b.out, tt.want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code := b.run("completion", shell); code != 0 || !strings.Contains(b.out.String(), "berth") {
			t.Errorf("completion %s = %d", shell, code)
		}
	}
}

// TestOpenWithoutANameIsTheListOfAll, which only root gets.
func TestOpenWithoutANameIsTheListOfAll(t *testing.T) {
	for _, tt := range []struct {
		admin    string // the URL in the daemon's answer
		code     int
		out, err string
	}{
		{"http://127.0.0.1/#token=all", 0, "http://127.0.0.1/#token=all\n", ""},
		{"", 1, "", "berth: list of all sessions: not allowed to others than root\nhint: berth ls lists yours, and berth open NAME opens one\n"},
	} {
		b := newBenchWith(t, func(cfg *server.Config) {
			cfg.Info = func(context.Context) (api.DaemonInfo, error) { return api.DaemonInfo{AdminURL: tt.admin}, nil }
		}, "work")
		if code := b.run("open"); code != tt.code || b.out.String() != tt.out || b.err.String() != tt.err {
			t.Errorf("berth open with %q = %d, %q, %q; want %d, %q, %q", tt.admin, code, b.out, b.err, tt.code, tt.out, tt.err)
		}
	}
}

func TestShowTellsTheCertificate(t *testing.T) {
	b := newBench(t)
	s := apitest.Session("work", "root", 0)
	s.Remote.Web = "https://127.0.0.1:6080/s/work/#token=abc"
	b.fake.Add(s)
	if code := b.run("show", "work"); code != 0 || !strings.Contains(b.out.String(), "\ncertificate  SHA-256 5E:1F\n") {
		t.Errorf("berth show = %d, %s%s; want the fingerprint in it", code, b.out, b.err)
	}
}

func TestOpenStartsTheBrowser(t *testing.T) {
	b := newBench(t, "work")
	dir := t.TempDir()
	script := "#!/bin/sh\nprintf '%s\\n' \"$@\" > " + dir + "/seen\n"
	if err := os.WriteFile(filepath.Join(dir, "surf"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	b.Env = append(b.Env, "DISPLAY=:9", "PATH="+dir+":/usr/bin:/bin", "BROWSER=absent:surf --new %s")
	if code := b.run("open", "work"); code != 0 || b.out.String() != "" {
		t.Errorf("berth open = %d, %q\n%s", code, b.out, b.err)
	}
	seen, err := os.ReadFile(filepath.Join(dir, "seen"))
	if want := "--new\nhttp://127.0.0.1:6080/s/work?token=abc\n"; err != nil || string(seen) != want {
		t.Errorf("the browser got %q, %v; want %q", seen, err, want)
	}
	b.Env = append(b.Env, "BROWSER=/bin/false")
	if code := b.run("open", "work"); code != 0 || b.out.String() != "http://127.0.0.1:6080/s/work?token=abc\n" {
		t.Errorf("berth open with a browser that fails = %d, %q\n%s", code, b.out, b.err)
	}
}
