package x11

import (
	"context"
	"encoding/binary"
	"image"
	"slices"
	"strings"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/xproto"
)

// Window is a top-level window, as the Extended Window Manager Hints (EWMH 1.5) and ICCCM describe it.
type Window struct {
	ID       uint32
	Title    string   // _NET_WM_NAME, else WM_NAME
	Instance string   // WM_CLASS
	Class    string   // WM_CLASS
	Types    []string // _NET_WM_WINDOW_TYPE without that prefix: NORMAL, DOCK, DESKTOP, DIALOG...
	PID      int      // _NET_WM_PID: in the session's PID namespace; 0 if the client does not say
	Bounds   image.Rectangle
	Mapped   bool // viewable: it and all windows above it are mapped
}

// Is tells whether the window is of the given type, "DOCK".
func (w Window) Is(typ string) bool { return slices.Contains(w.Types, typ) }

// Names of properties. Those of a window's type are found by their prefix.
const (
	atomCheck      = "_NET_SUPPORTING_WM_CHECK"
	atomType       = "_NET_WM_WINDOW_TYPE"
	atomName       = "_NET_WM_NAME"
	atomPID        = "_NET_WM_PID"
	atomClientList = "_NET_CLIENT_LIST"
)

var windowTypes = []string{"DESKTOP", "DOCK", "TOOLBAR", "MENU", "UTILITY", "SPLASH", "DIALOG", "DROPDOWN_MENU",
	"POPUP_MENU", "TOOLTIP", "NOTIFICATION", "COMBO", "DND", "NORMAL"}

// screenState is what the probes look at, all of it seen by one scan.
type screenState struct {
	wm      string // name of the window manager; "" if none
	hasWM   bool
	windows []Window
}

// typeName returns the short name of a type's atom.
func (c *Conn) typeName(a xproto.Atom) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range windowTypes {
		if c.atoms[atomType+"_"+t] == a {
			return t
		}
	}
	return ""
}

// internAll interns every atom of this file.
func (c *Conn) internAll(x *xgb.Conn) error {
	names := []string{atomCheck, atomType, atomName, atomPID, atomClientList, "UTF8_STRING"}
	for _, t := range windowTypes {
		names = append(names, atomType+"_"+t)
	}
	return c.intern(x, names...)
}

// property asks for a property of at most 4 KiB.
func property(x *xgb.Conn, w xproto.Window, p xproto.Atom) xproto.GetPropertyCookie {
	return xproto.GetProperty(x, false, w, p, xproto.GetPropertyTypeAny, 0, 1024)
}

// words decodes a property of format 32; nil for any other and for an error.
func words(r *xproto.GetPropertyReply, err error) []uint32 {
	if err != nil || r.Format != 32 {
		return nil
	}
	v := make([]uint32, len(r.Value)/4)
	for i := range v {
		v[i] = binary.LittleEndian.Uint32(r.Value[4*i:])
	}
	return v
}

func text(r *xproto.GetPropertyReply, err error) string {
	if err != nil || r.Format != 8 {
		return ""
	}
	return strings.ToValidUTF8(string(r.Value), "�")
}

// scan looks at the window manager, at the windows on the root and one level below, where a reparenting window manager
// puts them into its frames, and at those the window manager lists that are deeper: KWin puts a wrapper between frame and
// window. With watch it also asks for the events that change the answer; as that comes
// before the look, nothing is missed. With detail it fetches titles, classes and PIDs.
func (c *Conn) scan(x *xgb.Conn, watch map[xproto.Window]bool, detail bool) (screenState, error) {
	var s screenState
	if err := c.internAll(x); err != nil {
		return s, err
	}
	root := c.screen.Root
	check := property(x, root, c.atom(atomCheck))
	list := property(x, root, c.atom(atomClientList))
	tree, err := xproto.QueryTree(x, root).Reply()
	if err != nil {
		return s, err
	}
	if w := words(check.Reply()); len(w) == 1 && w[0] != 0 {
		// A window manager that died leaves the root's property; its window is gone (EWMH, _NET_SUPPORTING_WM_CHECK).
		self := property(x, xproto.Window(w[0]), c.atom(atomCheck))
		name := property(x, xproto.Window(w[0]), c.atom(atomName))
		if v := words(self.Reply()); len(v) == 1 && v[0] == w[0] {
			s.hasWM = true
		}
		s.wm = text(name.Reply())
	}
	var managed []xproto.Window
	clients := map[xproto.Window]bool{}
	for _, w := range words(list.Reply()) {
		managed = append(managed, xproto.Window(w))
		clients[xproto.Window(w)] = true
	}
	s.windows = c.look(x, tree.Children, clients, watch, detail, 1)
	for _, w := range s.windows {
		delete(clients, xproto.Window(w.ID))
	}
	if deeper := slices.DeleteFunc(managed, func(w xproto.Window) bool { return !clients[w] }); len(deeper) > 0 {
		s.windows = append(s.windows, c.look(x, deeper, clients, watch, detail, 0)...)
	}
	return s, nil
}

// look describes the windows ids and, depth levels deep, those below them that are clients of the window manager or
// have a type. All requests about one level travel together.
func (c *Conn) look(x *xgb.Conn, ids []xproto.Window, clients, watch map[xproto.Window]bool, detail bool,
	depth int) []Window {
	type ask struct {
		attr             xproto.GetWindowAttributesCookie
		geom             xproto.GetGeometryCookie
		types            xproto.GetPropertyCookie
		tree             xproto.QueryTreeCookie
		name, wname, pid xproto.GetPropertyCookie
		class            xproto.GetPropertyCookie
		origin           xproto.TranslateCoordinatesCookie
	}
	const most = 4096 // windows on one level; a session with more is not looked at further
	ids = ids[:min(len(ids), most)]
	asks := make([]ask, len(ids))
	for i, w := range ids {
		if watch != nil && !watch[w] {
			watch[w] = true
			xproto.ChangeWindowAttributes(x, w, xproto.CwEventMask, []uint32{
				xproto.EventMaskPropertyChange | xproto.EventMaskStructureNotify | xproto.EventMaskSubstructureNotify})
		}
		a := &asks[i]
		a.attr, a.geom = xproto.GetWindowAttributes(x, w), xproto.GetGeometry(x, xproto.Drawable(w))
		a.types, a.class = property(x, w, c.atom(atomType)), property(x, w, xproto.AtomWmClass)
		if depth > 0 {
			a.tree = xproto.QueryTree(x, w)
		}
		if detail {
			a.name, a.wname = property(x, w, c.atom(atomName)), property(x, w, xproto.AtomWmName)
			a.pid = property(x, w, c.atom(atomPID))
			a.origin = xproto.TranslateCoordinates(x, w, c.screen.Root, 0, 0)
		}
	}
	var out []Window
	var below []xproto.Window
	for i := range asks {
		a, w := &asks[i], Window{ID: uint32(ids[i])}
		attr, aerr := a.attr.Reply()
		geom, gerr := a.geom.Reply()
		for _, t := range words(a.types.Reply()) {
			if n := c.typeName(xproto.Atom(t)); n != "" {
				w.Types = append(w.Types, n)
			}
		}
		if p := strings.Split(text(a.class.Reply()), "\x00"); len(p) >= 2 {
			w.Instance, w.Class = p[0], p[1]
		}
		if depth > 0 {
			if t, err := a.tree.Reply(); err == nil {
				below = append(below, t.Children...)
			}
		}
		if detail {
			w.Title = text(a.name.Reply())
			if t := text(a.wname.Reply()); w.Title == "" {
				w.Title = t
			}
			if v := words(a.pid.Reply()); len(v) == 1 {
				w.PID = int(v[0])
			}
			if o, err := a.origin.Reply(); err == nil && gerr == nil {
				w.Bounds = image.Rect(0, 0, int(geom.Width), int(geom.Height)).Add(image.Pt(int(o.DstX), int(o.DstY)))
			}
		}
		if aerr != nil || gerr != nil || attr.Class != xproto.WindowClassInputOutput {
			continue // gone meanwhile, or invisible by nature
		}
		w.Mapped = attr.MapState == xproto.MapStateViewable
		// On the root every mapped window counts; within frames only what the window manager manages, or what has a type.
		if len(w.Types) > 0 || clients[ids[i]] || depth > 0 && w.Mapped {
			out = append(out, w)
		}
	}
	if depth > 0 && len(below) > 0 {
		out = append(out, c.look(x, below, clients, watch, detail, depth-1)...)
	}
	return out
}

// Windows lists the top-level windows: those that the window manager manages and others mapped on the root, such as
// menus and the window manager's frames.
func (c *Conn) Windows(ctx context.Context) ([]Window, error) {
	return call(ctx, c, func(x *xgb.Conn) ([]Window, error) {
		s, err := c.scan(x, nil, true)
		return s.windows, err
	})
}

// WindowManager returns the name of the window manager; ok is false if none runs. The name may be empty.
func (c *Conn) WindowManager(ctx context.Context) (name string, ok bool, err error) {
	s, err := call(ctx, c, func(x *xgb.Conn) (screenState, error) { return c.scan(x, nil, false) })
	return s.wm, s.hasWM, err
}
