package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/internal/revert"
	"berth/internal/rmtree"
	"berth/profiles"
	"berth/session/look"
)

// wires is the directory of one session on the host: a tmpfs of its own, so that a session that fills it hurts nobody
// else, and so that one unmount removes every socket.
//
//	tmp/      /tmp of every container (1777), with .X11-unix and .ICE-unix
//	runtime/  XDG_RUNTIME_DIR (0700)
//	shm/      /dev/shm (1777)
//	etc/      passwd, group, hosts, hostname, resolv.conf, machine-id, and the components' own files
//	berth/    /run/berth, read-only: Xauthority, the daemon's launch socket, look with the files of session/look, and the places
//	          where tools and exports are mounted
//	systemd/  /run/systemd, read-only, where Berth answers for systemd-logind
//	home/     a home of the host's, mounted here
type wires struct{ dir string }

func (w wires) tmp() string        { return filepath.Join(w.dir, "tmp") }
func (w wires) runtime() string    { return filepath.Join(w.dir, "runtime") }
func (w wires) shm() string        { return filepath.Join(w.dir, "shm") }
func (w wires) etc() string        { return filepath.Join(w.dir, "etc") }
func (w wires) berth() string      { return filepath.Join(w.dir, "berth") }
func (w wires) look() string       { return filepath.Join(w.berth(), filepath.Base(look.Dir)) }
func (w wires) systemd() string    { return filepath.Join(w.dir, "systemd") }
func (w wires) home() string       { return filepath.Join(w.dir, "home") }
func (w wires) xsocket() string    { return filepath.Join(w.tmp(), ".X11-unix", "X0") }
func (w wires) xauthority() string { return filepath.Join(w.berth(), "Xauthority") }
func (w wires) vnc() string        { return filepath.Join(w.runtime(), "vnc.sock") }
func (w wires) pulse() string      { return filepath.Join(w.runtime(), "pulse", "native") }
func (w wires) pipewire() string   { return filepath.Join(w.runtime(), "pipewire-0") }
func (w wires) bus() string        { return filepath.Join(w.runtime(), "bus") }

// lay mounts the directory and fills it for id, with room for the exports of apps. hostname is also the session's name in /etc/hosts.
func (w wires) lay(ctx context.Context, id Identity, hostname string, cookie []byte, apps []profiles.App) (err error) {
	var undo revert.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	if err := os.MkdirAll(filepath.Dir(w.dir), 0o711); err != nil {
		return fmt.Errorf("session directory %q: %w", w.dir, err)
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		return fmt.Errorf("session directory %q: %w", w.dir, err)
	}
	undo.Add("remove "+w.dir, func(context.Context) error { return os.Remove(w.dir) })
	// Half of memory at most, as /dev/shm has it; noexec would break programs that run things from /tmp.
	if err := unix.Mount("berth", w.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=50%"); err != nil {
		return fmt.Errorf("session directory %q: mount tmpfs: %w", w.dir, err)
	}
	undo.Add("unmount "+w.dir, func(context.Context) error { return unix.Unmount(w.dir, unix.MNT_DETACH) })
	type dir struct {
		path string
		mode os.FileMode
		user bool
	}
	dirs := []dir{
		{w.tmp(), 0o1777, false},
		{filepath.Join(w.tmp(), ".X11-unix"), 0o1777, false},
		{filepath.Join(w.tmp(), ".ICE-unix"), 0o1777, false},
		{w.runtime(), 0o700, true},
		{w.shm(), 0o1777, false},
		{w.etc(), 0o755, false},
		{w.berth(), 0o755, false},
		{w.systemd(), 0o755, false},
		{filepath.Join(w.systemd(), "seats"), 0o755, false},
		{filepath.Join(w.berth(), filepath.Base(toolsDir)), 0o755, false},
		{filepath.Join(w.berth(), filepath.Base(ExportsDir)), 0o755, false},
	}
	for _, a := range apps {
		dirs = append(dirs, dir{filepath.Join(w.berth(), filepath.Base(ExportsDir), a.Component), 0o755, false})
	}
	for _, d := range dirs {
		if err := os.Mkdir(d.path, 0o700); err != nil {
			return fmt.Errorf("session directory %q: %w", d.path, err)
		}
		mode := d.mode & 0o777
		if d.mode&0o1000 != 0 {
			mode |= os.ModeSticky
		}
		if err := os.Chmod(d.path, mode); err != nil {
			return err
		}
		if d.user {
			if err := os.Chown(d.path, id.UID, id.GID); err != nil {
				return err
			}
		}
	}
	if err := w.writeFor(id, w.xauthority(), cookie, 0o400); err != nil {
		return err
	}
	for name, text := range logindFiles(id) {
		path := filepath.Join(w.systemd(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("session file %q: %w", path, err)
		}
	}
	for name, text := range map[string]string{
		"hostname":    hostname + "\n",
		"hosts":       "127.0.0.1\tlocalhost\n127.0.1.1\t" + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"resolv.conf": resolvConf(),
		"machine-id":  machineID() + "\n",
	} {
		if err := os.WriteFile(filepath.Join(w.etc(), name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("session file %q: %w", name, err)
		}
	}
	// The session's user passes through to its sockets. The directory stays root's: its owner could put symbolic links in
	// place of what the daemon writes to.
	if err := os.Chown(w.dir, 0, id.GID); err != nil {
		return err
	}
	if err := os.Chmod(w.dir, 0o710); err != nil {
		return err
	}
	undo.Disarm()
	return nil
}

// loginSession is what session/systembus calls the session.
const loginSession = "1"

// logindFiles are what systemd-logind keeps in /run/systemd, by which programs know of it and its session (sd-login(3))
// before they ask it anything: GNOME Shell, xfce4-session, MATE and others look for the directory seats and without it do
// not ask. They say what session/systembus says on the bus: one session without a seat. There is no directory "system":
// that would say that systemd is the init process (sd_booted(3)).
func logindFiles(id Identity) map[string]string {
	return map[string]string{
		"sessions/" + loginSession: fmt.Sprintf("UID=%d\nUSER=%s\nACTIVE=1\nIS_DISPLAY=1\nSTATE=active\nREMOTE=0\nTYPE=x11\nCLASS=user\n"+
			"SERVICE=berth\nDISPLAY=:0\nLEADER=1\n", id.UID, id.Name),
		"users/" + strconv.Itoa(id.UID): fmt.Sprintf("NAME=%s\nSTATE=active\nSTOPPING=no\nRUNTIME=/run/user/%d\nDISPLAY=%[3]s\n"+
			"SESSIONS=%[3]s\nACTIVE_SESSIONS=%[3]s\nONLINE_SESSIONS=%[3]s\nSEATS=\nACTIVE_SEATS=\nONLINE_SEATS=\n", id.Name, id.UID, loginSession),
	}
}

func (w wires) writeFor(id Identity, path string, data []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("session file %q: %w", path, err)
	}
	return os.Chown(path, id.UID, id.GID)
}

// remove unmounts and removes the directory; what is not there is not an error.
func (w wires) remove() error {
	for {
		err := unix.Unmount(w.dir, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("session directory %q: unmount: %w", w.dir, err)
		}
	}
	if err := rmtree.Remove(w.dir); err != nil {
		return fmt.Errorf("session directory %q: %w", w.dir, err)
	}
	return nil
}

// resolvConf is what the containers use to look up names: the host's file, or, where that points at systemd-resolved's
// stub on a loopback address that the session's network namespace does not have, the one behind it.
func resolvConf() string {
	for _, p := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		b, err := os.ReadFile(p)
		if err == nil && usableResolvConf(string(b)) {
			return string(b)
		}
	}
	return ""
}

// machineID makes a machine-id(5): 128 bits in hex. Each session is a machine of its own.
func machineID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails (crypto/rand)
	// Variant and version bits of a UUIDv4, as systemd sets them.
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return hex.EncodeToString(b)
}
