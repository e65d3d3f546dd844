// Package web holds the built web page of the gateway: `npm ci && npm run build` here turns src and noVNC into dist,
// which is embedded. A build without it compiles all the same, thanks to the placeholder that keeps dist there; the
// gateway's pages then say what to do.
package web

import (
	"embed"
	"io/fs"
)

//go:embed all:dist
var dist embed.FS

// Files returns the built page: index.html, desktop.html and what they load, side by side.
func Files() fs.FS {
	files, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // the name is valid and embedded
	}
	return files
}
