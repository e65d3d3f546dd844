package private

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/paths"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func fhs() paths.Layout {
	return paths.Layout{State: "/var/lib/berth", Run: "/run/berth", Config: "/etc/berth/config.toml", Libexec: "/usr/libexec/berth"}
}

func TestContainerdConfig(t *testing.T) {
	for _, s := range Snapshotters {
		t.Run(s, func(t *testing.T) {
			got, err := ContainerdConfig(fhs(), s)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "containerd-"+s+".toml", got)
		})
	}
	if _, err := ContainerdConfig(fhs(), "zfs"); err == nil || !strings.Contains(err.Error(), `snapshotter "zfs": unknown`) {
		t.Errorf("zfs: got %v", err)
	}
}

func TestBuildkitConfig(t *testing.T) {
	tests := []struct{ name, socket, runtime string }{
		{"buildkitd-private.toml", "/run/berth/containerd/containerd.sock", ""},
		{"buildkitd-existing.toml", "/run/containerd/containerd.sock", ""},
		{"buildkitd-crun.toml", "/run/containerd/containerd.sock", "/usr/bin/crun"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := BuildkitConfig(fhs(), tt.socket, "overlayfs", tt.runtime)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name, got)
		})
	}
}

func TestConfigQuotesPaths(t *testing.T) {
	l := fhs()
	l.State = "/a \"b\"\n[plugins]"
	got, err := ContainerdConfig(l, "native")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(got), "\n[plugins]") != 1 {
		t.Errorf("a path broke out of its string:\n%s", got)
	}
}

func TestShimSockets(t *testing.T) {
	long := "/" + strings.Repeat("a", 36)
	tests := []struct{ root, want string }{
		{"", "/run/berth/s"},
		{"/srv/x", "/srv/x/run/s"},
		{long, "/run/berth-"},
	}
	for _, tt := range tests {
		l, err := paths.New(tt.root)
		if err != nil {
			t.Fatal(err)
		}
		got := l.ShimSockets()
		if !strings.HasPrefix(got, tt.want) || len(got) > paths.MaxSocketDir {
			t.Errorf("ShimSockets of %q: %q; want %q, at most %d bytes", tt.root, got, tt.want, paths.MaxSocketDir)
		}
	}
}

func TestEnviron(t *testing.T) {
	got := environ([]string{"HOME=/root", "PATH=/bin", "NOTIFY_SOCKET=/x", "LISTEN_FDS=1", "HTTP_PROXY=p"}, "/lx")
	if diff := cmp.Diff([]string{"HOME=/root", "HTTP_PROXY=p", "PATH=/lx:/bin"}, got); diff != "" {
		t.Error(diff)
	}
	if got := environ(nil, "/lx"); len(got) != 1 || !strings.HasPrefix(got[0], "PATH=/lx:/usr/") {
		t.Errorf("without PATH: %q", got)
	}
}

func TestNextPause(t *testing.T) {
	p, sum := nextPause(0), 0
	if p != backoffMin {
		t.Errorf("first pause %v; want %v", p, backoffMin)
	}
	for ; p < backoffMax; p = nextPause(p) {
		if sum++; sum > 20 {
			t.Fatal("never reaches the maximum")
		}
	}
	if got := nextPause(p); got != backoffMax {
		t.Errorf("pause after the maximum: %v", got)
	}
}

func TestTrimLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	if err := trimLog(path); err != nil {
		t.Fatalf("a log that is not there: %v", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Repeat("0123456789abcde\n", maxLog/16)); err != nil {
		t.Fatal(err)
	}
	if err := trimLog(path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("after\n"); err != nil { // by the program, which knows nothing of it
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil || string(now) != "after\n" {
		t.Errorf("log holds %d bytes, %v", len(now), err)
	}
	if st, err := os.Stat(path + ".1"); err != nil || st.Size() != maxLog {
		t.Errorf("old log: %v, %v", st, err)
	}
}
