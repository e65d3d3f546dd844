package systembus

import (
	"regexp"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

const (
	nameLocale = "org.freedesktop.locale1"
	pathLocale = dbus.ObjectPath("/org/freedesktop/locale1")
)

// locale is org.freedesktop.locale1. Like systemd-localed it changes nothing that runs: what is set is what a next
// log-in would have. Here it lasts as long as the session.
type locale struct {
	locale                          []string // NAME=VALUE, sorted
	layout, model, variant, options string
	keymap, keymapToggle            string
	objs                            []*object
}

// localeNames are the variables of locale.conf(5).
var localeNames = []string{"LANG", "LANGUAGE", "LC_ADDRESS", "LC_COLLATE", "LC_CTYPE", "LC_IDENTIFICATION", "LC_MEASUREMENT",
	"LC_MESSAGES", "LC_MONETARY", "LC_NAME", "LC_NUMERIC", "LC_PAPER", "LC_TELEPHONE", "LC_TIME"}

func localeName(name string) bool { return slices.Contains(localeNames, name) }

var (
	localeValue   = regexp.MustCompile(`^[A-Za-z0-9_.@:-]{1,128}$`)
	keyboardValue = regexp.MustCompile(`^[A-Za-z0-9_.,:()+/-]{0,256}$`)
)

func newLocale(h host) *locale {
	l := &locale{locale: slices.Clone(h.locale)}
	if l.locale == nil {
		l.locale = []string{}
	}
	var layouts, variants []string
	for _, k := range h.keyboard {
		layout, variant, _ := strings.Cut(strings.TrimSuffix(k, ")"), "(")
		layouts, variants = append(layouts, layout), append(variants, variant)
	}
	l.layout = strings.Join(layouts, ",")
	if slices.ContainsFunc(variants, func(v string) bool { return v != "" }) {
		l.variant = strings.Join(variants, ",") // as many as there are layouts, empty ones too (xkeyboard-config(7))
	}
	text := func(p *string) prop { return live(func() any { return *p }) }
	l.objs = []*object{{path: pathLocale, ifaces: []iface{{name: nameLocale, methods: map[string]any{
		"SetLocale": l.setLocale, "SetX11Keyboard": l.setX11Keyboard, "SetVConsoleKeyboard": l.setVConsoleKeyboard,
	}, props: map[string]prop{
		"Locale": live(func() any { return l.locale }), "X11Layout": text(&l.layout), "X11Model": text(&l.model), "X11Variant": text(&l.variant),
		"X11Options": text(&l.options), "VConsoleKeymap": text(&l.keymap), "VConsoleKeymapToggle": text(&l.keymapToggle),
	}}}}}
	return l
}

func (l *locale) name() string       { return nameLocale }
func (l *locale) objects() []*object { return l.objs }

func (l *locale) setLocale(assignments []string, _ bool) error {
	to := map[string]string{}
	for _, a := range assignments {
		name, value, ok := strings.Cut(a, "=")
		if !ok { // a word alone is LANG, says localed
			name, value = "LANG", a
		}
		if !localeName(name) || value != "" && !localeValue.MatchString(value) {
			return errorf(errInvalidArgs, "Invalid Locale data.")
		}
		if _, twice := to[name]; twice {
			return errorf(errInvalidArgs, "Locale variable %s is given twice", name)
		}
		to[name] = value
	}
	list := []string{}
	for _, name := range localeNames { // sorted
		if v := to[name]; v != "" {
			list = append(list, name+"="+v)
		}
	}
	l.locale = list
	return nil
}

func (l *locale) setX11Keyboard(layout, model, variant, options string, _, _ bool) error {
	for _, s := range []string{layout, model, variant, options} {
		if !keyboardValue.MatchString(s) {
			return errorf(errInvalidArgs, "Received invalid keyboard data: %q", s)
		}
	}
	l.layout, l.model, l.variant, l.options = layout, model, variant, options
	return nil
}

func (l *locale) setVConsoleKeyboard(keymap, toggle string, _, _ bool) error {
	if !keyboardValue.MatchString(keymap) || !keyboardValue.MatchString(toggle) {
		return errorf(errInvalidArgs, "Received invalid keymap data")
	}
	l.keymap, l.keymapToggle = keymap, toggle
	return nil
}
