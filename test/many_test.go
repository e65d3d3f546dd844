package test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"berth/display/x11"
	"berth/session/api"
)

// TestTwenty runs twenty sessions at once, each with its own working desktop, bus and sound, and stops them all.
func TestTwenty(t *testing.T) {
	inst.NothingLeft(t)
	const n = 20
	sessions := make([]api.Session, n)
	var wg sync.WaitGroup
	gate := make(chan struct{}, 4) // starts at a time: two cores
	for i := range n {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			sessions[i] = inst.Up(t, "xfce", "--name", fmt.Sprintf("many-%d", i), "--set", `home.kind="ephemeral"`, "--set", "display.size=1024x768")
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	seen := map[string]string{}
	for i, s := range sessions {
		c := screen(t, s)
		waitFor(t, c, x11.WM, x11.Dock, x11.Desktop)
		// Its own bus, with its own ID, and its own sound.
		id := strings.TrimSpace(inst.Exec(t, s.Name, "panel", "dbus-send", "--print-reply=literal", "--dest=org.freedesktop.DBus",
			"/org/freedesktop/DBus", "org.freedesktop.DBus.GetId"))
		cookie := strings.TrimSpace(inst.Exec(t, s.Name, "panel", "sh", "-c", "pactl info | sed -n 's/^Cookie: //p'"))
		for what, v := range map[string]string{"bus": id, "sound": cookie, "vnc": s.Remote.VNC, "password": s.Remote.Password} {
			if v == "" {
				t.Errorf("session %d has no %s", i, what)
			}
			if other, ok := seen[what+v]; ok {
				t.Errorf("%s and %s share their %s (%s)", other, s.Name, what, v)
			}
			seen[what+v] = s.Name
		}
	}
	if got := len(inst.List(t)); got != n {
		t.Errorf("ls shows %d sessions; want %d", got, n)
	}
	shot(t, sessions[n-1].Name, "twentieth")
	for _, s := range sessions {
		wg.Go(func() {
			if r, err := inst.Do(context.Background(), "stop", s.Name); err != nil || r.Code != 0 {
				t.Errorf("stop %s: %v %s", s.Name, err, r.Stderr)
			}
		})
	}
	wg.Wait()
	if got := len(inst.List(t)); got != 0 {
		t.Errorf("ls shows %d sessions after all were stopped", got)
	}
}
