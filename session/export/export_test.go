package export

import (
	"flag"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"berth/internal/desktopentry"
	"berth/orchestrator/fake"
	"berth/profiles"
	"berth/session/launch"
)

var update = flag.Bool("update", false, "write the golden files anew")

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text), Mode: 0o644} }
func prog() *fstest.MapFile            { return &fstest.MapFile{Data: []byte("x"), Mode: 0o755} }

// image is one with all that can be right and wrong.
func image() fstest.MapFS {
	return fstest.MapFS{
		"usr/bin/edit":                                          prog(),
		"usr/bin/view":                                          prog(),
		"usr/libexec/edit-service":                              prog(),
		"usr/bin/data":                                          file("not executable"),
		"usr/share/pixmaps/old.png":                             file("old"),
		"opt/thing/thing.png":                                   file("thing"),
		"usr/share/icons/hicolor/index.theme":                   file("[Icon Theme]\n"),
		"usr/share/icons/hicolor/48x48/apps/edit.png":           file("edit48"),
		"usr/share/icons/hicolor/icon-theme.cache":              file("stale"),
		"usr/share/icons/hicolor/scalable/status/edit-tray.svg": file("tray"),
		"usr/share/icons/breeze/apps/48/viewer.svg":             file("viewer48"),
		"usr/share/icons/breeze/apps/16/viewer.svg":             file("viewer16"),
		"usr/share/icons/breeze/apps/16@2x/viewer.svg":          file("viewer16@2x"),
		"usr/share/icons/zzz/48x48/apps/viewer.png":             file("another theme's"),
		"usr/share/icons/breeze/apps/symbolic/viewer.svg":       file("symbolic"),
		"usr/share/mime/packages/edit.xml":                      file("<xml/>"),
		"usr/share/mime/mime.cache":                             file("cache"),
		"usr/share/mime/text/x-edit.xml":                        file("<mime-type/>"),
		"usr/share/applications/org.example.Edit.desktop": file(`[Desktop Entry]
Type=Application
Name=Edit
Name[de]=Bearbeiten
Exec=edit --title "two words" %U
TryExec=edit
Icon=edit
MimeType=text/plain;text/x-edit;
DBusActivatable=true
Actions=new;

[Desktop Action new]
Name=New window
Exec=edit --new
`),
		"usr/share/applications/view.desktop": file(`[Desktop Entry]
Type=Application
Name=View
Exec=/usr/bin/view %f
Icon=viewer
Path=/opt/view
MimeType=text/plain;image/png
DBusActivatable=true
StartupWMClass=View
`),
		"usr/share/applications/kde4/old.desktop":    file("[Desktop Entry]\nType=Application\nName=Old\nExec=view\nIcon=old\n"),
		"usr/share/applications/thing.desktop":       file("[Desktop Entry]\nType=Application\nName=Thing\nExec=view\nIcon=/opt/thing/thing.png\nTerminal=true\n"),
		"usr/share/applications/gone.desktop":        file("[Desktop Entry]\nType=Application\nName=Gone\nExec=gone\n"),
		"usr/share/applications/try.desktop":         file("[Desktop Entry]\nType=Application\nName=Try\nExec=view\nTryExec=gone\n"),
		"usr/share/applications/hidden.desktop":      file("[Desktop Entry]\nType=Application\nName=Hidden\nExec=view\nHidden=true\n"),
		"usr/local/share/applications/hides.desktop": file("[Desktop Entry]\nType=Application\nName=Hides\nExec=view\nHidden=true\n"),
		"usr/share/applications/hides.desktop":       file("[Desktop Entry]\nType=Application\nName=Hidden by the other\nExec=view\n"),
		"usr/share/applications/link.desktop":        file("[Desktop Entry]\nType=Link\nURL=http://example.org\n"),
		"usr/share/applications/bad-quote.desktop":   file("[Desktop Entry]\nType=Application\nName=Bad\nExec=view \"x\n"),
		"usr/share/applications/bad-control.desktop": file("[Desktop Entry]\nType=Application\nName=Bad\nExec=view \x1b[31m\n"),
		"usr/share/applications/bad-path.desktop":    file("[Desktop Entry]\nType=Application\nName=Bad\nExec=../../bin/view\nIcon=../../x\n"),
		"usr/share/applications/bad-program.desktop": file("[Desktop Entry]\nType=Application\nName=Bad\nExec=data\n"),
		"usr/share/applications/no-command.desktop":  file("[Desktop Entry]\nType=Application\nName=Bad\n"),
		"usr/share/applications/a;b.desktop":         file("[Desktop Entry]\nType=Application\nName=Bad\nExec=view\n"),
		"usr/share/applications/mimeinfo.cache":      file("[MIME Cache]\ntext/plain=evil.desktop;\n"),
		"usr/share/applications/escape.desktop":      {Data: []byte("../../../../../../etc/shadow"), Mode: fs.ModeSymlink | 0o777},
		"usr/share/dbus-1/services/edit.service":     file("[D-BUS Service]\nName=org.example.Edit\nExec=/usr/libexec/edit-service --bus\nSystemdService=edit.service\n"),
		"usr/share/dbus-1/services/bus.service":      file("[D-BUS Service]\nName=org.freedesktop.DBus\nExec=/usr/bin/edit\n"),
		"usr/share/dbus-1/services/bad.service":      file("[D-BUS Service]\nName=../../evil\nExec=/usr/bin/edit\n"),
		"usr/share/dbus-1/services/missing.service":  file("[D-BUS Service]\nName=org.example.Missing\nExec=/usr/bin/missing\n"),
		"usr/share/dbus-1/services/nonsense.service": file("nonsense\n"),
	}
}

// tree is a directory as one text.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		b.WriteString("==> " + rel + "\n" + strings.TrimRight(string(data), "\n") + "\n\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	report, err := Write(image(), dir, Options{Component: "apps-demo", Patterns: []string{"*"}, Dir: "/run/berth/exports/apps-demo"})
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "demo.txt")
	got := tree(t, dir)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("exports (-want +got):\n%s", diff)
	}
	wantReport := Report{Applications: []string{"kde4-old", "org.example.Edit", "thing", "view"}, Services: []string{"org.example.Edit"}}
	if diff := cmp.Diff(wantReport.Applications, report.Applications); diff != "" {
		t.Errorf("applications (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantReport.Services, report.Services); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	var skipped []string
	for _, s := range report.Skipped {
		skipped = append(skipped, strings.TrimPrefix(s.File, "/usr/share/"))
	}
	wantSkipped := []string{"dbus-1/services/bad.service", "dbus-1/services/bus.service", "dbus-1/services/missing.service", "dbus-1/services/nonsense.service",
		"applications/a;b.desktop", "applications/bad-control.desktop", "applications/bad-path.desktop", "applications/bad-program.desktop",
		"applications/bad-quote.desktop", "applications/gone.desktop", "applications/no-command.desktop"}
	if diff := cmp.Diff(wantSkipped, skipped); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
}

func TestPatterns(t *testing.T) {
	report, err := Write(image(), t.TempDir(), Options{Component: "c", Patterns: []string{"org.example.*", "thing"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"org.example.Edit", "thing"}, report.Applications); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClaims(t *testing.T) {
	apps := []profiles.App{{Image: "gnome"}, {Image: "kde"}, {Image: "xfce"}}
	reports := []Report{{Services: []string{"a.A", "b.B"}}, {Services: []string{"b.B", "c.C"}}, {Services: []string{"b.B", "a.A"}}}
	want := []profiles.Claim{{Name: "a.A", Images: []string{"xfce", "gnome"}}, {Name: "b.B", Images: []string{"xfce", "gnome", "kde"}}}
	if diff := cmp.Diff(want, Claims(apps, reports, "xfce")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCache(t *testing.T) {
	e := fake.New()
	img := fake.ImageSpec{Ref: "docker.io/berth/demo:latest", Files: map[string]string{
		"/usr/bin/edit": "x", "/usr/share/applications/edit.desktop": "[Desktop Entry]\nType=Application\nName=Edit\nExec=/run/berth/bin/edit\n"}}
	if err := e.AddImage(img); err != nil {
		t.Fatal(err)
	}
	c := &Cache{Dir: filepath.Join(t.TempDir(), "exports"), Images: e.Images(), Inside: "/run/berth/exports", Log: slog.New(slog.DiscardHandler)}
	app := profiles.App{Image: "demo", Component: "apps-demo", Export: []string{"*"}}
	first, report, err := c.Export(t.Context(), img.Ref, app)
	if err != nil || len(report.Applications) != 1 {
		t.Fatal(report, err)
	}
	again, _, err := c.Export(t.Context(), img.Ref, app)
	if err != nil || again != first {
		t.Errorf("again: %q, %v; want %q", again, err, first)
	}
	img.Files["/usr/share/applications/edit.desktop"] += "Comment=New\n"
	if err := e.AddImage(img); err != nil {
		t.Fatal(err)
	}
	second, _, err := c.Export(t.Context(), img.Ref, app)
	if err != nil || second == first {
		t.Errorf("of the changed image: %q, %v", second, err)
	}
	if _, _, err := c.Export(t.Context(), "docker.io/berth/missing:latest", app); err == nil {
		t.Error("export of a missing image")
	}
	left := func() (n int) {
		entries, err := os.ReadDir(c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if err := c.Prune(t.Context(), func(dir string) bool { return dir == first }); err != nil || left() != 2 {
		t.Errorf("the first is in use: %v, %d left", err, left())
	}
	if err := c.Prune(t.Context(), func(string) bool { return false }); err != nil || left() != 1 {
		t.Errorf("the first is of no image: %v, %d left", err, left())
	}
}

// Whatever a desktop file says, what is exported is started by berth-launch and by nothing else.
func FuzzWrite(f *testing.F) {
	for name, file := range image() {
		if strings.HasSuffix(name, ".desktop") {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		img := fstest.MapFS{"usr/bin/edit": prog(), "usr/bin/view": prog(), "usr/share/applications/x.desktop": {Data: text, Mode: 0o644}}
		dir := t.TempDir()
		if _, err := Write(img, dir, Options{Component: "c", Patterns: []string{"*"}}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "share/applications/x.desktop"))
		if err != nil {
			return // left out
		}
		e, err := desktopentry.Parse(data)
		if err != nil {
			t.Fatalf("what was exported cannot be read: %v\n%s", err, data)
		}
		for _, g := range e.Groups() {
			if g.Name != desktopentry.Main && !strings.HasPrefix(g.Name, "Desktop Action ") {
				continue
			}
			if text, ok := g.Lookup("Exec"); ok {
				argv, err := desktopentry.SplitExec(text)
				if err != nil || argv[0] != launch.Client {
					t.Fatalf("%q, %v", argv, err)
				}
			}
			if g.Get("TryExec") != "" {
				t.Fatal("TryExec is left")
			}
		}
	})
}
