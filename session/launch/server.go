package launch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ServerOptions of Serve. Socket is required.
type ServerOptions struct {
	Socket string
	// Idle is how long the server goes on without a program and without a client; 0 means for ever.
	Idle time.Duration
	Log  io.Writer // may be nil
}

// server runs programs. mu guards what follows it.
type server struct {
	opt      ServerOptions
	listener *net.UnixListener
	wake     chan struct{} // something has ended

	mu       sync.Mutex
	clients  int
	closed   bool
	children map[int]chan int // process -> its exit code, of those that this server started
}

// Serve runs programs for clients until ctx ends, when it ends them, or nothing has been asked of it for opt.Idle and none
// of them and of their descendants is left; both are a nil error. It makes the calling process the reaper of all these
// (PR_SET_CHILD_SUBREAPER, prctl(2)), so it must be the only thing in its process that has children.
func Serve(ctx context.Context, opt ServerOptions) error {
	if opt.Log == nil {
		opt.Log = io.Discard
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of programs: %w", err)
	}
	s := &server{opt: opt, wake: make(chan struct{}, 1), children: map[int]chan int{}}
	if err := os.MkdirAll(filepath.Dir(opt.Socket), 0o700); err != nil {
		return fmt.Errorf("launch socket: %w", err)
	}
	// One that is left over is nobody's: a component runs once.
	if err := os.Remove(opt.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("launch socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: opt.Socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("launch socket: %w", err)
	}
	s.listener = l
	defer l.Close() // removes the socket
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	defer signal.Stop(chld)
	accepted := make(chan error, 1)
	go func() { accepted <- s.accept() }()
	idle := time.NewTimer(time.Hour)
	defer idle.Stop()
	for {
		s.reap()
		idle.Stop()
		if opt.Idle > 0 && s.resting() {
			idle.Reset(opt.Idle)
		}
		select {
		case <-chld:
		case <-s.wake:
		case <-idle.C:
			if s.retire() {
				return nil
			}
		case err := <-accepted: // not by retire, which returns first
			return fmt.Errorf("launch socket: %w", err)
		case <-ctx.Done():
			l.Close()
			return s.endAll(chld)
		}
	}
}

func (s *server) accept() error {
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			return err
		}
		s.mu.Lock()
		late := s.closed
		if !late {
			s.clients++
		}
		s.mu.Unlock()
		if late { // it tries again, and asks the daemon
			c.Close()
			continue
		}
		go func() {
			defer func() {
				c.Close()
				s.mu.Lock()
				s.clients--
				s.mu.Unlock()
				s.notice()
			}()
			if err := s.client(c); err != nil {
				fmt.Fprintln(s.opt.Log, "berth-launch:", err)
			}
		}()
	}
}

func (s *server) notice() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// resting tells whether nobody is served and no descendant lives.
func (s *server) resting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients == 0 && !hasChildren()
}

// hasChildren asks without reaping.
func hasChildren() bool {
	err := waitid(unix.WNOHANG | unix.WNOWAIT | unix.WEXITED)
	return !errors.Is(err, unix.ECHILD)
}

func waitid(options int) error {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, options, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// retire closes the listener unless there is something to do. A client that came too late for it has had no answer when its
// connection ends, tries again, finds nobody, and asks the daemon, which waits for this process's end.
func (s *server) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients > 0 || hasChildren() {
		return false
	}
	s.closed = true
	s.listener.Close()
	return true
}

// reap collects everything that has ended, descendants that were orphaned included.
func (s *server) reap() {
	s.mu.Lock() // a child is in the map before its end can be seen here
	defer s.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if ch, ok := s.children[pid]; ok {
			delete(s.children, pid)
			ch <- exitCode(status)
		}
	}
}

// exitCode counts as a shell does.
func exitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// endAll asks every program to end and returns when none is left. Who waits for this process decides how long that may take.
func (s *server) endAll(chld <-chan os.Signal) error {
	for asked := map[int]bool{}; ; {
		s.reap()
		if !hasChildren() {
			return nil
		}
		pids, err := childPIDs()
		if err != nil {
			return err
		}
		for _, pid := range pids { // orphans of those that end become children in turn
			if !asked[pid] {
				asked[pid] = true
				if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("end of program %d: %w", pid, err)
				}
			}
		}
		<-chld
	}
}

// childPIDs lists this process's children (proc(5), /proc/PID/task/TID/children).
func childPIDs() ([]int, error) {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, t := range tasks {
		data, err := os.ReadFile(t)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		for f := range strings.FieldsSeq(string(data)) {
			var pid int
			if _, err := fmt.Sscan(f, &pid); err != nil {
				return nil, fmt.Errorf("%s: %w", t, err)
			}
			out = append(out, pid)
		}
	}
	return out, nil
}

// client serves one connection.
func (s *server) client(c *net.UnixConn) error {
	if err := samePeer(c); err != nil {
		return err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	r := bufio.NewReader(&rightsReader{conn: c, files: &files})
	var req request
	if err := readLine(r, &req); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // a probe
		}
		return writeLine(c, reply{Error: err.Error()})
	}
	if req.Wait && len(files) != 3 {
		return writeLine(c, reply{Error: fmt.Sprintf("%d descriptors came with the request, want 3", len(files))})
	}
	pid, done, err := s.start(req, files)
	if err != nil {
		code := 126
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			code = 127
		}
		return writeLine(c, reply{Error: err.Error(), Exit: &code})
	}
	for _, f := range files {
		f.Close() // the program has its own
	}
	files = nil
	if err := writeLine(c, reply{PID: pid}); err != nil || !req.Wait {
		return err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var l later
			if err := readLine(r, &l); err != nil {
				return
			}
			// Its children hear of it as those of a foreground job would.
			if l.Signal > 0 && l.Signal < 65 {
				unix.Kill(-pid, syscall.Signal(l.Signal)) // one that has ended needs no signal
			}
		}
	}()
	select {
	case code := <-done:
		return writeLine(c, reply{Exit: &code})
	case <-gone: // as a terminal that was closed
		unix.Kill(-pid, unix.SIGHUP)
		return nil
	}
}

// start starts a program in a session and process group of its own.
func (s *server) start(req request, files []*os.File) (pid int, done <-chan int, err error) {
	if len(req.Args) == 0 || req.Args[0] == "" {
		return 0, nil, errors.New("no program named")
	}
	path, err := exec.LookPath(req.Args[0])
	if err != nil {
		return 0, nil, err
	}
	dir := req.Dir
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() { // one of the caller's own root file system
		dir = os.Getenv("HOME")
	}
	if len(files) == 0 {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return 0, nil, err
		}
		defer null.Close()
		files = []*os.File{null, os.Stdout, os.Stderr}
	}
	ch := make(chan int, 1)
	s.mu.Lock() // reap waits until the child is in the map
	defer s.mu.Unlock()
	old := unix.Umask(req.Umask & 0o777)
	p, err := os.StartProcess(path, req.Args, &os.ProcAttr{Dir: dir, Env: environment(os.Environ(), req.Env), Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true}})
	unix.Umask(old)
	if err != nil {
		return 0, nil, err
	}
	s.children[p.Pid] = ch
	pid = p.Pid
	return pid, ch, p.Release()
}

// samePeer refuses whoever is neither this process's own user nor root.
func samePeer(c *net.UnixConn) error {
	cred, err := peer(c)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Getuid() && cred.Uid != 0 { // root is the daemon, which looks whether anybody is there
		return fmt.Errorf("a client with uid %d was turned away", cred.Uid)
	}
	return nil
}

func peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	return cred, err
}

// rightsReader reads a connection and keeps the descriptors that come with the bytes.
type rightsReader struct {
	conn  *net.UnixConn
	files *[]*os.File
}

func (r *rightsReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := r.conn.ReadMsgUnix(p, oob)
	if oobn > 0 {
		msgs, perr := unix.ParseSocketControlMessage(oob[:oobn])
		if perr != nil {
			return n, perr
		}
		for _, m := range msgs {
			fds, perr := unix.ParseUnixRights(&m)
			if perr != nil {
				return n, perr
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				*r.files = append(*r.files, os.NewFile(uintptr(fd), "client"))
			}
		}
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// readLine reads one JSON document of at most maxMessage.
func readLine(r *bufio.Reader, v any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxMessage {
			return fmt.Errorf("message is longer than %d bytes", maxMessage)
		}
		switch {
		case err == nil:
			return json.Unmarshal(line, v)
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
}

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
