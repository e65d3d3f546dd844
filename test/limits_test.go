package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/session/api"
)

// TestLimits asks the kernel what keeps a session within its limits. Some cgroup above each of its processes has them.
func TestLimits(t *testing.T) {
	inst.NothingLeft(t)
	s := inst.Up(t, "openbox", "--set", `home.kind="ephemeral"`, "--set", "limits.memory=768MiB", "--set", "limits.cpus=1.5", "--set", "limits.pids=500")
	if s.State != api.StateRunning {
		t.Errorf("state = %q; want running", s.State)
	}
	shot(t, s.Name, "limits")
	for _, l := range []struct{ controller, v2, v2want, v1, v1want string }{
		{"memory", "memory.max", "805306368", "memory.limit_in_bytes", "805306368"},
		{"cpu", "cpu.max", "150000 100000", "cpu.cfs_quota_us", "150000"},
		{"pids", "pids.max", "500", "pids.max", "500"},
	} {
		for _, c := range s.Components {
			if c.PID == 0 {
				continue
			}
			dir, root, unified := cgroup(t, c.PID, l.controller)
			file, want := l.v1, l.v1want
			if unified {
				file, want = l.v2, l.v2want
			}
			var got []string
			for ; dir != root && dir != "/"; dir = filepath.Dir(dir) {
				b, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil {
					t.Errorf("%s: %v", c.Name, err)
				}
				got = append(got, strings.TrimSpace(string(b)))
			}
			if !slices.Contains(got, want) {
				t.Errorf("%s: %s of its cgroup and those above: %q; want %q among them", c.Name, file, got, want)
			}
		}
	}
}

// cgroup returns the directory of a process's cgroup as far as a controller goes, the hierarchy's root, and whether that is
// of version 2.
func cgroup(t *testing.T, pid int, controller string) (dir, root string, unified bool) {
	t.Helper()
	const fs = "/sys/fs/cgroup"
	if _, err := os.Stat(fs + "/cgroup.controllers"); err == nil {
		unified = true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case unified && f[0] == "0":
			return filepath.Join(fs, f[2]), fs, true
		case !unified && slices.Contains(strings.Split(f[1], ","), controller):
			root := filepath.Join(fs, controller)
			return filepath.Join(root, f[2]), root, false
		}
	}
	t.Fatalf("process %d is in no cgroup of controller %s", pid, controller)
	return
}
