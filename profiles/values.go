package profiles

import (
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// Roles are what a component can be for the desktop.
var Roles = []string{"display", "vnc", "audio", "bus", "window-manager", "panel", "desktop", "files", "terminal",
	"notifications", "settings", "polkit-agent", "screensaver", "input-method", "system-services", "app"}

// exclusive roles have at most one owner in a session: there is one X server, one selection owner or one well-known bus
// name behind each. Two panels, file managers, terminals or applications get along.
var exclusive = []string{"display", "vnc", "audio", "bus", "window-manager", "desktop", "notifications", "settings",
	"polkit-agent", "screensaver", "input-method", "system-services"}

// ValidName tells whether a profile can be called so.
func ValidName(name string) bool { return profileName(name) }

// Exclusive tells whether at most one component of a session can have a role.
func Exclusive(role string) bool { return slices.Contains(exclusive, role) }

// Wires a component can need.
const (
	WireX11   = "x11"   // the X server; waited for
	WireBus   = "bus"   // the session bus; waited for
	WireAudio = "audio" // the Pulse and PipeWire sockets; not waited for, clients connect when they play
	WireHome  = "home"  // the home directory; there before any component
)

// Wires lists them.
var Wires = []string{WireX11, WireBus, WireAudio, WireHome}

// waits maps a wire to the role whose owner must be ready before a component that needs the wire starts.
var waits = map[string]string{WireX11: "display", WireBus: "bus"}

// Restart policies.
const (
	RestartAlways    = "always"
	RestartOnFailure = "on-failure"
	RestartNever     = "never"
)

// probeKinds are the kinds of probes, with what each takes as its argument and when it holds.
var probeKinds = map[string]struct{ arg, doc string }{
	"x11":        {"", "the X server answers a client that has the session's cookie; this and the others that look at a screen take the number of a display inside the session, `x11:1`"},
	"wm":         {"", "a window manager owns the screen (`_NET_SUPPORTING_WM_CHECK`)"},
	"dock":       {"", "a window of type dock is mapped"},
	"desktop":    {"", "a window of type desktop is mapped"},
	"painted":    {"", "the screen shows more than a background; for a shell that draws panel and wallpaper without windows"},
	"pulse":      {"", "the Pulse server answers"},
	"pipewire":   {"", "the PipeWire server answers"},
	"vnc":        {"", "the VNC server greets"},
	"exit":       {"", "the program has ended with 0; for what only prepares something"},
	"bus":        {"NAME", "the name has an owner on the session bus; without `:NAME`, the bus itself answers a ping"},
	"system-bus": {"NAME", "as `bus:NAME`, on the system bus"},
	"socket":     {"PATH", "the Unix socket accepts a connection"},
	"exec":       {"CMD", "the command, run in the component, ends with 0"},
}

// ofDisplays are the kinds that look at a screen: that of the session, or with ":1" that of an X server inside it.
var ofDisplays = []string{"x11", "wm", "dock", "desktop", "painted"}

func probeNames() []string {
	var out []string
	for k, v := range probeKinds {
		if v.arg != "" {
			k += ":" + v.arg
		}
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// problem is what is wrong with a value: the words of the message and, for a misspelling, the nearest valid one.
type problem struct{ message, suggest string }

// ParseProbe reads a probe as profiles write it, "dock" or "bus:org.xfce.Panel".
func ParseProbe(s string) (Probe, error) {
	p, bad := parseProbe(s)
	if bad == nil {
		return p, nil
	}
	if bad.suggest != "" {
		return Probe{}, fmt.Errorf("%s; did you mean %q?", bad.message, bad.suggest)
	}
	return Probe{}, fmt.Errorf("%s", bad.message)
}

func parseProbe(s string) (Probe, *problem) {
	k, arg, has := strings.Cut(s, ":")
	kind, ok := probeKinds[k]
	want := kind.arg
	switch {
	case !ok:
		var names []string
		for n := range probeKinds {
			names = append(names, n)
		}
		slices.Sort(names)
		near := Nearest(k, names)
		if near != "" && probeKinds[near].arg != "" {
			near += ":" + arg
		}
		return Probe{}, &problem{fmt.Sprintf("unknown probe %s (known: %s)", quote(s), strings.Join(probeNames(), ", ")), near}
	case slices.Contains(ofDisplays, k) && has:
		if n, err := strconv.Atoi(arg); err != nil || n < 1 || n > 9 || strconv.Itoa(n) != arg {
			return Probe{}, &problem{fmt.Sprintf("probe %q takes the number of a display within the session, 1 to 9", k), ""}
		}
		return Probe{k, arg}, nil
	case want == "" && has:
		return Probe{}, &problem{fmt.Sprintf("probe %q takes no argument", k), k}
	case (k == "bus" || k == "system-bus") && !has:
		return Probe{Kind: k}, nil
	case want != "" && arg == "":
		return Probe{}, &problem{fmt.Sprintf("probe %q needs an argument: %q", k, k+":"+want), ""}
	}
	switch k {
	case "bus", "system-bus":
		if len(arg) > 255 || !busName.MatchString(arg) {
			return Probe{}, &problem{fmt.Sprintf("%s is no D-Bus name such as org.xfce.Panel", quote(arg)), ""}
		}
	case "socket":
		if !path.IsAbs(arg) && !strings.HasPrefix(arg, "${") {
			return Probe{}, &problem{fmt.Sprintf("socket path %s is not absolute", quote(arg)), ""}
		}
	}
	return Probe{k, arg}, nil
}

var (
	// busName is a well-known name (D-Bus specification, "Valid Names").
	busName = regexp.MustCompile(`^[A-Za-z_-][A-Za-z0-9_-]*(\.[A-Za-z_-][A-Za-z0-9_-]*)+$`)
	// word is what engines take for the names of pods and containers.
	word    = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// langName is a locale as setlocale(3) takes it: language[_territory][.codeset][@modifier].
	langName   = regexp.MustCompile(`^([a-z]{2,3}(_[A-Z]{2,3})?|C|POSIX)(\.[A-Za-z0-9-]+)?(@[A-Za-z0-9]+)?$`)
	zoneName   = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$`)
	layoutName = regexp.MustCompile(`^[a-z]{2,10}(\([a-zA-Z0-9_-]+\))?$`)
	// themeName is the name of a directory; it is written into settings of many syntaxes, so it has no special characters.
	themeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}$`)
	// fontText is a family and a size in points, as GTK writes fonts.
	fontText  = regexp.MustCompile(`^([\pL0-9][\pL0-9 ._+-]{0,62}?) +([0-9]{1,3}(?:\.[0-9]{1,2})?)$`)
	sizeText  = regexp.MustCompile(`^([0-9]{1,6})x([0-9]{1,6})$`)
	bytesText = regexp.MustCompile(`^([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)?$`)
)

func isWord(limit int) func(string) bool {
	return func(s string) bool { return len(s) <= limit && word.MatchString(s) }
}

// A containerd identifier has at most 76 characters: pod, dot and container; the pod's has the profile's and a suffix.
var (
	profileName   = isWord(32)
	componentName = isWord(32)
	volumeName    = isWord(64)
)

// Bounds of a screen's size in pixels, for whoever asks for one and for what is believed of an X server. Desktops do not
// fit below; above, servers claim sizes that they then die of (Xvnc's framebuffer ends at 16,384, Xvfb's with the
// memory).
const (
	MinWidth, MinHeight = 320, 200
	MaxWidth, MaxHeight = 8192, 8192
)

// CheckSize reports a size that is out of bounds.
func CheckSize(width, height int) error {
	if width < MinWidth || height < MinHeight || width > MaxWidth || height > MaxHeight {
		return fmt.Errorf("size %q is out of range: %dx%d to %dx%d", fmt.Sprintf("%dx%d", width, height),
			MinWidth, MinHeight, MaxWidth, MaxHeight)
	}
	return nil
}

// ParseSize reads "1920x1080", in pixels.
func ParseSize(s string) (width, height int, err error) {
	m := sizeText.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, fmt.Errorf(`size %s is not of the form WIDTHxHEIGHT, such as "1920x1080"`, quote(s))
	}
	width, _ = strconv.Atoi(m[1]) // at most six digits
	height, _ = strconv.Atoi(m[2])
	if err := CheckSize(width, height); err != nil {
		return 0, 0, err
	}
	return width, height, nil
}

// ParseBytes reads an amount of memory, "4GiB" or "512MB" or a plain number of bytes.
func ParseBytes(s string) (int64, error) {
	m := bytesText.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf(`amount %s is not of the form "4GiB" or "512MiB"`, quote(s))
	}
	units := map[string]float64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
		"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
	f, err := strconv.ParseFloat(m[1], 64)
	if err != nil || f*units[m[2]] >= math.MaxInt64 {
		return 0, fmt.Errorf("amount %s is too large", quote(s))
	}
	return int64(f * units[m[2]]), nil
}

// ParseFont reads a font as profiles write it, "Noto Sans 10": family and size in points.
func ParseFont(s string) (family string, points float64, ok bool) {
	m := fontText.FindStringSubmatch(s)
	if m == nil {
		return "", 0, false
	}
	points, err := strconv.ParseFloat(m[2], 64)
	return m[1], points, err == nil && points >= 1
}

func isFont(s string) bool { _, _, ok := ParseFont(s); return ok }

// formatBytes is the shortest exact form that ParseBytes reads.
func formatBytes(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	return strconv.FormatInt(n, 10)
}

const maxDuration = time.Hour

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf(`duration %s is not of the form "30s", "500ms" or "1m30s"`, quote(s))
	}
	if d <= 0 || d > maxDuration {
		return 0, fmt.Errorf("duration %q is out of range: more than 0, at most 1h", s)
	}
	return d, nil
}

// checkImage accepts a recipe's name or a reference as docker writes it.
func checkImage(s string) *problem {
	if _, err := reference.ParseNormalizedNamed(s); err != nil {
		return &problem{fmt.Sprintf("image %s is neither a recipe's name nor a reference such as debian:trixie: %v", quote(s), err), ""}
	}
	return nil
}

// signals that may stop a component.
var signals = []string{"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGWINCH"}

// capNames are the kernel's capabilities (capabilities(7)).
var capNames = []string{"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE",
	"CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT",
	"CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM"}
