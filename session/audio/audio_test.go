package audio_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"berth/internal/hostsession"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/audio"
	"berth/session/audio/audiotest"
	"berth/session/probe"
)

func TestComponents(t *testing.T) {
	for server, want := range map[string]struct {
		n   int
		err error
	}{"pipewire": {3, nil}, "pulseaudio": {1, nil}, "none": {0, nil}, "host": {0, orchestrator.ErrUnavailable}, "jack": {0, orchestrator.ErrInvalid}} {
		comps, err := audio.Components(profiles.Audio{Server: server})
		if !errors.Is(err, want.err) || len(comps) != want.n {
			t.Errorf("%s: %d components, %v", server, len(comps), err)
		}
	}
}

// TestSound plays a tone for the speakers and for the microphone and finds both where they are heard.
func TestSound(t *testing.T) {
	for _, server := range []string{"pipewire", "pulseaudio"} {
		t.Run(server, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			s := hostsession.New(t)
			s.Overlay("../../assets/images/" + server + "/files/etc")
			r := probe.New(probe.Target{RuntimeDir: s.Runtime, TmpDir: s.Tmp, RuntimeInside: s.RuntimeInside()})
			comps, err := audio.Components(profiles.Audio{Server: server})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range comps {
				s.Start(c)
				for _, p := range s.Ready(c) {
					if err := r.Wait(ctx, p); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, way := range []struct {
				sink, source string
				hz           float64
			}{{"", audio.Monitor, 440}, {audio.MicInput, "", 1000}} {
				play, stop := context.WithCancel(ctx)
				played := make(chan error, 1)
				go func() { played <- audiotest.Play(play, "unix:"+s.Runtime+"/pulse/native", way.sink, way.hz, nil) }()
				err := audiotest.Listen(ctx, "unix:"+s.Runtime+"/pulse/native", way.source, func(hz, share float64) bool {
					return math.Abs(hz-way.hz) < 3 && share > 0.9
				})
				stop()
				if err != nil {
					t.Errorf("%v Hz from %q in %q: %v", way.hz, way.sink, way.source, err)
				}
				if err := <-played; err != nil {
					t.Error(err)
				}
			}
		})
	}
}
