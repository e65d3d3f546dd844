package x11

import (
	"context"
	"errors"
	"fmt"
	"image"
	"math"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/randr"
	"github.com/BurntSushi/xgb/xproto"

	"berth/orchestrator"
	"berth/profiles"
)

// ErrSize is returned by Resize for a size that the server cannot have.
var ErrSize = fmt.Errorf("%w size", orchestrator.ErrInvalid)

// Size is the size of a screen.
type Size struct {
	Width, Height     int // pixels
	WidthMM, HeightMM int // as told to toolkits that compute a resolution from it; 0 if unknown
}

// DPI is the resolution that the sizes amount to; 0 if unknown.
func (s Size) DPI() int {
	if s.WidthMM == 0 {
		return 0
	}
	return int(math.Round(float64(s.Width) * 25.4 / float64(s.WidthMM)))
}

// String is "1920x1080".
func (s Size) String() string { return fmt.Sprintf("%dx%d", s.Width, s.Height) }

// Size returns the screen's current size. X tells the physical size in the connection setup only, so it is unknown
// after a change; a new connection knows.
func (c *Conn) Size(ctx context.Context) (Size, error) {
	return call(ctx, c, func(x *xgb.Conn) (Size, error) {
		g, err := xproto.GetGeometry(x, xproto.Drawable(c.screen.Root)).Reply()
		if err != nil {
			return Size{}, err
		}
		s := Size{Width: int(g.Width), Height: int(g.Height)}
		if s.Width == int(c.screen.WidthInPixels) && s.Height == int(c.screen.HeightInPixels) {
			s.WidthMM, s.HeightMM = int(c.screen.WidthInMillimeters), int(c.screen.HeightInMillimeters)
		}
		return s, nil
	})
}

// Resize gives the screen a size in pixels, through RandR 1.2, and its physical size such that the resolution is dpi.
// Any size within the bounds of package profiles and the server's own will do, odd ones included.
// Clients see one change.
func (c *Conn) Resize(ctx context.Context, width, height, dpi int) error {
	if err := profiles.CheckSize(width, height); err != nil {
		return fmt.Errorf("%w: %w", ErrSize, err)
	}
	if dpi <= 0 {
		return fmt.Errorf("%w: resolution of %d dpi", ErrSize, dpi)
	}
	_, err := call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
		limits, err := c.limits(x)
		if err != nil {
			return struct{}{}, err
		}
		if width > int(limits.MaxWidth) || height > int(limits.MaxHeight) {
			return struct{}{}, fmt.Errorf("%w: %dx%d is larger than this server's %dx%d",
				ErrSize, width, height, limits.MaxWidth, limits.MaxHeight)
		}
		return struct{}{}, c.resize(x, width, height, dpi)
	})
	return err
}

// Fit is Resize to the size nearest to the one given that lies within the bounds, and returns it.
func (c *Conn) Fit(ctx context.Context, width, height, dpi int) (Size, error) {
	if dpi <= 0 {
		return Size{}, fmt.Errorf("%w: resolution of %d dpi", ErrSize, dpi)
	}
	return call(ctx, c, func(x *xgb.Conn) (Size, error) {
		limits, err := c.limits(x)
		if err != nil {
			return Size{}, err
		}
		s := Size{
			Width:  min(max(width, profiles.MinWidth, int(limits.MinWidth)), profiles.MaxWidth, int(limits.MaxWidth)),
			Height: min(max(height, profiles.MinHeight, int(limits.MinHeight)), profiles.MaxHeight, int(limits.MaxHeight)),
		}
		return s, c.resize(x, s.Width, s.Height, dpi)
	})
}

// limits asks for the sizes that the server's screen can have. Xvfb's, for one, cannot grow beyond what it started with.
func (c *Conn) limits(x *xgb.Conn) (*randr.GetScreenSizeRangeReply, error) {
	if err := c.need(x, "RANDR"); err != nil {
		return nil, err
	}
	// The server tells requests made with RandR 1.2's meaning from older ones by this.
	if _, err := randr.QueryVersion(x, 1, 4).Reply(); err != nil {
		return nil, fmt.Errorf("randr version: %w", err)
	}
	limits, err := randr.GetScreenSizeRange(x, c.screen.Root).Reply()
	if err != nil {
		return nil, fmt.Errorf("randr limits: %w", err)
	}
	return limits, nil
}

// resize is Resize to a size that is known to be possible, after limits.
func (c *Conn) resize(x *xgb.Conn, width, height, dpi int) (err error) {
	root := c.screen.Root
	// While the server is grabbed no client sees the steps in between.
	xproto.GrabServer(x)
	defer func() {
		if e := xproto.UngrabServerChecked(x).Check(); err == nil && e != nil {
			err = fmt.Errorf("ungrab server: %w", e)
		}
	}()
	res, err := randr.GetScreenResources(x, root).Reply()
	if err != nil {
		return fmt.Errorf("randr resources: %w", err)
	}
	output, info, err := connected(x, res)
	if err != nil {
		return err
	}
	geom, err := xproto.GetGeometry(x, xproto.Drawable(root)).Reply()
	if err != nil {
		return err
	}
	mode, made, err := findMode(x, root, res, output, info, width, height)
	if err != nil {
		return err
	}
	crtc := info.Crtc
	if crtc == 0 {
		if len(info.Crtcs) == 0 {
			return errors.New("randr: the output has no CRTC")
		}
		crtc = info.Crtcs[0]
	}
	mm := func(px int) uint32 { return uint32(math.Round(float64(px) * 25.4 / float64(dpi))) }
	setSize := func(w, h int) error {
		if err := randr.SetScreenSizeChecked(x, root, uint16(w), uint16(h), mm(w), mm(h)).Check(); err != nil {
			return fmt.Errorf("randr: set screen size %dx%d: %w", w, h, err)
		}
		return nil
	}
	// A CRTC must lie within the screen at every moment: grow the screen, set the mode, then cut the screen.
	if w, h := max(width, int(geom.Width)), max(height, int(geom.Height)); w > int(geom.Width) || h > int(geom.Height) {
		if err := setSize(w, h); err != nil {
			return err
		}
	}
	set, err := randr.SetCrtcConfig(x, crtc, xproto.TimeCurrentTime, res.ConfigTimestamp, 0, 0, mode,
		randr.RotationRotate0, []randr.Output{output}).Reply()
	if err != nil || set.Status != randr.SetConfigSuccess {
		_ = setSize(int(geom.Width), int(geom.Height))
		if made {
			randr.DeleteOutputMode(x, output, mode)
			randr.DestroyMode(x, mode)
		}
		if err == nil {
			err = fmt.Errorf("status %d", set.Status)
		}
		return fmt.Errorf("randr: set mode %dx%d: %w", width, height, err)
	}
	if err := setSize(width, height); err != nil {
		return err
	}
	// Modes made for former sizes would pile up while somebody drags a window's corner.
	for _, m := range info.Modes {
		if m != mode && berthMode(res, m) {
			randr.DeleteOutputMode(x, output, m)
			randr.DestroyMode(x, m)
		}
	}
	return nil
}

// connected returns the first connected output, the one Berth's servers have.
func connected(x *xgb.Conn, res *randr.GetScreenResourcesReply) (randr.Output, *randr.GetOutputInfoReply, error) {
	for _, o := range res.Outputs {
		info, err := randr.GetOutputInfo(x, o, res.ConfigTimestamp).Reply()
		if err != nil {
			return 0, nil, fmt.Errorf("randr output: %w", err)
		}
		if info.Connection == randr.ConnectionConnected {
			return o, info, nil
		}
	}
	return 0, nil, errors.New("randr: no connected output")
}

// modePrefix leads the names of modes that Resize makes.
const modePrefix = "berth-"

// modeName finds a mode's name; all names come in one string, in the order of the modes.
func modeName(res *randr.GetScreenResourcesReply, m randr.Mode) string {
	names := res.Names
	for _, info := range res.Modes {
		n := min(int(info.NameLen), len(names))
		if randr.Mode(info.Id) == m {
			return string(names[:n])
		}
		names = names[n:]
	}
	return ""
}

func berthMode(res *randr.GetScreenResourcesReply, m randr.Mode) bool {
	n := modeName(res, m)
	return len(n) > len(modePrefix) && n[:len(modePrefix)] == modePrefix
}

// findMode returns a mode of the output with the given size, made if need be.
func findMode(x *xgb.Conn, root xproto.Window, res *randr.GetScreenResourcesReply, output randr.Output,
	info *randr.GetOutputInfoReply, width, height int) (m randr.Mode, made bool, err error) {
	for _, id := range info.Modes {
		for _, mi := range res.Modes {
			if randr.Mode(mi.Id) == id && int(mi.Width) == width && int(mi.Height) == height {
				return id, false, nil
			}
		}
	}
	name := fmt.Sprintf("%s%dx%d", modePrefix, width, height)
	for _, mi := range res.Modes { // made for an earlier output or left by a former Resize
		if modeName(res, randr.Mode(mi.Id)) == name {
			m = randr.Mode(mi.Id)
		}
	}
	if m == 0 {
		// A mode without blanking at 60 Hz; no monitor has to understand it.
		r, err := randr.CreateMode(x, root, randr.ModeInfo{
			Width: uint16(width), Height: uint16(height), DotClock: uint32(width * height * 60),
			HsyncStart: uint16(width), HsyncEnd: uint16(width), Htotal: uint16(width),
			VsyncStart: uint16(height), VsyncEnd: uint16(height), Vtotal: uint16(height),
			NameLen: uint16(len(name)),
		}, name).Reply()
		if err != nil {
			return 0, false, fmt.Errorf("randr: create mode %s: %w", name, err)
		}
		m = r.Mode
	}
	if err := randr.AddOutputModeChecked(x, output, m).Check(); err != nil {
		randr.DestroyMode(x, m)
		return 0, false, fmt.Errorf("randr: add mode %s: %w", name, err)
	}
	return m, true, nil
}

// bounds is the root window's rectangle.
func (c *Conn) bounds(x *xgb.Conn) (image.Rectangle, error) {
	g, err := xproto.GetGeometry(x, xproto.Drawable(c.screen.Root)).Reply()
	if err != nil {
		return image.Rectangle{}, err
	}
	return image.Rect(0, 0, int(g.Width), int(g.Height)), nil
}
