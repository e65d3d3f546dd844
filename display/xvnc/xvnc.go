// Package xvnc is the driver for TigerVNC's Xvnc, which is X server and VNC server in one: it knows what was drawn and
// need not look for changes, so it is the faster choice. VNC clients may set the screen's size.
package xvnc

import (
	"fmt"
	"strconv"

	"berth/display"
	"berth/profiles"
)

// Driver is the display.Server called "xvnc".
type Driver struct{}

// Name implements display.Server.
func (Driver) Name() string { return "xvnc" }

// Components implements display.Server.
func (Driver) Components(d profiles.Display) ([]profiles.Component, error) {
	if err := display.Check(d); err != nil {
		return nil, err
	}
	command := append([]string{"Xvnc", ":0", "-geometry", fmt.Sprintf("%dx%d", d.Width, d.Height), "-depth", "24",
		"-dpi", strconv.Itoa(d.DPI)}, display.CommonFlags()...)
	command = append(command, "-br",
		"-rfbunixpath", display.VNCSocket, "-rfbunixmode", "0600", "-rfbport", "-1", "-SecurityTypes", "None",
		"-AlwaysShared", "-DisconnectClients=0", "-AcceptSetDesktopSize=1",
		// Every client comes through the gateway, by the same socket: one that errs must not lock out the others.
		"-UseBlacklist=0", "-IdleTimeout=0",
		"-MaxCutText", strconv.Itoa(16<<20),
		"-SendPrimary=0", // what is selected is not yet copied
		"-desktop", "${SESSION}", "-Log", "*:stderr:10")
	c := display.Component("xvnc", command)
	c.Provides = append(c.Provides, "vnc")
	c.Ready = append(c.Ready, profiles.Probe{Kind: "vnc"})
	return []profiles.Component{c}, nil
}
