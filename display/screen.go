package display

import (
	"context"

	"berth/display/x11"
	"berth/profiles"
)

// Screen reads and changes the screens of running sessions. It keeps nothing between calls, so there is nothing to
// close: a call costs one connection to the X server, under a millisecond. Socket and Xauthority are paths on the host.
// The zero value is ready for use, by several goroutines at once.
type Screen struct{}

// Shot returns the screen as PNG, scaled down to at most maxWidth pixels if that is not 0.
func (Screen) Shot(ctx context.Context, socket, xauthority string, maxWidth int) ([]byte, error) {
	c, err := x11.Open(ctx, socket, xauthority)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	img, err := c.Screenshot(ctx)
	if err != nil {
		return nil, err
	}
	if maxWidth > 0 {
		img = x11.Thumbnail(img, maxWidth, profiles.MaxHeight)
	}
	return x11.PNG(img)
}

// Painted returns when every panel on the screen shows more than its background, or ctx ends.
func (Screen) Painted(ctx context.Context, socket, xauthority string) error {
	c, err := x11.Open(ctx, socket, xauthority)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Painted(ctx)
}

// Resize sets the screen's size in pixels and its resolution.
func (Screen) Resize(ctx context.Context, socket, xauthority string, width, height, dpi int) error {
	c, err := x11.Open(ctx, socket, xauthority)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Resize(ctx, width, height, dpi)
}

// Fit is Resize to the nearest size that the display can have, which it returns.
func (Screen) Fit(ctx context.Context, socket, xauthority string, width, height, dpi int) (w, h int, err error) {
	c, err := x11.Open(ctx, socket, xauthority)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	s, err := c.Fit(ctx, width, height, dpi)
	return s.Width, s.Height, err
}

// Size returns the screen's size in pixels.
func (Screen) Size(ctx context.Context, socket, xauthority string) (width, height int, err error) {
	c, err := x11.Open(ctx, socket, xauthority)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	s, err := c.Size(ctx)
	return s.Width, s.Height, err
}

// SetResources sets X resources beside those that are there.
func (Screen) SetResources(ctx context.Context, socket, xauthority string, values map[string]string) error {
	c, err := x11.Open(ctx, socket, xauthority)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.SetResources(ctx, values)
}
