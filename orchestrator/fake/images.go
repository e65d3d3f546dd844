package fake

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/orchestrator"
)

// ImageSpec describes an image for AddImage.
type ImageSpec struct {
	Ref    string            // full reference
	Files  map[string]string // absolute path -> content
	Env    []string
	Cmd    []string
	Labels map[string]string
}

// image is one name. Its blobs are kept as a real store keeps them, so that archives and digests are genuine.
type image struct {
	orchestrator.Image
	blobs map[digest.Digest][]byte // manifest, config and layers
	files map[string]string        // regular files, "/etc/passwd" -> content
	links map[string]string        // symbolic links
	modes map[string]int64         // of files
	cwd   string
}

type imageStore struct {
	images   map[string]*image
	registry map[string]*image
}

func newImageStore() imageStore {
	return imageStore{images: map[string]*image{}, registry: map[string]*image{}}
}

// AddImage puts an image into the store.
func (e *Engine) AddImage(s ImageSpec) error {
	img, err := makeImage(s)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images.images[s.Ref] = img
	return nil
}

// AddRemote puts an image where Pull finds it.
func (e *Engine) AddRemote(s ImageSpec) error {
	img, err := makeImage(s)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images.registry[s.Ref] = img
	return nil
}

func makeImage(s ImageSpec) (*image, error) {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		h := &tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o755, Size: int64(len(s.Files[name]))}
		if err := tw.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("image %q: %q: %w", s.Ref, name, err)
		}
		if _, err := io.WriteString(tw, s.Files[name]); err != nil {
			return nil, fmt.Errorf("image %q: %q: %w", s.Ref, name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("image %q: %w", s.Ref, err)
	}
	blobs := map[digest.Digest][]byte{}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		blobs[d] = b
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	l := put(ocispec.MediaTypeImageLayer, layer.Bytes())
	var config ocispec.Image
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = ocispec.ImageConfig{Env: s.Env, Cmd: s.Cmd, Labels: s.Labels}
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.Digest}}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", s.Ref, err)
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: put(ocispec.MediaTypeImageConfig, text), Layers: []ocispec.Descriptor{l},
	}
	if text, err = json.Marshal(manifest); err != nil {
		return nil, fmt.Errorf("image %q: %w", s.Ref, err)
	}
	return loadImage(s.Ref, put(ocispec.MediaTypeImageManifest, text), blobs)
}

// loadImage reads an image from its blobs, whose digests are verified already.
func loadImage(ref string, d ocispec.Descriptor, blobs map[digest.Digest][]byte) (*image, error) {
	img := &image{blobs: map[digest.Digest][]byte{}, files: map[string]string{}, links: map[string]string{}, modes: map[string]int64{}}
	blob := func(d ocispec.Descriptor) ([]byte, error) {
		b, ok := blobs[d.Digest]
		if !ok {
			return nil, fmt.Errorf("image %q: blob %s is missing: %w", ref, d.Digest, orchestrator.ErrInvalid)
		}
		img.blobs[d.Digest] = b
		img.Packed += int64(len(b))
		return b, nil
	}
	text, err := blob(d)
	if err != nil {
		return nil, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return nil, fmt.Errorf("image %q: manifest: %w: %v", ref, orchestrator.ErrInvalid, err)
	}
	if text, err = blob(manifest.Config); err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("image %q: config: %w: %v", ref, orchestrator.ErrInvalid, err)
	}
	for _, l := range manifest.Layers {
		data, err := blob(l)
		if err != nil {
			return nil, err
		}
		if err := img.apply(data); err != nil {
			return nil, fmt.Errorf("image %q: layer %s: %w: %v", ref, l.Digest, orchestrator.ErrInvalid, err)
		}
	}
	img.Ref, img.Digest, img.Labels = ref, d.Digest.String(), config.Config.Labels
	img.Env, img.Cmd = config.Config.Env, append(slices.Clone(config.Config.Entrypoint), config.Config.Cmd...)
	img.cwd = config.Config.WorkingDir
	if config.Created != nil {
		img.Created = *config.Created
	}
	for _, id := range config.RootFS.DiffIDs {
		img.Layers = append(img.Layers, id.String())
	}
	return img, nil
}

// apply adds a layer, with whiteouts (image-spec, "Image Layer Filesystem Changeset").
func (img *image) apply(data []byte) error {
	r, err := decompress(bytes.NewReader(data))
	if err != nil {
		return err
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		dir, base := path.Split(name)
		if base == ".wh..wh..opq" {
			img.drop(path.Clean(dir), false)
			continue
		}
		if gone, ok := strings.CutPrefix(base, ".wh."); ok {
			img.drop(path.Join(dir, gone), true)
			continue
		}
		if h.Typeflag != tar.TypeDir {
			img.drop(name, true)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			if err != nil {
				return err
			}
			img.files[name], img.modes[name] = string(b), h.Mode
			img.Size += int64(len(b))
		case tar.TypeSymlink:
			img.links[name] = h.Linkname
		case tar.TypeLink:
			to := path.Clean("/" + h.Linkname)
			img.files[name], img.modes[name] = img.files[to], img.modes[to]
		}
	}
}

// drop removes what lies below name and, if self, name.
func (img *image) drop(name string, self bool) {
	for _, m := range []map[string]string{img.files, img.links} {
		maps.DeleteFunc(m, func(k, _ string) bool {
			return self && k == name || strings.HasPrefix(k, strings.TrimSuffix(name, "/")+"/")
		})
	}
}

// resolve follows symbolic links inside the image.
func (img *image) resolve(name string) (string, error) {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "/"
	for hops := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		rest = rest[1:]
		to, ok := img.links[next]
		if !ok {
			at = next
			continue
		}
		if hops++; hops > 40 {
			return "", fmt.Errorf("too many symbolic links")
		}
		if path.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(to, "/"), "/"), rest...)
	}
	return at, nil
}

func decompress(r io.Reader) (io.Reader, error) {
	br := bufio.NewReader(r)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(br)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return br, nil
}

// images is the engine as orchestrator.Images.
type images Engine

func (s *images) engine() *Engine { return (*Engine)(s) }

func imageErr(ref string, err error) error { return fmt.Errorf("image %q: %w", ref, err) }

// inUse tells whether a container has the image; mu is held.
func (w *world) inUse(ref string) bool {
	for _, p := range w.pods {
		for _, c := range p.containers {
			if c.spec.Image == ref {
				return true
			}
		}
	}
	return false
}

func (w *world) describe(img *image) orchestrator.Image {
	out := img.Image
	out.Labels, out.Env, out.Cmd, out.Layers = maps.Clone(out.Labels), slices.Clone(out.Env), slices.Clone(out.Cmd), slices.Clone(out.Layers)
	out.InUse = w.inUse(out.Ref)
	return out
}

func (s *images) List(ctx context.Context) ([]orchestrator.Image, error) {
	e := s.engine()
	if err := e.enter(ctx, "Images.List", "", ""); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	out := []orchestrator.Image{}
	for _, ref := range slices.Sorted(maps.Keys(e.images.images)) {
		out = append(out, e.describe(e.images.images[ref]))
	}
	return out, nil
}

func (s *images) Get(ctx context.Context, ref string) (orchestrator.Image, error) {
	e := s.engine()
	if err := e.enter(ctx, "Images.Get", "", ""); err != nil {
		return orchestrator.Image{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	img, ok := e.images.images[ref]
	if !ok {
		return orchestrator.Image{}, imageErr(ref, orchestrator.ErrNotFound)
	}
	return e.describe(img), nil
}

func (s *images) Pull(ctx context.Context, ref string, opt orchestrator.TransferOptions) (orchestrator.Image, error) {
	return s.move(ctx, "Images.Pull", ref, opt, "downloading", s.images.registry, s.images.images)
}

func (s *images) Push(ctx context.Context, ref string, opt orchestrator.TransferOptions) error {
	_, err := s.move(ctx, "Images.Push", ref, opt, "uploading", s.images.images, s.images.registry)
	return err
}

func (s *images) move(ctx context.Context, op, ref string, opt orchestrator.TransferOptions, word string, from, to map[string]*image) (orchestrator.Image, error) {
	e := s.engine()
	if err := e.enter(ctx, op, "", ""); err != nil {
		return orchestrator.Image{}, err
	}
	if _, err := orchestrator.NormalizeRef(ref); err != nil {
		return orchestrator.Image{}, err
	}
	e.mu.Lock()
	img, ok := from[ref]
	if !ok {
		e.mu.Unlock()
		return orchestrator.Image{}, imageErr(ref, orchestrator.ErrNotFound)
	}
	to[ref] = img
	out := e.describe(img)
	e.mu.Unlock()
	if opt.Progress != nil {
		for _, d := range slices.Sorted(maps.Keys(img.blobs)) {
			n := int64(len(img.blobs[d]))
			opt.Progress(orchestrator.Progress{ID: d.String(), Status: word, Total: n})
			opt.Progress(orchestrator.Progress{ID: d.String(), Status: "done", Done: n, Total: n})
		}
	}
	return out, nil
}

func (s *images) Tag(ctx context.Context, src, dst string) error {
	e := s.engine()
	if err := e.enter(ctx, "Images.Tag", "", ""); err != nil {
		return err
	}
	if full, err := orchestrator.NormalizeRef(dst); err != nil {
		return err
	} else if full != dst {
		return imageErr(dst, fmt.Errorf("%w: not a full name; want %q", orchestrator.ErrInvalid, full))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	img, ok := e.images.images[src]
	if !ok {
		return imageErr(src, orchestrator.ErrNotFound)
	}
	named := *img
	named.Ref = dst
	e.images.images[dst] = &named
	return nil
}

func (s *images) Remove(ctx context.Context, ref string) error {
	e := s.engine()
	if err := e.enter(ctx, "Images.Remove", "", ""); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.inUse(ref) {
		return imageErr(ref, fmt.Errorf("%w: a container uses it", orchestrator.ErrState))
	}
	delete(e.images.images, ref)
	return nil
}

const maxReadFile = 16 << 20

func (s *images) ReadFile(ctx context.Context, ref, name string) ([]byte, error) {
	e := s.engine()
	if err := e.enter(ctx, "Images.ReadFile", "", ""); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	img, ok := e.images.images[ref]
	if !ok {
		return nil, imageErr(ref, orchestrator.ErrNotFound)
	}
	at, err := img.resolve(name)
	if err != nil {
		return nil, imageErr(ref, fmt.Errorf("file %q: %w: %v", name, orchestrator.ErrInvalid, err))
	}
	text, ok := img.files[at]
	if !ok {
		return nil, imageErr(ref, fmt.Errorf("file %q: %w", name, orchestrator.ErrNotFound))
	}
	if len(text) > maxReadFile {
		return nil, imageErr(ref, fmt.Errorf("file %q: %w: larger than 16 MiB", name, orchestrator.ErrInvalid))
	}
	return []byte(text), nil
}

// View implements orchestrator.Images.
func (s *images) View(ctx context.Context, ref string, visit func(root fs.FS) error) error {
	e := s.engine()
	if err := e.enter(ctx, "Images.View", "", ""); err != nil {
		return err
	}
	e.mu.Lock()
	img, ok := e.images.images[ref]
	if !ok {
		e.mu.Unlock()
		return imageErr(ref, orchestrator.ErrNotFound)
	}
	tree := fstest.MapFS{}
	for name, text := range img.files {
		tree[strings.TrimPrefix(name, "/")] = &fstest.MapFile{Data: []byte(text), Mode: fs.FileMode(img.modes[name]) & 0o777}
	}
	for name, to := range img.links {
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(name), to)
		}
		// A MapFS follows neither absolute links nor those that climb out of it.
		to = strings.Repeat("../", strings.Count(name, "/")-1) + strings.TrimPrefix(to, "/")
		tree[strings.TrimPrefix(name, "/")] = &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
	}
	e.mu.Unlock() // visit may call the engine
	return visit(tree)
}

// annotationImageName is the annotation under which containerd and Docker keep an image's full name in an archive.
const annotationImageName = "io.containerd.image.name"

// dockerManifest is manifest.json of docker save.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *images) Export(ctx context.Context, w io.Writer, refs ...string) error {
	e := s.engine()
	if err := e.enter(ctx, "Images.Export", "", ""); err != nil {
		return err
	}
	if len(refs) == 0 {
		return fmt.Errorf("export: %w: no image named", orchestrator.ErrInvalid)
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var docker []dockerManifest
	blobs := map[digest.Digest][]byte{}
	e.mu.Lock()
	for _, ref := range refs {
		img, ok := e.images.images[ref]
		if !ok {
			e.mu.Unlock()
			return imageErr(ref, orchestrator.ErrNotFound)
		}
		maps.Copy(blobs, img.blobs)
		d := digest.Digest(img.Digest)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d,
			Size: int64(len(img.blobs[d])), Annotations: map[string]string{annotationImageName: ref}})
		var m ocispec.Manifest
		if err := json.Unmarshal(img.blobs[d], &m); err != nil {
			e.mu.Unlock()
			return imageErr(ref, err)
		}
		dm := dockerManifest{Config: blobPath(m.Config.Digest), RepoTags: []string{ref}}
		for _, l := range m.Layers {
			dm.Layers = append(dm.Layers, blobPath(l.Digest))
		}
		docker = append(docker, dm)
	}
	e.mu.Unlock()

	tw := tar.NewWriter(w)
	put := func(name string, b []byte) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		_, err := tw.Write(b)
		return err
	}
	marshal := func(name string, v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return put(name, b)
	}
	err := marshal(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	for _, d := range slices.Sorted(maps.Keys(blobs)) {
		err = errors.Join(err, put(blobPath(d), blobs[d]))
	}
	err = errors.Join(err, marshal(ocispec.ImageIndexFile, index), marshal("manifest.json", docker), tw.Close())
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

func blobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (s *images) Import(ctx context.Context, r io.Reader, opt orchestrator.TransferOptions) ([]orchestrator.Image, error) {
	e := s.engine()
	if err := e.enter(ctx, "Images.Import", "", ""); err != nil {
		return nil, err
	}
	found, err := readArchive(r)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []orchestrator.Image
	for _, img := range found {
		e.images.images[img.Ref] = img
		out = append(out, e.describe(img))
	}
	slices.SortFunc(out, func(a, b orchestrator.Image) int { return strings.Compare(a.Ref, b.Ref) })
	return out, nil
}

func readArchive(r io.Reader) ([]*image, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", orchestrator.ErrInvalid, fmt.Errorf(format, args...))
	}
	r, err := decompress(r)
	if err != nil {
		return nil, bad("%w", err)
	}
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, bad("%w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if files[path.Clean(h.Name)], err = io.ReadAll(tr); err != nil {
			return nil, bad("%w", err)
		}
	}
	blobs := map[digest.Digest][]byte{}
	for name, b := range files {
		dir, sum := path.Split(name)
		if path.Dir(path.Clean(dir)) != ocispec.ImageBlobsDir {
			continue
		}
		d := digest.NewDigestFromEncoded(digest.Algorithm(path.Base(dir)), sum)
		if err := d.Validate(); err != nil {
			return nil, bad("blob %q: %w", name, err)
		}
		if got := d.Algorithm().FromBytes(b); got != d {
			return nil, bad("blob %q has digest %s", name, got)
		}
		blobs[d] = b
	}
	var out []*image
	add := func(name string, d ocispec.Descriptor) error {
		full, err := orchestrator.NormalizeRef(name)
		if err != nil {
			return bad("%w", err)
		}
		img, err := loadImage(full, d, blobs)
		if err == nil {
			out = append(out, img)
		}
		return err
	}
	if text := files[ocispec.ImageIndexFile]; text != nil {
		var index ocispec.Index
		if err := json.Unmarshal(text, &index); err != nil {
			return nil, bad("index.json: %w", err)
		}
		for _, m := range index.Manifests {
			if err := m.Digest.Validate(); err != nil {
				return nil, bad("index.json: %w", err)
			}
			name := m.Annotations[annotationImageName]
			if name == "" {
				if name = m.Annotations[ocispec.AnnotationRefName]; name == "" {
					name = m.Digest.Encoded()[:12]
				}
				if !strings.ContainsAny(name, "/:@") {
					name = "localhost/imported:" + name
				}
			}
			if err := add(name, m); err != nil {
				return nil, err
			}
		}
	} else if text := files["manifest.json"]; text != nil {
		var docker []dockerManifest
		if err := json.Unmarshal(text, &docker); err != nil {
			return nil, bad("manifest.json: %w", err)
		}
		for _, dm := range docker {
			d, err := fromDocker(dm, files, blobs)
			if err != nil {
				return nil, bad("manifest.json: %w", err)
			}
			for _, tag := range dm.RepoTags {
				if err := add(tag, d); err != nil {
					return nil, err
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, bad("holds no image")
	}
	return out, nil
}

// fromDocker makes a manifest for an image of an archive of docker save before version 25, which has none. The layers
// are verified against the config's diff IDs.
func fromDocker(dm dockerManifest, files map[string][]byte, blobs map[digest.Digest][]byte) (ocispec.Descriptor, error) {
	text, ok := files[path.Clean(dm.Config)]
	if !ok {
		return ocispec.Descriptor{}, fmt.Errorf("config %q is missing", dm.Config)
	}
	var config ocispec.Image
	if err := json.Unmarshal(text, &config); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("config %q: %w", dm.Config, err)
	}
	if len(config.RootFS.DiffIDs) != len(dm.Layers) {
		return ocispec.Descriptor{}, fmt.Errorf("config %q has %d layers, not %d", dm.Config, len(config.RootFS.DiffIDs), len(dm.Layers))
	}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		blobs[d] = b
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: put(ocispec.MediaTypeImageConfig, text)}
	for i, name := range dm.Layers {
		data, ok := files[path.Clean(name)]
		if !ok {
			return ocispec.Descriptor{}, fmt.Errorf("layer %q is missing", name)
		}
		plain, err := decompress(bytes.NewReader(data))
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("layer %q: %w", name, err)
		}
		got, err := digest.FromReader(plain)
		if err != nil || got != config.RootFS.DiffIDs[i] {
			return ocispec.Descriptor{}, fmt.Errorf("layer %q has digest %s: %v", name, got, err)
		}
		m.Layers = append(m.Layers, put(ocispec.MediaTypeImageLayer, data))
	}
	text, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return put(ocispec.MediaTypeImageManifest, text), nil
}
