package api

import (
	"context"
	"errors"
	"fmt"

	"berth/orchestrator"
)

// Codes of Error.
const (
	CodeNotFound    = "not_found"
	CodeExists      = "exists"
	CodeInvalid     = "invalid"
	CodeState       = "state"
	CodeUnavailable = "unavailable"
	CodeForbidden   = "forbidden"
	CodeCanceled    = "canceled" // the caller went away or asked for an end; what was begun is undone
	CodeInternal    = "internal"
)

// ErrForbidden is the class of errors of a caller who may see a thing but not do this to it.
var ErrForbidden = errors.New("not allowed")

// classes pairs every code with the error class it stands for, the more telling class first.
var classes = []struct {
	code string
	err  error
}{
	{CodeForbidden, ErrForbidden},
	{CodeNotFound, orchestrator.ErrNotFound},
	{CodeExists, orchestrator.ErrExists},
	{CodeInvalid, orchestrator.ErrInvalid},
	{CodeState, orchestrator.ErrState},
	{CodeUnavailable, orchestrator.ErrUnavailable},
	{CodeCanceled, context.Canceled},
}

// Is makes errors.Is(err, orchestrator.ErrNotFound) and the like hold for an error that came over the wire.
func (e *Error) Is(target error) bool {
	for _, c := range classes {
		if c.code == e.Code {
			return target == c.err
		}
	}
	return false
}

// Hinter is an error that knows what its reader can do.
type Hinter interface{ Hint() string }

// ErrorOf returns the answer document for err: its class becomes the code, and the hint is that of the first Hinter
// in its chain. An *Error in the chain lends its code and hint. It returns nil for nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	out := &Error{Code: CodeInternal, Message: err.Error()}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			out.Code = c.code
			break
		}
	}
	var known *Error
	if errors.As(err, &known) {
		out.Code, out.Hint = known.Code, known.Hint
	}
	var h Hinter
	if errors.As(err, &h) {
		out.Hint = h.Hint()
	}
	return out
}

// WithHint adds what the reader can do to err.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hint}
}

// Group is the group whose members may use the daemon.
const Group = "berth"

// JoinHint says how user becomes a member of group, which only `make install` and packages create.
func JoinHint(group, user string) string {
	return fmt.Sprintf("run it as root, or have root run: groupadd -rf %s && usermod -aG %s %s; then log in again, and restart the daemon if the group is new",
		group, group, user)
}

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }
