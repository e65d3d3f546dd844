package x11

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"time"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/screensaver"
	"github.com/BurntSushi/xgb/xproto"
	"github.com/BurntSushi/xgb/xtest"
)

// IdleTime is how long ago the last input was (MIT-SCREEN-SAVER).
func (c *Conn) IdleTime(ctx context.Context) (time.Duration, error) {
	return call(ctx, c, func(x *xgb.Conn) (time.Duration, error) {
		if err := c.need(x, "MIT-SCREEN-SAVER"); err != nil {
			return 0, err
		}
		r, err := screensaver.QueryInfo(x, xproto.Drawable(c.screen.Root)).Reply()
		if err != nil {
			return 0, fmt.Errorf("idle time: %w", err)
		}
		return time.Duration(r.MsSinceUserInput) * time.Millisecond, nil
	})
}

// Move puts the pointer at a place on the screen (XTEST).
func (c *Conn) Move(ctx context.Context, x, y int) error {
	return c.fake(ctx, func(fake func(typ, detail byte, x, y int16)) error {
		fake(xproto.MotionNotify, 0, int16(x), int16(y))
		return nil
	})
}

// Click presses and releases a pointer button: 1 left, 2 middle, 3 right, 4 and 5 the wheel.
func (c *Conn) Click(ctx context.Context, button int) error {
	return c.fake(ctx, func(fake func(typ, detail byte, x, y int16)) error {
		fake(xproto.ButtonPress, byte(button), 0, 0)
		fake(xproto.ButtonRelease, byte(button), 0, 0)
		return nil
	})
}

// fake runs f, whose events are sent through XTEST, and waits until the server has taken them.
func (c *Conn) fake(ctx context.Context, f func(fake func(typ, detail byte, x, y int16)) error) error {
	_, err := call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
		if err := c.need(x, "XTEST"); err != nil {
			return struct{}{}, err
		}
		var last *xtest.FakeInputCookie
		var first error
		err := f(func(typ, detail byte, px, py int16) {
			if last != nil {
				if e := last.Check(); e != nil && first == nil {
					first = e
				}
			}
			ck := xtest.FakeInputChecked(x, typ, detail, 0, c.screen.Root, px, py, 0)
			last = &ck
		})
		if last != nil {
			if e := last.Check(); e != nil && first == nil {
				first = e
			}
		}
		if err == nil && first != nil {
			err = fmt.Errorf("xtest: %w", first)
		}
		return struct{}{}, err
	})
	return err
}

// keysyms of X11/keysymdef.h that have no character of their own.
const (
	KeyBackspace = 0xff08
	KeyReturn    = 0xff0d
	KeyTab       = 0xff09
	KeyEscape    = 0xff1b
	KeyShift     = 0xffe1
	KeyCtrl      = 0xffe3
	KeyAlt       = 0xffe9
)

// keysym is the keysym of a character: its own code in Latin-1, else 0x01000000 plus the code (X protocol, appendix A).
func keysym(r rune) xproto.Keysym {
	switch {
	case r == '\n':
		return KeyReturn
	case r == '\t':
		return KeyTab
	case r >= 0x20 && r < 0x7f || r >= 0xa0 && r < 0x100:
		return xproto.Keysym(r)
	}
	return xproto.Keysym(0x01000000 | r)
}

// Type types text through XTEST. A character that the keyboard layout does not have is put on an unused key first.
func (c *Conn) Type(ctx context.Context, text string) error {
	for _, r := range text {
		if err := c.Key(ctx, keysym(r)); err != nil {
			return fmt.Errorf("type %q: %w", r, err)
		}
	}
	return nil
}

// Key presses and releases the key of a keysym, with modifiers held, given as keysyms (KeyCtrl).
func (c *Conn) Key(ctx context.Context, sym xproto.Keysym, modifiers ...xproto.Keysym) error {
	type press struct {
		code  byte
		shift bool
	}
	keys, err := call(ctx, c, func(x *xgb.Conn) ([]press, error) {
		first := c.setup.MinKeycode
		count := byte(c.setup.MaxKeycode-first) + 1
		m, err := xproto.GetKeyboardMapping(x, first, count).Reply()
		if err != nil {
			return nil, fmt.Errorf("keyboard mapping: %w", err)
		}
		per := int(m.KeysymsPerKeycode)
		find := func(s xproto.Keysym) (press, bool) {
			for level := range min(per, 2) { // unshifted, shifted
				for i := level; i < len(m.Keysyms); i += per {
					if m.Keysyms[i] == s {
						return press{byte(first) + byte(i/per), level == 1}, true
					}
				}
			}
			return press{}, false
		}
		var out []press
		for _, s := range append(modifiers, sym) {
			p, ok := find(s)
			if !ok {
				// The last key without a meaning gets one.
				for i := len(m.Keysyms)/per - 1; i >= 0 && !ok; i-- {
					empty := true
					for _, k := range m.Keysyms[i*per : (i+1)*per] {
						empty = empty && k == 0
					}
					if ok = empty; ok {
						p = press{code: byte(first) + byte(i)}
						change := xproto.ChangeKeyboardMappingChecked(x, 1, xproto.Keycode(p.code), 1, []xproto.Keysym{s})
						if err := change.Check(); err != nil {
							return nil, fmt.Errorf("keyboard mapping: %w", err)
						}
					}
				}
			}
			if !ok {
				return nil, fmt.Errorf("no key for keysym %#x and no unused key", s)
			}
			out = append(out, p)
		}
		if out[len(out)-1].shift {
			if p, ok := find(KeyShift); ok {
				out = append([]press{p}, out...)
			}
		}
		return out, nil
	})
	if err != nil {
		return err
	}
	return c.fake(ctx, func(fake func(typ, detail byte, x, y int16)) error {
		for _, k := range keys {
			fake(xproto.KeyPress, k.code, 0, 0)
		}
		for i := len(keys) - 1; i >= 0; i-- {
			fake(xproto.KeyRelease, keys[i].code, 0, 0)
		}
		return nil
	})
}

// Paint fills a rectangle of the screen with a colour, over all windows, as the tests of what follows the screen do.
func (c *Conn) Paint(ctx context.Context, r image.Rectangle, col color.RGBA) error {
	f, err := c.pixels()
	if err != nil {
		return err
	}
	var pixel uint32
	for i, v := range []uint8{col.R, col.G, col.B} {
		pixel |= uint32(v) >> (8 - f.width[i]) << f.shift[i]
	}
	_, err = call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
		root := xproto.Drawable(c.screen.Root)
		gc := xproto.Gcontext(c.newID())
		if err := xproto.CreateGCChecked(x, gc, root, xproto.GcForeground|xproto.GcSubwindowMode,
			[]uint32{pixel, xproto.SubwindowModeIncludeInferiors}).Check(); err != nil {
			return struct{}{}, fmt.Errorf("paint: %w", err)
		}
		defer xproto.FreeGC(x, gc)
		rect := xproto.Rectangle{X: int16(r.Min.X), Y: int16(r.Min.Y), Width: uint16(r.Dx()), Height: uint16(r.Dy())}
		return struct{}{}, xproto.PolyFillRectangleChecked(x, root, gc, []xproto.Rectangle{rect}).Check()
	})
	return err
}
