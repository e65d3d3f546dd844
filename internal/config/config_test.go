package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestParse(t *testing.T) {
	def := func(change func(*Config)) *Config {
		c := Default()
		change(c)
		return c
	}
	tests := []struct {
		name, text string
		want       *Config
	}{
		{"empty", "", Default()},
		{"comment", "# nothing\n", Default()},
		{"all", `
			[engine]
			containerd = "/run/containerd/containerd.sock"
			snapshotter = "zfs"
			runtime = "/usr/bin/crun"
			subnet = "10.210.0.0/16"
			build_idle = "30s"
			[gateway]
			listen = "[::]:443"
			vnc_host = "::1"
			vnc_port = 0x1770
			tls_cert = "/a.crt"
			tls_key = "/a.key"
			tls_self_signed = true
			hosts = ["a.example.org", # with a comment
				"b"]
			[images]
			sources = """
deb http://m.invalid/debian bookworm main
"""
			[session]
			user = "anna"
			patience = "2m"`, &Config{
			Engine{"/run/containerd/containerd.sock", "zfs", "/usr/bin/crun", "10.210.0.0/16", 30 * time.Second},
			Gateway{"[::]:443", "::1", 6000, "/a.crt", "/a.key", true, []string{"a.example.org", "b"}},
			Images{"deb http://m.invalid/debian bookworm main\n"}, Session{"anna", 2 * time.Minute},
		}},
		{"dotted", `session.user = "1001"`, def(func(c *Config) { c.Session.User = "1001" })},
		{"inline", `engine = { snapshotter = "btrfs" }`, def(func(c *Config) { c.Engine.Snapshotter = "btrfs" })},
		{"quoted_key", `["engine"]` + "\n" + `"snapshotter" = 'native'`, def(func(c *Config) { c.Engine.Snapshotter = "native" })},
		{"empty_means_default", "[engine]\nsnapshotter = \"\"\n[session]\nuser = \"\"", Default()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse("x", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"unknown_key", "[engine]\nsnapshoter = \"x\"", []string{
			"f:2:1: engine.snapshoter: no such key; [engine] has containerd, snapshotter, runtime, subnet, build_idle"}},
		{"unknown_table", "[engin]\nx = 1\ny = 2\n[session]\nuser = 3", []string{
			"f:1:2: [engin]: no such table; there are engine, gateway, images, session",
			"f:5:8: session.user: a string is wanted, not the number 3"}},
		{"sub_table", "[engine.deep]\nx = 1", []string{"f:1:2: [engine.deep]: no such table; there are engine, gateway, images, session"}},
		{"array_of_tables", "[[engine]]\nx = 1", []string{"f:1:3: [[engine]]: write [engine]; there is only one"}},
		{"not_a_table", "engine = 3\nx = 1", []string{
			"f:1:1: engine: is a table, written [engine]", "f:2:1: x: no such key; there are the tables engine, gateway, images, session"}},
		{"every_error_at_once", `
[engine]
  containerd = "run.sock"
  build_idle = "soon"
  build_idle2 = 1
[gateway]
listen = "6080"
vnc_port = 70000
tls_cert = "/x"
hosts = ["ok", 5]
tls_self_signed = "yes"
[session]
user = ["ä", "b"]
[images]
sources = 1979-05-27
`, []string{
			`f:3:16: engine.containerd: "run.sock" is not an absolute path`,
			`f:4:16: engine.build_idle: "soon" is not a duration above zero; write one such as "30s", "5m" or "1h"`,
			`f:5:3: engine.build_idle2: no such key; [engine] has containerd, snapshotter, runtime, subnet, build_idle`,
			`f:7:10: gateway.listen: "6080" is not HOST:PORT, such as "127.0.0.1:6080" or "[::]:6080"`,
			`f:8:12: gateway.vnc_port: 70000 is not a port; ports are 1 to 65535`,
			`f:9:12: gateway.tls_cert: needs gateway.tls_key beside it`,
			`f:10:1: gateway.hosts: element 2: a string is wanted, not the number 5`,
			`f:11:19: gateway.tls_self_signed: true or false is wanted, not a string`,
			`f:13:1: session.user: a string is wanted, not an array`,
			`f:15:11: images.sources: a string is wanted, not a date or time`,
		}},
		{"column_in_characters", "session = { 'user' = 'ü', user2 = 1 }", []string{
			`f:1:22: session.user: "ü" is not a user name`,
			"f:1:27: session.user2: no such key; [session] has user, patience"}},
		{"snapshotter", "[engine]\nsnapshotter = \"overlay2\"", []string{
			`f:2:15: engine.snapshotter: "overlay2" is unknown; choose one of ["overlayfs" "btrfs" "native"]`}},
		{"negative_duration", "[engine]\nbuild_idle = \"-1s\"", []string{
			`f:2:14: engine.build_idle: "-1s" is not a duration above zero; write one such as "30s", "5m" or "1h"`}},
		{"nul_escape", "[images]\nsources = \"a\\u0000b\"", []string{"f:2:11: images.sources: a NUL character is in it"}},
		{"only_key", "[gateway]\ntls_key = \"/x\"", []string{"f:2:11: gateway.tls_key: needs gateway.tls_cert beside it"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Fatalf("got %v; want %v", err, orchestrator.ErrInvalid)
			}
			want := strings.Join(tt.want, "\n")
			if diff := cmp.Diff(want, err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestSyntaxErrors: the words are go-toml's, the place is ours to keep.
func TestSyntaxErrors(t *testing.T) {
	tests := []struct{ name, text, place string }{
		{"unclosed", "[session]\nuser = \"x", "f:2:"},
		{"duplicate_key", "[session]\nuser = \"x\"\nuser = \"y\"", "f:3:"},
		{"duplicate_table", "[session]\n[engine]\n[session]\n", "f:3:"},
		{"nul", "[session]\nuser = \"\x00\"", "f:2:"},
		{"not_utf8", "[session]\nuser = \"\xff\"", "f:2:"},
		{"no_value", "a\n", "f:1:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			if err == nil || !strings.HasPrefix(err.Error(), tt.place) {
				t.Errorf("got %v; want it at %s", err, tt.place)
			}
		})
	}
	_, err := Parse("f", []byte("[session]\nuser = 1\n[session]\nother = 1\n"))
	if errs := (Errors)(nil); !errors.As(err, &errs) || len(errs) != 3 {
		t.Errorf("a table twice with two other mistakes: %v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	c, err := Load(filepath.Join(dir, "none.toml"))
	if diff := cmp.Diff(Default(), c); err != nil || diff != "" {
		t.Errorf("no file: %v %s", err, diff)
	}
	big := filepath.Join(dir, "big.toml")
	if err := errors.Join(os.WriteFile(big, nil, 0o600), os.Truncate(big, 10<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("10 MB: %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory is accepted")
	}
}

func TestExample(t *testing.T) {
	got := Example()
	file := filepath.Join("..", "..", "assets", "config.toml") // which make installs
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
	c, err := Parse("example", []byte(got))
	if diff := cmp.Diff(Default(), c); err != nil || diff != "" {
		t.Errorf("the example as it is: %v %s", err, diff)
	}
	// With the keys taken out of their comments it has to be right too. Prose has a space after the #.
	if _, err := Parse("example", regexp.MustCompile(`(?m)^#([^ ])`).ReplaceAll([]byte(got), []byte("$1"))); err != nil {
		t.Errorf("the example with all keys: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Example()))
	f.Add([]byte("[engine]\nsnapshotter = 'x'\nx.y = [1, {a = 2}]\n[[gateway]]\n'' = 1"))
	f.Add([]byte("gateway = { listen = \"a:1\", \"hosts\" = [ \"b\" ] }\r\nengine.build_idle = \"1h\""))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("f", text)
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v with error %v", c, err)
		}
		var errs Errors
		if err == nil {
			return
		}
		if !errors.As(err, &errs) || len(errs) == 0 {
			t.Fatalf("%T: %v", err, err)
		}
		lines := strings.Count(string(text), "\n") + 1
		for _, e := range errs {
			if e.Line < 0 || e.Line > lines || e.Line > 0 && e.Column < 1 {
				t.Errorf("outside of the %d lines of the file: %v", lines, e)
			}
		}
	})
}
