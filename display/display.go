// Package display defines what shows a session: an X server, and the VNC server by which it is seen from outside.
//
// A Server is a driver: it turns a profile's [display] table into the components that provide the roles display and
// vnc. Drivers are pure; they look at the host only to find out whether they can work on it. What all of them keep:
//
//   - the X server is display :0, listens on /tmp/.X11-unix/X0 only (no TCP, no abstract socket), and admits whoever
//     has the session's cookie in /run/berth/Xauthority
//   - the VNC server listens on ${RUNTIME_DIR}/vnc.sock only, without a password: the gateway asks for one
//   - RandR changes the screen's size while everything runs; the session sets the profile's size once the X server
//     answers, since some servers start with the largest they can have
//   - nothing blanks the screen, and input can be faked (XTEST)
//
// The suite in display/conformance is the executable form of this. Package display/drivers knows all drivers by name;
// package display/x11 talks to a running server.
package display

import (
	"fmt"
	"time"

	"berth/orchestrator"
	"berth/profiles"
)

// Paths inside a session's containers.
const (
	Socket     = "/tmp/.X11-unix/X0"
	Xauthority = "/run/berth/Xauthority"
	VNCSocket  = "${RUNTIME_DIR}/vnc.sock"
)

// Server is a kind of display server.
type Server interface {
	// Name is the word by which profiles choose it.
	Name() string
	// Components returns what provides the roles display and vnc, the display server first. A size that the server
	// cannot have is orchestrator.ErrInvalid; a host it cannot work on orchestrator.ErrUnavailable, with what to do.
	Components(d profiles.Display) ([]profiles.Component, error)
}

// Check reports a size or resolution that no server can have.
func Check(d profiles.Display) error {
	if err := profiles.CheckSize(d.Width, d.Height); err != nil {
		return fmt.Errorf("display: %w: %w", orchestrator.ErrInvalid, err)
	}
	if d.DPI < 24 || d.DPI > 960 {
		return fmt.Errorf("display dpi %d: %w: choose one between 24 and 960", d.DPI, orchestrator.ErrInvalid)
	}
	return nil
}

// Unavailable is the error of a driver that cannot work on this host.
func Unavailable(server, format string, args ...any) error {
	return fmt.Errorf("display server %q: %w: %s", server, orchestrator.ErrUnavailable, fmt.Sprintf(format, args...))
}

// Component is what the display component of every driver has in common.
func Component(image string, command []string) profiles.Component {
	return profiles.Component{
		Name: "display", Image: image, Command: command, Provides: []string{"display"},
		Needs: []string{profiles.WireX11}, // which leaves out the home
		Ready: []profiles.Probe{{Kind: "x11"}}, Timeout: 30 * time.Second,
		Restart: profiles.RestartAlways, Stop: 5 * time.Second,
	}
}

// CommonFlags are the X server's flags that every driver has: access by cookie over the Unix socket alone, no second
// life when the last client leaves, no blanking.
func CommonFlags() []string {
	return []string{"-auth", Xauthority, "-nolisten", "tcp", "-nolisten", "local", "-noreset", "-s", "0", "-dpms"}
}

// X11VNC returns the VNC component for servers that have none of their own. x11vnc follows the screen by DAMAGE events
// and reads it through MIT-SHM, which the session's shared IPC namespace allows.
func X11VNC() profiles.Component {
	return profiles.Component{
		Name: "vnc", Image: "x11vnc", Provides: []string{"vnc"},
		Needs: []string{profiles.WireX11}, After: []string{"display"},
		Command: []string{"x11vnc",
			"-display", ":0", "-auth", Xauthority,
			"-unixsock", VNCSocket, "-rfbport", "0", "-rfbportv6", "-1", // the second port is 5900 unless it is told not to
			"-norc", "-nopw", "-forever", "-shared", "-nobell", "-noipv6", "-no6",
			"-xrandr", "newfbsize", // tell clients of a new size instead of scaling
			"-xkb", "-repeat", "-cursor", "arrow", "-nodpms",
			// Look every 10 ms while things change, and send at once; the defaults take twice as long. While nothing does,
			// it naps.
			"-wait", "10", "-defer", "1",
			"-ncache", "0", "-q",
		},
		Ready: []profiles.Probe{{Kind: "vnc"}}, Timeout: 30 * time.Second,
		Restart: profiles.RestartAlways, Stop: 2 * time.Second,
	}
}
