package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/session/api"
	"berth/session/api/client"
)

func (c *CLI) daemonCommand() *cobra.Command {
	var debug bool
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon in the foreground",
		Long: "Run the daemon that keeps sessions, with its containerd and buildkitd, until interrupted. Sessions outlive it:\n" +
			"the next daemon adopts them. `berth up` starts one in the background when none runs.",
		Example: "  berth daemon\n  berth --root /srv/berth daemon --debug",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := c.layout()
			if err != nil {
				return usageError{err}
			}
			if c.Getuid() != 0 {
				return api.WithHint(fmt.Errorf("daemon: %w: containers need root", api.ErrForbidden), "run it as root: sudo berth daemon")
			}
			if c.Daemon == nil {
				return fmt.Errorf("daemon: %w: this program was built without it", orchestrator.ErrUnavailable)
			}
			err = c.Daemon(cmd.Context(), DaemonOptions{Layout: l, Version: Version, Debug: debug, Log: c.Stderr})
			if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
				return nil // an interrupt is how it ends
			}
			return err
		},
	}
	runE := cmd.RunE
	cmd = group(cmd)
	asGroup := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return asGroup(cmd, args)
		}
		return runE(cmd, args)
	}
	cmd.Flags().BoolVar(&debug, "debug", false, "log more")
	cmd.AddCommand(&cobra.Command{
		Use:               "stop",
		Short:             "Stop the daemon and wait until it is gone",
		Long:              "Stop the daemon and wait until it is gone. Sessions go on running.",
		Example:           "  berth daemon stop",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.stopDaemon(cmd.Context()) },
	})
	return cmd
}

func (c *CLI) stopDaemon(ctx context.Context) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	info, err := cl.Info(ctx)
	if err != nil {
		return err
	}
	// The descriptor is taken first, so that it cannot be another process's by the time of waiting.
	fd, err := unix.PidfdOpen(info.PID, 0)
	if err != nil {
		return fmt.Errorf("daemon: process %d: %w", info.PID, err)
	}
	defer unix.Close(fd)
	if err := cl.Shutdown(ctx); err != nil {
		return err
	}
	p := c.startProgress("stopping the daemon")
	defer p.close()
	for {
		// Short waits, so that an interrupt is seen.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("daemon: process %d: %w", info.PID, err)
		case ctx.Err() != nil:
			return fmt.Errorf("daemon: still ending: %w", ctx.Err())
		}
	}
}

// daemonPatience bounds how long a daemon may take to answer, in which it may have many sessions to adopt.
const daemonPatience = 2 * time.Minute

// ensureDaemon returns when a daemon answers; root starts one if there is none. Of several that try at once, one starts
// it and the others wait.
func (c *CLI) ensureDaemon(ctx context.Context) error {
	l, err := c.layout()
	if err != nil {
		return usageError{err}
	}
	err = ping(l.APISocket())
	if !errors.Is(err, client.ErrNoDaemon) {
		return err
	}
	if c.Getuid() != 0 {
		return err
	}
	if err := os.MkdirAll(l.Run, 0o755); err != nil {
		return fmt.Errorf("directory %q: %w", l.Run, err)
	}
	unlock, err := lockFile(ctx, filepath.Join(l.Run, "start.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := ping(l.APISocket()); !errors.Is(err, client.ErrNoDaemon) {
		return err
	}
	return c.startDaemon(ctx, l)
}

// ping connects once. A daemon that accepts answers.
func ping(socket string) error {
	conn, err := net.Dial("unix", socket)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("socket %q: %w", socket, client.ErrNoDaemon)
	case errors.Is(err, fs.ErrPermission):
		// The client's words for it are better.
		return nil
	}
	return fmt.Errorf("socket %q: %w", socket, err)
}

// lockFile takes an exclusive lock that ends with the process.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	got := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if err != unix.EINTR {
				got <- err
				return
			}
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %q: %w", path, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-got; f.Close() }()
		return nil, ctx.Err()
	}
}

// startDaemon starts this program as the daemon, in a session of its own, and waits until it answers.
func (c *CLI) startDaemon(ctx context.Context, l paths.Layout) error {
	exe := c.Executable
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return fmt.Errorf("daemon: own program: %w", err)
		}
	}
	if err := os.MkdirAll(l.State, 0o711); err != nil {
		return fmt.Errorf("directory %q: %w", l.State, err)
	}
	logPath := filepath.Join(l.State, "daemon.log")
	if info, err := os.Stat(logPath); err == nil && info.Size() > maxLog {
		if err := os.Rename(logPath, logPath+".1"); err != nil {
			return fmt.Errorf("daemon: log: %w", err)
		}
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("daemon: log: %w", err)
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("daemon: log: %w", err)
	}
	// The watch is set up before the start, so that the socket cannot appear unseen.
	watch, err := watchDir(l.Run)
	if err != nil {
		return fmt.Errorf("directory %q: %w", l.Run, err)
	}
	defer watch.Close()

	args := []string{"daemon"}
	if l.Root != "" {
		args = []string{"--root", l.Root, "daemon"}
	}
	cmd := exec.Command(exe, args...)
	cmd.Dir, cmd.Env = "/", c.Env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	p := c.startProgress("starting the daemon")
	defer p.close()
	deadline := time.NewTimer(daemonPatience)
	defer deadline.Stop()
	for {
		if err := ping(l.APISocket()); err == nil {
			return nil
		} else if !errors.Is(err, client.ErrNoDaemon) {
			return err
		}
		select {
		case <-watch.changed:
		case err := <-exited:
			return api.WithHint(fmt.Errorf("daemon: ended while starting: %w%s", orExit(err), tailOf(logPath, before)), "its log is "+logPath)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), endProcess(cmd, exited))
		case <-deadline.C:
			return api.WithHint(fmt.Errorf("daemon: does not answer after %s%s", daemonPatience, tailOf(logPath, before)),
				fmt.Sprintf("it still runs as process %d; its log is %s", cmd.Process.Pid, logPath))
		}
	}
}

// maxLog is the size in bytes at which the log is put aside before a start.
const maxLog = 16 << 20

func orExit(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// endProcess asks a process to end and waits for it.
func endProcess(cmd *exec.Cmd, exited <-chan error) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("daemon: %w", err)
	}
	<-exited
	return nil
}

// tailOf is the last lines of a log from an offset on, each on a line of its own, for an error message.
func tailOf(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 8 << 10
	if info, err := f.Stat(); err == nil && info.Size()-from > most {
		from = info.Size() - most
	}
	text, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(bytes.TrimSpace(text)), "\n")
	if len(lines) > 10 {
		lines = lines[len(lines)-10:]
	}
	if out := strings.Join(lines, "\n  "); out != "" {
		return "\n  " + out
	}
	return ""
}

// dirWatch reports that names in a directory have changed (inotify(7)).
type dirWatch struct {
	f       *os.File
	changed chan struct{}
}

func watchDir(dir string) (*dirWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &dirWatch{f: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1)}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ATTRIB); err != nil {
		w.f.Close()
		return nil, fmt.Errorf("inotify: %w", err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := w.f.Read(buf); err != nil {
				return // closed
			}
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}()
	return w, nil
}

func (w *dirWatch) Close() { w.f.Close() }
