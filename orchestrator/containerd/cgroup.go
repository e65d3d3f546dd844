package containerd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/orchestrator"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cgroupHost is the host's cgroup hierarchies: version 1 (one per controller, cgroups(7)), version 2 (one for all), or
// hybrid (version 1 with an empty version 2 hierarchy beside it). Paths given to its methods are relative to the root of
// each hierarchy, "/berth/pod".
type cgroupHost struct {
	unified bool     // version 2
	hybrid  bool     // version 1 and an unused version 2
	roots   []string // mount points of all hierarchies
	by      map[string]string

	parent sync.Mutex // held while a pod's parent is made or removed
}

// findCgroups reads the mount table.
func findCgroups() (*cgroupHost, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2", false
	})
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	h := &cgroupHost{by: make(map[string]string)}
	var v1, v2 bool
	for _, m := range mounts {
		if slices.Contains(h.roots, m.Mountpoint) || !strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup") {
			continue
		}
		h.roots = append(h.roots, m.Mountpoint)
		if m.FSType == "cgroup2" {
			v2 = true
			h.by[""] = m.Mountpoint
			continue
		}
		for _, o := range strings.Split(m.VFSOptions, ",") {
			if o != "rw" && o != "ro" {
				h.by[o] = m.Mountpoint
				v1 = v1 || !strings.HasPrefix(o, "name=")
			}
		}
	}
	if !v1 && !v2 {
		return nil, fmt.Errorf("cgroups: %w: no hierarchy is mounted below /sys/fs/cgroup; "+
			"mount -t cgroup2 none /sys/fs/cgroup, or install and run cgroupfs-mount", orchestrator.ErrUnavailable)
	}
	h.unified, h.hybrid = v2 && !v1, v1 && v2
	return h, nil
}

func (h *cgroupHost) mode() string {
	switch {
	case h.unified:
		return "v2"
	case h.hybrid:
		return "hybrid"
	}
	return "v1"
}

// create makes the cgroup p, in every hierarchy, with limits l. The runtime would make it itself, but then its parent could
// be removed with the last pod of before meanwhile. Where it cannot be made the runtime will tell, if it needs to.
func (h *cgroupHost) create(p string, l orchestrator.Limits) error {
	h.parent.Lock()
	for _, root := range h.roots {
		os.MkdirAll(filepath.Join(root, p), 0o755)
	}
	h.parent.Unlock()
	for _, f := range h.limitFiles(l) {
		if err := h.enable(f.controller, p); err != nil {
			return fmt.Errorf("cgroup %q: %w", p, err)
		}
		name := filepath.Join(h.root(f.controller), p, f.name)
		if err := os.WriteFile(name, []byte(f.value), 0); err != nil {
			return fmt.Errorf("cgroup %q: limit: %w", p, err)
		}
	}
	return nil
}

type limitFile struct{ controller, name, value string }

// limitFiles says what to write for limits l, in order.
func (h *cgroupHost) limitFiles(l orchestrator.Limits) []limitFile {
	var f []limitFile
	if quota := int64(l.CPUs * cpuPeriod); quota > 0 && h.unified {
		f = append(f, limitFile{"cpu", "cpu.max", fmt.Sprintf("%d %d", quota, cpuPeriod)})
	} else if quota > 0 {
		f = append(f, limitFile{"cpu", "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)},
			limitFile{"cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)})
	}
	if l.Memory > 0 {
		name := "memory.limit_in_bytes"
		if h.unified {
			name = "memory.max"
		}
		f = append(f, limitFile{"memory", name, strconv.FormatInt(l.Memory, 10)})
	}
	if l.PIDs > 0 {
		f = append(f, limitFile{"pids", "pids.max", strconv.FormatInt(l.PIDs, 10)})
	}
	return f
}

// root is where a controller's hierarchy is mounted; "" if the host lacks the controller.
func (h *cgroupHost) root(controller string) string {
	if h.unified {
		return h.by[""]
	}
	return h.by[controller]
}

// enable makes cgroup p in a controller's hierarchy. In version 2 a controller must be handed down from the root.
func (h *cgroupHost) enable(controller, p string) error {
	root := h.root(controller)
	if root == "" || h.unified && !offers(root, controller) {
		return fmt.Errorf("%w: the kernel has no controller %q, which the limit needs; enable it (on Debian: cgroup_enable=%s on the kernel's command line)",
			orchestrator.ErrUnavailable, controller, controller)
	}
	dir := root
	for _, part := range strings.Split(strings.Trim(p, "/"), "/") {
		if h.unified {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
				return fmt.Errorf("%w: controller %q: %w", orchestrator.ErrUnavailable, controller, err)
			}
		}
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// offers tells whether the cgroup of version 2 in dir has a controller to hand down.
func offers(dir, controller string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(data)), controller)
}

// cgroupPatience is how long a killed process may take to leave its cgroup on a loaded host.
const cgroupPatience = 30 * time.Second

// remove removes the cgroup p with those below, and its parent if that is empty then. The kernel refuses while a process
// is dying in it, so it is asked again for a while.
func (h *cgroupHost) remove(p string) error {
	deadline := time.Now().Add(cgroupPatience)
	for _, root := range h.roots {
		dir := filepath.Join(root, p)
		for {
			err := removeTree(dir)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("cgroup %q: %w", dir, err)
			}
			time.Sleep(2 * time.Millisecond)
		}
		if parent := filepath.Dir(dir); parent != root {
			h.parent.Lock()
			unix.Rmdir(parent) // refused while it has other children
			h.parent.Unlock()
		}
	}
	return nil
}

// removeTree removes a directory of a cgroup file system; the files in it cannot and need not be removed.
func removeTree(dir string) error {
	switch err := unix.Rmdir(dir); err {
	case nil, unix.ENOENT:
		return nil
	case unix.EBUSY, unix.ENOTEMPTY:
	default:
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}

// contains tells whether process pid is in cgroup p or below it.
func (h *cgroupHost) contains(p string, pid int) (bool, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if os.IsNotExist(err) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(data)) {
		// hierarchy-ID:controller-list:cgroup-path
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 && strings.Contains(f[2]+"/", p+"/") {
			return true, nil
		}
	}
	return false, nil
}

// kill kills every process in cgroup p, and returns in version 1 and before Linux 5.14 when they are gone. Those in cgroups below
// are killed only by newer kernels; containers are given no cgroup file system to make any in.
func (h *cgroupHost) kill(p string) error {
	if h.unified {
		err := os.WriteFile(filepath.Join(h.by[""], p, "cgroup.kill"), []byte("1"), 0) // since Linux 5.14
		if err == nil || os.IsNotExist(err) && !exists(filepath.Join(h.by[""], p)) {
			return nil
		}
	}
	// A process may fork while the list is read, so it is read until nothing is left.
	dir := filepath.Join(h.anyRoot("pids", "memory", "cpu"), p)
	deadline := time.Now().Add(cgroupPatience)
	for {
		pids, err := procs(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %q: processes %v outlive SIGKILL", p, pids)
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("process %d: %w", pid, err)
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// anyRoot returns the first of the controllers' hierarchies that exists.
func (h *cgroupHost) anyRoot(controllers ...string) string {
	if h.unified {
		return h.by[""]
	}
	for _, c := range controllers {
		if r, ok := h.by[c]; ok {
			return r
		}
	}
	return h.roots[0]
}

func procs(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if os.IsNotExist(err) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range bytes.Fields(data) {
		pid, err := strconv.Atoi(string(f))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// stats reads the usage of cgroup p. A controller that the host lacks counts as zero.
func (h *cgroupHost) stats(p string) (orchestrator.Stats, error) {
	var s orchestrator.Stats
	file := func(controller, name string) string {
		if h.unified {
			controller = ""
		}
		root, ok := h.by[controller]
		if !ok {
			return ""
		}
		return filepath.Join(root, p, name)
	}
	var err error
	num := func(path string) int64 {
		n, e := readNumber(path)
		err = errors.Join(err, e)
		return n
	}
	field := func(path, key string) int64 {
		n, e := readField(path, key)
		err = errors.Join(err, e)
		return n
	}
	if h.unified {
		// https://docs.kernel.org/admin-guide/cgroup-v2.html
		s.CPU = time.Duration(field(file("", "cpu.stat"), "usage_usec")) * time.Microsecond
		s.Memory = max(0, num(file("", "memory.current"))-field(file("", "memory.stat"), "inactive_file"))
	} else {
		// https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
		s.CPU = time.Duration(num(file("cpuacct", "cpuacct.usage")))
		s.Memory = max(0, num(file("memory", "memory.usage_in_bytes"))-field(file("memory", "memory.stat"), "total_inactive_file"))
	}
	s.PIDs = num(file("pids", "pids.current"))
	return s, err
}

func readNumber(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, ignoreAbsent(path, err)
	}
	return strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
}

// readField returns the number behind key in a file of "key number" lines.
func readField(path, key string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, ignoreAbsent(path, err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if k, v, ok := strings.Cut(sc.Text(), " "); ok && k == key {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, nil
}

// ignoreAbsent forgets the absence of a controller, which path "" stands for, or of one file; not that of the cgroup.
func ignoreAbsent(path string, err error) error {
	if path == "" || os.IsNotExist(err) && exists(filepath.Dir(path)) {
		return nil
	}
	return err
}
