// Package autostart finds the programs that a desktop's session manager would start by itself although the session has them
// already (Desktop Application Autostart Specification), so that they can be switched off.
//
// An image made for a whole desktop starts its notification daemon, its settings daemon and more from files in
// /etc/xdg/autostart. In a session each of these roles has one owner, which is a component, of this image or another. Entries that
// would bring a second one are hidden as the specification has it: by a file of the same name, with Hidden=true, in a
// directory that comes earlier in XDG_CONFIG_DIRS. Entries of the user's own are the user's, and stay.
//
// All of it is pure: Entries reads an image, Off decides.
package autostart

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"berth/internal/desktopentry"
	"berth/profiles"
)

// Dir is where images have the entries.
const Dir = "etc/xdg/autostart"

// maxEntries of one image are looked at.
const maxEntries = 1024

// Entry is a file of an image.
type Entry struct {
	File    string `json:"file"`    // without directory
	Program string `json:"program"` // base name
}

// Entries lists an image's entries that start something. What cannot be read as a desktop entry is none: session managers
// do not start it either.
func Entries(root fs.FS) ([]Entry, error) {
	files, err := fs.ReadDir(root, Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, f := range files[:min(len(files), maxEntries)] {
		name := path.Join(Dir, f.Name())
		info, err := fs.Stat(root, name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || info.Size() > desktopentry.MaxSize) {
			continue
		}
		if err != nil {
			return nil, err
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return nil, err
		}
		e, err := desktopentry.Parse(text)
		if err != nil || !strings.HasSuffix(f.Name(), ".desktop") || e.Main().Bool("Hidden") {
			continue
		}
		argv, err := desktopentry.SplitExec(e.Main().Get("Exec"))
		if err != nil {
			continue
		}
		out = append(out, Entry{File: f.Name(), Program: program(argv)})
	}
	return out, nil
}

// wrappers run another program, whose name is the first argument that is none of their own.
var wrappers = []string{"env", "sh", "nice", "dbus-launch", "systemd-cat"}

// program is what a command is about.
func program(argv []string) string {
	for i, a := range argv {
		base := path.Base(a)
		if i+1 < len(argv) && (slices.Contains(wrappers, base) || strings.HasPrefix(a, "-") || strings.Contains(a, "=")) {
			continue
		}
		first, _, _ := strings.Cut(base, " ")
		return first
	}
	return path.Base(argv[0])
}

// roles are the programs that take a role, by their names in Debian's packages.
var roles = map[string][]string{
	"window-manager": {"xfwm4", "kwin_x11", "kwin_wayland", "gnome-shell", "mutter", "marco", "metacity", "muffin", "openbox", "compiz", "i3", "icewm", "fluxbox"},
	"panel":          {"xfce4-panel", "plasmashell", "mate-panel", "lxqt-panel", "lxpanel", "gnome-panel", "budgie-panel", "tint2", "polybar"},
	"desktop":        {"xfdesktop", "plasmashell", "pcmanfm-qt", "pcmanfm", "caja", "nemo-desktop", "budgie-desktop-view"},
	"notifications":  {"xfce4-notifyd", "mate-notification-daemon", "lxqt-notificationd", "notification-daemon", "notify-osd", "dunst", "mako"},
	"settings":       {"xfsettingsd", "gsd-xsettings", "mate-settings-daemon", "xsettingsd", "kded5", "kded6"},
	"polkit-agent": {"polkit-gnome-authentication-agent-1", "polkit-kde-authentication-agent-1", "polkit-mate-authentication-agent-1", "lxqt-policykit-agent",
		"lxpolkit", "xfce-polkit"},
	"screensaver":  {"light-locker", "xscreensaver", "xfce4-screensaver", "mate-screensaver", "gnome-screensaver", "xss-lock", "cinnamon-screensaver"},
	"input-method": {"ibus-daemon", "fcitx5", "fcitx", "fcitx-autostart", "uim-toolbar", "im-launch"},
	"audio":        {"pulseaudio", "start-pulseaudio-x11", "pipewire", "pipewire-pulse", "wireplumber", "pipewire-media-session"},
}

// Off lists the entries of an image that are switched off in a session of plan p, with the component that is there instead.
func Off(entries []Entry, image string, p *profiles.Plan) []profiles.AutostartOff {
	var out []profiles.AutostartOff
	for _, e := range entries {
		if owner := ownerOf(e.Program, p); owner != "" {
			out = append(out, profiles.AutostartOff{Image: image, File: e.File, Owner: owner})
		}
	}
	return out
}

// ownerOf finds the component that is or does what program would.
func ownerOf(program string, p *profiles.Plan) string {
	for _, c := range p.Components {
		if len(c.Command) > 0 && path.Base(c.Command[0]) == program {
			return c.Name
		}
	}
	for role, programs := range roles {
		if owner := p.Owner(role); owner != "" && slices.Contains(programs, program) {
			return owner
		}
	}
	return ""
}

// Hidden is the text of the file that hides an entry.
const Hidden = "[Desktop Entry]\nType=Application\nName=Switched off by Berth\nHidden=true\n"
