// Package api holds the documents of Berth's HTTP API (docs/openapi.yaml), shared by the daemon and its clients.
// Fields are only ever added.
package api

import (
	"time"

	"berth/orchestrator"
	"berth/profiles"
)

// Session states.
const (
	StateStarting = "starting" // components are being started
	StateRunning  = "running"  // all required components are ready
	StateDegraded = "degraded" // runs, but a component has failed for good or is backing off
	StateStopping = "stopping"
	StateFailed   = "failed" // a required component failed for good
)

// Session is one session as `berth show --json` prints it.
type Session struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Profile string    `json:"profile"`
	State   string    `json:"state"`
	User    string    `json:"user"` // host user who owns it
	UID     int       `json:"uid"`
	Created time.Time `json:"created"`
	ReadyMS int64     `json:"ready_ms"` // from request to ready; 0 while starting
	Error   string    `json:"error,omitempty"`
	Display Display   `json:"display"`
	Audio   Audio     `json:"audio"`
	Bus     Bus       `json:"bus"`
	Remote  Remote    `json:"remote"`
	Home    string    `json:"home"` // path on the host
	IP      string    `json:"ip,omitempty"`
	// NetworkError tells why a session that is to have a network has none.
	NetworkError string      `json:"network_error,omitempty"`
	Components   []Component `json:"components"`
}

// Display of a session. Socket and XAuthority are paths on the host, usable by root.
type Display struct {
	Server     string `json:"server"`
	Number     int    `json:"number"`
	Size       string `json:"size"` // "1920x1080", as it is now
	DPI        int    `json:"dpi"`
	Socket     string `json:"socket"`
	XAuthority string `json:"xauthority"`
}

// Audio of a session; paths on the host.
type Audio struct {
	Server         string `json:"server"`
	PulseSocket    string `json:"pulse_socket"`
	PipeWireSocket string `json:"pipewire_socket,omitempty"`
}

// Bus is the session bus.
type Bus struct {
	Address string `json:"address"` // D-Bus address usable on the host
}

// Remote says how the session is reached from outside.
type Remote struct {
	VNC      string `json:"vnc"`      // host:port
	Web      string `json:"web"`      // URL, with its login token
	Password string `json:"password"` // VNC password, 8 characters
	Socket   string `json:"socket"`   // VNC server's Unix socket on the host
}

// Component of a session.
type Component struct {
	Name     string   `json:"name"`
	Roles    []string `json:"roles"`
	Image    string   `json:"image"`
	State    string   `json:"state"` // waiting | created | starting | ready | backoff | failed | exited | stopped | idle
	PID      int      `json:"pid"`
	Restarts int      `json:"restarts"`
	ReadyMS  int64    `json:"ready_ms"` // from the session's request to ready
	CPU      float64  `json:"cpu"`      // percent of one core, since the last look
	Memory   int64    `json:"memory"`   // bytes
	Error    string   `json:"error,omitempty"`
}

// UpRequest starts a session.
type UpRequest struct {
	Profile string   `json:"profile"`
	Name    string   `json:"name,omitempty"`
	Set     []string `json:"set,omitempty"` // KEY=VALUE
	// Source is the profile's text when the caller names a file; Profile is then its path, for messages.
	Source  string `json:"source,omitempty"`
	VNCPort int    `json:"vnc_port,omitempty"` // asked for; 0 means any
	User    string `json:"user,omitempty"`     // root only: run as this host user
}

// UpEvent is one line of the answer to UpRequest, a stream of JSON documents: progress, then exactly one with Session or Error.
type UpEvent struct {
	Message   string   `json:"message,omitempty"`   // "building image xfce"
	Component string   `json:"component,omitempty"` // whose state changed
	State     string   `json:"state,omitempty"`
	Build     *Build   `json:"build,omitempty"`
	Session   *Session `json:"session,omitempty"`
	Error     *Error   `json:"error,omitempty"`
}

// Build is BuildKit progress: one SolveStatus document of github.com/moby/buildkit/client, as JSON.
type Build struct {
	Image  string `json:"image"`
	Status []byte `json:"status,omitempty"`
}

// Error is an error answer.
type Error struct {
	Code    string `json:"code"` // not_found | exists | invalid | state | unavailable | forbidden | canceled | internal
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Event is one server-sent event.
type Event struct {
	Time      time.Time `json:"time"`
	Type      string    `json:"type"` // session.starting, session.running, session.degraded, session.failed, session.stopping, session.stopped, component.starting, component.ready, component.exited, component.backoff, component.failed, image.built, image.pulled, image.removed
	Session   string    `json:"session,omitempty"`
	Component string    `json:"component,omitempty"`
	Message   string    `json:"message,omitempty"`
	UID       int       `json:"-"` // owner, for filtering
}

// Span is one bar of `berth trace`, in milliseconds since the request.
type Span struct {
	Component string  `json:"component"` // "" for the session's own steps
	Phase     string  `json:"phase"`     // image | wires | gateway | pod | paint of the session; create | wait | start | probe of a component
	Start     float64 `json:"start_ms"`
	End       float64 `json:"end_ms"`
	WaitedFor string  `json:"waited_for,omitempty"` // of wait: the component that became ready last; of probe: the probe
}

// Trace is the start of a session.
type Trace struct {
	Session string  `json:"session"`
	Spans   []Span  `json:"spans"`
	ReadyMS float64 `json:"ready_ms"`
}

// DaemonInfo is the daemon's own state.
type DaemonInfo struct {
	Version  string            `json:"version"`
	PID      int               `json:"pid"`
	Root     string            `json:"root"`
	Engine   orchestrator.Info `json:"engine"`
	Gateway  string            `json:"gateway"` // base URL
	Sessions int               `json:"sessions"`
	Problems []string          `json:"problems,omitempty"` // "CHECK: what does not work; what to do", as the daemon found them when it started
	// AdminURL lists all sessions and logs in to them; for root only.
	AdminURL string `json:"admin_url,omitempty"`
	// Fingerprint is the SHA-256 of the gateway's certificate as browsers show it; "" without TLS.
	Fingerprint string `json:"fingerprint,omitempty"`
}

// Plan is the answer to a plan request.
type Plan = profiles.Plan

// GuessRequest asks how the desktop in an image is started.
type GuessRequest struct {
	Image   string `json:"image"`             // a reference, or a built-in recipe's name; fetched or built if it is not there
	Session string `json:"session,omitempty"` // the name of one of its sessions; chosen if absent
	Profile string `json:"profile,omitempty"` // what to call the profile; after the image if absent
}

// GuessEvent is one line of the answer to GuessRequest: progress, then exactly one with Guess or Error.
type GuessEvent struct {
	Message string `json:"message,omitempty"`
	Build   *Build `json:"build,omitempty"`
	Guess   *Guess `json:"guess,omitempty"`
	Error   *Error `json:"error,omitempty"`
}

// Guess is how the desktop in an image is started.
type Guess struct {
	Image   string           `json:"image"` // as the profile names it
	Session GuessedSession   `json:"session"`
	Reason  string           `json:"reason"` // why this session
	Others  []GuessedSession `json:"others"`
	Notes   []string         `json:"notes,omitempty"` // what should be known of the image
	Profile string           `json:"profile"`         // the profile's name
	Source  string           `json:"source"`          // its text
}

// GuessedSession is something in an image that could be started.
type GuessedSession struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"` // for people
	Command []string `json:"command"`
	From    string   `json:"from"` // where that was found
}

// ImageList is the answer to GET /v1/images.
type ImageList struct {
	Images  []orchestrator.Image `json:"images"`
	Recipes []string             `json:"recipes"` // built-in names that can be built
}

// ImageEvent is one line of the answer to a build, pull, push or import: progress, then exactly one with Done or Error.
type ImageEvent struct {
	Build    *Build                 `json:"build,omitempty"`
	Progress *orchestrator.Progress `json:"progress,omitempty"`
	Images   []orchestrator.Image   `json:"images,omitempty"` // with Done: what was pulled or imported
	Done     bool                   `json:"done,omitempty"`
	Error    *Error                 `json:"error,omitempty"`
}

// ExecRequest runs a process in a component; see package execstream for what follows it on the connection.
type ExecRequest struct {
	Component string                 `json:"component"`
	Command   []string               `json:"command"`
	Env       []string               `json:"env,omitempty"` // KEY=VALUE, added to the component's
	Cwd       string                 `json:"cwd,omitempty"`
	Root      bool                   `json:"root,omitempty"` // root only: as root of the container instead of the session's user
	TTY       bool                   `json:"tty,omitempty"`
	Size      *orchestrator.TermSize `json:"size,omitempty"` // with TTY: at the start
}

// Size is a screen's size in pixels.
type Size struct {
	Width  int `json:"width"`
	Height int `json:"height"`
}

// ResizeRequest asks for a size of the screen. One that the X server cannot have is an error or, with Nearest, becomes the
// nearest that it can have.
type ResizeRequest struct {
	Size
	Nearest bool `json:"nearest,omitempty"`
}

// SetRequest changes keys of a running session's profile.
type SetRequest struct {
	Set []string `json:"set"` // KEY=VALUE, as in UpRequest
}

// BuildRequest builds built-in recipes.
type BuildRequest struct {
	Names []string `json:"names"`
	BuildOptions
}

// RefRequest pulls or pushes an image.
type RefRequest struct {
	Ref      string `json:"ref"`
	Insecure bool   `json:"insecure,omitempty"` // root only: plain HTTP or an unverified certificate is accepted
}

// TagRequest gives an image a further name.
type TagRequest struct {
	Src string `json:"src"`
	Dst string `json:"dst"`
}

// PruneResult is what a prune did.
type PruneResult struct {
	Freed int64 `json:"freed"` // bytes
}
