// Package hostcheck tells whether this host can run sessions and, where not, what to do about it.
//
// Check is a pure function over Host, a struct of the few things it wants to know; Real fills it from the machine, where
// possible by trying: an overlay is mounted, a veth pair made, a NAT rule added, each in namespaces or directories of its
// own that are gone afterwards. The kernel's configuration or version numbers are not believed where a try is possible,
// since containers, hardened kernels and vendors' backports make both lie.
//
// The daemon refuses to start when Err is not nil; `berth doctor` prints all findings.
package hostcheck

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth/internal/firewall"
	"berth/internal/paths"
	"berth/orchestrator"
)

// Status of a finding.
const (
	OK      = "ok"
	Warning = "warning" // something is missing that some sessions want
	Error   = "error"   // no session can run
)

// Finding is one thing that was looked at.
type Finding struct {
	Check  string `json:"check"`          // "cgroups"
	Status string `json:"status"`         // ok | warning | error
	Detail string `json:"detail"`         // what was found
	Hint   string `json:"hint,omitempty"` // what to do
}

// Options say what sessions will need.
type Options struct {
	Layout      paths.Layout
	Snapshotter string // "" means overlayfs
	// Existing: the engine is an existing containerd, whose own programs and file systems are its own business.
	Existing bool
}

// Host is what Check asks about the machine.
type Host struct {
	EUID int
	// ReadFile reads a file of /proc or /sys.
	ReadFile func(path string) ([]byte, error)
	// LookPath finds a program, like exec.LookPath.
	LookPath func(name string) (string, error)
	// FileSystem describes the one that holds path, or will: the nearest directory that exists counts.
	FileSystem func(path string) (FileSystem, error)
	// TryOverlay mounts an overlay with all its parts on the file system of path and takes it away again.
	TryOverlay func(path string) error
	// TryVeth makes a pair of virtual Ethernet devices in a network namespace of its own.
	TryVeth func() error
	// TryNAT has the program, nft or iptables, set up masquerading in a network namespace of its own.
	TryNAT func(program string) error
	// Forwarding tells who drops packets that this host would forward.
	Forwarding func() firewall.Drops
	// Cgroup2 tells whether path is the root of a mounted version 2 hierarchy.
	Cgroup2 func(path string) bool
}

// FileSystem describes a mounted file system.
type FileSystem struct {
	Type   string // "ext4", "btrfs"; the magic number in hexadecimal where the name is not known
	Free   uint64 // bytes for root
	Inodes uint64 // free; 0 where the type has none to count
	Counts bool   // whether Inodes means something
}

// Check looks at everything. The order of findings is fixed; there is at least one.
func Check(h Host, o Options) []Finding {
	if o.Snapshotter == "" {
		o.Snapshotter = "overlayfs"
	}
	c := &checker{Host: h, Options: o}
	c.root()
	c.programs()
	if !o.Existing {
		c.snapshotter()
	}
	c.cgroups()
	c.namespaces()
	c.rootMount()
	c.seccomp()
	c.network()
	c.forwarding()
	c.disk()
	c.builds()
	return c.found
}

// Err joins the findings that keep sessions from running; nil if there are none. It is an orchestrator.ErrUnavailable.
func Err(findings []Finding) error {
	var errs []error
	for _, f := range findings {
		if f.Status != Error {
			continue
		}
		hint := ""
		if f.Hint != "" {
			hint = "; " + f.Hint
		}
		errs = append(errs, fmt.Errorf("host: %s: %w: %s%s", f.Check, orchestrator.ErrUnavailable, f.Detail, hint))
	}
	return errors.Join(errs...)
}

// Warnings are the findings that sessions run in spite of, as "CHECK: what was found; what to do".
func Warnings(findings []Finding) []string {
	var out []string
	for _, f := range findings {
		if f.Status != Warning {
			continue
		}
		text := f.Check + ": " + f.Detail
		if f.Hint != "" {
			text += "; " + f.Hint
		}
		out = append(out, text)
	}
	return out
}

type checker struct {
	Host
	Options
	found []Finding
}

func (c *checker) ok(check, format string, args ...any) {
	c.found = append(c.found, Finding{check, OK, fmt.Sprintf(format, args...), ""})
}

func (c *checker) warn(check, detail, hint string) {
	c.found = append(c.found, Finding{check, Warning, detail, hint})
}

func (c *checker) fail(check, detail, hint string) {
	c.found = append(c.found, Finding{check, Error, detail, hint})
}

func (c *checker) root() {
	if c.EUID != 0 {
		c.fail("root", fmt.Sprintf("runs as uid %d; containers, mounts and network namespaces need root", c.EUID), "run it as root, with sudo")
		return
	}
	c.ok("root", "yes")
}

// Programs of Libexec: what every engine needs, and what an existing containerd has itself.
var (
	programs           = []string{"runc", "buildkitd", "ptp", "host-local", "berth-anchor", "tools/berth-systembus"}
	containerdPrograms = []string{"containerd", "containerd-shim-runc-v2"}
)

func (c *checker) programs() {
	want := programs
	if !c.Existing {
		want = slices.Concat(containerdPrograms, programs)
	}
	var missing []string
	for _, p := range want {
		if _, err := c.LookPath(filepath.Join(c.Layout.Libexec, p)); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		c.fail("programs", fmt.Sprintf("%s lacks %s", c.Layout.Libexec, strings.Join(missing, ", ")),
			"build them with `make`, or set BERTH_LIBEXEC to where they are")
		return
	}
	c.ok("programs", "in %s", c.Layout.Libexec)
}

func (c *checker) snapshotter() {
	const check = "snapshotter"
	fsys, err := c.FileSystem(c.Layout.State)
	if err != nil {
		c.fail(check, err.Error(), "")
		return
	}
	instead := "native"
	if fsys.Type == "btrfs" {
		instead = "btrfs"
	}
	set := func(s string) string {
		return fmt.Sprintf("set snapshotter = %q below [engine] in %s", s, c.Layout.Config)
	}
	switch c.Snapshotter {
	case "overlayfs":
		if c.EUID != 0 {
			return // nothing can be tried
		}
		if err := c.TryOverlay(c.Layout.State); err != nil {
			c.fail(check, fmt.Sprintf("overlayfs does not work on %s (%s): %v", c.Layout.State, fsys.Type, err), set(instead))
			return
		}
		c.ok(check, "overlayfs on %s", fsys.Type)
	case "btrfs":
		if fsys.Type != "btrfs" {
			c.fail(check, fmt.Sprintf("btrfs is configured, but %s lies on %s", c.Layout.State, fsys.Type),
				set("overlayfs")+", or mount a btrfs there")
			return
		}
		c.ok(check, "btrfs")
	case "native":
		if c.EUID == 0 && c.TryOverlay(c.Layout.State) == nil {
			c.warn(check, "native copies every layer and every container, and overlayfs would work here", set("overlayfs"))
			return
		}
		c.ok(check, "native, which copies every layer and every container")
	default:
		c.fail(check, fmt.Sprintf("%q is unknown", c.Snapshotter), set("overlayfs"))
	}
}

// controller is a cgroup controller that sessions use.
type controller struct {
	name     string
	required bool   // by runc, of every container
	without  string // what does not work without it
	v1only   bool   // in version 2 it is no controller
}

var controllers = []controller{
	{"devices", true, "containers cannot be kept from devices", true},
	{"freezer", true, "containers cannot be killed as a whole", true},
	{"cpu", false, "sessions with limits.cpus cannot start", false},
	{"memory", false, "sessions with limits.memory cannot start, and memory is not shown", false},
	{"pids", false, "sessions with limits.pids cannot start", false},
}

func (c *checker) cgroups() {
	const check = "cgroups"
	mode, have, err := c.Controllers()
	if err != nil {
		c.fail(check, err.Error(), "")
		return
	}
	if mode == "" {
		c.fail(check, "no cgroup hierarchy is mounted on /sys/fs/cgroup", "mount one: mount -t cgroup2 none /sys/fs/cgroup")
		return
	}
	bad := false
	for _, want := range controllers {
		if slices.Contains(have, want.name) || want.v1only && mode == "v2" {
			continue
		}
		bad = true
		hint := "the kernel lacks it; use one built with it"
		switch known, enabled := c.kernelController(want.name); {
		case known && !enabled && want.name == "memory":
			hint = "boot with cgroup_enable=memory on the kernel's command line"
		case known && !enabled:
			hint = "take cgroup_disable=" + want.name + " off the kernel's command line"
		case known && mode == "v2":
			hint = "it is in use by a version 1 hierarchy or not delegated to this container; unmount that, or delegate it"
		case known:
			hint = fmt.Sprintf("mount it: mkdir -p /sys/fs/cgroup/%[1]s && mount -t cgroup -o %[1]s none /sys/fs/cgroup/%[1]s", want.name)
		}
		detail := fmt.Sprintf("%s: no %s controller: %s", mode, want.name, want.without)
		if want.required {
			c.fail(check, detail, hint)
		} else {
			c.warn(check, detail, hint)
		}
	}
	if !bad {
		c.ok(check, "%s with %s", mode, strings.Join(have, ", "))
	}
}

// v1Controllers are those of version 1; among a mount's options are others too.
var v1Controllers = []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc", "net_cls",
	"net_prio", "perf_event", "pids", "rdma"}

// Controllers returns the cgroup mode, "v1", "hybrid" (version 1 with a controller-less version 2 beside it), "v2" or ""
// for none, and the controllers that can be used in it, sorted.
func (h Host) Controllers() (mode string, have []string, err error) {
	if h.Cgroup2("/sys/fs/cgroup") {
		b, err := h.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return "", nil, fmt.Errorf("cgroup v2: %w", err)
		}
		have = strings.Fields(string(b))
		slices.Sort(have)
		return "v2", have, nil
	}
	// Version 1: what is mounted, from mountinfo's last fields: `- cgroup NAME rw,cpu,cpuacct` (proc_pid_mountinfo(5)).
	b, err := h.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", nil, fmt.Errorf("cgroup v1: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 3 || !strings.HasPrefix(l[4], "/sys/fs/cgroup/") {
			continue
		}
		switch r[0] {
		case "cgroup":
			mode = cmp.Or(mode, "v1")
			for opt := range strings.SplitSeq(r[2], ",") {
				if slices.Contains(v1Controllers, opt) && !slices.Contains(have, opt) {
					have = append(have, opt)
				}
			}
		case "cgroup2":
			mode = "hybrid"
		}
	}
	if len(have) == 0 && mode != "hybrid" {
		mode = ""
	}
	slices.Sort(have)
	return mode, have, nil
}

// kernelController tells whether the kernel knows a controller and whether it is enabled: /proc/cgroups (cgroups(7)).
func (c *checker) kernelController(name string) (known, enabled bool) {
	b, err := c.ReadFile("/proc/cgroups")
	if err != nil {
		return false, false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == name {
			return true, f[3] == "1"
		}
	}
	return false, false
}

func (c *checker) namespaces() {
	const check = "namespaces"
	var missing, capped []string
	for _, ns := range []string{"mnt", "net", "ipc", "pid", "uts"} {
		// Its content cannot be read, but whether the file is there can be seen.
		if _, err := c.ReadFile("/proc/self/ns/" + ns); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, ns)
		}
		if b, err := c.ReadFile("/proc/sys/user/max_" + ns + "_namespaces"); err == nil {
			if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n == 0 {
				capped = append(capped, ns)
			}
		}
	}
	if len(missing) > 0 {
		c.fail(check, "the kernel has no "+strings.Join(missing, ", ")+" namespaces", "use a kernel built with them")
	}
	for _, ns := range capped {
		c.fail(check, "user.max_"+ns+"_namespaces is 0", "raise it: sysctl -w user.max_"+ns+"_namespaces=15000")
	}
	if len(missing)+len(capped) == 0 {
		c.ok(check, "mnt, net, ipc, pid, uts")
	}
}

// rootMount finds a bare chroot, in which runc can neither make the root's mounts private nor pivot_root(2).
func (c *checker) rootMount() {
	b, err := c.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.fail("mounts", err.Error(), "mount /proc")
		return
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			c.ok("mounts", "the root directory is a mount")
			return
		}
	}
	c.fail("mounts", "the root directory is no mount: this is a chroot, in which runc cannot work",
		"bind the directory to itself and enter it with pivot_root, or use systemd-nspawn")
}

func (c *checker) seccomp() {
	b, err := c.ReadFile("/proc/self/status")
	switch {
	case err != nil:
		c.fail("seccomp", err.Error(), "mount /proc")
	case !strings.Contains(string(b), "\nSeccomp:"):
		c.fail("seccomp", "the kernel has no seccomp; no container can be confined", "use a kernel built with CONFIG_SECCOMP_FILTER")
	default:
		c.ok("seccomp", "yes")
	}
}

func (c *checker) network() {
	const check = "network"
	if c.EUID != 0 {
		return
	}
	if err := c.TryVeth(); err != nil {
		c.warn(check, "no veth devices, so sessions with network = \"nat\" are offline: "+err.Error(),
			"load the module: modprobe veth; or set network = \"host\" or \"none\" in profiles")
		return
	}
	var tried []string
	for _, p := range []string{"iptables", "nft"} {
		if _, err := c.LookPath(p); err != nil {
			tried = append(tried, p+" is not installed")
			continue
		}
		if err := c.TryNAT(p); err != nil {
			tried = append(tried, err.Error())
			continue
		}
		c.ok(check, "veth, NAT by %s", p)
		return
	}
	c.warn(check, "no NAT, so sessions with network = \"nat\" are offline: "+strings.Join(tried, "; "),
		"apt-get install iptables; and the kernel needs netfilter's NAT (modprobe iptable_nat or nft_masq)")
}

// forwarding looks at the firewall: an answer to what a session asks of the network is forwarded to it.
func (c *checker) forwarding() {
	const check = "forwarding"
	if c.EUID != 0 {
		return
	}
	drops := c.Forwarding()
	for _, who := range drops.Others {
		c.warn(check, who+" of nftables drops what it does not know, so sessions with network = \"nat\" may be offline",
			fmt.Sprintf("accept there what comes from the sessions' subnet, which %s names after the first session, and what returns to it", c.Layout.Subnet()))
	}
	switch {
	case drops.IPTables:
		c.ok(check, "dropped by iptables; rules with the comment %s except the sessions' subnet while there are any", c.Layout.Instance())
	case len(drops.Others) == 0:
		c.ok(check, "nothing drops it")
	}
}

// Sizes below which disk space is worth a word, in bytes: one desktop image takes about 1.5 GiB to build.
const (
	diskFew  = 5 << 30
	diskNone = 256 << 20
	inodeFew = 200_000
)

func (c *checker) disk() {
	const check = "disk"
	f, err := c.FileSystem(c.Layout.State)
	if err != nil {
		c.fail(check, err.Error(), "")
		return
	}
	free := fmt.Sprintf("%.1f GiB are free in %s", float64(f.Free)/(1<<30), c.Layout.State)
	hint := "free some, with `berth image prune` for a start, or mount a bigger file system there"
	switch {
	case f.Free < diskNone:
		c.fail(check, free, hint)
	case f.Free < diskFew:
		c.warn(check, free+"; building a desktop image takes more", hint)
	case f.Counts && f.Inodes < inodeFew:
		c.warn(check, fmt.Sprintf("%d inodes are free in %s; a desktop image takes about 100000", f.Inodes, c.Layout.State), hint)
	default:
		c.ok(check, "%s", free)
	}
}

func (c *checker) builds() {
	if _, err := c.LookPath("mmdebstrap"); err != nil {
		c.warn("builds", "mmdebstrap is not installed; the bases of built-in images cannot be made here", "apt-get install mmdebstrap")
		return
	}
	c.ok("builds", "mmdebstrap")
}
