// Package systembus gives a session a system bus: a dbus-daemon of its own, and on it as much of what systemd, UPower
// and accountsservice answer as desktops ask for.
//
// # Model
//
// A desktop takes it for granted that somebody owns org.freedesktop.login1. Without one GNOME Shell aborts, menus have no
// "Shut down", and screens do not lock. Real services need root, cgroups of their own and devices; a session has none of
// these. So what is answered here is what is true in a container: one user, one session without a seat, no battery, no
// lid, a host name and a clock that belong to somebody else. What can be done is done, what only matters to the desktop
// (a pretty host name, the language of the next log-in) is remembered as long as the session lasts, and what cannot be is
// refused with the error that the real service would give to a user who may not.
//
// The bus has no activatable services. A call to a name that nobody owns (PolicyKit1, NetworkManager, UDisks2, bolt, ...)
// gets org.freedesktop.DBus.Error.ServiceUnknown at once, which every desktop takes for "not installed"; a name that is
// activatable and then does not come costs 25 seconds.
//
// # Two components
//
// "system-bus" is the dbus-daemon, listening on Socket, to which DBUS_SYSTEM_BUS_ADDRESS points in every component.
// "system-services" is the program berth-systembus, which is mounted from the host (/run/berth/bin). No component waits
// for either unless its profile says so, with after = ["system-services"], the role: a profile that leaves them out, or
// has its own owner of these names, need not be changed elsewhere.
//
// # The end of a session
//
// PowerOff, Reboot and Halt emit PrepareForShutdown(true), wait until every delay inhibitor of a shutdown is released, at
// most InhibitDelayMaxUSec, and then end the program with exit code 0. That is how it tells the session manager: the
// component has EndsSession, so its clean exit is a log-out, and anything else, a crash or a bus that went away, is a
// restart. TerminateSession, TerminateUser, KillSession, KillUser and the same on the objects end it at once. Nothing has
// to be trusted for this but an exit code, and nobody in the session can do with it what it could not do to its own
// session anyway. A session cannot be suspended: CanSuspend and its like say "na".
//
// # How it is built
//
// Every service is a file: a struct with its state, whose methods are the D-Bus methods, and a description of its objects
// (interfaces, properties). Services know nothing of connections. What they want to know of the world comes from host,
// what they say goes to say. Server holds one lock over all of them, and after each call compares the properties with
// what they were, so that PropertiesChanged is right without anybody having to think of it.
//
// Names, signatures and errors are those of systemd 252 (printed by systemd-logind --bus-introspect and its sisters),
// upower 0.99 and accountsservice 22.08 as Debian 12 has them.
package systembus

import (
	"strings"
	"time"

	"berth/profiles"
)

// Socket and Address of the system bus inside the session's containers.
const (
	Socket  = "${RUNTIME_DIR}/system_bus_socket"
	Address = "unix:path=" + Socket
)

// Names of the components and of the role that says that the services are there.
const (
	Bus      = "system-bus"
	Services = "system-services"
)

// keyboardEnv carries [locale] keyboard to the services, layouts separated by commas.
const keyboardEnv = "BERTH_KEYBOARD"

const configPath = "/etc/dbus-1/berth-system.conf"

// config differs from the session bus's in having no service directories. Only the session's user and the host's root,
// who probes, get as far as the socket; between them there is nothing to tell apart. The limits are those of a session
// bus: the defaults are for one user among many.
const config = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>` + Address + `</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*" eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
  <limit name="auth_timeout">240000</limit>
  <limit name="max_completed_connections">100000</limit>
  <limit name="max_connections_per_user">100000</limit>
  <limit name="max_match_rules_per_connection">50000</limit>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
`

// Components returns the components for a profile's [system_bus] table; l is what its locale1 shows.
func Components(b profiles.SystemBus, l profiles.Locale) []profiles.Component {
	if b.Kind == "none" {
		return nil
	}
	services := profiles.Component{
		Name: Services, Image: "bus", Provides: []string{Services}, Command: []string{"/run/berth/bin/berth-systembus"},
		After: []string{Bus}, Ready: []profiles.Probe{{Kind: "system-bus", Arg: lastName}},
		Timeout: 15 * time.Second, Restart: profiles.RestartAlways, Stop: 2 * time.Second,
		EndsSession: true, Optional: true, // a desktop without it is better than none
	}
	if len(l.Keyboard) > 0 {
		services.Env = map[string]string{keyboardEnv: strings.Join(l.Keyboard, ",")}
	}
	return []profiles.Component{{
		Name: Bus, Image: "bus",
		Command: []string{"dbus-daemon", "--nofork", "--nopidfile", "--nosyslog", "--config-file=" + configPath},
		Files:   map[string]string{configPath: config},
		Ready:   []profiles.Probe{{Kind: "system-bus"}},
		Timeout: 15 * time.Second, Restart: profiles.RestartAlways, Stop: 2 * time.Second, Optional: true,
	}, services}
}
