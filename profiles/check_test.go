package profiles

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testInfra is what display, audio and bus contribute, in small.
func testInfra() []Component {
	return []Component{
		{Name: "display", Image: "xvfb", Command: []string{"Xvfb", ":0"}, Provides: []string{"display"}, Ready: []Probe{{Kind: "x11"}}},
		{Name: "bus", Image: "bus", Command: []string{"dbus-daemon", "--session"}, Provides: []string{"bus"}, Ready: []Probe{{Kind: "bus", Arg: "org.freedesktop.DBus"}}},
		{Name: "audio", Image: "pipewire", Command: []string{"pipewire"}, Provides: []string{"audio"}, Ready: []Probe{{Kind: "pipewire"}}},
		{Name: "pipewire-pulse", Image: "pipewire", Command: []string{"pipewire-pulse"}, After: []string{"audio"}, Ready: []Probe{{Kind: "pulse"}}},
		{Name: "vnc", Image: "x11vnc", Command: []string{"x11vnc"}, Provides: []string{"vnc"}, Needs: []string{"x11"}, Ready: []Probe{{Kind: "vnc"}}},
	}
}

func testSources() Sources {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	return Sources{
		{Name: "user", FS: fstest.MapFS{
			"loop-a.toml": file("extends = \"loop-b\"\n"),
			"loop-b.toml": file("extends = \"loop-a\"\n"),
			"broken.toml": file("extends = \"base\"\n[display]\nsiez = \"1x1\"\n"),
			"base.toml":   file("extends = \"base\"\n[look]\ndark = true\n"),
		}},
		{Name: "built-in", FS: fstest.MapFS{
			"base.toml": file(`
description = "The base"
session = "wm"
[display]
size = "1024x768"
[locale]
keyboard = ["us", "de"]
[components.wm]
image = "openbox"
command = ["openbox", "--sm-disable"]
provides = ["window-manager"]
ready = "wm"
env = { A = "1", B = "2" }
[components.panel]
image = "openbox"
command = ["tint2"]
provides = ["panel"]
after = ["window-manager"]
ready = "dock"
restart = "always"
`),
		}},
	}
}

const separator = "\n---- errors ----\n"

// TestCheck compares the errors of every file in testdata/check with the text behind its separator.
func TestCheck(t *testing.T) {
	files, err := filepath.Glob("testdata/check/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, want, _ := strings.Cut(string(data), separator)
			_, err = ResolveText("test.toml", []byte(in), testSources(), nil, func(*Profile) ([]Component, error) { return testInfra(), nil })
			if err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Errorf("%v is not orchestrator.ErrInvalid", err)
			}
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(file, []byte(in+separator+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}
