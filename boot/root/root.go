// Package root makes root file systems of images for machines.
//
// All roots of a machine lie in one directory of one file system, the roots' directory. A root called NAME is there as
//
//	NAME           the current root: with btrfs a subvolume that is the root's tree; with overlayfs a directory with "upper" and "work"
//	NAME.new       one that is being made; left behind by a crash it is garbage
//	NAME.prev      the one before; more of them, if they are not deleted yet, are NAME.prev.1, ...
//	.berth/NAME.json   State, written with fsync and rename
//	.berth/NAME.keep/  what outlives every root: the paths of Spec.Keep
//
// so that the boot option rootflags=subvol=NAME of mkinitcpio-docker-hooks finds what it expects. Nothing that has been
// booted well is changed or deleted during boot: a root is made as NAME.new, and swapped in by rename. Deleting is left to
// Collect, in the running system, after the boot was found good; it deletes nested subvolumes too.
//
// Making a root takes constant time: a btrfs snapshot, or an empty upper directory.
package root

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/boot/store"
)

var (
	// ErrUnsupported says that a driver cannot work with the image's layout or the file system of the roots.
	ErrUnsupported = errors.New("not usable here")
	// ErrNone says that there is no such root.
	ErrNone = errors.New("no such root")
)

// Mode says what of a root outlives a boot.
type Mode string

const (
	// Ephemeral is a new root at every boot.
	Ephemeral Mode = "ephemeral"
	// Persistent keeps the root as long as its image stays the same. With another image a new one is made; the old one
	// becomes the previous root, and only Spec.Keep is carried over.
	Persistent Mode = "persistent"
)

// Spec is the root that is wanted.
type Spec struct {
	Name  string // of the root: one path element, not beginning with a dot
	Image *store.Image
	Mode  Mode
	// Keep are absolute paths in the root which outlive every root of this name: directories, or files where the path does
	// not end in "/" and the image or the kept copy has a file. At first they are copied from the image.
	Keep []string
}

// State is what is known of the roots of one name; the file .berth/NAME.json.
type State struct {
	Version  int     `json:"version"`
	Current  *Record `json:"current,omitempty"`
	Previous *Record `json:"previous,omitempty"`
}

// Record is one root.
type Record struct {
	Dir     string        `json:"dir"` // its name in the roots' directory
	Image   string        `json:"image"`
	Digest  digest.Digest `json:"digest"`
	ID      digest.Digest `json:"id"`
	Layout  store.Layout  `json:"layout"`
	Lower   []string      `json:"lower,omitempty"` // overlayfs: the image's layers, the lowest first, relative to the store
	Created time.Time     `json:"created"`
	Booted  time.Time     `json:"booted,omitzero"` // the last time it was handed over to its init
	Good    bool          `json:"good"`            // reached berth-machine-good.service at least once
	Tries   int           `json:"tries"`           // boots since it was made or last good; 0 when good
}

// Driver makes and mounts roots with one technique. Conformance suite: rootconformance.Run.
type Driver interface {
	Name() string // "btrfs", "overlayfs"
	// Supports returns nil when roots in dir can be made of the image, otherwise an error that wraps ErrUnsupported and says why.
	Supports(dir string, image *store.Image) error
	// Create makes the writable part at dir/name, which does not exist. On error nothing is left.
	Create(ctx context.Context, dir, name string, image *store.Image) error
	// Mount mounts the whole tree of dir/name at target. lower are the image's layers (Image.Layers' Dirs), if there is an image.
	Mount(dir, name string, lower []string, target string) error
	// Rename renames dir/from to dir/to, which does not exist. A mounted root stays mounted.
	Rename(dir, from, to string) error
	// Delete deletes dir/name with everything in it, nested subvolumes too. It never follows a symbolic link or leaves dir.
	Delete(ctx context.Context, dir, name string) error
}
