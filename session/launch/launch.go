// Package launch runs programs in other components of a session.
//
// The parts of a mixed desktop have no root file system in common: the panel of one image cannot execute the editor of
// another. What they share is the session's user, home, runtime directory and PID namespace, and that is enough:
//
//	panel (image kde)                        apps-gnome (image gnome)
//	  berth-launch apps-gnome gedit x ──────▶ berth-launch --serve ──▶ gedit x
//	      │ only if nobody listens there
//	      ▼
//	  /run/berth/launch.sock ─▶ daemon: starts the component apps-gnome
//
// Three parts, all in this package: the server, first process of a component that exists to run programs for others
// (Serve); the client, which every component finds as /run/berth/bin/berth-launch (Run); and the daemon's ear, which
// starts such components on demand (Listen). The programs themselves never pass through the daemon: it may be restarted, and a
// program is started in the time of a fork.
//
// # Protocol
//
// A server listens on $XDG_RUNTIME_DIR/berth-launch/COMPONENT, a directory of the user's with mode 0700, and asks for
// the peer's uid besides (SO_PEERCRED, unix(7)). Both directions carry one JSON document per line. The client sends a
// request, with its standard input, output and error as SCM_RIGHTS if it waits; the server answers with a reply that has the
// process ID or the error, and to a client that waits a second one with the exit code. Meanwhile such a client may send signals.
//
// # What a program inherits
//
// Of the caller: arguments, working directory, umask and environment, so that activation tokens (XDG_ACTIVATION_TOKEN,
// DESKTOP_STARTUP_ID), language and display reach it, but not those variables that describe the caller's own root file
// system, such as PATH or XDG_DATA_DIRS. Of the server: root file system, limits and the rest of the environment.
package launch

import (
	"path/filepath"
	"slices"
	"strings"
)

// DemandSocket is where the daemon listens, inside every container.
const DemandSocket = "/run/berth/launch.sock"

// Client is the program's path inside every container.
const Client = "/run/berth/bin/berth-launch"

// maxMessage bounds a line: the kernel's own bound for arguments and environment is 2 MiB by default (execve(2)).
const maxMessage = 4 << 20

// Socket is the path of a server's socket. runtimeDir is $XDG_RUNTIME_DIR.
func Socket(runtimeDir, component string) string {
	return filepath.Join(runtimeDir, "berth-launch", component)
}

// request asks for a program.
type request struct {
	Args  []string `json:"args"`
	Env   []string `json:"env"`
	Dir   string   `json:"dir"`
	Umask int      `json:"umask"`
	Wait  bool     `json:"wait,omitempty"` // three descriptors come with it
}

// later is what a client that waits may send after its request.
type later struct {
	Signal int `json:"signal"`
}

// reply is what a server answers.
type reply struct {
	PID   int    `json:"pid,omitempty"`
	Exit  *int   `json:"exit,omitempty"` // as a shell counts: 128 and the signal, 126 and 127 for what cannot be started
	Error string `json:"error,omitempty"`
}

// own are the variables that describe a root file system, or a process of its own: they are the target's, not the caller's.
var own = []string{"PATH", "PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME", "container", "HOME", "USER", "LOGNAME", "SHELL", "MAIL",
	"BERTH_COMPONENT", "BERTH_SESSION", "XDG_RUNTIME_DIR", "XDG_DATA_DIRS", "XDG_CONFIG_DIRS", "XDG_SESSION_ID",
	"DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "PULSE_SERVER", "XAUTHORITY",
	"GTK_PATH", "GTK_MODULES", "GTK3_MODULES", "GTK_EXE_PREFIX", "GTK_DATA_PREFIX", "GTK_IM_MODULE_FILE", "GDK_PIXBUF_MODULE_FILE", "GDK_PIXBUF_MODULEDIR",
	"GIO_MODULE_DIR", "GIO_EXTRA_MODULES", "GIO_LAUNCHED_DESKTOP_FILE_PID", "GSETTINGS_SCHEMA_DIR", "GI_TYPELIB_PATH", "GST_PLUGIN_PATH",
	"QT_PLUGIN_PATH", "QT_QPA_PLATFORM_PLUGIN_PATH", "QML_IMPORT_PATH", "QML2_IMPORT_PATH", "KDEDIRS", "XDG_MENU_PREFIX",
	"PYTHONPATH", "PYTHONHOME", "PERL5LIB", "GCONV_PATH", "LOCPATH", "FONTCONFIG_FILE", "FONTCONFIG_PATH", "MANPATH", "INFOPATH"}

// describesCaller tells whether a variable stays behind.
func describesCaller(name string) bool {
	return slices.Contains(own, name) || strings.HasPrefix(name, "LD_")
}

// environment is that of a program: base, the server's own, with the caller's over it.
func environment(base, caller []string) []string {
	out := slices.Clone(base)
	for _, kv := range caller {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" || strings.ContainsRune(kv, 0) || describesCaller(name) {
			continue
		}
		if i := slices.IndexFunc(out, func(o string) bool { return strings.HasPrefix(o, name+"=") }); i >= 0 {
			out[i] = kv
		} else {
			out = append(out, kv)
		}
	}
	return out
}
