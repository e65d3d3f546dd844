package containerd

import (
	"strings"
	"testing"
	"time"

	"berth/orchestrator"
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
