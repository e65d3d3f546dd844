package containerd

import (
	"fmt"
	"runtime"
	"slices"

	"berth/orchestrator"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Names of seccomp profiles, for ContainerSpec.Seccomp.
const (
	// SeccompDefault is containerd's default profile, for programs of the machine's own architecture, and what
	// desktopSyscalls adds.
	SeccompDefault = ""
	// SeccompNested is SeccompDefault and what nestedSyscalls adds: programs that build sandboxes of their own in a
	// user namespace (bubblewrap, Flatpak, Chromium, WebKit, GNOME's image loaders) work under it, and 32-bit programs
	// (Steam, Wine).
	SeccompNested = "nested"
	// SeccompUnconfined filters nothing.
	SeccompUnconfined = "unconfined"
)

// desktopSyscalls are allowed beyond containerd's default profile. Each is checked by the kernel against the caller's
// own credentials, so a process without capabilities reaches only itself and processes of its user.
var desktopSyscalls = []string{
	// Mesa compares file descriptions (KCMP_FILE) to know whether two DRM nodes are one; needs ptrace access to both.
	"kcmp",
	// PipeWire, GNOME and Chromium take a descriptor from a peer by pidfd; needs ptrace access to the peer.
	"pidfd_getfd",
	// GTK's and Chromium's memory-pressure handling advise about their own pages.
	"process_madvise",
	// libnuma, used by x265, OpenBLAS and others, and glibc's malloc tests for it: placement of the caller's own memory.
	"get_mempolicy", "mbind", "set_mempolicy",
}

// nestedSyscalls make and furnish namespaces. Outside a user namespace of its own a process without capabilities still
// gets EPERM for all of them from the kernel itself.
var nestedSyscalls = []string{
	"clone", "clone3", "unshare", "setns",
	"mount", "umount", "umount2", "pivot_root", "chroot",
	"fsconfig", "fsmount", "fsopen", "fspick", "mount_setattr", "move_mount", "open_tree",
	"sethostname", "setdomainname",
}

// nativeArch is the architecture that the default profile is compiled for. libseccomp takes time for each that grows with
// the square of the rules: with x86 and x32 beside x86-64 it was half of all that creating a container took (27 ms of
// 55 ms of CPU time, now 10 ms). The kernel kills a process that calls it by another architecture's numbers.
var nativeArch = map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64, "riscv64": specs.ArchRISCV64}

// seccompProfile returns the filter called name for a process described by spec; nil means none.
func seccompProfile(name string, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	if name == SeccompUnconfined {
		return nil, nil
	}
	p := seccomp.DefaultProfile(spec)
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: desktopSyscalls, Action: specs.ActAllow})
	switch name {
	case SeccompDefault:
		if a, ok := nativeArch[runtime.GOARCH]; ok {
			p.Architectures = []specs.Arch{a}
		}
	case SeccompNested:
		// The default profile's own rules for these (clone by its flags, clone3 answered with ENOSYS) would stand beside.
		p.Syscalls = slices.DeleteFunc(p.Syscalls, func(s specs.LinuxSyscall) bool {
			return len(s.Names) == 1 && slices.Contains(nestedSyscalls, s.Names[0])
		})
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: nestedSyscalls, Action: specs.ActAllow})
	default:
		return nil, fmt.Errorf("seccomp profile %q: %w; use %q, %q or none for the default",
			name, orchestrator.ErrInvalid, SeccompNested, SeccompUnconfined)
	}
	return p, nil
}
