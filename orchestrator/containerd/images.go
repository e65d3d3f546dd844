package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/internal/revert"
	"berth/orchestrator"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// images implements orchestrator.Images on containerd's content, image, snapshot and lease services.
//
// Whatever an operation brings in belongs to a lease until an image record refers to it. An operation that fails
// drops its lease, and containerd's garbage collector takes the rest: nothing is left behind, not even by a crash,
// because leases expire.
type images struct {
	namespace
	client      *containerd.Client
	snapshotter string
	files       *fileCache

	mu    sync.Mutex
	facts map[digest.Digest]*facts // by the record's target; immutable once made
	sizes map[string]int64         // of committed snapshots, by chain ID
}

// facts is what an image's manifest and config say; both are immutable under their digest.
type facts struct {
	manifest ocispec.Manifest
	config   ocispec.Image
	chains   []string // snapshot names, lowest first
}

var _ orchestrator.Images = (*images)(nil)

// newImages returns the image store of e.
func newImages(e *Engine) orchestrator.Images {
	return &images{
		namespace: e.namespace, client: e.client, snapshotter: e.snapshotter, files: newFileCache(32 << 20),
		facts: map[digest.Digest]*facts{}, sizes: map[string]int64{},
	}
}

// ContentStore gives builders that run beside the engine the images' blobs without copying them.
func (s *images) ContentStore() content.Store { return nsStore{s.namespace, s.client.ContentStore()} }

// List implements orchestrator.Images.
func (s *images) List(ctx context.Context) ([]orchestrator.Image, error) {
	ctx = s.withNamespace(ctx)
	records, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, imageError("", "list images", err)
	}
	used, err := s.used(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]orchestrator.Image, 0, len(records))
	for _, r := range records {
		img, err := s.describe(ctx, r)
		if errors.Is(err, orchestrator.ErrNotFound) {
			continue // its content was removed since the listing, or is of another platform
		}
		if err != nil {
			return nil, err
		}
		img.InUse = used[r.Name]
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b orchestrator.Image) int { return strings.Compare(a.Ref, b.Ref) })
	return out, nil
}

// Get implements orchestrator.Images.
func (s *images) Get(ctx context.Context, ref string) (orchestrator.Image, error) {
	ctx = s.withNamespace(ctx)
	r, err := s.client.ImageService().Get(ctx, ref)
	if err != nil {
		return orchestrator.Image{}, imageError(ref, "", err)
	}
	img, err := s.describe(ctx, r)
	if err != nil {
		return orchestrator.Image{}, err
	}
	used, err := s.used(ctx, "image=="+ref)
	if err != nil {
		return orchestrator.Image{}, err
	}
	img.InUse = used[ref]
	return img, nil
}

// Tag implements orchestrator.Images.
func (s *images) Tag(ctx context.Context, src, dst string) error {
	ctx = s.withNamespace(ctx)
	if full, err := orchestrator.NormalizeRef(dst); err != nil {
		return err
	} else if full != dst {
		return fmt.Errorf("image %q: %w name: not a full reference, which would be %q", dst, orchestrator.ErrInvalid, full)
	}
	r, err := s.client.ImageService().Get(ctx, src)
	if err != nil {
		return imageError(src, "", err)
	}
	_, err = s.record(ctx, coreimages.Image{Name: dst, Target: r.Target, Labels: r.Labels})
	return err
}

// Remove implements orchestrator.Images.
func (s *images) Remove(ctx context.Context, ref string) error {
	ctx = s.withNamespace(ctx)
	users, err := s.client.ContainerService().List(ctx, "image=="+ref)
	if err != nil {
		return imageError("", "list containers", err)
	}
	if len(users) > 0 {
		return fmt.Errorf("image %q: %w: container %q of pod %q uses it; stop its session first", ref, orchestrator.ErrState,
			users[0].Labels[labelName], users[0].Labels[labelPod])
	}
	// Synchronous: the collector has run when this returns, so the disk is as free as it will be.
	err = s.client.ImageService().Delete(ctx, ref, coreimages.SynchronousDelete())
	if err != nil && !errdefs.IsNotFound(err) {
		return imageError(ref, "remove", err)
	}
	return nil
}

// Prune removes content and snapshots that nothing refers to and returns the bytes freed.
func (s *images) Prune(ctx context.Context) (int64, error) {
	ctx = s.withNamespace(ctx)
	before, err := s.DiskUsage(ctx)
	if err != nil {
		return 0, err
	}
	// containerd collects at once when a lease is deleted synchronously.
	ls := s.client.LeasesService()
	l, err := ls.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return 0, imageError("", "prune", err)
	}
	if err := ls.Delete(ctx, l, leases.SynchronousDelete); err != nil {
		return 0, imageError("", "prune", err)
	}
	after, err := s.DiskUsage(ctx)
	if err != nil {
		return 0, err
	}
	return max(0, before-after), nil
}

// DiskUsage returns the bytes of all blobs and of all committed snapshots.
func (s *images) DiskUsage(ctx context.Context) (int64, error) {
	ctx = s.withNamespace(ctx)
	var sum int64
	err := s.client.ContentStore().Walk(ctx, func(i content.Info) error { sum += i.Size; return nil })
	if err != nil {
		return 0, imageError("", "content", err)
	}
	sn := s.client.SnapshotService(s.snapshotter)
	var keys []string
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			keys = append(keys, i.Name)
		}
		return nil
	})
	if err != nil {
		return 0, imageError("", "snapshots", err)
	}
	for _, k := range keys {
		u, err := sn.Usage(ctx, k)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return 0, imageError("", "snapshots", err)
		}
		sum += u.Size
	}
	return sum, nil
}

// used returns the names of the images that containers use.
func (s *images) used(ctx context.Context, filters ...string) (map[string]bool, error) {
	cs, err := s.client.ContainerService().List(ctx, filters...)
	if err != nil {
		return nil, imageError("", "list containers", err)
	}
	m := make(map[string]bool, len(cs))
	for _, c := range cs {
		m[c.Image] = true
	}
	return m, nil
}

// describe fills an Image from a record. It is ErrNotFound if content of this host's platform is missing.
func (s *images) describe(ctx context.Context, r coreimages.Image) (orchestrator.Image, error) {
	f, err := s.factsOf(ctx, r)
	if err != nil {
		return orchestrator.Image{}, err
	}
	img := orchestrator.Image{
		Ref: r.Name, Digest: r.Target.Digest.String(), Created: r.CreatedAt,
		Labels: f.config.Config.Labels, Env: f.config.Config.Env,
		Cmd: slices.Concat(f.config.Config.Entrypoint, f.config.Config.Cmd),
	}
	if f.config.Created != nil && !f.config.Created.IsZero() {
		img.Created = *f.config.Created
	}
	img.Packed = f.manifest.Config.Size
	for _, l := range f.manifest.Layers {
		img.Packed += l.Size
	}
	for _, d := range f.config.RootFS.DiffIDs {
		img.Layers = append(img.Layers, d.String())
	}
	for _, c := range f.chains {
		n, err := s.sizeOf(ctx, c)
		if err != nil {
			return orchestrator.Image{}, imageError(r.Name, "size", err)
		}
		img.Size += n
	}
	return img, nil
}

// factsOf reads the manifest and config of this host's platform.
func (s *images) factsOf(ctx context.Context, r coreimages.Image) (*facts, error) {
	s.mu.Lock()
	f := s.facts[r.Target.Digest]
	s.mu.Unlock()
	if f != nil {
		return f, nil
	}
	cs := s.client.ContentStore()
	m, err := coreimages.Manifest(ctx, cs, r.Target, platforms.Default())
	if err != nil {
		return nil, imageError(r.Name, "manifest", err)
	}
	f = &facts{manifest: m}
	blob, err := content.ReadBlob(ctx, cs, m.Config)
	if err != nil {
		return nil, imageError(r.Name, "config", err)
	}
	if err := json.Unmarshal(blob, &f.config); err != nil {
		return nil, fmt.Errorf("image %q: config: %w: %w", r.Name, orchestrator.ErrInvalid, err)
	}
	for i := range f.config.RootFS.DiffIDs {
		f.chains = append(f.chains, identity.ChainID(f.config.RootFS.DiffIDs[:i+1]).String())
	}
	s.mu.Lock()
	s.facts[r.Target.Digest] = f
	s.mu.Unlock()
	return f, nil
}

// sizeOf returns the disk usage of one layer's snapshot alone; 0 if it is not unpacked.
func (s *images) sizeOf(ctx context.Context, chain string) (int64, error) {
	s.mu.Lock()
	n, ok := s.sizes[chain]
	s.mu.Unlock()
	if ok {
		return n, nil
	}
	u, err := s.client.SnapshotService(s.snapshotter).Usage(ctx, chain)
	if errdefs.IsNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.sizes[chain] = u.Size
	s.mu.Unlock()
	return u.Size, nil
}

// record creates or replaces an image record and returns how to undo that.
func (s *images) record(ctx context.Context, img coreimages.Image) (undo func(context.Context) error, err error) {
	is := s.client.ImageService()
	old, err := is.Get(ctx, img.Name)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, imageError(img.Name, "", err)
	}
	if err == nil {
		if _, err := is.Update(ctx, img, "target", "labels"); err != nil {
			return nil, imageError(img.Name, "update", err)
		}
		return func(ctx context.Context) error {
			_, err := is.Update(ctx, old, "target", "labels")
			return err
		}, nil
	}
	if _, err := is.Create(ctx, img); err != nil {
		return nil, imageError(img.Name, "create", err)
	}
	return func(ctx context.Context) error { return is.Delete(ctx, img.Name) }, nil
}

// recordAll creates or replaces several records, all or none.
func (s *images) recordAll(ctx context.Context, imgs []coreimages.Image) (err error) {
	var undo revert.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	for _, img := range imgs {
		u, err := s.record(ctx, img)
		if err != nil {
			return err
		}
		undo.Add("image "+img.Name, u)
	}
	undo.Disarm()
	return nil
}

// lease returns a context whose new content lives until done is called, or at most a day.
func (s *images) lease(ctx context.Context) (_ context.Context, done func(), err error) {
	lctx, release, err := s.client.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(24*time.Hour))
	if err != nil {
		return nil, nil, imageError("", "lease", err)
	}
	// Released even when ctx was cancelled, which is when it matters most; the expiry covers a dead containerd.
	return lctx, func() { _ = release(context.WithoutCancel(lctx)) }, nil
}

// imageError gives an error of containerd a class of package orchestrator and says what it was about.
func imageError(ref, what string, err error) error {
	if err == nil {
		return nil
	}
	prefix := "image store"
	if ref != "" {
		prefix = fmt.Sprintf("image %q", ref)
	}
	if what != "" {
		prefix += ": " + what
	}
	for _, class := range []error{
		orchestrator.ErrNotFound, orchestrator.ErrExists, orchestrator.ErrInvalid, orchestrator.ErrState, orchestrator.ErrUnavailable,
	} {
		if errors.Is(err, class) {
			return fmt.Errorf("%s: %w", prefix, err)
		}
	}
	var netErr net.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", prefix, err)
	case errors.Is(err, syscall.ENOSPC), strings.Contains(err.Error(), "no space left on device"):
		return fmt.Errorf("%s: disk full: %w: %w; free space or run `berth image prune`", prefix, orchestrator.ErrUnavailable, err)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%s: %w", prefix, orchestrator.ErrNotFound)
	case errdefs.IsAlreadyExists(err):
		return fmt.Errorf("%s: %w", prefix, orchestrator.ErrExists)
	case errdefs.IsInvalidArgument(err):
		return fmt.Errorf("%s: %w: %w", prefix, orchestrator.ErrInvalid, err)
	case errdefs.IsUnavailable(err), errors.As(err, &netErr):
		return fmt.Errorf("%s: %w: %w", prefix, orchestrator.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", prefix, err)
}

// nsStore is a content store whose every call names Berth's namespace, for users who know nothing of namespaces.
type nsStore struct {
	namespace
	content.Store
}

func (s nsStore) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	return s.Store.Info(s.withNamespace(ctx), d)
}

func (s nsStore) Update(ctx context.Context, i content.Info, fields ...string) (content.Info, error) {
	return s.Store.Update(s.withNamespace(ctx), i, fields...)
}

func (s nsStore) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	return s.Store.Walk(s.withNamespace(ctx), fn, filters...)
}

func (s nsStore) Delete(ctx context.Context, d digest.Digest) error {
	return s.Store.Delete(s.withNamespace(ctx), d)
}

func (s nsStore) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	return s.Store.ReaderAt(s.withNamespace(ctx), d)
}

func (s nsStore) Status(ctx context.Context, ref string) (content.Status, error) {
	return s.Store.Status(s.withNamespace(ctx), ref)
}

func (s nsStore) ListStatuses(ctx context.Context, filters ...string) ([]content.Status, error) {
	return s.Store.ListStatuses(s.withNamespace(ctx), filters...)
}

func (s nsStore) Abort(ctx context.Context, ref string) error {
	return s.Store.Abort(s.withNamespace(ctx), ref)
}

func (s nsStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	return s.Store.Writer(s.withNamespace(ctx), opts...)
}
