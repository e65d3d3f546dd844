package systembus

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
)

// object is what a service offers at one path.
type object struct {
	path    dbus.ObjectPath
	aliases []dbus.ObjectPath // where it is to be found as well; signals come from path alone
	ifaces  []iface
}

// iface is one interface of an object.
type iface struct {
	name string
	// methods are functions whose arguments and results are those of the D-Bus method, with an error as the last result.
	// A first argument of type caller is not part of the message.
	methods map[string]any
	props   map[string]prop
	signals map[string]string // name -> types of its arguments, for introspection
	// changed, if it is not nil, is called after properties of the interface have changed.
	changed func()
}

// prop is one property; none can be set through org.freedesktop.DBus.Properties.
type prop struct {
	get  func() any
	emit emit
}

// emit is the value of the annotation org.freedesktop.DBus.Property.EmitsChangedSignal.
type emit string

const (
	emits  emit = "true"
	silent emit = "false"
	fixed  emit = "const"
)

func live(get func() any) prop  { return prop{get, emits} }
func quiet(get func() any) prop { return prop{get, silent} }
func constant(v any) prop       { return prop{func() any { return v }, fixed} }

// caller is who makes a call.
type caller struct {
	name     dbus.Sender // unique name
	uid, pid uint32
}

// errorf makes an error as D-Bus has it.
func errorf(name, format string, args ...any) error {
	return dbus.NewError(name, []any{fmt.Sprintf(format, args...)})
}

// Errors of the D-Bus specification.
const (
	errInvalidArgs      = "org.freedesktop.DBus.Error.InvalidArgs"
	errAccessDenied     = "org.freedesktop.DBus.Error.AccessDenied"
	errNotSupported     = "org.freedesktop.DBus.Error.NotSupported"
	errLimitsExceeded   = "org.freedesktop.DBus.Error.LimitsExceeded"
	errFailed           = "org.freedesktop.DBus.Error.Failed"
	errUnknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	errUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	errUnknownMethod    = "org.freedesktop.DBus.Error.UnknownMethod"
	errUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
	errPropertyReadOnly = "org.freedesktop.DBus.Error.PropertyReadOnly"
)

const (
	ifaceProperties     = "org.freedesktop.DBus.Properties"
	ifaceIntrospectable = "org.freedesktop.DBus.Introspectable"
)

// properties returns the interface through which the properties of o are read.
func (o *object) properties() iface {
	find := func(name string) (map[string]prop, error) {
		all := map[string]prop{}
		found := name == ""
		for _, i := range o.ifaces {
			if name == "" || i.name == name {
				found = true
				maps.Copy(all, i.props)
			}
		}
		if !found {
			return nil, errorf(errUnknownInterface, "Unknown interface '%s'", name)
		}
		return all, nil
	}
	get := func(name, p string) (dbus.Variant, error) {
		props, err := find(name)
		if err != nil {
			return dbus.Variant{}, err
		}
		if v, ok := props[p]; ok {
			return dbus.MakeVariant(v.get()), nil
		}
		return dbus.Variant{}, errorf(errUnknownProperty, "Unknown property '%s'", p)
	}
	return iface{name: ifaceProperties, signals: map[string]string{"PropertiesChanged": "s a{sv} as"}, methods: map[string]any{
		"Get": get,
		"GetAll": func(name string) (map[string]dbus.Variant, error) {
			props, err := find(name)
			out := map[string]dbus.Variant{}
			for k, p := range props {
				out[k] = dbus.MakeVariant(p.get())
			}
			return out, err
		},
		"Set": func(name, p string, _ dbus.Variant) error {
			if _, err := get(name, p); err != nil {
				return err
			}
			return errorf(errPropertyReadOnly, "Property '%s' is not writable", p)
		},
	}}
}

// tree finds objects by path.
type tree map[dbus.ObjectPath]*object

func newTree(objects []*object) tree {
	t := tree{}
	for _, o := range objects {
		for _, p := range append([]dbus.ObjectPath{o.path}, o.aliases...) {
			t[p] = o
		}
	}
	return t
}

// method finds what a call means: the function, or the error that the specification has for its absence.
func (t tree) method(path dbus.ObjectPath, name, member string) (any, error) {
	children := t.children(path)
	o := t[path]
	if o == nil && len(children) == 0 {
		return nil, errorf(errUnknownObject, "Unknown object '%s'", path)
	}
	ifaces := []iface{{name: ifaceIntrospectable, methods: map[string]any{
		"Introspect": func() (string, error) { return t.introspect(path), nil }}}}
	if o != nil {
		ifaces = append(append(ifaces, o.properties()), o.ifaces...)
	}
	known := name == "" // then any interface that has the method
	for _, i := range ifaces {
		if name != "" && i.name != name {
			continue
		}
		known = true
		if m, ok := i.methods[member]; ok {
			return m, nil
		}
	}
	if !known {
		return nil, errorf(errUnknownInterface, "Unknown interface %s", name)
	}
	return nil, errorf(errUnknownMethod, "Unknown method %s or interface %s", member, name)
}

// children are the next elements of the paths below path.
func (t tree) children(path dbus.ObjectPath) []string {
	prefix := strings.TrimSuffix(string(path), "/") + "/"
	seen := map[string]bool{}
	for p := range t {
		if rest, ok := strings.CutPrefix(string(p), prefix); ok && rest != "" {
			name, _, _ := strings.Cut(rest, "/")
			seen[name] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func (t tree) introspect(path dbus.ObjectPath) string {
	n := &introspect.Node{}
	for _, c := range t.children(path) {
		n.Children = append(n.Children, introspect.Node{Name: c})
	}
	if o := t[path]; o != nil {
		for _, i := range append([]iface{o.properties()}, o.ifaces...) {
			n.Interfaces = append(n.Interfaces, i.introspect())
		}
	}
	return string(introspect.NewIntrospectable(n)) // which adds Introspectable and Peer
}

func (i iface) introspect() introspect.Interface {
	out := introspect.Interface{Name: i.name}
	for _, name := range slices.Sorted(maps.Keys(i.methods)) {
		in, res := signatures(i.methods[name])
		m := introspect.Method{Name: name}
		for _, s := range in {
			m.Args = append(m.Args, introspect.Arg{Type: s, Direction: "in"})
		}
		for _, s := range res {
			m.Args = append(m.Args, introspect.Arg{Type: s, Direction: "out"})
		}
		out.Methods = append(out.Methods, m)
	}
	for _, name := range slices.Sorted(maps.Keys(i.signals)) {
		s := introspect.Signal{Name: name}
		for _, t := range strings.Fields(i.signals[name]) {
			s.Args = append(s.Args, introspect.Arg{Type: t})
		}
		out.Signals = append(out.Signals, s)
	}
	for _, name := range slices.Sorted(maps.Keys(i.props)) {
		p := i.props[name]
		out.Properties = append(out.Properties, introspect.Property{Name: name, Type: dbus.SignatureOf(p.get()).String(), Access: "read",
			Annotations: []introspect.Annotation{{Name: "org.freedesktop.DBus.Property.EmitsChangedSignal", Value: string(p.emit)}}})
	}
	return out
}

var (
	callerType = reflect.TypeFor[caller]()
	errorType  = reflect.TypeFor[error]()
)

// arguments are the types of a method's arguments, without the caller.
func arguments(method any) (types []reflect.Type, wantsCaller bool) {
	t := reflect.TypeOf(method)
	for i := range t.NumIn() {
		if t.In(i) == callerType {
			wantsCaller = true
			continue
		}
		types = append(types, t.In(i))
	}
	return types, wantsCaller
}

// signatures are those of the arguments and results of a method.
func signatures(method any) (in, out []string) {
	args, _ := arguments(method)
	for _, a := range args {
		in = append(in, dbus.SignatureOfType(a).String())
	}
	t := reflect.TypeOf(method)
	for i := range t.NumOut() {
		if t.Out(i) != errorType {
			out = append(out, dbus.SignatureOfType(t.Out(i)).String())
		}
	}
	return in, out
}

// invoke calls a method with the body of a message, whose signature is sig.
func invoke(method any, c caller, sig string, body []any) ([]any, error) {
	in, _ := signatures(method)
	if want := strings.Join(in, ""); sig != want {
		return nil, errorf(errInvalidArgs, "Invalid arguments '%s', expecting '%s'", sig, want)
	}
	types, wantsCaller := arguments(method)
	var args []reflect.Value
	if wantsCaller {
		args = append(args, reflect.ValueOf(c))
	}
	for i, t := range types {
		v := reflect.New(t)
		if err := dbus.Store([]any{body[i]}, v.Interface()); err != nil {
			return nil, errorf(errInvalidArgs, "Argument %d: %v", i, err)
		}
		args = append(args, v.Elem())
	}
	results := reflect.ValueOf(method).Call(args)
	if err, _ := results[len(results)-1].Interface().(error); err != nil {
		return nil, err
	}
	out := []any{}
	for _, r := range results[:len(results)-1] {
		out = append(out, r.Interface())
	}
	return out, nil
}
