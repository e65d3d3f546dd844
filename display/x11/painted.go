package x11

import (
	"context"
	"fmt"
	"image"
	"time"

	"github.com/BurntSushi/xgb"
)

// A panel counts as painted when it shows this many colours: clock, icons and text have more, with their smoothed edges; a
// background alone, plain or with a border, has fewer.
const paintedColours = 8

// Painted returns when every panel on the screen, a mapped window of type DOCK, shows more than its background. Nothing
// announces that, and some panels never do, so it looks until ctx ends; the error then says which.
func (c *Conn) Painted(ctx context.Context) error {
	return c.awaitPaint(ctx, "the panel", func(wins []Window, screen image.Rectangle) []image.Rectangle {
		var out []image.Rectangle
		for _, w := range wins {
			// A sliver is a hidden one's edge.
			if r := w.Bounds.Intersect(screen); w.Mapped && w.Is("DOCK") && r.Dx() >= 8 && r.Dy() >= 8 {
				out = append(out, r)
			}
		}
		return out
	})
}

// Drawn returns when the screen as a whole shows more than a background. It is what there is to be seen of a shell that
// draws panel and wallpaper itself and has no windows for them.
func (c *Conn) Drawn(ctx context.Context) error {
	return c.awaitPaint(ctx, "the screen", func(_ []Window, screen image.Rectangle) []image.Rectangle {
		return []image.Rectangle{screen}
	})
}

// awaitPaint returns when each of the parts that choose returns is painted.
func (c *Conn) awaitPaint(ctx context.Context, what string, choose func([]Window, image.Rectangle) []image.Rectangle) error {
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	var last image.Rectangle
	for {
		bare, err := c.bare(ctx, choose)
		if err != nil && ctx.Err() == nil || err == nil && bare.Empty() {
			return err
		}
		if err == nil {
			last = bare
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited for %s at %v to be painted: %w", what, last, ctx.Err())
		}
	}
}

// bare returns one of the parts of the screen that choose returns that is not painted yet.
func (c *Conn) bare(ctx context.Context, choose func([]Window, image.Rectangle) []image.Rectangle) (image.Rectangle, error) {
	wins, err := c.Windows(ctx)
	if err != nil {
		return image.Rectangle{}, err
	}
	return call(ctx, c, func(x *xgb.Conn) (image.Rectangle, error) {
		screen, err := c.bounds(x)
		if err != nil {
			return image.Rectangle{}, err
		}
		for _, r := range choose(wins, screen) {
			img, err := c.region(x, r)
			if err != nil {
				return image.Rectangle{}, fmt.Errorf("screen at %v: %w", r, err)
			}
			seen := map[[3]byte]bool{}
			for i := 0; i < len(img.Pix) && len(seen) < paintedColours; i += 4 {
				seen[[3]byte(img.Pix[i:i+3])] = true
			}
			if len(seen) < paintedColours {
				return r, nil
			}
		}
		return image.Rectangle{}, nil
	})
}
