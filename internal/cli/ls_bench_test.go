package cli

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// BenchmarkLs runs `berth ls` as a process of its own beside 50 sessions; DESIGN asks for at most 30 ms. The daemon is
// the fake, so this is what the client costs. BERTH_BENCH_BIN names the program.
func BenchmarkLs(b *testing.B) {
	bin := os.Getenv("BERTH_BENCH_BIN")
	if bin == "" {
		b.Skip("BERTH_BENCH_BIN names no program")
	}
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprintf("s%02d", i))
	}
	bench := newBench(b, names...)
	for b.Loop() {
		cmd := exec.Command(bin, "ls")
		cmd.Env = bench.Env
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
	}
}
