package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"berth/orchestrator"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// execCount makes the identifiers of execs unique in this process; the time makes them so across restarts.
var execCount atomic.Uint64

// drain is how long output may still come after an exec has ended: a child that it left behind can hold the pipes open
// for ever.
const drain = 2 * time.Second

// A process that is killed leaves the pipes of the execs under way: each engine has a directory of its own for them, whose
// name tells of which process it is, by identifier and start (field 22 of proc_pid_stat(5)).

// fifoDirs numbers the engines of this process.
var fifoDirs atomic.Uint64

// makeFIFODir makes an engine's directory below parent and removes those of processes that live no more.
func makeFIFODir(parent string) (string, error) {
	old, err := os.ReadDir(parent)
	if err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("pipes: %w", err)
	}
	for _, d := range old {
		var pid int
		var start, n uint64
		if _, err := fmt.Sscanf(d.Name(), "%d-%d-%d", &pid, &start, &n); err == nil && processStart(pid) == start {
			continue
		}
		if err := os.RemoveAll(filepath.Join(parent, d.Name())); err != nil {
			return "", fmt.Errorf("pipes: %w", err)
		}
	}
	dir := filepath.Join(parent, fmt.Sprintf("%d-%d-%d", os.Getpid(), processStart(os.Getpid()), fifoDirs.Add(1)))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("pipes: %w", err)
	}
	return dir, nil
}

// removeFIFODir undoes makeFIFODir.
func removeFIFODir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("pipes: %w", err)
	}
	unix.Rmdir(filepath.Dir(dir)) // refused while another engine has its own there
	return nil
}

// processStart is when a process was started, in clock ticks since boot; 0 if there is none, or one that has ended and waits
// for its parent.
func processStart(pid int) uint64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is the program's name in parentheses, which may hold anything.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const start = 22 - 3
	if len(f) <= start || f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0
	}
	n, err := strconv.ParseUint(string(f[start]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Exec implements orchestrator.Engine.
func (e *Engine) Exec(ctx context.Context, pod, name string, spec orchestrator.ExecSpec) (int, error) {
	if len(spec.Command) == 0 {
		return 0, containerErr(pod, name, fmt.Errorf("exec: command: %w: empty", orchestrator.ErrInvalid))
	}
	id, err := lookupID(pod, name)
	if err != nil {
		return 0, containerErr(pod, name, err)
	}
	code, err := e.exec(e.withNamespace(ctx), id, spec)
	return code, containerErr(pod, name, cancelled(ctx, err))
}

func (e *Engine) exec(ctx context.Context, id string, spec orchestrator.ExecSpec) (code int, err error) {
	c, err := e.client.LoadContainer(ctx, id)
	if err != nil {
		return 0, err
	}
	info, err := c.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return 0, err
	}
	record, err := readRecord(info)
	if err != nil {
		return 0, err
	}
	task, err := c.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return 0, fmt.Errorf("%w: it does not run", orchestrator.ErrState)
	}
	if err != nil {
		return 0, err
	}
	state, err := e.task(ctx, id)
	if err != nil {
		return 0, err
	}
	if !e.runs(id, state) {
		return 0, fmt.Errorf("%w: it does not run", orchestrator.ErrState)
	}
	var oci specs.Spec
	if err := json.Unmarshal(info.Spec.GetValue(), &oci); err != nil {
		return 0, err
	}
	proc := execProcess(oci.Process, spec)
	if spec.TTY {
		// A size that is known already is the terminal's from the first: the program may ask before a resize arrives.
		select {
		case size, ok := <-spec.Resize:
			if ok {
				proc.ConsoleSize = &specs.Box{Width: uint(size.Cols), Height: uint(size.Rows)}
			}
		default:
		}
	}

	if spec.Stdin != nil || spec.Stdout != nil || spec.Stderr != nil {
		// The shim wants both outputs or no stream at all.
		spec.Stdout, spec.Stderr = orDiscard(spec.Stdout), orDiscard(spec.Stderr)
	}
	var input *endNotifier
	if spec.Stdin != nil && !spec.TTY { // the shim would hang the terminal up
		input = &endNotifier{r: spec.Stdin, end: make(chan struct{})}
		spec.Stdin = input
	}
	opts := []cio.Opt{cio.WithStreams(spec.Stdin, spec.Stdout, spec.Stderr), cio.WithFIFODir(e.fifos)}
	if spec.TTY {
		opts = append(opts, cio.WithTerminal)
	}
	execID := "x" + strconv.FormatInt(time.Now().UnixNano(), 36) + "-" + strconv.FormatUint(execCount.Add(1), 36)
	p, err := task.Exec(ctx, execID, proc, cio.NewCreator(opts...))
	if err != nil {
		return 0, err
	}
	// What is done to the process from here on is done even if the caller gives up.
	bg := context.WithoutCancel(ctx)
	defer func() {
		if _, derr := p.Delete(bg, containerd.WithProcessKill); derr != nil && !errdefs.IsNotFound(derr) {
			err = errors.Join(err, fmt.Errorf("exec %q: %w", spec.Command[0], derr))
		}
	}()
	exit, err := p.Wait(bg)
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	// A start that is interrupted can leave a process that the shim does not know of.
	if err := p.Start(bg); err != nil {
		return 0, commandErr(err, spec.Command[0], record.Image)
	}
	var inputEnd chan struct{}
	if input != nil {
		inputEnd = input.end
	}
	resize := spec.Resize
	for {
		select {
		case st := <-exit:
			n, _, err := st.Result()
			if err != nil {
				return 0, err
			}
			waitIO(p.IO())
			return int(n), nil
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			if err := p.Resize(bg, uint32(size.Cols), uint32(size.Rows)); err != nil && !errdefs.IsNotFound(err) {
				e.log.Debug("resize a terminal", "error", err)
			}
		case <-inputEnd:
			inputEnd = nil
			// The shim holds the pipe open for whoever comes next, until it is told that nobody will.
			if err := p.CloseIO(bg, containerd.WithStdinCloser); err != nil && !errdefs.IsNotFound(err) {
				e.log.Debug("close the input of an exec", "error", err)
			}
		case <-ctx.Done():
			if err := p.Kill(bg, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
				return 0, err
			}
			<-exit
			return 0, ctx.Err()
		}
	}
}

// endNotifier closes end when the reader has ended.
type endNotifier struct {
	r    io.Reader
	end  chan struct{}
	once sync.Once
}

func (n *endNotifier) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil {
		n.once.Do(func() { close(n.end) })
	}
	return k, err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func waitIO(streams cio.IO) {
	done := make(chan struct{})
	go func() { streams.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drain):
	}
}

// execProcess is the container's own process with what spec changes.
func execProcess(base *specs.Process, spec orchestrator.ExecSpec) *specs.Process {
	p := *base
	p.Args = spec.Command
	p.Terminal = spec.TTY
	p.Env = mergeEnv(base.Env, spec.Env)
	if spec.TTY {
		p.Env = mergeEnv([]string{"TERM=xterm"}, p.Env)
	}
	if spec.Cwd != "" {
		p.Cwd = spec.Cwd
	}
	if spec.UID != nil {
		p.User.UID = uint32(*spec.UID)
		if *spec.UID != int(base.User.UID) {
			p.User.AdditionalGids = nil
		}
	}
	if spec.GID != nil {
		p.User.GID = uint32(*spec.GID)
	}
	return &p
}
