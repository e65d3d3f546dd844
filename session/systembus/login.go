package systembus

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	nameLogin    = "org.freedesktop.login1"
	pathLogin    = dbus.ObjectPath("/org/freedesktop/login1")
	ifaceManager = nameLogin + ".Manager"
	ifaceSession = nameLogin + ".Session"
	ifaceSeat    = nameLogin + ".Seat"
	ifaceUser    = nameLogin + ".User"

	// sessionID is the one session's; its path is logind's escape of it.
	sessionID   = "1"
	sessionPath = pathLogin + "/session/_31"
	seatID      = "seat0"
	seatPath    = pathLogin + "/seat/seat0"
)

// Errors of login1 (systemd's bus-common-errors.h).
const (
	errNoSuchSession     = nameLogin + ".NoSuchSession"
	errNoSessionForPID   = nameLogin + ".NoSessionForPID"
	errNoSuchUser        = nameLogin + ".NoSuchUser"
	errNoUserForPID      = nameLogin + ".NoUserForPID"
	errNoSuchSeat        = nameLogin + ".NoSuchSeat"
	errSessionNotOnSeat  = nameLogin + ".SessionNotOnSeat"
	errNotInControl      = nameLogin + ".NotInControl"
	errDeviceNotTaken    = nameLogin + ".DeviceNotTaken"
	errInProgress        = nameLogin + ".OperationInProgress"
	errSleepNotSupported = nameLogin + ".SleepVerbNotSupported"
	errSessionBusy       = nameLogin + ".SessionBusy"
)

// Bounds of logind's own configuration (logind.conf(5)).
const (
	inhibitDelayMost = 5 * time.Second
	inhibitorsMost   = 8192
)

// whats are the operations that can be inhibited, in the order in which logind lists them.
var whats = []string{"shutdown", "sleep", "idle", "handle-power-key", "handle-suspend-key", "handle-hibernate-key",
	"handle-lid-switch", "handle-reboot-key"}

// inhibitor is a lock that a client holds as long as its descriptor is open.
type inhibitor struct {
	what           []string
	who, why, mode string
	uid, pid       uint32
}

// login is org.freedesktop.login1 for one user with one session, which is on no seat. The seat exists, as it does in
// every logind, and is empty.
type login struct {
	h     host
	say   say
	lease func(released func()) (dbus.UnixFD, error)
	objs  []*object

	began          time.Time
	beganMonotonic uint64
	inhibitors     map[int]inhibitor // by order of arrival
	next           int
	idle           bool
	idleSince      time.Time
	idleMonotonic  uint64
	locked         bool
	kind, display  string
	controller     dbus.Sender // "" if nobody has taken control
	preparing      bool        // PrepareForShutdown(true) has been said
	deadline       time.Time   // of the delay inhibitors, if preparing
	terminated     bool
}

func newLogin(h host, say say, lease func(func()) (dbus.UnixFD, error)) *login {
	l := &login{h: h, say: say, lease: lease, began: h.now(), beganMonotonic: h.monotonic(), inhibitors: map[int]inhibitor{},
		kind: h.kind, display: h.display}
	l.objs = []*object{
		{path: pathLogin, ifaces: []iface{l.manager()}},
		{path: sessionPath, aliases: []dbus.ObjectPath{pathLogin + "/session/self", pathLogin + "/session/auto"}, ifaces: []iface{l.session()}},
		{path: l.userPath(), aliases: []dbus.ObjectPath{pathLogin + "/user/self"}, ifaces: []iface{l.user()}},
		{path: seatPath, ifaces: []iface{l.seat()}},
	}
	return l
}

func (l *login) name() string       { return nameLogin }
func (l *login) objects() []*object { return l.objs }

func (l *login) userPath() dbus.ObjectPath {
	return pathLogin + "/user/_" + dbus.ObjectPath(strconv.Itoa(l.h.uid))
}

type sessionRow struct {
	ID   string
	UID  uint32
	User string
	Seat string
	Path dbus.ObjectPath
}

type userRow struct {
	UID  uint32
	User string
	Path dbus.ObjectPath
}

type inhibitorRow struct {
	What, Who, Why, Mode string
	UID, PID             uint32
}

type scheduled struct {
	Type string
	USec uint64
}

type numbered struct {
	UID  uint32
	Path dbus.ObjectPath
}

func (l *login) manager() iface {
	can := func(answer string) func() (string, error) { return func() (string, error) { return answer, nil } }
	off := func(bool) error { return l.shutDown() }
	offWithFlags := func(uint64) error { return l.shutDown() }
	noSleep := func(bool) error { return l.noSleep() }
	noSleepWithFlags := func(uint64) error { return l.noSleep() }
	return iface{name: ifaceManager,
		signals: map[string]string{"SessionNew": "s o", "SessionRemoved": "s o", "UserNew": "u o", "UserRemoved": "u o", "SeatNew": "s o",
			"SeatRemoved": "s o", "PrepareForShutdown": "b", "PrepareForSleep": "b"},
		methods: map[string]any{
			"GetSession":      func(id string) (dbus.ObjectPath, error) { return sessionPath, l.checkSession(id) },
			"GetSessionByPID": l.getSessionByPID,
			"GetUser":         func(uid uint32) (dbus.ObjectPath, error) { return l.userPath(), l.checkUser(uid) },
			"GetUserByPID":    l.getUserByPID,
			"GetSeat":         func(id string) (dbus.ObjectPath, error) { return seatPath, l.checkSeat(id) },
			"ListSessions": func() ([]sessionRow, error) {
				return []sessionRow{{sessionID, uint32(l.h.uid), l.h.user, "", sessionPath}}, nil
			},
			"ListUsers": func() ([]userRow, error) {
				return []userRow{{uint32(l.h.uid), l.h.user, l.userPath()}}, nil
			},
			"ListSeats":       func() ([]named, error) { return []named{{seatID, seatPath}}, nil },
			"ListInhibitors":  func() ([]inhibitorRow, error) { return l.listInhibitors(), nil },
			"Inhibit":         l.inhibit,
			"ActivateSession": l.checkSession, // it is active
			"ActivateSessionOnSeat": func(id, seat string) error {
				return first(l.checkSession(id), l.checkSeat(seat), errorf(errSessionNotOnSeat, "Session %s not on seat %s", id, seat))
			},
			"LockSession":    func(id string) error { return l.lock("Lock", l.checkSession(id)) },
			"UnlockSession":  func(id string) error { return l.lock("Unlock", l.checkSession(id)) },
			"LockSessions":   func() error { return l.lock("Lock", nil) },
			"UnlockSessions": func() error { return l.lock("Unlock", nil) },
			"KillSession": func(id, who string, sig int32) error {
				return first(l.checkSession(id), l.kill(who, sig))
			},
			"KillUser": func(uid uint32, sig int32) error { return first(l.checkUser(uid), l.kill("all", sig)) },
			"TerminateSession": func(id string) error {
				return first(l.checkSession(id), l.terminate)
			},
			"TerminateUser": func(uid uint32) error { return first(l.checkUser(uid), l.terminate) },
			"TerminateSeat": l.checkSeat, // nothing is on it
			"SetUserLinger": func(uint32, bool, bool) error {
				return errorf(errAccessDenied, "Users of a container do not linger")
			},
			"PowerOff": off, "PowerOffWithFlags": offWithFlags, "Reboot": off, "RebootWithFlags": offWithFlags,
			"Halt": off, "HaltWithFlags": offWithFlags,
			"Suspend": noSleep, "SuspendWithFlags": noSleepWithFlags, "Hibernate": noSleep, "HibernateWithFlags": noSleepWithFlags,
			"HybridSleep": noSleep, "HybridSleepWithFlags": noSleepWithFlags,
			"SuspendThenHibernate": noSleep, "SuspendThenHibernateWithFlags": noSleepWithFlags,
			"CanPowerOff": can("yes"), "CanReboot": can("yes"), "CanHalt": can("yes"), "CanSuspend": can("na"), "CanHibernate": can("na"),
			"CanHybridSleep": can("na"), "CanSuspendThenHibernate": can("na"), "CanRebootParameter": can("na"),
			"CanRebootToFirmwareSetup": can("na"), "CanRebootToBootLoaderMenu": can("na"), "CanRebootToBootLoaderEntry": can("na"),
		},
		props: map[string]prop{
			"NAutoVTs": constant(uint32(0)), "KillOnlyUsers": constant([]string{}), "KillExcludeUsers": constant([]string{}),
			"KillUserProcesses": constant(true), "RebootParameter": {func() any { return "" }, silent},
			"RebootToFirmwareSetup": {func() any { return false }, silent}, "RebootToBootLoaderMenu": {func() any { return ^uint64(0) }, silent},
			"RebootToBootLoaderEntry": {func() any { return "" }, silent}, "BootLoaderEntries": constant([]string{}),
			"IdleHint":               live(func() any { return l.managerIdle() }),
			"IdleSinceHint":          live(func() any { return l.since(l.managerIdle()) }),
			"IdleSinceHintMonotonic": live(func() any { return l.sinceMonotonic(l.managerIdle()) }),
			"BlockInhibited":         live(func() any { return l.inhibited("block") }),
			"DelayInhibited":         live(func() any { return l.inhibited("delay") }),
			"InhibitDelayMaxUSec":    constant(uint64(inhibitDelayMost.Microseconds())), "UserStopDelayUSec": constant(uint64(0)),
			"HandlePowerKey": constant("ignore"), "HandlePowerKeyLongPress": constant("ignore"), "HandleRebootKey": constant("ignore"),
			"HandleRebootKeyLongPress": constant("ignore"), "HandleSuspendKey": constant("ignore"), "HandleSuspendKeyLongPress": constant("ignore"),
			"HandleHibernateKey": constant("ignore"), "HandleHibernateKeyLongPress": constant("ignore"), "HandleLidSwitch": constant("ignore"),
			"HandleLidSwitchExternalPower": constant("ignore"), "HandleLidSwitchDocked": constant("ignore"),
			"HoldoffTimeoutUSec": constant(uint64(0)), "IdleAction": constant("ignore"), "IdleActionUSec": constant(uint64(0)),
			"PreparingForShutdown": quiet(func() any { return l.preparing }), "PreparingForSleep": quiet(func() any { return false }),
			"ScheduledShutdown": quiet(func() any { return scheduled{} }), "Docked": quiet(func() any { return false }),
			"LidClosed": quiet(func() any { return false }), "OnExternalPower": quiet(func() any { return true }),
			"RemoveIPC": constant(false), "InhibitorsMax": constant(uint64(inhibitorsMost)),
			"NCurrentInhibitors": quiet(func() any { return uint64(len(l.inhibitors)) }),
			"SessionsMax":        constant(uint64(1)), "NCurrentSessions": quiet(func() any { return uint64(1) }),
		}}
}

func (l *login) session() iface {
	return iface{name: ifaceSession, signals: map[string]string{"Lock": "", "Unlock": "", "PauseDevice": "u u s", "ResumeDevice": "u u h"},
		methods: map[string]any{
			"Terminate":      func() error { return l.terminate() },
			"Activate":       func() error { return nil },
			"Lock":           func() error { return l.lock("Lock", nil) },
			"Unlock":         func() error { return l.lock("Unlock", nil) },
			"SetIdleHint":    l.setIdleHint,
			"SetLockedHint":  l.setLockedHint,
			"Kill":           func(who string, sig int32) error { return l.kill(who, sig)() },
			"TakeControl":    l.takeControl,
			"ReleaseControl": l.releaseControl,
			"SetType":        l.setType,
			"SetDisplay":     l.setDisplay,
			"TakeDevice":     l.takeDevice,
			"ReleaseDevice": func(c caller, _, _ uint32) error {
				return first(l.inControl(c), errorf(errDeviceNotTaken, "Device not taken"))
			},
			"PauseDeviceComplete": func(c caller, _, _ uint32) error {
				return first(l.inControl(c), errorf(errDeviceNotTaken, "Device not taken"))
			},
			"SetBrightness": func(_, _ string, _ uint32) error {
				return errorf(errNotSupported, "Your session has no seat, refusing.")
			},
		},
		props: map[string]prop{
			"Id": constant(sessionID), "User": constant(numbered{uint32(l.h.uid), l.userPath()}), "Name": constant(l.h.user),
			"Timestamp": constant(usec(l.began)), "TimestampMonotonic": constant(l.beganMonotonic), "VTNr": constant(uint32(0)),
			"Seat": constant(nobody), "TTY": constant(""), "Display": live(func() any { return l.display }), "Remote": constant(false),
			"RemoteHost": constant(""), "RemoteUser": constant(""), "Service": constant("berth"), "Desktop": constant(l.h.desktop),
			"Scope": constant(""), "Leader": constant(uint32(1)), // the session's first process
			"Audit": constant(uint32(0)), "Type": live(func() any { return l.kind }), "Class": constant("user"),
			"Active": live(func() any { return !l.terminated }), "State": live(func() any { return l.state() }),
			"IdleHint":               live(func() any { return l.idle }),
			"IdleSinceHint":          live(func() any { return l.since(true) }),
			"IdleSinceHintMonotonic": live(func() any { return l.sinceMonotonic(true) }),
			"LockedHint":             live(func() any { return l.locked }),
		}}
}

func (l *login) user() iface {
	here := named{sessionID, sessionPath}
	return iface{name: ifaceUser, methods: map[string]any{
		"Terminate": func() error { return l.terminate() },
		"Kill":      func(sig int32) error { return l.kill("all", sig)() },
	}, props: map[string]prop{
		"UID": constant(uint32(l.h.uid)), "GID": constant(uint32(l.h.gid)), "Name": constant(l.h.user), "Timestamp": constant(usec(l.began)),
		"TimestampMonotonic": constant(l.beganMonotonic), "RuntimePath": constant(l.h.runtime), "Service": constant(""), "Slice": constant(""),
		"Display": live(func() any { return here }), "State": quiet(func() any { return l.state() }),
		"Sessions":               quiet(func() any { return []named{here} }),
		"IdleHint":               live(func() any { return l.idle }),
		"IdleSinceHint":          live(func() any { return l.since(true) }),
		"IdleSinceHintMonotonic": live(func() any { return l.sinceMonotonic(true) }),
		"Linger":                 quiet(func() any { return false }),
	}}
}

func (l *login) seat() iface {
	no := errorf(errNotSupported, "A seat without virtual terminals")
	return iface{name: ifaceSeat, methods: map[string]any{
		"Terminate": func() error { return nil },
		"ActivateSession": func(id string) error {
			return first(l.checkSession(id), errorf(errSessionNotOnSeat, "Session %s not on seat %s", id, seatID))
		},
		"SwitchTo":         func(uint32) error { return no },
		"SwitchToNext":     func() error { return no },
		"SwitchToPrevious": func() error { return no },
	}, props: map[string]prop{
		"Id": constant(seatID), "ActiveSession": live(func() any { return nobody }), "CanTTY": constant(false), "CanGraphical": live(func() any { return false }),
		"Sessions": quiet(func() any { return []named{} }), "IdleHint": live(func() any { return true }),
		"IdleSinceHint": live(func() any { return uint64(0) }), "IdleSinceHintMonotonic": live(func() any { return uint64(0) }),
	}}
}

// first returns the first error of steps, which are errors or functions that return one and are called only if all
// before them are nil.
func first(steps ...any) error {
	for _, s := range steps {
		var err error
		switch s := s.(type) {
		case error:
			err = s
		case func() error:
			err = s()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *login) checkSession(id string) error {
	// logind takes "" for the caller's own session, as it does "self" and "auto".
	if id == sessionID || id == "" || id == "self" || id == "auto" {
		return nil
	}
	return errorf(errNoSuchSession, "No session '%s' known", id)
}

// checkUser accepts the user, and ^0 for the caller's, who can be nobody else.
func (l *login) checkUser(uid uint32) error {
	if uid == uint32(l.h.uid) || uid == ^uint32(0) {
		return nil
	}
	return errorf(errNoSuchUser, "User ID %d is not logged in or lingering", uid)
}

func (l *login) checkSeat(id string) error {
	switch id {
	case seatID:
		return nil
	case "", "self", "auto":
		return errorf(errNoSuchSeat, "Session has no seat.")
	}
	return errorf(errNoSuchSeat, "No seat '%s' known", id)
}

func (l *login) getSessionByPID(pid uint32) (dbus.ObjectPath, error) {
	// 0 is the caller. The pod's processes are the session's, and no others are to be seen.
	if pid != 0 && !l.h.alive(pid) {
		return "/", errorf(errNoSessionForPID, "PID %d does not belong to any known session", pid)
	}
	return sessionPath, nil
}

func (l *login) getUserByPID(pid uint32) (dbus.ObjectPath, error) {
	if pid != 0 && !l.h.alive(pid) {
		return "/", errorf(errNoUserForPID, "PID %d does not belong to any logged in user or lingering user", pid)
	}
	return l.userPath(), nil
}

func (l *login) lock(signal string, err error) error {
	if err == nil {
		l.say(sessionPath, ifaceSession+"."+signal)
	}
	return err
}

func (l *login) state() string {
	if l.terminated {
		return "closing"
	}
	return "active"
}

// Idle hints

func (l *login) graphical() bool { return l.kind == "x11" || l.kind == "wayland" || l.kind == "mir" }

func (l *login) setIdleHint(idle bool) error {
	if !l.graphical() {
		return errorf(errNotSupported, "Idle hint control is not supported on non-graphical sessions.")
	}
	if idle != l.idle {
		l.idle, l.idleSince, l.idleMonotonic = idle, l.h.now(), l.h.monotonic()
	}
	return nil
}

func (l *login) setLockedHint(locked bool) error {
	if !l.graphical() {
		return errorf(errNotSupported, "Session does not support lock screen.")
	}
	l.locked = locked
	return nil
}

// managerIdle: the whole is idle when the session is and nobody blocks it.
func (l *login) managerIdle() bool { return l.idle && !l.isInhibited("idle", "block") }

func (l *login) since(shown bool) uint64 {
	if l.idleSince.IsZero() || !shown {
		return 0
	}
	return usec(l.idleSince)
}

func (l *login) sinceMonotonic(shown bool) uint64 {
	if !shown {
		return 0
	}
	return l.idleMonotonic
}

// Inhibitors

func (l *login) inhibit(c caller, what, who, why, mode string) (dbus.UnixFD, error) {
	words := strings.Split(what, ":")
	slices.SortFunc(words, func(a, b string) int { return slices.Index(whats, a) - slices.Index(whats, b) })
	words = slices.Compact(words)
	switch {
	case slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(whats, w) }):
		return 0, errorf(errInvalidArgs, "Invalid what specification %s", what)
	case mode != "block" && mode != "delay":
		return 0, errorf(errInvalidArgs, "Invalid mode specification %s", mode)
	case mode == "delay" && slices.ContainsFunc(words, func(w string) bool { return w != "shutdown" && w != "sleep" }):
		return 0, errorf(errInvalidArgs, "Delay inhibitors only supported for shutdown and sleep")
	case l.preparing && slices.Contains(words, "shutdown"):
		return 0, errorf(errInProgress, "The operation inhibition has been requested for is already running")
	case len(l.inhibitors) >= inhibitorsMost:
		return 0, errorf(errLimitsExceeded, "Maximum number of inhibitors (%d) reached, refusing further inhibitors.", inhibitorsMost)
	}
	n := l.next
	fd, err := l.lease(func() { delete(l.inhibitors, n) })
	if err != nil {
		return 0, err
	}
	l.next++
	l.inhibitors[n] = inhibitor{words, who, why, mode, c.uid, c.pid}
	return fd, nil
}

func (l *login) listInhibitors() []inhibitorRow {
	out := []inhibitorRow{}
	for n := range l.next {
		if i, ok := l.inhibitors[n]; ok {
			out = append(out, inhibitorRow{strings.Join(i.what, ":"), i.who, i.why, i.mode, i.uid, i.pid})
		}
	}
	return out
}

func (l *login) isInhibited(what, mode string) bool {
	for _, i := range l.inhibitors {
		if i.mode == mode && slices.Contains(i.what, what) {
			return true
		}
	}
	return false
}

func (l *login) inhibited(mode string) string {
	var out []string
	for _, w := range whats {
		if l.isInhibited(w, mode) {
			out = append(out, w)
		}
	}
	return strings.Join(out, ":")
}

// The end

// shutDown is PowerOff, Reboot and Halt: in a session they differ in name only.
func (l *login) shutDown() error {
	if l.preparing || l.terminated {
		return errorf(errInProgress, "There's already a shutdown or sleep operation in progress")
	}
	for _, i := range l.inhibitors {
		if i.mode == "block" && slices.Contains(i.what, "shutdown") {
			return errorf(errAccessDenied, "Operation is inhibited by %q (PID %d): %s", i.who, i.pid, i.why)
		}
	}
	l.preparing, l.deadline = true, l.h.now().Add(inhibitDelayMost)
	l.say(pathLogin, ifaceManager+".PrepareForShutdown", true)
	return nil
}

func (l *login) noSleep() error {
	return errorf(errSleepNotSupported, "Sleep verb not supported")
}

func (l *login) terminate() error {
	if !l.terminated {
		l.terminated = true
		l.say(pathLogin, ifaceManager+".SessionRemoved", sessionID, sessionPath)
	}
	return nil
}

// kill ends the session if the signal is one that ends programs. Others have nobody to go to: the processes of a session
// are each other's, not this one's.
func (l *login) kill(who string, sig int32) func() error {
	return func() error {
		switch {
		case who != "" && who != "all" && who != "leader":
			return errorf(errInvalidArgs, "Invalid who parameter '%s'", who)
		case sig < 1 || sig > 64:
			return errorf(errInvalidArgs, "Invalid signal %d", sig)
		case !slices.Contains([]int32{1, 2, 3, 6, 9, 15}, sig): // HUP INT QUIT ABRT KILL TERM
			return errorf(errNotSupported, "Only signals that end a session can be sent to it, not %d", sig)
		}
		return l.terminate()
	}
}

// over implements ending.
func (l *login) over() (bool, time.Time) {
	switch {
	case l.terminated:
		return true, time.Time{}
	case !l.preparing:
		return false, time.Time{}
	case l.isInhibited("shutdown", "delay") && l.h.now().Before(l.deadline):
		return false, l.deadline
	}
	return true, time.Time{}
}

// Control

func (l *login) takeControl(c caller, force bool) error {
	switch {
	case force && c.uid != 0:
		return errorf(errAccessDenied, "Only root may force control")
	case l.controller != "" && l.controller != c.name && !force && l.h.present(l.controller):
		return errorf(errSessionBusy, "Session is already controlled")
	}
	l.controller = c.name
	return nil
}

func (l *login) inControl(c caller) error {
	if l.controller == "" || l.controller != c.name {
		return errorf(errNotInControl, "You are not in control of this session")
	}
	return nil
}

func (l *login) releaseControl(c caller) error {
	if err := l.inControl(c); err != nil {
		return err
	}
	// What the controller changed goes with it.
	l.controller, l.kind = "", l.h.kind
	return nil
}

func (l *login) setType(c caller, kind string) error {
	if !slices.Contains([]string{"unspecified", "tty", "x11", "wayland", "mir", "web"}, kind) {
		return errorf(errInvalidArgs, "Invalid session type '%s'", kind)
	}
	if err := l.inControl(c); err != nil {
		return errorf(errNotInControl, "You must be in control of this session to set type")
	}
	l.kind = kind
	return nil
}

func (l *login) setDisplay(c caller, display string) error {
	if err := l.inControl(c); err != nil {
		return errorf(errNotInControl, "You must be in control of this session to set display")
	}
	if !l.graphical() {
		return errorf(errNotSupported, "Setting display is only supported on graphical sessions")
	}
	l.display = display
	return nil
}

// takeDevice refuses: there are no devices without a seat.
func (l *login) takeDevice(c caller, major, minor uint32) (dbus.UnixFD, bool, error) {
	if err := l.inControl(c); err != nil {
		return 0, false, err
	}
	return 0, false, errorf(errAccessDenied, "Device %d:%d is not on the session's seat, which it has none", major, minor)
}
