package private

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxLog is the size in bytes at which a program's log is moved aside.
const maxLog = 16 << 20

// program is something to run: all that is known of it before it runs.
type program struct {
	name   string // for messages
	exe    string
	config string // path of the configuration file, unique to the instance, by which a running one is recognised
	log    string
	path   string // put in front of PATH
	socket string
	// probe returns nil when the server behind conn answers.
	probe func(ctx context.Context, socket string, pid int) error
}

func (p *program) args() []string { return []string{p.exe, "--config", p.config} }

// process is a running program: a child, or one adopted from a daemon that was killed. Both are held by a pidfd, so a
// recycled PID is never signalled.
type process struct {
	program *program
	pid     int
	adopted bool
	started time.Time     // or adopted
	logFrom int64         // size of the log then
	exited  chan struct{} // closed when it has ended
	how     string        // how it ended; set before exited is closed

	mu sync.Mutex
	fd int // pidfd, -1 when it has ended; guarded by mu
}

// ended records the end of the process.
func (x *process) ended(how string) {
	x.mu.Lock()
	unix.Close(x.fd)
	x.fd = -1
	x.mu.Unlock()
	x.how = how
	close(x.exited)
}

// start runs the program.
func (p *program) start() (*process, error) {
	if _, err := os.Stat(p.exe); err != nil {
		return nil, fmt.Errorf("program %q: %w; build it with `make engine`, or set BERTH_LIBEXEC to where it is", p.exe, err)
	}
	if err := trimLog(p.log); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", p.name, err)
	}
	defer log.Close()
	size, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", p.name, err)
	}
	fd := -1
	cmd := &exec.Cmd{
		Path:   p.exe,
		Args:   p.args(),
		Env:    environ(os.Environ(), p.path),
		Dir:    "/",
		Stdout: log,
		Stderr: log,
		// A session of its own: neither Ctrl-C nor the end of the daemon's terminal reaches it.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, PidFD: &fd},
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("program %q: %w", p.exe, err)
	}
	if fd < 0 {
		err := errors.New("the kernel gives no pidfd; Linux 5.4 or newer is needed")
		return nil, errors.Join(fmt.Errorf("program %q: %w", p.exe, err), cmd.Process.Kill(), cmd.Wait())
	}
	proc := &process{program: p, pid: cmd.Process.Pid, fd: fd, started: time.Now(), logFrom: size, exited: make(chan struct{})}
	go func() {
		how := "exit status 0"
		if err := cmd.Wait(); err != nil {
			how = err.Error()
		}
		proc.ended(how)
	}()
	return proc, nil
}

// environ is the environment for a program: the daemon's, less what addresses the daemon alone, with dir first in PATH.
func environ(env []string, dir string) []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	var out []string
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		switch {
		case k == "PATH" && v != "":
			path = v
		case k == "PATH", k == "NOTIFY_SOCKET", strings.HasPrefix(k, "LISTEN_"), strings.HasPrefix(k, "BUILDKIT"):
		default:
			out = append(out, kv)
		}
	}
	return append(out, "PATH="+dir+":"+path)
}

// find returns the instances of p that run already, started by a daemon that is no more.
func (p *program) find() ([]*process, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", p.name, err)
	}
	var found []*process
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || !p.isRunningAs(pid) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("process %d of %s: %w", pid, p.name, err)
		}
		// From here on the PID cannot change its meaning unnoticed; look once more.
		if !p.isRunningAs(pid) {
			unix.Close(fd)
			continue
		}
		proc := &process{program: p, pid: pid, fd: fd, adopted: true, started: time.Now(), exited: make(chan struct{})}
		if st, err := os.Stat(p.log); err == nil {
			proc.logFrom = st.Size()
		}
		go proc.watch(fd)
		found = append(found, proc)
	}
	return found, nil
}

// isRunningAs tells whether pid runs p with our configuration file, as our user and in our PID namespace (an instance
// of Berth in a container has the same paths). A process that is gone or hidden does not.
func (p *program) isRunningAs(pid int) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	if len(args) != 3 || filepath.Base(args[0]) != filepath.Base(p.exe) || args[1] != "--config" || args[2] != p.config {
		return false
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || int(st.Uid) != os.Geteuid() {
		return false
	}
	theirs, err1 := os.Readlink(filepath.Join(dir, "ns/pid"))
	ours, err2 := os.Readlink("/proc/self/ns/pid")
	return err1 == nil && err2 == nil && theirs == ours
}

// alive tells whether the process has not ended yet.
func (x *process) alive() bool {
	select {
	case <-x.exited:
		return false
	default:
		return true
	}
}

// current tells whether the process runs the very executable that start would run; after an upgrade it does not.
func (x *process) current() bool {
	want, err := os.Stat(x.program.exe)
	if err != nil {
		return false
	}
	have, err := os.Stat(filepath.Join("/proc", strconv.Itoa(x.pid), "exe"))
	return err == nil && os.SameFile(want, have)
}

// watch closes exited when the process, which is no child of ours, has ended. A pidfd is readable then (pidfd_open(2)).
func (x *process) watch(fd int) {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		x.ended("exit status unknown (an earlier daemon had started it)")
		return
	}
}

// answers waits until the process answers on its socket. It fails when the process ends or ctx does.
func (x *process) answers(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := errors.New("ended")
	go func() {
		select {
		case <-x.exited:
			cancel(ended)
		case <-ctx.Done():
		}
	}()
	err := x.program.probe(ctx, x.program.socket, x.pid)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), ended):
		return fmt.Errorf("%s: %s before it answered%s", x.program.name, x.how, x.tail())
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) { // gRPC has statuses for it
		err = fmt.Errorf("%w (%v)", cause, err)
	}
	return fmt.Errorf("%s: does not answer on %q: %w%s", x.program.name, x.program.socket, err, x.tail())
}

// signal sends a signal; to a process that has ended it does nothing.
func (x *process) signal(sig unix.Signal) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fd < 0 {
		return nil
	}
	if err := unix.PidfdSendSignal(x.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d of %s: %w", x.pid, x.program.name, err)
	}
	return nil
}

// stop ends the process with SIGTERM and, if it has not ended after grace or when ctx ends, with SIGKILL. It returns
// when the process has ended.
func (x *process) stop(ctx context.Context, grace time.Duration) error {
	if err := x.signal(unix.SIGTERM); err != nil {
		return err
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-x.exited:
	case <-t.C:
	case <-ctx.Done():
	}
	if err := x.signal(unix.SIGKILL); err != nil {
		return err
	}
	<-x.exited
	return nil
}

// tail is the end of what the process has logged, to be put behind an error, or "".
func (x *process) tail() string {
	const lines = 6
	f, err := os.Open(x.program.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(x.logFrom, st.Size()-8192)
	if from > st.Size() { // trimmed since
		from = 0
	}
	b, err := io.ReadAll(io.NewSectionReader(f, from, st.Size()-from))
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return "; it logged nothing to " + x.program.log
	}
	all := strings.Split(string(b), "\n")
	return fmt.Sprintf("; the end of %s:\n\t%s", x.program.log, strings.Join(all[max(0, len(all)-lines):], "\n\t"))
}

// trimLog copies a log that has grown too big to NAME.1 and empties it. Copying and not renaming: the program keeps
// its file open for appending, and it must go on when the daemon, at the other end of a pipe, would be gone.
func trimLog(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("log %q: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() < maxLog {
		return err
	}
	old, err := os.OpenFile(path+".1", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("log %q: %w", path, err)
	}
	_, err = io.Copy(old, f)
	if err = errors.Join(err, old.Close()); err != nil {
		return fmt.Errorf("log %q: %w", path, err)
	}
	return f.Truncate(0)
}
