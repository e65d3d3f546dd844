package containerd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/orchestrator"
	"berth/orchestrator/conformance"

	"github.com/containerd/containerd/v2/core/content"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"
)

// inventory is everything the store holds.
func inventory(t *testing.T, e *Engine) []string {
	t.Helper()
	s := e.images.(*images)
	// Garbage that a failed operation left is collected at once, not some time: that is when leases are dropped.
	if _, err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := s.withNamespace(t.Context())
	var out []string
	add := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	imgs, err := e.client.ImageService().List(ctx)
	add(err)
	for _, i := range imgs {
		out = append(out, "image "+i.Name+" "+i.Target.Digest.String())
	}
	add(e.client.ContentStore().Walk(ctx, func(i content.Info) error {
		out = append(out, "blob "+i.Digest.String())
		return nil
	}))
	st, err := e.client.ContentStore().ListStatuses(ctx)
	add(err)
	for _, i := range st {
		out = append(out, "ingest "+i.Ref)
	}
	add(e.client.SnapshotService(s.snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		out = append(out, "snapshot "+i.Name)
		return nil
	}))
	ls, err := e.client.LeasesService().List(ctx)
	add(err)
	for _, l := range ls {
		out = append(out, "lease "+l.ID)
	}
	slices.Sort(out)
	return out
}

// storeEngine is an engine on a containerd of its own.
func storeEngine(t *testing.T, snapshotter string) *Engine {
	e := newHost(t, snapshotter).open(t)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func importConformance(t *testing.T, e *Engine) orchestrator.Image {
	t.Helper()
	imgs, err := e.Images().Import(t.Context(), bytes.NewReader(conformance.Image(t)), orchestrator.TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(imgs) != 1 || imgs[0].Ref != conformance.ImageRef {
		t.Fatalf("Import = %+v, want %s", imgs, conformance.ImageRef)
	}
	return imgs[0]
}

func record(t *testing.T, e *Engine, ref string) coreimages.Image {
	t.Helper()
	r, err := e.client.ImageService().Get(e.images.(*images).withNamespace(t.Context()), ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestImagesRoundTrip(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "native"} {
		t.Run(snapshotter, func(t *testing.T) {
			ctx := t.Context()
			e := storeEngine(t, snapshotter)
			empty := inventory(t, e)
			img := importConformance(t, e)
			if img.Size < 1<<20 || img.Packed < 1<<18 || len(img.Layers) != 2 || img.InUse {
				t.Errorf("image = %+v", img)
			}

			// Files: the upper layer wins, links stay inside, what is missing is ErrNotFound, twice and from the cache.
			for range 2 {
				if b, err := e.Images().ReadFile(ctx, img.Ref, "/etc/release"); err != nil || string(b) != "top\n" {
					t.Errorf("ReadFile = %q, %v; want the top layer's", b, err)
				}
				if b, err := e.Images().ReadFile(ctx, img.Ref, "../../etc/passwd"); !errors.Is(err, orchestrator.ErrNotFound) {
					t.Errorf("ReadFile outside = %q, %v; want ErrNotFound", b, err)
				}
			}
			if _, err := e.Images().ReadFile(ctx, "localhost/no/such:latest", "/x"); !errors.Is(err, orchestrator.ErrNotFound) {
				t.Errorf("ReadFile of no image: %v", err)
			}

			// Where another snapshotter was configured before, there are no snapshots: they are made when they are missed.
			sn := e.client.SnapshotService(snapshotter)
			nsctx := e.images.(*images).withNamespace(ctx)
			f, err := e.Images().(*images).factsOf(nsctx, record(t, e, img.Ref))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range slices.Backward(f.chains) {
				if err := sn.Remove(nsctx, c); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := e.Images().ReadFile(ctx, img.Ref, "/not/asked/for/yet"); !errors.Is(err, orchestrator.ErrNotFound) {
				t.Errorf("ReadFile of packed layers: %v; want ErrNotFound", err)
			}
			if b, err := e.Images().(*images).readSnapshotFile(nsctx, img.Ref, f, "/etc/release"); err != nil || string(b) != "top\n" {
				t.Errorf("ReadFile of layers that were unpacked for it = %q, %v", b, err)
			}

			// A second name, then an archive of both.
			const second = "docker.io/some/thing:2"
			if err := e.Images().Tag(ctx, img.Ref, second); err != nil {
				t.Fatal(err)
			}
			if err := e.Images().Tag(ctx, img.Ref, "Not/Full"); !errors.Is(err, orchestrator.ErrInvalid) {
				t.Errorf("Tag with a bad name: %v", err)
			}
			if err := e.Images().Tag(ctx, "localhost/no:1", second); !errors.Is(err, orchestrator.ErrNotFound) {
				t.Errorf("Tag of no image: %v", err)
			}
			var archive bytes.Buffer
			if err := e.Images().Export(ctx, &archive, img.Ref, second); err != nil {
				t.Fatal(err)
			}
			if err := e.Images().Export(ctx, &bytes.Buffer{}, "localhost/no:1"); !errors.Is(err, orchestrator.ErrNotFound) {
				t.Errorf("Export of no image: %v", err)
			}
			for _, ref := range []string{img.Ref, second, second} { // once more: removing is idempotent
				if err := e.Images().Remove(ctx, ref); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(empty, inventory(t, e)); d != "" {
				t.Errorf("left after Remove (-before +after):\n%s", d)
			}
			imgs, err := e.Images().Import(ctx, bytes.NewReader(archive.Bytes()), orchestrator.TransferOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(imgs) != 2 || imgs[0].Digest != img.Digest || imgs[1].Digest != img.Digest {
				t.Errorf("Import of the export = %+v, want two names of %s", imgs, img.Digest)
			}
			if list, err := e.Images().List(ctx); err != nil || len(list) != 2 || list[0].Ref != second {
				t.Errorf("List = %+v, %v", list, err)
			}
		})
	}
}

// Damage anywhere in an archive is noticed, though the sound image is in the store already, and leaves nothing.
func TestImportDamaged(t *testing.T) {
	e := storeEngine(t, "overlayfs")
	sound := conformance.Image(t)
	for _, with := range []string{"empty_store", "sound_twin"} {
		if with == "sound_twin" {
			importConformance(t, e)
		}
		before := inventory(t, e)
		cases := map[string][]byte{"truncated": sound[:len(sound)/2], "empty": {}}
		// One flipped bit in the middle of each large file, wherever that is.
		for i := 1; i < 8; i++ {
			b := bytes.Clone(sound)
			b[len(b)*i/8] ^= 0x40
			cases[fmt.Sprintf("flipped_%d_8ths", i)] = b
		}
		for name, data := range cases {
			t.Run(with+"/"+name, func(t *testing.T) {
				if imgs, err := e.Images().Import(t.Context(), bytes.NewReader(data), orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrInvalid) {
					t.Errorf("Import = %v, %v; want ErrInvalid", imgs, err)
				}
				if d := cmp.Diff(before, inventory(t, e)); d != "" {
					t.Errorf("left (-before +after):\n%s", d)
				}
			})
		}
	}
	t.Run("interrupted", func(t *testing.T) {
		before := inventory(t, e)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := e.Images().Import(ctx, &cancelReader{data: sound, cancel: cancel}, orchestrator.TransferOptions{})
		if !errors.Is(err, context.Canceled) && status(err) == "" {
			t.Errorf("Import = %v; want the context's end", err)
		}
		if d := cmp.Diff(before, inventory(t, e)); d != "" {
			t.Errorf("left (-before +after):\n%s", d)
		}
	})
}

// status finds gRPC's word for a context's end in an error.
func status(err error) string {
	if err != nil && strings.Contains(err.Error(), "context canceled") {
		return "canceled"
	}
	return ""
}

// cancelReader cancels its reader's context half way.
type cancelReader struct {
	data   []byte
	at     int
	cancel func()
}

func (r *cancelReader) Read(p []byte) (int, error) {
	if r.at > len(r.data)/2 {
		r.cancel()
	}
	n := copy(p, r.data[r.at:])
	r.at += n
	if n == 0 {
		return 0, errors.New("read past the cancellation")
	}
	return n, nil
}

func TestRemoveUsedImage(t *testing.T) {
	e := storeEngine(t, "overlayfs")
	img := importConformance(t, e)
	ctx := t.Context()
	pod, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: "p", Hostname: "p", Network: orchestrator.NetworkNone})
	if err != nil {
		t.Fatal(err)
	}
	defer e.RemovePod(context.WithoutCancel(ctx), pod.ID)
	if err := e.CreateContainer(ctx, pod.ID, orchestrator.ContainerSpec{Name: "c", Image: img.Ref, Command: []string{"/bin/toolbox", "wait"}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Images().Remove(ctx, img.Ref); !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("Remove of an image in use: %v; want ErrState", err)
	}
	if got, err := e.Images().Get(ctx, img.Ref); err != nil || !got.InUse {
		t.Errorf("Get = %+v, %v; want it in use", got, err)
	}
	if err := e.RemovePod(ctx, pod.ID); err != nil {
		t.Fatal(err)
	}
	if err := e.Images().Remove(ctx, img.Ref); err != nil {
		t.Errorf("Remove after the pod's: %v", err)
	}
}

// registry starts Debian's docker-registry on loopback, with HTTP authentication if password is not empty, and returns
// its host:port.
func registry(t *testing.T, password string) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs package docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close() // the registry takes the port; nobody else does so soon
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "data"), addr)
	if password != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		htpasswd := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(htpasswd, []byte("user:"+string(hash)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", htpasswd)
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(bin, "serve", file)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("registry's log:\n%s", log.Bytes())
		}
	})
	for deadline := time.Now().Add(time.Minute); ; {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("registry does not answer: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// dockerConfig makes t's processes and this one use a Docker config file with the text.
func dockerConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	return dir
}

func TestRegistry(t *testing.T) {
	const password = "swordfish"
	for _, tt := range []struct{ name, password, config string }{
		{"open", "", "{}"},
		{"config_file", password, `{"auths": {"HOST": {"auth": "` + base64.StdEncoding.EncodeToString([]byte("user:"+password)) + `"}}}`},
		{"helper", password, `{"credHelpers": {"HOST": "berthtest"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			e := storeEngine(t, "overlayfs")
			host := registry(t, tt.password)
			dir := dockerConfig(t, strings.ReplaceAll(tt.config, "HOST", host))
			helper := "#!/bin/sh\nread host\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"user\",\"Secret\":\"" + password + "\"}'\n"
			if err := os.WriteFile(filepath.Join(dir, "docker-credential-berthtest"), []byte(helper), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))

			img := importConformance(t, e)
			ref := host + "/a/b:c"
			if err := e.Images().Tag(ctx, img.Ref, ref); err != nil {
				t.Fatal(err)
			}
			var seen []orchestrator.Progress
			opt := orchestrator.TransferOptions{Progress: func(p orchestrator.Progress) { seen = append(seen, p) }}
			if err := e.Images().Push(ctx, ref, opt); err != nil {
				t.Fatal(err)
			}
			checkProgress(t, "Push", seen, img)
			for _, r := range []string{ref, img.Ref} {
				if err := e.Images().Remove(ctx, r); err != nil {
					t.Fatal(err)
				}
			}
			seen = nil
			got, err := e.Images().Pull(ctx, ref, opt)
			if err != nil {
				t.Fatal(err)
			}
			checkProgress(t, "Pull", seen, img)
			if got.Digest != img.Digest || got.Ref != ref || got.Size != img.Size {
				t.Errorf("Pull = %+v, want the image pushed, %+v", got, img)
			}
			if b, err := e.Images().ReadFile(ctx, ref, "/etc/release"); err != nil || string(b) != "top\n" {
				t.Errorf("ReadFile of the pulled image = %q, %v", b, err)
			}
			byDigest := host + "/a/b@" + img.Digest
			if _, err := e.Images().Pull(ctx, byDigest, orchestrator.TransferOptions{}); err != nil {
				t.Errorf("Pull by digest: %v", err)
			}

			before := inventory(t, e)
			if _, err := e.Images().Pull(ctx, host+"/no/such:1", orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrNotFound) {
				t.Errorf("Pull of no image: %v; want ErrNotFound", err)
			}
			if tt.password != "" {
				anonymous := orchestrator.TransferOptions{Anonymous: true}
				_, err := e.Images().Pull(ctx, host+"/a/b@"+img.Digest, anonymous)
				if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "have root run `berth image pull") {
					t.Errorf("anonymous Pull: %v; want ErrUnavailable that says what to do", err)
				}
				dockerConfig(t, "{}")
				_, err = e.Images().Pull(ctx, ref, orchestrator.TransferOptions{})
				if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "docker login") {
					t.Errorf("Pull without credentials: %v; want ErrUnavailable that says what to do", err)
				}
				if err := e.Images().Push(ctx, ref, orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrUnavailable) {
					t.Errorf("Push without credentials: %v; want ErrUnavailable", err)
				}
				dockerConfig(t, "{")
				if _, err := e.Images().Pull(ctx, ref, orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrInvalid) {
					t.Errorf("Pull with a broken config file: %v; want ErrInvalid", err)
				}
			}
			if d := cmp.Diff(before, inventory(t, e)); d != "" {
				t.Errorf("left by failed pulls (-before +after):\n%s", d)
			}
		})
	}
}

func checkProgress(t *testing.T, what string, seen []orchestrator.Progress, img orchestrator.Image) {
	t.Helper()
	done := map[string]int64{}
	for _, p := range seen {
		if p.Status == "done" {
			done[p.ID] = p.Done
		}
	}
	var sum int64
	for _, n := range done {
		sum += n
	}
	if sum < img.Packed {
		t.Errorf("%s reported %d bytes done, the image has %d", what, sum, img.Packed)
	}
}

func TestRegistryDown(t *testing.T) {
	e := storeEngine(t, "overlayfs")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = e.Images().Pull(t.Context(), addr+"/a:b", orchestrator.TransferOptions{})
	if !errors.Is(err, orchestrator.ErrUnavailable) {
		t.Errorf("Pull from nowhere: %v; want ErrUnavailable", err)
	}
}

// Another tool's images: skopeo converts an export into what docker save writes, and pushes to a registry itself.
func TestOtherTools(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs package skopeo")
	}
	ctx := t.Context()
	e := storeEngine(t, "overlayfs")
	img := importConformance(t, e)
	dir := t.TempDir()
	exported := filepath.Join(dir, "export.tar")
	f, err := os.Create(exported)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.Images().Export(ctx, f, img.Ref), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := e.Images().Remove(ctx, img.Ref); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, skopeo, append([]string{"--insecure-policy", "--tmpdir", dir}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	// What docker load reads is what skopeo reads as docker-archive.
	saved := filepath.Join(dir, "saved.tar")
	run("copy", "docker-archive:"+exported, "docker-archive:"+saved+":some/thing:1")
	host := registry(t, "")
	run("copy", "--dest-tls-verify=false", "--dest-compress-format", "zstd", "oci-archive:"+exported, "docker://"+host+"/by/skopeo:1")
	oci := filepath.Join(dir, "oci.tar")
	run("copy", "--dest-compress-format", "zstd", "--dest-compress", "docker-archive:"+saved, "oci-archive:"+oci+":v1")

	check := func(what string, got orchestrator.Image, ref string) {
		t.Helper()
		if got.Ref != ref || !slices.Equal(got.Layers, img.Layers) {
			t.Errorf("%s = %+v, want %s with layers %v", what, got, ref, img.Layers)
		}
		if b, err := e.Images().ReadFile(ctx, ref, "/etc/release"); err != nil || string(b) != "top\n" {
			t.Errorf("%s: ReadFile = %q, %v", what, b, err)
		}
		if err := e.Images().Remove(ctx, ref); err != nil {
			t.Error(err)
		}
	}
	for file, ref := range map[string]string{saved: "docker.io/some/thing:1", oci: "localhost/imported:v1"} {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		imgs, err := e.Images().Import(ctx, f, orchestrator.TransferOptions{})
		f.Close()
		if err != nil || len(imgs) != 1 {
			t.Fatalf("Import of %s = %v, %v", file, imgs, err)
		}
		// A zstd layer leaves as gzip, with the same content.
		var again bytes.Buffer
		if err := e.Images().Export(ctx, &again, imgs[0].Ref); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(again.Bytes(), []byte("tar+zstd")) {
			t.Errorf("export of %s has zstd layers, which older Dockers cannot load", file)
		}
		check(file, imgs[0], ref)
		imgs, err = e.Images().Import(ctx, &again, orchestrator.TransferOptions{})
		if err != nil || len(imgs) != 1 {
			t.Fatalf("Import of an export = %v, %v", imgs, err)
		}
		check("export of "+file, imgs[0], ref)
	}
	got, err := e.Images().Pull(ctx, host+"/by/skopeo:1", orchestrator.TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	check("pulled", got, host+"/by/skopeo:1")
}

// What a crash leaves expires: every lease has an end.
func TestLeasesExpire(t *testing.T) {
	e := storeEngine(t, "overlayfs")
	s := e.images.(*images)
	ctx, done, err := s.lease(s.withNamespace(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	id, _ := leases.FromContext(ctx)
	ls, err := e.client.LeasesService().List(ctx, "id=="+id)
	if err != nil || len(ls) != 1 {
		t.Fatalf("List = %v, %v", ls, err)
	}
	if ls[0].Labels["containerd.io/gc.expire"] == "" {
		t.Errorf("lease %s does not expire: %v", id, ls[0].Labels)
	}
}
