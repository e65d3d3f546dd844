package containerd

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"berth/orchestrator"

	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// memStore is a blobStore in memory.
type memStore map[digest.Digest][]byte

func (m memStore) Put(_ context.Context, name string, size int64, want digest.Digest, r io.Reader) (digest.Digest, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	if int64(len(b)) != size {
		return "", io.ErrUnexpectedEOF
	}
	d := digest.FromBytes(b)
	if want != "" && want != d {
		return "", badArchive("file %q: content has digest %s", name, d)
	}
	m[d] = b
	return d, nil
}

func (m memStore) Open(_ context.Context, d digest.Digest) (io.ReadCloser, error) {
	b, ok := m[d]
	if !ok {
		return nil, orchestrator.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// file is an entry of a test archive.
type file struct {
	name, data string
	link       string // symbolic
}

func makeTar(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Size: int64(len(f.data)), Mode: 0o644}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func toJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func blobName(b string) string { return "blobs/sha256/" + digest.FromString(b).Encoded() }

func desc(mediaType, b string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(b), Size: int64(len(b))}
}

// testLayer is a layer's tar, and testConfig the config of an image of it for this host's platform.
func testLayer(t testing.TB) string {
	return string(makeTar(t, []file{{name: "etc/hello", data: "hello\n"}}))
}

func testConfig(t testing.TB, layers ...string) string {
	p := platforms.DefaultSpec()
	c := ocispec.Image{Platform: ocispec.Platform{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString(l))
	}
	return toJSON(t, c)
}

// ociFiles is an OCI layout of one image, with one gzip layer.
func ociFiles(t testing.TB, annotations map[string]string) []file {
	layer := testLayer(t)
	packed := string(gz(t, []byte(layer)))
	config := testConfig(t, layer)
	manifest := toJSON(t, ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: desc(ocispec.MediaTypeImageConfig, config),
		Layers: []ocispec.Descriptor{desc(ocispec.MediaTypeImageLayerGzip, packed)},
	})
	m := desc(ocispec.MediaTypeImageManifest, manifest)
	m.Annotations = annotations
	return []file{
		{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`},
		{name: "index.json", data: toJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{m}})},
		{name: blobName(manifest), data: manifest},
		{name: blobName(config), data: config},
		{name: blobName(packed), data: packed},
	}
}

// dockerFiles is what `docker save` of old writes for two images that share a layer.
func dockerFiles(t testing.TB) []file {
	layer := testLayer(t)
	config := testConfig(t, layer, layer)
	hex := digest.FromString(config).Encoded()
	return []file{
		{name: "one/layer.tar", data: layer},
		{name: "two/layer.tar", link: "../one/layer.tar"},
		{name: hex + ".json", data: config},
		{name: "repositories", data: "{}"},
		{name: "manifest.json", data: toJSON(t, []dockerManifest{{
			Config: hex + ".json", RepoTags: []string{"thing:1", "reg.invalid/thing:latest"}, Layers: []string{"one/layer.tar", "two/layer.tar"},
		}})},
	}
}

func TestReadArchive(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []file
		want  []string
	}{
		{"oci_full_name", ociFiles(t, map[string]string{"io.containerd.image.name": "docker.io/library/a:1", ocispec.AnnotationRefName: "1"}), []string{"docker.io/library/a:1"}},
		{"oci_reference", ociFiles(t, map[string]string{ocispec.AnnotationRefName: "a/b:2"}), []string{"docker.io/a/b:2"}},
		{"oci_tag", ociFiles(t, map[string]string{ocispec.AnnotationRefName: "v3"}), []string{"localhost/imported:v3"}},
		{"docker", dockerFiles(t), []string{"docker.io/library/thing:1", "reg.invalid/thing:latest"}},
	} {
		plain := makeTar(t, tt.files)
		for pack, data := range map[string][]byte{"plain": plain, "gzip": gz(t, plain), "zstd": zst(t, plain)} {
			t.Run(tt.name+"/"+pack, func(t *testing.T) {
				store := memStore{}
				got, err := readArchive(t.Context(), bytes.NewReader(data), store)
				if err != nil {
					t.Fatal(err)
				}
				var names []string
				for _, a := range got {
					names = append(names, a.name)
					if _, ok := store[a.target.Digest]; !ok {
						t.Errorf("manifest of %s is not in the store", a.name)
					}
				}
				if d := cmp.Diff(tt.want, names); d != "" {
					t.Errorf("names (-want +got):\n%s", d)
				}
			})
		}
	}
}

func TestReadArchiveDamaged(t *testing.T) {
	replace := func(files []file, change func(i int, f *file)) []file {
		out := append([]file(nil), files...)
		for i := range out {
			change(i, &out[i])
		}
		return out
	}
	oci := ociFiles(t, nil)
	docker := dockerFiles(t)
	flip := func(s string) string {
		b := []byte(s)
		b[len(b)/2] ^= 1
		return string(b)
	}
	// In the PAX 1.0 format for sparse files, the file's data begins with its map: here of no data in an exabyte.
	var sb bytes.Buffer
	sw := tar.NewWriter(&sb)
	if err := sw.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 512, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	if _, err := sw.Write(append([]byte("0\n"), make([]byte, 510)...)); err != nil {
		t.Fatal(err)
	}
	records := map[string]string{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1152921504606846976", "GNU.sparse.name": "x"}
	sparse := withPAX(t, sb.Bytes(), records)
	cases := map[string][]byte{
		"empty":          nil,
		"not_a_tar":      []byte(strings.Repeat("this is no archive ", 100)),
		"no_image":       makeTar(t, []file{{name: "x", data: "y"}}),
		"gzip_of_rubish": gz(t, []byte(strings.Repeat("rubbish", 1000))),
		"no_index":       makeTar(t, oci[:1]),
		"index_is_list":  makeTar(t, []file{oci[0], {name: "index.json", data: "[]"}}),
		"two_indexes":    makeTar(t, append(append([]file{}, oci...), oci[1])),
		"future_version": makeTar(t, replace(oci, func(i int, f *file) {
			if i == 0 {
				f.data = `{"imageLayoutVersion":"9.0.0"}`
			}
		})),
		"huge_index": makeTar(t, []file{oci[0], {name: "index.json", data: strings.Repeat(" ", maxArchiveJSON+1)}}),
		"bad_blob_name": makeTar(t, append([]file{{name: "blobs/sha256/../../../etc/passwd-sha256", data: "x"}, {name: "blobs/sha256/zz", data: "x"}},
			oci...)),
		"sparse":        sparse,
		"bad_reference": makeTar(t, ociFiles(t, map[string]string{ocispec.AnnotationRefName: "../../../ETC"})),
		"docker_wrong_diff_id": makeTar(t, replace(docker, func(i int, f *file) {
			if i == 0 {
				f.data = flip(f.data)
			}
		})),
		"docker_wrong_config": makeTar(t, replace(docker, func(i int, f *file) {
			if strings.HasSuffix(f.name, ".json") && i == 2 {
				f.data += " "
			}
		})),
		"docker_missing_layer": makeTar(t, docker[1:]),
		"docker_link_loop": makeTar(t, replace(docker, func(i int, f *file) {
			if i == 0 {
				*f = file{name: "one/layer.tar", link: "../two/layer.tar"}
			}
		})),
		"other_platform": makeTar(t, func() []file {
			layer := testLayer(t)
			config := strings.Replace(testConfig(t, layer), platforms.DefaultSpec().Architecture, "s390x", 1)
			return []file{
				{name: "c", data: config}, {name: "l", data: layer},
				{name: "manifest.json", data: toJSON(t, []dockerManifest{{Config: "c", Layers: []string{"l"}}})},
			}
		}()),
	}
	for i := 2; i < len(oci); i++ {
		cases[fmt.Sprintf("flipped_blob_%d", i)] = makeTar(t, replace(oci, func(j int, f *file) {
			if i == j {
				f.data = flip(f.data)
			}
		}))
		cases[fmt.Sprintf("missing_blob_%d", i)] = makeTar(t, append(append([]file{}, oci[:i]...), oci[i+1:]...))
	}
	whole := makeTar(t, oci)
	for _, n := range []int{100, 600, 1600, len(whole) / 2, len(whole) - 1500} {
		cases[fmt.Sprintf("truncated_%d", n)] = whole[:n]
	}
	for pack, data := range map[string][]byte{"gzip": gz(t, whole), "zstd": zst(t, whole)} {
		cases["truncated_"+pack] = data[:len(data)-3]
		cases["flipped_"+pack] = []byte(flip(string(data)))
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := readArchive(t.Context(), bytes.NewReader(data), memStore{})
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Errorf("readArchive = %v, %v; want ErrInvalid", got, err)
			}
		})
	}
}

// A blob that is sound in the store already must not hide that the archive's is not.
func TestReadArchiveDamagedTwin(t *testing.T) {
	files := ociFiles(t, nil)
	store := memStore{}
	if _, err := readArchive(t.Context(), bytes.NewReader(makeTar(t, files)), store); err != nil {
		t.Fatal(err)
	}
	files[4].data = "damaged"
	if _, err := readArchive(t.Context(), bytes.NewReader(makeTar(t, files)), store); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("readArchive = %v; want ErrInvalid", err)
	}
}

// An error of the store is no fault of the archive.
func TestReadArchiveStoreFails(t *testing.T) {
	full := errors.New("no space left on device")
	_, err := readArchive(t.Context(), bytes.NewReader(makeTar(t, ociFiles(t, nil))), failingStore{memStore{}, full})
	if !errors.Is(err, full) || errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("readArchive = %v; want the store's error and not ErrInvalid", err)
	}
}

type failingStore struct {
	memStore
	err error
}

func (f failingStore) Put(context.Context, string, int64, digest.Digest, io.Reader) (digest.Digest, error) {
	return "", f.err
}

func FuzzReadArchive(f *testing.F) {
	f.Add(makeTar(f, ociFiles(f, nil)))
	f.Add(makeTar(f, dockerFiles(f)))
	f.Add(gz(f, makeTar(f, dockerFiles(f))))
	f.Add(zst(f, makeTar(f, ociFiles(f, nil))))
	f.Fuzz(func(t *testing.T, data []byte) {
		store := memStore{}
		got, err := readArchive(t.Context(), bytes.NewReader(data), store)
		if err != nil {
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Errorf("class of %v", err)
			}
			return
		}
		for _, a := range got {
			if full, err := orchestrator.NormalizeRef(a.name); err != nil || full != a.name {
				t.Errorf("name %q is not full", a.name)
			}
			if _, ok := store[a.target.Digest]; !ok {
				t.Errorf("%s: manifest %s is not in the store", a.name, a.target.Digest)
			}
		}
	})
}

// FuzzArchiveJSON puts the input into the archive's indexes, where a fuzzer of whole archives hardly gets.
func FuzzArchiveJSON(f *testing.F) {
	f.Add(ociFiles(f, nil)[1].data, dockerFiles(f)[4].data, true)
	f.Add(`{"manifests":[{"digest":"sha256:0"}]}`, `[{"Config":"../x","Layers":["a",""]}]`, false)
	f.Fuzz(func(t *testing.T, index, manifest string, oci bool) {
		files := append(ociFiles(t, nil)[2:], dockerFiles(t)[:4]...)
		files = append(files, file{name: "index.json", data: index}, file{name: "manifest.json", data: manifest})
		if oci {
			files = append(files, file{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`})
		}
		if _, err := readArchive(t.Context(), bytes.NewReader(makeTar(t, files)), memStore{}); err != nil && !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("class of %v", err)
		}
	})
}

// withPAX puts an extended header before a tar's first file, which archive/tar itself refuses to write for these keys.
func withPAX(t testing.TB, file []byte, records map[string]string) []byte {
	t.Helper()
	var body strings.Builder
	for k, v := range records {
		rest := " " + k + "=" + v + "\n"
		n := len(rest) + 1
		for len(fmt.Sprint(n))+len(rest) != n {
			n++
		}
		fmt.Fprintf(&body, "%d%s", n, rest)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "pax", Typeflag: tar.TypeReg, Size: int64(body.Len()), Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body.String()); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	out := b.Bytes()
	out[156] = 'x' // typeflag: extended header of the next file (POSIX.1-2001 pax)
	var sum int64
	copy(out[148:156], "        ")
	for _, c := range out[:512] {
		sum += int64(c)
	}
	copy(out[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(out, file...)
}
