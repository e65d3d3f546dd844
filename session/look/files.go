package look

import (
	"fmt"
	"strings"

	"berth/profiles"
)

// xsettingsFile is xsettingsd's configuration, below Dir.
const xsettingsFile = "xsettingsd.conf"

// Files returns the files of a plan's look, by their paths below Dir; none if it asks for nothing. They change with the
// look while a session runs.
func Files(p *profiles.Plan) map[string]string {
	out := map[string]string{}
	if lookWanted(p) {
		out[xsettingsFile] = xsettings(p)
		for version := range 2 {
			out[fmt.Sprintf("xdg/gtk-%d.0/settings.ini", 3+version)] = gtkSettings(p, 3+version)
		}
		for name, text := range kdeFiles(p) {
			out["xdg/"+name] = text
		}
		for _, d := range desktops {
			if _, ok := p.Component(prefix + string(d)); ok {
				out[scriptFile(d)] = script(d, p, p, false) + "exit 0\n"
			}
		}
	}
	if p.Locale.InputMethod == "fcitx5" {
		for name, text := range fcitxFiles(p) {
			out["xdg/fcitx5/"+name] = text
		}
	}
	return out
}

// lines collects "KEY=VALUE" lines, leaving out those without a value.
type lines struct{ b strings.Builder }

func (l *lines) group(name string) { fmt.Fprintf(&l.b, "[%s]\n", name) }

func (l *lines) set(key, value string) {
	if value != "" {
		fmt.Fprintf(&l.b, "%s=%s\n", key, value)
	}
}

// gtkSettings is settings.ini of GTK 3 or 4 (the documentation of GtkSettings).
//
// To prefer a dark variant is the one setting that XSETTINGS do not change in GTK: a program that has started with it stays
// dark until it ends. So only those have it that find no theme with a dark name: GTK 4, which the desktops' themes are
// not made for, and whoever names a theme.
func gtkSettings(p *profiles.Plan, version int) string {
	var l lines
	t, s := chosen(p.Look, main(p)), scaleOf(p)
	l.group("Settings")
	l.set("gtk-theme-name", t.gtk)
	l.set("gtk-icon-theme-name", t.icons)
	l.set("gtk-font-name", p.Look.Font)
	l.set("gtk-cursor-theme-name", p.Look.Cursor)
	if p.Look.Scale != 0 {
		l.set("gtk-cursor-theme-size", fmt.Sprint(s.cursor))
		l.set("gtk-xft-dpi", fmt.Sprint(1024*s.dpi))
	}
	if p.Look.Dark != nil && (version == 4 || p.Look.Theme != "") {
		l.set("gtk-application-prefer-dark-theme", digit(*p.Look.Dark))
	}
	return l.b.String()
}

func digit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// xsettings is the configuration of xsettingsd: its own format, names of the XSETTINGS registry and of GTK. All that GTK
// would take from a settings.ini beside it is there, since a manager hides those.
func xsettings(p *profiles.Plan) string {
	var b strings.Builder
	word := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s %q\n", key, value)
		}
	}
	t, s := chosen(p.Look, main(p)), scaleOf(p)
	word("Net/ThemeName", t.gtk)
	word("Net/IconThemeName", t.icons)
	word("Gtk/FontName", p.Look.Font)
	word("Gtk/CursorThemeName", p.Look.Cursor)
	if p.Look.Scale != 0 {
		fmt.Fprintf(&b, "Gtk/CursorThemeSize %d\nXft/DPI %d\nGdk/WindowScalingFactor %d\nGdk/UnscaledDPI %d\n",
			s.cursor, 1024*s.dpi, s.window, 1024*s.unscaled())
	}
	if p.Look.Dark != nil {
		fmt.Fprintf(&b, "Gtk/ApplicationPreferDarkTheme %s\n", digit(*p.Look.Dark))
	}
	// What every manager says; without it text has hard edges.
	b.WriteString("Xft/Antialias 1\nXft/Hinting 1\nXft/HintStyle \"hintslight\"\nXft/RGBA \"none\"\n")
	return b.String()
}

// qtFont is a font as QFont::toString writes it in Qt 5; Qt 6 reads it, too.
func qtFont(family string, points float64, bold bool) string {
	weight := 50
	if bold {
		weight = 75
	}
	return fmt.Sprintf("%s,%v,-1,5,%d,0,0,0,0,0", family, points, weight)
}

// entry is one key of an INI file.
type entry struct{ group, key, value string }

// kdeEntries are the settings of KDE's programs by file, in order: what they read from the home and, for want of that,
// from XDG_CONFIG_DIRS.
func kdeEntries(p *profiles.Plan) map[string][]entry {
	out := map[string][]entry{}
	add := func(file, group, key, value string) {
		if value != "" {
			out[file] = append(out[file], entry{group, key, value})
		}
	}
	t := chosen(p.Look, kde)
	add("kdeglobals", "General", "ColorScheme", t.own)
	add("kdeglobals", "Icons", "Theme", t.icons)
	if family, points, ok := profiles.ParseFont(p.Look.Font); ok {
		for _, k := range []string{"font", "menuFont", "toolBarFont"} {
			add("kdeglobals", "General", k, qtFont(family, points, false))
		}
		add("kdeglobals", "General", "smallestReadableFont", qtFont(family, max(points-2, 6), false))
		add("kdeglobals", "WM", "activeFont", qtFont(family, points, false))
	}
	if p.Look.Dark != nil {
		// For programs that find no colours in kdeglobals itself.
		pkg := "org.kde.breeze.desktop"
		if *p.Look.Dark {
			pkg = "org.kde.breezedark.desktop"
		}
		add("kdeglobals", "KDE", "LookAndFeelPackage", pkg)
	}
	add("kcminputrc", "Mouse", "cursorTheme", p.Look.Cursor)
	if p.Look.Scale != 0 {
		s := scaleOf(p)
		add("kcminputrc", "Mouse", "cursorSize", fmt.Sprint(s.cursor))
		add("kcmfonts", "General", "forceFontDPI", fmt.Sprint(s.dpi))
	}
	if k := KeyboardOf(p); k != nil {
		add("kxkbrc", "Layout", "Use", "true")
		add("kxkbrc", "Layout", "ResetOldOptions", "true")
		add("kxkbrc", "Layout", "LayoutList", k.Layout)
		add("kxkbrc", "Layout", "VariantList", k.Variant)
		add("kxkbrc", "Layout", "Options", k.Options)
	}
	return out
}

func kdeFiles(p *profiles.Plan) map[string]string {
	out := map[string]string{}
	for file, entries := range kdeEntries(p) {
		var l lines
		last := ""
		for _, e := range entries {
			if e.group != last {
				l.group(e.group)
				last = e.group
			}
			l.set(e.key, e.value)
		}
		out[file] = l.b.String()
	}
	return out
}

// Resource is an X resource.
type Resource struct{ Name, Value string }

// Resources are the X resources of a plan's look, for the root window's RESOURCE_MANAGER.
func Resources(p *profiles.Plan) []Resource {
	var out []Resource
	if p.Look.Scale != 0 {
		s := scaleOf(p)
		out = append(out, Resource{"Xft.dpi", fmt.Sprint(s.dpi)}, Resource{"Xcursor.size", fmt.Sprint(s.cursor)})
	}
	if p.Look.Cursor != "" {
		out = append(out, Resource{"Xcursor.theme", p.Look.Cursor})
	}
	return out
}

// Keyboard is a keyboard as setxkbmap(1) takes it: layouts and variants are lists with commas, an entry each.
type Keyboard struct{ Layout, Variant, Options string }

// switchKeys is the XKB option by which layouts are switched.
const switchKeys = "grp:alt_shift_toggle"

// KeyboardOf is the keyboard that a plan asks for, or nil.
func KeyboardOf(p *profiles.Plan) *Keyboard {
	if len(p.Locale.Keyboard) == 0 {
		return nil
	}
	var layouts, variants []string
	some := false
	for _, k := range p.Locale.Keyboard {
		l, v := splitLayout(k)
		layouts, variants, some = append(layouts, l), append(variants, v), some || v != ""
	}
	out := &Keyboard{Layout: strings.Join(layouts, ",")}
	if some {
		out.Variant = strings.Join(variants, ",")
	}
	if len(layouts) > 1 {
		out.Options = switchKeys
	}
	return out
}

// splitLayout splits "de(nodeadkeys)".
func splitLayout(s string) (layout, variant string) {
	layout, rest, _ := strings.Cut(s, "(")
	return layout, strings.TrimSuffix(rest, ")")
}

// Command is the command that gives the keyboard to the X server at DISPLAY; options of before are dropped.
func (k *Keyboard) Command() []string {
	return []string{"setxkbmap", "-model", "pc105", "-layout", k.Layout, "-variant", k.Variant, "-option", "", "-option", k.Options}
}
