package hostcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"

	"berth/internal/firewall"
	"berth/internal/paths"
	"berth/orchestrator"
)

const (
	rootMount = "20 1 254:0 / / rw,relatime - ext4 /dev/root rw\n"
	v1Mounts  = rootMount + `30 20 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:1 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
34 30 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
35 30 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
36 30 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
`
	hybridMount = "37 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
	procCgroups = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t2\t1\t0\ndevices\t3\t1\t1\nfreezer\t4\t1\t1\npids\t5\t1\t1\n"
)

// good is a host where everything works, Debian 12 as it is installed.
func good() (Host, map[string]string) {
	files := map[string]string{
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma\n",
		"/proc/cgroups":                     procCgroups,
		"/proc/self/mountinfo":              rootMount,
		"/proc/self/status":                 "Name:\tberth\nSeccomp:\t0\n",
		"/proc/sys/user/max_net_namespaces": "63000\n",
	}
	for _, ns := range []string{"mnt", "net", "ipc", "pid", "uts"} {
		files["/proc/self/ns/"+ns] = ""
	}
	return Host{
		ReadFile: func(path string) ([]byte, error) {
			if s, ok := files[path]; ok {
				return []byte(s), nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		},
		LookPath:   func(name string) (string, error) { return "/usr/bin/" + filepath.Base(name), nil },
		FileSystem: func(string) (FileSystem, error) { return FileSystem{"ext4", 50 << 30, 1e6, true}, nil },
		TryOverlay: func(string) error { return nil },
		TryVeth:    func() error { return nil },
		TryNAT:     func(string) error { return nil },
		Forwarding: func() firewall.Drops { return firewall.Drops{} },
		Cgroup2:    func(path string) bool { return path == "/sys/fs/cgroup" },
	}, files
}

func lacks(names ...string) func(string) (string, error) {
	return func(name string) (string, error) {
		if slices.Contains(names, filepath.Base(name)) {
			return "", os.ErrNotExist
		}
		return name, nil
	}
}

func TestCheck(t *testing.T) {
	layout := paths.Layout{State: "/var/lib/berth", Config: "/etc/berth/config.toml", Libexec: "/lx"}
	v1 := func(h *Host, files map[string]string, mounts string) {
		h.Cgroup2 = func(string) bool { return false }
		files["/proc/self/mountinfo"] = mounts
	}
	tests := []struct {
		name   string
		opt    Options
		change func(h *Host, files map[string]string)
		want   []string // what is not ok, as "status check: detail -> hint"
	}{
		{name: "good"},
		{name: "not_root", change: func(h *Host, _ map[string]string) { h.EUID = 1000 }, want: []string{
			"error root: runs as uid 1000; containers, mounts and network namespaces need root -> run it as root, with sudo"}},
		{name: "programs", change: func(h *Host, _ map[string]string) { h.LookPath = lacks("runc", "ptp") }, want: []string{
			"error programs: /lx lacks runc, ptp -> build them with `make`, or set BERTH_LIBEXEC to where they are"}},
		{name: "existing_engine", opt: Options{Existing: true, Snapshotter: "stargz"},
			change: func(h *Host, _ map[string]string) { h.LookPath = lacks("containerd", "containerd-shim-runc-v2") }},
		{name: "existing_engine_programs", opt: Options{Existing: true},
			change: func(h *Host, _ map[string]string) { h.LookPath = lacks("runc", "berth-anchor", "containerd") }, want: []string{
				"error programs: /lx lacks runc, berth-anchor -> build them with `make`, or set BERTH_LIBEXEC to where they are"}},
		{name: "no_overlayfs", change: func(h *Host, _ map[string]string) {
			h.TryOverlay = func(string) error { return errors.New("the kernel has no overlayfs") }
		}, want: []string{
			"error snapshotter: overlayfs does not work on /var/lib/berth (ext4): the kernel has no overlayfs" +
				" -> set snapshotter = \"native\" below [engine] in /etc/berth/config.toml"}},
		{name: "no_overlayfs_on_btrfs", change: func(h *Host, _ map[string]string) {
			h.TryOverlay = func(string) error { return errors.New("no") }
			h.FileSystem = func(string) (FileSystem, error) { return FileSystem{Type: "btrfs", Free: 50 << 30}, nil }
		}, want: []string{
			"error snapshotter: overlayfs does not work on /var/lib/berth (btrfs): no -> set snapshotter = \"btrfs\" below [engine] in /etc/berth/config.toml"}},
		{name: "btrfs_elsewhere", opt: Options{Snapshotter: "btrfs"}, want: []string{
			"error snapshotter: btrfs is configured, but /var/lib/berth lies on ext4" +
				" -> set snapshotter = \"overlayfs\" below [engine] in /etc/berth/config.toml, or mount a btrfs there"}},
		{name: "needless_native", opt: Options{Snapshotter: "native"}, want: []string{
			"warning snapshotter: native copies every layer and every container, and overlayfs would work here" +
				" -> set snapshotter = \"overlayfs\" below [engine] in /etc/berth/config.toml"}},
		{name: "unknown_snapshotter", opt: Options{Snapshotter: "aufs"}, want: []string{
			"error snapshotter: \"aufs\" is unknown -> set snapshotter = \"overlayfs\" below [engine] in /etc/berth/config.toml"}},
		{name: "cgroup_v2_few", change: func(_ *Host, files map[string]string) {
			files["/sys/fs/cgroup/cgroup.controllers"] = "cpu\n"
		}, want: []string{
			"warning cgroups: v2: no memory controller: sessions with limits.memory cannot start, and memory is not shown -> boot with cgroup_enable=memory on the kernel's command line",
			"warning cgroups: v2: no pids controller: sessions with limits.pids cannot start -> it is in use by a version 1 hierarchy or not delegated to this container; unmount that, or delegate it"}},
		{name: "cgroup_v1", change: func(h *Host, files map[string]string) { v1(h, files, v1Mounts) }},
		{name: "cgroup_hybrid", change: func(h *Host, files map[string]string) { v1(h, files, v1Mounts+hybridMount) }},
		{name: "cgroup_hybrid_without_v1", change: func(h *Host, files map[string]string) {
			v1(h, files, rootMount+hybridMount)
			delete(files, "/proc/cgroups")
		}, want: []string{
			"error cgroups: hybrid: no devices controller: containers cannot be kept from devices -> the kernel lacks it; use one built with it",
			"error cgroups: hybrid: no freezer controller: containers cannot be killed as a whole -> the kernel lacks it; use one built with it",
			"warning cgroups: hybrid: no cpu controller: sessions with limits.cpus cannot start -> the kernel lacks it; use one built with it",
			"warning cgroups: hybrid: no memory controller: sessions with limits.memory cannot start, and memory is not shown -> the kernel lacks it; use one built with it",
			"warning cgroups: hybrid: no pids controller: sessions with limits.pids cannot start -> the kernel lacks it; use one built with it"}},
		{name: "cgroup_v1_unmounted", change: func(h *Host, files map[string]string) {
			v1(h, files, strings.Replace(v1Mounts, "rw,devices", "rw,net_cls", 1))
		}, want: []string{
			"error cgroups: v1: no devices controller: containers cannot be kept from devices" +
				" -> mount it: mkdir -p /sys/fs/cgroup/devices && mount -t cgroup -o devices none /sys/fs/cgroup/devices"}},
		{name: "cgroup_none", change: func(h *Host, files map[string]string) { v1(h, files, rootMount) }, want: []string{
			"error cgroups: no cgroup hierarchy is mounted on /sys/fs/cgroup -> mount one: mount -t cgroup2 none /sys/fs/cgroup"}},
		{name: "namespaces", change: func(_ *Host, files map[string]string) {
			delete(files, "/proc/self/ns/ipc")
			files["/proc/sys/user/max_net_namespaces"] = "0\n"
		}, want: []string{
			"error namespaces: the kernel has no ipc namespaces -> use a kernel built with them",
			"error namespaces: user.max_net_namespaces is 0 -> raise it: sysctl -w user.max_net_namespaces=15000"}},
		{name: "chroot", change: func(_ *Host, files map[string]string) {
			files["/proc/self/mountinfo"] = "21 20 0:5 / /proc rw - proc proc rw\n"
		}, want: []string{
			"error mounts: the root directory is no mount: this is a chroot, in which runc cannot work" +
				" -> bind the directory to itself and enter it with pivot_root, or use systemd-nspawn"}},
		{name: "seccomp", change: func(_ *Host, files map[string]string) { files["/proc/self/status"] = "Name:\tx\n" }, want: []string{
			"error seccomp: the kernel has no seccomp; no container can be confined -> use a kernel built with CONFIG_SECCOMP_FILTER"}},
		{name: "no_veth", change: func(h *Host, _ map[string]string) {
			h.TryVeth = func() error { return errors.New("veth: operation not supported") }
		}, want: []string{
			"warning network: no veth devices, so sessions with network = \"nat\" are offline: veth: operation not supported" +
				" -> load the module: modprobe veth; or set network = \"host\" or \"none\" in profiles"}},
		{name: "only_nft", change: func(h *Host, _ map[string]string) { h.LookPath = lacks("iptables") }},
		{name: "no_nat", change: func(h *Host, _ map[string]string) {
			h.LookPath = lacks("nft")
			h.TryNAT = func(p string) error { return fmt.Errorf("%s: exit status 3", p) }
		}, want: []string{
			"warning network: no NAT, so sessions with network = \"nat\" are offline: iptables: exit status 3; nft is not installed" +
				" -> apt-get install iptables; and the kernel needs netfilter's NAT (modprobe iptable_nat or nft_masq)"}},
		{name: "forwarding_docker", change: func(h *Host, _ map[string]string) {
			h.Forwarding = func() firewall.Drops { return firewall.Drops{IPTables: true} }
		}},
		{name: "forwarding_nft", change: func(h *Host, _ map[string]string) {
			h.Forwarding = func() firewall.Drops { return firewall.Drops{Others: []string{"table inet filter, chain forward"}} }
		}, want: []string{
			"warning forwarding: table inet filter, chain forward of nftables drops what it does not know, so sessions with network = \"nat\" may be offline" +
				" -> accept there what comes from the sessions' subnet, which /var/lib/berth/cni/subnet names after the first session, and what returns to it"}},
		{name: "disk_full", change: func(h *Host, _ map[string]string) {
			h.FileSystem = func(string) (FileSystem, error) { return FileSystem{"ext4", 100 << 20, 1e6, true}, nil }
		}, want: []string{
			"error disk: 0.1 GiB are free in /var/lib/berth -> free some, with `berth image prune` for a start, or mount a bigger file system there"}},
		{name: "disk_low", change: func(h *Host, _ map[string]string) {
			h.FileSystem = func(string) (FileSystem, error) { return FileSystem{"ext4", 2 << 30, 1e6, true}, nil }
		}, want: []string{
			"warning disk: 2.0 GiB are free in /var/lib/berth; building a desktop image takes more" +
				" -> free some, with `berth image prune` for a start, or mount a bigger file system there"}},
		{name: "inodes_low", change: func(h *Host, _ map[string]string) {
			h.FileSystem = func(string) (FileSystem, error) { return FileSystem{"ext4", 50 << 30, 5, true}, nil }
		}, want: []string{
			"warning disk: 5 inodes are free in /var/lib/berth; a desktop image takes about 100000" +
				" -> free some, with `berth image prune` for a start, or mount a bigger file system there"}},
		{name: "inodes_not_counted", change: func(h *Host, _ map[string]string) {
			h.FileSystem = func(string) (FileSystem, error) { return FileSystem{"btrfs", 50 << 30, 0, false}, nil }
		}},
		{name: "no_mmdebstrap", change: func(h *Host, _ map[string]string) { h.LookPath = lacks("mmdebstrap") }, want: []string{
			"warning builds: mmdebstrap is not installed; the bases of built-in images cannot be made here -> apt-get install mmdebstrap"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, files := good()
			if tt.change != nil {
				tt.change(&h, files)
			}
			tt.opt.Layout = layout
			found := Check(h, tt.opt)
			var got []string
			fatal := false
			for _, f := range found {
				if f.Status != OK {
					got = append(got, fmt.Sprintf("%s %s: %s -> %s", f.Status, f.Check, f.Detail, f.Hint))
				}
				fatal = fatal || f.Status == Error
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			err := Err(found)
			if (err != nil) != fatal || fatal && !errors.Is(err, orchestrator.ErrUnavailable) {
				t.Errorf("Err() = %v", err)
			}
		})
	}
}

func TestControllers(t *testing.T) {
	h, files := good()
	mode, have, err := h.Controllers()
	if want := []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids", "rdma"}; err != nil || mode != "v2" || !slices.Equal(have, want) {
		t.Errorf("v2: %q, %q, %v", mode, have, err)
	}
	h.Cgroup2 = func(string) bool { return false }
	for mounts, want := range map[string]string{v1Mounts: "v1", v1Mounts + hybridMount: "hybrid", hybridMount + v1Mounts: "hybrid"} {
		files["/proc/self/mountinfo"] = mounts
		mode, have, err = h.Controllers()
		if all := []string{"cpu", "cpuacct", "devices", "freezer", "memory", "pids"}; err != nil || mode != want || !slices.Equal(have, all) {
			t.Errorf("%s: %q, %q, %v", want, mode, have, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	got := Warnings([]Finding{{"a", OK, "fine", ""}, {"b", Warning, "little", "more"}, {"c", Error, "none", "some"}, {"d", Warning, "odd", ""}})
	if diff := cmp.Diff([]string{"b: little; more", "d: odd"}, got); diff != "" {
		t.Errorf("Warnings (-want +got):\n%s", diff)
	}
}

// TestThisHost tries everything for real and leaves nothing behind.
func TestThisHost(t *testing.T) {
	dir := t.TempDir()
	h := Real()
	found := Check(h, Options{Layout: paths.Layout{State: filepath.Join(dir, "not", "yet"), Config: "c", Libexec: "/nonexistent"}})
	seen := map[string]bool{}
	for _, f := range found {
		t.Logf("%-8s %-12s %s  %s", f.Status, f.Check, f.Detail, f.Hint)
		seen[f.Check] = true
	}
	want := []string{"root", "programs", "cgroups", "namespaces", "mounts", "seccomp", "disk", "builds"}
	if h.EUID == 0 {
		want = append(want, "snapshotter", "network", "forwarding")
	}
	for _, check := range want {
		if !seen[check] {
			t.Errorf("nothing is said about %s", check)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := Err(found); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("missing programs are fine: %v", err)
	}
}

func TestTryOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if err := tryOverlay("/proc"); err == nil {
		t.Error("an overlay on /proc works")
	}
	dir := t.TempDir()
	err := tryOverlay(dir)
	t.Logf("overlay on %s: %v", dir, err)
	mounts, merr := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if merr != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %v, %v", mounts, merr)
	}
}
