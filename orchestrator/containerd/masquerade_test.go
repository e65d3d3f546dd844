package containerd

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// isolated runs f in a thread with a network namespace of its own, which the programs it starts are in too; both end with f.
func isolated(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked, so that the thread is not used again
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("network namespace: %v", err)
			return
		}
		f()
	}()
	<-done
}

func TestMasqueradeOutlivesAReload(t *testing.T) {
	if !canNAT() {
		t.Skip("no NAT here")
	}
	isolated(t, func() {
		m := &masquerade{name: "berth-1a2b3c", subnet: "10.200.0.0/16"}
		rules := func() int {
			nft, _ := exec.Command("nft", "list", "ruleset").Output()
			ipt, _ := exec.Command("iptables", "-t", "nat", "-S").Output()
			return max(strings.Count(string(nft), "ip saddr 10.200.0.0/16"), strings.Count(string(ipt), "-s 10.200.0.0/16"))
		}
		for range 2 {
			if err := m.add(); err != nil {
				t.Error(err)
			}
			if n := rules(); n != 1 {
				t.Errorf("after add: %d rules, want 1", n)
			}
		}
		// What systemctl reload nftables, or iptables-restore, does.
		exec.Command("nft", "flush", "ruleset").Run()
		exec.Command("iptables", "-t", "nat", "-F").Run()
		if n := rules(); n != 0 {
			t.Errorf("after a flush: %d rules", n)
		}
		if err := m.add(); err != nil || rules() != 1 {
			t.Errorf("add after a flush: %d rules, %v", rules(), err)
		}
		if err := m.remove(); err != nil || rules() != 0 {
			t.Errorf("after remove: %d rules, %v", rules(), err)
		}
	})
}
