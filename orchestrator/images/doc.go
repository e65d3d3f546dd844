// Package images builds Berth's images from recipes and moves images in and out of the engine's store.
//
// # Bases
//
// Every recipe stands on a base, debian:bookworm or debian:trixie. mmdebstrap makes it from the mirrors the host's apt
// is configured with, so a build needs no registry and trusts nobody the host does not trust already. The bases of an
// instance lie in one OCI layout, in which they are reproducible: the same packages give the same digest, and BuildKit's
// cache is good until a package has really changed. A base is made once and then stays until a build without cache.
//
// # Recipes
//
// A recipe is a directory with a Dockerfile and a recipe.toml; package assets describes it. Recipe NAME makes the image
// localhost/berth/NAME:latest on Debian 12 and localhost/berth/NAME-13:latest on Debian 13. Recipes may stand on one
// another. A recipe's digest covers its files and its parents' digests and is kept in the image's label berth.recipe;
// labels berth.base and berth.parent.NAME say what it was built on. An image is up to date while all of these are as
// they would be now; a base or parent that is not on this machine is not missed, so that images built elsewhere and
// imported here are used as they are.
//
// # Builds
//
// BuildKit reads the Dockerfile and writes the image straight into the engine's store. Bases and parents reach it as
// named contexts over the session, by digest. Independent recipes are built side by side, one per processor.
package images
