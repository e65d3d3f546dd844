// Package config reads the daemon's configuration file, /etc/berth/config.toml (or ROOT/config.toml).
//
// The file is TOML and may be absent; every key has a default that suits one machine with one user. Decoding is strict:
// an unknown key, a wrong type or a value out of range is an error with line and column, and all errors of a file are
// reported at once. The keys, their defaults and what they mean stand in one table, fields, from which Example is made too.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSize bounds the file, in bytes; a bigger one is not a configuration.
const maxSize = 1 << 20

// Config is the whole file. A pointer to one that nobody changes any more is safe for concurrent use.
type Config struct {
	Engine  Engine
	Gateway Gateway
	Images  Images
	Session Session
}

// Engine configures the container engine.
type Engine struct {
	Containerd  string        // Unix socket of an existing containerd; "" runs a private one
	Snapshotter string        // never empty
	Runtime     string        // OCI runtime in place of the built runc; "" for that one
	Subnet      string        // IPv4 network of the sessions; "" means a free one below 10.128.0.0/9
	BuildIdle   time.Duration // how long buildkitd stays after a build
}

// Gateway configures what listens on the network.
type Gateway struct {
	Listen        string // host:port of the web page; "" means 127.0.0.1:6080 or the next free port
	VNCHost       string // address of the VNC ports
	VNCPort       int    // first port to try
	TLSCert       string // PEM files, both or neither
	TLSKey        string
	TLSSelfSigned bool     // make a certificate when none is given
	Hosts         []string // names under which browsers reach the page
}

// Images configures where images come from.
type Images struct {
	Sources string // apt sources for the bases; "" means the host's own
}

// Session configures sessions.
type Session struct {
	User     string        // whose sessions root starts; "" means one that the host does not have
	Patience time.Duration // what every component gets at least until it is ready; 0 means what its profile says
}

// field is one key of the file.
type field struct {
	table, key string
	doc        string // for Example; one line per line of it
	example    string // TOML, when the default is nothing to show
	ptr        func(*Config) any
	check      func(v string) error // of strings that are not empty; may be nil
}

var fields = []field{
	{table: "engine", key: "containerd", example: `"/run/containerd/containerd.sock"`,
		doc: "Unix socket of an existing containerd to use, 1.7 or newer. Unset: Berth runs a containerd of its own.",
		ptr: func(c *Config) any { return &c.Engine.Containerd }, check: absolute},
	{table: "engine", key: "snapshotter",
		doc: "How layers are stacked: \"overlayfs\"; \"btrfs\", when /var/lib/berth lies on btrfs; \"native\", which copies\n" +
			"and works everywhere. With an existing containerd any snapshotter it has.",
		ptr: func(c *Config) any { return &c.Engine.Snapshotter }},
	{table: "engine", key: "runtime", example: `"/usr/bin/crun"`,
		doc: "OCI runtime to use in place of Berth's own runc.",
		ptr: func(c *Config) any { return &c.Engine.Runtime }, check: absolute},
	{table: "engine", key: "subnet", example: `"10.210.0.0/16"`,
		doc: "IPv4 network that sessions get addresses from. Unset: a free one below 10.128.0.0/9, kept once chosen.",
		ptr: func(c *Config) any { return &c.Engine.Subnet }, check: ipv4Network},
	{table: "engine", key: "build_idle",
		doc: "How long buildkitd is kept after a build.",
		ptr: func(c *Config) any { return &c.Engine.BuildIdle }},

	{table: "gateway", key: "listen", example: `"127.0.0.1:6080"`,
		doc: "Address of the web page, HOST:PORT. Unset: 127.0.0.1:6080, or the next free port when that is taken.\n" +
			"Beyond loopback, set up TLS below.",
		ptr: func(c *Config) any { return &c.Gateway.Listen }, check: hostPort},
	{table: "gateway", key: "vnc_host",
		doc: "Address on which VNC listens, one port per session.",
		ptr: func(c *Config) any { return &c.Gateway.VNCHost }, check: host},
	{table: "gateway", key: "vnc_port",
		doc: "First port that is tried for VNC.",
		ptr: func(c *Config) any { return &c.Gateway.VNCPort }},
	{table: "gateway", key: "tls_cert", example: `"/etc/berth/tls.crt"`,
		doc: "Certificate and key, PEM. They are read anew when they change.",
		ptr: func(c *Config) any { return &c.Gateway.TLSCert }, check: absolute},
	{table: "gateway", key: "tls_key", example: `"/etc/berth/tls.key"`,
		ptr: func(c *Config) any { return &c.Gateway.TLSKey }, check: absolute},
	{table: "gateway", key: "tls_self_signed",
		doc: "Without a certificate, make one and use it.",
		ptr: func(c *Config) any { return &c.Gateway.TLSSelfSigned }},
	{table: "gateway", key: "hosts", example: `["desk.example.org"]`,
		doc: "Names under which browsers may reach the page, besides localhost and IP addresses.",
		ptr: func(c *Config) any { return &c.Gateway.Hosts }, check: host},

	{table: "images", key: "sources", example: "\"\"\"\ndeb http://mirror.example.org/debian bookworm main\n\"\"\"",
		doc: "Where the bases of images are made from, in the format of apt's sources files. Unset: what the host's apt uses.",
		ptr: func(c *Config) any { return &c.Images.Sources }},

	{table: "session", key: "user", example: `"anna"`,
		doc: "The host's user for whom root's sessions run. Unset: one that the host does not have.",
		ptr: func(c *Config) any { return &c.Session.User }, check: user},
	{table: "session", key: "patience", example: `"2m"`,
		doc: "How long every component gets at least until it is ready, for slow machines. Unset: what its profile says.",
		ptr: func(c *Config) any { return &c.Session.Patience }},
}

// Default is the configuration without a file.
func Default() *Config {
	return &Config{
		Engine:  Engine{Snapshotter: "overlayfs", BuildIdle: 5 * time.Minute},
		Gateway: Gateway{VNCHost: "127.0.0.1", VNCPort: 5900},
	}
}

// Load reads the file at path; one that does not exist is Default. What is wrong with its content is an Errors.
func Load(path string) (*Config, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if st.Size() > maxSize {
		return nil, Errors{{File: path, Message: fmt.Sprintf("%d bytes; at most %d are read", st.Size(), maxSize)}}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse reads the text of a file called name. An error is an Errors, with all there is to say.
func Parse(name string, text []byte) (*Config, error) {
	if len(text) > maxSize {
		return nil, Errors{{File: name, Message: fmt.Sprintf("%d bytes; at most %d are read", len(text), maxSize)}}
	}
	c := Default()
	d := newDecoder(name, text)
	d.decode(c)
	d.relations(c)
	if len(d.errs) > 0 {
		slices.SortStableFunc(d.errs, func(a, b *Error) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
		return nil, d.errs
	}
	return c, nil
}

// relations checks what concerns more than one key.
func (d *decoder) relations(c *Config) {
	if c.Engine.Containerd == "" && c.Engine.Snapshotter != "" {
		known := []string{"overlayfs", "btrfs", "native"}
		if !slices.Contains(known, c.Engine.Snapshotter) {
			d.fail(d.at["engine.snapshotter"], "engine.snapshotter: %q is unknown; choose one of %q", c.Engine.Snapshotter, known)
		}
	}
	if (c.Gateway.TLSCert == "") != (c.Gateway.TLSKey == "") && !d.bad["gateway.tls_cert"] && !d.bad["gateway.tls_key"] {
		have, lack := "tls_cert", "tls_key"
		if c.Gateway.TLSCert == "" {
			have, lack = lack, have
		}
		d.fail(d.at["gateway."+have], "gateway.%s: needs gateway.%s beside it", have, lack)
	}
}

// assign stores v, a value as the decoder gives it, in the field. The error says what was wanted.
func (f field) assign(c *Config, v any) error {
	switch p := f.ptr(c).(type) {
	case *string:
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("a string is wanted, not %s", kindOf(v))
		}
		if strings.ContainsRune(s, 0) {
			return errors.New("a NUL character is in it")
		}
		if s != "" && f.check != nil {
			if err := f.check(s); err != nil {
				return err
			}
		}
		if s != "" || *p == "" { // empty means the default
			*p = s
		}
	case *time.Duration:
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf(`a duration as a string is wanted, such as "5m", not %s`, kindOf(v))
		}
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return fmt.Errorf(`%q is not a duration above zero; write one such as "30s", "5m" or "1h"`, s)
		}
		*p = d
	case *bool:
		b, ok := v.(bool)
		if !ok {
			return fmt.Errorf("true or false is wanted, not %s", kindOf(v))
		}
		*p = b
	case *int: // only ports, so far
		n, ok := v.(int64)
		if !ok {
			return fmt.Errorf("a number is wanted, not %s", kindOf(v))
		}
		if n < 1 || n > 65535 {
			return fmt.Errorf("%d is not a port; ports are 1 to 65535", n)
		}
		*p = int(n)
	case *[]string:
		a, ok := v.([]any)
		if !ok {
			return fmt.Errorf("an array of strings is wanted, not %s", kindOf(v))
		}
		list := []string{}
		for i, e := range a {
			s, ok := e.(string)
			if !ok {
				return fmt.Errorf("element %d: a string is wanted, not %s", i+1, kindOf(e))
			}
			if err := f.check(s); err != nil {
				return fmt.Errorf("element %d: %w", i+1, err)
			}
			list = append(list, s)
		}
		*p = list
	default:
		panic(fmt.Sprintf("config: field %s.%s has type %T", f.table, f.key, p))
	}
	return nil
}

// ipv4Network wants an IPv4 network with room for some pods.
func ipv4Network(v string) error {
	if p, err := netip.ParsePrefix(v); err != nil || !p.Addr().Is4() || p.Bits() > 29 {
		return errors.New("must be an IPv4 network such as 10.210.0.0/16")
	}
	return nil
}

func absolute(v string) error {
	if !filepath.IsAbs(v) {
		return fmt.Errorf("%q is not an absolute path", v)
	}
	return nil
}

func hostPort(v string) error {
	h, p, err := net.SplitHostPort(v)
	if err != nil {
		return fmt.Errorf(`%q is not HOST:PORT, such as "127.0.0.1:6080" or "[::]:6080"`, v)
	}
	if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q is not a port; ports are 1 to 65535", p)
	}
	if h == "" {
		return nil // all addresses
	}
	return host(h)
}

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\.?$`)

func host(v string) error {
	if net.ParseIP(v) == nil && (!hostname.MatchString(v) || len(v) > 253) {
		return fmt.Errorf("%q is neither an IP address nor a host name", v)
	}
	return nil
}

// userName is what useradd(8) accepts, or a number.
var userName = regexp.MustCompile(`^([a-z_][a-z0-9_-]{0,30}[a-z0-9_$-]?|[0-9]{1,10})$`)

func user(v string) error {
	if !userName.MatchString(v) {
		return fmt.Errorf("%q is not a user name", v)
	}
	return nil
}

// Example is a configuration file with every key, its default or an example, and its meaning, all commented out.
func Example() string {
	var b strings.Builder
	b.WriteString("# Berth's configuration. All keys are optional; what stands here commented out are the defaults, or an example\n" +
		"# where the default is to be unset.\n")
	table := ""
	def := Default()
	for _, f := range fields {
		if f.table != table {
			table = f.table
			fmt.Fprintf(&b, "\n[%s]\n", table)
		}
		for line := range strings.SplitSeq(f.doc, "\n") {
			if line != "" {
				fmt.Fprintf(&b, "# %s\n", line)
			}
		}
		v := f.example
		if v == "" {
			switch p := f.ptr(def).(type) {
			case *string:
				v = strconv.Quote(*p)
			case *time.Duration:
				v = strconv.Quote(strings.TrimSuffix(p.String(), "0s"))
			case *int:
				v = strconv.Itoa(*p)
			case *bool:
				v = strconv.FormatBool(*p)
			}
		}
		fmt.Fprintf(&b, "#%s = %s\n", f.key, strings.ReplaceAll(strings.TrimSpace(v), "\n", "\n#"))
	}
	return b.String()
}
