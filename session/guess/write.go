package guess

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"berth/profiles"
)

// write makes the profile's text, and adds to the notes what it had to decide.
func (l *looker) write(g *Guess) string {
	s, ref := g.Session, profiles.TOMLString(l.img.Ref)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	line("# Found in image %s: %s (%s),", clean(l.img.Ref, 120), s.Title, clean(strings.Join(s.Command, " "), 80))
	line("# from %s; %s.", clean(s.From, 120), g.Reason)
	for _, o := range g.Others {
		line("# Also there: %s (%s), from %s.", o.Title, clean(strings.Join(o.Command, " "), 80), clean(o.From, 120))
	}
	name := "desktop"
	if s.Name == Command {
		name = "app"
	}
	line("name        = %s", profiles.TOMLString(g.Profile))
	line("description = %s", profiles.TOMLString(fmt.Sprintf("%s of image %s", s.Title, clean(l.img.Ref, 120))))
	line("session     = %s", profiles.TOMLString(name))
	line("\n[display]\nsize = \"1920x1080\"")

	line("\n[components.%s]", name)
	line("image    = %s", ref)
	line("command  = %s", profiles.TOMLStrings(s.Command))
	line("provides = %s", profiles.TOMLStrings(s.about.roles))
	ownManager := s.Name == Command && s.server == "" && !slices.Contains(s.about.roles, "window-manager")
	if ownManager {
		line("after    = [\"window-manager\"]")
	}
	if len(s.about.ready) > 0 {
		ready := profiles.TOMLStrings(s.about.ready)
		if len(s.about.ready) == 1 {
			ready = profiles.TOMLString(s.about.ready[0])
		}
		line("ready    = %s", ready)
		line("timeout  = \"2m\" # the first start fills caches")
	}
	env := l.environment()
	if env != "" {
		line("env      = %s", env)
	}

	if files := l.replaced(g); len(files) > 0 {
		line("\n# An empty file takes the place of each: it would only show an error.")
		line("[components.%s.files]", name)
		for _, f := range files {
			line("%s = \"\"", profiles.TOMLString(f))
		}
	}

	if ownManager {
		line("\n# The image's command is a single program: Berth's Openbox manages its windows.")
		line("[components.window-manager]\nimage    = \"openbox\"\ncommand  = [\"openbox\"]\nprovides = [\"window-manager\"]\nready    = \"wm\"\nrestart  = \"always\"")
		g.Notes = append(g.Notes, "no window manager is started by the image's command; Berth's Openbox manages its windows")
	}
	if _, ok := l.which("dbus-daemon"); ok {
		line("\n# The image's own, so that the services that are activated through the bus are found.")
		line("[components.bus]\nimage = %s", ref)
		if env != "" {
			line("env   = %s", env)
		}
	} else {
		g.Notes = append(g.Notes, "there is no dbus-daemon in the image; the session bus is Berth's, and services that are activated through it will not start")
	}

	// For all components: services that the bus starts are children of another one.
	if s.Desktops != "" || s.file {
		line("\n[env]")
		if s.Desktops != "" {
			line("XDG_CURRENT_DESKTOP = %s", profiles.TOMLString(s.Desktops))
		}
		if s.file {
			line("XDG_SESSION_DESKTOP = %s", profiles.TOMLString(s.Name))
			line("DESKTOP_SESSION     = %s", profiles.TOMLString(s.Name))
		}
	}
	return b.String()
}

// failing are programs that desktops start and that greet the user with an error dialog in a session, with the reason.
// There is no setting for them that could be laid over the image's.
var failing = []struct{ program, why string }{
	{"lxpolkit", "no polkit runs in a session"},
}

// replaced are the places of the programs that must not start.
func (l *looker) replaced(g *Guess) []string {
	var out []string
	for _, f := range failing {
		if place, ok := l.which(f.program); ok {
			out = append(out, place)
			g.Notes = append(g.Notes, fmt.Sprintf("%s is left out: %s", place, f.why))
		}
	}
	return out
}

// environment is what the image's programs need of its environment that a session sets otherwise, as an inline table;
// "" if that is nothing.
func (l *looker) environment() string {
	if l.path == "" {
		return ""
	}
	standard := strings.Split(standardPath, ":")
	if !slices.ContainsFunc(strings.Split(l.path, ":"), func(dir string) bool { return dir != "" && !slices.Contains(standard, dir) }) {
		return ""
	}
	return fmt.Sprintf("{ PATH = %s }", profiles.TOMLString(cmp.Or(l.path, standardPath)))
}
