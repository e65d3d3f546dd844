package systembus

import (
	"regexp"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

const (
	nameTimedate = "org.freedesktop.timedate1"
	pathTimedate = dbus.ObjectPath("/org/freedesktop/timedate1")
)

// timedate is org.freedesktop.timedate1. The clock is the host's and cannot be set. A time zone can be chosen: programs
// that ask here or hear PropertiesChanged follow it, those that have TZ of [locale] timezone keep that one.
type timedate struct {
	h    host
	zone string
	objs []*object
}

var zoneName = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$`)

func newTimedate(h host) *timedate {
	t := &timedate{h: h, zone: h.timezone}
	if t.zone == "" {
		t.zone = "UTC" // what programs take without TZ and /etc/localtime
	}
	t.objs = []*object{{path: pathTimedate, ifaces: []iface{{name: nameTimedate, methods: map[string]any{
		"SetTime": func(int64, bool, bool) error {
			return errorf(errAccessDenied, "The clock of a container is its host's")
		},
		"SetTimezone": t.setTimezone,
		"SetLocalRTC": func(local, _, _ bool) error {
			if local {
				return errorf(errAccessDenied, "A container has no real-time clock")
			}
			return nil
		},
		"SetNTP": func(bool, bool) error {
			return errorf(nameTimedate+".NoNTPSupport", "NTP not supported")
		},
		"ListTimezones": func() ([]string, error) {
			if len(t.h.zones) == 0 {
				return slices.Compact(slices.Sorted(slices.Values([]string{"UTC", t.zone}))), nil
			}
			return t.h.zones, nil
		},
	}, props: map[string]prop{
		"Timezone": live(func() any { return t.zone }), "LocalRTC": live(func() any { return false }), "CanNTP": quiet(func() any { return false }),
		"NTP": live(func() any { return false }), "NTPSynchronized": quiet(func() any { return t.h.ntp() }),
		"TimeUSec": quiet(func() any { return usec(t.h.now()) }), "RTCTimeUSec": quiet(func() any { return uint64(0) }),
	}}}}}
	return t
}

func (t *timedate) name() string       { return nameTimedate }
func (t *timedate) objects() []*object { return t.objs }

func (t *timedate) setTimezone(zone string, _ bool) error {
	if !zoneName.MatchString(zone) || len(t.h.zones) > 0 && !slices.Contains(t.h.zones, zone) {
		return errorf(errInvalidArgs, "Invalid or not installed time zone '%s'", zone)
	}
	t.zone = zone
	return nil
}

// parseZones reads the names of tzdata.zi: "Z NAME ..." is a zone and "L TARGET NAME" a link (zic(8)).
func parseZones(text string) []string {
	out := []string{"UTC"}
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		switch {
		case len(f) >= 2 && f[0] == "Z":
			out = append(out, f[1])
		case len(f) >= 3 && f[0] == "L":
			out = append(out, f[2])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
