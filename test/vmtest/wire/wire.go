// Package wire is what a test and the agent in its machine say to each other over a virtio-serial port: JSON documents,
// requests from the one and replies from the other, one command at a time.
package wire

// Port is the name of the virtio-serial port.
const Port = "berth.vmtest"

// Request is a command to run as root, with Env added to the agent's environment.
type Request struct {
	Argv  []string
	Env   []string
	Stdin []byte
	// Seconds is how long it may take; then it is killed with all it started in its session.
	Seconds int
}

// Reply is a piece of what a command prints or, with Done, how it ended. The first reply of all answers no request; it
// says that the agent is there.
type Reply struct {
	Stdout, Stderr []byte
	Done           bool
	Code           int    // the exit code; -1 for a signal
	Error          string // why it could not be run, or was not let to its end
}
