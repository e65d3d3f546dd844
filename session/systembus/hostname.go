package systembus

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	nameHostname = "org.freedesktop.hostname1"
	pathHostname = dbus.ObjectPath("/org/freedesktop/hostname1")
)

// hostname is org.freedesktop.hostname1. The names that the kernel and /etc/hostname have are the session's and stay;
// those that are only shown can be set.
type hostname struct {
	h                                            host
	pretty, icon, chassis, deployment, locatedAt string
	objs                                         []*object
}

// chassisKinds are those of machine-info(5).
var chassisKinds = []string{"", "desktop", "laptop", "convertible", "server", "tablet", "handset", "watch", "embedded", "vm", "container"}

func newHostname(h host) *hostname {
	// systemd's icon for containers, computer-container, is in no icon theme.
	s := &hostname{h: h, icon: "computer", chassis: "container"}
	text := func(p *string) prop { return live(func() any { return *p }) }
	keep := func(v string) prop { return live(func() any { return v }) }
	kernel := func(b [65]byte) prop { return constant(unix.ByteSliceToString(b[:])) }
	s.objs = []*object{{path: pathHostname, ifaces: []iface{{name: nameHostname, methods: map[string]any{
		"SetHostname":       s.refuse(h.hostname),
		"SetStaticHostname": s.refuse(h.static),
		"SetPrettyHostname": s.set(&s.pretty, 64, nil),
		"SetIconName":       s.set(&s.icon, 64, fileName),
		"SetChassis":        s.set(&s.chassis, 64, func(v string) bool { return slices.Contains(chassisKinds, v) }),
		"SetDeployment":     s.set(&s.deployment, 64, fileName),
		"SetLocation":       s.set(&s.locatedAt, 256, nil),
		"GetProductUUID": func(bool) ([]byte, error) {
			return nil, errorf(errAccessDenied, "A container has no product UUID")
		},
		"Describe": s.describe,
	}, props: map[string]prop{
		"Hostname": keep(h.hostname), "StaticHostname": keep(h.static), "PrettyHostname": text(&s.pretty), "DefaultHostname": constant("localhost"),
		"HostnameSource": keep("static"), "IconName": text(&s.icon), "Chassis": text(&s.chassis), "Deployment": text(&s.deployment),
		"Location": text(&s.locatedAt), "KernelName": kernel(h.kernel.Sysname), "KernelRelease": kernel(h.kernel.Release),
		"KernelVersion": kernel(h.kernel.Version), "OperatingSystemPrettyName": constant(h.osRelease["PRETTY_NAME"]),
		"OperatingSystemCPEName": constant(h.osRelease["CPE_NAME"]), "HomeURL": constant(h.osRelease["HOME_URL"]),
		"HardwareVendor": constant(""), "HardwareModel": constant(""),
	}}}}}
	return s
}

func (s *hostname) name() string       { return nameHostname }
func (s *hostname) objects() []*object { return s.objs }

// refuse is the setter of what cannot be changed; to set what it is already is fine.
func (s *hostname) refuse(have string) any {
	return func(v string, _ bool) error {
		if v == have {
			return nil
		}
		return errorf(errAccessDenied, "The host name is the session's and cannot be changed from within")
	}
}

func (s *hostname) set(field *string, most int, ok func(string) bool) any {
	return func(v string, _ bool) error {
		if len(v) > most || strings.ContainsFunc(v, unicode.IsControl) || ok != nil && !ok(v) {
			return errorf(errInvalidArgs, "Invalid value %q", v)
		}
		*field = v
		return nil
	}
}

// fileName accepts what can be part of a file's name.
func fileName(s string) bool { return !strings.ContainsAny(s, "/ ") }

// describe is the properties as one JSON document.
func (s *hostname) describe() (string, error) {
	doc := map[string]any{}
	for name, p := range s.objs[0].ifaces[0].props {
		doc[name] = p.get()
		if doc[name] == "" {
			doc[name] = nil
		}
	}
	b, err := json.Marshal(doc)
	return string(b), err
}

// parseOSRelease reads os-release(5): shell assignments without expansion.
func parseOSRelease(text string) map[string]string {
	out := map[string]string{}
	for l := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(l), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
			quote := v[0]
			v = v[1 : len(v)-1]
			if quote == '"' {
				v = strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\$`, `$`, "\\`", "`").Replace(v)
			}
		}
		out[k] = v
	}
	return out
}
