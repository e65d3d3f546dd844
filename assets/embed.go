// Package assets holds the files that Berth carries inside its binary: the images' recipes, the built-in profiles,
// hooks, units and the web page.
//
// # Recipes
//
// Images holds one directory per recipe, NAME/, the build context of an image:
//
//	NAME/Dockerfile   what `docker build` understands; its base is build argument BASE
//	NAME/recipe.toml  description = "one line"
//	                  bases = ["bookworm", "trixie"]   # releases it builds on; the first gives NAME, trixie NAME-13
//	                  from = ["other"]                 # recipes its Dockerfile names as FROM berth/other
//	NAME/...          files for COPY
//
// The Dockerfile of a recipe starts from a base (`ARG BASE` and `FROM ${BASE}`) or from another recipe
// (`FROM berth/other`, which on Debian 13 means berth/other-13). Build argument RELEASE is the Debian code name; it
// suits the id of cache mounts.
package assets

import (
	"embed"
	"io/fs"
)

//go:embed all:images profiles/*.toml
var files embed.FS

// Images is the tree of built-in recipes.
var Images fs.FS = sub("images")

// Profiles holds the built-in profiles, NAME.toml.
var Profiles fs.FS = sub("profiles")

func sub(dir string) fs.FS {
	f, err := fs.Sub(files, dir)
	if err != nil {
		panic(err) // only a malformed path can fail here
	}
	return f
}
