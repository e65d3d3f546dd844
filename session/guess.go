package session

import (
	"context"
	"fmt"
	"io/fs"
	"slices"

	"github.com/distribution/reference"

	"berth/orchestrator"
	"berth/session/api"
	"berth/session/guess"
)

// Guess implements api.Manager.
func (m *Manager) Guess(ctx context.Context, c api.Caller, req api.GuessRequest, progress func(api.UpEvent)) (api.Guess, error) {
	if progress == nil {
		progress = func(api.UpEvent) {}
	}
	refs, err := m.opt.Images.Ensure(ctx, []string{req.Image}, api.EnsureOptions{Anonymous: !c.Root()}, progress)
	if err != nil {
		return api.Guess{}, err
	}
	ref := refs[req.Image]
	store := m.opt.Engine.Images()
	img, err := store.Get(ctx, ref)
	if err != nil {
		return api.Guess{}, err
	}
	name, err := m.imageName(req.Image, ref)
	if err != nil {
		return api.Guess{}, err
	}
	var g *guess.Guess
	err = store.View(ctx, ref, func(root fs.FS) error {
		var err error
		g, err = guess.Of(root, guess.Image{Ref: name, Env: img.Env, Cmd: img.Cmd}, guess.Options{Session: req.Session, Profile: req.Profile})
		return err
	})
	if err != nil {
		return api.Guess{}, err
	}
	out := api.Guess{Image: name, Session: guessed(g.Session), Reason: g.Reason, Notes: g.Notes, Profile: g.Profile, Source: g.Source}
	for _, s := range g.Others {
		out.Others = append(out.Others, guessed(s))
	}
	return out, nil
}

func guessed(s guess.Session) api.GuessedSession {
	return api.GuessedSession{Name: s.Name, Title: s.Title, Command: s.Command, From: s.From}
}

// imageName is how a profile names the image that was asked for as typed: a recipe by its name, any other with its tag, so
// that it is not taken for a recipe's misspelt name.
func (m *Manager) imageName(typed, ref string) (string, error) {
	if slices.Contains(m.opt.Images.Recipes(), typed) {
		return typed, nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("image %q: %w name: %w", typed, orchestrator.ErrInvalid, err)
	}
	return reference.FamiliarString(named), nil
}
