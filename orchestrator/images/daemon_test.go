package images_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/orchestrator/containerd"
	"berth/orchestrator/images"
	"berth/orchestrator/private"
	"berth/session/api"

	bkclient "github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"
)

// instance is a private containerd and buildkitd below a directory of their own.
type instance struct {
	layout  paths.Layout
	engine  *containerd.Engine
	service *images.Service
}

// newRoot returns a new directory, short enough for sockets and removed with the test.
func newRoot(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("/tmp", "berth-img-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Errorf("remove %s: %v", root, err)
		}
	})
	return root
}

// startInstance starts an instance below root, or skips the test where that cannot work. opt's Layout, Store and
// Buildkit are set.
func startInstance(t *testing.T, root string, opt images.Options) *instance {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: containerd mounts file systems")
	}
	layout, err := paths.New(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(layout.Libexec, "buildkitd")); err != nil {
		t.Skipf("needs the engine's programs, which `make engine` builds and BERTH_LIBEXEC names: %v", err)
	}
	ctx := context.Background()
	p, err := private.Start(ctx, private.Options{Layout: layout, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(ctx); err != nil {
			t.Errorf("stop the engine's programs: %v", err)
		}
		if t.Failed() {
			for _, n := range []string{"containerd", "buildkitd"} {
				b, _ := os.ReadFile(filepath.Join(layout.State, "log", n+".log"))
				t.Logf("%s's log:\n%s", n, b[max(0, len(b)-10_000):])
			}
		}
	})
	e, err := containerd.New(ctx, containerd.Options{Layout: layout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	opt.Layout, opt.Store, opt.Buildkit = layout, e.Images(), p.Buildkit
	if opt.UserRecipes == "" {
		opt.UserRecipes = filepath.Join(root, "images")
	}
	s, err := images.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return &instance{layout, e, s}
}

var toolbox = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "berth-toolbox-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "toolbox")
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, "berth/orchestrator/conformance/toolbox")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.Join(err, errors.New(string(out)))
	}
	return os.ReadFile(program)
})

// tree is recipes that need no base: they stand on a static program.
func tree(t *testing.T, more map[string]string) fstest.MapFS {
	t.Helper()
	program, err := toolbox()
	if err != nil {
		t.Fatal(err)
	}
	out := fstest.MapFS{
		"tools/Dockerfile":  {Data: []byte("FROM scratch\nCOPY --chmod=755 toolbox /bin/toolbox\nENTRYPOINT [\"/bin/toolbox\"]\n")},
		"tools/toolbox":     {Data: program},
		"tools/recipe.toml": {Data: []byte("description = \"the toolbox\"\nbases = [\"bookworm\"]\n")},
	}
	for name, text := range more {
		out[name] = &fstest.MapFile{Data: []byte(text)}
		dir, _, _ := strings.Cut(name, "/")
		if out[dir+"/recipe.toml"] == nil {
			out[dir+"/recipe.toml"] = &fstest.MapFile{Data: []byte("bases = [\"bookworm\"]\n")}
		}
	}
	return out
}

// recorder collects a build's progress.
type recorder struct {
	t     *testing.T
	built map[string]bool // image -> some step was not cached
	onLog func(line string)
}

func record(t *testing.T) *recorder { return &recorder{t: t, built: map[string]bool{}} }

func (r *recorder) add(b api.Build) {
	var st bkclient.SolveStatus
	if err := json.Unmarshal(b.Status, &st); err != nil {
		r.t.Errorf("progress of %s: %v", b.Image, err)
	}
	for _, v := range st.Vertexes {
		if v.Completed != nil {
			r.t.Logf("%s: %s: cached=%v %s", b.Image, v.Name, v.Cached, v.Error)
			if strings.Contains(v.Name, "] ") && !strings.HasPrefix(v.Name, "[internal]") {
				r.built[b.Image] = r.built[b.Image] || !v.Cached
			}
		}
	}
	for _, l := range st.Logs {
		if r.onLog != nil {
			r.onLog(string(l.Data))
		}
	}
}

func (r *recorder) images() []string { return slices.Sorted(maps.Keys(r.built)) }

func TestBuildChain(t *testing.T) {
	ctx := t.Context()
	recipes := tree(t, map[string]string{
		"middle/Dockerfile": "FROM berth/tools\nCOPY f /etc/release\nRUN [\"/bin/toolbox\", \"write\", \"/ran\", \"yes\"]\n",
		"middle/f":          "one\n",
		"top/Dockerfile":    "FROM berth/middle\nLABEL x=y\nCOPY g /g\n",
		"top/g":             "g\n",
	})
	root := newRoot(t)
	var events []string
	var mu sync.Mutex
	start := func() *instance {
		return startInstance(t, root, images.Options{Recipes: recipes, Event: func(what, ref string) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, what+" "+ref)
		}})
	}
	in := start()
	ensure := func(s *images.Service, names ...string) *recorder {
		t.Helper()
		r := record(t)
		refs, err := s.Ensure(ctx, names, api.EnsureOptions{}, func(e api.UpEvent) {
			if e.Build != nil {
				r.add(*e.Build)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if want := "localhost/berth/" + n + ":latest"; refs[n] != want {
				t.Errorf("Ensure[%s] = %q, want %q", n, refs[n], want)
			}
		}
		return r
	}
	read := func(ref, name string) string {
		t.Helper()
		b, err := in.engine.Images().ReadFile(ctx, ref, name)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}

	if r := ensure(in.service, "top"); !slices.Equal(r.images(), []string{"middle", "tools", "top"}) {
		t.Errorf("built %v, want the whole chain", r.images())
	}
	if want := []string{"image.built localhost/berth/tools:latest", "image.built localhost/berth/middle:latest", "image.built localhost/berth/top:latest"}; !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
	if got := read("localhost/berth/top:latest", "/etc/release"); got != "one\n" {
		t.Errorf("/etc/release = %q", got)
	}
	top, err := in.engine.Images().Get(ctx, "localhost/berth/top:latest")
	if err != nil {
		t.Fatal(err)
	}
	middle, err := in.engine.Images().Get(ctx, "localhost/berth/middle:latest")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(top.Layers[:len(middle.Layers)], middle.Layers) {
		t.Error("top does not share middle's layers")
	}
	if top.Labels["x"] != "y" || top.Labels["berth.recipe"] == "" {
		t.Errorf("labels %v", top.Labels)
	}

	if r := ensure(in.service, "top", "middle"); len(r.images()) != 0 {
		t.Errorf("built %v though nothing has changed", r.images())
	}

	// A changed file rebuilds the image and what stands on it, with the cache for the rest.
	recipes["middle/f"] = &fstest.MapFile{Data: []byte("two\n")}
	s2, err := images.New(images.Options{Layout: in.layout, Store: in.engine.Images(), Recipes: recipes, UserRecipes: filepath.Join(root, "images")})
	if err != nil {
		t.Fatal(err)
	}
	r := ensure(s2, "top")
	if !slices.Equal(r.images(), []string{"middle", "top"}) {
		t.Errorf("built %v, want middle and top", r.images())
	}
	if got := read("localhost/berth/top:latest", "/etc/release"); got != "two\n" {
		t.Errorf("/etc/release = %q after the change", got)
	}

	// A recipe of the user's overrides the built-in one.
	own := filepath.Join(root, "images", "top")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"Dockerfile": "FROM berth/tools\nCOPY mine /mine\n", "recipe.toml": "bases = [\"bookworm\"]\n", "mine": "mine"} {
		if err := os.WriteFile(filepath.Join(own, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ensure(s2, "top")
	if got := read("localhost/berth/top:latest", "/mine"); got != "mine" {
		t.Errorf("/mine = %q", got)
	}
	if err := os.RemoveAll(filepath.Join(root, "images")); err != nil {
		t.Fatal(err)
	}

	// An archive of built images, imported into an instance without them, needs no build.
	ensure(s2, "top")
	var archive bytes.Buffer
	if err := s2.Export(ctx, &archive, "top", "tools"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"top", "middle", "tools"} {
		if err := s2.Remove(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := s2.Remove(ctx, "top"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("Remove of what is gone: %v; want ErrNotFound", err)
	}
	if _, err := s2.Import(ctx, &archive, orchestrator.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	if r := ensure(s2, "top", "tools"); len(r.images()) != 0 {
		t.Errorf("built %v though imported", r.images())
	}
	// Nor does it when the build is asked for: middle, which top was built on, is not here and not needed.
	build := record(t)
	if err := s2.Build(ctx, []string{"top"}, api.BuildOptions{}, build.add); err != nil || len(build.images()) != 0 {
		t.Errorf("Build of what was imported built %v, %v", build.images(), err)
	}
	build = record(t)
	if err := s2.Build(ctx, []string{"top"}, api.BuildOptions{Force: true}, build.add); err != nil {
		t.Errorf("forced build: %v", err)
	}
	if _, err := in.engine.Images().Get(ctx, "localhost/berth/middle:latest"); err != nil {
		t.Errorf("forced build of top did not make middle, which was missing: %v", err)
	}

	// Prune drops images of recipes that are no more, the cache, and says what that freed.
	delete(recipes, "tools/Dockerfile")
	delete(recipes, "tools/toolbox")
	delete(recipes, "tools/recipe.toml")
	s3, err := images.New(images.Options{
		Layout: in.layout, Store: in.engine.Images(), Recipes: fstest.MapFS{"top/Dockerfile": {Data: []byte("FROM scratch")}},
		UserRecipes: filepath.Join(root, "images"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if freed, err := s3.Prune(ctx); err != nil || freed <= 0 {
		t.Errorf("Prune = %d, %v", freed, err)
	}
	list, err := s3.List(ctx)
	if err != nil || len(list) != 1 || list[0].Ref != "localhost/berth/top:latest" {
		t.Errorf("List after Prune = %+v, %v; want top only", list, err)
	}
	if freed, err := s3.Prune(ctx); err != nil || freed != 0 {
		t.Errorf("second Prune = %d, %v; want nothing to free", freed, err)
	}
}

func TestBuildFails(t *testing.T) {
	in := startInstance(t, newRoot(t), images.Options{Recipes: tree(t, map[string]string{
		"bad/Dockerfile":   "FROM berth/tools\nRUN [\"/bin/toolbox\", \"cat\", \"/no/such/file\"]\n",
		"child/Dockerfile": "FROM berth/bad\n",
		"copy/Dockerfile":  "FROM scratch\nCOPY missing /x\n",
	})})
	ctx := t.Context()
	err := in.service.Build(ctx, []string{"child"}, api.BuildOptions{}, record(t).add)
	for _, want := range []string{`image "bad"`, "RUN", "/no/such/file: no such file", "exit code: 1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v; want %q in it", err, want)
		}
	}
	if err := in.service.Build(ctx, []string{"copy"}, api.BuildOptions{}, nil); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("error %v; want the missing file's name", err)
	}
	for _, n := range []string{"nope", "registry.invalid/x/y"} {
		if err := in.service.Build(ctx, []string{n}, api.BuildOptions{}, nil); !errors.Is(err, orchestrator.ErrNotFound) {
			t.Errorf("Build(%s): %v; want ErrNotFound", n, err)
		}
	}
	list, err := in.service.List(ctx)
	if err != nil || len(list) != 1 || list[0].Ref != "localhost/berth/tools:latest" {
		t.Errorf("List = %+v, %v; want tools only", list, err)
	}
}

func TestBuildCancelled(t *testing.T) {
	in := startInstance(t, newRoot(t), images.Options{Recipes: tree(t, map[string]string{
		"slow/Dockerfile": "FROM berth/tools\nRUN [\"/bin/toolbox\", \"stubborn\"]\n",
	})})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := record(t)
	r.onLog = func(line string) {
		if strings.Contains(line, "ready") {
			cancel()
		}
	}
	err := in.service.Build(ctx, []string{"slow"}, api.BuildOptions{}, r.add)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Build = %v; want it cancelled", err)
	}
	if left, err := os.ReadDir(filepath.Join(in.layout.Run, "recipes")); err != nil || len(left) > 0 {
		t.Errorf("left by the cancelled build: %v, %v", left, err)
	}
	if _, err := in.engine.Images().Get(t.Context(), "localhost/berth/slow:latest"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("Get = %v; want no image", err)
	}
	// The program ignores SIGTERM; it must be gone all the same when the instance's engine is asked to build again.
	ctx2, cancel2 := context.WithCancel(t.Context())
	defer cancel2()
	r.onLog = func(string) { cancel2() }
	if err := in.service.Build(ctx2, []string{"slow"}, api.BuildOptions{}, r.add); !errors.Is(err, context.Canceled) {
		t.Errorf("second Build = %v; want it cancelled", err)
	}
}

// TestDiskFull builds on a disk with too little room: the error says so, nothing is left, and after room is made the
// same instance works.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	root := newRoot(t)
	lib := filepath.Join(root, "lib")
	if err := os.Mkdir(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("berth-test", lib, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(lib, 0); err != nil {
			t.Error(err)
		}
	})
	noise := make([]byte, 40<<20)
	for i, x := 0, uint64(88172645463325252); i+8 <= len(noise); i += 8 { // xorshift: does not compress
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for j := range 8 {
			noise[i+j] = byte(x >> (8 * j))
		}
	}
	recipes := tree(t, map[string]string{"big/Dockerfile": "FROM berth/tools\nCOPY noise /noise\n"})
	recipes["big/noise"] = &fstest.MapFile{Data: noise}
	in := startInstance(t, root, images.Options{Recipes: recipes})
	ctx := t.Context()
	if _, err := in.service.Ensure(ctx, []string{"tools"}, api.EnsureOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	// Files, not the disk's free room: BuildKit keeps a file it could not write open for a while after it is removed.
	used := func() (sum int64) {
		err := filepath.WalkDir(lib, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || e.Name() == "reserve" {
				return err
			}
			fi, err := e.Info()
			if err == nil {
				sum += fi.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return sum
	}
	before := used()
	_, err := in.service.Ensure(ctx, []string{"big"}, api.EnsureOptions{}, nil)
	if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.HasPrefix(err.Error(), `image "big": `) || !strings.Contains(err.Error(), "is full (") || !strings.Contains(err.Error(), "berth image prune") {
		t.Fatalf("Ensure = %v; want a full disk and what to do", err)
	}
	list, err := in.service.List(ctx)
	if err != nil || len(list) != 1 {
		t.Errorf("List = %+v, %v; want tools only", list, err)
	}
	if now := used(); now > before+1<<20 {
		t.Errorf("the failed build left %d MiB", (now-before)>>20)
	}
	// Full to the last byte, the disk can still be cleaned up.
	if f, err := os.Create(filepath.Join(lib, "others")); err != nil {
		t.Fatal(err)
	} else if _, err := io.Copy(f, zeros{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	} else {
		f.Close()
	}
	if _, err := in.service.Prune(ctx); err != nil {
		t.Errorf("Prune on the full disk: %v", err)
	}
	if err := os.Remove(filepath.Join(lib, "others")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", lib, "", unix.MS_REMOUNT, "size=512m"); err != nil {
		t.Fatal(err)
	}
	if _, err := in.service.Ensure(ctx, []string{"big", "tools"}, api.EnsureOptions{}, nil); err != nil {
		t.Errorf("Ensure with room: %v", err)
	}
}

// zeros reads as zeros for ever.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestBuiltin builds a recipe that Berth ships on a base made by mmdebstrap: the whole way from the host's mirrors to an
// image with files in it.
func TestBuiltin(t *testing.T) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("needs package mmdebstrap")
	}
	if testing.Short() {
		t.Skip("downloads a Debian release")
	}
	ctx := t.Context()
	in := startInstance(t, newRoot(t), images.Options{})

	// Interrupted, mmdebstrap leaves nothing.
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	r := record(t)
	r.onLog = func(line string) {
		if strings.Contains(line, "installing essential packages") { // the host's /dev/shm and more are mounted by then
			cancel()
		}
	}
	if _, err := in.service.Ensure(short, []string{"bus"}, api.EnsureOptions{}, func(e api.UpEvent) {
		if e.Build != nil {
			r.add(*e.Build)
		}
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("Ensure = %v; want it cancelled", err)
	}
	left, err := filepath.Glob(filepath.Join(in.layout.Bases(), "tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left by the cancelled base: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), in.layout.Bases()) {
		t.Errorf("mounts left by the cancelled base:\n%s", mounts)
	}

	var refs map[string]string
	ensure := func() []string {
		t.Helper()
		r := record(t)
		refs, err = in.service.Ensure(ctx, []string{"bus"}, api.EnsureOptions{}, func(e api.UpEvent) {
			if e.Build != nil {
				r.add(*e.Build)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.images()
	}
	if built := ensure(); !slices.Equal(built, []string{"bus", "debian:bookworm"}) {
		t.Errorf("built %v, want bus and its base", built)
	}
	read := func(name string) string {
		b, err := in.engine.Images().ReadFile(ctx, refs["bus"], name)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if v := read("/etc/debian_version"); !strings.HasPrefix(v, "12") {
		t.Errorf("/etc/debian_version = %q", v)
	}
	if s := read("/etc/apt/sources.list.d/debian.sources"); !strings.Contains(s, "Suites: bookworm\n") {
		t.Errorf("debian.sources:\n%s", s)
	}
	if s := read("/usr/sbin/policy-rc.d"); !strings.Contains(s, "exit 101") {
		t.Errorf("policy-rc.d:\n%s", s)
	}
	read("/usr/share/doc/libc6/copyright")
	read("/usr/bin/dbus-daemon")
	for _, name := range []string{"/usr/share/man/man1/ls.1.gz", "/etc/apt/sources.list", "/etc/resolv.conf"} {
		if _, err := in.engine.Images().ReadFile(ctx, refs["bus"], name); !errors.Is(err, orchestrator.ErrNotFound) {
			t.Errorf("%s: %v; want it missing", name, err)
		}
	}
	if built := ensure(); len(built) > 0 {
		t.Errorf("built %v again", built)
	}
}
