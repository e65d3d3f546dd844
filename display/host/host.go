// Package host is the driver for a session whose windows appear on a display that runs already, outside of Berth.
package host

import (
	"os"

	"berth/display"
	"berth/profiles"
)

// Driver is the display.Server called "host".
type Driver struct{}

// Name implements display.Server.
func (Driver) Name() string { return "host" }

// Components implements display.Server. The socket and cookie of a display outside of the session cannot be given to
// its containers yet, so it says so.
func (Driver) Components(d profiles.Display) ([]profiles.Component, error) {
	if err := display.Check(d); err != nil {
		return nil, err
	}
	if os.Getenv("DISPLAY") == "" {
		return nil, display.Unavailable("host", "the daemon has no DISPLAY; choose xvfb or xvnc and look at the session in a browser")
	}
	return nil, display.Unavailable("host", "sessions on a running display are not there yet; choose xvfb or xvnc")
}
