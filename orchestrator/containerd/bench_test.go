package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"berth/orchestrator"
	"berth/orchestrator/conformance"

	"golang.org/x/sys/unix"
)

// meter counts the CPU time of this process and what it starts, containerd, shims and runtimes too, in a cgroup of its own.
type meter struct {
	host *cgroupHost
	path string
}

func newMeter(b *testing.B) *meter {
	host, err := findCgroups()
	if err != nil {
		b.Skip(err)
	}
	m := &meter{host: host, path: fmt.Sprintf("/berth-bench-%d", os.Getpid())}
	controller := "cpuacct"
	if host.unified {
		controller = "cpu"
	}
	if err := host.enable(controller, m.path); err != nil {
		b.Fatal(err)
	}
	root := host.root(controller)
	join := func(p string) error {
		return os.WriteFile(filepath.Join(root, p, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err := join(m.path); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		join("/")
		unix.Rmdir(filepath.Join(root, m.path))
	})
	return m
}

func (m *meter) read(b *testing.B) time.Duration {
	var n int64
	var err error
	if m.host.unified {
		n, err = readField(filepath.Join(m.host.root("cpu"), m.path, "cpu.stat"), "usage_usec")
		n *= int64(time.Microsecond)
	} else {
		n, err = readNumber(filepath.Join(m.host.root("cpuacct"), m.path, "cpuacct.usage"))
	}
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}

// BenchmarkPod is the life of a session's pod with nine containers, each step of all nine at once. The phases are reported
// in milliseconds of time and of CPU time: the second is what a session's start is made of on a small machine.
func BenchmarkPod(b *testing.B) {
	cpu := newMeter(b)
	h := newHost(b, "overlayfs")
	e := h.open(b)
	defer e.Close()
	h.importImage(b, e)
	const containers = 9
	type spent struct{ wall, cpu time.Duration }
	phase := make(map[string]spent)
	var last time.Time
	var lastCPU time.Duration
	begin := func() { last, lastCPU = time.Now(), cpu.read(b) }
	lap := func(name string) {
		p := phase[name]
		p.wall += time.Since(last)
		p.cpu += cpu.read(b) - lastCPU
		phase[name] = p
		begin()
	}
	each := func(f func(name string) error) {
		errs := make(chan error, containers)
		for i := range containers {
			go func() { errs <- f(fmt.Sprintf("c%d", i)) }()
		}
		for range containers {
			if err := <-errs; err != nil {
				b.Fatal(err)
			}
		}
	}
	ctx := b.Context()
	n := 0
	for b.Loop() {
		pod := fmt.Sprintf("p%d", n)
		n++
		begin()
		if _, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: pod}); err != nil {
			b.Fatal(err)
		}
		lap("pod")
		each(func(name string) error {
			spec := orchestrator.ContainerSpec{Name: name, Image: conformance.ImageRef, Command: []string{"toolbox", "wait"}, UID: 1000, GID: 1000}
			return e.CreateContainer(ctx, pod, spec)
		})
		lap("create")
		each(func(name string) error { _, err := e.StartContainer(ctx, pod, name); return err })
		lap("start")
		if err := e.RemovePod(ctx, pod); err != nil {
			b.Fatal(err)
		}
		lap("remove")
	}
	for name, p := range phase {
		b.ReportMetric(p.wall.Seconds()*1000/float64(n), name+"-ms")
		b.ReportMetric(p.cpu.Seconds()*1000/float64(n), name+"-cpu-ms")
	}
}
