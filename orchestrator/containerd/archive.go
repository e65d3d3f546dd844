package containerd

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
	"path"
	"strings"

	"berth/orchestrator"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of what an archive may ask of memory. Blobs go to disk, where the disk's size is the bound.
const (
	maxArchiveJSON    = 8 << 20 // bytes of index.json, manifest.json or a manifest or config blob
	maxArchiveEntries = 100_000
	maxLayers         = 500       // of one image; overlayfs itself stacks fewer
	maxZstdWindow     = 128 << 20 // what zstd itself accepts without --long
)

// badArchive is an error of class ErrInvalid about the archive.
func badArchive(format string, args ...any) error {
	return fmt.Errorf("archive: %w: %w", orchestrator.ErrInvalid, fmt.Errorf(format, args...))
}

// blobStore takes the blobs of an archive while it is read, and gives the small ones back.
type blobStore interface {
	// Put stores size bytes from r. If want is not empty, other content is an error and is not stored.
	Put(ctx context.Context, name string, size int64, want digest.Digest, r io.Reader) (digest.Digest, error)
	// Open returns a stored blob.
	Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
}

// archived is one image of an archive.
type archived struct {
	name   string             // full reference
	target ocispec.Descriptor // manifest or index; its content is in the store
}

// dockerManifest is one entry of manifest.json of `docker save` (moby image spec v1.2).
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// readArchive reads an OCI layout (image-spec v1.1, image-layout.md) or `docker save` archive, tarred and possibly
// compressed, into blobs and returns the images it names. An archive that is both is read as OCI layout. Paths in the
// archive are only ever compared, never opened. Every blob is verified: in an OCI layout by its name, in the other by
// the diff IDs of the image's config.
func readArchive(ctx context.Context, r io.Reader, blobs blobStore) ([]archived, error) {
	plain, closer, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer closer()
	a := layout{
		blobs: blobs, files: map[string]ocispec.Descriptor{}, links: map[string]string{}, unpacked: map[digest.Digest]unpackedLayer{},
	}
	if err := a.read(ctx, plain); err != nil {
		return nil, err
	}
	// What follows the end of the tar is padding, but the compressor's checksum follows it.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return nil, archiveReadError("", err)
	}
	switch {
	case a.oci != nil:
		return a.ociImages(ctx)
	case a.docker != nil:
		return a.dockerImages(ctx)
	}
	return nil, badArchive("neither an OCI layout (oci-layout, index.json) nor made by docker save (manifest.json)")
}

// decompress looks at the first bytes: gzip (RFC 1952), zstd (RFC 8878) or neither. What a decompressor finds wrong with
// its input is ErrInvalid; errors of r pass.
func decompress(r io.Reader) (io.Reader, func(), error) {
	src := &source{r: r}
	br := bufio.NewReaderSize(src, 1<<16)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("archive: read: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, src.blame(err)
		}
		return &unpacker{z, src}, func() { z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, src.blame(err)
		}
		return &unpacker{z, src}, z.Close, nil
	}
	return br, func() {}, nil
}

// source remembers the error of a reader, to tell it from what a decompressor makes of its bytes.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// blame returns the source's own error, if there was one, or else says that the bytes are wrong.
func (s *source) blame(err error) error {
	if s.err != nil {
		return fmt.Errorf("archive: read: %w", s.err)
	}
	return badArchive("damaged: %w", err)
}

// unpacker is a decompressor.
type unpacker struct {
	r   io.Reader
	src *source
}

func (u *unpacker) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader's contract is the bare value
		err = u.src.blame(err)
	}
	return n, err
}

// layout is an archive that has been read.
type layout struct {
	blobs  blobStore
	files  map[string]ocispec.Descriptor // regular files by clean path
	links  map[string]string             // links to other files of the archive
	oci    *ocispec.ImageLayout
	index  *ocispec.Index
	docker []dockerManifest

	unpacked map[digest.Digest]unpackedLayer // each layer is unpacked once, however often it is named
}

// unpackedLayer is what unpacking a layer showed.
type unpackedLayer struct {
	diffID digest.Digest
	suffix string // of its media type
}

func (a *layout) read(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return archiveReadError("", err)
		}
		if n >= maxArchiveEntries {
			return badArchive("more than %d files", maxArchiveEntries)
		}
		for k := range hdr.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") { // a hole costs the archive nothing and the disk its size
				return badArchive("file %q is sparse", hdr.Name)
			}
		}
		name := path.Clean(strings.TrimPrefix(hdr.Name, "/"))
		switch hdr.Typeflag {
		case tar.TypeReg:
		case tar.TypeSymlink:
			a.links[name] = path.Join(path.Dir(name), hdr.Linkname)
			continue
		case tar.TypeLink:
			a.links[name] = path.Clean(hdr.Linkname)
			continue
		default:
			continue
		}
		switch name {
		case ocispec.ImageLayoutFile:
			err = decodeOnce(tr, hdr, &a.oci)
		case ocispec.ImageIndexFile:
			err = decodeOnce(tr, hdr, &a.index)
		case "manifest.json":
			if a.docker != nil {
				return badArchive("%q occurs twice", name)
			}
			err = decodeJSON(tr, hdr.Size, name, &a.docker)
		default:
			err = a.put(ctx, name, hdr.Size, tr)
		}
		if err != nil {
			return err
		}
	}
}

// put stores one file as a blob.
func (a *layout) put(ctx context.Context, name string, size int64, r io.Reader) error {
	want := digest.Digest("")
	if dir, hex := path.Split(name); strings.HasPrefix(name, "blobs/") {
		want = digest.NewDigestFromEncoded(digest.Algorithm(path.Base(dir)), hex)
		if err := want.Validate(); err != nil {
			return badArchive("blob %q: %w", name, err)
		}
		if want.Algorithm() != digest.SHA256 {
			return badArchive("blob %q: only sha256 is supported", name)
		}
	}
	d, err := a.blobs.Put(ctx, name, size, want, r)
	if err != nil {
		return archiveReadError(name, err)
	}
	a.files[name] = ocispec.Descriptor{Digest: d, Size: size}
	return nil
}

// archiveReadError tells damage of the archive from trouble with the place where it goes.
func archiveReadError(name string, err error) error {
	var at string
	if name != "" {
		at = fmt.Sprintf("file %q: ", name)
	}
	switch {
	case errors.Is(err, orchestrator.ErrInvalid):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return badArchive("%struncated: %w", at, err)
	case strings.HasPrefix(err.Error(), "archive/tar:"): // not all of them are exported
		return badArchive("%sdamaged: %w", at, err)
	}
	return fmt.Errorf("archive: %s%w", at, err)
}

// decodeOnce decodes a JSON file that may occur once.
func decodeOnce[T any](r io.Reader, hdr *tar.Header, dst **T) error {
	if *dst != nil {
		return badArchive("%q occurs twice", hdr.Name)
	}
	v := new(T)
	if err := decodeJSON(r, hdr.Size, hdr.Name, v); err != nil {
		return err
	}
	*dst = v
	return nil
}

func decodeJSON(r io.Reader, size int64, name string, v any) error {
	if size > maxArchiveJSON {
		return badArchive("%q: %d bytes are more than the %d allowed", name, size, maxArchiveJSON)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxArchiveJSON))
	if err != nil {
		return archiveReadError(name, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return badArchive("%q: %w", name, err)
	}
	return nil
}

// ociImages checks an OCI layout and names its images.
func (a *layout) ociImages(ctx context.Context) ([]archived, error) {
	if a.oci.Version != ocispec.ImageLayoutVersion {
		return nil, badArchive("OCI layout version %q, want %q", a.oci.Version, ocispec.ImageLayoutVersion)
	}
	if a.index == nil {
		return nil, badArchive("index.json is missing")
	}
	have := map[digest.Digest]int64{}
	for _, d := range a.files {
		have[d.Digest] = d.Size
	}
	var out []archived
	for _, m := range a.index.Manifests {
		if coreimages.IsAttestationType(m.MediaType) {
			continue
		}
		name, err := archiveName(m)
		if err != nil {
			return nil, err
		}
		if err := a.check(ctx, m, have, 0); err != nil {
			return nil, err
		}
		m.Annotations = nil // they speak of the archive
		out = append(out, archived{name, m})
	}
	if len(out) == 0 {
		return nil, badArchive("holds no image")
	}
	return out, nil
}

// archiveName finds the name of an image in an OCI layout: containerd and Docker give the full one in an annotation;
// the specification's own annotation may hold a reference or a bare tag; without any the digest makes one.
func archiveName(m ocispec.Descriptor) (string, error) {
	if n := m.Annotations[coreimages.AnnotationImageName]; n != "" {
		full, err := orchestrator.NormalizeRef(n)
		if err != nil {
			return "", badArchive("index.json: %w", err)
		}
		return full, nil
	}
	if err := m.Digest.Validate(); err != nil {
		return "", badArchive("index.json: %w", err)
	}
	n := m.Annotations[ocispec.AnnotationRefName]
	switch {
	case n == "":
		n = "localhost/imported:" + m.Digest.Encoded()[:12]
	case !strings.ContainsAny(n, "/:@"):
		n = "localhost/imported:" + n
	}
	full, err := orchestrator.NormalizeRef(n)
	if err != nil {
		return "", badArchive("index.json: %w", err)
	}
	return full, nil
}

// maxIndexDepth bounds how far indexes nest.
const maxIndexDepth = 4

// check verifies that the archive holds d and all it needs to run on this host. Platforms of others may be missing.
func (a *layout) check(ctx context.Context, d ocispec.Descriptor, have map[digest.Digest]int64, depth int) error {
	if err := d.Digest.Validate(); err != nil {
		return badArchive("digest %q: %w", d.Digest, err)
	}
	size, ok := have[d.Digest]
	if !ok {
		return badArchive("blob %s is missing", d.Digest)
	}
	if size != d.Size {
		return badArchive("blob %s has %d bytes, %d expected", d.Digest, size, d.Size)
	}
	switch {
	case coreimages.IsIndexType(d.MediaType):
		if depth >= maxIndexDepth {
			return badArchive("indexes nest deeper than %d", maxIndexDepth)
		}
		var idx ocispec.Index
		if err := a.json(ctx, d, &idx); err != nil {
			return err
		}
		ours := 0
		for _, m := range idx.Manifests {
			if m.Platform != nil && !platforms.Default().Match(*m.Platform) {
				continue
			}
			if _, ok := have[m.Digest]; !ok && m.Platform == nil {
				continue
			}
			if err := a.check(ctx, m, have, depth+1); err != nil {
				return err
			}
			ours++
		}
		if ours == 0 {
			return badArchive("image %s: nothing for platform %s", d.Digest, platforms.DefaultString())
		}
	case coreimages.IsManifestType(d.MediaType):
		var m ocispec.Manifest
		if err := a.json(ctx, d, &m); err != nil {
			return err
		}
		if err := a.check(ctx, m.Config, have, depth+1); err != nil {
			return err
		}
		var cfg ocispec.Image
		if err := a.json(ctx, m.Config, &cfg); err != nil {
			return err
		}
		if len(m.Layers) > maxLayers {
			return badArchive("image %s: %d layers are more than the %d allowed", d.Digest, len(m.Layers), maxLayers)
		}
		if len(cfg.RootFS.DiffIDs) != len(m.Layers) {
			return badArchive("image %s: %d layers, but its config has %d", d.Digest, len(m.Layers), len(cfg.RootFS.DiffIDs))
		}
		for i, l := range m.Layers {
			if err := a.check(ctx, l, have, depth+1); err != nil {
				return err
			}
			if err := a.checkDiffID(ctx, l, cfg.RootFS.DiffIDs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkDiffID verifies a layer's uncompressed digest. The unpacker would do so, but not for a layer that is unpacked
// already.
func (a *layout) checkDiffID(ctx context.Context, l ocispec.Descriptor, want digest.Digest) error {
	got, _, err := a.diffID(ctx, l)
	if err != nil {
		return err
	}
	if got != want {
		return badArchive("layer %s unpacks to %s, its image's config says %s", l.Digest, got, want)
	}
	return nil
}

// diffID returns a layer's uncompressed digest and the suffix of its media type.
func (a *layout) diffID(ctx context.Context, l ocispec.Descriptor) (digest.Digest, string, error) {
	if u, ok := a.unpacked[l.Digest]; ok {
		return u.diffID, u.suffix, nil
	}
	id, suffix, err := a.unpack(ctx, l)
	if err == nil {
		a.unpacked[l.Digest] = unpackedLayer{id, suffix}
	}
	return id, suffix, err
}

func (a *layout) unpack(ctx context.Context, l ocispec.Descriptor) (digest.Digest, string, error) {
	f, err := a.blobs.Open(ctx, l.Digest)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	br := bufio.NewReaderSize(f, 1<<16)
	magic, _ := br.Peek(4) // a shorter layer is not compressed
	suffix := ""
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		suffix = "+gzip"
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		suffix = "+zstd"
	default:
		return l.Digest, "", nil // stored as it is, and verified as such
	}
	r, closer, err := decompress(br)
	if err != nil {
		return "", "", err
	}
	defer closer()
	h := digest.Canonical.Digester()
	if _, err := io.Copy(h.Hash(), r); err != nil {
		return "", "", archiveReadError(l.Digest.String(), err)
	}
	return h.Digest(), suffix, nil
}

// json reads a small blob.
func (a *layout) json(ctx context.Context, d ocispec.Descriptor, v any) error {
	if d.Size > maxArchiveJSON {
		return badArchive("%s: %d bytes are more than the %d allowed", d.Digest, d.Size, maxArchiveJSON)
	}
	f, err := a.blobs.Open(ctx, d.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	return decodeJSON(f, d.Size, d.Digest.String(), v)
}

// dockerImages checks the images of a `docker save` archive and writes the manifests it lacks.
func (a *layout) dockerImages(ctx context.Context) ([]archived, error) {
	var out []archived
	for _, m := range a.docker {
		target, err := a.dockerImage(ctx, m)
		if err != nil {
			return nil, err
		}
		names := m.RepoTags
		if len(names) == 0 {
			names = []string{"localhost/imported:" + target.Digest.Encoded()[:12]}
		}
		for _, n := range names {
			full, err := orchestrator.NormalizeRef(n)
			if err != nil {
				return nil, badArchive("manifest.json: %w", err)
			}
			out = append(out, archived{full, target})
		}
	}
	if len(out) == 0 {
		return nil, badArchive("holds no image")
	}
	return out, nil
}

func (a *layout) dockerImage(ctx context.Context, m dockerManifest) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	cfgDesc, err := a.file(m.Config)
	if err != nil {
		return none, err
	}
	// The classic format names the config by its digest.
	if hex, ok := strings.CutSuffix(path.Base(m.Config), ".json"); ok && len(hex) == 64 && hex != cfgDesc.Digest.Encoded() {
		return none, badArchive("config %q has digest %s", m.Config, cfgDesc.Digest)
	}
	var cfg ocispec.Image
	if err := a.json(ctx, cfgDesc, &cfg); err != nil {
		return none, err
	}
	if len(m.Layers) > maxLayers {
		return none, badArchive("config %q: %d layers are more than the %d allowed", m.Config, len(m.Layers), maxLayers)
	}
	if len(cfg.RootFS.DiffIDs) != len(m.Layers) {
		return none, badArchive("config %q: %d layers, but manifest.json has %d", m.Config, len(cfg.RootFS.DiffIDs), len(m.Layers))
	}
	if p := (ocispec.Platform{OS: cfg.OS, Architecture: cfg.Architecture, Variant: cfg.Variant}); !platforms.Default().Match(p) {
		return none, badArchive("image for platform %s, this host is %s", platforms.Format(p), platforms.DefaultString())
	}
	cfgDesc.MediaType = ocispec.MediaTypeImageConfig
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cfgDesc,
		Layers: []ocispec.Descriptor{},
	}
	for i, name := range m.Layers {
		l, err := a.file(name)
		if err != nil {
			return none, err
		}
		got, suffix, err := a.diffID(ctx, l)
		if err != nil {
			return none, err
		}
		if got != cfg.RootFS.DiffIDs[i] {
			return none, badArchive("layer %q unpacks to %s, the config says %s", name, got, cfg.RootFS.DiffIDs[i])
		}
		l.MediaType = ocispec.MediaTypeImageLayer + suffix
		manifest.Layers = append(manifest.Layers, l)
	}
	b, err := json.Marshal(manifest)
	if err != nil {
		return none, fmt.Errorf("archive: manifest: %w", err)
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if _, err := a.blobs.Put(ctx, "manifest", d.Size, d.Digest, bytes.NewReader(b)); err != nil {
		return none, fmt.Errorf("archive: manifest: %w", err)
	}
	return d, nil
}

// file finds a file by its name in manifest.json, through links as docker save writes them for shared layers.
func (a *layout) file(name string) (ocispec.Descriptor, error) {
	at := path.Clean(name)
	for range 8 {
		if d, ok := a.files[at]; ok {
			return d, nil
		}
		next, ok := a.links[at]
		if !ok {
			break
		}
		at = next
	}
	return ocispec.Descriptor{}, badArchive("file %q is missing", name)
}

// Import implements orchestrator.Images.
func (s *images) Import(ctx context.Context, r io.Reader, opt orchestrator.TransferOptions) (_ []orchestrator.Image, err error) {
	defer func(ctx context.Context) { err = cancelled(ctx, err) }(ctx) // of which a stream to containerd tells only its end
	ctx = s.withNamespace(ctx)
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	report := opt.Progress
	if report == nil {
		report = func(orchestrator.Progress) {}
	}
	found, err := readArchive(ctx, r, &importStore{cs: s.client.ContentStore(), report: report})
	if err != nil {
		return nil, err
	}
	var records []coreimages.Image
	for _, f := range found {
		report(orchestrator.Progress{ID: f.name, Status: "extracting"})
		if err := s.adopt(ctx, f); err != nil {
			return nil, err
		}
		records = append(records, coreimages.Image{Name: f.name, Target: f.target})
	}
	if err := s.recordAll(ctx, records); err != nil {
		return nil, err
	}
	out := make([]orchestrator.Image, 0, len(found))
	for _, f := range found {
		img, err := s.Get(ctx, f.name)
		if err != nil {
			return nil, err
		}
		report(orchestrator.Progress{ID: f.name, Status: "done", Done: img.Packed, Total: img.Packed})
		out = append(out, img)
	}
	return out, nil
}

// adopt ties the parts of an imported image together for the garbage collector and unpacks it.
func (s *images) adopt(ctx context.Context, a archived) error {
	cs := s.client.ContentStore()
	h := coreimages.SetChildrenLabels(cs, coreimages.FilterPlatforms(coreimages.ChildrenHandler(cs), platforms.Default()))
	if err := coreimages.Walk(ctx, h, a.target); err != nil {
		return imageError(a.name, "import", err)
	}
	img := containerd.NewImage(s.client, coreimages.Image{Name: a.name, Target: a.target})
	if err := img.Unpack(ctx, s.snapshotter); err != nil {
		return imageError(a.name, "unpack", err)
	}
	return nil
}

// importStore is a blobStore on containerd's content store.
type importStore struct {
	cs     content.Store
	report func(orchestrator.Progress)
}

func (s *importStore) Put(ctx context.Context, name string, size int64, want digest.Digest, r io.Reader) (digest.Digest, error) {
	id := name
	if want != "" {
		id = want.String()
	}
	s.report(orchestrator.Progress{ID: id, Status: "downloading", Total: size})
	// The writer is opened without the expected digest: with it, content that exists already would not be read, and so
	// not verified.
	w, err := content.OpenWriter(ctx, s.cs, content.WithRef("berth-import-"+id))
	if err != nil {
		return "", err
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil {
		return "", err
	}
	h := digest.Canonical.Digester()
	n, err := io.CopyBuffer(io.MultiWriter(w, h.Hash()), r, make([]byte, 1<<20)) // every write is a message to containerd
	if err != nil {
		return "", err
	}
	if n != size {
		return "", io.ErrUnexpectedEOF
	}
	got := h.Digest()
	if want != "" && got != want {
		return "", badArchive("file %q: content has digest %s", name, got)
	}
	if err := w.Commit(ctx, size, got); err != nil && !errdefs.IsAlreadyExists(err) {
		return "", err
	}
	s.report(orchestrator.Progress{ID: id, Status: "done", Done: size, Total: size})
	return got, nil
}

func (s *importStore) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	ra, err := s.cs.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
}

// Export implements orchestrator.Images: an OCI layout that also holds the manifest.json `docker load` wants. Only what
// is here whole is written, see complete.
func (s *images) Export(ctx context.Context, w io.Writer, refs ...string) error {
	ctx = s.withNamespace(ctx)
	if len(refs) == 0 {
		return fmt.Errorf("export: %w: name at least one image", orchestrator.ErrInvalid)
	}
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.Default())}
	for _, ref := range refs {
		if _, err := reference.ParseNormalizedNamed(ref); err != nil {
			return fmt.Errorf("image %q: %w: %w", ref, orchestrator.ErrInvalid, err)
		}
		r, err := s.client.ImageService().Get(ctx, ref)
		if err != nil {
			return imageError(ref, "", err)
		}
		d, err := s.complete(ctx, r)
		if err != nil {
			return err
		}
		if d, err = s.gzipLayers(ctx, d); err != nil {
			return imageError(ref, "export", err)
		}
		opts = append(opts, archive.WithManifest(d, ref))
	}
	if err := archive.Export(ctx, s.client.ContentStore(), w, opts...); err != nil {
		return imageError(strings.Join(refs, " "), "export", err)
	}
	return nil
}

// gzipLayers returns an image with gzip instead of zstd layers, which Docker before 23.0 cannot load. Indexes stay as
// they are: they were made elsewhere. The new content belongs to the caller's lease.
func (s *images) gzipLayers(ctx context.Context, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !coreimages.IsManifestType(d.MediaType) {
		return d, nil
	}
	cs := s.client.ContentStore()
	blob, err := content.ReadBlob(ctx, cs, d)
	if err != nil {
		return d, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(blob, &m); err != nil {
		return d, err
	}
	changed := false
	for i, l := range m.Layers {
		if l.MediaType != ocispec.MediaTypeImageLayerZstd {
			continue
		}
		if m.Layers[i], err = s.gzipLayer(ctx, l); err != nil {
			return d, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		changed = true
	}
	if !changed {
		return d, nil
	}
	if blob, err = json.Marshal(m); err != nil {
		return d, err
	}
	out := ocispec.Descriptor{MediaType: d.MediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob)), Platform: d.Platform}
	err = content.WriteBlob(ctx, cs, "berth-export-"+out.Digest.String(), bytes.NewReader(blob), out)
	return out, err
}

// gzipLayer packs a zstd layer anew, always into the same bytes.
func (s *images) gzipLayer(ctx context.Context, l ocispec.Descriptor) (_ ocispec.Descriptor, err error) {
	cs := s.client.ContentStore()
	ra, err := cs.ReaderAt(ctx, l)
	if err != nil {
		return l, err
	}
	defer ra.Close()
	in, err := zstd.NewReader(content.NewReader(ra), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return l, err
	}
	defer in.Close()
	w, err := content.OpenWriter(ctx, cs, content.WithRef("berth-export-"+l.Digest.String()))
	if err != nil {
		return l, err
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil {
		return l, err
	}
	buf := bufio.NewWriterSize(w, 1<<20) // every write is a message to containerd
	z, err := kgzip.NewWriterLevel(buf, kgzip.BestSpeed)
	if err != nil {
		return l, err
	}
	if _, err := io.Copy(z, in); err != nil {
		return l, err
	}
	if err := errors.Join(z.Close(), buf.Flush()); err != nil {
		return l, err
	}
	st, err := w.Status()
	if err != nil {
		return l, err
	}
	d := w.Digest()
	if err := w.Commit(ctx, st.Offset, d); err != nil && !errdefs.IsAlreadyExists(err) {
		return l, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: st.Offset}, nil
}
