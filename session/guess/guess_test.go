package guess

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
	"berth/profiles"
)

var update = flag.Bool("update", false, "write the golden files anew")

// tree makes an image's files: a program by its path, a link as PATH -> TARGET, a file with its text as PATH = TEXT.
func tree(lines ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for _, l := range lines {
		if name, text, ok := strings.Cut(l, " = "); ok {
			m[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
		} else if name, target, ok := strings.Cut(l, " -> "); ok {
			m[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
		} else if name, text, ok := strings.Cut(l, " #! "); ok {
			m[name] = &fstest.MapFile{Data: []byte("#!/bin/sh\n" + text), Mode: 0o755}
		} else if name, lib, ok := strings.Cut(l, " links "); ok {
			m[name] = &fstest.MapFile{Data: elfNeeding(lib), Mode: 0o755}
		} else {
			m[l] = &fstest.MapFile{Data: []byte("\x7fELF"), Mode: 0o755}
		}
	}
	return m
}

func entry(name, exec string, more ...string) string {
	return "[Desktop Entry]\nType=XSession\nName=" + name + "\nExec=" + exec + "\n" + strings.Join(more, "\n") + "\n"
}

const x = "usr/share/xsessions/"

var cases = []struct {
	name string
	root fstest.MapFS
	img  Image
	opt  Options
}{
	{name: "xfce", root: tree("usr/bin/startxfce4", "usr/bin/dbus-daemon", "usr/bin/xfce4-session",
		x+"xfce.desktop = "+entry("Xfce Session", "startxfce4", "Name[de]=Xfce-Sitzung", "DesktopNames=XFCE;")),
		img: Image{Ref: "registry.example/people/my_desk:1", Cmd: []string{"bash"}}},
	// What apt-get install lxde brings: three files, of which one starts nothing that exists.
	{name: "lxde_by_alternative", root: tree("usr/bin/startlxde", "usr/bin/openbox-session", "usr/bin/openbox", "usr/bin/dbus-daemon", "bin/bash",
		x+"LXDE.desktop = "+entry("LXDE", "/usr/bin/startlxde", "TryExec=/usr/bin/startlxde"),
		x+"openbox.desktop = "+entry("Openbox", "/usr/bin/openbox-session", "TryExec=openbox"),
		x+"lightdm-xsession.desktop = "+entry("Default Xsession", "default"),
		"usr/bin/x-session-manager -> /etc/alternatives/x-session-manager", "etc/alternatives/x-session-manager -> /usr/bin/openbox-session"),
		img: Image{Ref: "lxde:1", Cmd: []string{"/bin/bash"}}},
	{name: "lxde_by_rank", root: tree("usr/bin/startlxde", "usr/bin/lxpolkit", "usr/bin/openbox-session",
		x+"LXDE.desktop = "+entry("LXDE", "/usr/bin/startlxde"), x+"openbox.desktop = "+entry("Openbox", "/usr/bin/openbox-session")),
		img: Image{Ref: "lxde:1"}},
	{name: "asked_for", root: tree("usr/bin/startlxde", "usr/bin/openbox-session",
		x+"LXDE.desktop = "+entry("LXDE", "/usr/bin/startlxde"), x+"openbox.desktop = "+entry("Openbox", "/usr/bin/openbox-session")),
		img: Image{Ref: "lxde:1"}, opt: Options{Session: "openbox", Profile: "box"}},
	{name: "command_chooses", root: tree("usr/bin/startlxde", "usr/bin/openbox-session", "usr/bin/tini",
		x+"LXDE.desktop = "+entry("LXDE", "/usr/bin/startlxde"), x+"openbox.desktop = "+entry("Openbox", "/usr/bin/openbox-session")),
		img: Image{Ref: "lxde:1", Cmd: []string{"/usr/bin/tini", "--", "openbox-session"}}},
	{name: "entrypoint_script_chooses", root: tree("usr/bin/startxfce4", "usr/bin/startlxde", "entry.sh #! # not startxfce4\nmkdir -p ~/x\nexec startlxde\n"),
		img: Image{Ref: "lxde:1", Cmd: []string{"/entry.sh"}}},
	{name: "plasma", root: tree("usr/bin/startplasma-x11", x+"plasmax11.desktop = "+
		entry("Plasma (X11)", "dbus-run-session -- /usr/bin/startplasma-x11", "DesktopNames=KDE", "TryExec=/usr/bin/startplasma-x11"),
		"usr/bin/dbus-run-session", "usr/share/wayland-sessions/plasma.desktop = "+entry("Plasma", "startplasma-wayland")),
		img: Image{Ref: "localhost/kde:latest", Env: []string{"PATH=/usr/bin:/bin"}}},
	{name: "program_only", root: tree("usr/bin/icewm-session", "usr/bin/icewm", "usr/bin/twm"), img: Image{Ref: "ice:2"}},
	{name: "own_path", root: tree("opt/xfce/bin/startxfce4", "usr/bin/dbus-daemon"),
		img: Image{Ref: "opt:1", Env: []string{"PATH=/opt/xfce/bin:/usr/bin", "HOME=/nowhere"}}},
	{name: "environment_in_exec", root: tree("usr/bin/env", "usr/bin/gnome-session",
		x+"gnome-classic.desktop = "+entry("GNOME Classic", "env GNOME_SHELL_SESSION_MODE=classic gnome-session", "DesktopNames=GNOME-Classic;GNOME")),
		img: Image{Ref: "gnome:1"}},
	{name: "unknown_desktop", root: tree("opt/bin/weird", x+"weird.desktop = "+entry("Weird \"Desk\" \\\\ \u202e", "/opt/bin/weird --a 'b c' \"$x\"")),
		img: Image{Ref: "weird:1"}},
	{name: "client", root: tree("usr/bin/kiosk links libgtk-3.so.0", "usr/bin/dbus-daemon"), img: Image{Ref: "kiosk:1", Cmd: []string{"kiosk", "--full screen"}}},
	{name: "client_in_shell", root: tree("usr/bin/xclock links libX11.so.6", "bin/sh"), img: Image{Ref: "clock:1", Cmd: []string{"/bin/sh", "-c", "TZ=UTC exec xclock -digital"}}},
	{name: "vnc_image", root: tree("usr/bin/startxfce4", "usr/bin/Xvfb", "start.sh #! Xvfb :1 &\nstartxfce4\n"), img: Image{Ref: "vnc:1", Cmd: []string{"/start.sh"}}},
	{name: "command_asked_for", root: tree("usr/bin/startxfce4", "usr/bin/Xvfb", "start.sh #! Xvfb :1 &\nstartxfce4\n"),
		img: Image{Ref: "vnc:1", Cmd: []string{"/start.sh"}}, opt: Options{Session: "cmd"}},
}

func TestOf(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			g, err := Of(tt.root, tt.img, tt.opt)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			fmt.Fprintf(&b, "%s: %s %q from %s\nbecause %s\n", g.Session.Name, g.Session.Title, g.Session.Command, g.Session.From, g.Reason)
			for _, o := range g.Others {
				fmt.Fprintf(&b, "other: %s: %s %q from %s\n", o.Name, o.Title, o.Command, o.From)
			}
			for _, n := range g.Notes {
				fmt.Fprintf(&b, "note: %s\n", n)
			}
			fmt.Fprintf(&b, "--- %s.toml\n%s", g.Profile, g.Source)
			golden(t, tt.name+".txt", b.String())
		})
	}
}

// TestNothing: an image in which there is nothing to start says what was looked for.
func TestNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		root fs.FS
		img  Image
		opt  Options
		want []string
	}{
		{"empty", tree(), Image{Ref: "empty:1"}, Options{}, []string{`image "empty:1": desktop not found`, "/usr/share/xsessions", "startxfce4", "the image has no command of its own"}},
		{"bash", tree("bin/bash"), Image{Ref: "d:1", Cmd: []string{"bash"}}, Options{},
			[]string{`the image's command "bash" is no X client`, "/bin/bash is linked with no X library"}},
		{"gone", tree("bin/bash"), Image{Ref: "d:1", Cmd: []string{"nothere"}}, Options{}, []string{"its program is not in the image"}},
		{"server", tree("usr/bin/Xvfb", "start.sh #! Xvfb :1"), Image{Ref: "d:1", Cmd: []string{"/start.sh"}}, Options{}, []string{"it starts an X server of its own, Xvfb"}},
		{"broken_files", tree("usr/bin/a", x+"a.desktop = [Desktop Entry]\nExec=a \"b\n", x+"b.desktop = nonsense", x+"c.desktop = [Other]\n",
			x+"d.desktop = "+entry("D", "a\x01"), x+"e.desktop = "+entry("E", "a", "NoDisplay=true"), x+"f.desktop = "+entry("F", "a %q"),
			x+"g.desktop = "+entry("G", "gone"), x+"h.desktop = "+entry("H", "../bin/a"), x+"i.desktop -> /usr/bin/gone"), Image{Ref: "d:1"}, Options{},
			[]string{"a.desktop (Exec: command", "a double quote is not closed", `b.desktop (line 1: "nonsense" is neither`, "c.desktop (does not begin with [Desktop Entry])",
				"d.desktop (line 4: control character U+0001)", "e.desktop (is hidden)", "f.desktop (Exec: command argument \"%q\": invalid: unknown field code)",
				`g.desktop (its program "gone" is not in the image)`, `h.desktop (its program "../bin/a" is not in the image)`, "i.desktop (cannot be read: file does not exist)"}},
		{"wayland", tree("usr/share/wayland-sessions/sway.desktop = x"), Image{Ref: "d:1"}, Options{}, []string{"its Wayland sessions (sway) need a display"}},
		{"misspelt", tree("usr/bin/startxfce4"), Image{Ref: "d:1"}, Options{Session: "startxfce"}, []string{`session "startxfce": not found; did you mean "startxfce4"?`}},
		{"other", tree("usr/bin/startxfce4"), Image{Ref: "d:1"}, Options{Session: "kde"}, []string{`session "kde": not found; it has startxfce4`}},
		{"no_command", tree(), Image{Ref: "d:1"}, Options{Session: "cmd"}, []string{`session "cmd": not found`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, err := Of(tt.root, tt.img, tt.opt)
			if !errors.Is(err, orchestrator.ErrNotFound) {
				t.Fatalf("Of = %+v, %v; want ErrNotFound", g, err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error lacks %q:\n%v", w, err)
				}
			}
		})
	}
}

func TestProfileName(t *testing.T) {
	for ref, want := range map[string]string{
		"xfce": "xfce", "registry.example:5000/people/my_desk:1": "my-desk", "UPPER": "upper", "a/b@sha256:" + strings.Repeat("ab", 32): "b", "__.--": "image",
		"host/" + strings.Repeat("long-", 10) + "x:1": "long-long-long-long-long-long-lo",
	} {
		if got := ProfileName(ref); got != want {
			t.Errorf("ProfileName(%q) = %q; want %q", ref, got, want)
		}
	}
}

func TestUnwrap(t *testing.T) {
	for in, want := range map[string]string{
		"startx4": "startx4", "dbus-launch --exit-with-session a b": "a b", "dbus-run-session -- a -b": "a -b", "/usr/bin/dbus-run-session a": "a", "dbus-launch": "dbus-launch",
		"dbus-launch --auto": "dbus-launch --auto", "dbus-run-session --": "dbus-run-session --",
	} {
		if got := strings.Join(unwrap(strings.Fields(in)), " "); got != want {
			t.Errorf("unwrap(%q) = %q; want %q", in, got, want)
		}
	}
}

// FuzzSessionFile: whatever a session file of an image holds, there is a profile that loads, or an error.
func FuzzSessionFile(f *testing.F) {
	f.Add([]byte(entry("A", "a %c", "DesktopNames=A;B")), "registry.example/a:1", "a\x00b")
	f.Fuzz(func(t *testing.T, text []byte, ref, cmd string) {
		root := tree("usr/bin/a", "usr/bin/b links libX11.so.6")
		root[x+"a.desktop"] = &fstest.MapFile{Data: text, Mode: 0o644}
		g, err := Of(root, Image{Ref: "a:1", Cmd: strings.Fields(cmd), Env: []string{"PATH=" + ref}}, Options{})
		if err != nil {
			return
		}
		if _, err := profiles.LoadText("fuzz.toml", []byte(g.Source), nil); err != nil {
			t.Fatalf("%v\n%s", err, g.Source)
		}
	})
}

// FuzzELF: no program of an image makes the reader panic.
func FuzzELF(f *testing.F) {
	f.Add(elfNeeding("libX11.so.6"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root := fstest.MapFS{"usr/bin/a": {Data: data, Mode: 0o755}}
		_, err := Of(root, Image{Ref: "a:1", Cmd: []string{"a"}}, Options{})
		if err != nil && !errors.Is(err, orchestrator.ErrNotFound) {
			t.Fatal(err)
		}
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(bytes.ReplaceAll(want, []byte("\r"), nil)), got); diff != "" {
		t.Errorf("%s (-want +got), -update writes it:\n%s", file, diff)
	}
}
