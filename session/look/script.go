package look

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"berth/profiles"
)

// Change is what tells the programs of a running session of its new look: scripts and writers first, messages then.
type Change struct {
	Scripts  []Script
	Writers  []string // components that have ended and shall run once more
	Messages []Message
}

// Script is run by sh in a component, with DISPLAY and the session bus in its environment.
type Script struct{ Component, Text string }

// Message is one on the session bus: a signal, or with Dest a method call. Args are values that godbus can marshal.
type Message struct {
	Dest, Path, Member string
	Args               []any
}

// Changes returns what is to be done in a session with plan p whose keys, such as "look.dark", have changed. What did not
// change is left alone: the user may have chosen something else meanwhile.
func Changes(p *profiles.Plan, keys []string) Change {
	var out Change
	q := narrowed(p, keys)
	for _, d := range desktops {
		who, text := agent(p.Components, d), script(d, &q, p, true)
		_, writer := p.Component(prefix + string(d))
		switch {
		case text == "":
			continue
		case who != "":
			out.Scripts = append(out.Scripts, Script{who, text + "exit $failed\n"})
		case writer:
			out.Writers = append(out.Writers, prefix+string(d))
		default:
			continue
		}
		if d == kde {
			out.Messages = append(out.Messages, kdeMessages(&q)...)
		}
	}
	if c, ok := p.Component(xsettingsName); ok && q.Look != (profiles.Look{}) {
		out.Scripts = append(out.Scripts, Script{c.Name, tell("HUP", "xsettingsd")})
	}
	if p.Locale.InputMethod == "fcitx5" && (q.Look.Dark != nil || q.Look.Font != "") {
		out.Messages = append(out.Messages, Message{Dest: "org.fcitx.Fcitx5", Path: "/controller",
			Member: "org.fcitx.Fcitx.Controller1.ReloadAddonConfig", Args: []any{"classicui"}})
	}
	return out
}

// narrowed is p with nothing but keys in its look and keyboard, and what decides with them.
func narrowed(p *profiles.Plan, keys []string) profiles.Plan {
	q := *p
	q.Look, q.Locale.Keyboard = profiles.Look{}, nil
	for _, k := range keys {
		switch k {
		case "look.dark":
			q.Look.Dark, q.Look.Theme, q.Look.Icons = p.Look.Dark, p.Look.Theme, p.Look.Icons
		case "look.font":
			q.Look.Font = p.Look.Font
		case "look.cursor":
			q.Look.Cursor = p.Look.Cursor
		case "look.icons":
			q.Look.Icons = p.Look.Icons
		case "look.theme":
			q.Look.Theme = p.Look.Theme
		case "look.scale":
			q.Look.Scale = p.Look.Scale
		case "locale.keyboard":
			q.Locale.Keyboard = p.Locale.Keyboard
		}
	}
	return q
}

// tell sends a signal to every program of a name: the components of a session share their processes, and not every image
// has a program for it.
func tell(signal, program string) string {
	return fmt.Sprintf(`for p in /proc/[0-9]*; do
    read -r name 2>/dev/null <"$p/comm" && [ "$name" = %s ] && kill -%s "${p#/proc/}"
done
true
`, program, signal)
}

// script writes the look of p into d's settings; with live, it also tells d's programs. "" if there is nothing to write. whole
// is the plan of which p may be a part.
// It is POSIX shell with awk, says on stderr what failed, and goes on: one setting that a release of the desktop does not
// have is no reason to leave out the others. At the end $failed is 1 if anything did.
func script(d desktop, p, whole *profiles.Plan, live bool) string {
	if !lookWanted(p) {
		return ""
	}
	switch d {
	case xfce:
		return begin(xfceScript(p, whole))
	case gnome:
		return begin(gnomeScript(p, live))
	case mate:
		return begin(dconfScript(mateKeys(p)))
	case kde:
		return begin(kdeScript(p))
	case lxqt:
		return begin(lxqtScript(p, whole, live))
	case openbox:
		return begin(openboxScript(chosen(p.Look, openbox).gtk, p, live))
	}
	return ""
}

// begin puts in front of a script what all have there.
func begin(script string) string {
	if script == "" {
		return ""
	}
	return "failed=0\n" + script
}

// quote makes a word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// xfceScript writes xfconf. Its programs follow by themselves.
func xfceScript(p, whole *profiles.Plan) string {
	var b strings.Builder
	put := func(channel, property, typ, value string) {
		if value != "" {
			fmt.Fprintf(&b, "put %s %s %s %s\n", channel, property, typ, quote(value))
		}
	}
	t := chosen(p.Look, xfce)
	put("xsettings", "/Net/ThemeName", "string", t.gtk)
	if t.gtk != "" || p.Look.Scale != 0 { // a theme may have none of the window manager's
		frame := frameTheme(whole)
		fmt.Fprintf(&b, "[ ! -d %s ] || put xfwm4 /general/theme string %s\n", quote("/usr/share/themes/"+frame+"/xfwm4"), quote(frame))
	}
	put("xsettings", "/Net/IconThemeName", "string", t.icons)
	if p.Look.Dark != nil {
		put("xsettings", "/Gtk/ApplicationPreferDarkTheme", "bool", fmt.Sprint(*p.Look.Dark))
	}
	if family, points, ok := profiles.ParseFont(p.Look.Font); ok {
		put("xsettings", "/Gtk/FontName", "string", p.Look.Font)
		put("xfwm4", "/general/title_font", "string", fmt.Sprintf("%s Bold %v", family, max(points-1, 6)))
	}
	put("xsettings", "/Gtk/CursorThemeName", "string", p.Look.Cursor)
	if p.Look.Scale != 0 {
		s := scaleOf(p)
		put("xsettings", "/Gdk/WindowScalingFactor", "int", fmt.Sprint(s.window))
		put("xsettings", "/Xft/DPI", "int", fmt.Sprint(s.dpi))
		put("xsettings", "/Gdk/UnscaledDPI", "int", fmt.Sprint(1024*s.unscaled()))
		put("xsettings", "/Gtk/CursorThemeSize", "int", fmt.Sprint(s.cursor))
	}
	if b.Len() == 0 {
		return ""
	}
	return "put() {\n    xfconf-query -n -c \"$1\" -p \"$2\" -t \"$3\" -s \"$4\" || failed=1\n}\n" + b.String()
}

// frameTheme is xfwm4's theme. Frames are made of pictures, which do not grow: where text does, it is the window manager's
// own, which has larger ones and takes GTK's colours.
func frameTheme(p *profiles.Plan) string {
	switch s := p.Look.Scale; {
	case s >= 1.75:
		return "Default-xhdpi"
	case s >= 1.25:
		return "Default-hdpi"
	}
	return cmp.Or(chosen(p.Look, xfce).gtk, light[xfce].gtk)
}

// openboxScript writes rc.xml with theme and the font of p, in a copy of the image's where the home has none.
func openboxScript(theme string, p *profiles.Plan, live bool) string {
	family, points, _ := profiles.ParseFont(p.Look.Font)
	if theme == "" && family == "" {
		return ""
	}
	if theme != "" {
		theme = fmt.Sprintf("[ ! -d %s ] || edit \"$rc\" -v name=%s '\n", quote("/usr/share/themes/"+theme+"/openbox-3"), quote(theme)) +
			`    /<theme>/ { inside = 1 }
    inside && /<name>/ { sub(/<name>[^<]*/, "<name>" name); inside = 0 }
    { print }'
`
	}
	if family != "" {
		family = fmt.Sprintf("edit \"$rc\" -v name=%s -v size=%v '\n", quote(family), points) +
			`    /<font / { inside = 1 }
    inside { sub(/<name>[^<]*/, "<name>" name); sub(/<size>[^<]*/, "<size>" size) }
    /<\/font>/ { inside = 0 }
    { print }'
`
	}
	script := iniFunctions + `rc=$conf/openbox/rc.xml
[ -f "$rc" ] || { mkdir -p "${rc%/*}" && cp /etc/xdg/openbox/rc.xml "$rc"; } || failed=1
` + theme + family
	if live {
		script += "openbox --reconfigure || failed=1\n"
	}
	return script
}

// dconfScript loads keys, by directory, into dconf; its programs follow by themselves.
func dconfScript(keys map[string][]entry) string {
	if len(keys) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("dconf load / <<'EOF' || failed=1\n")
	for _, dir := range slices.Sorted(maps.Keys(keys)) {
		fmt.Fprintf(&b, "[%s]\n", dir)
		for _, e := range keys[dir] {
			fmt.Fprintf(&b, "%s=%s\n", e.key, e.value)
		}
	}
	b.WriteString("EOF\n")
	return b.String()
}

// text is a string in GVariant's text format; none here has a quote in it.
func text(s string) string {
	if s == "" {
		return ""
	}
	return "'" + s + "'"
}

func dconfKeys() (keys map[string][]entry, add func(dir, key, value string)) {
	keys = map[string][]entry{}
	return keys, func(dir, key, value string) {
		if value != "" {
			keys[dir] = append(keys[dir], entry{key: key, value: value})
		}
	}
}

// themeKeys adds what GNOME and MATE have under the same names, in the directories iface and wm.
func themeKeys(add func(dir, key, value string), iface, wm string, t themes, l profiles.Look) {
	add(iface, "gtk-theme", text(t.gtk))
	add(iface, "icon-theme", text(t.icons))
	if family, points, ok := profiles.ParseFont(l.Font); ok {
		add(iface, "font-name", text(l.Font))
		add(wm, "titlebar-font", text(fmt.Sprintf("%s Bold %v", family, points)))
	}
}

// gnomeScript writes dconf. The scale of windows is the monitor's, which Mutter is told over the bus; gjs comes with the shell.
func gnomeScript(p *profiles.Plan, live bool) string {
	s := dconfScript(gnomeKeys(p))
	if live && p.Look.Scale != 0 {
		s += fmt.Sprintf("gjs -c '%s' || failed=1\n", fmt.Sprintf(monitorScript, MonitorScale(p)))
	}
	return s
}

// monitorScript gives all monitors a scale (the interface org.gnome.Mutter.DisplayConfig) where Mutter runs; 1 means until the
// session ends.
const monitorScript = `
const {Gio, GLib} = imports.gi;
const bus = Gio.bus_get_sync(Gio.BusType.SESSION, null);
const name = "org.gnome.Mutter.DisplayConfig", path = "/org/gnome/Mutter/DisplayConfig";
const call = (to, at, member, args) => bus.call_sync(to, at, to, member, args, null, Gio.DBusCallFlags.NO_AUTO_START, -1, null).recursiveUnpack();
const owned = call("org.freedesktop.DBus", "/", "NameHasOwner", new GLib.Variant("(s)", [name]));
if (owned[0]) {
    const [serial, monitors, logical] = call(name, path, "GetCurrentState", null);
    const mode = c => monitors.find(m => m[0][0] === c)[1].find(m => m[6]["is-current"])[0];
    const config = logical.map(([x, y, , turn, primary, of]) => [x, y, %d, turn, primary, of.map(([c]) => [c, mode(c), {}])]);
    call(name, path, "ApplyMonitorsConfig", new GLib.Variant("(uua(iiduba(ssa{sv}))a{sv})", [serial, 1, config, {}]));
}
`

// gnomeKeys are the schemas org.gnome.desktop.interface, .wm.preferences and .input-sources.
func gnomeKeys(p *profiles.Plan) map[string][]entry {
	const iface, wm, input = "org/gnome/desktop/interface", "org/gnome/desktop/wm/preferences", "org/gnome/desktop/input-sources"
	keys, add := dconfKeys()
	t := chosen(p.Look, gnome)
	if p.Look.Dark != nil {
		scheme := "default"
		if *p.Look.Dark {
			scheme = "prefer-dark"
		}
		add(iface, "color-scheme", text(scheme))
	}
	themeKeys(add, iface, wm, t, p.Look)
	add(iface, "cursor-theme", text(p.Look.Cursor))
	if p.Look.Scale != 0 {
		window := MonitorScale(p)
		add(iface, "scaling-factor", fmt.Sprintf("uint32 %d", window))
		add(iface, "text-scaling-factor", decimal(p.Look.Scale/float64(window)))
		add(iface, "cursor-size", fmt.Sprint(scaleOf(p).cursor/window))
	}
	if len(p.Locale.Keyboard) > 0 {
		var sources []string
		for _, k := range p.Locale.Keyboard {
			l, v := splitLayout(k)
			sources = append(sources, fmt.Sprintf("('xkb', '%s')", strings.TrimSuffix(l+"+"+v, "+")))
		}
		add(input, "sources", "["+strings.Join(sources, ", ")+"]")
		add(input, "mru-sources", "["+strings.Join(sources, ", ")+"]")
		options := "@as []"
		if o := KeyboardOf(p).Options; o != "" {
			options = strv([]string{o})
		}
		add(input, "xkb-options", options)
	}
	return keys
}

// decimal is a double in GVariant's text format.
func decimal(f float64) string {
	s := fmt.Sprint(math.Round(f*1000) / 1000)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// mateKeys are the schemas org.mate.interface, .Marco.general, .peripherals-mouse and .font-rendering.
func mateKeys(p *profiles.Plan) map[string][]entry {
	const iface, wm, mouse, font = "org/mate/desktop/interface", "org/mate/marco/general", "org/mate/desktop/peripherals/mouse", "org/mate/desktop/font-rendering"
	keys, add := dconfKeys()
	t := chosen(p.Look, mate)
	add(wm, "theme", text(t.own))
	themeKeys(add, iface, wm, t, p.Look)
	add(mouse, "cursor-theme", text(p.Look.Cursor))
	if p.Look.Scale != 0 {
		s := scaleOf(p)
		add(iface, "window-scaling-factor", fmt.Sprint(s.window))
		add(font, "dpi", decimal(float64(s.unscaled())))
		add(mouse, "cursor-size", fmt.Sprint(s.cursor/s.window))
	}
	return keys
}

// iniFunctions are functions of the shell on files in KConfig's and QSettings' format: ini FILE GROUP KEY VALUE sets one key;
// colours FILE SCHEME puts the groups of a colour scheme of KDE's in place of those that FILE has.
const iniFunctions = `conf=${XDG_CONFIG_HOME:-$HOME/.config}
edit() { # FILE AWK-OPTIONS...: FILE through awk
    file=$1
    shift
    mkdir -p "${file%/*}" && touch "$file" && awk "$@" "$file" >"$file.berth" && mv "$file.berth" "$file" || failed=1
}
ini() {
    edit "$conf/$1" -v group="[$2]" -v key="$3" -v value="$4" '
        $0 == group { print; if (!done) print key "=" value; done = inside = 1; next }
        /^\[/ { inside = 0 }
        inside && index($0, key "=") == 1 { next }
        { print }
        END { if (!done) print "\n" group "\n" key "=" value }'
}
`

const coloursFunction = `colours() {
    scheme=
    for dir in "${XDG_DATA_HOME:-$HOME/.local/share}" /usr/share; do
        [ -z "$scheme" ] && [ -f "$dir/color-schemes/$2.colors" ] && scheme=$dir/color-schemes/$2.colors
    done
    [ -n "$scheme" ] || return 0
    edit "$conf/$1" -v scheme="$scheme" '
        /^\[/ { skip = /^\[(Colors:|ColorEffects:)/ }
        !skip { print }
        END {
            while ((getline line <scheme) > 0) {
                if (line ~ /^\[/) copy = line ~ /^\[(Colors:|ColorEffects:)/
                if (copy) print line
            }
        }'
    # The window manager shares its group with a font.
    awk '/^\[/ { wm = $0 == "[WM]" } wm && /=/' "$scheme" | while IFS='=' read -r key value; do
        ini "$1" WM "$key" "$value"
    done
}
`

// kdeScript writes KDE's files in the home.
func kdeScript(p *profiles.Plan) string {
	var b strings.Builder
	files := kdeEntries(p)
	if len(files) == 0 {
		return ""
	}
	b.WriteString(iniFunctions)
	scheme := ""
	if p.Look.Dark != nil {
		scheme = chosen(p.Look, kde).own
		b.WriteString(coloursFunction)
		fmt.Fprintf(&b, "colours kdeglobals %s\n", scheme)
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		for _, e := range files[file] {
			fmt.Fprintf(&b, "ini %s %s %s %s\n", file, e.group, e.key, quote(e.value))
		}
	}
	return b.String()
}

// kdeMessages tell KDE's programs of a change. Some reread what is in files when they hear of a key (KConfigWatcher), some
// when they hear of a kind of change (KGlobalSettings::ChangeType, KIconLoader), and fonts have a signal of their own.
func kdeMessages(p *profiles.Plan) []Message {
	var out []Message
	files := kdeEntries(p)
	for _, file := range slices.Sorted(maps.Keys(files)) {
		groups := map[string][][]byte{}
		for _, e := range files[file] {
			groups[e.group] = append(groups[e.group], []byte(e.key))
		}
		if file == "kdeglobals" && p.Look.Dark != nil {
			for _, g := range []string{"View", "Window", "Button", "Selection", "Tooltip", "Complementary", "Header"} {
				groups["Colors:"+g] = [][]byte{[]byte("BackgroundNormal")}
			}
			groups["WM"] = append(groups["WM"], []byte("activeBackground"))
		}
		out = append(out, Message{Path: "/" + file, Member: "org.kde.kconfig.notify.ConfigChanged", Args: []any{groups}})
	}
	changed := func(kind int32) {
		out = append(out, Message{Path: "/KGlobalSettings", Member: "org.kde.KGlobalSettings.notifyChange", Args: []any{kind, int32(0)}})
	}
	if p.Look.Dark != nil {
		changed(0)
	}
	if p.Look.Font != "" {
		out = append(out, Message{Path: "/KDEPlatformTheme", Member: "org.kde.KDEPlatformTheme.refreshFonts"})
		changed(1)
	}
	if chosen(p.Look, kde).icons != "" {
		for group := range int32(6) {
			out = append(out, Message{Path: "/KIconLoader", Member: "org.kde.KIconLoader.iconChanged", Args: []any{group}})
		}
		changed(4)
	}
	if p.Look.Cursor != "" || p.Look.Scale != 0 {
		changed(5)
	}
	if len(p.Locale.Keyboard) > 0 {
		out = append(out, Message{Path: "/Layouts", Member: "org.kde.keyboard.reloadConfig"})
	}
	if len(out) > 0 {
		out = append(out, Message{Dest: "org.kde.KWin", Path: "/KWin", Member: "org.kde.KWin.reconfigure"})
	}
	return out
}

// lxqtScript writes LXQt's files in the home, which its programs watch, and those of Openbox where that manages its windows.
func lxqtScript(p, whole *profiles.Plan, live bool) string {
	var b strings.Builder
	put := func(file, group, key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "ini lxqt/%s.conf %s %s %s\n", file, group, key, quote(value))
		}
	}
	t := chosen(p.Look, lxqt)
	put("lxqt", "General", "theme", t.own)
	put("lxqt", "General", "icon_theme", t.icons)
	if family, points, ok := profiles.ParseFont(p.Look.Font); ok {
		put("lxqt", "Qt", "font", `"`+qtFont(family, points, false)+`"`)
	}
	if p.Look.Dark != nil {
		// QPalette from three colours; without them LXQt takes the style's own (lxqt-qtplugin).
		window, base, highlight := "#efefef", "#ffffff", "#308cc6"
		if *p.Look.Dark {
			window, base, highlight = "#31363b", "#232629", "#3daee9"
		}
		put("lxqt", "Palette", "window_color", window)
		put("lxqt", "Palette", "base_color", base)
		put("lxqt", "Palette", "highlight_color", highlight)
	}
	put("session", "Mouse", "cursor_theme", p.Look.Cursor)
	if p.Look.Scale != 0 {
		put("session", "Mouse", "cursor_size", fmt.Sprint(scaleOf(p).cursor))
	}
	frames := ""
	if slices.ContainsFunc(whole.Components, func(c profiles.Component) bool { return of(c) == lxqt && runs(c, programs[openbox]) }) {
		frames = openboxScript(t.gtk, p, live)
	}
	if b.Len() == 0 {
		return frames
	}
	if frames == "" {
		frames = iniFunctions
	}
	return frames + b.String()
}
