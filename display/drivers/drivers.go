// Package drivers knows every display server by its name.
package drivers

import (
	"fmt"
	"strings"

	"berth/display"
	"berth/display/host"
	"berth/display/xephyr"
	"berth/display/xorg"
	"berth/display/xvfb"
	"berth/display/xvnc"
	"berth/orchestrator"
	"berth/profiles"
)

// All lists the drivers, the default one first.
func All() []display.Server {
	return []display.Server{xvfb.Driver{}, xvnc.Driver{}, xorg.Driver{}, xephyr.Driver{}, host.Driver{}}
}

// ByName returns the driver called name.
func ByName(name string) (display.Server, error) {
	var names []string
	for _, s := range All() {
		if s.Name() == name {
			return s, nil
		}
		names = append(names, s.Name())
	}
	return nil, fmt.Errorf("display server %q: %w: there are %s", name, orchestrator.ErrInvalid, strings.Join(names, ", "))
}

// Components returns the components for a profile's [display] table.
func Components(d profiles.Display) ([]profiles.Component, error) {
	s, err := ByName(d.Server)
	if err != nil {
		return nil, err
	}
	return s.Components(d)
}
