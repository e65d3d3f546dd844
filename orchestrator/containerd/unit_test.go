package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/orchestrator"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run with -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestSpec(t *testing.T) {
	img := ocispec.ImageConfig{Env: []string{"PATH=/usr/bin:/bin", "LANG=C"}, Cmd: []string{"sh"}, WorkingDir: "/srv"}
	for name, c := range map[string]orchestrator.ContainerSpec{
		"plain": {Name: "plain", Image: "i", UID: 1000, GID: 1000, Groups: []int{44}},
		"full": {
			Name: "full", Image: "i", Command: []string{"Xvfb", ":0"}, Env: []string{"LANG=de_DE.UTF-8", "A=b"}, Cwd: "/tmp",
			Mounts: []orchestrator.Mount{{Source: "/s/deep", Target: "/run/user/1/x"}, {Source: "/s/run", Target: "/run/user/1", ReadOnly: true}, {Source: "/s/shm", Target: "/dev/shm"}},
			Caps:   []string{"CAP_SYS_TTY_CONFIG"}, Limits: orchestrator.Limits{CPUs: 1.5, Memory: 1 << 30, PIDs: 100}, ReadOnly: true,
			NewPrivileges: true, Seccomp: SeccompUnconfined, Devices: []string{"/dev/null"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := containerSpec(c, img, podNamespaces{anchor: 42, net: name == "plain"}, "/berth/p/"+name, name == "full")
			if err != nil {
				t.Fatal(err)
			}
			s.Linux.Seccomp = nil // depends on kernel and architecture; see TestSeccomp
			s.Process.OOMScoreAdj, s.Process.Rlimits = nil, nil
			text, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "spec-"+name+".json", append(text, '\n'))
		})
	}
}

func TestSeccomp(t *testing.T) {
	spec, err := containerSpec(orchestrator.ContainerSpec{Command: []string{"x"}}, ocispec.ImageConfig{}, podNamespaces{}, "/c", false)
	if err != nil {
		t.Fatal(err)
	}
	// allowed tells whether a profile lets a call through whatever its arguments are.
	allowed := func(profile, call string) bool {
		p, err := seccompProfile(profile, spec)
		if err != nil {
			t.Fatal(err)
		}
		ok := false
		for _, s := range p.Syscalls {
			for _, n := range s.Names {
				if n == call && len(s.Args) == 0 {
					ok = s.Action == "SCMP_ACT_ALLOW"
				}
			}
		}
		return ok
	}
	for _, c := range []struct {
		call            string
		plain, ofNested bool
	}{
		{"read", true, true}, {"kcmp", true, true}, {"mbind", true, true}, {"clone3", false, true}, {"mount", false, true}, {"unshare", false, true},
		{"bpf", false, false}, {"keyctl", false, false}, {"init_module", false, false}, {"kexec_load", false, false}, {"open_by_handle_at", false, false},
	} {
		if got := allowed(SeccompDefault, c.call); got != c.plain {
			t.Errorf("default: %s allowed: got %v, want %v", c.call, got, c.plain)
		}
		if got := allowed(SeccompNested, c.call); got != c.ofNested {
			t.Errorf("nested: %s allowed: got %v, want %v", c.call, got, c.ofNested)
		}
	}
	if _, err := seccompProfile("x", spec); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("unknown profile: got %v", err)
	}
}

func TestMergeEnv(t *testing.T) {
	for _, c := range []struct {
		base, over, want []string
	}{
		{nil, nil, []string{"PATH=" + defaultPath}},
		{[]string{"PATH=/x", "A=1"}, []string{"A=2", "B=="}, []string{"PATH=/x", "A=2", "B=="}},
		{[]string{"A="}, []string{"A"}, []string{"PATH=" + defaultPath, "A"}},
	} {
		if diff := cmp.Diff(c.want, mergeEnv(c.base, c.over)); diff != "" {
			t.Errorf("mergeEnv(%q, %q) (-want +got):\n%s", c.base, c.over, diff)
		}
	}
}

func TestCommandErr(t *testing.T) {
	const runc = "OCI runtime create failed: runc create failed: unable to start container process: error during container init: "
	for _, c := range []struct {
		text  string
		class error
	}{
		{runc + `exec: "nope": executable file not found in $PATH`, orchestrator.ErrNotFound},
		{runc + `exec: "/nope": stat /nope: no such file or directory`, orchestrator.ErrNotFound},
		{runc + `exec: "/etc/passwd": permission denied`, orchestrator.ErrInvalid},
		{runc + `error mounting "/x" to rootfs at "/y": stat /x: no such file or directory`, nil},
	} {
		err := commandErr(errors.New(c.text), "nope", "image")
		if c.class != nil && !errors.Is(err, c.class) || c.class == nil && (errors.Is(err, orchestrator.ErrNotFound) || err.Error() != c.text) {
			t.Errorf("%s: got %v, want class %v", c.text, err, c.class)
		}
	}
}

func TestLimitFiles(t *testing.T) {
	l := orchestrator.Limits{CPUs: 0.5, Memory: 1 << 20, PIDs: 7}
	for _, c := range []struct {
		unified bool
		want    []limitFile
	}{
		{false, []limitFile{{"cpu", "cpu.cfs_period_us", "100000"}, {"cpu", "cpu.cfs_quota_us", "50000"}, {"memory", "memory.limit_in_bytes", "1048576"}, {"pids", "pids.max", "7"}}},
		{true, []limitFile{{"cpu", "cpu.max", "50000 100000"}, {"memory", "memory.max", "1048576"}, {"pids", "pids.max", "7"}}},
	} {
		h := &cgroupHost{unified: c.unified}
		if diff := cmp.Diff(c.want, h.limitFiles(l), cmp.AllowUnexported(limitFile{})); diff != "" {
			t.Errorf("unified %v (-want +got):\n%s", c.unified, diff)
		}
		if f := h.limitFiles(orchestrator.Limits{}); f != nil {
			t.Errorf("no limits: got %v", f)
		}
	}
}

// What berth doctor says of a host that lacks a controller: sessions with the limit cannot start.
func TestLimitWithoutController(t *testing.T) {
	for _, h := range []*cgroupHost{{by: map[string]string{}}, {unified: true, by: map[string]string{"": filepath.Join(t.TempDir(), "none")}}} {
		for _, l := range []orchestrator.Limits{{CPUs: 1}, {Memory: 1 << 20}, {PIDs: 7}} {
			if err := h.create("/berth/p", l); !errors.Is(err, orchestrator.ErrUnavailable) {
				t.Errorf("unified %v, %+v: got %v", h.unified, l, err)
			}
		}
	}
}

// The last pod of an instance goes while the next one comes.
func TestCgroupParent(t *testing.T) {
	root := t.TempDir()
	h := &cgroupHost{roots: []string{root}, by: map[string]string{}}
	var g errgroup.Group
	for i := range 4 {
		p := fmt.Sprintf("/berth/p%d", i)
		g.Go(func() error {
			for range 500 {
				if err := h.create(p, orchestrator.Limits{}); err != nil {
					return err
				}
				if err := os.Mkdir(filepath.Join(root, p, "c"), 0o755); err != nil {
					return err
				}
				if err := h.remove(p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if exists(filepath.Join(root, "berth")) {
		t.Error("the parent is left")
	}
}

// Exits are recorded while their pod's directory is removed.
func TestRemoveBusy(t *testing.T) {
	for range 4 {
		dir := filepath.Join(t.TempDir(), "pod")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		var writer sync.WaitGroup
		begun := make(chan struct{})
		writer.Go(func() {
			for i := range 400 {
				os.WriteFile(filepath.Join(dir, fmt.Sprintf("c%d.exit", i)), nil, 0o600)
				if i == 100 {
					close(begun)
				}
			}
		})
		<-begun
		if err := removeBusy(dir); err != nil {
			t.Error(err)
		}
		writer.Wait()
		if exists(dir) {
			t.Error("it is still there")
		}
	}
}

func TestFIFODir(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "fifo")
	mine, err := makeFIFODir(parent)
	if err != nil {
		t.Fatal(err)
	}
	pid := os.Getpid()
	for _, left := range []string{"4194304-1-1", fmt.Sprintf("%d-%d-1", pid, processStart(pid)-1), "123456"} {
		if err := os.MkdirAll(filepath.Join(parent, left, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	second, err := makeFIFODir(parent)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	dirs, err := os.ReadDir(parent)
	for _, d := range dirs {
		got = append(got, filepath.Join(parent, d.Name()))
	}
	if diff := cmp.Diff([]string{mine, second}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := errors.Join(removeFIFODir(mine), removeFIFODir(second)); err != nil || exists(parent) {
		t.Errorf("after the end of both: %v", err)
	}
}

// TestUnifiedStats reads what version 2 of cgroups offers, wherever the test runs.
func TestUnifiedStats(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "p/c")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"cpu.stat": "usage_usec 1500\nuser_usec 1\n", "memory.current": "5000\n", "memory.stat": "anon 1\ninactive_file 2000\n", "pids.current": "3\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := &cgroupHost{unified: true, roots: []string{root}, by: map[string]string{"": root}}
	got, err := h.stats("/p/c")
	if want := (orchestrator.Stats{CPU: 1500 * time.Microsecond, Memory: 3000, PIDs: 3}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	// Without the memory controller its files are absent; without the cgroup all are.
	os.Remove(filepath.Join(dir, "memory.current"))
	if got, err = h.stats("/p/c"); err != nil || got.Memory != 0 {
		t.Errorf("no memory controller: got %+v, %v", got, err)
	}
	if _, err = h.stats("/p/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no cgroup: got %v", err)
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string][2]int{
		"v2.4.2": {2, 4}, "1.6.20~ds1": {1, 6}, "v1.7.24-rc.1+unknown": {1, 7}, "2.10": {2, 10}, "": {math.MaxInt, 0}, "master": {math.MaxInt, 0}, "2": {math.MaxInt, 0},
	} {
		if major, minor := parseVersion(in); major != want[0] || minor != want[1] {
			t.Errorf("%q: got %d.%d, want %d.%d", in, major, minor, want[0], want[1])
		}
	}
}

// TestControllerMissing has a kernel of version 2 that was booted with cgroup_disable=memory.
func TestControllerMissing(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"cgroup.controllers", "cgroup.subtree_control"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("cpuset cpu io pids\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := &cgroupHost{unified: true, roots: []string{root}, by: map[string]string{"": root}}
	err := h.create("/berth/p", orchestrator.Limits{Memory: 1 << 30})
	if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), `no controller "memory"`) {
		t.Errorf("create = %v; want that there is no memory controller", err)
	}
}

func TestFreeSubnet(t *testing.T) {
	first, err := freeSubnet("berth", nil)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := freeSubnet("berth", []netip.Prefix{netip.MustParsePrefix(first.String())}); err != nil || other == first {
		t.Errorf("with %v taken: got %v, %v", first, other, err)
	}
	if inside, err := freeSubnet("berth", []netip.Prefix{netip.PrefixFrom(first.Addr().Next(), 32)}); err != nil || inside == first {
		t.Errorf("with a host in %v taken: got %v, %v", first, inside, err)
	}
	if _, err := freeSubnet("berth", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); !errors.Is(err, orchestrator.ErrUnavailable) {
		t.Errorf("with all taken: got %v", err)
	}
}

func TestNetworkConfig(t *testing.T) {
	golden(t, "cni.json", []byte(networkConfig("berth-1a2b3c", "10.200.0.0/16", "/state/cni/addresses")+"\n"))
}

func TestTrimLog(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "pod", "c.log")
	if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	// As the shim does: open once, always append.
	w, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const lines, limit, keep = 40000, 256 << 10, 128 << 10
	var last int
	write := func() {
		var b strings.Builder
		for range lines {
			last++
			fmt.Fprintf(&b, "line %d\n", last)
		}
		if _, err := io.WriteString(w, b.String()); err != nil {
			t.Fatal(err)
		}
	}
	read := func(tail int) string {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		r := &logReader{ctx: t.Context(), f: f}
		defer r.Close()
		if err := r.seek(tail); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for range 3 {
		write()
		if err := trimTree(dir, limit, keep); err != nil {
			t.Fatal(err)
		}
		got := read(-1)
		if len(got) > keep+2*holeAlign || len(got) < keep/2 {
			t.Fatalf("%d bytes stayed, want about %d", len(got), keep)
		}
		// Whole lines, up to the last, none missing.
		var first int
		if _, err := fmt.Sscanf(got, "line %d\n", &first); err != nil {
			t.Fatalf("begins with %.20q: %v", got, err)
		}
		if n := strings.Count(got, "\n"); first+n-1 != last {
			t.Errorf("%d lines from line %d, but the last is %d", n, first, last)
		}
		if got, want := read(2), fmt.Sprintf("line %d\nline %d\n", last-1, last); got != want {
			t.Errorf("tail: got %q, want %q", got, want)
		}
		if all := read(1 << 30); all != got {
			t.Errorf("a tail longer than the log: got %d bytes, want %d", len(all), len(got))
		}
	}
}

// A reader that is slower than the log grows finds a hole where it is: it goes on behind it, with a whole line.
func TestSlowLogReader(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "c.log")
	w, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteString("a\x00b\n"); err != nil { // a program may say so itself
		t.Fatal(err)
	}
	const lines = 40000
	for i := 1; i <= lines; i++ {
		if _, err := fmt.Fprintf(w, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	r := &logReader{ctx: t.Context(), f: f}
	defer r.Close()
	head := make([]byte, len("a\x00b\nline 1\nli"))
	if _, err := io.ReadFull(r, head); err != nil || string(head) != "a\x00b\nline 1\nli" {
		t.Fatalf("got %q, %v", head, err)
	}
	if err := trimTree(dir, 256<<10, 128<<10); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || bytes.IndexByte(rest, 0) >= 0 {
		t.Fatalf("NUL among what follows, %v: %.60q", err, rest)
	}
	var first int
	if _, err := fmt.Sscanf(string(rest), "\nline %d\n", &first); err != nil || first < 2 {
		t.Errorf("goes on with %.40q, %v", rest, err)
	}
	if n := bytes.Count(rest[1:], []byte("\n")); first+n-1 != lines {
		t.Errorf("%d lines from line %d, but the last is %d", n, first, lines)
	}
}

func TestNames(t *testing.T) {
	for _, id := range []string{"p", "p-1", "a-b-c"} {
		for _, name := range []string{"", "c", "c-2"} {
			if p, n := splitID(containerID(id, name)); p != id || n != name {
				t.Errorf("splitID(containerID(%q, %q)) = %q, %q", id, name, p, n)
			}
		}
	}
}
