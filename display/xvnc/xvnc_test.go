package xvnc_test

import (
	"testing"

	"berth/display/conformance"
	"berth/display/xvnc"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, xvnc.Driver{}, conformance.Traits{ClientResizes: true, Grows: true, Clipboard: true})
}
