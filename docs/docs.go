// Package docs holds the documents of this directory that the program itself shows.
package docs

import _ "embed"

// OpenAPI is docs/openapi.yaml: the description of the daemon's API.
//
//go:embed openapi.yaml
var OpenAPI []byte
