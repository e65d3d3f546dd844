package diskfull

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"berth/orchestrator"
)

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		full bool
	}{
		{"none", nil, false},
		{"other", errors.New("no such file"), false},
		{"errno", fmt.Errorf("home %q: %w", "/x", syscall.ENOSPC), true},
		{"text", errors.New("rpc error: failed to copy: write /x: No space left on device"), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Explain(tc.err, t.TempDir())
			var e *Error
			if errors.As(got, &e) != tc.full || errors.Is(got, orchestrator.ErrUnavailable) != tc.full || !errors.Is(got, tc.err) {
				t.Fatalf("Explain(%v) = %v", tc.err, got)
			}
			if !tc.full {
				return
			}
			if text := got.Error(); !strings.HasPrefix(text, tc.err.Error()) || !strings.Contains(text, "is full") || !strings.Contains(text, e.Dir) {
				t.Errorf("Explain(%v) says %q", tc.err, text)
			}
			if again := Explain(fmt.Errorf("session: %w", got), "/"); strings.Count(again.Error(), "is full") != 1 {
				t.Errorf("explained twice: %v", again)
			}
		})
	}
}
