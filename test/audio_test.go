package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"berth/session/api"
	"berth/test/berthtest"
)

// rate is the sample rate of the tones, in Hz.
const rate = 48000

// TestSound plays a tone in one container, records it in another, and finds its frequency; for both sound servers.
func TestSound(t *testing.T) {
	for _, server := range []string{"pipewire", "pulseaudio"} {
		t.Run(server, func(t *testing.T) {
			inst.NothingLeft(t)
			s := inst.Up(t, "xfce", "--name", "snd-"+server, "--set", `home.kind="ephemeral"`, "--set", `audio.server="`+server+`"`)
			if server == "pipewire" {
				inst.Exec(t, s.Name, "audio", "pw-cli", "info", "0")
			}
			for _, list := range []string{"sinks", "sources"} {
				out := inst.Exec(t, s.Name, "panel", "pactl", "list", "short", list)
				if !strings.Contains(out, "berth") {
					t.Errorf("%s, as the panel sees them:\n%s", list, out)
				}
			}
			for _, hz := range []float64{440, 1000} {
				got := hear(t, s, hz)
				if math.Abs(got-hz) > 5 {
					t.Errorf("played %.0f Hz in one container, heard %.1f Hz in another", hz, got)
				}
			}
		})
	}
}

// hear plays hz in the panel's container and returns the strongest frequency on the sink's monitor as the window
// manager's container records it.
func hear(t *testing.T, s api.Session, hz float64) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), berthtest.Patience)
	defer cancel()
	play := inst.Command(ctx, "exec", s.Name, "panel", "--", "pacat", "--playback", "--raw", "--format=s16le", "--channels=1", "--rate=48000")
	var tone bytes.Buffer
	for n := range 60 * rate {
		binary.Write(&tone, binary.LittleEndian, int16(12000*math.Sin(2*math.Pi*hz*float64(n)/rate)))
	}
	play.Stdin = &tone
	if err := play.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		play.Wait() // it is cut short
	}()
	rec := inst.Command(ctx, "exec", s.Name, "window-manager", "--", "parec", "--raw", "--format=s16le", "--channels=1",
		"--rate=48000", "--device=berth.monitor")
	out, err := rec.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := rec.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		out.Close() // what it cannot write any more does not keep it
		rec.Wait()
	}()
	// Silence comes first; the tone is there once a whole stretch is loud.
	samples := make([]int16, rate)
	for {
		if err := binary.Read(out, binary.LittleEndian, samples); err != nil {
			t.Fatalf("recording %.0f Hz: %v", hz, err)
		}
		if quietest(samples) > 3000 {
			return strongest(samples)
		}
	}
}

// quietest returns the smallest peak of any 10 ms of samples.
func quietest(samples []int16) float64 {
	least := math.Inf(1)
	for i := 0; i+rate/100 <= len(samples); i += rate / 100 {
		peak := 0.0
		for _, v := range samples[i : i+rate/100] {
			peak = max(peak, math.Abs(float64(v)))
		}
		least = min(least, peak)
	}
	return least
}

// strongest returns the frequency with the most power between 100 and 2000 Hz, in Hz (Goertzel's algorithm).
func strongest(samples []int16) (hz float64) {
	most := 0.0
	for f := 100.0; f <= 2000; f++ {
		c := 2 * math.Cos(2*math.Pi*f/rate)
		var s1, s2 float64
		for _, v := range samples {
			s1, s2 = float64(v)+c*s1-s2, s1
		}
		if p := s1*s1 + s2*s2 - c*s1*s2; p > most {
			hz, most = f, p
		}
	}
	return hz
}
