package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/orchestrator/conformance"

	containerd "github.com/containerd/containerd/v2/client"
)

// host is a containerd of the test's own, below a temporary root.
type host struct {
	layout      paths.Layout
	snapshotter string
	runtime     string // "" means Libexec's runc
	log         string

	mu  sync.Mutex
	cmd *exec.Cmd
}

// newHost starts containerd. The test is skipped where it cannot run.
func newHost(t testing.TB, snapshotter string) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	// Short, for the sockets below it, and not below a directory that a test may make private.
	root, err := os.MkdirTemp("", "eng-")
	if err != nil {
		t.Fatal(err)
	}
	layout, err := paths.New(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(layout.Libexec, "containerd")); err != nil {
		t.Skipf("no engine programs (%v); make builds them, BERTH_LIBEXEC names their directory", err)
	}
	h := &host{layout: layout, snapshotter: snapshotter, log: filepath.Join(root, "containerd.log")}
	for _, d := range []string{layout.Run, layout.State, filepath.Dir(layout.ContainerdSocket())} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	unmount := func() error { return nil }
	if snapshotter == "btrfs" {
		unmount = mountBtrfs(t, root, filepath.Join(layout.State, "containerd", "io.containerd.snapshotter.v1.btrfs"))
	}
	t.Cleanup(func() {
		h.kill(syscall.SIGTERM)
		if t.Failed() {
			if log, err := os.ReadFile(h.log); err == nil {
				const tail = 20000
				t.Logf("containerd's log:\n%s", log[max(0, len(log)-tail):])
			}
		}
		if err := unmount(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	h.start(t)
	return h
}

// mountBtrfs mounts a new btrfs from a file below dir.
func mountBtrfs(t testing.TB, dir, target string) (unmount func() error) {
	t.Helper()
	image := filepath.Join(dir, "btrfs.img")
	const size = 512 << 20
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.MkdirAll(target, 0o711)); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"mkfs.btrfs", "-q", image}, {"mount", "-o", "loop", image, target}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			os.RemoveAll(dir)
			t.Skipf("no btrfs here: %v: %v: %s", c, err, out)
		}
	}
	return func() error { return exec.Command("umount", target).Run() }
}

func (h *host) start(t testing.TB) {
	t.Helper()
	config := fmt.Sprintf(`version = 4
root = %q
state = %q
imports = []
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.monitor.container.v1.restart", "io.containerd.monitor.task.v1.cgroups"]
[plugins."io.containerd.server.v1.grpc"]
address = %q
[plugins."io.containerd.server.v1.ttrpc"]
address = %q
[plugins."io.containerd.shim.v1.manager"]
socket_dir = %q
`, filepath.Join(h.layout.State, "containerd"), filepath.Join(h.layout.Run, "containerd", "state"),
		h.layout.ContainerdSocket(), h.layout.ContainerdSocket()+".ttrpc", filepath.Join(h.layout.Run, "s"))
	file := filepath.Join(h.layout.Run, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(h.layout.Libexec, "containerd"), "--config", file, "--log-level", "info")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+h.layout.Libexec+":"+os.Getenv("PATH"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	h.cmd = cmd
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		c, err := containerd.New(h.layout.ContainerdSocket(), containerd.WithTimeout(time.Minute))
		if err == nil {
			_, err = c.Version(ctx)
			c.Close()
			if err == nil {
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("containerd does not answer: %v", err)
		}
	}
}

func (h *host) kill(sig syscall.Signal) {
	h.mu.Lock()
	cmd := h.cmd
	h.cmd = nil
	h.mu.Unlock()
	if cmd != nil {
		cmd.Process.Signal(sig)
		cmd.Wait()
	}
}

func (h *host) restart(t testing.TB) {
	t.Helper()
	h.kill(syscall.SIGKILL)
	h.start(t)
}

func (h *host) open(t testing.TB) *Engine {
	t.Helper()
	e, err := New(t.Context(), Options{Layout: h.layout, Snapshotter: h.snapshotter, Runtime: h.runtime, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// importImage loads the suite's image and makes its snapshots.
func (h *host) importImage(t testing.TB, e *Engine) {
	t.Helper()
	imgs, err := e.Images().Import(t.Context(), bytes.NewReader(conformance.Image(t)), orchestrator.TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("imported %v", imgs)
}
