// Package containerd is the default engine: orchestrator.Engine on containerd 2.x's Go client.
//
// # How a pod maps onto containerd
//
// A pod is a sandbox record in containerd's metadata, which holds the pod's labels and data, and a container of the same
// ID, the anchor. The anchor's shim serves the whole pod: a container whose SandboxID names the pod joins that shim over
// its socket, so that creating one starts no program but runc. (Grouping by annotation would start the shim's binary for
// each container, only to learn the address.) The sandbox record exists from before the first step of creation until
// after the last of removal, so RemovePod finds whatever a killed daemon left.
//
// A container is a record, a snapshot of the same key and a task. The record is made first: it keeps the snapshot from
// the garbage collector, no lease is needed. The OCI specification is made here and not by containerd's helpers, which mount the
// image once more to look into its passwd file. An image's configuration is immutable and kept in memory by digest.
//
// # What runs without us
//
// The shim writes the logs, the kernel keeps the limits, and the anchor holds the namespaces. Killing this process,
// containerd or both loses neither a session nor a line of its log; a new engine finds everything by asking containerd.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/internal/paths"
	"berth/orchestrator"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/kernelversion"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// connectTimeout is how long New waits for containerd to answer.
const connectTimeout = 10 * time.Second

// Options configures New. The zero value of every field but Layout is usable.
type Options struct {
	// Layout says where logs go, which programs are used (Libexec) and what the instance is called on the host.
	Layout paths.Layout
	// Socket is containerd's gRPC socket; "" means Layout.ContainerdSocket().
	Socket string
	// Snapshotter is "overlayfs" (the default), "btrfs", "native" or any other that containerd has.
	Snapshotter string
	// Runtime is the OCI runtime the shim calls; "" means Libexec's runc.
	Runtime string
	// Subnet is the IPv4 network that pods with NetworkNAT get addresses from; "" means a free one below 10.128.0.0/9.
	Subnet string
	// Log receives warnings, for example of a pod that got no network; nil means slog.Default().
	Log *slog.Logger
}

// Engine implements orchestrator.Engine. It is safe for concurrent use.
type Engine struct {
	namespace
	client      *containerd.Client
	snapshotter string
	layout      paths.Layout
	log         *slog.Logger
	images      orchestrator.Images
	cgroups     *cgroupHost
	runcOptions *options.Options
	releases    bool   // the runtime's created processes are started by release
	fifos       string // directory of the pipes of execs
	volatile    bool   // overlay mounts can be volatile
	private     bool   // the containerd is Berth's own

	network *network
	watch   *watcher
	stop    context.CancelFunc // of background work
	work    sync.WaitGroup

	locks   lockTable
	roots   sync.Map // image digest -> *rootImage
	pods    sync.Map // pod -> podNamespaces, of running pods
	created pidTable // containers created by this process and not started yet
	anchor  struct {
		sync.Mutex
		root string // its root file system, once made
	}
}

var _ orchestrator.Engine = (*Engine)(nil)

// New connects to a running containerd. Pods that it holds already are the engine's from then on.
func New(ctx context.Context, opt Options) (*Engine, error) {
	if opt.Socket == "" {
		opt.Socket = opt.Layout.ContainerdSocket()
	}
	if opt.Snapshotter == "" {
		opt.Snapshotter = "overlayfs"
	}
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	cgroups, err := findCgroups()
	if err != nil {
		return nil, err
	}
	client, err := containerd.New(opt.Socket, containerd.WithDefaultNamespace(opt.Layout.Instance()), containerd.WithTimeout(connectTimeout))
	if err != nil {
		return nil, fmt.Errorf("containerd %q: %w: %w; is it running?", opt.Socket, orchestrator.ErrUnavailable, err)
	}
	if _, err := client.GetSnapshotterCapabilities(ctx, opt.Snapshotter); err != nil {
		client.Close()
		return nil, fmt.Errorf("snapshotter %q: %w: %w", opt.Snapshotter, orchestrator.ErrUnavailable, err)
	}
	v, err := client.Version(ctx)
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("containerd %q: %w: %w", opt.Socket, orchestrator.ErrUnavailable, err)
	}
	major, minor := parseVersion(v.Version)
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		client.Close()
		return nil, fmt.Errorf("containerd %q: %w: its version is %s, and sessions need %d.%d or newer; install that, or take engine.containerd out of %q to let Berth run its own",
			opt.Socket, orchestrator.ErrUnavailable, v.Version, oldestMajor, oldestMinor, opt.Layout.Config)
	}
	e := &Engine{namespace: namespace(opt.Layout.Instance()), client: client, snapshotter: opt.Snapshotter, layout: opt.Layout, log: opt.Log, cgroups: cgroups,
		private: opt.Socket == opt.Layout.ContainerdSocket()}
	e.runcOptions = e.makeRuncOptions()
	e.releases = true
	if opt.Runtime != "" && opt.Runtime != e.runcOptions.BinaryName {
		e.runcOptions.BinaryName = opt.Runtime
		version, err := e.runtimeVersion(ctx)
		if err != nil {
			client.Close()
			return nil, fmt.Errorf("runtime: %w", err)
		}
		e.releases = strings.HasPrefix(version, "runc ")
	}
	e.volatile, err = kernelversion.GreaterEqualThan(kernelversion.KernelVersion{Kernel: 5, Major: 10})
	if err != nil {
		e.log.Debug("kernel version", "error", err)
	}
	if e.fifos, err = makeFIFODir(filepath.Join(opt.Layout.Run, "fifo")); err != nil {
		client.Close()
		return nil, err
	}
	e.images = newImages(e)
	e.network = newNetwork(e, opt.Subnet)
	bg, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.watch = newWatcher(e)
	if err := e.network.resume(ctx); err != nil { // the pods are there, if offline
		e.log.Warn("network of pods", "error", err)
	}
	e.work.Go(func() { e.trimLogs(bg) })
	return e, nil
}

// The oldest containerd that has what is used here: a store of sandbox records, and shims that serve all containers of one.
// 1.6 has neither. (1.7.24 and 2.4.2 pass the conformance suite, but that the shim of 1.7 watches for a lack of memory only
// what was started through it, and leaves the children of a program that was started so and ends at once.)
const (
	oldestMajor = 1
	oldestMinor = 7
)

// parseVersion reads "v2.4.2", "1.7.24~ds1" and the like. What is no version at all, as of a build of one's own, is taken for
// the newest.
func parseVersion(s string) (major, minor int) {
	if n, err := fmt.Sscanf(strings.TrimPrefix(s, "v"), "%d.%d", &major, &minor); n == 2 && err == nil {
		return major, minor
	}
	return math.MaxInt, 0
}

// Images implements orchestrator.Engine.
func (e *Engine) Images() orchestrator.Images { return e.images }

// Info implements orchestrator.Engine.
func (e *Engine) Info(ctx context.Context) (orchestrator.Info, error) {
	v, err := e.client.Version(e.withNamespace(ctx))
	if err != nil {
		return orchestrator.Info{}, fmt.Errorf("containerd: %w", classify(err))
	}
	info := orchestrator.Info{Name: "containerd", Version: v.Version, Snapshotter: e.snapshotter, Cgroup: e.cgroups.mode()}
	info.Runtime, err = e.runtimeVersion(ctx)
	return info, err
}

// runtimeVersion asks the OCI runtime what it is: "runc 1.5.2".
func (e *Engine) runtimeVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, e.runcOptions.BinaryName, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("program %q: %w: %w", e.runcOptions.BinaryName, orchestrator.ErrUnavailable, err)
	}
	// "runc version 1.5.2", then other lines
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.Replace(first, " version", "", 1), nil
}

// Close implements orchestrator.Engine.
func (e *Engine) Close() error {
	e.stop()
	e.watch.close()
	e.work.Wait()
	return errors.Join(removeFIFODir(e.fifos), e.client.Close())
}

// namespace is the containerd namespace that holds everything of an instance, and nothing else: several may share a containerd.
type namespace string

// withNamespace names it in a context: services that the client hands out raw need it there.
func (n namespace) withNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, string(n))
}
