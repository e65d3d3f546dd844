// Package xvfb is the driver for Xvfb, the X server that draws into memory, with x11vnc to show it.
//
// It has the X server that most people test with. What x11vnc cannot do, and Xvnc can: copy and paste begin to work
// some 45 seconds after its start, and carry ASCII only; a VNC client cannot ask for another size (the gateway can,
// through RandR).
package xvfb

import (
	"fmt"
	"strconv"

	"berth/display"
	"berth/profiles"
)

// Largest screen that a session can be resized to. Xvfb can shrink its screen but never grow it beyond what it was
// started with, and touches all of it then: 4 bytes for each pixel, here 16 MB. A profile that asks for more gets it.
const maxWidth, maxHeight = 2560, 1600

// Driver is the display.Server called "xvfb".
type Driver struct{}

// Name implements display.Server.
func (Driver) Name() string { return "xvfb" }

// Components implements display.Server. Xvfb starts at the largest size; the session sets the profile's.
func (Driver) Components(d profiles.Display) ([]profiles.Component, error) {
	if err := display.Check(d); err != nil {
		return nil, err
	}
	screen := fmt.Sprintf("%dx%dx24", max(d.Width, maxWidth), max(d.Height, maxHeight))
	command := append([]string{"Xvfb", ":0", "-screen", "0", screen, "-dpi", strconv.Itoa(d.DPI)}, display.CommonFlags()...)
	return []profiles.Component{display.Component("xvfb", command), display.X11VNC()}, nil
}
