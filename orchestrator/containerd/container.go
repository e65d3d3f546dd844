package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/internal/revert"
	"berth/orchestrator"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

type mountProto = types.Mount

// parallel bounds the requests that one operation has under way.
const parallel = 16

// extContainer is the key of the extension with a containerRecord in JSON.
const extContainer = "berth.container"

// containerRecord is what is stored of a ContainerSpec beside the OCI specification made from it.
type containerRecord struct {
	Image      string `json:"image"`
	Digest     string `json:"digest"`
	Chain      string `json:"chain"` // parent of the writable layer
	Command    string `json:"command"`
	StopSignal int    `json:"stop_signal,omitempty"`
}

// CreateContainer implements orchestrator.Engine.
func (e *Engine) CreateContainer(ctx context.Context, pod string, spec orchestrator.ContainerSpec) error {
	if err := checkContainer(pod, spec); err != nil {
		return err
	}
	unlock, err := e.locks.container(ctx, pod, spec.Name)
	if err != nil {
		return containerErr(pod, spec.Name, err)
	}
	defer unlock()
	return containerErr(pod, spec.Name, cancelled(ctx, e.createContainer(ctx, pod, spec)))
}

func checkContainer(pod string, spec orchestrator.ContainerSpec) error {
	if err := checkName("pod", pod); err != nil {
		return err
	}
	if err := checkName("container", spec.Name); err != nil {
		return fmt.Errorf("pod %q: %w", pod, err)
	}
	if n := len(containerID(pod, spec.Name)); n > maxID {
		return containerErr(pod, spec.Name, fmt.Errorf("%w: both names together have %d characters, at most %d work", orchestrator.ErrInvalid, n-1, maxID-1))
	}
	for _, m := range spec.Mounts {
		if !path.IsAbs(m.Target) || !filepath.IsAbs(m.Source) {
			return containerErr(pod, spec.Name, fmt.Errorf("mount %q on %q: %w: both must be absolute paths", m.Source, m.Target, orchestrator.ErrInvalid))
		}
		if !exists(m.Source) {
			return containerErr(pod, spec.Name, fmt.Errorf("mount %q: %w on this host", m.Source, orchestrator.ErrNotFound))
		}
	}
	for _, s := range spec.Command {
		if strings.ContainsRune(s, 0) {
			return containerErr(pod, spec.Name, fmt.Errorf("command: %w: NUL in %q", orchestrator.ErrInvalid, s))
		}
	}
	for _, s := range spec.Env {
		if k, _, ok := strings.Cut(s, "="); !ok || k == "" || strings.ContainsRune(s, 0) {
			return containerErr(pod, spec.Name, fmt.Errorf("environment %q: %w: want NAME=VALUE", s, orchestrator.ErrInvalid))
		}
	}
	return nil
}

func (e *Engine) createContainer(caller context.Context, pod string, spec orchestrator.ContainerSpec) (err error) {
	if err := caller.Err(); err != nil {
		return err
	}
	ctx, cancel := e.detached(caller)
	defer cancel()
	ns, err := e.namespaces(ctx, pod)
	if err != nil {
		return err
	}
	img, err := e.rootImage(ctx, spec.Image)
	if err != nil {
		return err
	}
	id := containerID(pod, spec.Name)
	oci, err := containerSpec(spec, img.config, ns, e.containerCgroup(id), e.cgroups.unified)
	if err != nil {
		return err
	}
	record := containerRecord{
		Image: spec.Image, Digest: img.digest.String(), Chain: img.chain, Command: oci.Process.Args[0], StopSignal: spec.StopSignal,
	}
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	var undo revert.Stack
	defer func() {
		if uerr := undo.Run(ctx); uerr != nil {
			err = errors.Join(err, uerr)
		}
	}()
	// The record first: it keeps the snapshot from containerd's garbage collector, and a creation killed half-way is found by it.
	labels := maps.Clone(spec.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[labelLayer+e.snapshotter] = img.chain
	err = e.createRecord(ctx, pod, spec.Name, oci, containers.Container{
		Labels:      labels,
		Image:       spec.Image,
		Snapshotter: e.snapshotter,
		SnapshotKey: id,
		SandboxID:   pod,
		Extensions:  map[string]typeurl.Any{extContainer: extension(extContainer, value)},
	})
	if err != nil {
		return err
	}
	undo.Add("create container", func(ctx context.Context) error {
		e.removeFiles(pod, spec.Name)
		return e.removeContainer(ctx, id, e.snapshotter, id)
	})
	if err := caller.Err(); err != nil {
		return err
	}
	if err := e.prepare(ctx, pod, spec.Name, record); err != nil {
		return err
	}
	if err := caller.Err(); err != nil {
		return err
	}
	undo.Disarm()
	return nil
}

// prepare makes a fresh writable layer and lets the runtime set everything up.
func (e *Engine) prepare(ctx context.Context, pod, name string, record containerRecord) error {
	id := containerID(pod, name)
	snapshots := e.client.SnapshotService(e.snapshotter)
	mounts, err := snapshots.Prepare(ctx, id, record.Chain)
	if errdefs.IsNotFound(err) {
		if err := unpack(ctx, e.client, e.snapshotter, record.Image); err != nil {
			return err
		}
		mounts, err = snapshots.Prepare(ctx, id, record.Chain)
	}
	if errdefs.IsAlreadyExists(err) {
		// Left over by a creation that was killed.
		if err := snapshots.Remove(ctx, id); err != nil {
			return fmt.Errorf("snapshot %q: %w", id, err)
		}
		mounts, err = snapshots.Prepare(ctx, id, record.Chain)
	}
	if err != nil {
		return fmt.Errorf("snapshot %q of image %q: %w", id, record.Image, err)
	}
	e.throwaway(mounts)
	pid, err := e.createTask(ctx, id, mount.ToProto(mounts), e.logFile(pod, name))
	if err != nil {
		return commandErr(err, record.Command, record.Image)
	}
	e.created.add(id, pid)
	return nil
}

// throwaway tells an overlay that its upper layer need not survive a crash of the host: it never does, because a container
// always starts with a fresh one. Unmounting then writes nothing back (Documentation/filesystems/overlayfs, "Volatile mount").
func (e *Engine) throwaway(mounts []mount.Mount) {
	if !e.volatile {
		return
	}
	for i := range mounts {
		if mounts[i].Type == "overlay" {
			mounts[i].Options = append(mounts[i].Options, "volatile")
		}
	}
}

// namespaces returns what containers of the pod join. A pod whose anchor does not run is ErrState.
func (e *Engine) namespaces(ctx context.Context, pod string) (podNamespaces, error) {
	if v, ok := e.pods.Load(pod); ok {
		ns := v.(podNamespaces)
		if alive, err := e.cgroups.contains(e.containerCgroup(pod), ns.anchor); err == nil && alive {
			return ns, nil
		}
	}
	sb, err := e.client.SandboxStore().Get(ctx, pod)
	if err != nil {
		return podNamespaces{}, err
	}
	var rec podRecord
	if x := sb.Extensions[extSpec]; x != nil {
		if err := json.Unmarshal(x.GetValue(), &rec); err != nil {
			return podNamespaces{}, err
		}
	}
	t, err := e.task(ctx, pod)
	if err != nil {
		return podNamespaces{}, err
	}
	if !e.runs(pod, t) {
		return podNamespaces{}, fmt.Errorf("%w: its anchor does not run; remove the pod and create it anew", orchestrator.ErrState)
	}
	ns := podNamespaces{anchor: int(t.Pid), net: rec.Network != orchestrator.NetworkHost}
	e.pods.Store(pod, ns)
	return ns, nil
}

// StartContainer implements orchestrator.Engine.
func (e *Engine) StartContainer(ctx context.Context, pod, name string) (int, error) {
	unlock, err := e.locks.container(ctx, pod, name)
	if err != nil {
		return 0, containerErr(pod, name, err)
	}
	defer unlock()
	if err := ctx.Err(); err != nil {
		return 0, containerErr(pod, name, err)
	}
	dctx, cancel := e.detached(ctx)
	defer cancel()
	pid, err := e.startContainer(dctx, pod, name)
	return pid, containerErr(pod, name, err)
}

func (e *Engine) startContainer(ctx context.Context, pod, name string) (int, error) {
	id, err := lookupID(pod, name)
	if err != nil {
		return 0, err
	}
	// The usual case, a created container, asks nobody; only if it fails is there something to find out.
	if pid, ok := e.created.take(id); ok {
		err := e.startWaiting(ctx, id, pid)
		if err == nil {
			return pid, nil
		}
		e.log.Debug("start of a created container", "container", id, "error", err)
	}
	c, err := e.client.ContainerService().Get(ctx, id)
	if err != nil {
		return 0, err
	}
	record, err := readRecord(c)
	if err != nil {
		return 0, err
	}
	t, err := e.task(ctx, id)
	if err != nil {
		return 0, err
	}
	switch {
	case e.runs(id, t):
		return 0, fmt.Errorf("%w: it runs", orchestrator.ErrState)
	case t != nil && t.Status == tasktypes.Status_CREATED:
		e.created.add(id, int(t.Pid))
	default:
		// Exited, or the host has been restarted: set up anew. A pod without its anchor cannot be joined.
		if _, err := e.namespaces(ctx, pod); err != nil {
			return 0, err
		}
		if err := e.deleteTask(ctx, id); err != nil {
			return 0, err
		}
		e.unmarkStarted(id)
		if err := e.client.SnapshotService(c.Snapshotter).Remove(ctx, c.SnapshotKey); err != nil && !errdefs.IsNotFound(err) {
			return 0, fmt.Errorf("snapshot %q: %w", c.SnapshotKey, err)
		}
		if err := e.prepare(ctx, pod, name, record); err != nil {
			return 0, err
		}
	}
	pid, _ := e.created.take(id)
	if err := e.startWaiting(ctx, id, pid); err != nil {
		return 0, commandErr(err, record.Command, record.Image)
	}
	return pid, nil
}

// startWaiting starts the program of a created task.
func (e *Engine) startWaiting(ctx context.Context, id string, pid int) error {
	// All that is to know of the start is known before the program runs: its exit may come at any moment after.
	if err := e.markStarted(id); err != nil {
		return err
	}
	e.watch.started(id, pid, time.Now())
	err := e.release(id, pid)
	if errors.Is(err, errNotReleased) {
		err = e.startTask(ctx, id)
	}
	if err != nil {
		e.watch.forget(id, pid)
		e.unmarkStarted(id)
	}
	return err
}

// runs tells whether a container's program runs: the shim calls a task that was released, and not started through it, created.
func (e *Engine) runs(id string, t *tasktypes.Process) bool {
	if t == nil || t.Status == tasktypes.Status_STOPPED {
		return false
	}
	if t.Status == tasktypes.Status_CREATED {
		_, started := e.startedAt(id)
		return started
	}
	return true
}

// pidTable holds process IDs by containerd identifier.
type pidTable struct{ m sync.Map }

func (s *pidTable) add(id string, pid int) { s.m.Store(id, pid) }

// take removes id and tells whether it was there.
func (s *pidTable) take(id string) (pid int, ok bool) {
	v, ok := s.m.LoadAndDelete(id)
	if ok {
		pid = v.(int)
	}
	return pid, ok
}

func readRecord(c containers.Container) (containerRecord, error) {
	var r containerRecord
	x := c.Extensions[extContainer]
	if x == nil {
		return r, fmt.Errorf("%w: containerd's record of it was not made by Berth", orchestrator.ErrInvalid)
	}
	return r, json.Unmarshal(x.GetValue(), &r)
}

// SignalContainer implements orchestrator.Engine.
func (e *Engine) SignalContainer(ctx context.Context, pod, name string, sig int) error {
	ctx = e.withNamespace(ctx)
	id, err := lookupID(pod, name)
	if err != nil {
		return containerErr(pod, name, err)
	}
	_, t, err := e.recordAndTask(ctx, id)
	if err != nil {
		return containerErr(pod, name, err)
	}
	if !e.runs(id, t) {
		return containerErr(pod, name, fmt.Errorf("%w: it does not run", orchestrator.ErrState))
	}
	return containerErr(pod, name, e.kill(int(t.Pid), unix.Signal(sig), id))
}

func (e *Engine) recordAndTask(ctx context.Context, id string) (containers.Container, *tasktypes.Process, error) {
	c, err := e.client.ContainerService().Get(ctx, id)
	if err != nil {
		return c, nil, err
	}
	t, err := e.task(ctx, id)
	return c, t, err
}

// StopContainer implements orchestrator.Engine.
func (e *Engine) StopContainer(ctx context.Context, pod, name string, grace time.Duration) error {
	return containerErr(pod, name, cancelled(ctx, e.stopContainer(e.withNamespace(ctx), pod, name, grace)))
}

func (e *Engine) stopContainer(ctx context.Context, pod, name string, grace time.Duration) error {
	id, err := lookupID(pod, name)
	if err != nil {
		return err
	}
	c, t, err := e.recordAndTask(ctx, id)
	if err != nil {
		return err
	}
	if !e.runs(id, t) {
		return nil
	}
	record, err := readRecord(c)
	if err != nil {
		return err
	}
	sig := unix.SIGTERM
	if record.StopSignal != 0 {
		sig = unix.Signal(record.StopSignal)
	}
	if grace > 0 {
		if err := e.kill(int(t.Pid), sig, id); err != nil {
			return err
		}
		exited, err := e.waitTask(ctx, id, grace)
		if exited || err != nil {
			return err
		}
	}
	if err := e.cgroups.kill(e.containerCgroup(id)); err != nil {
		return err
	}
	_, err = e.waitTask(ctx, id, 0)
	return err
}

// waitTask waits until the task has exited, and everything in its container with it, but no longer than patience if that
// is not 0.
func (e *Engine) waitTask(ctx context.Context, id string, patience time.Duration) (exited bool, err error) {
	// Not a deadline: containerd would be told of it, might see it pass before this process does, and then answers with an
	// error that does not say so.
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if patience > 0 {
		defer time.AfterFunc(patience, cancel).Stop()
	}
	_, err = e.client.TaskService().Wait(wctx, &tasks.WaitRequest{ContainerID: id})
	switch err = errgrpc.ToNative(err); {
	case err == nil, errdefs.IsNotFound(err):
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case wctx.Err() != nil:
		return false, nil
	}
	return false, fmt.Errorf("wait for exit: %w", err)
}

// RemoveContainer implements orchestrator.Engine.
func (e *Engine) RemoveContainer(ctx context.Context, pod, name string) error {
	id, err := lookupID(pod, name)
	if err != nil {
		return nil
	}
	unlock, err := e.locks.container(ctx, pod, name)
	if err != nil {
		return containerErr(pod, name, err)
	}
	defer unlock()
	ctx, cancel := e.detached(ctx)
	defer cancel()
	c, err := e.client.ContainerService().Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = e.removeContainer(ctx, id, c.Snapshotter, c.SnapshotKey)
	}
	if err == nil {
		e.removeFiles(pod, name)
	}
	return containerErr(pod, name, err)
}

// Container implements orchestrator.Engine.
func (e *Engine) Container(ctx context.Context, pod, name string) (orchestrator.ContainerStatus, error) {
	id, err := lookupID(pod, name)
	if err != nil {
		return orchestrator.ContainerStatus{}, containerErr(pod, name, err)
	}
	c, t, err := e.recordAndTask(e.withNamespace(ctx), id)
	if err != nil {
		return orchestrator.ContainerStatus{}, containerErr(pod, name, err)
	}
	return e.containerStatus(c, t), nil
}

// Containers implements orchestrator.Engine.
func (e *Engine) Containers(ctx context.Context, pod string) ([]orchestrator.ContainerStatus, error) {
	ctx = e.withNamespace(ctx)
	list, err := e.podContainers(ctx, pod)
	if err != nil {
		return nil, podErr(pod, err)
	}
	status := make([]orchestrator.ContainerStatus, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, c := range list {
		g.Go(func() error {
			t, err := e.task(gctx, c.ID)
			status[i] = e.containerStatus(c, t)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, podErr(pod, err)
	}
	sort.Slice(status, func(i, j int) bool { return status[i].Name < status[j].Name })
	return status, nil
}

// podContainers lists a pod's containers without the anchor.
func (e *Engine) podContainers(ctx context.Context, pod string) ([]containers.Container, error) {
	if _, err := e.client.SandboxStore().Get(ctx, pod); err != nil {
		return nil, err
	}
	list, err := e.client.ContainerService().List(ctx, fmt.Sprintf("labels.%q==%q", labelPod, pod))
	if err != nil {
		return nil, err
	}
	members := list[:0]
	for _, c := range list {
		if c.ID != pod {
			members = append(members, c)
		}
	}
	return members, nil
}

func (e *Engine) containerStatus(c containers.Container, t *tasktypes.Process) orchestrator.ContainerStatus {
	pod, name := splitID(c.ID)
	s := orchestrator.ContainerStatus{Name: name, Image: c.Image, State: orchestrator.StateCreated}
	if r, err := readRecord(c); err == nil {
		s.Digest = r.Digest
	}
	for k, v := range c.Labels {
		if k == labelPod || k == labelName || strings.HasPrefix(k, labelLayer) {
			continue
		}
		if s.Labels == nil {
			s.Labels = make(map[string]string)
		}
		s.Labels[k] = v
	}
	var started bool
	s.StartedAt, started = e.startedAt(c.ID)
	switch {
	case t != nil && t.Status == tasktypes.Status_CREATED && !started:
		s.PID = int(t.Pid)
	case t == nil && !started:
	case t == nil:
		// The task went with a restart of containerd or of the host.
		s.State = orchestrator.StateExited
		s.ExitCode, s.FinishedAt = e.exitRecord(pod, name)
	case t.Status == tasktypes.Status_STOPPED:
		s.State, s.ExitCode, s.FinishedAt = orchestrator.StateExited, int(t.ExitStatus), t.ExitedAt.AsTime()
		if _, at := e.exitRecord(pod, name); at.IsZero() {
			e.recordExit(pod, name, s.ExitCode, s.FinishedAt) // before containerd forgets it
		}
	default:
		s.State, s.PID = orchestrator.StateRunning, int(t.Pid)
	}
	return s
}

// Beside a container's log lie two small files, so that starting costs no transaction in containerd's database and the
// answer survives the task: NAME.started, whose modification time says when, and NAME.exit with "CODE NANOSECONDS".

func (e *Engine) markStarted(id string) error {
	pod, name := splitID(id)
	if err := os.Remove(filepath.Join(e.logDir(pod), name+".exit")); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("start: %w", err)
	}
	if err := os.WriteFile(e.startedFile(id), nil, 0o600); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return nil
}

func (e *Engine) unmarkStarted(id string) {
	if err := os.Remove(e.startedFile(id)); err != nil && !os.IsNotExist(err) {
		e.log.Warn("cannot take back the record of a start", "container", id, "error", err)
	}
}

// startedFile is the file that tells of a start; that of the anchor has a name that no container can have.
func (e *Engine) startedFile(id string) string {
	pod, name := splitID(id)
	if name == "" {
		name = anchorCgroup
	}
	return filepath.Join(e.logDir(pod), name+".started")
}

func (e *Engine) startedAt(id string) (time.Time, bool) {
	st, err := os.Stat(e.startedFile(id))
	if err != nil {
		return time.Time{}, false
	}
	return st.ModTime(), true
}

func (e *Engine) recordExit(pod, name string, code int, at time.Time) {
	if !exists(e.logDir(pod)) {
		return // removed meanwhile
	}
	// The first word counts: a containerd that starts again says of what had ended that it ended now, with a code of its own.
	f, err := os.OpenFile(filepath.Join(e.logDir(pod), name+".exit"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		return
	}
	if err == nil {
		_, err = fmt.Fprintf(f, "%d %d\n", code, at.UnixNano())
		err = errors.Join(err, f.Close())
	}
	if err != nil && !os.IsNotExist(err) {
		e.log.Warn("cannot record the exit of a container", "pod", pod, "container", name, "error", err)
	}
}

// unknownExit is the exit code of a container whose end nobody saw.
const unknownExit = 255

func (e *Engine) exitRecord(pod, name string) (code int, at time.Time) {
	data, err := os.ReadFile(filepath.Join(e.logDir(pod), name+".exit"))
	if err != nil {
		return unknownExit, time.Time{}
	}
	c, n, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	code, err = strconv.Atoi(c)
	ns, nerr := strconv.ParseInt(n, 10, 64)
	if err != nil || nerr != nil {
		return unknownExit, time.Time{}
	}
	return code, time.Unix(0, ns)
}

func (e *Engine) removeFiles(pod, name string) {
	for _, suffix := range []string{".log", ".started", ".exit"} {
		if err := os.Remove(filepath.Join(e.logDir(pod), name+suffix)); err != nil && !os.IsNotExist(err) {
			e.log.Warn("cannot remove a file of a container", "error", err)
		}
	}
}
