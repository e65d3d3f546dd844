package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"time"

	"berth/internal/revert"
	"berth/orchestrator"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	runtimeName = "io.containerd.runc.v2"

	labelPod  = "berth.pod"
	labelName = "berth.container"
	// labelLayer and the snapshotter's name are containerd's label for a snapshot that its garbage collector is to keep: the
	// parent of the writable layer, which nothing else may hold while that is replaced, if the image has been built anew.
	// https://github.com/containerd/containerd/blob/main/docs/garbage-collection.md
	labelLayer = "containerd.io/gc.ref.snapshot."

	// Keys of a sandbox record's extensions. The values are JSON or opaque; the type URL is the key itself.
	extSpec = "berth.spec"
	extData = "berth.data"
	extNet  = "berth.net"
	// extNetErr tells why a pod could not be connected.
	extNetErr = "berth.net.error"

	anchorProgram = "berth-anchor"
	anchorCgroup  = "_anchor" // no container can be called so
	anchorID      = 65534     // nobody
)

func extension(key string, value []byte) typeurl.Any { return &anypb.Any{TypeUrl: key, Value: value} }

// podRecord is what a pod's sandbox record holds beside its labels and data.
type podRecord struct {
	Hostname string                   `json:"hostname"`
	Limits   orchestrator.Limits      `json:"limits"`
	Network  orchestrator.NetworkMode `json:"network"`
}

// CreatePod implements orchestrator.Engine. The pod's network is set up in the background: a pod is usable without it,
// and RemovePod waits for it.
//
// The sandbox record in containerd's metadata claims the name first and is deleted last, so whatever is left of a
// creation that was killed half-way is found and removed by RemovePod. The anchor is a container of the pod's ID; its
// shim serves the whole pod: containers whose SandboxID is the pod join it without starting a program.
func (e *Engine) CreatePod(ctx context.Context, spec orchestrator.PodSpec) (orchestrator.Pod, error) {
	if err := checkName("pod", spec.ID); err != nil {
		return orchestrator.Pod{}, err
	}
	switch spec.Network {
	case "":
		spec.Network = orchestrator.NetworkNone
	case orchestrator.NetworkNone, orchestrator.NetworkNAT, orchestrator.NetworkHost:
	default:
		return orchestrator.Pod{}, fmt.Errorf("pod %q: network %q: %w", spec.ID, spec.Network, orchestrator.ErrInvalid)
	}
	unlock, err := e.locks.pod(ctx, spec.ID)
	if err != nil {
		return orchestrator.Pod{}, podErr(spec.ID, err)
	}
	defer unlock()
	pod, err := e.createPod(ctx, spec)
	return pod, podErr(spec.ID, cancelled(ctx, err))
}

func (e *Engine) createPod(caller context.Context, spec orchestrator.PodSpec) (_ orchestrator.Pod, err error) {
	if err := caller.Err(); err != nil {
		return orchestrator.Pod{}, err
	}
	ctx, cancel := e.detached(caller)
	defer cancel()
	record, err := json.Marshal(podRecord{Hostname: spec.Hostname, Limits: spec.Limits, Network: spec.Network})
	if err != nil {
		return orchestrator.Pod{}, err
	}
	sb, err := e.client.SandboxStore().Create(ctx, sandbox.Sandbox{
		ID:         spec.ID,
		Labels:     spec.Labels,
		Runtime:    sandbox.RuntimeOpts{Name: runtimeName},
		Extensions: map[string]typeurl.Any{extSpec: extension(extSpec, record), extData: extension(extData, spec.Data)},
	})
	if err != nil {
		return orchestrator.Pod{}, err
	}
	var undo revert.Stack
	defer func() {
		if uerr := undo.Run(ctx); uerr != nil {
			err = errors.Join(err, uerr)
		}
	}()
	undo.Add("create pod", func(ctx context.Context) error { return e.removePod(ctx, spec.ID) })

	rootfs, err := e.anchorRoot()
	if err != nil {
		return orchestrator.Pod{}, err
	}
	if err := e.cgroups.create(e.podCgroup(spec.ID), spec.Limits); err != nil {
		return orchestrator.Pod{}, err
	}
	if err := os.MkdirAll(e.logDir(spec.ID), 0o700); err != nil {
		return orchestrator.Pod{}, err
	}
	ocispec := anchorSpec(spec, rootfs, filepath.Join(e.podCgroup(spec.ID), anchorCgroup), e.cgroups.unified)
	if err := e.createRecord(ctx, spec.ID, "", ocispec, containers.Container{}); err != nil {
		return orchestrator.Pod{}, err
	}
	if err := caller.Err(); err != nil {
		return orchestrator.Pod{}, err
	}
	pid, err := e.createTask(ctx, spec.ID, nil, "")
	if err != nil {
		return orchestrator.Pod{}, fmt.Errorf("anchor: %w", err)
	}
	if err := caller.Err(); err != nil {
		return orchestrator.Pod{}, err
	}
	e.network.start(spec.ID, pid, spec.Network)
	if err := e.startWaiting(ctx, spec.ID, pid); err != nil {
		return orchestrator.Pod{}, fmt.Errorf("anchor: %w", err)
	}
	undo.Disarm()
	return orchestrator.Pod{
		ID: spec.ID, Labels: sb.Labels, Data: spec.Data, Created: sb.CreatedAt, Running: true, AnchorPID: pid,
	}, nil
}

// anchorRoot makes the anchor's root file system, shared by all pods: the program, and empty directories to mount on.
func (e *Engine) anchorRoot() (string, error) {
	e.anchor.Lock()
	defer e.anchor.Unlock()
	if e.anchor.root != "" {
		return e.anchor.root, nil
	}
	src := filepath.Join(e.layout.Libexec, anchorProgram)
	data, err := os.ReadFile(src)
	if err != nil {
		return "", fmt.Errorf("program %q: %w: %w; build it with make", src, orchestrator.ErrUnavailable, err)
	}
	root := filepath.Join(e.layout.State, "anchor")
	for _, d := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	dst := filepath.Join(root, anchorProgram)
	if old, err := os.ReadFile(dst); err != nil || string(old) != string(data) {
		// Renamed into place: running anchors of an older version keep theirs.
		if err := writeProgram(dst, data); err != nil {
			return "", err
		}
	}
	e.anchor.root = root
	return root, nil
}

// createRecord stores a container's metadata in containerd. c gives what is special to it.
func (e *Engine) createRecord(ctx context.Context, pod, name string, spec *specs.Spec, c containers.Container) error {
	value, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	c.ID = containerID(pod, name)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	c.Labels[labelPod], c.Labels[labelName] = pod, name
	c.Spec = extension(specType, value)
	opts, err := typeurl.MarshalAny(e.runcOptions)
	if err != nil {
		return err
	}
	c.Runtime = containers.RuntimeInfo{Name: runtimeName, Options: opts}
	_, err = e.client.ContainerService().Create(ctx, c)
	return err
}

// specType is the type URL containerd has for OCI runtime specifications in JSON.
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// createTask lets the runtime create the first process of container id, which waits for startTask.
// logFile takes its output, behind what it holds; "" means none.
//
// The shim opens the file, by its bare path, once for either stream, under two spellings. Under one (or with the scheme
// file://) it would share one descriptor, which the first stream to end closes: what the other still has to say is lost,
// and that is usually why the program died (copyPipes in containerd's cmd/containerd-shim-runc-v2/process/io.go, 2.4.2).
func (e *Engine) createTask(ctx context.Context, id string, rootfs []*mountProto, logFile string) (pid int, err error) {
	req := &tasks.CreateTaskRequest{ContainerID: id, Rootfs: rootfs}
	if logFile != "" {
		f, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return 0, fmt.Errorf("log: %w", err)
		}
		f.Close()
		req.Stdout, req.Stderr = logFile, filepath.Dir(logFile)+"/./"+filepath.Base(logFile)
	}
	resp, err := e.client.TaskService().Create(ctx, req)
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	return int(resp.Pid), nil
}

func (e *Engine) startTask(ctx context.Context, id string) error {
	_, err := e.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}

// task returns the state of container id's task; nil if it has none.
func (e *Engine) task(ctx context.Context, id string) (*tasktypes.Process, error) {
	resp, err := e.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			return nil, nil
		}
		return nil, err
	}
	return resp.Process, nil
}

// deleteTask kills a task and deletes it. One that is not there is not an error.
func (e *Engine) deleteTask(ctx context.Context, id string) error {
	t, err := e.task(ctx, id)
	if t == nil {
		return err
	}
	if t.Status != tasktypes.Status_STOPPED {
		if err := e.kill(int(t.Pid), unix.SIGKILL, id); err != nil {
			return err
		}
		if _, err := e.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id}); err != nil {
			if err = errgrpc.ToNative(err); !errdefs.IsNotFound(err) {
				return fmt.Errorf("wait for exit: %w", err)
			}
		}
	}
	_, err = e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// Pod implements orchestrator.Engine.
func (e *Engine) Pod(ctx context.Context, id string) (orchestrator.Pod, error) {
	ctx = e.withNamespace(ctx)
	sb, err := e.client.SandboxStore().Get(ctx, id)
	if err != nil {
		return orchestrator.Pod{}, podErr(id, err)
	}
	pod, err := e.podStatus(ctx, sb)
	return pod, podErr(id, err)
}

// Pods implements orchestrator.Engine.
func (e *Engine) Pods(ctx context.Context, match map[string]string) ([]orchestrator.Pod, error) {
	ctx = e.withNamespace(ctx)
	all, err := e.client.SandboxStore().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("pods: %w", classify(err))
	}
	all = slices.DeleteFunc(all, func(sb sandbox.Sandbox) bool {
		for k, v := range match {
			if got, ok := sb.Labels[k]; !ok || got != v {
				return true
			}
		}
		return false
	})
	pods := make([]orchestrator.Pod, len(all))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, sb := range all {
		g.Go(func() (err error) {
			pods[i], err = e.podStatus(gctx, sb)
			return podErr(sb.ID, err)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	sort.Slice(pods, func(i, j int) bool { return pods[i].ID < pods[j].ID })
	return pods, nil
}

func (e *Engine) podStatus(ctx context.Context, sb sandbox.Sandbox) (orchestrator.Pod, error) {
	pod := orchestrator.Pod{ID: sb.ID, Labels: sb.Labels, Created: sb.CreatedAt}
	if x := sb.Extensions[extData]; x != nil {
		pod.Data = x.GetValue()
	}
	if x := sb.Extensions[extNet]; x != nil {
		pod.IP = string(x.GetValue())
	}
	if x := sb.Extensions[extNetErr]; x != nil {
		pod.NetworkError = string(x.GetValue())
	}
	t, err := e.task(ctx, sb.ID)
	if err != nil {
		return pod, err
	}
	if e.runs(sb.ID, t) {
		pod.Running, pod.AnchorPID = true, int(t.Pid)
	}
	return pod, nil
}

// SetPodData implements orchestrator.Engine.
func (e *Engine) SetPodData(ctx context.Context, id string, data []byte) error {
	return podErr(id, e.setExtension(e.withNamespace(ctx), id, extData, data))
}

func (e *Engine) setExtension(ctx context.Context, pod, key string, value []byte) error {
	_, err := e.client.SandboxStore().Update(ctx, sandbox.Sandbox{
		ID: pod, Extensions: map[string]typeurl.Any{key: extension(key, value)},
	}, "extensions."+key)
	return err
}

// RemovePod implements orchestrator.Engine.
func (e *Engine) RemovePod(ctx context.Context, id string) error {
	if checkName("pod", id) != nil {
		return nil // cannot exist
	}
	unlock, err := e.locks.pod(ctx, id)
	if err != nil {
		return podErr(id, err)
	}
	defer unlock()
	ctx, cancel := e.detached(ctx)
	defer cancel()
	return podErr(id, e.removePod(ctx, id))
}

// removePod removes what there is of a pod, in any state. It goes on after an error and returns all of them; the sandbox
// record stays then, so that it can be called again.
func (e *Engine) removePod(ctx context.Context, id string) error {
	if _, err := e.client.SandboxStore().Get(ctx, id); err != nil {
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	// The kernel kills all processes of the PID namespace with the anchor, so nothing waits for one container after another.
	anchor, err := e.task(ctx, id)
	if err != nil {
		return err
	}
	if anchor != nil && anchor.Status != tasktypes.Status_STOPPED {
		if err := e.kill(int(anchor.Pid), unix.SIGKILL, id); err != nil {
			return err
		}
	}
	list, err := e.client.ContainerService().List(ctx, fmt.Sprintf("labels.%q==%q", labelPod, id))
	if err != nil {
		return err
	}
	g := new(errgroup.Group)
	g.SetLimit(parallel)
	var netErr error
	g.Go(func() error { netErr = e.network.remove(ctx, id); return nil })
	errs := make([]error, len(list))
	for i, c := range list {
		if c.ID == id {
			continue
		}
		g.Go(func() error { errs[i] = e.removeContainer(ctx, c.ID, c.Snapshotter, c.SnapshotKey); return nil })
	}
	g.Wait()
	if err := errors.Join(append(errs, netErr)...); err != nil {
		return err
	}
	// The anchor last: its shim ends with it.
	if err := e.removeContainer(ctx, id, "", ""); err != nil {
		return err
	}
	if err := e.cgroups.remove(e.podCgroup(id)); err != nil {
		return err
	}
	if err := removeBusy(e.logDir(id)); err != nil {
		return err
	}
	if err := e.removeShimSocket(id); err != nil {
		return err
	}
	if err := e.client.SandboxStore().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// removeShimSocket removes the socket of a pod's shim, which has ended or does so: the shim removes it as the last thing and on a
// busy machine sometimes does not come to that. Its name is that of containerd's shim.CreateSocketAddress (pkg/shim).
// Where an existing containerd keeps them is not known.
func (e *Engine) removeShimSocket(id string) error {
	if !e.private {
		return nil
	}
	err := os.Remove(e.shimSocket(id))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// shimSocket is where the shim of a pod listens.
func (e *Engine) shimSocket(id string) string {
	name := sha256.Sum256([]byte(filepath.Join(e.layout.ContainerdSocket(), e.layout.Instance(), id)))
	return filepath.Join(e.layout.ShimSockets(), hex.EncodeToString(name[:]))
}

// removeBusy removes a directory into which something may still be written: the exit of a container is recorded when it is told.
func removeBusy(dir string) error {
	for end := time.Now().Add(removePatience); ; {
		err := os.RemoveAll(dir)
		if !errors.Is(err, unix.ENOTEMPTY) || time.Now().After(end) {
			return err
		}
	}
}

// removePatience is for a few records that come late.
const removePatience = 10 * time.Second

// removeContainer removes task, record and snapshot, in this order, so that each step finds what it needs when called again.
func (e *Engine) removeContainer(ctx context.Context, id, snapshotter, key string) error {
	e.created.take(id)
	if err := e.deleteTask(ctx, id); err != nil {
		return fmt.Errorf("container %q: %w", id, err)
	}
	if key != "" {
		if err := e.client.SnapshotService(snapshotter).Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("container %q: snapshot: %w", id, err)
		}
	}
	if err := e.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %q: %w", id, err)
	}
	// A reboot takes the task but leaves this empty directory of the private containerd, which looks for such only in
	// namespaces that still have tasks.
	work := filepath.Join(e.layout.State, "containerd", "io.containerd.runtime.v2.task", string(e.namespace), id)
	if err := os.Remove(work); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("container %q: %w", id, err)
	}
	return nil
}

// logDir holds the logs of a pod's containers.
func (e *Engine) logDir(pod string) string { return filepath.Join(e.layout.Logs(), pod) }

func (e *Engine) logFile(pod, name string) string { return filepath.Join(e.logDir(pod), name+".log") }

// podCgroup is the parent of the pod's containers' cgroups, as runc takes it: relative to each hierarchy's root.
func (e *Engine) podCgroup(pod string) string { return filepath.Join("/", e.layout.Instance(), pod) }

// runcOptions are the shim's: where runc is and keeps its state.
func (e *Engine) makeRuncOptions() *options.Options {
	return &options.Options{
		BinaryName: filepath.Join(e.layout.Libexec, "runc"),
		Root:       filepath.Join(e.layout.Run, "runc"),
	}
}

// kill sends a signal to the first process of container id, unless it is gone. The identifier of a process may have been
// given to another since it was asked for; the descriptor (pidfd_open(2)) and the cgroup tell.
func (e *Engine) kill(pid int, sig unix.Signal, id string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	ours, err := e.cgroups.contains(e.containerCgroup(id), pid)
	if err != nil || !ours {
		return err
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("process %d: signal %d: %w", pid, sig, err)
	}
	return nil
}

func (e *Engine) containerCgroup(id string) string {
	pod, name := splitID(id)
	if name == "" {
		name = anchorCgroup
	}
	return filepath.Join(e.podCgroup(pod), name)
}

func writeProgram(dst string, data []byte) error {
	tmp := dst + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := os.WriteFile(tmp, data, 0o755); err != nil {
		os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, dst); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}
