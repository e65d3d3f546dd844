package private

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// removeCgroup removes the cgroup called name with those below it, in every hierarchy. A cgroup is removed by rmdir, which
// the kernel refuses while a process is in it (cgroups(7)).
func removeCgroup(mount, name string) error {
	tops := []string{filepath.Join(mount, name)} // version 2
	v1, err := filepath.Glob(filepath.Join(mount, "*", name))
	errs := []error{err}
	for _, top := range append(tops, v1...) {
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case d.IsDir():
				dirs = append(dirs, path)
			}
			return nil
		})
		errs = append(errs, err)
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("cgroup: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
