package private

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	bkclient "github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
)

// prober is run by a build. It fails unless it runs in the host's network namespace, and leaves a file in the image.
const prober = `package main

import (
	"fmt"
	"os"
)

func main() {
	ns, err := os.Readlink("/proc/self/ns/net")
	if err == nil && ns != os.Getenv("HOST_NETNS") {
		err = fmt.Errorf("runs in %s, not in the host's %s", ns, os.Getenv("HOST_NETNS"))
	}
	if err == nil {
		err = os.WriteFile("/made", []byte("by a build"), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
`

// assertBuild builds an image with a RUN step and finds it, unpacked, in containerd's store.
func assertBuild(t *testing.T, e *Engine) {
	t.Helper()
	dir := t.TempDir()
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"prog.go":    prober,
		"go.mod":     "module prog\n",
		"Dockerfile": "FROM scratch\nARG HOST_NETNS\nCOPY prog /prog\nRUN [\"/prog\"]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-o", "prog", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}

	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	address, release, err := e.Buildkit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	bk, err := bkclient.New(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	defer bk.Close()
	src, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	const name = "localhost/berth/probe:latest"
	progress := make(chan *bkclient.SolveStatus)
	go func() {
		for s := range progress {
			for _, l := range s.Logs {
				t.Logf("build: %s", l.Data)
			}
		}
	}()
	_, err = bk.Solve(ctx, nil, bkclient.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{"build-arg:HOST_NETNS": ns},
		LocalMounts:   map[string]fsutil.FS{"context": src, "dockerfile": src},
		Exports:       []bkclient.ExportEntry{{Type: bkclient.ExporterImage, Attrs: map[string]string{"name": name, "unpack": "true"}}},
	}, progress)
	if err != nil {
		t.Fatal(err)
	}

	c, cctx := connect(t, e)
	img, err := c.GetImage(cctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := img.IsUnpacked(cctx, e.Snapshotter()); err != nil || !ok {
		t.Errorf("the image is not unpacked for %s: %v, %v", e.Snapshotter(), ok, err)
	}
	layers, err := img.RootFS(cctx)
	if err != nil || len(layers) != 2 {
		t.Errorf("layers %v, %v; want those of COPY and RUN", layers, err)
	}
}
