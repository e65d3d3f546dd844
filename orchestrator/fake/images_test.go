package fake_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"berth/orchestrator"
	"berth/orchestrator/fake"
)

func TestImageNames(t *testing.T) {
	e, ctx := newEngine(t)
	im := e.Images()
	remote := "registry.example.org/a/b:1"
	if err := e.AddRemote(fake.ImageSpec{Ref: remote, Files: map[string]string{"/x": "y"}}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	got, err := im.Pull(ctx, remote, orchestrator.TransferOptions{Progress: func(p orchestrator.Progress) { seen[p.Status]++ }})
	if err != nil || got.Ref != remote || seen["done"] != 3 {
		t.Errorf("Pull = %+v, %v, progress %v", got, err, seen)
	}
	if _, err := im.Pull(ctx, "registry.example.org/none:1", orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("pull of nothing: %v", err)
	}
	if err := im.Tag(ctx, remote, "short"); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("tag that is no full name: %v", err)
	}
	mine := "localhost/berth/mine:latest"
	if err := im.Tag(ctx, remote, mine); err != nil {
		t.Fatal(err)
	}
	if err := im.Push(ctx, mine, orchestrator.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.CreateContainer(ctx, "p", orchestrator.ContainerSpec{Name: "c", Image: mine, Command: []string{"serve"}}); err != nil {
		t.Fatal(err)
	}
	if err := im.Remove(ctx, mine); !errors.Is(err, orchestrator.ErrState) {
		t.Errorf("removal of an image in use: %v", err)
	}
	if err := e.RemovePod(ctx, "p"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := im.Remove(ctx, mine); err != nil {
			t.Error(err)
		}
	}
	list, err := im.List(ctx)
	if err != nil || len(list) != 2 || list[0].Ref != ref || list[1].Ref != remote {
		t.Errorf("List = %+v, %v", list, err)
	}
}

// TestDockerSave: an archive as docker save made them before version 25, with links and whiteouts in its layers.
func TestDockerSave(t *testing.T) {
	tarball := func(entries ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			text := h.PAXRecords["BERTH.text"]
			h.PAXRecords, h.Size, h.Mode = nil, int64(len(text)), 0o644
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	file := func(name, text string) tar.Header {
		return tar.Header{Name: name, PAXRecords: map[string]string{"BERTH.text": text}}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	lower := tarball(file("etc/a", "lower"), file("etc/gone", "x"), file("var/dir/old", "x"), link("usr/lib/rel", "../../etc/a"),
		link("abs", "/usr/lib/rel"), link("loop", "loop"), link("up", "../../../etc/a"))
	upper := tarball(file("etc/a", "upper"), file("etc/.wh.gone", ""), file("var/dir/.wh..wh..opq", ""), file("var/dir/new", "new"),
		tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "etc/a"})
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"serve"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(lower), digest.FromBytes(upper)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest := `[{"Config":"c.json","RepoTags":["mine:1"],"Layers":["1/layer.tar","2/layer.tar"]}]`
	archive := tarball(file("1/layer.tar", string(lower)), file("2/layer.tar", string(upper)), file("c.json", string(config)), file("manifest.json", manifest))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(archive)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}

	e, ctx := newEngine(t)
	got, err := e.Images().Import(ctx, &packed, orchestrator.TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name := "docker.io/library/mine:1"
	if len(got) != 1 || got[0].Ref != name || !cmp.Equal(got[0].Cmd, []string{"serve"}) {
		t.Errorf("imported %+v", got)
	}
	for path, want := range map[string]string{
		"/etc/a": "upper", "/abs": "upper", "/usr/lib/rel": "upper", "/up": "upper", "/hard": "upper", "/var/dir/new": "new",
		"/etc/gone": "", "/var/dir/old": "", "/loop": "", "/none": "",
	} {
		text, err := e.Images().ReadFile(ctx, name, path)
		if string(text) != want || (want == "") != (err != nil) {
			t.Errorf("ReadFile(%q) = %q, %v, want %q", path, text, err, want)
		}
	}
	bad := bytes.Replace(archive, []byte("upper"), []byte("other"), 1)
	if _, err := e.Images().Import(ctx, bytes.NewReader(bad), orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("changed layer: %v", err)
	}
}

// TestMounts: programs see the host's files below the mounts of their container, and nothing of another's layer.
func TestMounts(t *testing.T) {
	e, ctx := newEngine(t)
	dir := t.TempDir()
	done := make(chan error, 1)
	e.Handle("files", fake.Script(func(_ context.Context, p *fake.Process) (bool, int) {
		err := func() error {
			if err := p.WriteFile("/run/x/new", []byte("1")); err != nil {
				return err
			}
			if host, _, ok := p.HostPath("/run/x/new"); !ok || host != dir+"/new" {
				return fmt.Errorf("host path %q, %v", host, ok)
			}
			if err := p.WriteFile("/ro/new", []byte("1")); err == nil {
				return fmt.Errorf("wrote to a read-only mount")
			}
			if _, _, ok := p.HostPath("/run/xy"); ok {
				return fmt.Errorf("/run/xy is not below /run/x")
			}
			if err := p.WriteFile("/etc/mine", []byte("1")); err != nil {
				return err
			}
			for path, want := range map[string][]string{"/run/x": {"new"}, "/etc": {"mine", "release"}, "/": {"etc"}} {
				if got, err := p.ReadDir(path); err != nil || !cmp.Equal(got, want) {
					return fmt.Errorf("directory %q: %v, %v, want %v", path, got, err, want)
				}
			}
			text, err := p.ReadFile("/ro/new")
			if err != nil || string(text) != "1" {
				return fmt.Errorf("ReadFile: %q, %v", text, err)
			}
			return nil
		}()
		done <- err
		return true, 0
	}))
	start(t, e, ctx, orchestrator.ContainerSpec{Name: "c", Command: []string{"files"},
		Mounts: []orchestrator.Mount{{Source: dir, Target: "/run/x"}, {Source: dir, Target: "/ro", ReadOnly: true}}})
	if err := <-done; err != nil {
		t.Error(err)
	}
}
