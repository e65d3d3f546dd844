package launch

import (
	"time"

	"berth/profiles"
)

// Components returns the components that run the applications of apps: one for each image, started on demand.
func Components(apps []profiles.App) []profiles.Component {
	var out []profiles.Component
	for _, a := range apps {
		command := []string{Client, "--serve"}
		if a.Idle > 0 {
			command = append(command, "--idle", a.Idle.String())
		}
		out = append(out, profiles.Component{
			Name: a.Component, Image: a.Image, Command: command, Provides: []string{"app"},
			Needs:    []string{profiles.WireX11, profiles.WireBus, profiles.WireAudio, profiles.WireHome},
			Ready:    []profiles.Probe{{Kind: "socket", Arg: Socket("${RUNTIME_DIR}", a.Component)}},
			Timeout:  30 * time.Second,
			OnDemand: true, Optional: true, Restart: profiles.RestartNever,
			// Programs with unsaved work ask before they end.
			Stop: 5 * time.Second,
		})
	}
	return out
}
