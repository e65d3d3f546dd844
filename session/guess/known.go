package guess

import (
	"path"
	"slices"
	"strings"
)

// desktop is what is known of a desktop or window manager by the program that starts it.
type desktop struct {
	// commands start it; the first whose program an image has is used where no file says how. The names of their programs
	// are also how it is recognised.
	commands [][]string
	title    string
	// names is $XDG_CURRENT_DESKTOP where the image does not say it (the registry at
	// https://specifications.freedesktop.org/menu-spec/latest/onlyshowin-registry.html).
	names string
	roles []string
	ready []string
	// bare: a window manager and not a whole desktop.
	bare bool
}

func run(argv ...string) [][]string {
	var out [][]string
	for _, a := range argv {
		out = append(out, strings.Fields(a))
	}
	return out
}

var (
	whole   = []string{"window-manager", "panel", "desktop", "notifications"}
	withSet = []string{"window-manager", "panel", "desktop", "notifications", "settings"}
	manager = []string{"window-manager"}
	partly  = []string{"window-manager", "panel", "desktop"}
	taskbar = []string{"window-manager", "panel"}

	wm     = []string{"wm"}
	wmDock = []string{"wm", "dock"}
)

// desktops are in the order in which they are preferred when an image has several and does not say which one it is for: an
// image with a whole desktop has its window manager, too, and often a small one that came along with something.
var desktops = []desktop{
	{run("startplasma-x11", "startkde"), "KDE Plasma", "KDE", whole, wmDock, false},
	{run("gnome-session"), "GNOME", "GNOME", withSet, []string{"wm", "bus:org.gnome.Shell"}, false},
	{run("cinnamon-session-cinnamon", "cinnamon-session"), "Cinnamon", "X-Cinnamon", withSet, []string{"wm", "bus:org.Cinnamon"}, false},
	{run("mate-session"), "MATE", "MATE", withSet, wmDock, false},
	{run("startxfce4", "xfce4-session"), "Xfce", "XFCE", withSet, wmDock, false},
	{run("startlxqt", "lxqt-session"), "LXQt", "LXQt", whole, wmDock, false},
	{run("startlxde", "lxsession"), "LXDE", "LXDE", partly, wmDock, false},
	{run("budgie-desktop"), "Budgie", "Budgie:GNOME", withSet, wm, false},
	{run("startdde"), "Deepin", "DDE", withSet, wm, false},
	{run("ukui-session"), "UKUI", "UKUI", withSet, wm, false},
	{run("starttde"), "Trinity", "TDE", whole, wm, false},
	{run("start-lumina-desktop"), "Lumina", "Lumina", whole, wm, false},
	{run("enlightenment_start"), "Enlightenment", "Enlightenment", whole, wm, false},
	{run("icewm-session", "icewm"), "IceWM", "ICEWM", taskbar, wmDock, true},
	{run("openbox-session", "openbox"), "Openbox", "Openbox", manager, wm, true},
	{run("startfluxbox", "fluxbox"), "Fluxbox", "Fluxbox", manager, wm, true},
	{run("jwm"), "JWM", "JWM", taskbar, wm, true},
	{run("i3"), "i3", "i3", manager, wm, true},
	{run("awesome"), "awesome", "awesome", manager, wm, true},
	{run("qtile start"), "Qtile", "qtile", manager, wm, true},
	{run("bspwm"), "bspwm", "bspwm", manager, wm, true},
	{run("herbstluftwm"), "herbstluftwm", "herbstluftwm", manager, wm, true},
	{run("spectrwm"), "spectrwm", "spectrwm", manager, wm, true},
	{run("dwm"), "dwm", "dwm", manager, wm, true},
	{run("wmaker"), "Window Maker", "WindowMaker", manager, wm, true},
	{run("fvwm3", "fvwm"), "FVWM", "FVWM", manager, wm, true},
	{run("pekwm"), "PekWM", "pekwm", manager, wm, true},
	{run("blackbox"), "Blackbox", "Blackbox", manager, wm, true},
	{run("sawfish"), "Sawfish", "sawfish", manager, wm, true},
	// These own no _NET_SUPPORTING_WM_CHECK window unless they are set up for it.
	{run("xmonad"), "xmonad", "xmonad", manager, nil, true},
	{run("stumpwm"), "StumpWM", "stumpwm", manager, nil, true},
	{run("ratpoison"), "Ratpoison", "ratpoison", manager, nil, true},
	{run("twm"), "twm", "twm", manager, nil, true},
	{run("mwm"), "Motif", "MWM", manager, nil, true},
}

// rank is the place in desktops of the one that a program starts, behind all of them for one that is not known.
func rank(program string) int {
	i := slices.IndexFunc(desktops, func(d desktop) bool {
		return slices.ContainsFunc(d.commands, func(argv []string) bool { return argv[0] == program })
	})
	if i < 0 {
		return len(desktops)
	}
	return i
}

// describe is what is known of the desktop that a program starts. What an image calls an X session and is not known is
// taken for a window manager with what else it likes.
func describe(program string) desktop {
	if i := rank(program); i < len(desktops) {
		return desktops[i]
	}
	return desktop{roles: manager, ready: wm}
}

// programs are the names of all programs that desktops knows, in order.
func programs() []string {
	var out []string
	for _, d := range desktops {
		for _, argv := range d.commands {
			out = append(out, argv[0])
		}
	}
	return out
}

// servers are programs that make an X server of their own. An image whose command does that is made to be looked at by
// other means than Berth's.
var servers = []string{"Xvfb", "Xvnc", "Xorg", "Xephyr", "Xtigervnc", "Xtightvnc", "X", "xvfb-run", "vncserver", "tigervncserver", "tightvncserver",
	"startx", "xinit", "xpra", "xrdp", "weston", "kasmvncserver", "supervisord"}

// busWrappers start a session bus around a program. A session has one already.
var busWrappers = []string{"dbus-launch", "dbus-run-session"}

// unwrap removes what starts a session bus from before a command.
func unwrap(argv []string) []string {
	if len(argv) < 2 || !slices.Contains(busWrappers, path.Base(argv[0])) {
		return argv
	}
	for i, a := range argv[1:] {
		if a == "--" {
			if i+2 < len(argv) {
				return argv[i+2:]
			}
			return argv
		}
		if !strings.HasPrefix(a, "-") {
			return argv[i+1:]
		}
	}
	return argv
}

// program is the name of what a command starts in the end, as far as that can be seen: behind env and its assignments.
func program(argv []string) string {
	if len(argv) > 1 && path.Base(argv[0]) == "env" {
		for i, a := range argv[1:] {
			if !strings.HasPrefix(a, "-") && !strings.Contains(a, "=") {
				return path.Base(argv[i+1])
			}
		}
	}
	if len(argv) == 0 {
		return ""
	}
	return path.Base(argv[0])
}
