// Package xorg is the driver for Xorg on a real screen.
package xorg

import (
	"os"

	"berth/display"
	"berth/profiles"
)

// Driver is the display.Server called "xorg".
type Driver struct{}

// Name implements display.Server.
func (Driver) Name() string { return "xorg" }

// Components implements display.Server.
func (Driver) Components(d profiles.Display) ([]profiles.Component, error) {
	if err := display.Check(d); err != nil {
		return nil, err
	}
	if _, err := os.Stat("/dev/tty0"); err != nil {
		return nil, display.Unavailable("xorg", "this machine has no virtual console (/dev/tty0); choose xvfb or xvnc")
	}
	return nil, display.Unavailable("xorg", "not there yet; choose xvfb or xvnc")
}
