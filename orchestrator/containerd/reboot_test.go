package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"berth/orchestrator"
	"berth/orchestrator/conformance"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// reboot does to an instance what a restart of the host does: no process, mount or cgroup of it is left and its run
// directory is empty; what lies in its state directory stays.
func (h *host) reboot(t *testing.T, e *Engine) {
	t.Helper()
	h.kill(t)
	for _, pid := range h.processes(t) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(h.layout.Run))
	if err != nil {
		t.Fatal(err)
	}
	sort.Slice(mounts, func(i, j int) bool { return len(mounts[i].Mountpoint) > len(mounts[j].Mountpoint) })
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			t.Fatalf("unmount %s: %v", m.Mountpoint, err)
		}
	}
	for _, root := range e.cgroups.roots {
		files, err := filepath.Glob(filepath.Join(root, h.layout.Instance(), "*", "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := e.cgroups.remove(filepath.Join("/", h.layout.Instance(), filepath.Base(filepath.Dir(f)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.RemoveAll(h.layout.Run); err != nil {
		t.Fatal(err)
	}
	h.start(t)
}

// processes are the shims of the instance and all that runs in its cgroups.
func (h *host) processes(t *testing.T) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		cmd, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		cg, _ := os.ReadFile(filepath.Join(d, "cgroup"))
		if !bytes.Contains(cmd, []byte("\x00"+h.layout.ContainerdSocket()+"\x00")) && !bytes.Contains(cg, []byte("/"+h.layout.Instance()+"/")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			t.Fatal(err)
		}
		if pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestReboot finds pods whose metadata outlived their processes: they are listed, do not run, and can be removed.
func TestReboot(t *testing.T) {
	ctx := t.Context()
	h := newHost(t, "overlayfs")
	e := h.open(t)
	h.importImage(t, e)
	before := h.state(t)
	spec := orchestrator.PodSpec{ID: "p", Data: []byte("plan"), Limits: orchestrator.Limits{PIDs: 500}}
	if canNAT() {
		spec.Network = orchestrator.NetworkNAT
	}
	if _, err := e.CreatePod(ctx, spec); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c := orchestrator.ContainerSpec{Name: fmt.Sprintf("c%d", i), Image: conformance.ImageRef}
		if err := e.CreateContainer(ctx, "p", c); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if _, err := e.StartContainer(ctx, "p", c.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if spec.Network == orchestrator.NetworkNAT {
		e.network.mu.Lock()
		job := e.network.jobs["p"]
		e.network.mu.Unlock()
		<-job.done
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	h.reboot(t, e)

	e = h.open(t)
	defer e.Close()
	p, err := e.Pod(ctx, "p")
	if err != nil || p.Running || p.AnchorPID != 0 || string(p.Data) != "plan" {
		t.Errorf("got %+v, %v, want the pod with its data, not running", p, err)
	}
	list, err := e.Containers(ctx, "p")
	if err != nil || len(list) != 3 {
		t.Fatalf("got %+v, %v, want three containers", list, err)
	}
	for _, c := range list {
		if c.State == orchestrator.StateRunning || c.PID != 0 {
			t.Errorf("got %+v, want it not running", c)
		}
	}
	if err := e.RemovePod(ctx, "p"); err != nil {
		t.Fatal(err)
	}
	after := h.state(t)
	// Unlike a real restart, this one leaves zombies for the host's init to reap, with their namespaces, and what the
	// instance makes once and keeps was not there before.
	for _, kind := range []string{"processes", "namespaces"} {
		delete(before, kind)
		delete(after, kind)
	}
	after["files"] = slices.DeleteFunc(after["files"], func(f string) bool {
		rel, err := filepath.Rel(h.layout.State, f)
		return err == nil && (strings.HasPrefix(rel, "cni") || strings.HasPrefix(rel, "anchor") || rel == "logs" ||
			strings.HasSuffix(rel, "io.containerd.runtime.v2.task/"+h.layout.Instance())) || !slices.Contains(before["files"], f) && strings.HasPrefix(f, h.layout.Run)
	})
	before["files"] = slices.DeleteFunc(before["files"], func(f string) bool { return !slices.Contains(after["files"], f) })
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the host is not as it was (-before +after):\n%s", diff)
	}
	// The name can be used again, and everything works.
	if _, err := e.CreatePod(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if err := e.CreateContainer(ctx, "p", orchestrator.ContainerSpec{Name: "c", Image: conformance.ImageRef}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.StartContainer(ctx, "p", "c"); err != nil {
		t.Error(err)
	}
	if err := e.RemovePod(ctx, "p"); err != nil {
		t.Error(err)
	}
}

// A container starts anew from the image it was made of, whatever has become of the image's name meanwhile.
func TestRestartWithoutImage(t *testing.T) {
	ctx := t.Context()
	h := newHost(t, "overlayfs")
	e := h.open(t)
	defer e.Close()
	h.importImage(t, e)
	if _, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: "p"}); err != nil {
		t.Fatal(err)
	}
	if err := e.CreateContainer(ctx, "p", orchestrator.ContainerSpec{Name: "c", Image: conformance.ImageRef, Command: []string{"toolbox", "exit", "0"}}); err != nil {
		t.Fatal(err)
	}
	run := func() {
		t.Helper()
		if _, err := e.StartContainer(ctx, "p", "c"); err != nil {
			t.Fatal(err)
		}
		within(t, "the program ends", func() bool {
			st, err := e.Container(ctx, "p", "c")
			return err == nil && st.State == orchestrator.StateExited && st.ExitCode == 0
		})
	}
	run()
	// As a build does that gives the name to another image, with the collector's run at the worst moment of a restart.
	nctx := e.withNamespace(ctx)
	if err := e.client.ImageService().Delete(nctx, conformance.ImageRef); err != nil {
		t.Fatal(err)
	}
	if err := e.deleteTask(nctx, "p.c"); err != nil {
		t.Fatal(err)
	}
	if err := e.client.SnapshotService(e.snapshotter).Remove(nctx, "p.c"); err != nil {
		t.Fatal(err)
	}
	prune := func() {
		t.Helper()
		if _, err := e.images.(*images).Prune(ctx); err != nil {
			t.Fatal(err)
		}
	}
	prune()
	run()
	if st, err := e.Container(ctx, "p", "c"); err != nil || len(st.Labels) != 0 {
		t.Errorf("labels of our own are shown: %v, %v", st.Labels, err)
	}
	// It goes with the container.
	if err := e.RemovePod(ctx, "p"); err != nil {
		t.Fatal(err)
	}
	prune()
	err := e.client.SnapshotService(e.snapshotter).Walk(nctx, func(_ context.Context, i snapshots.Info) error {
		t.Errorf("snapshot %q is left", i.Name)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestMemory holds what a pod costs beyond its programs: its shim and anchor, in a pod of nine containers.
func TestMemory(t *testing.T) {
	ctx := t.Context()
	h := newHost(t, "overlayfs")
	e := h.open(t)
	defer e.Close()
	h.importImage(t, e)
	if _, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: "p"}); err != nil {
		t.Fatal(err)
	}
	defer e.RemovePod(ctx, "p")
	for i := range 9 {
		c := orchestrator.ContainerSpec{Name: fmt.Sprintf("c%d", i), Image: conformance.ImageRef}
		if err := e.CreateContainer(ctx, "p", c); err != nil {
			t.Fatal(err)
		}
		if _, err := e.StartContainer(ctx, "p", c.Name); err != nil {
			t.Fatal(err)
		}
	}
	var shims int
	var total int64
	for _, pid := range h.processes(t) {
		dir := fmt.Sprintf("/proc/%d", pid)
		cmd, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		name, _, _ := bytes.Cut(cmd, []byte{0})
		base := filepath.Base(string(name))
		if base != "containerd-shim-runc-v2" && base != anchorProgram {
			continue
		}
		if base != anchorProgram {
			shims++
		}
		data, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if k, v, ok := strings.Cut(line, ":"); ok && k == "Pss" {
				kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%s: %d KiB", base, kb)
				total += kb
			}
		}
	}
	if shims != 1 {
		t.Errorf("%d shims serve one pod, want 1", shims)
	}
	const most = 20 << 10 // KiB; the gateway's share comes on top and is small
	if total > most {
		t.Errorf("shim and anchor take %d KiB, more than %d", total, most)
	}
}
