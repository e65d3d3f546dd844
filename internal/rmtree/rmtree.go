// Package rmtree removes directory trees that nothing may be mounted in.
//
// os.RemoveAll crosses mount points: a bind mount of /dev/shm that a killed program has left in its scratch directory
// would cost the host its /dev/shm. Whoever removes, as root, a tree in which others mount uses this package instead.
package rmtree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrMounted is in the error of Remove when something is mounted in the tree; nothing has been removed then.
var ErrMounted = errors.New("something is mounted there")

// Remove is os.RemoveAll for a tree without mounts. It removes nothing if something is mounted on path or below.
func Remove(path string) error {
	mounts, err := mountsIn(path)
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("remove %q: %w: %q; unmount it first", path, ErrMounted, mounts[len(mounts)-1])
	}
	return os.RemoveAll(path)
}

// Unmount detaches, the last first, what is mounted on path or below.
func Unmount(path string) error {
	mounts, err := mountsIn(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		// EINVAL: no mount point any more, because it went together with another.
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %q: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// mountsIn returns the mount points on path and below in the order in which they were mounted.
func mountsIn(path string) ([]string, error) {
	// The kernel lists mount points by their real paths. A link at the very end is removed, not followed.
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("mounts in %q: %w", path, err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mounts in %q: %w", path, err)
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(dir, filepath.Base(abs))))
	if err != nil {
		return nil, fmt.Errorf("mounts in %q: %w", path, err)
	}
	out := make([]string, len(infos))
	for i, m := range infos {
		out[i] = m.Mountpoint
	}
	return out, nil
}
