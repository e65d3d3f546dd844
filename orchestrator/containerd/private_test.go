package containerd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/orchestrator/conformance"
	"berth/orchestrator/private"

	containerd "github.com/containerd/containerd/v2/client"
)

// host is an engine of the test's own, below a temporary root: the programs that Berth runs, as it runs them.
type host struct {
	layout      paths.Layout
	snapshotter string
	runtime     string // "" means Libexec's runc
	containerd  string // socket of an existing containerd; "" means a private one
	log         string

	programs *private.Engine
}

// newHost starts containerd. The test is skipped where it cannot run.
func newHost(t testing.TB, snapshotter string) *host {
	t.Helper()
	return newHostOn(t, snapshotter, nil)
}

// newHostOn is newHost with what start returns the socket of, if it is not nil, in place of a private containerd.
func newHostOn(t testing.TB, snapshotter string, start func(layout paths.Layout) (socket string)) *host {
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
		os.Remove(root)
		t.Skipf("no engine programs (%v); make builds them, BERTH_LIBEXEC names their directory", err)
	}
	h := &host{layout: layout, snapshotter: snapshotter, log: filepath.Join(layout.State, "log", "containerd.log")}
	unmount := func() error { return nil }
	if snapshotter == "btrfs" {
		unmount = mountBtrfs(t, root, filepath.Join(layout.State, "containerd", "io.containerd.snapshotter.v1.btrfs"))
	}
	t.Cleanup(func() {
		h.stop(t)
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
	if start != nil {
		h.containerd = start(layout)
	}
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

// programsTimeout is for programs that start or end on a machine under any load.
const programsTimeout = 3 * time.Minute

func (h *host) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), programsTimeout)
	defer cancel()
	var err error
	h.programs, err = private.Start(ctx, private.Options{Layout: h.layout, Containerd: h.containerd, Snapshotter: h.snapshotter, Runtime: h.runtime})
	if err != nil {
		t.Fatal(err)
	}
}

func (h *host) stop(t testing.TB) {
	t.Helper()
	if h.programs == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), programsTimeout)
	defer cancel()
	if err := h.programs.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// kill ends the programs with SIGKILL.
func (h *host) kill(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.programs.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// restart kills containerd, and its supervisor starts it again.
func (h *host) restart(t testing.TB) {
	t.Helper()
	pid := h.programs.Status()[0].PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), programsTimeout)
	defer cancel()
	for {
		if now := h.programs.Status()[0].PID; now != pid && now != 0 {
			c, err := containerd.New(h.layout.ContainerdSocket(), containerd.WithTimeout(programsTimeout))
			if err == nil {
				_, err = c.Version(ctx)
				c.Close()
			}
			if err == nil {
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatal("containerd is not started again")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (h *host) open(t testing.TB) *Engine {
	t.Helper()
	e, err := New(t.Context(), Options{Layout: h.layout, Socket: h.containerd, Snapshotter: h.snapshotter, Runtime: h.runtime, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
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
