package containerd

import (
	"fmt"
	"testing"
	"time"

	"berth/orchestrator"
	"berth/orchestrator/conformance"
)

// BenchmarkPod is the life of a session's pod with nine containers: the phases are reported in milliseconds each.
func BenchmarkPod(b *testing.B) {
	h := newHost(b, "overlayfs")
	e := h.open(b)
	defer e.Close()
	h.importImage(b, e)
	const containers = 9
	phase := make(map[string]time.Duration)
	var last time.Time
	lap := func(name string) {
		now := time.Now()
		phase[name] += now.Sub(last)
		last = now
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
		last = time.Now()
		if _, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: pod}); err != nil {
			b.Fatal(err)
		}
		lap("pod")
		each(func(name string) error {
			return e.CreateContainer(ctx, pod, orchestrator.ContainerSpec{Name: name, Image: conformance.ImageRef, Command: []string{"toolbox", "wait"}, UID: 1000, GID: 1000})
		})
		lap("create")
		each(func(name string) error { _, err := e.StartContainer(ctx, pod, name); return err })
		lap("start")
		if err := e.RemovePod(ctx, pod); err != nil {
			b.Fatal(err)
		}
		lap("remove")
	}
	for name, d := range phase {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(n), name+"-ms")
	}
}
