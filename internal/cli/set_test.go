package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"berth/orchestrator"
)

func TestSet(t *testing.T) {
	b := newBench(t, "work")
	if code := b.run("set", "work", "look.dark=true", "look.font=Noto Sans 11"); code != 0 || b.out.String() != "" {
		t.Errorf("berth set = %d, %q\n%s", code, b.out, b.err)
	}
	if got := fmt.Sprint(b.fake.Calls()); !strings.Contains(got, "Set work look.dark=true look.font=Noto Sans 11") {
		t.Errorf("calls: %s", got)
	}
	if code := b.run("set", "work"); code != 2 || !strings.Contains(b.err.String(), "missing argument") {
		t.Errorf("berth set without a key = %d: %s", code, b.err)
	}
	if code := b.run("set", "none", "look.dark=true"); code != 1 || !strings.Contains(b.err.String(), "not found") {
		t.Errorf("berth set of no session = %d: %s", code, b.err)
	}
	if code := b.run("set", "work", "display.size=1x1"); code != 1 || !strings.Contains(b.err.String(), "these can: look.dark") {
		t.Errorf("berth set of another key = %d: %s", code, b.err)
	}
	b.fake.Fail["Set"] = fmt.Errorf("component %q: %w", "settings", errors.Join(orchestrator.ErrState))
	if code := b.run("set", "work", "look.dark=true"); code != 1 || !strings.Contains(b.err.String(), `component "settings"`) {
		t.Errorf("berth set that fails = %d: %s", code, b.err)
	}
}
