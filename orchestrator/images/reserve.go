package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// reserveSize is enough for the databases of containerd and BuildKit to record removals.
const reserveSize = 16 << 20

// reserve is a file that keeps some of the disk back. A full disk cannot be cleaned up, for databases grow before they
// shrink; giving up the reserve makes that possible.
type reserve struct{ path string }

func (s *Service) reserve() reserve { return reserve{filepath.Join(s.opt.Layout.State, "reserve")} }

// keep makes the reserve if it is not there. Where there is no room for it there is none.
func (r reserve) keep() error {
	if fi, err := os.Stat(r.path); err == nil && fi.Size() == reserveSize {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(r.path), 0o711); err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveSize), f.Close())
	if err != nil {
		// Also where the file system has no fallocate: a reserve that holds nothing is none.
		err = errors.Join(err, os.Remove(r.path))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// give gives the reserve up.
func (r reserve) give() error {
	if err := os.Remove(r.path); err != nil && !isNotExist(err) {
		return fmt.Errorf("reserve: %w", err)
	}
	return nil
}
