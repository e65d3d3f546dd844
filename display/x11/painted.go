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
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	var last image.Rectangle
	for {
		bare, err := c.bareDock(ctx)
		if err != nil && ctx.Err() == nil || err == nil && bare.Empty() {
			return err
		}
		if err == nil {
			last = bare
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited for the panel at %v to be painted: %w", last, ctx.Err())
		}
	}
}

// bareDock returns where a panel is that is not painted yet.
func (c *Conn) bareDock(ctx context.Context) (image.Rectangle, error) {
	wins, err := c.Windows(ctx)
	if err != nil {
		return image.Rectangle{}, err
	}
	return call(ctx, c, func(x *xgb.Conn) (image.Rectangle, error) {
		screen, err := c.bounds(x)
		if err != nil {
			return image.Rectangle{}, err
		}
		for _, w := range wins {
			r := w.Bounds.Intersect(screen)
			if !w.Mapped || !w.Is("DOCK") || r.Dx() < 8 || r.Dy() < 8 { // a sliver is a hidden one's edge
				continue
			}
			img, err := c.region(x, r)
			if err != nil {
				return image.Rectangle{}, fmt.Errorf("panel at %v: %w", r, err)
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
