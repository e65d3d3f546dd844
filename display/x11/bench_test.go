package x11_test

import (
	"testing"
	"time"

	"berth/display/x11"
)

// BenchmarkDetect measures how long after a panel is on the screen a Watcher says so.
func BenchmarkDetect(b *testing.B) {
	s, _, c := server(b, "xvfb")
	dir, name := x11.Split(s.XSocket())
	other, err := x11.Dial(deadline(b), dir, name, s.Cookie)
	if err != nil {
		b.Fatal(err)
	}
	defer other.Close()
	for range 40 { // a desktop has some windows already
		if id, err := other.MakeDock(deadline(b)); err != nil || id == 0 {
			b.Fatal(err)
		}
	}
	ctx := deadline(b)
	var total time.Duration
	for b.Loop() {
		w, err := c.Watch()
		for err != nil { // the last one is about to end
			w, err = c.Watch()
		}
		id, err := other.MakeDock(ctx)
		if err != nil {
			b.Fatal(err)
		}
		seen := make(chan time.Time)
		go func() {
			if err := w.Wait(ctx, x11.Dock); err != nil {
				b.Error(err)
			}
			seen <- time.Now()
		}()
		if err := other.Map(ctx, id); err != nil {
			b.Fatal(err)
		}
		mapped := time.Now()
		total += (<-seen).Sub(mapped)
		w.Close()
		if err := other.Destroy(ctx, id); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/detection")
}

// BenchmarkHandshake measures the probe x11.
func BenchmarkHandshake(b *testing.B) {
	s, _, _ := server(b, "xvfb")
	dir, name := x11.Split(s.XSocket())
	for b.Loop() {
		if err := x11.Handshake(deadline(b), dir, name, s.Cookie); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScreenshot(b *testing.B) {
	_, _, c := server(b, "xvfb")
	if err := c.Resize(deadline(b), 1920, 1080, 96); err != nil {
		b.Fatal(err)
	}
	b.Run("pixels", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.Screenshot(deadline(b)); err != nil {
				b.Fatal(err)
			}
		}
	})
	img, err := c.Screenshot(deadline(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("png", func(b *testing.B) {
		for b.Loop() {
			if _, err := x11.PNG(img); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("thumbnail", func(b *testing.B) {
		for b.Loop() {
			x11.Thumbnail(img, 320, 200)
		}
	})
}
