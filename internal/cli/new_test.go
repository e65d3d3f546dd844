package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"berth/profiles"
	"berth/session/api"
)

// guessed is the profile that the fake guesses.
const guessed = `name = "NAME"
[components.desktop]
image = "desk:1"
command = ["startlxde"]
`

// newMixer is a bench with profiles to mix, resolved in process; its home is a directory of its own.
func newMixer(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	part := func(name, role, image string) string {
		return "[components." + name + "]\nimage = \"" + image + "\"\ncommand = [\"" + name + "\"]\nprovides = [\"" + role + "\"]\n"
	}
	b.Profiles = fstest.MapFS{
		"one.toml":    {Data: []byte("description = \"the first\"\n[display]\nsize = \"1024x768\"\n" + part("wm", "window-manager", "one:1") + part("bar", "panel", "one:1"))},
		"two.toml":    {Data: []byte("description = \"the second\"\n" + part("wm", "window-manager", "two:1") + part("dock", "panel", "two:1"))},
		"app.toml":    {Data: []byte(strings.ReplaceAll(tiny, "tiny", "app"))},
		"broken.toml": {Data: []byte("x = 1")},
	}
	b.Home = t.TempDir()
	b.Plan = func(_ context.Context, req api.UpRequest) (api.Plan, error) {
		infra := func(*profiles.Profile) ([]profiles.Component, error) { return nil, nil }
		p, err := profiles.Resolve(req.Profile, profiles.StandardSources(b.Home, -1, b.Profiles), nil, infra)
		if err != nil {
			return api.Plan{}, err
		}
		return *p, nil
	}
	return b
}

const mixed = `name        = "one-two"
description = "one with the panel of two"
extends     = "one"

[components.two-dock]
image    = "two:1"
command  = ["dock"]
provides = ["panel"]

[components.bar]
disable = true
`

func TestProfileNewByFlags(t *testing.T) {
	b := newMixer(t)
	if code := b.run("profile", "new", "--base", "one", "--panel", "two"); code != 0 || b.out.String() != mixed {
		t.Errorf("berth profile new = %d\n%s%s", code, b.out, b.err)
	}
	saved := filepath.Join(b.Home, ".config/berth/profiles/mine.toml")
	if code := b.run("profile", "new", "--base", "one", "--panel", "none", "--window-manager", "own", "--applications", "none", "--size", "800x600", "--name", "mine", "--save"); code != 0 || b.out.String() != saved+"\n" {
		t.Errorf("berth profile new --save = %d\n%s%s", code, b.out, b.err)
	}
	text, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := profiles.Load("mine", profiles.StandardSources(b.Home, -1, b.Profiles)); err != nil || !strings.Contains(string(text), `size = "800x600"`) {
		t.Errorf("saved is %s, %v", text, err)
	}
	if code := b.run("profile", "new", "--base", "two", "--name", "mine", "--save"); code != 1 || !strings.Contains(b.err.String(), "already exists; --force replaces it") {
		t.Errorf("berth profile new --save over another = %d\n%s", code, b.err)
	}
	if now, err := os.ReadFile(saved); err != nil || string(now) != string(text) {
		t.Errorf("the other is now %s, %v", now, err)
	}
	if code := b.run("profile", "new", "--base", "two", "--name", "mine", "-o", saved, "--force"); code != 0 {
		t.Errorf("berth profile new --force = %d\n%s", code, b.err)
	}
	if err := os.Remove(saved); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "base desktop: name it with --base PROFILE: one, two\n"},
		{[]string{"--base", "app"}, `base desktop: invalid answer "app"; want one of one, two`},
		{[]string{"--base", "one", "--panel", "tow"}, `panel: invalid answer "tow"; want one of own, two, none; did you mean "two"?`},
		{[]string{"--base", "one", "--applications", "two,x"}, `applications: invalid answer "x"; want one of app, two`},
		{[]string{"--base", "one", "--size", "1x1"}, "size: invalid"},
	} {
		if code := b.run(append([]string{"profile", "new"}, tt.args...)...); code != 2 || !strings.Contains(b.err.String(), tt.want) {
			t.Errorf("berth profile new %v = %d, %s; want %s", tt.args, code, b.err, tt.want)
		}
	}
}

// dialogue is a run of `berth profile new` on a terminal.
type dialogue struct {
	*bench
	screen *output
	typed  func(string)
	code   chan int
	cancel context.CancelFunc
}

func newDialogue(t *testing.T, args ...string) *dialogue {
	t.Helper()
	d := &dialogue{bench: newMixer(t), code: make(chan int, 1)}
	var tty *os.File
	tty, d.screen, d.typed = newTerminal(t)
	c := *d.CLI
	c.Args, c.Stdin, c.Stdout, c.Stderr = append([]string{"profile", "new"}, args...), tty, d.out, tty
	if d.out == nil {
		d.bench.out = newOutput()
		c.Stdout = d.bench.out
	}
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.code <- c.Run(ctx)
	}()
	t.Cleanup(func() { // before the terminal goes, for which it would wait
		d.cancel()
		<-ended
	})
	return d
}

func TestProfileNewByQuestions(t *testing.T) {
	d := newDialogue(t)
	for _, step := range [][2]string{
		{"The desktop to build on:\r\n  one  the first\r\n  two  the second\r\nbase desktop (one, two): ", "app"},
		{"\"app\" is none of one, two\r\n", ""},
		{"an answer is needed", "one"},
		{"window manager of (own, two) [own]: ", ""},
		{"panel of (own, two, none) [own]: ", "two"},
		{"applications of, as many as you like (none, app, two) [none]: ", "app, tow"},
		{"\"tow\" is none of none, app, two; did you mean \"two\"?", "app two"},
		{"screen size [1024x768]: ", "huge"},
		{"\"huge\"", "1280x720"},
		{"name of the profile [one-two-app]: ", "No Name"},
		{"up to 32 of a-z", "duo"},
		{"duo.toml (yes, no) [yes]: ", "perhaps"},
		{"\"perhaps\" is none of yes, no", "yes"},
	} {
		d.screen.await(t, step[0])
		d.typed(step[1] + "\n")
	}
	saved := filepath.Join(d.Home, ".config/berth/profiles/duo.toml")
	if code := <-d.code; code != 0 || d.out.String() != saved+"\n" {
		t.Fatalf("berth profile new = %d %s\n%s", code, d.out, d.screen)
	}
	text, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "profile-new.toml", string(text))
}

// TestProfileNewAborted: whoever leaves in the middle leaves nothing.
func TestProfileNewAborted(t *testing.T) {
	for name, leave := range map[string]func(*dialogue){
		"end_of_input": func(d *dialogue) { d.typed("\x04") },
		"interrupt":    func(d *dialogue) { d.cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDialogue(t, "--base", "one", "--name", "duo", "--size", "800x600", "--applications", "none", "--save")
			d.screen.await(t, "window manager of")
			d.typed("two\n")
			d.screen.await(t, "panel of")
			leave(d)
			if code := <-d.code; code != 1 || d.out.String() != "" {
				t.Errorf("berth profile new = %d %s\n%s", code, d.out, d.screen)
			}
			d.screen.await(t, "nothing was written")
			if list, err := os.ReadDir(d.Home); err != nil || len(list) != 0 {
				t.Errorf("left behind: %v, %v", list, err)
			}
		})
	}
}
