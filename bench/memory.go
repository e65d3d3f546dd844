package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/internal/hoststate"
	"berth/session/api"
)

// memory measures what a session costs beyond its own programs: its shim, its anchor, and by how much the daemon and
// containerd grow with each session. Figures are proportional set sizes, which share out pages among their users.
func memory(ctx context.Context, b *bench) error {
	const sessions = 4
	pid, err := b.inst.DaemonPID()
	if err != nil {
		if _, err := b.do(ctx, "up", "openbox", "--name", "warm", "--set", `home.kind="ephemeral"`); err != nil {
			return err
		}
		if _, err := b.do(ctx, "stop", "warm"); err != nil {
			return err
		}
		if pid, err = b.inst.DaemonPID(); err != nil {
			return err
		}
	}
	daemon := []int{pid}
	for p, cmd := range processes() {
		if strings.HasSuffix(strings.Fields(cmd + " x")[0], "/containerd") && strings.Contains(cmd, b.inst.Layout.Root) {
			daemon = append(daemon, p)
		}
	}
	var names []string
	defer func() {
		for _, n := range names {
			b.do(context.WithoutCancel(ctx), "stop", n)
		}
	}()
	var base, extra, programs int64
	for i := range sessions + 1 {
		out, err := b.do(ctx, "up", "xfce", "--json", "--name", fmt.Sprintf("mem-%d", i), "--set", `home.kind="ephemeral"`)
		if err != nil {
			return err
		}
		var s api.Session
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		names = append(names, s.Name)
		if i == 0 { // what the first session makes the daemon load stays for all
			base = pssOf(daemon...)
			continue
		}
		for p, cmd := range processes() {
			switch {
			case strings.Contains(cmd, "containerd-shim-runc-v2") && strings.Contains(cmd, s.ID),
				strings.Contains(cmd, "berth-anchor") && inCgroup(p, s.ID),
				strings.Contains(cmd, "berth-system") && inCgroup(p, s.ID): // the system bus and its services
				extra += pssOf(p)
			case inCgroup(p, s.ID):
				programs += pssOf(p)
			}
		}
	}
	own := float64(extra) / sessions / (1 << 20)
	grown := float64(pssOf(daemon...)-base) / sessions / (1 << 20)
	fmt.Printf("memory of a session of xfce, mean of %d\n", sessions)
	fmt.Printf("  its programs          %5.1f MiB\n", float64(programs)/sessions/(1<<20))
	fmt.Printf("  shim, anchor, stubs   %5.1f MiB\n", own)
	fmt.Printf("  daemon and containerd %5.1f MiB more per session\n", grown)
	fmt.Printf("  beyond its programs   %5.1f MiB   (to hold: 20)\n", own+max(grown, 0))
	return nil
}

// processes lists all command lines by process ID.
func processes() map[int]string {
	out := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		var pid int
		fmt.Sscan(filepath.Base(d), &pid)
		if b, err := os.ReadFile(d + "/cmdline"); err == nil && len(b) > 0 {
			out[pid] = strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

func inCgroup(pid int, id string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(b), "/"+id+"/")
}

// pssOf adds up the proportional set sizes of processes, in bytes (proc_pid_smaps(5)).
func pssOf(pids ...int) (total int64) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(b)) {
			var kb int64
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kb); err == nil {
				total += kb << 10
			}
		}
	}
	return total
}

// tiny is the smallest session there is, so that its start and listing cost little but Berth's own part.
const tiny = `
name    = "tiny"
extends = "openbox"

[display]
server = "xvnc"
size   = "640x480"

[audio]
server = "none"

[network]
mode = "none"

[home]
kind = "ephemeral"

[components.panel]
disable = true

[components.wallpaper]
disable = true
`

// list measures `berth ls` with 50 sessions.
func list(ctx context.Context, b *bench) error {
	const sessions = 50
	file, clean, err := tinyProfile()
	if err != nil {
		return err
	}
	defer clean()
	var names []string
	defer func() {
		for _, n := range names {
			b.do(context.WithoutCancel(ctx), "stop", n)
		}
	}()
	for i := range sessions {
		name := fmt.Sprintf("ls-%d", i)
		if _, err := b.do(ctx, "up", file, "--name", name); err != nil {
			return err
		}
		names = append(names, name)
	}
	var took, none []time.Duration
	for range 4 * b.runs {
		start := time.Now()
		if _, err := b.do(ctx, "ls"); err != nil {
			return err
		}
		took = append(took, time.Since(start))
		start = time.Now()
		if _, err := b.do(ctx, "version"); err != nil {
			return err
		}
		none = append(none, time.Since(start))
	}
	fmt.Printf("berth ls with %d sessions, median of %d runs\n", sessions, len(took))
	fmt.Printf("  berth version         %5.1f ms   (a program that does nothing)\n", float64(median(none).Microseconds())/1000)
	fmt.Printf("  berth ls              %5.1f ms   (to hold: 30)\n", float64(median(took).Microseconds())/1000)
	return nil
}

// cycles starts and stops 200 sessions and compares the host before and after.
func cycles(ctx context.Context, b *bench) error {
	const n = 200
	file, clean, err := tinyProfile()
	if err != nil {
		return err
	}
	defer clean()
	cycle := func() error {
		if _, err := b.do(ctx, "up", file, "--name", "cycle"); err != nil {
			return err
		}
		_, err := b.do(ctx, "stop", "cycle")
		return err
	}
	if err := cycle(); err != nil {
		return err
	}
	before, err := hoststate.Take(b.inst.Layout)
	if err != nil {
		return err
	}
	pid, err := b.inst.DaemonPID()
	if err != nil {
		return err
	}
	fds, rss := openFiles(pid), pssOf(pid)
	start := time.Now()
	for range n {
		if err := cycle(); err != nil {
			return err
		}
	}
	each := time.Since(start) / n
	if err := hoststate.Collect(ctx, b.inst.Layout, ""); err != nil {
		return err
	}
	after, err := hoststate.Take(b.inst.Layout)
	if err != nil {
		return err
	}
	left := hoststate.Diff(before, after)
	fmt.Printf("%d cycles of up and stop\n", n)
	fmt.Printf("  each                  %5d ms\n", each.Milliseconds())
	fmt.Printf("  left on the host      %5d      (to hold: 0)\n", len(left))
	for _, l := range left {
		fmt.Printf("    %s\n", l)
	}
	fmt.Printf("  daemon's open files   %5d before, %d after; memory %.1f MiB before, %.1f after\n", fds, openFiles(pid),
		float64(rss)/(1<<20), float64(pssOf(pid))/(1<<20))
	if len(left) > 0 {
		return fmt.Errorf("%d things are left on the host", len(left))
	}
	return nil
}

func openFiles(pid int) int {
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return -1
	}
	return len(d)
}

func tinyProfile() (file string, clean func(), err error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return "", nil, err
	}
	file = filepath.Join(dir, "tiny.toml")
	return file, func() { os.RemoveAll(dir) }, os.WriteFile(file, []byte(tiny), 0o644)
}
