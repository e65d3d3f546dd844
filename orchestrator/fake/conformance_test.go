package fake_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/orchestrator"
	"berth/orchestrator/conformance"
	"berth/orchestrator/fake"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Host {
		e := fake.New()
		t.Cleanup(func() { e.Close() })
		if _, err := e.Images().Import(t.Context(), bytes.NewReader(conformance.Image(t)), orchestrator.TransferOptions{}); err != nil {
			t.Fatal(err)
		}
		e.Handle("toolbox", func(ctx context.Context, p *fake.Process) int { return toolbox(ctx, e, p) })
		return conformance.Host{
			Engine: e, Image: conformance.ImageRef, NAT: true,
			Reopen: func(*testing.T) orchestrator.Engine { return e.Connect() },
			State: func(t *testing.T) map[string][]string {
				pods, err := e.Pods(context.Background(), nil)
				if err != nil {
					t.Fatal(err)
				}
				out := map[string][]string{}
				for _, p := range pods {
					out[p.ID] = []string{strconv.Itoa(e.Processes(p.ID))}
				}
				return out
			},
		}
	})
}

// toolbox does what the suite's program of that name does, in goroutines: what a kernel would do to a process it reads
// from the container's specification.
func toolbox(ctx context.Context, e *fake.Engine, p *fake.Process) int {
	fail := func(err error) int {
		if err == nil {
			return 0
		}
		fmt.Fprintln(p.Stderr, err)
		return 1
	}
	wait := func() int {
		<-ctx.Done()
		return 1
	}
	number := func(i int) int {
		n, err := strconv.Atoi(p.Args[i])
		if err != nil {
			panic(err) // the suite's own mistake
		}
		return n
	}
	spec, err := e.Spec(p.Pod, p.Container)
	if err != nil {
		return fail(err)
	}
	pod, err := e.PodSpec(p.Pod)
	if err != nil {
		return fail(err)
	}
	args := p.Args[1:]
	if len(args) == 0 {
		return fail(fmt.Errorf("no verb"))
	}
	switch args[0] {
	case "wait":
		return wait()
	case "stubborn":
		p.Catch(15, 2)
		fmt.Fprintln(p.Stdout, "ready")
		return wait()
	case "trap":
		c := p.Catch(15, 10, 2)
		fmt.Fprintln(p.Stdout, "ready")
		select {
		case sig := <-c:
			fmt.Fprintln(p.Stdout, "got", sig)
			return sig
		case <-ctx.Done():
			return 1
		}
	case "exit":
		return number(2)
	case "echo":
		fmt.Fprintln(p.Stdout, strings.Join(args[1:], " "))
	case "split":
		fmt.Fprintln(p.Stdout, "to stdout")
		fmt.Fprintln(p.Stderr, "to stderr")
	case "mute":
		fmt.Fprintln(p.Stdout, "to stdout")
		for i := range number(2) {
			fmt.Fprintln(p.Stderr, "line", i+1)
		}
	case "lines":
		var b bytes.Buffer
		for i := range number(2) {
			fmt.Fprintln(&b, "line", i+1)
		}
		p.Stdout.Write(b.Bytes())
		return wait()
	case "cat":
		if len(args) == 1 {
			_, err := io.Copy(p.Stdout, p.Stdin)
			return fail(err)
		}
		data, err := p.ReadFile(args[1])
		p.Stdout.Write(data)
		return fail(err)
	case "create":
		if _, err := p.ReadFile(args[1]); err == nil {
			return fail(&fs.PathError{Op: "open", Path: args[1], Err: fs.ErrExist})
		}
		return fail(p.WriteFile(args[1], nil))
	case "write":
		return fail(p.WriteFile(args[1], []byte(args[2])))
	case "env":
		fmt.Fprintln(p.Stdout, strings.Join(p.Env, "\n"))
	case "status":
		return status(spec, p)
	case "id":
		groups := slices.Sorted(slices.Values(p.Groups))
		fmt.Fprintln(p.Stdout, p.UID, p.GID, groups, p.Cwd)
	case "host":
		fmt.Fprintln(p.Stdout, pod.Hostname)
	case "ns":
		for _, n := range []string{"pid", "ipc", "net", "uts"} {
			fmt.Fprintf(p.Stdout, "%s:[%s]\n", n, p.Pod)
		}
		fmt.Fprintf(p.Stdout, "mnt:[%s.%s]\n", p.Pod, p.Container)
	case "size":
		var now orchestrator.TermSize
		for {
			fmt.Fprintf(p.Stdout, "size %d %d\r\n", now.Cols, now.Rows)
			if len(args) == 3 && int(now.Cols) == number(2) && int(now.Rows) == number(3) {
				return 0
			}
			select {
			case now = <-p.Resize:
			case <-ctx.Done():
				return 1
			}
		}
	case "spawn":
		for range number(2) {
			err := p.Spawn(func(ctx context.Context, _ *fake.Process) int { <-ctx.Done(); return 0 }, "toolbox", "wait")
			if err != nil {
				return fail(err)
			}
		}
		fmt.Fprintln(p.Stdout, "ready")
		if len(args) > 2 {
			return 0
		}
		return wait()
	case "memory":
		n := int64(number(2)) << 20
		if spec.Limits.Memory > 0 && n > spec.Limits.Memory {
			return fail(e.OOM(p.Pod, p.Container))
		}
		if err := e.SetStats(p.Pod, p.Container, orchestrator.Stats{Memory: n}); err != nil {
			return fail(err)
		}
		fmt.Fprintln(p.Stdout, "ready")
		return wait()
	case "burn":
		if err := e.SetStats(p.Pod, p.Container, orchestrator.Stats{CPU: time.Second, Memory: 1 << 20}); err != nil {
			return fail(err)
		}
		return wait()
	case "interfaces":
		fmt.Fprintln(p.Stdout, "lo 0x9")
		if pod.Network == orchestrator.NetworkNAT {
			fmt.Fprintln(p.Stdout, "eth0 0x1003")
		}
	case "ls":
		if args[1] == "/proc" {
			for i := range e.Processes(p.Pod) {
				fmt.Fprintln(p.Stdout, i+1)
			}
			return 0
		}
		names, err := p.ReadDir(args[1])
		for _, n := range names {
			fmt.Fprintln(p.Stdout, n)
		}
		return fail(err)
	default:
		return fail(fmt.Errorf("verb %q: unknown", args[0]))
	}
	return 0
}

// status prints the lines of /proc/self/status that the specification decides.
func status(spec orchestrator.ContainerSpec, p *fake.Process) int {
	bits := map[string]int{"CAP_KILL": 5, "CAP_SYS_NICE": 23} // capabilities(7)
	caps := uint64(0)
	for _, c := range spec.Caps {
		caps |= 1 << bits[c]
	}
	for _, k := range []string{"CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		fmt.Fprintf(p.Stdout, "%s:\t%016x\n", k, caps)
	}
	noNew, seccomp := 1, 2
	if spec.NewPrivileges {
		noNew = 0
	}
	if spec.Seccomp == "unconfined" {
		seccomp = 0
	}
	fmt.Fprintf(p.Stdout, "NoNewPrivs:\t%d\nSeccomp:\t%d\n", noNew, seccomp)
	return 0
}
