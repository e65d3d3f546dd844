// Package xephyr is the driver for Xephyr, an X server whose screen is a window on another display.
package xephyr

import (
	"os"

	"berth/display"
	"berth/profiles"
)

// Driver is the display.Server called "xephyr".
type Driver struct{}

// Name implements display.Server.
func (Driver) Name() string { return "xephyr" }

// Components implements display.Server.
func (Driver) Components(d profiles.Display) ([]profiles.Component, error) {
	if err := display.Check(d); err != nil {
		return nil, err
	}
	if os.Getenv("DISPLAY") == "" {
		return nil, display.Unavailable("xephyr", "the daemon has no DISPLAY to open a window on; choose xvfb or xvnc")
	}
	return nil, display.Unavailable("xephyr", "sessions in a window of a running display are not there yet; choose xvfb or xvnc")
}
