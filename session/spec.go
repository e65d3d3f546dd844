package session

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/orchestrator"
	"berth/profiles"
	"berth/session/look"
)

// specInput is all that containerSpec needs to know.
type specInput struct {
	session string
	id      Identity
	wires   wires
	home    string // on the host
	image   string // full reference
	passwd  string // path on the host of the passwd file for this image
	group   string
	shell   string               // of the user in this image
	files   []orchestrator.Mount // of Component.Files, already written
	tools   string               // on the host: the directory of programs that every component finds in toolsDir
	exports []export
	off     string // a directory inside, for XDG_CONFIG_DIRS, that switches autostart entries of the image off; "" if there are none
	plan    *profiles.Plan
}

// toolsDir is where Berth's own static programs lie in every container, whatever its image: mounted, not copied, so that
// they cost a session nothing and are those of the running daemon's installation.
const toolsDir = "/run/berth/bin"

// ExportsDir is where components find what other images show them, each in a directory called like the component that runs
// its programs.
const ExportsDir = "/run/berth/exports"

// seen are the exports that component c finds: those of all images but its own, if it shows menus, opens files or starts
// services, which is to say, if it is on the display or is the bus.
func (in specInput) seen(c profiles.Component) []export {
	if !needs(c, profiles.WireX11) && !slices.Contains(c.Provides, "bus") {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(in.exports), func(e export) bool { return e.Image == c.Image })
}

// containerSpec turns a component of a plan into what the engine runs. It is pure.
func containerSpec(c profiles.Component, in specInput) (orchestrator.ContainerSpec, error) {
	expand := in.expander()
	cmd := make([]string, len(c.Command))
	for i, a := range c.Command {
		cmd[i] = expand(a)
	}
	sig, err := parseSignal(c.StopSig)
	if err != nil {
		return orchestrator.ContainerSpec{}, fmt.Errorf("component %q: %w", c.Name, err)
	}
	rd := in.runtimeDir()
	mounts := []orchestrator.Mount{
		{Source: in.wires.tmp(), Target: "/tmp"},
		{Source: in.wires.runtime(), Target: rd},
		{Source: in.wires.shm(), Target: "/dev/shm"},
		{Source: in.wires.berth(), Target: "/run/berth", ReadOnly: true},
		{Source: in.tools, Target: toolsDir, ReadOnly: true},
		{Source: in.passwd, Target: "/etc/passwd", ReadOnly: true},
		{Source: in.group, Target: "/etc/group", ReadOnly: true},
	}
	for _, f := range []string{"hosts", "hostname", "resolv.conf", "machine-id"} {
		mounts = append(mounts, orchestrator.Mount{Source: filepath.Join(in.wires.etc(), f), Target: "/etc/" + f, ReadOnly: true})
	}
	for _, e := range in.seen(c) {
		mounts = append(mounts, orchestrator.Mount{Source: e.Dir, Target: ExportsDir + "/" + e.Component, ReadOnly: true})
	}
	if in.plan.SystemBus.Kind == "stub" {
		mounts = append(mounts, orchestrator.Mount{Source: in.wires.systemd(), Target: "/run/systemd", ReadOnly: true})
	}
	cwd := c.Cwd
	if needs(c, "home") {
		mounts = append(mounts, orchestrator.Mount{Source: in.home, Target: in.id.Home})
		if cwd == "" {
			cwd = in.id.Home
		}
	}
	mounts = append(mounts, in.files...)
	return orchestrator.ContainerSpec{
		Name: c.Name, Image: in.image, Command: cmd, Env: in.environ(c, expand), Cwd: expand(cwd),
		UID: in.id.UID, GID: in.id.GID, Groups: in.id.Groups,
		Mounts: mounts, Devices: c.Devices, Caps: c.Caps, StopSignal: sig,
		Labels: map[string]string{labelComponent: c.Name},
	}, nil
}

// needs tells whether component c is given wire.
func needs(c profiles.Component, wire string) bool { return slices.Contains(c.Needs, wire) }

func (in specInput) runtimeDir() string { return "/run/user/" + strconv.Itoa(in.id.UID) }

// expander replaces ${UID}, ${USER}, ${HOME}, ${RUNTIME_DIR}, ${SESSION}, ${DISPLAY_WIDTH}, ${DISPLAY_HEIGHT} and
// ${DISPLAY_SCALE}; any other ${...} stays for the program.
func (in specInput) expander() func(string) string {
	d := in.plan.Display
	return strings.NewReplacer("${UID}", strconv.Itoa(in.id.UID), "${USER}", in.id.Name, "${HOME}", in.id.Home,
		"${RUNTIME_DIR}", in.runtimeDir(), "${SESSION}", in.session,
		"${DISPLAY_WIDTH}", strconv.Itoa(d.Width), "${DISPLAY_HEIGHT}", strconv.Itoa(d.Height),
		"${DISPLAY_SCALE}", strconv.Itoa(look.MonitorScale(in.plan))).Replace
}

// environ is the environment of a component, sorted by name so that plans and tests are stable.
func (in specInput) environ(c profiles.Component, expand func(string) string) []string {
	rd := in.runtimeDir()
	env := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games",
		"HOME": in.id.Home, "USER": in.id.Name, "LOGNAME": in.id.Name, "SHELL": cmp.Or(in.shell, defaultShell), "LANG": "C.UTF-8",
		"XDG_RUNTIME_DIR": rd, "XDG_SESSION_TYPE": "x11", "NO_AT_BRIDGE": "1", "container": "berth",
		"BERTH_SESSION": in.session, "BERTH_COMPONENT": c.Name,
		// Without an input method GTK would load the frontend of one and look for its daemon.
		"GTK_IM_MODULE": "gtk-im-context-simple",
	}
	if in.plan.Audio.Server != "none" {
		env["PULSE_SERVER"] = "unix:" + rd + "/pulse/native"
	}
	// The display server itself must not think that it is a client of one.
	if !slices.Contains(c.Provides, "display") {
		env["DISPLAY"] = ":0"
	}
	env["XAUTHORITY"] = "/run/berth/Xauthority"
	if !slices.Contains(c.Provides, "bus") {
		env["DBUS_SESSION_BUS_ADDRESS"] = "unix:path=" + rd + "/bus"
	}
	if in.plan.SystemBus.Kind == "stub" {
		env["XDG_SESSION_ID"] = loginSession
		env["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=" + rd + "/system_bus_socket"
	}
	if in.plan.Locale.Lang != "" {
		env["LANG"] = in.plan.Locale.Lang
	}
	if in.plan.Locale.Timezone != "" {
		env["TZ"] = in.plan.Locale.Timezone
	}
	for _, kv := range in.plan.Env {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = expand(v)
	}
	for k, v := range c.Env {
		env[k] = expand(v)
	}
	if in.off != "" {
		env["XDG_CONFIG_DIRS"] = in.off + ":" + cmp.Or(env["XDG_CONFIG_DIRS"], "/etc/xdg")
	}
	for _, e := range in.seen(c) {
		// An image's own come first: what is in both is started in place.
		env["XDG_DATA_DIRS"] = cmp.Or(env["XDG_DATA_DIRS"], "/usr/local/share:/usr/share") + ":" + ExportsDir + "/" + e.Component + "/share"
	}
	out := make([]string, 0, len(env))
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// parseSignal reads a signal's name ("SIGTERM", "TERM", "15"); "" is 0, which leaves the choice to the engine.
func parseSignal(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return n, nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	// systemd's stop signal for containers; real-time signals have no fixed names in Go.
	if name == "SIGRTMIN+3" {
		return 37, nil
	}
	return 0, fmt.Errorf("stop signal %q: not known: %w", s, orchestrator.ErrInvalid)
}

// usableResolvConf tells whether a resolv.conf(5) names a server that is not on the host's own loopback.
func usableResolvConf(text string) bool {
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(strings.SplitN(f[1], "%", 2)[0])
		if err == nil && !a.IsLoopback() {
			return true
		}
	}
	return false
}

// writeFiles writes c's Files below the wires and returns their mounts, sorted by target.
func writeFiles(w wires, c profiles.Component, expand func(string) string) ([]orchestrator.Mount, error) {
	var out []orchestrator.Mount
	for target, text := range c.Files {
		name := filepath.Join(w.etc(), "files-"+c.Name+"-"+strconv.Itoa(len(out)))
		if err := os.WriteFile(name, []byte(expand(text)), 0o644); err != nil {
			return nil, fmt.Errorf("component %q: file %q: %w", c.Name, target, err)
		}
		out = append(out, orchestrator.Mount{Source: name, Target: expand(target), ReadOnly: true})
	}
	slices.SortFunc(out, func(a, b orchestrator.Mount) int { return strings.Compare(a.Target, b.Target) })
	return out, nil
}

// sum is a short stable name for a string.
func sum(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:6]
}
