package containerd

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"berth/orchestrator"

	"github.com/containerd/errdefs"
)

// classify adds the error class of package orchestrator that matches containerd's.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return classed{orchestrator.ErrNotFound, err}
	case errdefs.IsAlreadyExists(err):
		return classed{orchestrator.ErrExists, err}
	case errdefs.IsInvalidArgument(err):
		return classed{orchestrator.ErrInvalid, err}
	case errdefs.IsFailedPrecondition(err):
		return classed{orchestrator.ErrState, err}
	case errdefs.IsUnavailable(err):
		return classed{orchestrator.ErrUnavailable, err}
	}
	return err
}

// classed is an error of a class with the text of its cause, which names the class in containerd's words already.
type classed struct{ class, cause error }

func (e classed) Error() string   { return e.cause.Error() }
func (e classed) Unwrap() []error { return []error{e.class, e.cause} }

func podErr(id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("pod %q: %w", id, classify(err))
}

func containerErr(pod, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("pod %q: container %q: %w", pod, name, classify(err))
}

// runc's words for a program that the image does not have.
var noProgram = regexp.MustCompile(`exec: "([^"]*)": (executable file not found|stat .*: no such file|no such file)|` +
	`exec: "([^"]*)": permission denied|exec (\S+): no such file or directory`)

// commandErr turns the runtime's error about a missing program into ErrNotFound.
func commandErr(err error, command, image string) error {
	if err == nil || !noProgram.MatchString(err.Error()) {
		return err
	}
	if strings.Contains(err.Error(), "permission denied") {
		return fmt.Errorf("command %q: %w: not executable in image %q", command, orchestrator.ErrInvalid, image)
	}
	return fmt.Errorf("command %q: %w in image %q", command, orchestrator.ErrNotFound, image)
}

// names is what containerd takes for an identifier, without dots, which separate pod and container.
var names = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

const (
	maxName = 64
	// maxID is containerd's limit for identifiers.
	maxID = 76
)

func checkName(noun, name string) error {
	if len(name) > maxName || !names.MatchString(name) {
		return fmt.Errorf("%s %q: %w: use at most %d of a-z, 0-9 and single dashes between them", noun, name, orchestrator.ErrInvalid, maxName)
	}
	return nil
}

// containerID is the containerd identifier of a pod's container; that of the anchor is the pod's own.
func containerID(pod, name string) string {
	if name == "" {
		return pod
	}
	return pod + "." + name
}

// lookupID is containerID for a container that is to exist already, which one of an impossible name does not.
func lookupID(pod, name string) (string, error) {
	if !names.MatchString(pod) || !names.MatchString(name) {
		return "", orchestrator.ErrNotFound
	}
	return containerID(pod, name), nil
}

// splitID undoes containerID.
func splitID(id string) (pod, name string) {
	pod, name, _ = strings.Cut(id, ".")
	return pod, name
}

// stepsTimeout ends the steps of a change to the host when containerd hangs.
const stepsTimeout = 5 * time.Minute

// detached returns a context for the steps of a change to the host, in which the caller's cancellation does not interrupt a
// step half-way: containerd would kill the shim's start and leave its socket. The caller looks at its own between steps.
func (n namespace) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(n.withNamespace(ctx)), stepsTimeout)
}

// cancelled makes the cancellation of ctx the reason of err, if it is.
func cancelled(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}
