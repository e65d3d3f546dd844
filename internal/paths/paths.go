// Package paths says where an instance of Berth keeps things. Without a root these are the FHS places; with one
// (--root or BERTH_ROOT) everything lies below it, so that instances live side by side.
package paths

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// Layout is the set of places of one instance. All paths are absolute.
type Layout struct {
	Root    string // the --root directory, or "" for the FHS places
	State   string // survives reboots: containerd's and buildkit's stores, volumes, bases
	Run     string // gone at reboot: sockets, sessions
	Config  string // config.toml
	Libexec string // containerd, containerd-shim-runc-v2, runc, buildkitd, CNI plugins, berth-anchor, tools/
}

// New returns the layout for root; "" means the FHS places. It touches nothing on disk.
func New(root string) (Layout, error) {
	l := Layout{State: "/var/lib/berth", Run: "/run/berth", Config: "/etc/berth/config.toml"}
	if root != "" {
		abs, err := filepath.Abs(root)
		if err != nil {
			return Layout{}, fmt.Errorf("root %q: %w", root, err)
		}
		l = Layout{Root: abs, State: filepath.Join(abs, "lib"), Run: filepath.Join(abs, "run"), Config: filepath.Join(abs, "config.toml")}
	}
	// sockaddr_un.sun_path holds 108 bytes (unix(7)); the longest socket lies about 60 bytes below Run.
	if len(l.Run) > 44 {
		return Layout{}, fmt.Errorf("root %q: path is too long for Unix sockets below it (at most 40 bytes); choose a shorter one", root)
	}
	l.Libexec = libexec()
	return l, nil
}

// libexec finds the engine's programs: BERTH_LIBEXEC, else ../libexec/berth beside the berth binary (installed), else
// ../libexec (a checkout, where make puts bin/berth and libexec/ side by side).
func libexec() string {
	if d := os.Getenv("BERTH_LIBEXEC"); d != "" {
		return d
	}
	exe, err := os.Executable()
	if err != nil {
		return "/usr/local/libexec/berth"
	}
	if r, err := filepath.EvalSymlinks(exe); err == nil {
		exe = r
	}
	prefix := filepath.Dir(filepath.Dir(exe))
	for _, d := range []string{filepath.Join(prefix, "libexec", "berth"), filepath.Join(prefix, "libexec")} {
		if _, err := os.Stat(filepath.Join(d, "containerd")); err == nil {
			return d
		}
	}
	return filepath.Join(prefix, "libexec", "berth")
}

// Instance is a short stable word for this instance, unique per root, used in names that are global on the host
// (cgroups, firewall tables, namespaces of a containerd): "berth" without a root, "berth-1a2b3c" with one.
func (l Layout) Instance() string {
	if l.Root == "" {
		return "berth"
	}
	sum := sha256.Sum256([]byte(l.Root))
	return "berth-" + hex.EncodeToString(sum[:3])
}

// Tools holds the static programs that every container of a session finds in /run/berth/bin.
func (l Layout) Tools() string { return filepath.Join(l.Libexec, "tools") }

// APISocket is the daemon's HTTP API.
func (l Layout) APISocket() string { return filepath.Join(l.Run, "berth.sock") }

// ContainerdSocket is the private containerd's gRPC socket.
func (l Layout) ContainerdSocket() string {
	return filepath.Join(l.Run, "containerd", "containerd.sock")
}

// BuildkitSocket is the private buildkitd's gRPC socket.
func (l Layout) BuildkitSocket() string { return filepath.Join(l.Run, "buildkit", "buildkitd.sock") }

// Session is the directory with the wires of the session called name.
func (l Layout) Session(name string) string { return filepath.Join(l.Run, "sessions", name) }

// MaxSocketDir is what containerd allows for the directory of the shims' sockets: sun_path (unix(7)) less a hex SHA-256.
const MaxSocketDir = 42

// ShimSockets is the directory of the shims' sockets: below Run, or beside the other instances where that is too long.
func (l Layout) ShimSockets() string {
	if d := filepath.Join(l.Run, "s"); len(d) <= MaxSocketDir {
		return d
	}
	return filepath.Join("/run", l.Instance(), "s")
}

// Volumes holds the named home volumes.
func (l Layout) Volumes() string { return filepath.Join(l.State, "volumes") }

// Exports holds what images show to components of other images.
func (l Layout) Exports() string { return filepath.Join(l.State, "exports") }

// Bases holds the base root file systems made by mmdebstrap, as OCI layouts.
func (l Layout) Bases() string { return filepath.Join(l.State, "bases") }

// Subnet is the file that keeps the network chosen for the pods, as ADDRESS/BITS.
func (l Layout) Subnet() string { return filepath.Join(l.State, "cni", "subnet") }

// Logs holds the containers' logs, one directory per session.
func (l Layout) Logs() string { return filepath.Join(l.State, "logs") }
