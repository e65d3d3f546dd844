package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/orchestrator"

	"github.com/containernetworking/cni/libcni"
)

// within asks until ok or for a minute.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A pod whose network cannot be made runs and says why, to the next engine too.
func TestFailedNetwork(t *testing.T) {
	h := newHost(t, "overlayfs")
	e := h.open(t)
	defer e.Close()
	e.network.subnet = "10.0.0.0/31"
	if _, err := e.CreatePod(t.Context(), orchestrator.PodSpec{ID: "p", Network: orchestrator.NetworkNAT}); err != nil {
		t.Fatal(err)
	}
	var pod orchestrator.Pod
	within(t, "the pod says why it has no network", func() (ok bool) {
		var err error
		if pod, err = e.Pod(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
		return pod.NetworkError != ""
	})
	if !pod.Running || pod.IP != "" || !strings.Contains(pod.NetworkError, "10.0.0.0/31") {
		t.Errorf("got %+v", pod)
	}
	next := h.open(t)
	defer next.Close()
	if again, err := next.Pod(t.Context(), "p"); err != nil || again.NetworkError != pod.NetworkError {
		t.Errorf("from another engine: %q, %v", again.NetworkError, err)
	}
	e.network.subnet = ""
	if err := e.RemovePod(t.Context(), "p"); err != nil {
		t.Error(err)
	}
}

// A plugin that hangs holds up the removal of its pod for a while and not for good.
func TestHangingPlugin(t *testing.T) {
	h := newHost(t, "overlayfs")
	e := h.open(t)
	defer e.Close()
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n[ $CNI_COMMAND = ADD ] && exec sleep 600\nexec %s/ptp\n", h.layout.Libexec)
	if err := os.WriteFile(filepath.Join(dir, "ptp"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	e.network.cni = libcni.NewCNIConfigWithCacheDir([]string{dir, h.layout.Libexec}, t.TempDir(), nil)
	create := func(id string) {
		t.Helper()
		if _, err := e.CreatePod(t.Context(), orchestrator.PodSpec{ID: id, Network: orchestrator.NetworkNAT}); err != nil {
			t.Fatal(err)
		}
	}
	e.network.timeout = 200 * time.Millisecond
	create("patient")
	if err := e.RemovePod(t.Context(), "patient"); err != nil {
		t.Error(err)
	}
	create("told")
	within(t, "the pod says that its network took too long", func() bool {
		pod, err := e.Pod(t.Context(), "told")
		return err == nil && strings.Contains(pod.NetworkError, "200ms")
	})
	e.network.timeout = time.Hour
	create("hurried")
	ctx, cancel := context.WithTimeout(e.withNamespace(t.Context()), 100*time.Millisecond)
	defer cancel()
	if err := e.network.remove(ctx, "hurried"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("removal while the plugin hangs: %v", err)
	}
	for _, id := range []string{"hurried", "told"} {
		if err := e.RemovePod(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// A daemon that was killed while it connected a pod leaves that to the next.
func TestNetworkIsResumed(t *testing.T) {
	if !canNAT() {
		t.Skip("this host cannot masquerade")
	}
	h := newHost(t, "overlayfs")
	e := h.open(t)
	ctx := t.Context()
	pod, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: "offline", Network: orchestrator.NetworkNone})
	if err != nil {
		t.Fatal(err)
	}
	// So it looks between the pod's creation and its connection.
	record, err := json.Marshal(podRecord{Network: orchestrator.NetworkNAT})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.setExtension(e.withNamespace(ctx), pod.ID, extSpec, record); err != nil {
		t.Fatal(err)
	}
	e.Close()
	e = h.open(t)
	defer e.Close()
	within(t, "an address of the pod", func() bool {
		if pod, err = e.Pod(ctx, "offline"); err != nil {
			t.Fatal(err)
		}
		return pod.IP != "" || pod.NetworkError != ""
	})
	if pod.NetworkError != "" {
		t.Error(pod.NetworkError)
	}
	if err := e.RemovePod(ctx, pod.ID); err != nil {
		t.Error(err)
	}
	if left := h.state(t)["interfaces"]; len(left) > 0 {
		t.Errorf("interfaces left: %v", left)
	}
}
