package drivers_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"berth/display/drivers"
	"berth/orchestrator"
	"berth/profiles"
)

func TestDrivers(t *testing.T) {
	var names []string
	for _, s := range drivers.All() {
		names = append(names, s.Name())
		if _, err := s.Components(profiles.Display{Width: 1, Height: 1, DPI: 96}); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("%s: a screen of one pixel: %v", s.Name(), err)
		}
		comps, err := drivers.Components(profiles.Display{Server: s.Name(), Width: 1920, Height: 1080, DPI: 96})
		switch {
		case err != nil && !errors.Is(err, orchestrator.ErrUnavailable):
			t.Errorf("%s: %v", s.Name(), err)
		case err != nil && !strings.Contains(err.Error(), "choose"):
			t.Errorf("%s: the error does not say what to do: %v", s.Name(), err)
		case err == nil && !slices.Contains(comps[0].Provides, "display"):
			t.Errorf("%s: the first component provides %v", s.Name(), comps[0].Provides)
		}
	}
	if want := []string{"xvfb", "xvnc", "xorg", "xephyr", "host"}; !slices.Equal(names, want) {
		t.Errorf("drivers %v, want %v", names, want)
	}
	if _, err := drivers.ByName("xvbf"); !errors.Is(err, orchestrator.ErrInvalid) || !strings.Contains(err.Error(), "xvfb, xvnc") {
		t.Errorf("unknown driver: %v", err)
	}
}
