// Command bench measures what docs/NUMBERS.md states, each number beside its other side in the same run, and prints both
// and their ratio. It drives the real program on the shared test root (BERTH_TEST_ROOT).
//
//	bench [-runs N] [-only startup,memory,ls,cycles,disk]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"berth/test/berthtest"
)

type measurement struct {
	name string
	run  func(context.Context, *bench) error
}

var measurements = []measurement{
	{"startup", startup},
	{"memory", memory},
	{"ls", list},
	{"cycles", cycles},
	{"disk", disk},
}

type bench struct {
	inst *berthtest.Instance
	runs int
}

func main() {
	runs := flag.Int("runs", 7, "runs of each side")
	only := flag.String("only", "", "measurements to make, with commas between; all if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *runs, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, runs int, only string) error {
	inst, err := berthtest.New()
	if err != nil {
		return err
	}
	defer inst.StopDaemon()
	b := &bench{inst, max(runs, 5)}
	for _, m := range measurements {
		if only != "" && !slices.Contains(strings.Split(only, ","), m.name) {
			continue
		}
		if err := m.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// do runs berth, which has to succeed.
func (b *bench) do(ctx context.Context, args ...string) (string, error) {
	r, err := b.inst.Do(ctx, args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("berth %s: code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout, err
}

func median[T ~int64 | ~float64](v []T) T {
	s := slices.Sorted(slices.Values(v))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

func millis(v []time.Duration) string {
	var out []string
	for _, d := range v {
		out = append(out, fmt.Sprint(d.Milliseconds()))
	}
	return strings.Join(out, " ")
}
