package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/orchestrator"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestReadBelow(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	for _, d := range []string{"etc", "usr/share", "dir"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(outside, "secret"), "outside")
	write(filepath.Join(root, "secret"), "inside")
	write(filepath.Join(root, "etc/file"), "data")
	write(filepath.Join(root, "empty"), "")
	for link, to := range map[string]string{
		"etc/relative": "file", "absolute": "/etc/file", "out": "../../../secret", "abs-out": filepath.Join(outside, "secret"),
		"loop": "loop", "lib": "usr/share", "dangling": "nowhere",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(root, "usr/share/x"), "through a directory link")
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if f, err := os.Create(filepath.Join(root, "big")); err != nil {
		t.Fatal(err)
	} else if err := errors.Join(f.Truncate(maxReadFile+1), f.Close()); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	for _, tt := range []struct {
		name, want string
		err        error
	}{
		{"/etc/file", "data", nil},
		{"/etc/relative", "data", nil},
		{"/absolute", "data", nil},
		{"/lib/x", "through a directory link", nil},
		{"/empty", "", nil},
		{"/out", "inside", nil},
		{"/../../secret", "inside", nil},
		{"/abs-out", "", orchestrator.ErrNotFound},
		{"/loop", "", orchestrator.ErrNotFound},
		{"/dangling", "", orchestrator.ErrNotFound},
		{"/nope", "", orchestrator.ErrNotFound},
		{"/etc/file/x", "", orchestrator.ErrNotFound},
		{"/dir", "", orchestrator.ErrInvalid},
		{"/fifo", "", orchestrator.ErrInvalid},
		{"/big", "", orchestrator.ErrInvalid},
	} {
		got, err := readBelow(dir, tt.name)
		if string(got) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("readBelow(%q) = %q, %v; want %q, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

func TestVisitMounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	base := t.TempDir()
	lower := "lowerdir="
	for i := range 40 { // of which the absolute paths alone would not fit the page mount(2) takes
		dir := filepath.Join(base, fmt.Sprintf("%090d", i), "fs")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "top"), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			lower += ":"
		}
		lower += dir
	}
	// Others mount things too; those of a view are on a directory of its own.
	views := func() (out []string) {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(data)) {
			if strings.Contains(l, "/berth-view-") {
				out = append(out, l)
			}
		}
		return out
	}
	before := views()
	readMounted := func(mounts []mount.Mount, name string) (data []byte, err error) {
		err = visitMounted(mounts, func(root int) error {
			data, err = readBelow(root, name)
			return err
		})
		return data, err
	}
	for range 3 {
		got, err := readMounted([]mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"index=off", lower}}}, "/top")
		if err != nil || string(got) != "0" {
			t.Fatalf("visitMounted overlay = %q, %v; want the top layer's", got, err)
		}
	}
	got, err := readMounted([]mount.Mount{{Type: "bind", Source: filepath.Join(base, fmt.Sprintf("%090d", 7), "fs"), Options: []string{"ro", "rbind"}}}, "/top")
	if err != nil || string(got) != "7" {
		t.Errorf("visitMounted bind = %q, %v", got, err)
	}
	if diff := cmp.Diff(before, views()); diff != "" {
		t.Errorf("mounts have changed (-before +after):\n%s", diff)
	}
}

func TestFileCache(t *testing.T) {
	c := newFileCache(10 * (entryCost + 1 + 100))
	for i := range 20 {
		c.put(string(rune('a'+i)), make([]byte, 100))
	}
	if _, ok := c.get("a"); ok {
		t.Error("the oldest entry is kept beyond the bound")
	}
	if d, ok := c.get("t"); !ok || len(d) != 100 {
		t.Error("the latest entry is gone")
	}
	c.put("missing", nil)
	if d, ok := c.get("missing"); !ok || d != nil {
		t.Errorf("a missing file is kept as %v, %v", d, ok)
	}
	c.put("big", make([]byte, 10_000))
	if _, ok := c.get("big"); ok {
		t.Error("an entry larger than its share is kept")
	}
	if c.size > c.max {
		t.Errorf("size %d, at most %d", c.size, c.max)
	}
}
