package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// execFifo is where the first process of a created container waits: it opens the file for writing, writes a byte, and
// executes the program. Reading that byte is all that `runc start` does.
const execFifo = "exec.fifo"

// releaseTimeout is how long a created process may take to answer; it only waits for us.
const releaseTimeout = time.Minute

var errNotReleased = errors.New("the process does not wait to be started")

// release lets the first process of a created container execute its program, as `runc start` does, without starting that
// program for it: of a container's start this is a tenth of a millisecond instead of ten, and a desktop has starts that
// wait for one another. The pod's shim goes on calling the task created; that it runs is told by its .started file. A
// container that does not wait in the way known here is errNotReleased, and is left as it is, for `runc start`. So are those
// of other runtimes: crun keeps a FIFO of the same name, from which it waits to read.
func (e *Engine) release(id string, pid int) error {
	if !e.releases {
		return errNotReleased
	}
	path := filepath.Join(e.runcOptions.Root, string(e.namespace), id, execFifo)
	// Open for both directions a FIFO neither blocks nor ends (fifo(7)), and the process, which waits for a reader, goes on.
	// Its end is told by its descriptor.
	proc, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errNotReleased
	}
	defer unix.Close(proc)
	fifo, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return errNotReleased
	}
	defer unix.Close(fifo)
	deadline := time.Now().Add(releaseTimeout)
	for {
		fds := []unix.PollFd{{Fd: int32(fifo), Events: unix.POLLIN}, {Fd: int32(proc), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("start: %w", err)
		}
		if fds[0].Revents&unix.POLLIN != 0 {
			break
		}
		if fds[1].Revents != 0 || time.Now().After(deadline) {
			return errNotReleased
		}
	}
	// The runtime takes a container without the file for running.
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return nil
}
