package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/orchestrator/conformance"

	"github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/services/version/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// startContainerd runs a containerd that is none of Berth's, on a configuration as hosts have it, and returns its socket.
// BERTH_TEST_CONTAINERD names another than Libexec's; its shim is found beside it.
func startContainerd(t *testing.T, layout paths.Layout) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctrd-")
	if err != nil {
		t.Fatal(err)
	}
	program := cmp.Or(os.Getenv("BERTH_TEST_CONTAINERD"), filepath.Join(layout.Libexec, "containerd"))
	socket := filepath.Join(dir, "containerd.sock")
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
address = %q
[plugins."io.containerd.internal.v1.opt"]
path = %q
[plugins."io.containerd.shim.v1.manager"]
socket_dir = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, filepath.Join(dir, "opt"), filepath.Join(dir, "s"))
	file, logFile := filepath.Join(dir, "config.toml"), filepath.Join(dir, "log")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+layout.Libexec+":"+os.Getenv("PATH"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(logFile)
			t.Logf("the log of %s:\n%s", program, text)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	within(t, "containerd answers", func() bool {
		c, err := containerd.New(socket, containerd.WithTimeout(time.Second))
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = c.Version(t.Context())
		return err == nil
	})
	return socket
}

// versions answers as a containerd of the version does.
type versions struct {
	version.UnimplementedVersionServer
	version string
}

func (v versions) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{Version: v.version}, nil
}

type plugins struct {
	introspection.UnimplementedIntrospectionServer
}

func (plugins) Plugins(context.Context, *introspection.PluginsRequest) (*introspection.PluginsResponse, error) {
	return &introspection.PluginsResponse{Plugins: []*introspection.Plugin{{Type: "io.containerd.snapshotter.v1", ID: "overlayfs"}}}, nil
}

func TestOldContainerd(t *testing.T) {
	layout := paths.Layout{Run: t.TempDir(), Config: "/etc/berth/config.toml"}
	socket := filepath.Join(layout.Run, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	version.RegisterVersionServer(s, versions{version: "1.6.20~ds1"})
	introspection.RegisterIntrospectionServer(s, plugins{})
	go s.Serve(l)
	defer s.Stop()
	_, err = New(t.Context(), Options{Layout: layout, Socket: socket})
	if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "1.6.20") || !strings.Contains(err.Error(), "1.7 or newer") {
		t.Errorf("got %v", err)
	}
}

// An existing containerd is as good as a private one, and two instances that share it do not see each other.
func TestExistingContainerd(t *testing.T) {
	var socket string
	h := newHostOn(t, "overlayfs", func(l paths.Layout) string { socket = startContainerd(t, l); return socket })
	e := h.open(t)
	defer e.Close()
	h.importImage(t, e)
	info, err := e.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	major, _ := parseVersion(info.Version)
	t.Run("conformance", func(t *testing.T) {
		conformance.Run(t, func(t *testing.T) conformance.Host {
			return conformance.Host{
				Engine: e, Image: conformance.ImageRef, Local: true, NAT: canNAT(), NoOOM: major < 2,
				Reopen: func(t *testing.T) orchestrator.Engine { return h.open(t) },
				State:  func(t *testing.T) map[string][]string { return h.state(t) },
			}
		})
	})
	t.Run("shared", func(t *testing.T) {
		ctx := t.Context()
		other := newHostOn(t, "overlayfs", func(paths.Layout) string { return socket })
		o := other.open(t)
		defer o.Close()
		for _, engine := range []*Engine{e, o} {
			if _, err := engine.CreatePod(ctx, orchestrator.PodSpec{ID: "p", Data: []byte(engine.namespace)}); err != nil {
				t.Fatal(err)
			}
		}
		if imgs, err := o.Images().List(ctx); err != nil || len(imgs) != 0 {
			t.Errorf("the other instance sees images %v, %v", imgs, err)
		}
		if err := o.RemovePod(ctx, "p"); err != nil {
			t.Error(err)
		}
		if p, err := e.Pod(ctx, "p"); err != nil || !p.Running || string(p.Data) != string(e.namespace) {
			t.Errorf("after the removal of another instance's pod: %+v, %v", p, err)
		}
		if err := e.RemovePod(ctx, "p"); err != nil {
			t.Error(err)
		}
	})
}
