// Package hostsession runs components of a session with the host's own programs instead of containers, for tests of
// what drivers and probes promise: the paths, user, namespaces and environment are those of a session, the root file
// system is the host's.
package hostsession

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/display/xauth"
	"berth/internal/rmtree"
	"berth/profiles"
)

// UID and GID of the session's user. Nobody on the host needs to have them.
const UID, GID = 61234, 61234

// Session is the stage. It and all that was started on it are gone when the test ends.
type Session struct {
	Dir     string // of all below; on a tmpfs
	Tmp     string // /tmp
	Runtime string // XDG_RUNTIME_DIR
	Berth   string // /run/berth
	Home    string
	Cookie  []byte

	tb     testing.TB
	etc    string // laid over /etc
	anchor *exec.Cmd
}

// setup runs as root in new mount, network and IPC namespaces. $1 is Session.Dir, $2 the user's ID.
const setup = `
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" /etc
mount -t tmpfs tmpfs /run
mkdir -p "/run/user/$2" /run/berth
mount --bind "$1/runtime" "/run/user/$2"
mount --bind "$1/berth" /run/berth
mount -t tmpfs tmpfs /dev/shm -o mode=1777
mount --bind "$1/tmp" /tmp
ip link set lo up 2>/dev/null || true
echo ready
exec sleep infinity
`

// New makes a stage. It skips the test when that is not possible here.
func New(tb testing.TB) *Session {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root to make namespaces")
	}
	dir, err := os.MkdirTemp("/tmp", "berth-hs-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := rmtree.Remove(dir); err != nil {
			tb.Error(err)
		}
	})
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		tb.Fatalf("mount tmpfs on %s: %v", dir, err)
	}
	tb.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
	})
	s := &Session{Dir: dir, Tmp: dir + "/tmp", Runtime: dir + "/runtime", Berth: dir + "/berth", Home: dir + "/home",
		Cookie: xauth.NewCookie(), tb: tb, etc: dir + "/etc"}
	for _, d := range []struct {
		path string
		mode uint32
		user bool
	}{
		{s.Tmp, 0o1777, false}, {s.Tmp + "/.X11-unix", 0o1777, false}, {s.Tmp + "/.ICE-unix", 0o1777, false},
		{s.Runtime, 0o700, true}, {s.Berth, 0o755, false}, {s.Home, 0o700, true},
		{s.etc, 0o755, false}, {dir + "/work", 0o755, false},
	} {
		if err := os.Mkdir(d.path, 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := syscall.Chmod(d.path, d.mode); err != nil {
			tb.Fatal(err)
		}
		if d.user {
			if err := os.Chown(d.path, UID, GID); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := xauth.WriteFile(s.Xauthority(), UID, GID, xauth.Wild(0, s.Cookie)); err != nil {
		tb.Fatal(err)
	}
	// dbus-daemon wants its user to have a name.
	for name, line := range map[string]string{"passwd": "user:x:%d:%d::%s:/bin/sh\n", "group": "user:x:%d:\n"} {
		b, err := os.ReadFile("/etc/" + name)
		if err != nil {
			tb.Fatal(err)
		}
		args := []any{UID, GID, s.Home}
		b = fmt.Appendf(b, line, args[:strings.Count(line, "%")]...)
		if err := os.WriteFile(filepath.Join(s.etc, name), b, 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	s.anchor = exec.Command("/bin/sh", "-c", setup, "sh", dir, strconv.Itoa(UID))
	s.anchor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC}
	s.anchor.Stderr = os.Stderr
	out, err := s.anchor.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.anchor.Start(); err != nil {
		tb.Skipf("namespaces cannot be made here: %v", err)
	}
	tb.Cleanup(func() {
		s.anchor.Process.Kill()
		s.anchor.Wait()
	})
	line := make([]byte, 6)
	if n, err := out.Read(line); err != nil || string(line[:n]) != "ready\n" {
		tb.Fatalf("namespaces: %q, %v", line[:n], err)
	}
	return s
}

// XSocket is display :0 as the host sees it.
func (s *Session) XSocket() string { return s.Tmp + "/.X11-unix/X0" }

// Xauthority is the cookie's file.
func (s *Session) Xauthority() string { return s.Berth + "/Xauthority" }

// RuntimeInside is XDG_RUNTIME_DIR for the programs.
func (s *Session) RuntimeInside() string { return "/run/user/" + strconv.Itoa(UID) }

// NetProc reads /proc/net/NAME of the session's network namespace.
func (s *Session) NetProc(name string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", s.anchor.Process.Pid, name))
	if err != nil {
		s.tb.Fatal(err)
	}
	return string(b)
}

// Expand does what a session does to a component's command, environment and files.
func (s *Session) Expand(text string) string {
	return strings.NewReplacer("${UID}", strconv.Itoa(UID), "${USER}", "user", "${HOME}", s.Home,
		"${RUNTIME_DIR}", s.RuntimeInside(), "${SESSION}", "test").Replace(text)
}

// Ready is a component's probes with their arguments expanded.
func (s *Session) Ready(c profiles.Component) []profiles.Probe {
	var out []profiles.Probe
	for _, p := range c.Ready {
		out = append(out, profiles.Probe{Kind: p.Kind, Arg: s.Expand(p.Arg)})
	}
	return out
}

// Overlay lays the files of a directory, such as assets/images/NAME/files/etc, over /etc.
func (s *Session) Overlay(dir string) {
	s.tb.Helper()
	if _, err := os.Stat(dir); err != nil {
		s.tb.Skip(err)
	}
	if err := os.CopyFS(s.etc, os.DirFS(dir)); err != nil {
		s.tb.Fatal(err)
	}
}

// Proc is a program that runs.
type Proc struct {
	Cmd  *exec.Cmd
	Done chan struct{} // closed when it has ended
	Err  error         // then: how

	mu  sync.Mutex
	log bytes.Buffer
}

// Start starts a component. It skips the test when its program is not installed.
func (s *Session) Start(c profiles.Component) *Proc {
	s.tb.Helper()
	program := c.Command[0]
	if tool, ok := strings.CutPrefix(program, "/run/berth/"); ok { // as the test's own build has it
		program = filepath.Join(s.Berth, tool)
	}
	if _, err := exec.LookPath(program); err != nil {
		s.tb.Skipf("%s is not installed", c.Command[0])
	}
	for path, text := range c.Files {
		rest, ok := strings.CutPrefix(s.Expand(path), "/etc/")
		if !ok {
			s.tb.Fatalf("component %q: file %q is not in /etc", c.Name, path)
		}
		path = filepath.Join(s.etc, rest)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.tb.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(s.Expand(text)), 0o644); err != nil {
			s.tb.Fatal(err)
		}
	}
	var args []string
	for _, a := range c.Command {
		args = append(args, s.Expand(a))
	}
	var env []string
	for k, v := range c.Env {
		env = append(env, k+"="+s.Expand(v))
	}
	return s.run(env, args)
}

// Run starts a command with the session's environment.
func (s *Session) Run(args ...string) *Proc { s.tb.Helper(); return s.run(nil, args) }

func (s *Session) run(env, args []string) *Proc {
	s.tb.Helper()
	nsenter := []string{"-t", strconv.Itoa(s.anchor.Process.Pid), "-m", "-n", "-i", "--wdns=/",
		"setpriv", "--reuid", strconv.Itoa(UID), "--regid", strconv.Itoa(GID), "--clear-groups", "--no-new-privs",
		"--inh-caps=-all", "--pdeathsig", "KILL", "--"} // a change of user clears it
	p := &Proc{Cmd: exec.Command("nsenter", append(nsenter, args...)...), Done: make(chan struct{})}
	p.Cmd.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "DISPLAY=:0", "XAUTHORITY=/run/berth/Xauthority",
		"XDG_RUNTIME_DIR=" + s.RuntimeInside(), "DBUS_SESSION_BUS_ADDRESS=unix:path=" + s.RuntimeInside() + "/bus",
		"PULSE_SERVER=unix:" + s.RuntimeInside() + "/pulse/native", "HOME=" + s.Home, "USER=user", "LOGNAME=user",
		"LANG=C.UTF-8", "NO_AT_BRIDGE=1", "XDG_SESSION_TYPE=x11"}, env...)
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.Cmd.Stdout, p.Cmd.Stderr = logWriter{p}, logWriter{p}
	p.Cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	if err := p.Cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	go func() {
		p.Err = p.Cmd.Wait()
		close(p.Done)
	}()
	s.tb.Cleanup(func() {
		p.Kill()
		if s.tb.Failed() {
			s.tb.Logf("output of %s:\n%s", args[0], p.Log())
		}
	})
	return p
}

// Kill kills the program and its children and waits for its end.
func (p *Proc) Kill() {
	syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
	<-p.Done
}

// Log is what the program has written so far.
func (p *Proc) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// CPU is the processor time that the program has used.
func (p *Proc) CPU() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // proc(5): utime and stime are fields 14 and 15
	var ticks int64
	for _, s := range f[11:13] {
		n, _ := strconv.ParseInt(s, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

type logWriter struct{ p *Proc }

func (w logWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.log.Write(b)
}
