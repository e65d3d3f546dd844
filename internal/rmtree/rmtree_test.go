package rmtree

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemove(t *testing.T) {
	for _, tt := range []struct {
		name   string
		mounts []string // below the tree, "." is the tree itself
		via    string   // a link on the way to the tree
		is     error
	}{
		{name: "no_mounts"},
		{name: "mount_below", mounts: []string{"a/b"}, is: ErrMounted},
		{name: "mount_on_itself", mounts: []string{"."}, is: ErrMounted},
		{name: "mount_on_mount", mounts: []string{"a", "a", "a/b"}, is: ErrMounted},
		{name: "odd_name", mounts: []string{"a blank\tand\\more"}, is: ErrMounted},
		{name: "through_a_link", mounts: []string{"a/b"}, via: "link", is: ErrMounted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if len(tt.mounts) > 0 && os.Getuid() != 0 {
				t.Skip("needs root to mount")
			}
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			precious := filepath.Join(dir, "precious")
			must(t, os.MkdirAll(filepath.Join(precious, "b"), 0o755))
			must(t, os.WriteFile(filepath.Join(precious, "file"), nil, 0o644))
			must(t, os.MkdirAll(filepath.Join(dir, "real", "tree", "a", "b"), 0o755))
			must(t, os.Symlink("real", filepath.Join(dir, "link")))
			// One whose name begins alike is no business of the tree's.
			must(t, os.MkdirAll(filepath.Join(dir, "real", "tree2"), 0o755))
			tree := filepath.Join(dir, "real", "tree")
			for _, m := range tt.mounts {
				p := filepath.Join(tree, m)
				must(t, os.MkdirAll(p, 0o755))
				bind(t, precious, p)
			}
			if len(tt.mounts) > 0 {
				bind(t, precious, filepath.Join(dir, "real", "tree2"))
			}
			if tt.via != "" {
				tree = filepath.Join(dir, tt.via, "tree")
			}

			if err := Remove(tree); !errors.Is(err, tt.is) {
				t.Fatalf("Remove = %v; want %v", err, tt.is)
			}
			if tt.is != nil {
				if _, err := os.Stat(filepath.Join(tree, "a")); err != nil && tt.mounts[0] != "." {
					t.Errorf("Remove has begun all the same: %v", err)
				}
				must(t, Unmount(tree))
				must(t, Remove(tree))
			}
			if _, err := os.Lstat(tree); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the tree is still there: %v", err)
			}
			if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
				t.Errorf("what was mounted is gone: %v", err)
			}
			if m, err := mountsIn(filepath.Join(dir, "real", "tree2")); err != nil || len(tt.mounts) > 0 && len(m) != 1 {
				t.Errorf("mounts of the tree beside it: %v, %v; want one", m, err)
			}
		})
	}
}

func TestRemoveMissing(t *testing.T) {
	p := filepath.Join(t.TempDir(), "no", "such")
	if err := errors.Join(Unmount(p), Remove(p)); err != nil {
		t.Error(err)
	}
}

// A link is removed, not what it leads to.
func TestRemoveLink(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.Symlink("d", filepath.Join(dir, "l")))
	must(t, Remove(filepath.Join(dir, "l")))
	if _, err := os.Stat(filepath.Join(dir, "d")); err != nil {
		t.Error(err)
	}
}

func bind(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot bind mount: %v", err)
	}
	// What is mounted in it next must not show up in from too.
	must(t, unix.Mount("", to, "", unix.MS_PRIVATE, ""))
	t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) }) // most are gone by then
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
