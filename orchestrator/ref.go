package orchestrator

import (
	"fmt"

	"github.com/distribution/reference"
)

// NormalizeRef turns what a user types into the full name an image is stored under: "debian" becomes
// "docker.io/library/debian:latest". The grammar is that of github.com/distribution/reference. A name with both tag
// and digest keeps the digest only, for it alone says which image is meant.
func NormalizeRef(s string) (string, error) {
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return "", fmt.Errorf("image %q: %w name: %w (want [registry/]repository[:tag][@digest], all lower case)", s, ErrInvalid, err)
	}
	return named.String(), nil
}
