package systembus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// lastName is the name that is taken last: when it has an owner, all have.
const lastName = nameLogin

// service is one of the services of this package.
type service interface {
	name() string // on the bus
	objects() []*object
}

// say is how a service emits a signal.
type say func(path dbus.ObjectPath, name string, args ...any)

// Run answers on the bus at address until the session is to end, which is no error, or ctx ends or the bus goes away,
// which is one.
func Run(ctx context.Context, address string) error {
	s := &Server{over: make(chan struct{})}
	h := here()
	h.present = s.present
	login := newLogin(h, s.say, s.lease)
	s.end = login
	s.serve(newLocale(h), newHostname(h), newTimedate(h), newUPower(), newAccounts(h, s.say), login)
	conn, err := dbus.Connect(address, dbus.WithContext(ctx), dbus.WithHandler(s))
	if err != nil {
		return fmt.Errorf("system bus %q: %w", address, err)
	}
	defer conn.Close()
	s.start(conn)
	for _, svc := range s.services {
		reply, err := conn.RequestName(svc.name(), dbus.NameFlagDoNotQueue)
		if err != nil {
			return fmt.Errorf("name %q: %w", svc.name(), err)
		}
		if reply != dbus.RequestNameReplyPrimaryOwner {
			return fmt.Errorf("name %q: %s", svc.name(), reply)
		}
	}
	select {
	case <-s.over:
		return nil
	case <-conn.Context().Done():
		if err := ctx.Err(); err != nil {
			return err
		}
		return errors.New("the system bus went away")
	}
}

// ending is the service that says when all is over.
type ending interface {
	// over tells whether the session is to end now, and if not, when to ask again; the zero time means not unless
	// something happens.
	over() (bool, time.Time)
}

// Server connects services to a bus. It is a dbus.Handler. The library hands over every call in a goroutine of its own:
// calls that a client sends without waiting for the replies between them may be taken in another order.
type Server struct {
	services []service
	tree     tree
	end      ending
	over     chan struct{} // closed when the session is to end
	ready    chan struct{} // closed when conn is there

	mu     sync.Mutex // guards the services and all below
	conn   *dbus.Conn
	outbox []signal
	shown  map[*object][]map[string]any // the properties last seen, for each interface
	timer  *time.Timer
	ended  bool
}

type signal struct {
	path dbus.ObjectPath
	name string
	args []any
}

// serve sets the services, before start.
func (s *Server) serve(services ...service) {
	s.services, s.ready = services, make(chan struct{})
	s.shown = map[*object][]map[string]any{}
	var all []*object
	for _, svc := range services {
		all = append(all, svc.objects()...)
	}
	s.tree = newTree(all)
	s.changes()
	s.outbox = nil
}

// start lets calls through. dbus.Connect reads messages before it returns the connection that answers them.
func (s *Server) start(conn *dbus.Conn) {
	s.conn = conn
	close(s.ready)
}

// say implements say. mu is held.
func (s *Server) say(path dbus.ObjectPath, name string, args ...any) {
	s.outbox = append(s.outbox, signal{path, name, args})
}

// do changes something: f under the lock, then signals of what has changed, then reply, then the question whether that
// was the end. Whoever hears the reply has heard the signals.
func (s *Server) do(f func(), reply func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.changes()
	for _, out := range s.outbox {
		s.conn.Emit(out.path, out.name, out.args...) // fails only when the connection is gone, which Run sees
	}
	s.outbox = nil
	reply()
	if s.ended {
		return
	}
	over, again := s.end.over()
	switch {
	case over:
		s.ended = true
		close(s.over)
	case !again.IsZero() && s.timer == nil:
		s.timer = time.AfterFunc(time.Until(again), func() { s.do(func() { s.timer = nil }, func() {}) })
	}
}

// changes puts PropertiesChanged of all that has changed since the last time into the outbox. mu is held.
func (s *Server) changes() {
	for _, svc := range s.services {
		for _, o := range svc.objects() {
			was := s.shown[o]
			now := make([]map[string]any, len(o.ifaces))
			for n, i := range o.ifaces {
				now[n] = map[string]any{}
				changed := map[string]dbus.Variant{}
				for name, p := range i.props {
					if p.emit != emits {
						continue
					}
					v := p.get()
					now[n][name] = v
					if was != nil && !reflect.DeepEqual(was[n][name], v) {
						changed[name] = dbus.MakeVariant(v)
					}
				}
				if len(changed) == 0 {
					continue
				}
				s.say(o.path, ifaceProperties+".PropertiesChanged", i.name, changed, []string{})
				if i.changed != nil {
					i.changed()
				}
			}
			s.shown[o] = now
		}
	}
}

// lease returns a descriptor for a client to hold, and calls released, under the lock, when it and all its copies are
// closed.
func (s *Server) lease(released func()) (dbus.UnixFD, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, errorf(errFailed, "inhibitor: %v", err)
	}
	r := os.NewFile(uintptr(p[0]), "inhibitor")
	go func() {
		io.Copy(io.Discard, r) // its error means the same as its end
		r.Close()
		s.do(released, func() {})
	}()
	return dbus.UnixFD(p[1]), nil
}

// LookupObject implements dbus.Handler. What a call means is decided in its Call, so that the errors are ours.
func (s *Server) LookupObject(dbus.ObjectPath) (dbus.ServerObject, bool) { return target{s}, true }

type target struct{ s *Server }

func (t target) LookupInterface(string) (dbus.Interface, bool) { return t, true }
func (t target) LookupMethod(string) (dbus.Method, bool)       { return t, true }
func (t target) NumArguments() int                             { return 0 }
func (t target) NumReturns() int                               { return 0 }
func (t target) ArgumentValue(int) any                         { return nil }
func (t target) ReturnValue(int) any                           { return nil }

// DecodeArguments implements dbus.ArgumentDecoder: it hands the message itself to Call.
func (t target) DecodeArguments(_ *dbus.Conn, _ string, msg *dbus.Message, _ []any) ([]any, error) {
	return []any{msg}, nil
}

// Call implements dbus.Method. It sends the reply itself and tells the library not to: descriptors can be closed only
// when the reply is out, and the program may end only then.
func (t target) Call(args ...any) ([]any, error) {
	s, msg := t.s, args[0].(*dbus.Message)
	<-s.ready
	silence := msg.Flags&dbus.FlagNoReplyExpected != 0
	msg.Flags |= dbus.FlagNoReplyExpected
	path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	name, _ := msg.Headers[dbus.FieldInterface].Value().(string)
	member, _ := msg.Headers[dbus.FieldMember].Value().(string)
	sig, _ := msg.Headers[dbus.FieldSignature].Value().(dbus.Signature)
	sender, _ := msg.Headers[dbus.FieldSender].Value().(string)

	var out []any
	method, err := s.tree.method(path, name, member)
	c := caller{name: dbus.Sender(sender)}
	if err == nil {
		if _, wants := arguments(method); wants {
			c.uid, c.pid = s.credentials(sender)
		}
	}
	s.do(func() {
		if err == nil {
			out, err = invoke(method, c, sig.String(), msg.Body)
		}
	}, func() {
		if !silence {
			s.reply(msg, out, err)
		}
		for _, v := range out {
			if fd, ok := v.(dbus.UnixFD); ok {
				unix.Close(int(fd))
			}
		}
	})
	return nil, nil
}

// credentials asks the bus who a sender is; 0 and 0 if it has gone already.
func (s *Server) credentials(sender string) (uid, pid uint32) {
	bus := s.conn.BusObject()
	// The results of a call that failed are the zero ones.
	bus.Call("org.freedesktop.DBus.GetConnectionUnixUser", 0, sender).Store(&uid)
	bus.Call("org.freedesktop.DBus.GetConnectionUnixProcessID", 0, sender).Store(&pid)
	return uid, pid
}

// present asks the bus whether a sender is still there.
func (s *Server) present(name dbus.Sender) bool {
	var owned bool
	s.conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, string(name)).Store(&owned) // false without an answer
	return owned
}

func (s *Server) reply(call *dbus.Message, out []any, err error) {
	m := &dbus.Message{Type: dbus.TypeMethodReply, Body: out, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(call.Serial())}}
	if d, ok := call.Headers[dbus.FieldSender]; ok {
		m.Headers[dbus.FieldDestination] = d
	}
	if err != nil {
		e := &dbus.Error{Name: errFailed, Body: []any{err.Error()}}
		errors.As(err, &e)
		m.Type, m.Body = dbus.TypeError, e.Body
		m.Headers[dbus.FieldErrorName] = dbus.MakeVariant(e.Name)
	}
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	s.conn.Send(m, nil)
}

// host is what the services want to know of the world.
type host struct {
	uid, gid  int
	user      string
	realName  string
	home      string
	shell     string
	runtime   string            // XDG_RUNTIME_DIR
	desktop   string            // XDG_CURRENT_DESKTOP
	display   string            // DISPLAY
	kind      string            // XDG_SESSION_TYPE
	locale    []string          // LANG and LC_*, as NAME=VALUE
	keyboard  []string          // layout or layout(variant)
	timezone  string            // TZ
	zones     []string          // known time zones; nil: not known
	hostname  string            // the kernel's
	static    string            // of /etc/hostname
	osRelease map[string]string // os-release(5)
	kernel    unix.Utsname
	now       func() time.Time
	monotonic func() uint64 // CLOCK_MONOTONIC in microseconds
	ntp       func() bool   // the clock is synchronised
	alive     func(pid uint32) bool
	present   func(dbus.Sender) bool // still connected to the bus
}

// here is the host of this process.
func here() host {
	h := host{uid: os.Getuid(), gid: os.Getgid(), user: os.Getenv("USER"), home: os.Getenv("HOME"), shell: os.Getenv("SHELL"),
		runtime: os.Getenv("XDG_RUNTIME_DIR"), desktop: os.Getenv("XDG_CURRENT_DESKTOP"), display: os.Getenv("DISPLAY"),
		kind: os.Getenv("XDG_SESSION_TYPE"), timezone: os.Getenv("TZ"), now: time.Now}
	for _, kv := range slices.Sorted(slices.Values(os.Environ())) {
		if name, v, _ := strings.Cut(kv, "="); localeName(name) && v != "" {
			h.locale = append(h.locale, kv)
		}
	}
	if h.kind == "" {
		h.kind = "unspecified"
	}
	if k := os.Getenv(keyboardEnv); k != "" {
		h.keyboard = strings.Split(k, ",")
	}
	// What cannot be read is not known, and shown as empty.
	h.hostname, _ = os.Hostname()
	static, _ := os.ReadFile("/etc/hostname")
	h.static = strings.TrimSpace(string(static))
	passwd, _ := os.ReadFile("/etc/passwd")
	h.realName = realName(string(passwd), h.uid)
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if b, err := os.ReadFile(path); err == nil {
			h.osRelease = parseOSRelease(string(b))
			break
		}
	}
	if b, err := os.ReadFile("/usr/share/zoneinfo/tzdata.zi"); err == nil {
		h.zones = parseZones(string(b))
	}
	unix.Uname(&h.kernel)
	h.monotonic = func() uint64 {
		var ts unix.Timespec
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
		return uint64(ts.Nano()) / 1000
	}
	h.ntp = func() bool {
		var tx unix.Timex
		_, err := unix.Adjtimex(&tx)
		return err == nil && tx.Status&unix.STA_UNSYNC == 0
	}
	h.alive = func(pid uint32) bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		return err == nil
	}
	return h
}

// usec is a time as systemd writes it.
func usec(t time.Time) uint64 { return uint64(t.UnixMicro()) }

// named is an object with its name, "(so)".
type named struct {
	Name string
	Path dbus.ObjectPath
}

var nobody = named{"", "/"}
