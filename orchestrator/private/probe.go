package private

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/services/version/v1"
	control "github.com/moby/buildkit/api/services/control"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// dial connects to the Unix socket at path. With pid not 0 only a server of that process counts; whoever else listens
// there is treated like nobody. The connection keeps trying, at short intervals at first, until a call's ctx ends.
func dial(path string, pid int) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, Jitter: 0.1, MaxDelay: 250 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "unix", path)
			if err != nil || pid == 0 {
				return c, err
			}
			if peer, err := peerPID(c.(*net.UnixConn)); err != nil || peer != pid {
				return nil, errors.Join(fmt.Errorf("socket %q: process %d listens there, not %d", path, peer, pid), err, c.Close())
			}
			return c, nil
		}))
}

// peerPID is the process that called listen on the other end (SO_PEERCRED, unix(7)).
func peerPID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return int(cred.Pid), nil
}

// probeContainerd returns nil when containerd answers a version request.
func probeContainerd(ctx context.Context, socket string, pid int) error {
	conn, err := dial(socket, pid)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = version.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	return err
}

// probeBuildkit returns nil when buildkitd answers and has a worker.
func probeBuildkit(ctx context.Context, socket string, pid int) error {
	conn, err := dial(socket, pid)
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := control.NewControlClient(conn).ListWorkers(ctx, &control.ListWorkersRequest{})
	if err == nil && len(r.Record) == 0 {
		err = errors.New("it has no worker")
	}
	return err
}

// server describes a containerd.
type server struct {
	version string
	// snapshotters maps the name of every snapshotter plugin to why it did not load, "" if it did.
	snapshotters map[string]string
}

// inspect asks the containerd at socket what it is.
func inspect(ctx context.Context, socket string) (server, error) {
	conn, err := dial(socket, 0)
	if err != nil {
		return server{}, err
	}
	defer conn.Close()
	v, err := version.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return server{}, err
	}
	r, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{
		Filters: []string{"type==io.containerd.snapshotter.v1"},
	})
	if err != nil {
		return server{}, err
	}
	s := server{version: v.Version, snapshotters: map[string]string{}}
	for _, p := range r.Plugins {
		s.snapshotters[p.ID] = p.InitErr.GetMessage()
	}
	return s, nil
}
