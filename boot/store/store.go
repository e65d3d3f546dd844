// Package store reads images from a container engine's directory on disk while no daemon runs on it, as in an initramfs.
//
// Known stores:
//
//	docker-overlay2        /var/lib/docker of a Docker daemon with the graph driver overlay2
//	docker-btrfs           the same with the graph driver btrfs
//	containerd-overlayfs   a containerd root (io.containerd.metadata.v1.bolt) with the snapshotter overlayfs; also Docker's
//	                       image store of containerd, which lies below /var/lib/docker/containerd or /var/lib/containerd
//	containerd-btrfs       the same with the snapshotter btrfs
//	containerd-native      the same with the snapshotter native
//
// Nothing is written. Records are never trusted: a truncated file, a missing layer or a path that leaves the store is an
// error that names it.
package store

import (
	"errors"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	// ErrNoStore says that a directory holds no store of a known kind.
	ErrNoStore = errors.New("no image store")
	// ErrNotFound says that a store has no such image.
	ErrNotFound = errors.New("no such image")
	// ErrNotUnpacked says that an image is there, and its layers are not unpacked in the snapshotter: `docker pull` or
	// `ctr images unpack` does that.
	ErrNotUnpacked = errors.New("image is not unpacked")
	// ErrDamaged says that what the store's records promise is not on disk, or that they cannot be read.
	ErrDamaged = errors.New("store is damaged")
)

// Layout is how a store keeps an image's layers.
type Layout string

const (
	// Stack is a directory per layer with what the layer changes, as the lower directories of overlayfs want it (whiteouts
	// are character devices 0:0 or extended attributes trusted.overlay.opaque).
	Stack Layout = "stack"
	// Subvolumes is a btrfs subvolume per layer with the whole tree up to it.
	Subvolumes Layout = "subvolumes"
	// Trees is a plain directory per layer with the whole tree up to it.
	Trees Layout = "trees"
)

// Store is one image store on disk. Its methods may be called at the same time.
type Store interface {
	// Kind is the name of the store's kind, as in the package's comment.
	Kind() string
	// Dir is the directory it was opened at.
	Dir() string
	// Images lists what can be resolved, in the order of Name. An image that is damaged is listed with its Err.
	Images() ([]Entry, error)
	// Resolve finds an image by name ("debian", "docker.io/library/debian:12", "localhost/x@sha256:…"), or by the digest of its
	// manifest or its config, whole or a unique beginning of at least 12 digits ("sha256:0123456789ab", "0123456789ab"). Names are
	// normalized as Docker does: https://pkg.go.dev/github.com/distribution/reference. Errors wrap those above.
	Resolve(ref string) (*Image, error)
	Close() error
}

// Entry is a line of a store's list.
type Entry struct {
	Name   string        // normalized, with tag; empty for an image without a name
	Digest digest.Digest // of the manifest where the store keeps it, otherwise ID
	ID     digest.Digest // of the image's config
	Err    error
}

// Image is an image in a store, with all that a root is made of.
type Image struct {
	Name   string
	Digest digest.Digest // of the manifest (for this platform) where the store keeps it, otherwise ID
	ID     digest.Digest // of the image's config
	Config ocispec.Image
	Layout Layout
	Layers []Layer // the lowest first; never empty
}

// Layer is one layer of an image on disk.
type Layer struct {
	DiffID  digest.Digest // of the uncompressed tar
	ChainID digest.Digest // OCI image spec, "Layer ChainID"
	Dir     string        // absolute, below the store's directory; see Layout
}

// Top is the directory of the highest layer: with Subvolumes and Trees the whole image.
func (i *Image) Top() string { return i.Layers[len(i.Layers)-1].Dir }
