// Package revert undoes the finished steps of a change to the host when a later step fails.
//
//	var undo revert.Stack
//	defer undo.Run(ctx)
//	... undo.Add("unmount /x", func(ctx context.Context) error { ... })
//	undo.Disarm() // everything worked
package revert

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Stack holds undo steps and runs them last to first. The zero value is ready; it is safe for concurrent use.
type Stack struct {
	mu    sync.Mutex
	steps []step
}

type step struct {
	what string
	undo func(context.Context) error
}

// Add registers the undo of a step that has just succeeded; what names it in errors.
func (s *Stack) Add(what string, undo func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{what, undo})
}

// Disarm forgets all steps: the change is complete and stays.
func (s *Stack) Disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = nil
}

// Run undoes all remaining steps, last first, each even if another fails, and returns what failed joined.
// The context's cancellation is ignored: an interrupted change is undone all the same.
func (s *Stack) Run(ctx context.Context) error {
	s.mu.Lock()
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if err := steps[i].undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %q: %w", steps[i].what, err))
		}
	}
	return errors.Join(errs...)
}
