// Package audio contributes the sound server to a session.
//
// Every component sees one Pulse server, and with pipewire one PipeWire server, on sockets in the runtime directory.
// There is no hardware behind them: what is played goes to the sink named Sink, whose monitor can be recorded; what is
// played into the sink named MicInput is heard by those who record from the source named Mic. The images' configuration
// (assets/images) makes these.
package audio

import (
	"fmt"
	"time"

	"berth/orchestrator"
	"berth/profiles"
)

// Names of the devices that programs see.
const (
	Sink     = "berth" // the speakers, default sink
	Monitor  = Sink + ".monitor"
	Mic      = "microphone"    // the default source
	MicInput = "microphone-in" // a sink; what is played into it comes out of Mic
)

// Sockets inside the session's containers.
const (
	PulseSocket    = "${RUNTIME_DIR}/pulse/native"
	PipeWireSocket = "${RUNTIME_DIR}/pipewire-0"
)

// Components returns the components for a profile's [audio] table. WirePlumber and pipewire-pulse are clients of
// PipeWire and of nothing else; they start at the same time.
func Components(a profiles.Audio) ([]profiles.Component, error) {
	component := func(name, image, command string, ready string) profiles.Component {
		return profiles.Component{
			Name: name, Image: image, Command: []string{command}, Ready: []profiles.Probe{{Kind: ready}},
			Timeout: 20 * time.Second, Restart: profiles.RestartAlways, Stop: 2 * time.Second,
			Needs: []string{profiles.WireHome}, // where volumes and default devices are kept
			// A desktop without sound is better than none.
			Optional: true,
		}
	}
	switch a.Server {
	case "none":
		return nil, nil
	case "pipewire":
		// Without the session bus PipeWire's modules complain and go on; with it they would make sound wait for the bus.
		server := component("audio", "pipewire", "pipewire", "")
		server.Provides = []string{"audio"}
		// PipeWire holds clients whose process it cannot look at, such as the daemon outside the session's PID namespace,
		// until WirePlumber has decided on them: a round trip from here shows that both are there.
		server.Ready = []profiles.Probe{{Kind: "socket", Arg: "${RUNTIME_DIR}/pipewire-0"}}
		policy := component("wireplumber", "pipewire", "wireplumber", "pipewire")
		policy.After = []string{"audio"}
		pulse := component("pipewire-pulse", "pipewire", "pipewire-pulse", "pulse")
		pulse.After = []string{"audio"}
		return []profiles.Component{server, policy, pulse}, nil
	case "pulseaudio":
		c := component("audio", "pulseaudio", "pulseaudio", "pulse")
		c.Provides = []string{"audio"}
		return []profiles.Component{c}, nil
	case "host":
		return nil, fmt.Errorf("audio server %q: %w: containers cannot be given the host's sound server yet; "+
			"choose pipewire, pulseaudio or none", a.Server, orchestrator.ErrUnavailable)
	}
	return nil, fmt.Errorf("audio server %q: %w: there are pipewire, pulseaudio, host and none",
		a.Server, orchestrator.ErrInvalid)
}
