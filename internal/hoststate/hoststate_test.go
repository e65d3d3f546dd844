package hoststate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/paths"
)

func TestDiffShowsWhatIsNew(t *testing.T) {
	l, err := paths.New(filepath.Join(os.TempDir(), "hs"))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	l.Run, l.State = filepath.Join(root, "r"), filepath.Join(root, "s")
	for _, dir := range []string{l.Run, l.Exports()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before, err := Take(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Run, "left"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// What an image shows to others is kept as long as the image is; what is half made is not.
	half := filepath.Join(l.Exports(), ".partial-1")
	for _, dir := range []string{half, filepath.Join(l.Exports(), "d9f97c3ee7717514e6e7", "share")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	after, err := Take(l)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"files: " + filepath.Join(l.Run, "left"), "files: " + half}
	if d := cmp.Diff(want, Diff(before, after)); d != "" {
		t.Errorf("diff (-want +got):\n%s", d)
	}
}
