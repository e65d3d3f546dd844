// Package hoststate lists what Berth could leave behind on a host (mounts, cgroups, namespaces, processes, snapshots,
// sockets, files, network interfaces, firewall tables), so that tests and benchmarks can show that nothing is.
package hoststate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"berth/internal/paths"
)

// State holds the names of all things found, by kind.
type State map[string][]string

// Take lists the state of the host as far as it concerns the instance at l. Files are those below its Run and State,
// but for the engine's own databases, blobs and logs, which do not grow with sessions. Things that come and go on
// their own while it reads are passed over.
func Take(l paths.Layout) (State, error) {
	s := State{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("host state: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 4 && (strings.HasPrefix(f[4], l.Run+"/") || strings.HasPrefix(f[4], l.State+"/")) {
			s["mounts"] = append(s["mounts"], f[4])
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/"+l.Instance()+"/") {
			s["cgroups"] = append(s["cgroups"], path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("host state: %w", err)
	}
	if err := s.processes(l); err != nil {
		return nil, err
	}
	for _, dir := range []string{l.Run, l.State} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			rel, _ := filepath.Rel(dir, path)
			if engineOwn(rel) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if d.IsDir() && (rel == "fifo" || strings.HasPrefix(rel, "fifo/")) {
				return nil // each daemon has a directory for the pipes of its execs; only pipes can be left in it
			}
			if path == l.Exports() {
				return nil // made at the first use of an image, as what is in it
			}
			if filepath.Dir(path) == l.Exports() && !strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir // kept with its image; what is half made has a dot
			}
			if d.IsDir() && (path == l.Volumes() || filepath.Dir(path) == l.Volumes()) {
				return nil // a directory for each user, made with the first home; homes lie in it
			}
			if rel == "logins.json" {
				return nil // browsers that logged in stay so, whatever becomes of their sessions
			}
			kind := "files"
			if d.Type()&fs.ModeSocket != 0 {
				kind = "sockets"
			}
			// Snapshots are numbered directories of the snapshotter; their contents are the images'.
			if strings.Contains(rel, "snapshotter.v1.") && strings.Contains(rel, "/snapshots/") {
				s["snapshots"] = append(s["snapshots"], filepath.Base(path))
				return fs.SkipDir
			}
			s[kind] = append(s[kind], path)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("host state: %w", err)
		}
	}
	if err := s.network(l); err != nil {
		return nil, err
	}
	for k := range s {
		slices.Sort(s[k])
		s[k] = slices.Compact(s[k])
	}
	return s, nil
}

// Collect lets the containerd at socket, "" for the instance's own, take removed snapshots and content off the disk and returns when it has. By itself it does so
// after a pause that grows with how long its last collection took, on a busy machine minutes.
func Collect(ctx context.Context, l paths.Layout, socket string) error {
	socket = cmp.Or(socket, l.ContainerdSocket())
	c, err := containerd.New(socket, containerd.WithDefaultNamespace(l.Instance()))
	if err != nil {
		return fmt.Errorf("containerd %q: %w", socket, err)
	}
	defer c.Close()
	// The end of a lease that is waited for runs the collector.
	ctx = namespaces.WithNamespace(ctx, l.Instance())
	lease, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("containerd: lease: %w", err)
	}
	if err := c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		return fmt.Errorf("containerd: lease: %w", err)
	}
	return nil
}

// engineOwn tells whether a path below State or Run belongs to the engine's databases.
func engineOwn(rel string) bool {
	for _, p := range []string{"io.containerd.content.v1.content", "io.containerd.metadata.v1.bolt", "/buildkit", "metadata.db", ".log"} {
		if strings.Contains("/"+rel, p) {
			return true
		}
	}
	return false
}

// processes finds the shims and anchors of the instance, what runs in its cgroups, and the namespaces of those.
func (s State) processes(l paths.Layout) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	own := map[string]string{}
	for _, k := range []string{"net", "ipc", "pid", "mnt", "uts"} {
		own[k], _ = os.Readlink("/proc/self/ns/" + k)
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || !Alive(pid) {
			continue
		}
		cg, err := os.ReadFile(d + "/cgroup")
		if err != nil {
			continue // it has ended
		}
		cmd, _ := os.ReadFile(d + "/cmdline")
		line := strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
		inCgroup := strings.Contains(string(cg), "/"+l.Instance()+"/")
		shim := strings.Contains(line, "containerd-shim-runc-v2") && strings.Contains(line, l.ContainerdSocket())
		if !inCgroup && !shim {
			continue
		}
		s["processes"] = append(s["processes"], filepath.Base(d)+" "+line)
		for k, mine := range own {
			if ns, err := os.Readlink(d + "/ns/" + k); err == nil && ns != mine {
				s["namespaces"] = append(s["namespaces"], ns)
			}
		}
	}
	return nil
}

// network finds the host's ends of the pods' interfaces, which have an address of the instance's subnet (nothing in their
// names tells whose they are), and the tables and rules of the firewall that bear the instance's name.
func (s State) network(l paths.Layout) error {
	text, err := os.ReadFile(l.Subnet())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no pod has had a network yet
	}
	if err != nil {
		return fmt.Errorf("host state: %w", err)
	}
	subnet, err := netip.ParsePrefix(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("host state: subnet: %w", err)
	}
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("host state: %w", err)
	}
	for _, i := range links {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && subnet.Contains(p.Addr()) {
				s["interfaces"] = append(s["interfaces"], i.Name)
			}
		}
	}
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		out = nil // without nft there are no tables
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasSuffix(strings.TrimSpace(line), " "+l.Instance()) {
			s["firewall tables"] = append(s["firewall tables"], strings.TrimSpace(line))
		}
	}
	for _, table := range []string{"nat", "filter"} {
		out, err := exec.Command("iptables", "-w", "-t", table, "-S").Output()
		if err != nil {
			continue // as without iptables
		}
		for line := range strings.Lines(string(out)) {
			if slices.Contains(strings.Fields(strings.ReplaceAll(line, `"`, "")), l.Instance()) {
				s["firewall rules"] = append(s["firewall rules"], table+" "+strings.TrimSpace(line))
			}
		}
	}
	return nil
}

// Alive tells whether process pid runs. One that has ended and waits for its parent, here often a slow init, does not.
func Alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The state follows the command in parentheses, which may hold anything (proc_pid_stat(5)).
	i := strings.LastIndexByte(string(b), ')')
	return i >= 0 && i+2 < len(b) && b[i+2] != 'Z' && b[i+2] != 'X'
}

// Diff returns what b has that a has not, as "kind: name" lines, sorted.
func Diff(a, b State) []string {
	var out []string
	for kind, names := range b {
		for _, n := range names {
			if !slices.Contains(a[kind], n) {
				out = append(out, kind+": "+n)
			}
		}
	}
	slices.Sort(out)
	return out
}
