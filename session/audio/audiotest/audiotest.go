// Package audiotest plays tones into a Pulse server and finds them again in what it records.
package audiotest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/jfreymuth/pulse"
)

// Rate is the number of samples per second of everything here.
const Rate = 48000

// Play plays a tone of hz on the sink, the default one if sink is "", until ctx ends. server is a server string,
// "unix:/path". started, if not nil, is called once the stream plays.
func Play(ctx context.Context, server, sink string, hz float64, started func()) error {
	return patiently(ctx, func() error { return play(ctx, server, sink, hz, started) })
}

// patiently tries again what failed, until ctx ends. The library gives any answer of the server's one second and cannot be
// told otherwise, and PipeWire's Pulse server answers a stream with an input/output error when WirePlumber relinks its sink
// in the same moment: on a busy machine both happen.
func patiently(ctx context.Context, try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func play(ctx context.Context, server, sink string, hz float64, started func()) error {
	c, err := pulse.NewClient(pulse.ClientServerString(server), pulse.ClientApplicationName("berth test"))
	if err != nil {
		return fmt.Errorf("pulse server %q: %w", server, err)
	}
	defer c.Close()
	opts := []pulse.PlaybackOption{pulse.PlaybackMono, pulse.PlaybackSampleRate(Rate), pulse.PlaybackLatency(0.05)}
	if sink != "" {
		s, err := c.SinkByID(sink)
		if err != nil {
			return fmt.Errorf("sink %q: %w", sink, err)
		}
		opts = append(opts, pulse.PlaybackSink(s))
	}
	n := 0
	p, err := c.NewPlayback(pulse.Float32Reader(func(buf []float32) (int, error) {
		for i := range buf {
			buf[i] = float32(0.5 * math.Sin(2*math.Pi*hz*float64(n)/Rate))
			n++
		}
		return len(buf), nil
	}), opts...)
	if err != nil {
		return fmt.Errorf("playback: %w", err)
	}
	defer p.Close()
	p.Start()
	if err := p.Error(); err != nil {
		return fmt.Errorf("playback: %w", err)
	}
	if started != nil {
		started()
	}
	<-ctx.Done()
	return nil
}

// Listen records from the source, the default one if source is "", until done, called with the loudest frequency of
// each tenth of a second and its share of the power, returns true, or ctx ends.
func Listen(ctx context.Context, server, source string, done func(hz, share float64) bool) error {
	return patiently(ctx, func() error { return listen(ctx, server, source, done) })
}

func listen(ctx context.Context, server, source string, done func(hz, share float64) bool) error {
	c, err := pulse.NewClient(pulse.ClientServerString(server), pulse.ClientApplicationName("berth test"))
	if err != nil {
		return fmt.Errorf("pulse server %q: %w", server, err)
	}
	defer c.Close()
	opts := []pulse.RecordOption{pulse.RecordMono, pulse.RecordSampleRate(Rate), pulse.RecordLatency(0.05)}
	if source != "" {
		s, err := c.SourceByID(source)
		if err != nil {
			return fmt.Errorf("source %q: %w", source, err)
		}
		opts = append(opts, pulse.RecordSource(s))
	}
	heard, end := make(chan struct{}), sync.Once{}
	var window []float32
	r, err := c.NewRecord(pulse.Float32Writer(func(buf []float32) (int, error) {
		for window = append(window, buf...); len(window) >= Rate/10; window = window[Rate/10:] {
			if done(Frequency(window[:Rate/10], Rate)) {
				end.Do(func() { close(heard) })
			}
		}
		return len(buf), nil
	}), opts...)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	defer r.Close()
	r.Start()
	select {
	case <-heard:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("nothing heard: %w", ctx.Err())
	}
}

// Frequency finds the loudest frequency of the samples, rate of them a second, between 50 Hz and a tenth of the rate,
// to 1 Hz, and its share of the power, 0 to 1; silence is 0, 0. It is the Goertzel algorithm on the frequencies, first
// in steps of half of what the window's length resolves, then finer around the best.
func Frequency(samples []float32, rate int) (hz, share float64) {
	var total float64
	for _, s := range samples {
		total += float64(s) * float64(s)
	}
	if total < 1e-6*float64(len(samples)) {
		return 0, 0
	}
	power := func(f float64) float64 {
		k := 2 * math.Cos(2*math.Pi*f/float64(rate))
		var s1, s2 float64
		for _, x := range samples {
			s1, s2 = float64(x)+k*s1-s2, s1
		}
		return (s1*s1 + s2*s2 - k*s1*s2) * 2 / float64(len(samples)) / total
	}
	step := float64(rate) / float64(len(samples)) / 2
	for f := 50.0; f < float64(rate)/10; f += step {
		if p := power(f); p > share {
			hz, share = f, p
		}
	}
	for f, mid := hz-step, hz; f <= mid+step; f++ {
		if p := power(f); p > share {
			hz, share = f, p
		}
	}
	return hz, min(share, 1)
}

// WAV is a tone as a file for paplay: mono, 16 bits.
func WAV(hz, seconds float64) []byte {
	n := int(seconds * Rate)
	var b bytes.Buffer
	b.WriteString("RIFF")
	binary.Write(&b, binary.LittleEndian, uint32(36+2*n))
	b.WriteString("WAVEfmt ")
	binary.Write(&b, binary.LittleEndian, struct {
		Size             uint32
		Format, Channels uint16
		Rate, Bytes      uint32
		Block, Bits      uint16
	}{16, 1, 1, Rate, 2 * Rate, 2, 16})
	b.WriteString("data")
	binary.Write(&b, binary.LittleEndian, uint32(2*n))
	for i := range n {
		binary.Write(&b, binary.LittleEndian, int16(16000*math.Sin(2*math.Pi*hz*float64(i)/Rate)))
	}
	return b.Bytes()
}

// PCM decodes little-endian 16-bit samples, as parec --raw --format=s16le --channels=1 writes them.
func PCM(raw []byte) []float32 {
	out := make([]float32, len(raw)/2)
	for i := range out {
		out[i] = float32(int16(binary.LittleEndian.Uint16(raw[2*i:]))) / 32768
	}
	return out
}
