package x11

import (
	"context"
	"encoding/binary"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/randr"
	"github.com/BurntSushi/xgb/xproto"
)

// MakeDock makes an unmapped window of type DOCK.
func (c *Conn) MakeDock(ctx context.Context) (uint32, error) {
	return call(ctx, c, func(x *xgb.Conn) (uint32, error) {
		if err := c.internAll(x); err != nil {
			return 0, err
		}
		id := xproto.Window(c.newID())
		xproto.CreateWindow(x, 0, id, c.screen.Root, 0, 0, 100, 20, 0, xproto.WindowClassInputOutput, 0, 0, nil)
		v := binary.LittleEndian.AppendUint32(nil, uint32(c.atom(atomType+"_DOCK")))
		return uint32(id), xproto.ChangePropertyChecked(x, xproto.PropModeReplace, id, c.atom(atomType), xproto.AtomAtom, 32, 1, v).Check()
	})
}

// Map maps a window, Destroy destroys it.
func (c *Conn) Map(ctx context.Context, id uint32) error {
	_, err := call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
		return struct{}{}, xproto.MapWindowChecked(x, xproto.Window(id)).Check()
	})
	return err
}

func (c *Conn) Destroy(ctx context.Context, id uint32) error {
	_, err := call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
		return struct{}{}, xproto.DestroyWindowChecked(x, xproto.Window(id)).Check()
	})
	return err
}

// ConfigTimes returns when the output's configuration was set last, and when what can be set changed last, both in the
// server's time.
func (c *Conn) ConfigTimes(ctx context.Context) (set, changed uint32, err error) {
	r, err := call(ctx, c, func(x *xgb.Conn) (*randr.GetScreenResourcesCurrentReply, error) {
		if err := c.need(x, "RANDR"); err != nil {
			return nil, err
		}
		return randr.GetScreenResourcesCurrent(x, c.screen.Root).Reply()
	})
	if err != nil {
		return 0, 0, err
	}
	return uint32(r.Timestamp), uint32(r.ConfigTimestamp), nil
}

// WrapTwice puts a window into a window in a frame, as KWin does, lists it as a window manager would, and maps all.
func (c *Conn) WrapTwice(ctx context.Context, id uint32) error {
	_, err := call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
		if err := c.internAll(x); err != nil {
			return struct{}{}, err
		}
		parent := c.screen.Root
		for range 2 {
			frame := xproto.Window(c.newID())
			xproto.CreateWindow(x, 0, frame, parent, 0, 0, 100, 20, 0, xproto.WindowClassInputOutput, 0, 0, nil)
			xproto.MapWindow(x, frame)
			parent = frame
		}
		xproto.ReparentWindow(x, xproto.Window(id), parent, 0, 0)
		list := binary.LittleEndian.AppendUint32(nil, id)
		xproto.ChangeProperty(x, xproto.PropModeReplace, c.screen.Root, c.atom(atomClientList), xproto.AtomWindow, 32, 1, list)
		return struct{}{}, xproto.MapWindowChecked(x, xproto.Window(id)).Check()
	})
	return err
}
