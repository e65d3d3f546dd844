// Package look brings a profile's [look] and [locale] to every toolkit of a session: themes, fonts, cursor, icons, scale,
// keyboard layouts and the input method.
//
// It is pure: from a plan it makes more plan (Extend), files, X resources, a keyboard and, for a session that runs, shell
// scripts. Package session lays, sets and runs them. A plan that asks for nothing gets nothing: no component, no file, no
// variable.
//
// # Where a toolkit looks
//
//	GTK 3, GTK 4   XSETTINGS, while a manager of them runs; before that gtk-3.0/settings.ini of XDG_CONFIG_DIRS.
//	               libadwaita asks GSettings (org.gnome.desktop.interface color-scheme), which dconf stores
//	Qt 5, Qt 6     the platform theme "kde" where an image has it: kdeglobals, kcminputrc; else the resource Xft.dpi,
//	               and in images with Qt's platform theme "gtk3" what GTK has
//	X clients      the resources Xft.dpi, Xcursor.theme and Xcursor.size
//	XFCE           xfconf; xfsettingsd is the manager of XSETTINGS
//	GNOME, MATE    dconf; their settings daemons are
//	Plasma         kdeglobals and its like in the home; kded's module "gtkconfig" is
//	LXQt           lxqt.conf and session.conf in the home; it has none
//	Openbox        rc.xml in the home; it has none
//
// # What wins
//
// The profile at the start, the user afterwards. A desktop stores what a user has chosen in the home, and there it hides
// whatever stands in XDG_CONFIG_DIRS; so a component of the desktop's own image, look-DESKTOP, writes what the profile
// states, and nothing else, into the desktop's own store before the desktop's programs start. Locking the settings
// (xfconf, dconf) would be simpler, and would take them from the user. Files below Dir, in front of XDG_CONFIG_DIRS, are for
// what stores nothing, and for programs of one desktop in a session of another.
//
// The same script, followed by the signals by which the desktop's programs hear of a change, is what `berth set` runs in a
// component of the desktop; where there are only applications that are started on demand, look-DESKTOP runs again. Nothing
// that may change is in an environment variable, since those of a program that runs cannot be changed; a component that is
// restarted finds the files.
//
// # Scale
//
// One meaning for all: the resolution of text becomes dpi times scale, and whatever cannot follow text (icons, borders of
// GTK, the cursor) is enlarged by whole numbers. Scale 1.5 is text of 144 dpi and GTK windows drawn once; scale 2 is text of
// 192 dpi and GTK windows drawn double, whose own text then stays at 96. Qt scales all it draws by text's resolution,
// fractions included.
//
// # The keyboard
//
// The X server has the layouts, four groups at most, and Alt+Shift switches. Desktops are told the same, those that would
// overwrite it (GNOME, Plasma), or are kept from it (XFCE, fcitx5).
package look

import (
	"cmp"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"berth/profiles"
)

// Dir is where the files of Files lie in every container, read-only.
const Dir = "/run/berth/look"

// xdg is the directory put in front of XDG_CONFIG_DIRS.
const xdg = Dir + "/xdg"

// Wanted tells whether a plan asks for anything of this package.
func Wanted(p *profiles.Plan) bool { return lookWanted(p) || p.Locale.InputMethod != "" }

// lookWanted tells whether there are files to lay.
func lookWanted(p *profiles.Plan) bool {
	return p.Look != (profiles.Look{}) || len(p.Locale.Keyboard) > 0
}

// desktop is a kind of desktop, by its own store of settings.
type desktop string

const (
	xfce    desktop = "xfce"
	gnome   desktop = "gnome"
	mate    desktop = "mate"
	kde     desktop = "kde"
	lxqt    desktop = "lxqt"
	openbox desktop = "openbox"
)

// desktops in the order in which their components are added.
var desktops = []desktop{xfce, gnome, mate, kde, lxqt, openbox}

// programs by which a desktop is recognised in an image of whatever name. A trailing * stands for the rest of a name.
var programs = map[desktop][]string{
	xfce:    {"xfconfd", "xfce4-*", "xfwm4", "xfdesktop", "xfsettingsd", "startxfce4"},
	gnome:   {"gnome-*", "gsd-*", "metacity", "mutter", "nautilus"},
	mate:    {"mate-*", "marco", "caja"},
	kde:     {"plasma*", "startplasma*", "kwin*", "kded5", "kded6", "ksmserver", "krunner", "dolphin"},
	lxqt:    {"lxqt-*", "startlxqt", "pcmanfm-qt"},
	openbox: {"openbox"},
}

// managers are the programs that own XSETTINGS, themselves or by what they start.
var managers = []string{"xfsettingsd", "xfce4-session", "startxfce4", "gsd-xsettings", "gnome-session", "gnome-settings-daemon",
	"mate-settings-daemon", "mate-session", "kded5", "kded6", "startplasma-x11", "xsettingsd", "cinnamon-settings-daemon"}

func runs(c profiles.Component, names []string) bool {
	for _, arg := range c.Command {
		for _, word := range strings.Fields(arg) { // of a shell's script, too
			prog := path.Base(word)
			for _, n := range names {
				if stem, any := strings.CutSuffix(n, "*"); prog == n || any && strings.HasPrefix(prog, stem) {
					return true
				}
			}
		}
	}
	return false
}

// of tells which desktop a component belongs to, "" if to none: by its image's name, "kde" or "kde-13", else by its program.
func of(c profiles.Component) desktop {
	for _, d := range desktops {
		if c.Image == string(d) || strings.HasPrefix(c.Image, string(d)+"-") {
			return d
		}
	}
	for _, d := range desktops {
		if runs(c, programs[d]) {
			return d
		}
	}
	return ""
}

// agent is the component of d in which its settings are changed: one that is there from the start to the end, with a home;
// "" if there is none.
func agent(comps []profiles.Component, d desktop) string {
	best, rank := "", 0
	for _, c := range comps {
		if of(c) != d || !slices.Contains(c.Needs, profiles.WireHome) || strings.HasPrefix(c.Name, prefix) || c.OnDemand {
			continue
		}
		r := 1
		for i, role := range []string{"bus", "desktop", "panel", "window-manager", "settings"} {
			if slices.Contains(c.Provides, role) {
				r = max(r, i+2)
			}
		}
		if c.Restart == profiles.RestartNever {
			r = 0
		}
		if r > rank {
			best, rank = c.Name, r
		}
	}
	return best
}

// prefix leads the names of components that write a desktop's settings at the start.
const prefix = "look-"

// xsettingsName is the component that manages XSETTINGS where no program of the desktop does.
const xsettingsName = "xsettings"

// Extend adds to a plan, as profiles.Build made it, what its look and locale need: environment variables, a manager of
// XSETTINGS, the input method's daemon, and a component per desktop that writes its settings. What the profile has by the
// same name, or for the same role, stands. It changes p, and leaves one that asks for nothing as it is.
func Extend(p *profiles.Plan) {
	if !Wanted(p) {
		return
	}
	if p.Locale.InputMethod != "" && p.Owner("input-method") == "" {
		addInputMethod(p)
	}
	if lookWanted(p) {
		addManager(p)
		for _, d := range desktops {
			addWriter(p, d)
		}
	}
	addEnv(p)
}

func addEnv(p *profiles.Plan) {
	add := map[string]string{}
	if p.Locale.InputMethod != "" {
		im := map[string]string{"fcitx5": "fcitx", "ibus": "ibus"}[p.Locale.InputMethod]
		add["GTK_IM_MODULE"], add["QT_IM_MODULE"], add["XMODIFIERS"], add["SDL_IM_MODULE"] = im, im, "@im="+im, im
	}
	if lookWanted(p) {
		add["QT_QPA_PLATFORMTHEME"] = "kde"
		add["QT_ENABLE_HIGHDPI_SCALING"], add["QT_SCALE_FACTOR_ROUNDING_POLICY"] = "1", "PassThrough"
	}
	dirs := false
	for i, kv := range p.Env {
		k, v, _ := strings.Cut(kv, "=")
		delete(add, k)
		if k == "XDG_CONFIG_DIRS" {
			p.Env[i], dirs = k+"="+xdg+":"+v, true
		}
	}
	if !dirs {
		add["XDG_CONFIG_DIRS"] = xdg + ":/etc/xdg"
	}
	p.Env = slices.Clip(p.Env)
	for k, v := range add {
		p.Env = append(p.Env, k+"="+v)
	}
	slices.Sort(p.Env)
	for i := range p.Components {
		if v, ok := p.Components[i].Env["XDG_CONFIG_DIRS"]; ok {
			p.Components[i].Env["XDG_CONFIG_DIRS"] = xdg + ":" + v
		}
	}
}

// addManager adds xsettingsd from the X server's image, unless a program of the desktop is a manager.
func addManager(p *profiles.Plan) {
	display, ok := p.Component(p.Owner("display"))
	if _, taken := p.Component(xsettingsName); !ok || taken || slices.ContainsFunc(p.Components, func(c profiles.Component) bool { return runs(c, managers) }) {
		return
	}
	c := profiles.Component{Name: xsettingsName, Image: display.Image,
		Command: []string{"xsettingsd", "-c", Dir + "/" + xsettingsFile},
		After:   []string{display.Name}, Needs: []string{profiles.WireX11},
		Timeout: profiles.DefaultTimeout, Restart: profiles.RestartAlways, Optional: true, Stop: time.Second}
	insert(p, c)
}

// scriptFile is the script of d's writer, below Dir: a file, so that it can be run again with another look.
func scriptFile(d desktop) string { return string(d) + ".sh" }

// travels tells whether programs of d ask d's own settings in sessions of other desktops, too.
func travels(d desktop) bool { return d == gnome || d == kde }

// addWriter adds the component that writes d's settings before d's programs start.
func addWriter(p *profiles.Plan, d desktop) {
	who, ok := p.Component(agent(p.Components, d))
	if i := slices.IndexFunc(p.Components, func(c profiles.Component) bool { return of(c) == d && c.OnDemand }); !ok && i >= 0 && travels(d) {
		who, ok = p.Components[i], true
	}
	if _, taken := p.Component(prefix + string(d)); !ok || taken || script(d, p, p, false) == "" {
		return
	}
	c := profiles.Component{Name: prefix + string(d), Image: who.Image, Command: []string{"sh", Dir + "/" + scriptFile(d)},
		Env: who.Env, Needs: []string{profiles.WireHome, profiles.WireBus}, Ready: []profiles.Probe{{Kind: "exit"}},
		Timeout: profiles.DefaultTimeout, Restart: profiles.RestartNever, Optional: true, Stop: time.Second}
	for _, o := range p.Components {
		if slices.Contains(o.Provides, "bus") || d == xfce && runs(o, []string{"xfconfd"}) {
			c.After = append(c.After, o.Name)
		}
	}
	// All of the desktop waits for it but what it waits for itself.
	first := map[string]bool{}
	var mark func(names []string)
	mark = func(names []string) {
		for _, n := range names {
			if o, ok := p.Component(n); ok && !first[n] {
				first[n] = true
				mark(o.After)
			}
		}
	}
	mark(c.After)
	for i := range p.Components {
		if o := &p.Components[i]; of(*o) == d && !first[o.Name] {
			o.After = append(slices.Clip(o.After), c.Name)
		}
	}
	insert(p, c)
}

// insert puts c into a plan and keeps its order: each component behind what it waits for, otherwise as they are.
func insert(p *profiles.Plan, c profiles.Component) {
	left := append(slices.Clone(p.Components), c)
	out := make([]profiles.Component, 0, len(left))
	for len(left) > 0 {
		i := slices.IndexFunc(left, func(c profiles.Component) bool {
			return !slices.ContainsFunc(c.After, func(n string) bool {
				return slices.ContainsFunc(left, func(o profiles.Component) bool { return o.Name == n })
			})
		})
		out, left = append(out, left[i]), slices.Delete(left, i, i+1)
	}
	p.Components = out
}

// scaling is what a scale amounts to.
type scaling struct {
	dpi    int // of text
	window int // whole factor of GTK's windows
	cursor int // in pixels
}

// baseCursor is the size of cursors at scale 1, in pixels.
const baseCursor = 24

// unscaled is the resolution that GTK's text has inside windows that are drawn enlarged.
func (s scaling) unscaled() int { return int(math.Round(float64(s.dpi) / float64(s.window))) }

func scaleOf(p *profiles.Plan) scaling {
	s := cmp.Or(p.Look.Scale, 1)
	return scaling{dpi: int(math.Round(float64(cmp.Or(p.Display.DPI, 96)) * s)), window: max(1, int(s)), cursor: max(8, int(math.Round(baseCursor*s)))}
}

// MonitorScale is the whole number by which GNOME enlarges the picture of a monitor. Mutter refuses one that leaves less than
// 800x480 of the screen; text is enlarged by the rest.
func MonitorScale(p *profiles.Plan) int {
	w := scaleOf(p).window
	for w > 1 && (p.Display.Width/w < 800 || p.Display.Height/w < 480) {
		w--
	}
	return w
}

// themes are what a desktop has for light and for dark.
type themes struct {
	gtk, icons string
	own        string // the desktop's own: colour scheme of Plasma, theme of LXQt's panel, of MATE's window manager
}

var light = map[desktop]themes{
	"":      {gtk: "Greybird"},
	openbox: {gtk: "Greybird"},
	xfce:    {gtk: "Greybird", icons: "elementary-xfce"},
	gnome:   {gtk: "Adwaita"},
	mate:    {gtk: "Greybird", icons: "mate", own: "Greybird"},
	kde:     {gtk: "Breeze", icons: "breeze", own: "BreezeLight"},
	lxqt:    {gtk: "Greybird", icons: "breeze", own: "light"},
}

var dark = map[desktop]themes{
	"":      {gtk: "Greybird-dark"},
	openbox: {gtk: "Greybird-dark"},
	xfce:    {gtk: "Greybird-dark", icons: "elementary-xfce-dark"},
	gnome:   {gtk: "Adwaita-dark"},
	mate:    {gtk: "Greybird-dark", icons: "mate", own: "Greybird-dark"},
	kde:     {gtk: "Breeze", icons: "breeze-dark", own: "BreezeDark"},
	lxqt:    {gtk: "Greybird-dark", icons: "breeze-dark", own: "dark"},
}

// chosen is what d shall have: what the look names, else what suits dark or light; "" where neither says anything.
func chosen(l profiles.Look, d desktop) themes {
	var t themes
	if l.Dark != nil {
		t = light[d]
		if *l.Dark {
			t = dark[d]
		}
	}
	t.gtk, t.icons = cmp.Or(l.Theme, t.gtk), cmp.Or(l.Icons, t.icons)
	return t
}

// main is the desktop whose settings count for programs that belong to none: the one of the panel, else the first.
func main(p *profiles.Plan) desktop {
	var first desktop
	for _, c := range p.Components {
		d := of(c)
		if d != "" && slices.Contains(c.Provides, "panel") {
			return d
		}
		first = cmp.Or(first, d)
	}
	return first
}
