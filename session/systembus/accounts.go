package systembus

import (
	"path"
	"strconv"
	"strings"
	"unicode"

	"github.com/godbus/dbus/v5"
)

const (
	nameAccounts     = "org.freedesktop.Accounts"
	pathAccounts     = dbus.ObjectPath("/org/freedesktop/Accounts")
	ifaceAccountUser = nameAccounts + ".User"

	errAccountsFailed    = nameAccounts + ".Error.Failed"
	errPermissionDenied  = nameAccounts + ".Error.PermissionDenied"
	accountStandard      = int32(0)
	passwordModeRegular  = int32(0)
	longestAccountString = 1024
)

// accounts is org.freedesktop.Accounts with one account, the user's, who may change what accountsservice lets everybody
// change of their own account: how they are shown, not what they are. Changes last as long as the session.
type accounts struct {
	h    host
	objs []*object

	realName, email, language, session, sessionType, xsession, location, icon string
}

type loginRecord struct {
	In, Out int64
	Extra   map[string]dbus.Variant
}

func newAccounts(h host, say say) *accounts {
	a := &accounts{h: h, realName: h.realName, sessionType: h.kind, icon: path.Join(h.home, ".face")}
	for _, kv := range h.locale {
		if lang, ok := strings.CutPrefix(kv, "LANG="); ok {
			a.language = lang
		}
	}
	keep := func(v any) prop { return live(func() any { return v }) }
	text := func(p *string) prop { return live(func() any { return *p }) }
	denied := errorf(errPermissionDenied, "Not authorized")
	noString, noBool, noInt := func(string) error { return denied }, func(bool) error { return denied }, func(int32) error { return denied }
	a.objs = []*object{
		{path: pathAccounts, ifaces: []iface{{name: nameAccounts, signals: map[string]string{"UserAdded": "o", "UserDeleted": "o"},
			methods: map[string]any{
				"ListCachedUsers": func() ([]dbus.ObjectPath, error) { return []dbus.ObjectPath{a.userPath()}, nil },
				"FindUserById": func(id int64) (dbus.ObjectPath, error) {
					if id == int64(h.uid) {
						return a.userPath(), nil
					}
					return "/", errorf(errAccountsFailed, "Failed to look up user with uid %d.", id)
				},
				"FindUserByName": a.byName,
				"CacheUser":      a.byName,
				"UncacheUser":    noString,
				"CreateUser":     func(string, string, int32) (dbus.ObjectPath, error) { return "/", denied },
				"DeleteUser":     func(int64, bool) error { return denied },
			}, props: map[string]prop{
				"DaemonVersion": keep("22.08.8"), "HasNoUsers": keep(false), "HasMultipleUsers": keep(false),
				"AutomaticLoginUsers": keep([]dbus.ObjectPath{}),
			}}}},
		{path: a.userPath(), ifaces: []iface{{name: ifaceAccountUser, signals: map[string]string{"Changed": ""},
			changed: func() { say(a.userPath(), ifaceAccountUser+".Changed") },
			methods: map[string]any{
				"SetRealName": a.set(&a.realName), "SetEmail": a.set(&a.email), "SetLanguage": a.set(&a.language), "SetSession": a.set(&a.session),
				"SetSessionType": a.set(&a.sessionType), "SetXSession": a.set(&a.xsession), "SetLocation": a.set(&a.location),
				"SetIconFile": a.setIconFile,
				"SetUserName": noString, "SetHomeDirectory": noString, "SetShell": noString, "SetLocked": noBool, "SetAccountType": noInt,
				"SetPasswordMode": noInt, "SetPassword": func(string, string) error { return denied }, "SetPasswordHint": noString,
				"SetAutomaticLogin": noBool, "SetUserExpirationPolicy": func(int64) error { return denied },
				"GetPasswordExpirationPolicy": func() (int64, int64, int64, int64, int64, int64, error) {
					return 0, 0, 0, 0, 0, 0, denied
				},
				"SetPasswordExpirationPolicy": func(int64, int64, int64, int64) error { return denied },
			}, props: map[string]prop{
				"Uid": keep(uint64(h.uid)), "UserName": keep(h.user), "RealName": text(&a.realName), "AccountType": keep(accountStandard),
				"HomeDirectory": keep(h.home), "Shell": keep(h.shell), "Email": text(&a.email), "Language": text(&a.language),
				"Session": text(&a.session), "SessionType": text(&a.sessionType), "XSession": text(&a.xsession), "Location": text(&a.location),
				"LoginFrequency": keep(uint64(1)), "LoginTime": keep(h.now().Unix()),
				"LoginHistory": quiet(func() any { return []loginRecord{} }), "IconFile": text(&a.icon), "Saved": keep(false), "Locked": keep(false),
				"PasswordMode": keep(passwordModeRegular), "PasswordHint": keep(""), "AutomaticLogin": keep(false), "SystemAccount": keep(false),
				"LocalAccount": keep(true),
			}}}},
	}
	return a
}

func (a *accounts) name() string       { return nameAccounts }
func (a *accounts) objects() []*object { return a.objs }

func (a *accounts) userPath() dbus.ObjectPath {
	return pathAccounts + "/User" + dbus.ObjectPath(strconv.Itoa(a.h.uid))
}

func (a *accounts) byName(name string) (dbus.ObjectPath, error) {
	if name == a.h.user {
		return a.userPath(), nil
	}
	return "/", errorf(errAccountsFailed, "Failed to look up user with name %s.", name)
}

func (a *accounts) set(field *string) func(string) error {
	return func(v string) error {
		if len(v) > longestAccountString || strings.ContainsFunc(v, unicode.IsControl) {
			return errorf(errAccountsFailed, "invalid value %q", v)
		}
		*field = v
		return nil
	}
}

// setIconFile takes the path as it is: the file lies in the user's home, which is not mounted where this runs. "" is the
// default.
func (a *accounts) setIconFile(file string) error {
	if file == "" {
		file = path.Join(a.h.home, ".face")
	}
	if !path.IsAbs(file) {
		return errorf(errAccountsFailed, "file '%s' is not an absolute path", file)
	}
	return a.set(&a.icon)(file)
}

// realName is the full name of a user in passwd(5), the part of the comment before the first comma.
func realName(passwd string, uid int) string {
	for l := range strings.Lines(passwd) {
		if f := strings.Split(strings.TrimSpace(l), ":"); len(f) == 7 && f[2] == strconv.Itoa(uid) {
			name, _, _ := strings.Cut(f[4], ",")
			return name
		}
	}
	return ""
}
