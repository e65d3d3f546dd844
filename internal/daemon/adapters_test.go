package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/orchestrator"
	"berth/session/api"
)

// TestPlanHereIsTheDaemons: a profile that only $HOME leads to is none, since the daemon would not find it either.
func TestPlanHereIsTheDaemons(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".config", "berth", "profiles")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "elsewhere.toml"), []byte(`extends = "xfce"`), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", filepath.Join(dir, "../../.."))
	if _, err := PlanHere(context.Background(), api.UpRequest{Profile: "elsewhere"}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("PlanHere = %v; want not found", err)
	}
	if _, err := PlanHere(context.Background(), api.UpRequest{Profile: "xfce"}); err != nil {
		t.Errorf("PlanHere = %v", err)
	}
}
