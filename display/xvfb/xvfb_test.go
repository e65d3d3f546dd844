package xvfb_test

import (
	"testing"

	"berth/display/conformance"
	"berth/display/xvfb"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, xvfb.Driver{}, conformance.Traits{})
}
