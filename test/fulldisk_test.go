package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/internal/paths"
	"berth/test/berthtest"
)

// TestFullDisk starts sessions on a disk with less and less room missing: each start either fails, says that the disk is
// full and leaves nothing, or succeeds; with room enough it does.
func TestFullDisk(t *testing.T) {
	root, err := os.MkdirTemp("/var/tmp", "berth-full-") // short: sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	layout, err := paths.New(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(layout.State, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("berth-full", layout.State, "tmpfs", 0, "size=2g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(layout.State, 0); err != nil {
			t.Error(err)
		}
	})
	full := &berthtest.Instance{Bin: inst.Bin, Layout: layout}
	t.Cleanup(func() {
		if err := full.StopDaemon(); err != nil {
			t.Error(err)
		}
	})
	for _, image := range []string{"xvnc", "bus"} {
		archive := filepath.Join(t.TempDir(), image+".tar")
		inst.Run(t, "image", "export", image, archive)
		full.Run(t, "image", "import", archive)
	}
	profile := writeProfile(t, `
name    = "full"
session = "shell"
[display]
server = "xvnc"
size   = "640x480"
[audio]
server = "none"
[network]
mode = "none"
[home]
kind = "volume"
[components.shell]
image   = "bus"
command = ["sleep", "infinity"]
`)
	// The first session makes the directories that all later ones use.
	full.Run(t, "up", profile, "--name", "warm")
	full.Run(t, "rm", "warm", "--force", "--home")

	resize := func(bytes uint64) {
		t.Helper()
		if err := unix.Mount("", layout.State, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
			t.Fatal(err)
		}
	}
	used := func() uint64 {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(layout.State, &st); err != nil {
			t.Fatal(err)
		}
		return (st.Blocks - st.Bfree) * uint64(st.Bsize)
	}
	failed := 0
	for _, room := range []uint64{0, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 1 << 30} {
		t.Run(fmt.Sprintf("%d_KiB", room>>10), func(t *testing.T) {
			full.NothingLeft(t)
			resize(used() + room)
			t.Cleanup(func() { resize(2 << 30) })
			r, err := full.Do(context.Background(), "up", profile, "--name", "full")
			if err != nil {
				t.Fatal(err)
			}
			if r.Code == 0 {
				full.Run(t, "rm", "full", "--force", "--home")
				return
			}
			failed++
			if r.Code != 1 || !strings.Contains(r.Stderr, "full") || !strings.Contains(r.Stderr, "berth image prune") {
				t.Errorf("up = %d\n%s\nwant a full disk and what to do", r.Code, r.Stderr)
			}
			if got := full.List(t); len(got) != 0 {
				t.Errorf("ls shows %+v after a failed start", got)
			}
			if left, _ := filepath.Glob(filepath.Join(layout.Volumes(), "*", "*")); len(left) > 0 {
				t.Errorf("home volumes after a failed start: %v", left)
			}
			if room == 1<<30 {
				t.Errorf("up with room enough: %s", r.Stderr)
			}
		})
	}
	if failed == 0 {
		t.Error("no start met the full disk")
	}
}
