package profiles

import (
	"fmt"
	"time"
)

// Plan is a profile resolved into the graph of components that makes up a session. It is pure data: building and
// printing one has no side effect. Components are sorted so that each stands behind everything in its After.
type Plan struct {
	Profile     string      `json:"profile"`
	Description string      `json:"description,omitempty"`
	Display     Display     `json:"display"`
	Audio       Audio       `json:"audio"`
	SystemBus   SystemBus   `json:"system_bus"`
	Home        Home        `json:"home"`
	Network     string      `json:"network"` // nat | none | host
	Look        Look        `json:"look"`
	Locale      Locale      `json:"locale"`
	Limits      Limits      `json:"limits"`
	Env         []string    `json:"env,omitempty"` // of every component, KEY=VALUE
	Components  []Component `json:"components"`
	Apps        []App       `json:"apps,omitempty"`
	// Session is the component whose clean exit means that the user logged out; "" if there is none.
	Session string `json:"session,omitempty"`
	// Claims are the names on the session bus that several of the images in Apps can start, as far as their images are there.
	Claims []Claim `json:"claims,omitempty"`
	// AutostartOff are the images' autostart entries that are switched off, as far as the images are there.
	AutostartOff []AutostartOff `json:"autostart_off,omitempty"`
	// Unused are the keys that the profile sets and that have no effect yet, "look.dark".
	Unused []string `json:"unused,omitempty"`
}

// Component is one container of a session.
type Component struct {
	Name     string            `json:"name"`
	Image    string            `json:"image"` // as the profile names it: a built-in recipe's name or a full reference
	Command  []string          `json:"command"`
	Env      map[string]string `json:"env,omitempty"`
	Cwd      string            `json:"cwd,omitempty"`
	Provides []string          `json:"provides,omitempty"` // roles
	After    []string          `json:"after,omitempty"`    // component names that must be ready before this one's program starts
	Needs    []string          `json:"needs,omitempty"`    // wires
	Ready    []Probe           `json:"ready,omitempty"`    // all must hold; empty: ready when started
	// Timeout is how long to wait for Ready before the component counts as failed.
	Timeout time.Duration `json:"timeout"`
	Restart string        `json:"restart"` // always | on-failure | never
	// Optional: the session goes on (degraded) when this component fails for good.
	Optional bool `json:"optional,omitempty"`
	// OnDemand: it is started when somebody calls for it, and may end at any time; nothing waits for it.
	OnDemand bool `json:"on_demand,omitempty"`
	// EndsSession: the session ends when this component, having been ready, exits with 0.
	EndsSession bool              `json:"ends_session,omitempty"`
	Devices     []string          `json:"devices,omitempty"`
	Caps        []string          `json:"caps,omitempty"`
	Files       map[string]string `json:"files,omitempty"` // written into the session directory, mounted read-only: path inside -> content
	StopSig     string            `json:"stop_signal,omitempty"`
	Stop        time.Duration     `json:"stop_timeout,omitempty"` // between StopSig and SIGKILL
}

// Probe is one readiness condition: x11 | wm | dock | desktop | bus:NAME | system-bus:NAME | socket:PATH | pulse | pipewire | vnc | exec:CMD | exit.
// PATH is a path inside the session's containers. exit means: has exited with 0.
type Probe struct {
	Kind string `json:"kind"`
	Arg  string `json:"arg,omitempty"`
}

// String is the form written in profiles.
func (p Probe) String() string {
	if p.Arg == "" {
		return p.Kind
	}
	return fmt.Sprintf("%s:%s", p.Kind, p.Arg)
}

// Display is the [display] table.
type Display struct {
	Server string `json:"server"` // xvfb | xvnc | xorg | xephyr | host
	Width  int    `json:"width"`
	Height int    `json:"height"`
	DPI    int    `json:"dpi"`
}

// Audio is the [audio] table.
type Audio struct {
	Server string `json:"server"` // pipewire | pulseaudio | host | none
}

// SystemBus is the [system_bus] table.
type SystemBus struct {
	Kind string `json:"kind"` // stub | none
}

// Home is the [home] table.
type Home struct {
	Kind string `json:"kind"`           // volume | bind | ephemeral
	Name string `json:"name,omitempty"` // of the volume; "" means the session's name
	Path string `json:"path,omitempty"` // of the bind
}

// App is an image whose applications the other images of the session see: one that an [[apps]] entry names, or that a
// component of the desktop is made from.
type App struct {
	Image  string   `json:"image"`
	Export []string `json:"export"` // patterns (path.Match) of .desktop file names without the suffix
	// Component is where the applications run.
	Component string `json:"component,omitempty"`
	// Idle is how long Component goes on without any of them; 0 means for ever.
	Idle time.Duration `json:"idle,omitempty"`
}

// Claim is a name on the session bus that several images can start.
type Claim struct {
	Name   string   `json:"name"`
	Images []string `json:"images"` // the first one does
}

// AutostartOff is an entry of an image's /etc/xdg/autostart that would bring a second owner of a role.
type AutostartOff struct {
	Image string `json:"image"`
	File  string `json:"file"`
	Owner string `json:"owner"` // the component that the session has instead
}

// Look is the [look] table. Nil and "" mean: as the images have it.
type Look struct {
	Dark   *bool   `json:"dark,omitempty"`
	Font   string  `json:"font,omitempty"`
	Cursor string  `json:"cursor,omitempty"`
	Icons  string  `json:"icons,omitempty"`
	Theme  string  `json:"theme,omitempty"`
	Scale  float64 `json:"scale,omitempty"`
}

// Locale is the [locale] table.
type Locale struct {
	Lang        string   `json:"lang,omitempty"`
	Timezone    string   `json:"timezone,omitempty"`
	Keyboard    []string `json:"keyboard,omitempty"`
	InputMethod string   `json:"input_method,omitempty"`
}

// Limits is the [limits] table. Zero means none.
type Limits struct {
	CPUs   float64 `json:"cpus,omitempty"`
	Memory int64   `json:"memory,omitempty"` // bytes
	PIDs   int64   `json:"pids,omitempty"`
}

// Component finds a component by name.
func (p *Plan) Component(name string) (Component, bool) {
	for _, c := range p.Components {
		if c.Name == name {
			return c, true
		}
	}
	return Component{}, false
}

// Owner returns the component that provides role, or "".
func (p *Plan) Owner(role string) string {
	for _, c := range p.Components {
		for _, r := range c.Provides {
			if r == role {
				return c.Name
			}
		}
	}
	return ""
}
