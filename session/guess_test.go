package session

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
	"berth/orchestrator/fake"
	"berth/session/api"
)

func (imagesAsNamed) Recipes() []string { return []string{"xfce"} }

func TestGuess(t *testing.T) {
	b := newBed(t)
	for ref, files := range map[string]map[string]string{
		"registry.example/a/desk:1": {"/usr/share/xsessions/lxde.desktop": "[Desktop Entry]\nName=LXDE\nExec=startlxde\n", "/usr/bin/startlxde": "", "/usr/bin/twm": ""},
		"xfce":                      {"/usr/bin/startxfce4": ""},
		"registry.example/empty:1":  {"/bin/sh": ""},
	} {
		if err := b.engine.AddImage(fake.ImageSpec{Ref: ref, Files: files, Cmd: []string{"/bin/sh"}}); err != nil {
			t.Fatal(err)
		}
	}
	g, err := b.m.Guess(context.Background(), api.Caller{UID: 1000}, api.GuessRequest{Image: "registry.example/a/desk:1", Profile: "mine"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := api.GuessedSession{Name: "lxde", Title: "LXDE", Command: []string{"startlxde"}, From: "/usr/share/xsessions/lxde.desktop"}
	if d := cmp.Diff(want, g.Session); d != "" || g.Profile != "mine" || len(g.Others) != 1 || !strings.Contains(g.Source, `image    = "registry.example/a/desk:1"`) {
		t.Errorf("guess %+v (-want +got):\n%s", g, d)
	}
	if !b.ensured[0].Anonymous {
		t.Error("an image was fetched for a user with root's credentials")
	}
	// A recipe is called what it is called, so that it is built and kept up to date.
	if g, err := b.m.Guess(context.Background(), root, api.GuessRequest{Image: "xfce"}, nil); err != nil || g.Image != "xfce" {
		t.Errorf("guess %+v, %v; want image xfce", g, err)
	}
	for _, req := range []api.GuessRequest{{Image: "registry.example/empty:1"}, {Image: "registry.example/gone:1"}, {Image: "xfce", Session: "kde"}} {
		if g, err := b.m.Guess(context.Background(), root, req, nil); !errors.Is(err, orchestrator.ErrNotFound) {
			t.Errorf("Guess(%+v) = %+v, %v; want not found", req, g, err)
		}
	}
	if g, err := b.m.Guess(context.Background(), root, api.GuessRequest{Image: "xfce", Profile: "No Name"}, nil); !errors.Is(err, orchestrator.ErrInvalid) {
		t.Errorf("a profile called \"No Name\" = %+v, %v; want invalid", g, err)
	}
}
