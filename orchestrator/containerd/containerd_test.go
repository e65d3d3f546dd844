package containerd

import (
	"os"
	"os/exec"
	"testing"

	"berth/internal/hoststate"
	"berth/orchestrator"
	"berth/orchestrator/conformance"
)

func TestConformance(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "native", "btrfs"} {
		t.Run(snapshotter, func(t *testing.T) { runSuite(t, snapshotter) })
	}
}

func runSuite(t *testing.T, snapshotter string) {
	conformance.Run(t, func(t *testing.T) conformance.Host {
		h := newHost(t, snapshotter)
		e := h.open(t)
		t.Cleanup(func() { e.Close() })
		h.importImage(t, e)
		return conformance.Host{
			Engine: e, Image: conformance.ImageRef, Local: true, NAT: canNAT(),
			Reopen:  func(t *testing.T) orchestrator.Engine { return h.open(t) },
			Restart: func(t *testing.T) { h.restart(t) },
			State:   func(t *testing.T) map[string][]string { return h.state(t) },
		}
	})
}

// canNAT tells whether the host's kernel and programs can masquerade.
func canNAT() bool {
	return exec.Command("nft", "list", "tables").Run() == nil || exec.Command("iptables", "-t", "nat", "-L", "-n").Run() == nil
}

// state lists what pods could leave behind.
func (h *host) state(t *testing.T) map[string][]string {
	t.Helper()
	if err := hoststate.Collect(t.Context(), h.layout, h.containerd); err != nil {
		t.Fatal(err)
	}
	s, err := hoststate.Take(h.layout)
	if err != nil {
		t.Fatal(err)
	}
	if dir, err := os.ReadDir(h.layout.Logs()); err == nil {
		for _, d := range dir {
			s["logs"] = append(s["logs"], d.Name())
		}
	}
	return s
}
