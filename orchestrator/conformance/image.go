package conformance

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageRef is the name of the image in the archive that Image returns.
const ImageRef = "localhost/berth/conformance:latest"

// Image returns an OCI layout archive (https://github.com/opencontainers/image-spec/blob/main/image-layout.md) with one image, ImageRef,
// made of the static program in ./toolbox. Two layers, so that chains are exercised.
func Image(t testing.TB) []byte {
	t.Helper()
	return variant(t, ImageRef, "top\n")
}

// variant is Image with another name and another text in its file /etc/release.
func variant(t testing.TB, ref, release string) []byte {
	t.Helper()
	program, err := toolbox()
	var archive []byte
	if err == nil {
		archive, err = buildArchive(program, ref, release)
	}
	if err != nil {
		t.Fatalf("conformance image: %v", err)
	}
	return archive
}

var toolbox = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "berth-toolbox-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "toolbox")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "berth/orchestrator/conformance/toolbox")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, &exec.Error{Name: string(out), Err: err}
	}
	return os.ReadFile(program)
})

type file struct {
	name string
	mode int64
	data []byte
	link string // of a symbolic link, its target
}

func buildArchive(program []byte, ref, release string) ([]byte, error) {
	base, err := tarball([]file{
		{name: "bin/", mode: 0o755}, {name: "etc/", mode: 0o755}, {name: "tmp/", mode: 0o1777}, {name: "home/", mode: 0o755},
		{name: "etc/release", mode: 0o644, data: []byte("base\n")},
		{name: "bin/toolbox", mode: 0o755, data: program},
		{name: "bin/notexec", mode: 0o644, data: []byte("not executable\n")},
		// Links that a host would follow to its own files.
		{name: "etc/absolute", mode: 0o777, link: "/etc/release"},
		{name: "etc/outside", mode: 0o777, link: "../../../etc/release"},
	})
	if err != nil {
		return nil, err
	}
	top, err := tarball([]file{
		{name: "etc/", mode: 0o755}, {name: "etc/release", mode: 0o644, data: []byte(release)},
		{name: "srv/", mode: 0o777},
	})
	if err != nil {
		return nil, err
	}
	var files []file
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		sum := sha256.Sum256(data)
		files = append(files, file{name: "blobs/sha256/" + hex.EncodeToString(sum[:]), mode: 0o644, data: data})
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromBytes(digest.SHA256, sum[:]), Size: int64(len(data))}
	}
	document := func(mediaType string, v any) (ocispec.Descriptor, error) {
		data, err := json.Marshal(v)
		return blob(mediaType, data), err
	}
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	layers := []ocispec.Descriptor{blob(ocispec.MediaTypeImageLayer, base), blob(ocispec.MediaTypeImageLayer, top)}
	config, err := document(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/bin", "FROM_IMAGE=yes", "REPLACED=image"}, Entrypoint: []string{"toolbox"}, Cmd: []string{"wait"}, WorkingDir: "/etc",
			Labels: map[string]string{"berth.conformance": "1"},
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layers[0].Digest, layers[1].Digest}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	})
	if err != nil {
		return nil, err
	}
	manifest.Annotations = map[string]string{"io.containerd.image.name": ref, ocispec.AnnotationRefName: "latest"}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return nil, err
	}
	files = append(files,
		file{name: "index.json", mode: 0o644, data: index},
		file{name: ocispec.ImageLayoutFile, mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)})
	return tarball(files)
}

func tarball(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}
