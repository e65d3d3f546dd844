package containerd

import (
	"context"
	"encoding/json"
	"fmt"

	"berth/orchestrator"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rootImage is what creating a container needs of an image. It is immutable, so it is kept by the image's digest.
type rootImage struct {
	digest digest.Digest // of the index or manifest that the name points to
	chain  string        // key of the snapshot with all layers
	config ocispec.ImageConfig
}

// rootImage looks ref up. One round trip if the image has been used before.
func (e *Engine) rootImage(ctx context.Context, ref string) (*rootImage, error) {
	img, err := e.client.ImageService().Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("image %q: %w; pull or build it first", ref, orchestrator.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, classify(err))
	}
	if v, ok := e.roots.Load(img.Target.Digest); ok {
		return v.(*rootImage), nil
	}
	store := e.client.ContentStore()
	manifest, err := ctrimages.Manifest(ctx, store, img.Target, platforms.Default())
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, classify(err))
	}
	blob, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("image %q: configuration: %w", ref, classify(err))
	}
	var config ocispec.Image
	if err := json.Unmarshal(blob, &config); err != nil {
		return nil, fmt.Errorf("image %q: configuration: %w: %w", ref, orchestrator.ErrInvalid, err)
	}
	r := &rootImage{digest: img.Target.Digest, config: config.Config, chain: identity.ChainID(config.RootFS.DiffIDs).String()}
	e.roots.Store(img.Target.Digest, r)
	return r, nil
}

// unpack makes the snapshots of an image's layers, for one whose layers are there packed only, as all are when another
// snapshotter has been configured.
func unpack(ctx context.Context, client *containerd.Client, snapshotter, ref string) error {
	img, err := client.GetImage(ctx, ref)
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, classify(err))
	}
	if err := img.Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("image %q: unpack: %w", ref, classify(err))
	}
	return nil
}
