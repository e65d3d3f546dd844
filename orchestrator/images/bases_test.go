package images

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/paths"
	"berth/internal/rmtree"
	"berth/orchestrator"
	"berth/session/api"

	"github.com/google/go-cmp/cmp"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// fakeBases is a bases whose mmdebstrap is a script.
func fakeBases(t *testing.T, script string) *bases {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mmdebstrap gets namespaces of its own")
	}
	dir := t.TempDir()
	tool := filepath.Join(dir, "mmdebstrap")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	// The keyring is looked for below aptRoot.
	if err := os.MkdirAll(filepath.Join(dir, "root/usr/share/keyrings"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root"+debianKeyring), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return fakeBasesIn(dir)
}

// fakeBasesIn is that of fakeBases whose directory dir is.
func fakeBasesIn(dir string) *bases {
	return &bases{
		dir: filepath.Join(dir, "bases"), aptRoot: os.DirFS(filepath.Join(dir, "root")), tool: filepath.Join(dir, "mmdebstrap"), now: time.Now,
		sources: []aptSource{{URIs: []string{"http://m.invalid/debian"}, Suites: []string{"bookworm"}, Components: []string{"main"}}},
	}
}

// logLines is a reporter that passes on what is logged, line by line.
func logLines(fn func(line string)) *reporter {
	return newReporter(func(p api.Build) {
		var st bkclient.SolveStatus
		if err := json.Unmarshal(p.Status, &st); err != nil {
			panic(err)
		}
		for _, l := range st.Logs {
			for line := range strings.Lines(string(l.Data)) {
				fn(line)
			}
		}
	})
}

// TestMain is also the daemon that TestBaseInterrupted kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BERTH_TEST_MAKE_BASE"); dir != "" {
		b := fakeBasesIn(dir)
		if os.Getenv("BERTH_TEST_MAKE_REAL") != "" {
			b = realBasesIn(dir)
		}
		_, err := b.ensure(context.Background(), "bookworm", 0, logLines(func(line string) { fmt.Print(line) }))
		fmt.Println("made a base:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func realBasesIn(dir string) *bases {
	return &bases{dir: filepath.Join(dir, "bases"), aptRoot: os.DirFS("/"), tool: "mmdebstrap", now: time.Now}
}

// TestBaseInterrupted interrupts mmdebstrap while the host's /dev/shm is mounted below its root: nothing of that may
// stay mounted, be it in Berth's namespace or in what removes the tree, nor any process, and the next base is made.
func TestBaseInterrupted(t *testing.T) {
	// Mounts like mmdebstrap, dies on SIGTERM without unmounting, like mmdebstrap in a hook, and has a child that left its
	// process group. Once a file named "interrupted" is there it succeeds.
	const fake = `cd $(dirname $0)
if [ -e interrupted ]; then cat >/dev/null; echo tar; exit; fi
mkdir -p $TMPDIR/root/dev/shm && mount --bind shm $TMPDIR/root/dev/shm || exit 1
setsid sleep 1000 &
echo mounted >&2
sleep 1000
`
	for _, tt := range []struct {
		name string
		real bool
		at   string // the line at which it is interrupted
		kill bool   // the daemon, rather than cancel the request
	}{
		{name: "cancelled", at: "mounted"},
		{name: "daemon_killed", at: "mounted", kill: true},
		{name: "real_cancelled", real: true, at: "running --customize-hook in shell"},
		{name: "real_daemon_killed", real: true, at: "installing essential packages", kill: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.real && os.Getenv("BERTH_TEST_SLOW") == "" {
				t.Skip("downloads a Debian release; set BERTH_TEST_SLOW=1")
			}
			b := fakeBases(t, fake)
			dir := filepath.Dir(b.tool)
			// Before the test's directory is removed.
			t.Cleanup(func() {
				if err := rmtree.Unmount(dir); err != nil {
					t.Fatal(err)
				}
			})
			shm, sentinel := filepath.Join(dir, "shm"), filepath.Join(dir, "shm", "sentinel")
			if tt.real {
				b, shm = realBasesIn(dir), "/dev/shm"
				sentinel = filepath.Join(shm, filepath.Base(t.TempDir())+strconv.Itoa(os.Getpid()))
				t.Cleanup(func() { os.Remove(sentinel) })
			}
			if err := os.MkdirAll(shm, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(sentinel, nil, 0o644); err != nil {
				t.Fatal(err)
			}

			if tt.kill {
				exe, err := os.Executable()
				if err != nil {
					t.Fatal(err)
				}
				daemon := exec.Command(exe)
				daemon.Env = append(os.Environ(), "BERTH_TEST_MAKE_BASE="+dir)
				if tt.real {
					daemon.Env = append(daemon.Env, "BERTH_TEST_MAKE_REAL=1")
				}
				daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
				out, err := daemon.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := daemon.Start(); err != nil {
					t.Fatal(err)
				}
				reached := false
				for sc := bufio.NewScanner(out); !reached && sc.Scan(); {
					t.Log(sc.Text())
					reached = strings.Contains(sc.Text(), tt.at)
				}
				if err := daemon.Process.Kill(); err != nil {
					t.Error(err)
				}
				_ = daemon.Wait() // it was killed
				if !reached {
					t.Fatalf("the base's maker did not get to %q", tt.at)
				}
			} else {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err := b.ensure(ctx, "bookworm", 0, logLines(func(line string) {
					if strings.Contains(line, tt.at) {
						cancel()
					}
				}))
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("error %v; want it cancelled", err)
				}
				if left, err := filepath.Glob(filepath.Join(b.dir, "tmp-*")); err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			}

			mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range mounts {
				t.Errorf("left mounted: %s", m.Mountpoint)
			}
			tmp := filepath.Join(b.dir, "tmp-bookworm")
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				left := processesWith(t, "TMPDIR="+tmp)
				if len(left) == 0 {
					break
				}
				if time.Now().After(deadline) {
					for _, p := range left {
						_ = syscall.Kill(p, syscall.SIGKILL)
					}
					t.Errorf("processes left: %v", left)
					break
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "interrupted"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := b.ensure(t.Context(), "bookworm", 0, nil); err != nil {
				t.Errorf("the next base: %v", err)
			}
			if _, err := os.Stat(sentinel); err != nil {
				t.Errorf("%s was emptied: %v", shm, err)
			}
		})
	}
}

// A dead daemon of a Berth that let mmdebstrap mount in its namespace.
func TestBaseOverMounts(t *testing.T) {
	b := fakeBases(t, "cat >/dev/null; echo tar")
	shm := t.TempDir()
	sentinel := filepath.Join(shm, "sentinel")
	if err := os.WriteFile(sentinel, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	on := filepath.Join(b.dir, "tmp-bookworm", "mmdebstrap.x", "dev", "shm")
	if err := os.MkdirAll(on, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(shm, on, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot bind mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(on, unix.MNT_DETACH) }) // gone by then, if all is well
	if _, err := b.ensure(t.Context(), "bookworm", 0, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(sentinel); err != nil {
		t.Errorf("what was mounted is gone: %v", err)
	}
}

// processesWith lists the processes in whose environment kv begins an entry.
func processesWith(t *testing.T, kv string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(append([]byte{0}, env...), append([]byte{0}, kv...)) {
			continue // or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pid)
	}
	return out
}

func TestBaseLayout(t *testing.T) {
	ctx := t.Context()
	b := fakeBases(t, "cat >/dev/null; echo made >>$(dirname $0)/log; printf 'a tar of %s' $(for a; do case $a in bookworm|trixie) echo $a;; esac; done)\n")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	b.now = func() time.Time { return now }
	made := func() int {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(b.tool), "log"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "made")
	}
	if _, err := b.get("bookworm"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("get = %v; want ErrNotFound", err)
	}
	first, err := b.ensure(ctx, "bookworm", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := b.ensure(ctx, "trixie", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.desc.Digest == other.desc.Digest {
		t.Error("both releases have one image")
	}
	again, err := b.ensure(ctx, "bookworm", 0, nil)
	if err != nil || again.desc.Digest != first.desc.Digest || made() != 2 {
		t.Errorf("second ensure = %v, %v, made %d times; want the first, made twice in all", again.desc.Digest, err, made())
	}
	// Aged, it is made anew when asked for, and the same content is the same image.
	now = now.Add(48 * time.Hour)
	again, err = b.ensure(ctx, "bookworm", 24*time.Hour, nil)
	if err != nil || again.desc.Digest != first.desc.Digest || made() != 3 || !again.made.Equal(now) {
		t.Errorf("ensure of an aged base = %+v, %v, made %d times", again, err, made())
	}
	if _, err := b.ensure(ctx, "buster", 0, nil); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("ensure of an unknown release: %v", err)
	}
	// BuildKit reads it through layoutStore.
	s := layoutStore{b.dir}
	ra, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: first.desc.Digest})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, ra.Size())
	if _, err := ra.ReadAt(buf, 0); err != nil || digest.FromBytes(buf) != first.desc.Digest {
		t.Errorf("ReaderAt: %v, digest %s, want %s", err, digest.FromBytes(buf), first.desc.Digest)
	}
	if err := ra.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: "sha256:../../../etc/passwd"}); err == nil {
		t.Error("ReaderAt of a path succeeds")
	}
	// An index without its blobs is made anew.
	if err := os.Remove(b.blob(first.desc.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.get("bookworm"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("get without the blob: %v; want ErrNotFound", err)
	}
}

func TestBaseErrors(t *testing.T) {
	for _, tt := range []struct {
		name, script, want string
		is                 error
	}{
		{"no_key", "echo 'W: GPG error: x InRelease: NO_PUBKEY 0123' >&2; exit 1", "upgrade package debian-archive-keyring", nil},
		{"no_network", "echo \"Could not resolve 'm.invalid'\" >&2; exit 1", "check the network", nil},
		{"no_release", "echo 'E: The repository x does not have a Release file.' >&2; exit 1", "images.sources", nil},
		{"disk_full", "echo 'tar: write error: No space left on device' >&2; exit 1", "No space left", syscall.ENOSPC},
		{"last_words", "seq 1 100 >&2; exit 7", "exit status 7; its last words:\n81\n82", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := fakeBases(t, tt.script)
			_, err := b.ensure(t.Context(), "bookworm", 0, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), `base "debian:bookworm": `) {
				t.Errorf("error %v; want %q in it", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			left, err := filepath.Glob(filepath.Join(b.dir, "tmp-*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
	t.Run("no_tool", func(t *testing.T) {
		b := fakeBases(t, "")
		b.tool = "/no/such/mmdebstrap"
		if _, err := b.ensure(t.Context(), "bookworm", 0, nil); !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "install package mmdebstrap") {
			t.Errorf("error %v; want ErrUnavailable that says what to do", err)
		}
	})
	t.Run("no_keyring", func(t *testing.T) {
		b := fakeBases(t, "")
		b.aptRoot = os.DirFS(t.TempDir())
		if _, err := b.ensure(t.Context(), "bookworm", 0, nil); !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "install package debian-archive-keyring") {
			t.Errorf("error %v; want ErrUnavailable that says what to do", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		// Killed at once it could not say what it did on SIGTERM.
		b := fakeBases(t, "trap 'touch $(dirname $0)/told; kill $!; exit 1' TERM; echo started >&2; sleep 1000 & wait")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rep := logLines(func(line string) {
			if strings.Contains(line, "started") {
				cancel()
			}
		})
		if _, err := b.ensure(ctx, "bookworm", 0, rep); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v; want it cancelled", err)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(b.tool), "told")); err != nil {
			t.Errorf("mmdebstrap was not ended by SIGTERM: %v", err)
		}
	})
}

// TestBaseReproducible makes a base twice. It downloads a Debian release twice, so it only runs when asked for.
func TestBaseReproducible(t *testing.T) {
	if os.Getenv("BERTH_TEST_SLOW") == "" {
		t.Skip("takes minutes; set BERTH_TEST_SLOW=1")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	var got [2]base
	for i := range got {
		b := &bases{dir: filepath.Join(t.TempDir(), "bases"), aptRoot: os.DirFS("/"), tool: "mmdebstrap", now: time.Now}
		var err error
		if got[i], err = b.ensure(t.Context(), "trixie", 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got[0].desc.Digest != got[1].desc.Digest {
		t.Errorf("made %s, then %s", got[0].desc.Digest, got[1].desc.Digest)
	}
}

func TestHostProxies(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nprintf 'Acquire::http::proxy http://apt.invalid:3142\\nAcquire::https::Proxy DIRECT\\nAcquire::Retries 3\\n'\n"
	if err := os.WriteFile(filepath.Join(dir, "apt-config"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, v := range proxyVars {
		t.Setenv(v, "")
		t.Setenv(strings.ToUpper(v), "")
	}
	t.Setenv("no_proxy", "localhost")
	want := map[string]string{"http_proxy": "http://apt.invalid:3142", "no_proxy": "localhost"}
	if d := cmp.Diff(want, hostProxies(t.Context())); d != "" {
		t.Errorf("with apt's proxy (-want +got):\n%s", d)
	}
	t.Setenv("HTTP_PROXY", "http://env.invalid")
	want["http_proxy"] = "http://env.invalid"
	if d := cmp.Diff(want, hostProxies(t.Context())); d != "" {
		t.Errorf("with the environment's too (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"Acquire::Retries": "3"}, aptConfig(t.Context(), passedAptOptions)); d != "" {
		t.Errorf("options (-want +got):\n%s", d)
	}
}

// A broken recipe of the user's must not keep a daemon from starting, but be named when images are asked for.
func TestBrokenUserRecipe(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mine", "Dockerfile"), []byte("FROMM x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Layout: paths.Layout{Run: t.TempDir()}, Recipes: testRecipes(), UserRecipes: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("a"); !errors.Is(err, orchestrator.ErrInvalid) || !strings.Contains(err.Error(), `recipe "mine"`) {
		t.Errorf("Resolve = %v; want ErrInvalid that names the recipe", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "mine")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Resolve("a"); err != nil || got != "localhost/berth/a:latest" {
		t.Errorf("Resolve = %q, %v", got, err)
	}
}
