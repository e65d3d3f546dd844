package systembus

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"berth/profiles"
)

// bed is a Server without a bus, in a world of its own.
type bed struct {
	*Server
	t      *testing.T
	now    time.Time
	leases []func()
	gone   map[dbus.Sender]bool
	login  *login
}

func newBed(t *testing.T) *bed {
	b := &bed{Server: &Server{over: make(chan struct{})}, t: t, now: time.Unix(1700000000, 0), gone: map[dbus.Sender]bool{}}
	h := host{uid: 61000, gid: 61000, user: "user", realName: "A User", home: "/home/user", shell: "/bin/bash",
		runtime: "/run/user/61000", desktop: "XFCE", display: ":0", kind: "x11", locale: []string{"LANG=de_DE.UTF-8"},
		keyboard: []string{"us", "de(nodeadkeys)"}, timezone: "Europe/Berlin", zones: []string{"Asia/Tokyo", "Europe/Berlin", "UTC"},
		hostname: "duo", static: "duo", osRelease: map[string]string{"PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"},
		now: func() time.Time { return b.now }, monotonic: func() uint64 { return uint64(b.now.Unix()-1700000000) * 1e6 },
		ntp: func() bool { return true }, alive: func(pid uint32) bool { return pid < 100 },
		present: func(s dbus.Sender) bool { return !b.gone[s] }}
	b.login = newLogin(h, b.say, func(released func()) (dbus.UnixFD, error) {
		b.leases = append(b.leases, released)
		return dbus.UnixFD(len(b.leases) - 1), nil
	})
	b.end = b.login
	b.serve(newLocale(h), newHostname(h), newTimedate(h), newUPower(), newAccounts(h, b.say), b.login)
	return b
}

// call makes a call as sender ":1.1" of pid 7, or as the sender before a "|" in the method, and shows its result.
func (b *bed) call(path dbus.ObjectPath, method string, args ...any) string {
	c := caller{name: ":1.1", uid: 61000, pid: 7}
	if who, m, ok := strings.Cut(method, "|"); ok {
		c.name, method = dbus.Sender(who), m
	}
	i := strings.LastIndexByte(method, '.')
	f, err := b.tree.method(path, method[:i], method[i+1:])
	if err == nil {
		sig := ""
		if len(args) > 0 {
			sig = dbus.SignatureOf(args...).String()
		}
		var out []any
		if out, err = invoke(f, c, sig, args); err == nil {
			b.changes()
			text := fmt.Sprint(out...)
			return text
		}
	}
	var e *dbus.Error
	if !errors.As(err, &e) {
		b.t.Errorf("%s: error %v has no name", method, err)
		return err.Error()
	}
	b.changes()
	return "error " + e.Name
}

// said takes what was said since the last time, a line for each signal.
func (b *bed) said() []string {
	var out []string
	for _, s := range b.outbox {
		line := string(s.path[strings.LastIndexByte(string(s.path), '/')+1:]) + " "
		if s.name == ifaceProperties+".PropertiesChanged" {
			changed := s.args[1].(map[string]dbus.Variant)
			for _, k := range slices.Sorted(maps.Keys(changed)) {
				line += fmt.Sprintf("%s=%v ", k, changed[k].Value())
			}
		} else {
			line += s.name[strings.LastIndexByte(s.name, '.')+1:] + " " + fmt.Sprint(s.args...)
		}
		out = append(out, strings.TrimSpace(line))
	}
	b.outbox = nil
	return out
}

// step is one thing that happens to the services.
type step struct {
	do     string        // the method with its interface; "release" and "wait" are not calls
	args   []any         // of the call; of release: which inhibitor
	wait   time.Duration // of wait
	want   string        // the result
	says   []string
	over   bool
	object dbus.ObjectPath // "" for the one that has the interface first
}

// run takes the steps one after another.
func run(t *testing.T, object dbus.ObjectPath, steps []step) {
	b := newBed(t)
	for n, s := range steps {
		path := s.object
		if path == "" {
			path = object
		}
		var got string
		switch s.do {
		case "release":
			b.leases[s.args[0].(int)]()
			b.changes()
		case "wait":
			b.now = b.now.Add(s.wait)
		default:
			got = b.call(path, s.do, s.args...)
		}
		if got != s.want {
			t.Errorf("step %d, %s%v: %q, want %q", n, s.do, s.args, got, s.want)
		}
		if d := cmp.Diff(s.says, b.said()); d != "" {
			t.Errorf("step %d, %s%v says (-want +got):\n%s", n, s.do, s.args, d)
		}
		if over, _ := b.end.over(); over != s.over {
			t.Errorf("step %d, %s%v: over is %v", n, s.do, s.args, over)
		}
	}
}

const (
	mgr  = ifaceManager + "."
	ses  = ifaceSession + "."
	usr  = ifaceUser + "."
	seat = ifaceSeat + "."
)

func TestLogin(t *testing.T) {
	inhibit := func(what, who, why, mode string) []any { return []any{what, who, why, mode} }
	for name, steps := range map[string][]step{
		"power_off_at_once": {
			{do: mgr + "CanPowerOff", want: "yes"},
			{do: mgr + "PowerOff", args: []any{true}, says: []string{"login1 PrepareForShutdown true"}, over: true},
		},
		"power_off_waits_for_delay_inhibitors": {
			{do: mgr + "Inhibit", args: inhibit("shutdown:sleep", "shell", "saving", "delay"), want: "0", says: []string{"login1 DelayInhibited=shutdown:sleep"}},
			{do: mgr + "Inhibit", args: inhibit("sleep", "other", "", "delay"), want: "1"},
			{do: mgr + "Reboot", args: []any{false}, says: []string{"login1 PrepareForShutdown true"}},
			{do: ifaceProperties + ".Get", args: []any{ifaceManager, "PreparingForShutdown"}, want: "true"},
			{do: mgr + "PowerOff", args: []any{false}, want: "error " + errInProgress},
			{do: mgr + "Inhibit", args: inhibit("shutdown", "late", "", "delay"), want: "error " + errInProgress},
			{do: "wait", wait: 4 * time.Second},
			{do: "release", args: []any{0}, says: []string{"login1 DelayInhibited=sleep"}, over: true},
		},
		"power_off_waits_no_longer_than_it_says": {
			{do: mgr + "Inhibit", args: inhibit("shutdown", "stuck", "", "delay"), want: "0", says: []string{"login1 DelayInhibited=shutdown"}},
			{do: mgr + "HaltWithFlags", args: []any{uint64(0)}, says: []string{"login1 PrepareForShutdown true"}},
			{do: "wait", wait: inhibitDelayMost - time.Millisecond},
			{do: "wait", wait: time.Millisecond, over: true},
		},
		"block_inhibitors_refuse": {
			{do: mgr + "Inhibit", args: inhibit("shutdown", "writer", "burning a disc", "block"), want: "0", says: []string{"login1 BlockInhibited=shutdown"}},
			{do: mgr + "PowerOff", args: []any{true}, want: "error " + errAccessDenied},
			{do: mgr + "ListInhibitors", want: "[{shutdown writer burning a disc block 61000 7}]"},
			{do: "release", args: []any{0}, says: []string{"login1 BlockInhibited="}},
			{do: mgr + "ListInhibitors", want: "[]"},
			{do: mgr + "PowerOff", args: []any{true}, says: []string{"login1 PrepareForShutdown true"}, over: true},
		},
		"inhibitors_are_checked": {
			{do: mgr + "Inhibit", args: inhibit("coffee", "", "", "block"), want: "error " + errInvalidArgs},
			{do: mgr + "Inhibit", args: inhibit("", "", "", "block"), want: "error " + errInvalidArgs},
			{do: mgr + "Inhibit", args: inhibit("sleep", "", "", "maybe"), want: "error " + errInvalidArgs},
			{do: mgr + "Inhibit", args: inhibit("sleep:idle", "", "", "delay"), want: "error " + errInvalidArgs},
			{do: mgr + "Inhibit", args: inhibit("handle-lid-switch:sleep:sleep", "", "", "block"), want: "0", says: []string{"login1 BlockInhibited=sleep:handle-lid-switch"}},
		},
		"no_sleep": {
			{do: mgr + "CanSuspend", want: "na"},
			{do: mgr + "CanHibernate", want: "na"},
			{do: mgr + "Suspend", args: []any{true}, want: "error " + errSleepNotSupported},
			{do: mgr + "SuspendThenHibernateWithFlags", args: []any{uint64(0)}, want: "error " + errSleepNotSupported},
		},
		"finding": {
			{do: mgr + "GetSession", args: []any{"1"}, want: string(sessionPath)},
			{do: mgr + "GetSession", args: []any{"self"}, want: string(sessionPath)},
			{do: mgr + "GetSession", args: []any{"auto"}, want: string(sessionPath)},
			{do: mgr + "GetSession", args: []any{"2"}, want: "error " + errNoSuchSession},
			{do: mgr + "GetSessionByPID", args: []any{uint32(99)}, want: string(sessionPath)},
			{do: mgr + "GetSessionByPID", args: []any{uint32(0)}, want: string(sessionPath)},
			{do: mgr + "GetSessionByPID", args: []any{uint32(100)}, want: "error " + errNoSessionForPID},
			{do: mgr + "GetUser", args: []any{uint32(61000)}, want: "/org/freedesktop/login1/user/_61000"},
			{do: mgr + "GetUser", args: []any{uint32(0)}, want: "error " + errNoSuchUser},
			{do: mgr + "GetUserByPID", args: []any{uint32(100)}, want: "error " + errNoUserForPID},
			{do: mgr + "GetSeat", args: []any{"seat0"}, want: string(seatPath)},
			{do: mgr + "GetSeat", args: []any{"seat1"}, want: "error " + errNoSuchSeat},
			{do: mgr + "GetSeat", args: []any{"self"}, want: "error " + errNoSuchSeat},
			{do: mgr + "ListSessions", want: "[{1 61000 user  /org/freedesktop/login1/session/_31}]"},
			{do: mgr + "ListUsers", want: "[{61000 user /org/freedesktop/login1/user/_61000}]"},
			{do: mgr + "ActivateSession", args: []any{"1"}},
			{do: mgr + "ActivateSessionOnSeat", args: []any{"1", "seat0"}, want: "error " + errSessionNotOnSeat},
			{do: ses + "Activate", object: sessionPath + "/../auto", want: "error " + errUnknownObject},
			{do: ses + "Activate", object: pathLogin + "/session/auto"},
		},
		"locking": {
			{do: mgr + "LockSession", args: []any{"1"}, says: []string{"_31 Lock"}},
			{do: mgr + "LockSession", args: []any{"9"}, want: "error " + errNoSuchSession},
			{do: ses + "SetLockedHint", args: []any{true}, object: sessionPath, says: []string{"_31 LockedHint=true"}},
			{do: ses + "SetLockedHint", args: []any{true}, object: sessionPath},
			{do: mgr + "UnlockSessions", says: []string{"_31 Unlock"}},
			{do: ses + "SetLockedHint", args: []any{false}, object: pathLogin + "/session/self", says: []string{"_31 LockedHint=false"}},
			{do: ses + "Lock", object: sessionPath, says: []string{"_31 Lock"}},
		},
		"idle": {
			{do: "wait", wait: 10 * time.Second},
			{do: ses + "SetIdleHint", args: []any{true}, object: sessionPath, says: []string{
				"login1 IdleHint=true IdleSinceHint=1700000010000000 IdleSinceHintMonotonic=10000000",
				"_31 IdleHint=true IdleSinceHint=1700000010000000 IdleSinceHintMonotonic=10000000",
				"_61000 IdleHint=true IdleSinceHint=1700000010000000 IdleSinceHintMonotonic=10000000"}},
			{do: mgr + "Inhibit", args: inhibit("idle", "player", "film", "block"), want: "0",
				says: []string{"login1 BlockInhibited=idle IdleHint=false IdleSinceHint=0 IdleSinceHintMonotonic=0"}},
		},
		"termination": {
			{do: mgr + "TerminateSession", args: []any{"7"}, want: "error " + errNoSuchSession},
			{do: mgr + "KillSession", args: []any{"1", "everybody", int32(15)}, want: "error " + errInvalidArgs},
			{do: mgr + "KillSession", args: []any{"1", "all", int32(0)}, want: "error " + errInvalidArgs},
			{do: mgr + "KillSession", args: []any{"1", "leader", int32(18)}, want: "error " + errNotSupported},
			{do: mgr + "KillUser", args: []any{uint32(1), int32(9)}, want: "error " + errNoSuchUser},
			{do: mgr + "TerminateSeat", args: []any{"seat0"}},
			{do: mgr + "Inhibit", args: inhibit("shutdown", "stuck", "", "delay"), want: "0", says: []string{"login1 DelayInhibited=shutdown"}},
			{do: mgr + "TerminateUser", args: []any{uint32(61000)}, over: true, says: []string{
				"login1 SessionRemoved 1/org/freedesktop/login1/session/_31", "_31 Active=false State=closing"}},
			{do: mgr + "PowerOff", args: []any{false}, want: "error " + errInProgress, over: true},
		},
		"kill_session": {{do: mgr + "KillSession", args: []any{"1", "all", int32(15)}, over: true, says: []string{
			"login1 SessionRemoved 1/org/freedesktop/login1/session/_31", "_31 Active=false State=closing"}}},
		"terminate_on_the_object": {{do: ses + "Terminate", object: sessionPath, over: true, says: []string{
			"login1 SessionRemoved 1/org/freedesktop/login1/session/_31", "_31 Active=false State=closing"}}},
		"kill_the_user": {{do: usr + "Kill", args: []any{int32(9)}, object: pathLogin + "/user/self", over: true, says: []string{
			"login1 SessionRemoved 1/org/freedesktop/login1/session/_31", "_31 Active=false State=closing"}}},
		"control": {
			{do: ses + "SetType", args: []any{"wayland"}, object: sessionPath, want: "error " + errNotInControl},
			{do: ses + "ReleaseControl", object: sessionPath, want: "error " + errNotInControl},
			{do: ses + "TakeControl", args: []any{true}, object: sessionPath, want: "error " + errAccessDenied},
			{do: ses + "TakeControl", args: []any{false}, object: sessionPath},
			{do: ":1.2|" + ses + "TakeControl", args: []any{false}, object: sessionPath, want: "error " + errSessionBusy},
			{do: ses + "SetType", args: []any{"gopher"}, object: sessionPath, want: "error " + errInvalidArgs},
			{do: ses + "SetType", args: []any{"wayland"}, object: sessionPath, says: []string{"_31 Type=wayland"}},
			{do: ses + "SetDisplay", args: []any{":1"}, object: sessionPath, says: []string{"_31 Display=:1"}},
			{do: ses + "TakeDevice", args: []any{uint32(226), uint32(0)}, object: sessionPath, want: "error " + errAccessDenied},
			{do: ses + "ReleaseDevice", args: []any{uint32(226), uint32(0)}, object: sessionPath, want: "error " + errDeviceNotTaken},
			{do: ses + "ReleaseControl", object: sessionPath, says: []string{"_31 Type=x11"}},
		},
		"seat_and_the_rest": {
			{do: seat + "SwitchTo", args: []any{uint32(2)}, object: seatPath, want: "error " + errNotSupported},
			{do: seat + "ActivateSession", args: []any{"1"}, object: seatPath, want: "error " + errSessionNotOnSeat},
			{do: mgr + "SetUserLinger", args: []any{uint32(61000), true, true}, want: "error " + errAccessDenied},
			{do: ses + "SetBrightness", args: []any{"backlight", "x", uint32(3)}, object: sessionPath, want: "error " + errNotSupported},
		},
	} {
		t.Run(name, func(t *testing.T) { run(t, pathLogin, steps) })
	}
}

// TestControlOfOneWhoLeft: control does not outlive the connection of who took it.
func TestControlOfOneWhoLeft(t *testing.T) {
	b := newBed(t)
	b.call(sessionPath, ses+"TakeControl", false)
	b.gone[":1.1"] = true
	if got := b.call(sessionPath, ":1.2|"+ses+"TakeControl", false); got != "" {
		t.Error(got)
	}
}

func TestInhibitorsAreBounded(t *testing.T) {
	b := newBed(t)
	for n := range inhibitorsMost - 1 {
		b.login.inhibitors[n] = inhibitor{}
	}
	b.login.next = inhibitorsMost - 1
	if got := b.call(pathLogin, mgr+"Inhibit", "idle", "w", "y", "block"); got != "0" {
		t.Error(got)
	}
	if got := b.call(pathLogin, mgr+"Inhibit", "idle", "w", "y", "block"); got != "error "+errLimitsExceeded {
		t.Error(got)
	}
}

func TestLocale(t *testing.T) {
	i := nameLocale + "."
	run(t, pathLocale, []step{
		{do: ifaceProperties + ".GetAll", args: []any{nameLocale}, want: `map[Locale:["LANG=de_DE.UTF-8"] VConsoleKeymap:"" VConsoleKeymapToggle:"" ` +
			`X11Layout:"us,de" X11Model:"" X11Options:"" X11Variant:",nodeadkeys"]`},
		{do: i + "SetLocale", args: []any{[]string{"LC_TIME=en_GB.UTF-8", "LANG=fr_FR.UTF-8"}, true}, says: []string{"locale1 Locale=[LANG=fr_FR.UTF-8 LC_TIME=en_GB.UTF-8]"}},
		{do: i + "SetLocale", args: []any{[]string{"C.UTF-8"}, true}, says: []string{"locale1 Locale=[LANG=C.UTF-8]"}},
		{do: i + "SetLocale", args: []any{[]string{"LD_PRELOAD=x"}, true}, want: "error " + errInvalidArgs},
		{do: i + "SetLocale", args: []any{[]string{"LANG=a\nb"}, true}, want: "error " + errInvalidArgs},
		{do: i + "SetLocale", args: []any{[]string{"LANG=C", "LANG=C"}, true}, want: "error " + errInvalidArgs},
		{do: i + "SetLocale", args: []any{[]string{}, true}, says: []string{"locale1 Locale=[]"}},
		{do: i + "SetX11Keyboard", args: []any{"fr", "pc105", "oss", "grp:alt_shift_toggle", true, true},
			says: []string{"locale1 X11Layout=fr X11Model=pc105 X11Options=grp:alt_shift_toggle X11Variant=oss"}},
		{do: i + "SetX11Keyboard", args: []any{"fr;reboot", "", "", "", true, true}, want: "error " + errInvalidArgs},
		{do: i + "SetVConsoleKeyboard", args: []any{"fr", "", false, true}, says: []string{"locale1 VConsoleKeymap=fr"}},
		{do: i + "SetLocale", args: []any{"C"}, want: "error " + errInvalidArgs},
		{do: i + "Nonsense", want: "error " + errUnknownMethod},
		{do: "no.such.Interface", want: "error " + errUnknownInterface},
	})
}

func TestHostname(t *testing.T) {
	i := nameHostname + "."
	get := func(p string) []any { return []any{nameHostname, p} }
	run(t, pathHostname, []step{
		{do: ifaceProperties + ".Get", args: get("Hostname"), want: `"duo"`},
		{do: ifaceProperties + ".Get", args: get("Chassis"), want: `"container"`},
		{do: ifaceProperties + ".Get", args: get("OperatingSystemPrettyName"), want: `"Debian GNU/Linux 12 (bookworm)"`},
		{do: ifaceProperties + ".Get", args: get("Nonsense"), want: "error " + errUnknownProperty},
		{do: ifaceProperties + ".Set", args: []any{nameHostname, "Hostname", dbus.MakeVariant("x")}, want: "error " + errPropertyReadOnly},
		{do: i + "SetHostname", args: []any{"other", true}, want: "error " + errAccessDenied},
		{do: i + "SetHostname", args: []any{"duo", true}},
		{do: i + "SetStaticHostname", args: []any{"other", true}, want: "error " + errAccessDenied},
		{do: i + "SetPrettyHostname", args: []any{"Anna's desk", true}, says: []string{"hostname1 PrettyHostname=Anna's desk"}},
		{do: i + "SetPrettyHostname", args: []any{"a\x07b", true}, want: "error " + errInvalidArgs},
		{do: i + "SetIconName", args: []any{"video-display", true}, says: []string{"hostname1 IconName=video-display"}},
		{do: i + "SetIconName", args: []any{"../x", true}, want: "error " + errInvalidArgs},
		{do: i + "SetChassis", args: []any{"teapot", true}, want: "error " + errInvalidArgs},
		{do: i + "SetChassis", args: []any{"desktop", true}, says: []string{"hostname1 Chassis=desktop"}},
		{do: i + "GetProductUUID", args: []any{true}, want: "error " + errAccessDenied},
	})
	if got := newBed(t).call(pathHostname, i+"Describe"); !strings.Contains(got, `"Hostname":"duo"`) || !strings.Contains(got, `"PrettyHostname":null`) {
		t.Errorf("Describe: %s", got)
	}
}

func TestTimedate(t *testing.T) {
	i := nameTimedate + "."
	run(t, pathTimedate, []step{
		{do: ifaceProperties + ".GetAll", args: []any{nameTimedate}, want: `map[CanNTP:false LocalRTC:false NTP:false NTPSynchronized:true ` +
			`RTCTimeUSec:@t 0 TimeUSec:@t 1700000000000000 Timezone:"Europe/Berlin"]`},
		{do: i + "ListTimezones", want: "[Asia/Tokyo Europe/Berlin UTC]"},
		{do: i + "SetTimezone", args: []any{"Asia/Tokyo", true}, says: []string{"timedate1 Timezone=Asia/Tokyo"}},
		{do: i + "SetTimezone", args: []any{"Asia/Atlantis", true}, want: "error " + errInvalidArgs},
		{do: i + "SetTimezone", args: []any{"../../etc/passwd", true}, want: "error " + errInvalidArgs},
		{do: i + "SetTime", args: []any{int64(0), false, true}, want: "error " + errAccessDenied},
		{do: i + "SetNTP", args: []any{true, true}, want: "error org.freedesktop.timedate1.NoNTPSupport"},
		{do: i + "SetLocalRTC", args: []any{false, false, true}},
		{do: i + "SetLocalRTC", args: []any{true, false, true}, want: "error " + errAccessDenied},
	})
	bare := newTimedate(host{timezone: "Europe/Berlin"})
	if err := bare.setTimezone("Asia/Tokyo", true); err != nil {
		t.Errorf("without a list of zones: %v", err)
	}
}

func TestUPower(t *testing.T) {
	run(t, pathUPower, []step{
		{do: nameUPower + ".EnumerateDevices", want: "[]"},
		{do: nameUPower + ".GetDisplayDevice", want: string(pathDevice)},
		{do: nameUPower + ".GetCriticalAction", want: "PowerOff"},
		{do: ifaceProperties + ".GetAll", args: []any{nameUPower}, want: `map[DaemonVersion:"0.99.20" LidIsClosed:false LidIsPresent:false OnBattery:false]`},
		{do: ifaceProperties + ".Get", args: []any{ifaceDevice, "IsPresent"}, object: pathDevice, want: "false"},
		{do: ifaceDevice + ".Refresh", object: pathDevice},
		{do: nameUPower + ".KbdBacklight.GetBrightness", object: pathUPower + "/KbdBacklight", want: "error " + errUnknownObject},
	})
}

func TestAccounts(t *testing.T) {
	const me = pathAccounts + "/User61000"
	u := ifaceAccountUser + "."
	changed := func(what string) []string { return []string{"User61000 " + what, "User61000 Changed"} }
	run(t, pathAccounts, []step{
		{do: nameAccounts + ".ListCachedUsers", want: "[/org/freedesktop/Accounts/User61000]"},
		{do: nameAccounts + ".FindUserById", args: []any{int64(61000)}, want: string(me)},
		{do: nameAccounts + ".FindUserById", args: []any{int64(0)}, want: "error " + errAccountsFailed},
		{do: nameAccounts + ".FindUserByName", args: []any{"user"}, want: string(me)},
		{do: nameAccounts + ".FindUserByName", args: []any{"root"}, want: "error " + errAccountsFailed},
		{do: nameAccounts + ".CreateUser", args: []any{"a", "A", int32(1)}, want: "error " + errPermissionDenied},
		{do: nameAccounts + ".DeleteUser", args: []any{int64(61000), true}, want: "error " + errPermissionDenied},
		{do: ifaceProperties + ".Get", args: []any{ifaceAccountUser, "IconFile"}, object: me, want: `"/home/user/.face"`},
		{do: ifaceProperties + ".Get", args: []any{ifaceAccountUser, "Language"}, object: me, want: `"de_DE.UTF-8"`},
		{do: u + "SetRealName", args: []any{"Anna"}, object: me, says: changed("RealName=Anna")},
		{do: u + "SetRealName", args: []any{"Anna"}, object: me},
		{do: u + "SetRealName", args: []any{"An\nna"}, object: me, want: "error " + errAccountsFailed},
		{do: u + "SetIconFile", args: []any{"/home/user/me.png"}, object: me, says: changed("IconFile=/home/user/me.png")},
		{do: u + "SetIconFile", args: []any{"me.png"}, object: me, want: "error " + errAccountsFailed},
		{do: u + "SetIconFile", args: []any{""}, object: me, says: changed("IconFile=/home/user/.face")},
		{do: u + "SetUserName", args: []any{"root"}, object: me, want: "error " + errPermissionDenied},
		{do: u + "SetAccountType", args: []any{int32(1)}, object: me, want: "error " + errPermissionDenied},
		{do: u + "SetPassword", args: []any{"x", "y"}, object: me, want: "error " + errPermissionDenied},
		{do: u + "SetAutomaticLogin", args: []any{true}, object: me, want: "error " + errPermissionDenied},
	})
}

func TestFiles(t *testing.T) {
	if d := cmp.Diff(map[string]string{"NAME": "Debian", "PRETTY_NAME": `a "b" $c`, "ID": "debian", "HOME_URL": "https://x/"},
		parseOSRelease("NAME=Debian\n# c=d\n\nPRETTY_NAME=\"a \\\"b\\\" \\$c\"\nID='debian'\nbroken\nHOME_URL=\"https://x/\"")); d != "" {
		t.Errorf("os-release (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"Africa/Abidjan", "Africa/Accra", "UTC"},
		parseZones("# version 2024a\nR d 1916 o - Jun 14 23s 1 S\nZ Africa/Abidjan -0:16:8 - LMT 1912\n0 - GMT\nL Africa/Abidjan Africa/Accra\n")); d != "" {
		t.Errorf("zones (-want +got):\n%s", d)
	}
	if got := realName("root:x:0:0:root:/:/bin/sh\nu:x:5:5:Anna B,room 3:/h:/bin/sh\n", 5); got != "Anna B" {
		t.Errorf("real name %q", got)
	}
}

func TestComponents(t *testing.T) {
	if got := Components(profiles.SystemBus{Kind: "none"}, profiles.Locale{}); got != nil {
		t.Errorf("none is %v", got)
	}
	got := Components(profiles.SystemBus{Kind: "stub"}, profiles.Locale{Keyboard: []string{"us", "de(nodeadkeys)"}})
	if len(got) != 2 || got[1].Env[keyboardEnv] != "us,de(nodeadkeys)" || !got[1].EndsSession || got[0].EndsSession {
		t.Errorf("components %+v", got)
	}
}
