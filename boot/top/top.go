// Package top puts the files of one machine (passwd, fstab, hostname, xorg.conf) on top of the root of a shared image.
//
// A top layer is a list of sources, applied in order, each a directory, a tar file (plain, gzip or zstd), or an OCI artifact
// in an OCI layout or a store. They are applied as image layers are (OCI image spec, "Applying Changesets"): ".wh.NAME" removes NAME, and
// ".wh..wh..opq" everything below a directory that was there before; with one difference: the mode, owner and times of a directory
// that exists are not changed, since a top layer made by mkdir -p would otherwise take /etc from everybody. Nothing is
// followed out of the root: neither by symbolic links of the root nor by names of the source.
package top

import (
	"context"
	"errors"
)

// ErrMissing says that a source is not there. A boot without it would be a machine without its passwd: the boot fails.
var ErrMissing = errors.New("top layer is missing")

// Source is one part of a top layer.
type Source struct {
	Kind Kind
	Path string // absolute: a directory, a tar file, or an OCI layout
	Ref  string // in an OCI layout: the tag or digest; empty when it has one image
}

// Kind is what a source is.
type Kind string

const (
	Dir Kind = "dir"
	Tar Kind = "tar"
	OCI Kind = "oci"
)

// Apply puts the sources, in order, on the tree at root. It stops at the first error; the tree is then thrown away by the
// caller, which made it for this.
func Apply(ctx context.Context, root string, sources []Source) error {
	panic("boot/top: being written")
}
