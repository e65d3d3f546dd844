// Package bus contributes the session bus to a session: one dbus-daemon that every component of it connects to.
//
// The configuration is Berth's own rather than the distribution's, for three reasons: it listens on the one socket that
// DBUS_SESSION_BUS_ADDRESS names in every container; services are activated without systemd, by the daemon itself; and
// the host's root may connect beside the session's user, which is how the session is probed and watched from outside
// (uid 0 of the session's containers cannot be used for that: nothing in them runs as root).
package bus

import (
	"time"

	"berth/profiles"
)

// Socket and Address of the bus inside the session's containers.
const (
	Socket  = "${RUNTIME_DIR}/bus"
	Address = "unix:path=" + Socket
)

const configPath = "/etc/dbus-1/berth.conf"

// config follows dbus-daemon(1) and the distribution's session.conf, whose limits it has.
const config = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <keep_umask/>
  <listen>` + Address + `</listen>
  <auth>EXTERNAL</auth>
  <standard_session_servicedirs/>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="root"/>
  </policy>
  <include ignore_missing="yes">/etc/dbus-1/session.conf.d</include>
  <include if_selinux_enabled="yes" selinux_root_relative="yes">contexts/dbus_contexts</include>
  <limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_incoming_unix_fds">250000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_outgoing_unix_fds">250000000</limit>
  <limit name="max_message_size">1000000000</limit>
  <limit name="service_start_timeout">120000</limit>
  <limit name="auth_timeout">240000</limit>
  <limit name="pending_fd_timeout">150000</limit>
  <limit name="max_completed_connections">100000</limit>
  <limit name="max_incomplete_connections">10000</limit>
  <limit name="max_connections_per_user">100000</limit>
  <limit name="max_pending_service_starts">10000</limit>
  <limit name="max_names_per_connection">50000</limit>
  <limit name="max_match_rules_per_connection">50000</limit>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
`

// Components returns the component that provides the role bus.
func Components() []profiles.Component {
	return []profiles.Component{{
		Name: "bus", Image: "bus", Provides: []string{"bus"},
		Command: []string{"dbus-daemon", "--nofork", "--nopidfile", "--nosyslog", "--config-file=" + configPath},
		Files:   map[string]string{configPath: config},
		Needs:   []string{profiles.WireHome}, // of the programs it starts
		Ready:   []profiles.Probe{{Kind: "bus"}},
		Timeout: 15 * time.Second, Restart: profiles.RestartAlways, Stop: 2 * time.Second,
	}}
}
