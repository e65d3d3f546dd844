package session

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		name    string
		restart string
		ready   string
		facts   exitFacts
		want    action
		pause   time.Duration
	}{
		{"session_exits_cleanly", "on-failure", "", exitFacts{isSession: true, wasReady: true, attempts: 1}, actLogout, 0},
		{"session_is_asked_to_end", "on-failure", "", exitFacts{isSession: true, wasReady: true, code: 143, attempts: 1}, actLogout, 0},
		{"session_is_killed", "on-failure", "", exitFacts{isSession: true, wasReady: true, code: 137, attempts: 1}, actRestart, backoffFirst},
		{"session_crashes", "on-failure", "", exitFacts{isSession: true, wasReady: true, code: 1, attempts: 1}, actRestart, backoffFirst},
		{"session_ends_before_ready", "always", "", exitFacts{isSession: true, attempts: 1}, actRestart, backoffFirst},
		{"clean_exit_on_failure", "on-failure", "", exitFacts{wasReady: true, attempts: 1}, actDone, 0},
		{"clean_exit_always", "always", "", exitFacts{wasReady: true, attempts: 1}, actRestart, backoffFirst},
		{"crash_never", "never", "", exitFacts{code: 1, wasReady: true, attempts: 1}, actFail, 0},
		{"clean_never", "never", "", exitFacts{wasReady: true, attempts: 1}, actDone, 0},
		{"oneshot_done", "always", "exit", exitFacts{wasReady: true, attempts: 1}, actDone, 0},
		{"third_crash_while_starting", "always", "", exitFacts{code: 1, starting: true, attempts: 3}, actFail, 0},
		{"second_crash_while_starting", "always", "", exitFacts{code: 1, starting: true, attempts: 2}, actRestart, 2 * backoffFirst},
		{"crash_loop_is_never_given_up_later", "always", "", exitFacts{code: 1, attempts: 40}, actRestart, backoffMost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := profiles.Component{Restart: tc.restart}
			if tc.ready != "" {
				c.Ready = []profiles.Probe{{Kind: tc.ready}}
			}
			got, pause := decide(c, tc.facts)
			if got != tc.want || pause != tc.pause {
				t.Errorf("decide(%+v) = %v, %v; want %v, %v", tc.facts, got, pause, tc.want, tc.pause)
			}
		})
	}
}

func TestBackoffGrowsToItsMost(t *testing.T) {
	prev := time.Duration(0)
	for n := 1; n < 20; n++ {
		d := backoff(n)
		if d < prev || d > backoffMost {
			t.Fatalf("backoff(%d) = %v after %v", n, d, prev)
		}
		prev = d
	}
	if prev != backoffMost {
		t.Errorf("backoff(19) = %v; want %v", prev, backoffMost)
	}
}

func TestAccountsReplaceTheImagesOwn(t *testing.T) {
	base := "root:x:0:0:root:/root:/bin/bash\nuser:x:33:33::/:/bin/sh\nbuilder:x:1000:1000::/home/builder:/bin/sh\nbroken\n"
	id := Identity{UID: 1000, GID: 1000, Name: "user", Home: "/home/user"}
	want := "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/bash\n"
	if d := cmp.Diff(want, string(passwdWith([]byte(base), id))); d != "" {
		t.Errorf("passwd (-want +got):\n%s", d)
	}
	for base, want := range map[string]string{
		"": "/bin/bash", "root:x:0:0::/root:/bin/ash\n": "/bin/ash", "root:x:0:0::/root:/usr/sbin/nologin\n": "/bin/bash",
		"root:x:0:0::/root:\n": "/bin/bash", "root:x:0:0:/root:/bin/sh": "/bin/bash", "daemon:x:1:1::/:/bin/sh\nroot:x:0:0::/root:/bin/zsh": "/bin/zsh",
	} {
		if got := shellOf(passwdWith([]byte(base), id), id.UID); got != want {
			t.Errorf("the shell beside %q is %q; want %q", base, got, want)
		}
	}
	if d := cmp.Diff("root:x:0:\nuser:x:1000:\n", string(groupWith([]byte("root:x:0:\nold:x:1000:a,b\n"), id))); d != "" {
		t.Errorf("group (-want +got):\n%s", d)
	}
}

func TestUsableResolvConf(t *testing.T) {
	for text, want := range map[string]bool{
		"nameserver 127.0.0.53\n":                      false,
		"nameserver ::1\nsearch x\n":                   false,
		"nameserver 127.0.0.1\nnameserver 192.0.2.1\n": true,
		"nameserver fe80::1%eth0\n":                    true,
		"# nameserver 192.0.2.1\n":                     false,
		"":                                             false,
	} {
		if got := usableResolvConf(text); got != want {
			t.Errorf("usableResolvConf(%q) = %v; want %v", text, got, want)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]int{"": 0, "SIGTERM": 15, "hup": 1, "9": 9, "SIGRTMIN+3": 37} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("parseSignal(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	if _, err := parseSignal("SIGNONE"); err == nil {
		t.Error("parseSignal(SIGNONE) succeeded")
	}
}

func TestWhatTheEyeWaitsForIsCreatedFirst(t *testing.T) {
	comps := []profiles.Component{{Name: "display"}, {Name: "vnc", After: []string{"display"}}, {Name: "audio"}, {Name: "mixer", After: []string{"audio"}},
		{Name: "bus"}, {Name: "settings", After: []string{"bus"}},
		{Name: "wm", After: []string{"display", "settings"}, Provides: []string{"window-manager"}},
		{Name: "panel", After: []string{"display", "settings"}, Provides: []string{"panel"}}}
	want := []string{"bus", "display", "settings", "wm", "panel", "audio", "vnc", "mixer"}
	if d := cmp.Diff(want, createOrder(comps)); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
}

func TestAllowKeepsUsersFromTheHost(t *testing.T) {
	home := t.TempDir()
	user := api.Caller{UID: 4711, Name: "u"}
	for _, tc := range []struct {
		name string
		c    api.Caller
		plan profiles.Plan
		ok   bool
	}{
		{"plain", user, profiles.Plan{}, true},
		{"caps", user, profiles.Plan{Components: []profiles.Component{{Name: "a", Caps: []string{"CAP_SYS_ADMIN"}}}}, false},
		{"devices", user, profiles.Plan{Components: []profiles.Component{{Name: "a", Devices: []string{"/dev/sda"}}}}, false},
		{"host_network", user, profiles.Plan{Network: "host"}, false},
		{"home_of_another", user, profiles.Plan{Home: profiles.Home{Kind: "bind", Path: home}}, false},
		{"root_may", api.Caller{}, profiles.Plan{Network: "host", Components: []profiles.Component{{Caps: []string{"CAP_SYS_ADMIN"}}}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := allow(tc.c, Identity{UID: 4711}, &tc.plan)
			if (err == nil) != tc.ok {
				t.Errorf("allow = %v; want ok %v", err, tc.ok)
			}
		})
	}
}

// TestContainerSpec shows all that a container of a session gets.
func TestContainerSpec(t *testing.T) {
	in := specInput{session: "duo", id: Identity{UID: 1000, GID: 1000, Name: "user", Home: "/home/user"},
		wires: wires{"/run/berth/sessions/duo"}, home: "/var/lib/berth/volumes/1000/duo", image: "localhost/berth/xfce:latest",
		passwd: "/P", group: "/G", tools: "/usr/local/libexec/berth/tools", files: []orchestrator.Mount{{Source: "/F", Target: "/etc/x", ReadOnly: true}},
		plan: &profiles.Plan{Display: profiles.Display{Width: 1280, Height: 800}, Audio: profiles.Audio{Server: "pipewire"}, SystemBus: profiles.SystemBus{Kind: "stub"}, Env: []string{"XDG_CURRENT_DESKTOP=XFCE"},
			Locale: profiles.Locale{Lang: "de_DE.UTF-8", Timezone: "Europe/Berlin"}}}
	for _, c := range []profiles.Component{
		{Name: "display", Command: []string{"Xvfb", ":0"}, Provides: []string{"display"}, Needs: []string{"x11"}},
		{Name: "panel", Command: []string{"xfce4-panel", "--dir=${RUNTIME_DIR}/${SESSION}"}, Provides: []string{"panel"},
			Needs: []string{"x11", "bus", "audio", "home"}, Env: map[string]string{"A": "${HOME}/a", "B": "${B}", "SIZE": "${DISPLAY_WIDTH}x${DISPLAY_HEIGHT}@${DISPLAY_SCALE}"}, StopSig: "HUP"},
	} {
		t.Run(c.Name, func(t *testing.T) {
			spec, err := containerSpec(c, in)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			fmt.Fprintf(&b, "command %q\ncwd %s\nuid %d gid %d stop %d\n", spec.Command, spec.Cwd, spec.UID, spec.GID, spec.StopSignal)
			for _, m := range spec.Mounts {
				fmt.Fprintf(&b, "mount %s -> %s ro=%v\n", m.Source, m.Target, m.ReadOnly)
			}
			b.WriteString(strings.Join(spec.Env, "\n") + "\n")
			golden(t, "spec-"+c.Name+".txt", b.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
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
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got; -update rewrites it):\n%s", path, d)
	}
}

// Lines of any length must not pass through the daemon's memory whole.
func TestMergeLines(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, tc := range []struct {
		name string
		logs []string
		want string
	}{
		{"one_after_the_other", []string{"a\n\nb\n", "c"}, "bus   | a\nbus   | \nbus   | b\npanel | c\n"},
		{"longest_line", []string{long[1:] + "\nb\n"}, "bus   | " + long[1:] + "\nbus   | b\n"},
		{"break_behind_the_piece", []string{long + "\n\nb\n"}, "bus   | " + long + "\nbus   | \nbus   | b\n"},
		{"continued", []string{long + long + "tail\nb"}, "bus   | " + long + "\nbus   | " + long + "\nbus   | tail\nbus   | b\n"},
		{"no_break_at_the_end", []string{long}, "bus   | " + long + "\n"},
		{"empty", []string{""}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var logs []io.ReadCloser
			for _, l := range tc.logs {
				logs = append(logs, io.NopCloser(strings.NewReader(l)))
			}
			r := mergeLines(func() {}, logs, []string{"bus", "panel"}, len("panel"), false)
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, string(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// A component without a probe that has died during the start counts as there once it has run for a while.
func TestSettled(t *testing.T) {
	probed := []profiles.Probe{{Kind: "wm"}}
	for _, tc := range []struct {
		name string
		c    component
		want bool
	}{
		{"first_try", component{state: compReady, since: time.Now()}, true},
		{"came_back", component{state: compReady, restarts: 1, since: time.Now()}, false},
		{"came_back_and_stayed", component{state: compReady, restarts: 1, since: time.Now().Add(-provenAfter)}, true},
		{"came_back_with_a_probe", component{Component: profiles.Component{Ready: probed}, state: compReady, restarts: 1, since: time.Now()}, true},
		{"back_off", component{state: compBackoff}, false},
		{"optional_back_off", component{Component: profiles.Component{Optional: true}, state: compBackoff}, true},
		{"on_demand", component{Component: profiles.Component{OnDemand: true}, state: compIdle}, true},
	} {
		if got := new(session).settled(&tc.c); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
