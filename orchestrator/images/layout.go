package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layoutStore lends the blobs of an OCI layout (image-spec v1.1, image-layout.md) to BuildKit. It only reads.
type layoutStore struct{ dir string }

var _ content.Store = layoutStore{}

func (s layoutStore) path(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil { // it came over a socket and becomes a path
		return "", fmt.Errorf("blob %q: %w: %w", d, errdefs.ErrInvalidArgument, err)
	}
	return filepath.Join(s.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}

// Info implements content.Manager.
func (s layoutStore) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	p, err := s.path(d)
	if err != nil {
		return content.Info{}, err
	}
	fi, err := os.Stat(p)
	if isNotExist(err) {
		return content.Info{}, fmt.Errorf("blob %s: %w", d, errdefs.ErrNotFound)
	}
	if err != nil {
		return content.Info{}, err
	}
	return content.Info{Digest: d, Size: fi.Size(), CreatedAt: fi.ModTime(), UpdatedAt: fi.ModTime()}, nil
}

// ReaderAt implements content.Provider.
func (s layoutStore) ReaderAt(_ context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	p, err := s.path(d.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if isNotExist(err) {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return sizedFile{f, fi.Size()}, nil
}

type sizedFile struct {
	*os.File
	size int64
}

func (f sizedFile) Size() int64 { return f.size }

func readOnly(what string) error {
	return fmt.Errorf("%s: base images are read-only: %w", what, errdefs.ErrNotImplemented)
}

// Update implements content.Manager.
func (layoutStore) Update(context.Context, content.Info, ...string) (content.Info, error) {
	return content.Info{}, readOnly("update")
}

// Walk implements content.Manager.
func (layoutStore) Walk(context.Context, content.WalkFunc, ...string) error { return readOnly("walk") }

// Delete implements content.Manager.
func (layoutStore) Delete(context.Context, digest.Digest) error { return readOnly("delete") }

// Status implements content.IngestManager: nothing is ever being written.
func (layoutStore) Status(_ context.Context, ref string) (content.Status, error) {
	return content.Status{}, fmt.Errorf("ingest %q: %w", ref, errdefs.ErrNotFound)
}

// ListStatuses implements content.IngestManager.
func (layoutStore) ListStatuses(context.Context, ...string) ([]content.Status, error) {
	return nil, nil
}

// Abort implements content.IngestManager.
func (layoutStore) Abort(context.Context, string) error { return readOnly("abort") }

// Writer implements content.Ingester.
func (layoutStore) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return nil, readOnly("write")
}
