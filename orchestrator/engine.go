// Package orchestrator defines what Berth asks of a container engine.
//
// # Model
//
// A pod is a set of containers that share one network, one IPC and one PID namespace, held by an anchor process that
// reaps orphans, so that any container of the pod can restart without the namespaces going away. The shape maps one
// to one onto a Kubernetes Pod. A pod is named by its ID, a container by its pod and its own name.
//
// The engine is the only database: a pod carries Labels, by which it is found, and Data, an opaque document that its
// owner stores with it (Berth keeps the session's plan there). Both survive the owner, so a killed daemon adopts every
// pod it finds at the next start.
//
// # A session's life
//
//	pod, _ := e.CreatePod(ctx, PodSpec{ID: "xfce-1f", ...})        // the anchor runs
//	_ = e.CreateContainer(ctx, pod.ID, ContainerSpec{Name: "x"})   // everything is set up, nothing runs yet
//	_ = e.StartContainer(ctx, pod.ID, "x")                         // cheap: the program starts now
//	_ = e.StopContainer(ctx, pod.ID, "x", 5*time.Second)           // SIGTERM, then SIGKILL
//	_ = e.RemoveContainer(ctx, pod.ID, "x")
//	_ = e.RemovePod(ctx, pod.ID)                                   // whatever is left, in any state
//
// # Rules for implementations
//
// Every method is safe for concurrent use. A method that fails leaves nothing behind. Remove methods are idempotent:
// what is not there is not an error. Errors wrap one class of this package (ErrNotFound, ErrExists, ErrInvalid,
// ErrState, ErrUnavailable) and name the thing first: `container "panel": image "berth/xfce:latest": not found`.
// No type of a concrete engine appears here. The suite in orchestrator/conformance is the executable form of this page.
package orchestrator

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"
)

// Error classes. Test with errors.Is.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrInvalid     = errors.New("invalid")
	ErrState       = errors.New("wrong state")             // for example: start of a running container
	ErrUnavailable = errors.New("not usable on this host") // the text says what to do
)

// Engine runs pods.
type Engine interface {
	// CreatePod makes the namespaces, the pod's cgroup and the anchor, which runs when it returns.
	CreatePod(ctx context.Context, spec PodSpec) (Pod, error)
	// Pod returns the pod called id.
	Pod(ctx context.Context, id string) (Pod, error)
	// Pods lists the pods whose labels include all of match; nil matches all.
	Pods(ctx context.Context, match map[string]string) ([]Pod, error)
	// SetPodData replaces the document stored with the pod.
	SetPodData(ctx context.Context, id string, data []byte) error
	// RemovePod kills and removes every container of the pod, then the anchor, cgroup, network and namespaces.
	RemovePod(ctx context.Context, id string) error

	// CreateContainer prepares a container so far that StartContainer is cheap: snapshot, mounts, namespaces. A missing
	// image is ErrNotFound. Command[0] that is not in the image is reported by StartContainer or here, as ErrNotFound.
	CreateContainer(ctx context.Context, pod string, spec ContainerSpec) error
	// StartContainer starts a created container and returns its first process's ID in the host's PID namespace.
	// A container that has exited is started anew from the same spec with a fresh writable layer.
	StartContainer(ctx context.Context, pod, name string) (pid int, err error)
	// SignalContainer sends a signal to the container's first process.
	SignalContainer(ctx context.Context, pod, name string, sig int) error
	// StopContainer sends SIGTERM (or the spec's StopSignal), waits up to grace, then kills everything in the container.
	// It returns when the container has exited. Stopping one that does not run is not an error.
	StopContainer(ctx context.Context, pod, name string, grace time.Duration) error
	// RemoveContainer kills the container if it runs and removes it with its writable layer.
	RemoveContainer(ctx context.Context, pod, name string) error
	// Container returns one container's status.
	Container(ctx context.Context, pod, name string) (ContainerStatus, error)
	// Containers lists the containers of a pod (without the anchor), by name.
	Containers(ctx context.Context, pod string) ([]ContainerStatus, error)
	// Exec runs a further process in a running container and returns its exit code when it has ended.
	// Cancelling ctx kills the process.
	Exec(ctx context.Context, pod, name string, spec ExecSpec) (exitCode int, err error)
	// Logs reads the container's standard output and error, merged. With follow it goes on until ctx ends or the
	// container is removed. tail < 0 means from the start, else the last tail lines.
	Logs(ctx context.Context, pod, name string, tail int, follow bool) (io.ReadCloser, error)
	// Stats returns usage per container name.
	Stats(ctx context.Context, pod string) (map[string]Stats, error)
	// Events delivers container starts and exits of all pods until ctx ends, then closes the channel.
	// A subscriber sees every exit that happens after Events has returned.
	Events(ctx context.Context) (<-chan Event, error)

	// Images is the engine's image store.
	Images() Images
	// Info says what the engine is and what it found on this host.
	Info(ctx context.Context) (Info, error)
	// Close releases the connection. Pods go on.
	Close() error
}

// Images is a store of OCI images. References are full names as in the Docker reference grammar
// (registry/repository:tag or @digest); NormalizeRef turns what a user types into one.
type Images interface {
	List(ctx context.Context) ([]Image, error)
	Get(ctx context.Context, ref string) (Image, error)
	// Pull fetches ref from its registry and unpacks it. Credentials are those of the Docker config file of the user the
	// engine runs as, unless opt is Anonymous.
	Pull(ctx context.Context, ref string, opt TransferOptions) (Image, error)
	// Push sends ref to its registry.
	Push(ctx context.Context, ref string, opt TransferOptions) error
	// Import reads a `docker save` or OCI layout archive (plain, gzip or zstd), verifies every digest, unpacks, and
	// returns the images it held. A damaged archive is ErrInvalid and leaves nothing.
	Import(ctx context.Context, r io.Reader, opt TransferOptions) ([]Image, error)
	// Export writes an OCI layout archive that `docker load` also reads.
	Export(ctx context.Context, w io.Writer, refs ...string) error
	// Tag gives the image src the further name dst.
	Tag(ctx context.Context, src, dst string) error
	// Remove deletes the name; content no name needs goes too. An image that a container uses is ErrState.
	Remove(ctx context.Context, ref string) error
	// ReadFile returns a regular file of the image's root file system, following symbolic links inside the image only.
	// At most 16 MiB. A missing one is ErrNotFound.
	ReadFile(ctx context.Context, ref, path string) ([]byte, error)
	// View calls visit with the image's root file system, which is read-only and valid until visit returns. Links are
	// resolved inside the image only; fs.Lstat and fs.ReadLink see the links themselves. View returns visit's error.
	View(ctx context.Context, ref string, visit func(root fs.FS) error) error
}

// TransferOptions apply to Pull, Push and Import.
type TransferOptions struct {
	Insecure  bool           // plain HTTP or an unverified certificate is accepted
	Anonymous bool           // Pull without credentials
	Progress  func(Progress) // called from one goroutine at a time; may be nil
}

// Progress is one state of one part of a transfer.
type Progress struct {
	ID     string `json:"id"`     // digest or name
	Status string `json:"status"` // "waiting", "downloading", "uploading", "extracting", "done", "exists"
	Done   int64  `json:"done"`   // bytes
	Total  int64  `json:"total"`  // bytes, 0 if unknown
}

// Image is one name in the store.
type Image struct {
	Ref     string            `json:"ref"`
	Digest  string            `json:"digest"` // of the manifest
	Size    int64             `json:"size"`   // bytes of unpacked layers on disk, layers shared with other images included
	Packed  int64             `json:"packed"` // bytes of the compressed blobs
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Env     []string          `json:"-"`
	Cmd     []string          `json:"-"` // entrypoint and command, joined
	Layers  []string          `json:"-"` // chain of diff IDs, lowest first
	InUse   bool              `json:"in_use"`
}

// PodSpec describes a pod.
type PodSpec struct {
	ID       string // [a-z0-9-], at most 64
	Hostname string
	Labels   map[string]string
	Data     []byte
	Limits   Limits
	Network  NetworkMode
}

// NetworkMode says how a pod reaches the network.
type NetworkMode string

const (
	NetworkNone NetworkMode = "none" // loopback only
	NetworkNAT  NetworkMode = "nat"  // own address, masqueraded behind the host's
	NetworkHost NetworkMode = "host" // the host's own network namespace
)

// Limits bounds a pod as a whole. Zero means none.
type Limits struct {
	CPUs   float64 `json:"cpus,omitempty"`   // cores
	Memory int64   `json:"memory,omitempty"` // bytes
	PIDs   int64   `json:"pids,omitempty"`
}

// Pod is the state of a pod.
type Pod struct {
	ID        string
	Labels    map[string]string
	Data      []byte
	Created   time.Time
	Running   bool // the anchor lives
	AnchorPID int  // in the host's PID namespace
	IP        string
	// NetworkError tells why a pod with NetworkNAT has no network; "" while it is being connected and when it is.
	NetworkError string
}

// ContainerSpec describes a container.
type ContainerSpec struct {
	Name    string // [a-z0-9-], at most 64, unique in the pod
	Image   string // full reference
	Command []string
	Env     []string // replaces the image's variables of the same names
	Cwd     string   // "" means the image's, else "/"
	UID     int
	GID     int
	Groups  []int // additional groups
	Mounts  []Mount
	Devices []string // host device nodes, same path inside
	Caps    []string // "CAP_SYS_TTY_CONFIG"; all others are dropped
	Labels  map[string]string
	// StopSignal is sent by StopContainer; 0 means SIGTERM.
	StopSignal int
	// Limits bounds this container inside its pod.
	Limits Limits
	// ReadOnly makes the root file system read-only.
	ReadOnly bool
	// NewPrivileges allows execve to gain privileges (set-uid programs). Default: no-new-privileges is set.
	NewPrivileges bool
	// Seccomp names a profile: "" is the default profile, "unconfined" none.
	Seccomp string
}

// Mount is a bind mount of a host path.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// State of a container.
type State string

const (
	StateCreated State = "created"
	StateRunning State = "running"
	StateExited  State = "exited"
)

// ContainerStatus is the state of a container.
type ContainerStatus struct {
	Name       string
	Image      string
	Digest     string
	State      State
	PID        int
	ExitCode   int
	StartedAt  time.Time
	FinishedAt time.Time
	Labels     map[string]string
}

// ExecSpec describes a further process.
type ExecSpec struct {
	Command []string
	Env     []string // added to the container's
	Cwd     string
	// UID and GID are the container's own if nil.
	UID, GID *int
	Stdin    io.Reader // may be nil
	Stdout   io.Writer // may be nil
	Stderr   io.Writer // may be nil; with TTY everything goes to Stdout
	TTY      bool
	Resize   <-chan TermSize // with TTY; may be nil
}

// TermSize is a terminal's size in characters.
type TermSize struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// Stats is a container's usage.
type Stats struct {
	CPU    time.Duration // total CPU time used
	Memory int64         // bytes, without reclaimable page cache
	PIDs   int64
}

// EventType is what happened.
type EventType string

const (
	EventStart EventType = "start"
	EventExit  EventType = "exit"
	EventOOM   EventType = "oom"
)

// Event is something that happened to a container. The anchor's events carry the name "".
type Event struct {
	Time      time.Time
	Type      EventType
	Pod       string
	Container string
	ExitCode  int
	PID       int
}

// Info describes the engine.
type Info struct {
	Name        string `json:"name"`    // "containerd"
	Version     string `json:"version"` // of the engine
	Runtime     string `json:"runtime"` // "runc 1.5.2"
	Snapshotter string `json:"snapshotter"`
	Cgroup      string `json:"cgroup"` // "v1", "hybrid", "v2"
}
