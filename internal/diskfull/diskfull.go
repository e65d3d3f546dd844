// Package diskfull recognises errors that mean a full disk and says what to do about them.
package diskfull

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/orchestrator"
)

// Error is an operation's error that a full disk brought about. It is orchestrator.ErrUnavailable.
type Error struct {
	Dir  string // lies on the disk
	Left uint64 // bytes that were free when the error was explained; what failed has been taken back by then
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%v\n%v: the disk that holds %s is full (%d MiB left): free some of it, for example with `berth image prune` and `berth image rm`",
		e.Err, orchestrator.ErrUnavailable, e.Dir, e.Left>>20)
}

// Unwrap returns the operation's error and the class.
func (e *Error) Unwrap() []error { return []error{e.Err, orchestrator.ErrUnavailable} }

// Is tells whether an error means a full disk. What comes from containerd and BuildKit is text.
func Is(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSPC) || strings.Contains(strings.ToLower(err.Error()), "no space left on device"))
}

// Explain makes an Error of one that means a full disk, unless it is one already; others, and nil, pass. dir lies on the
// disk.
func Explain(err error, dir string) error {
	var known *Error
	if !Is(err) || errors.As(err, &known) {
		return err
	}
	e := &Error{Dir: dir, Err: err}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil {
		e.Left = st.Bavail * uint64(st.Bsize)
	}
	return e
}
