// Package containerd is the default engine: orchestrator.Engine on containerd 2.x's Go client.
package containerd

import (
	"context"
	"fmt"
	"log/slog"

	"berth/internal/paths"
	"berth/orchestrator"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// Namespace is the containerd namespace that holds everything Berth makes.
const Namespace = "berth"

// Options configures New. The zero value of every field but Layout is usable.
type Options struct {
	// Layout says where logs go, which programs are used (Libexec) and what the instance is called on the host.
	Layout paths.Layout
	// Socket is containerd's gRPC socket; "" means Layout.ContainerdSocket().
	Socket string
	// Snapshotter is "overlayfs" (the default), "btrfs", "native" or any other that containerd has.
	Snapshotter string
	// Subnet is the IPv4 network that pods with NetworkNAT get addresses from; "" means one derived from the instance.
	Subnet string
	// Log receives warnings, for example of a pod that got no network; nil means slog.Default().
	Log *slog.Logger
}

// Engine implements orchestrator.Engine. It is safe for concurrent use.
type Engine struct {
	client      *containerd.Client
	snapshotter string
	layout      paths.Layout
	log         *slog.Logger
	images      orchestrator.Images
}

// New connects to a running containerd.
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
	client, err := containerd.New(opt.Socket, containerd.WithDefaultNamespace(Namespace))
	if err != nil {
		return nil, fmt.Errorf("containerd %q: %w: %w", opt.Socket, orchestrator.ErrUnavailable, err)
	}
	e := &Engine{client: client, snapshotter: opt.Snapshotter, layout: opt.Layout, log: opt.Log}
	e.images = newImages(e)
	return e, nil
}

// Images implements orchestrator.Engine.
func (e *Engine) Images() orchestrator.Images { return e.images }

// Close implements orchestrator.Engine.
func (e *Engine) Close() error { return e.client.Close() }

// withNamespace names our namespace in a context: services that the client hands out raw need it there.
func withNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}
