package containerd

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"berth/orchestrator"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	// The session's programs go before those of the host when memory runs out, and the anchor, without which the session
	// is lost, after them (proc_pid_oom_score_adj(5)).
	componentOOMScore = 100
	anchorOOMScore    = -900

	// As systemd has it for services: programs that use select(2) need descriptors below 1024, others raise the limit.
	noFileSoft = 1024
	noFileHard = 524288

	// ociVersion is the runtime specification's whose properties are used here: crun before 1.9, which Debian 12 has, takes
	// no 1.1 and later.
	ociVersion = "1.0.2"
)

// bounds are what a process without CAP_SYS_RESOURCE, which a host that is a container itself often lacks, can give to
// others: not less than its own OOM score, not more than its own limits.
type bounds struct {
	oomScore int    // least
	noFile   uint64 // most
}

var hostBounds = sync.OnceValue(func() bounds {
	const leastScore, mostFiles = -1000, 1 << 30
	b := bounds{oomScore: leastScore, noFile: mostFiles}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if unix.Capget(&hdr, &caps[0]) == nil && caps[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return b
	}
	if own, err := readNumber("/proc/self/oom_score_adj"); err == nil {
		b.oomScore = int(own)
	}
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		b.noFile = l.Max
	}
	return b
})

// maskedPaths and readonlyPaths are those of containerd's default specification.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// podNamespaces are what a container joins. Net is false for pods in the host's network.
type podNamespaces struct {
	anchor int // process ID
	net    bool
}

func (n podNamespaces) list(unified bool) []specs.LinuxNamespace {
	join := func(t specs.LinuxNamespaceType, file string) specs.LinuxNamespace {
		return specs.LinuxNamespace{Type: t, Path: fmt.Sprintf("/proc/%d/ns/%s", n.anchor, file)}
	}
	ns := []specs.LinuxNamespace{
		join(specs.PIDNamespace, "pid"), join(specs.IPCNamespace, "ipc"), join(specs.UTSNamespace, "uts"),
		{Type: specs.MountNamespace},
	}
	if n.net {
		ns = append(ns, join(specs.NetworkNamespace, "net"))
	}
	if unified {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// containerSpec is the OCI runtime specification of a container; pure but for looking at the devices in c.
func containerSpec(c orchestrator.ContainerSpec, img ocispec.ImageConfig, ns podNamespaces, cgroup string, unified bool) (*specs.Spec, error) {
	args := c.Command
	if len(args) == 0 {
		args = append(slices.Clone(img.Entrypoint), img.Cmd...)
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("command: %w: none given and image %q has no default", orchestrator.ErrInvalid, c.Image)
	}
	cwd := c.Cwd
	if cwd == "" {
		cwd = img.WorkingDir
	}
	if !path.IsAbs(cwd) {
		cwd = path.Join("/", cwd)
	}
	groups := make([]uint32, 0, len(c.Groups))
	for _, g := range c.Groups {
		groups = append(groups, uint32(g))
	}
	files := min(noFileHard, hostBounds().noFile)
	score := max(componentOOMScore, hostBounds().oomScore)
	s := &specs.Spec{
		Version: ociVersion,
		Root:    &specs.Root{Path: "rootfs", Readonly: c.ReadOnly},
		Process: &specs.Process{
			Args:            args,
			Env:             mergeEnv(img.Env, c.Env),
			Cwd:             cwd,
			User:            specs.User{UID: uint32(c.UID), GID: uint32(c.GID), AdditionalGids: groups},
			Capabilities:    capabilities(c.Caps),
			NoNewPrivileges: !c.NewPrivileges,
			OOMScoreAdj:     &score,
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(noFileSoft, files), Hard: files}},
		},
		Mounts: mounts(c.Mounts),
		Linux: &specs.Linux{
			CgroupsPath:   cgroup,
			Namespaces:    ns.list(unified),
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			Resources:     resources(c.Limits),
		},
	}
	for _, d := range c.Devices {
		if err := addDevice(s, d); err != nil {
			return nil, err
		}
	}
	var err error
	if s.Linux.Seccomp, err = seccompProfile(c.Seccomp, s); err != nil {
		return nil, err
	}
	return s, nil
}

// anchorSpec is the specification of a pod's anchor, which makes the namespaces. rootfs holds the program and nothing else.
func anchorSpec(p orchestrator.PodSpec, rootfs, cgroup string, unified bool) *specs.Spec {
	score := max(anchorOOMScore, hostBounds().oomScore)
	ns := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
	}
	if p.Network != orchestrator.NetworkHost {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if unified {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	hostname := p.Hostname
	if hostname == "" {
		hostname = p.ID
	}
	return &specs.Spec{
		Version:  ociVersion,
		Root:     &specs.Root{Path: rootfs, Readonly: true},
		Hostname: hostname,
		Process: &specs.Process{
			Args: []string{"/" + anchorProgram},
			Cwd:  "/",
			// One thread runs at a time and nothing is ever collected: fewer threads and pages in the runtime.
			Env:             []string{"GOMAXPROCS=1", "GOGC=off"},
			Capabilities:    capabilities(nil),
			NoNewPrivileges: true,
			OOMScoreAdj:     &score,
			User:            specs.User{UID: anchorID, GID: anchorID},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces:  ns,
			MaskedPaths: maskedPaths[:0:0],
			Resources:   resources(orchestrator.Limits{}),
		},
	}
}

// mergeEnv returns base with the variables of over in the places of those they replace, and the others behind.
// PATH is always set.
func mergeEnv(base, over []string) []string {
	env := make([]string, 0, len(base)+len(over)+1)
	at := make(map[string]int)
	set := func(kv string) {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			env[i] = kv
			return
		}
		at[k] = len(env)
		env = append(env, kv)
	}
	set("PATH=" + defaultPath)
	for _, kv := range base {
		set(kv)
	}
	for _, kv := range over {
		set(kv)
	}
	return env
}

// capabilities drops all but caps. They are ambient too, because a user that is not root would lose them at execve
// otherwise (capabilities(7)).
func capabilities(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps}
}

// mounts returns the file systems of every container, then the bind mounts, parents before children.
func mounts(binds []orchestrator.Mount) []specs.Mount {
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
	}
	sorted := slices.Clone(binds)
	sort.SliceStable(sorted, func(i, j int) bool {
		return strings.Count(path.Clean(sorted[i].Target), "/") < strings.Count(path.Clean(sorted[j].Target), "/")
	})
	for _, b := range sorted {
		target := path.Clean(b.Target)
		m = slices.DeleteFunc(m, func(x specs.Mount) bool { return x.Destination == target })
		opts := []string{"rbind", "rprivate", "nosuid", "nodev"}
		if b.ReadOnly {
			opts = append(opts, "ro")
		}
		m = append(m, specs.Mount{Destination: target, Type: "bind", Source: b.Source, Options: opts})
	}
	return m
}

// resources bounds a container by l and denies it all devices; the runtime adds the harmless ones (null, zero, tty, ...).
func resources(l orchestrator.Limits) *specs.LinuxResources {
	r := limitResources(l)
	r.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	return r
}

// cpuPeriod is the kernel's default period of CPU bandwidth control, in microseconds.
const cpuPeriod = 100000

func limitResources(l orchestrator.Limits) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if l.CPUs > 0 {
		period, quota := uint64(cpuPeriod), int64(l.CPUs*cpuPeriod)
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if l.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &l.Memory}
	}
	if l.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	}
	return r
}

// addDevice gives s the device node p, or all nodes below the directory p.
func addDevice(s *specs.Spec, p string) error {
	var found bool
	err := filepath.WalkDir(p, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return err
		}
		var kind string
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			kind = "c"
		case unix.S_IFBLK:
			kind = "b"
		default:
			return nil
		}
		found = true
		major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		mode := os.FileMode(st.Mode & 0o7777)
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{
			Path: name, Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		})
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: kind, Major: &major, Minor: &minor, Access: "rwm",
		})
		return nil
	})
	if os.IsNotExist(err) {
		return fmt.Errorf("device %q: %w on this host", p, orchestrator.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("device %q: %w", p, err)
	}
	if !found {
		return fmt.Errorf("device %q: %w: neither a device node nor a directory with some", p, orchestrator.ErrInvalid)
	}
	return nil
}
