package images

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/paths"
	"berth/orchestrator"
	"berth/session/api"

	"github.com/google/go-cmp/cmp"
	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeBases is a bases whose mmdebstrap is a script.
func fakeBases(t *testing.T, script string) *bases {
	t.Helper()
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
	sources, err := parseSources("x.list", []byte("deb http://m.invalid/debian bookworm main"))
	if err != nil {
		t.Fatal(err)
	}
	return &bases{dir: filepath.Join(dir, "bases"), sources: sources, aptRoot: os.DirFS(filepath.Join(dir, "root")), tool: tool, now: time.Now}
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
		rep := newReporter(func(p api.Build) {
			var st bkclient.SolveStatus
			if err := json.Unmarshal(p.Status, &st); err != nil {
				t.Error(err)
			}
			for _, l := range st.Logs {
				if strings.Contains(string(l.Data), "started") {
					cancel()
				}
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
