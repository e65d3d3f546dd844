package api

import (
	"context"
	"io"
	"os/user"
	"strconv"

	"berth/orchestrator"
)

// Caller is who asks, known by the peer credentials of the API socket (SO_PEERCRED, unix(7)).
// Root sees all sessions, others their own.
type Caller struct {
	UID, GID int
	Name     string
	Home     string
}

// NewCaller is the user uid as this host knows it: a user of no account has its number for a name and no home directory.
func NewCaller(uid, gid int) Caller {
	c := Caller{UID: uid, GID: gid, Name: strconv.Itoa(uid), Home: "/"}
	if u, err := user.LookupId(c.Name); err == nil {
		c.Name, c.Home = u.Username, u.HomeDir
	}
	return c
}

// Root tells whether the caller may see and do everything.
func (c Caller) Root() bool { return c.UID == 0 }

// Manager is what the API serves of sessions; session.Manager implements it. A name that does not exist, or that the
// caller may not see, is ErrNotFound of package orchestrator; the other classes are used alike.
type Manager interface {
	// Up starts a session and returns when it is ready. Cancelling ctx takes down what was started. progress may be nil.
	Up(ctx context.Context, c Caller, req UpRequest, progress func(UpEvent)) (Session, error)
	Sessions(ctx context.Context, c Caller) ([]Session, error)
	Session(ctx context.Context, c Caller, name string) (Session, error)
	// Stop ends the session and removes all of it but a home volume. It returns when everything is gone.
	Stop(ctx context.Context, c Caller, name string) error
	// Remove removes a failed session; with force a running one too; with home its home volume as well.
	Remove(ctx context.Context, c Caller, name string, force, home bool) error
	// Logs reads the log of one component, or of all, each line led by "component | ", when component is "".
	Logs(ctx context.Context, c Caller, name, component string, tail int, follow bool) (io.ReadCloser, error)
	Exec(ctx context.Context, c Caller, name, component string, spec orchestrator.ExecSpec) (int, error)
	// Events delivers events of the sessions the caller may see until ctx ends, then closes the channel.
	Events(ctx context.Context, c Caller) (<-chan Event, error)
	// Shot returns the screen as PNG.
	Shot(ctx context.Context, c Caller, name string) ([]byte, error)
	// Set changes the look and the keyboard of a session that runs, and what its components find when they are restarted.
	// Any other key is profiles.Errors.
	Set(ctx context.Context, c Caller, name string, req SetRequest) error
	// Resize sets the screen's size in pixels through RandR and returns what it has become.
	Resize(ctx context.Context, c Caller, name string, req ResizeRequest) (Size, error)
	Trace(ctx context.Context, c Caller, name string) (Trace, error)
	// Plan resolves a profile without starting anything.
	Plan(ctx context.Context, c Caller, req UpRequest) (Plan, error)
	// Guess finds out how the desktop in an image is started and makes a profile of it. An image that is missing is built or
	// pulled first. One without a desktop is ErrNotFound. progress may be nil.
	Guess(ctx context.Context, c Caller, req GuessRequest, progress func(UpEvent)) (Guess, error)
}

// BuildOptions of Images.Build.
type BuildOptions struct {
	NoCache bool `json:"no_cache,omitempty"`
	// Force rebuilds an image whose recipe has not changed.
	Force bool `json:"force,omitempty"`
}

// EnsureOptions of Images.Ensure.
type EnsureOptions struct {
	// Anonymous pulls without root's credentials: who asks is not root.
	Anonymous bool
}

// Images is what the API serves of images; orchestrator/images.Service implements it. Names are those of built-in
// recipes ("xfce", "xfce-13") or references.
type Images interface {
	List(ctx context.Context) ([]orchestrator.Image, error)
	// Recipes lists the built-in names that Build knows.
	Recipes() []string
	// Build builds the named recipes with their bases, in order; progress may be nil.
	Build(ctx context.Context, names []string, opt BuildOptions, progress func(Build)) error
	// Ensure makes every named image present, by building a recipe that is missing or outdated and pulling any other that
	// is missing, and returns name -> full reference. progress may be nil.
	Ensure(ctx context.Context, names []string, opt EnsureOptions, progress func(UpEvent)) (map[string]string, error)
	// Resolve returns the full reference for a name, without looking whether it is there.
	Resolve(name string) (string, error)
	Pull(ctx context.Context, ref string, opt orchestrator.TransferOptions) (orchestrator.Image, error)
	Push(ctx context.Context, ref string, opt orchestrator.TransferOptions) error
	Import(ctx context.Context, r io.Reader, opt orchestrator.TransferOptions) ([]orchestrator.Image, error)
	Export(ctx context.Context, w io.Writer, refs ...string) error
	Tag(ctx context.Context, src, dst string) error
	Remove(ctx context.Context, ref string) error
	// Prune removes images of built-in recipes that were replaced, unused build cache and dangling content, and
	// returns the bytes freed.
	Prune(ctx context.Context) (int64, error)
}
