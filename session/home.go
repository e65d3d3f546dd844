package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/revert"
	"berth/internal/rmtree"
	"berth/orchestrator"
	"berth/session/api"
)

// A home is a volume of its user's, a directory of the host's ("bind"), or ephemeral. A volume or an ephemeral home comes
// into being complete: it is filled under another name and renamed, so that a start that was killed leaves no half-made
// one for the next to take for a home.

// claimHome settles where the home lies. From then on nobody else's failed start or `berth rm --home` takes the volume away.
func (s *session) claimHome() error {
	id, h := s.rec.User, s.rec.Plan.Home
	var dir, volume string
	switch h.Kind {
	case "bind":
		if err := s.wires.bindHome(h.Path, id.UID); err != nil {
			return err
		}
		dir = h.Path
	case "ephemeral":
		dir = s.ephemeralHome()
	default:
		volume = cmp.Or(h.Name, s.name)
		dir = s.m.volumeDir(id.UID, volume)
	}
	s.m.mu.Lock() // excludes takeVolume
	defer s.m.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Home, s.rec.Volume = dir, volume
	return nil
}

// homeSource is what is mounted as the home.
func (s *session) homeSource() string {
	if s.rec.Plan.Home.Kind == "bind" {
		return s.wires.home()
	}
	return s.rec.Home
}

// makeHome makes the home unless it is there, and gives it what the desktop's image has for new users, as useradd(8)
// does. What it makes a failed start takes back.
func (s *session) makeHome(ctx context.Context, undo *revert.Stack) (err error) {
	id, dir := s.rec.User, s.rec.Home
	if s.rec.Plan.Home.Kind == "bind" {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("home %q: %w", dir, err)
		}
	}()
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	fresh := filepath.Join(filepath.Dir(dir), unfinishedHome+s.id)
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rmtree.Remove(fresh)) }() // nothing is there once it has its name
	if err := s.fillHome(ctx, fresh); err != nil {
		return err
	}
	// Only now, so that nobody puts a link in the way of what root writes.
	if err := os.Chown(fresh, id.UID, id.GID); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return nil // another session of the same home was quicker
	}
	if err == nil && s.rec.Volume != "" { // an ephemeral home goes with the takedown
		undo.Add("remove home "+dir, func(context.Context) error { return s.m.dropVolume(s, id.UID, s.rec.Volume) })
	}
	return err
}

// unfinishedHome begins the names of homes that are being made or removed; no volume can be called so.
const unfinishedHome = ".berth-"

func (s *session) fillHome(ctx context.Context, dir string) error {
	ref := s.homeImage()
	for _, name := range []string{".bashrc", ".profile", ".bash_logout"} {
		b, err := s.m.opt.Engine.Images().ReadFile(ctx, ref, "/etc/skel/"+name)
		if errors.Is(err, orchestrator.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
		if err := os.Chown(file, s.rec.User.UID, s.rec.User.GID); err != nil {
			return err
		}
	}
	return nil
}

// homeImage is the image whose programs use the home most: that of the panel, else of the last component with a home.
func (s *session) homeImage() string {
	ref := ""
	for _, c := range s.rec.Plan.Components {
		if !needs(c, "home") {
			continue
		}
		ref = s.comps[c.Name].ref
		if slices.Contains(c.Provides, "panel") {
			break
		}
	}
	return ref
}

// bindHome mounts the directory at path as the session's home. What was looked at is what is mounted: its owner could
// put something else in its place afterwards, each time a container is started anew. Mounts below it come along, and none
// goes back: slaves, so that ending the session unmounts nothing of the host's.
func (w wires) bindHome(path string, uid int) error {
	fail := func(err error) error { return fmt.Errorf("home %q: %w", path, err) }
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err)
	}
	if int(st.Uid) != uid {
		return fail(fmt.Errorf("belongs to uid %d, the session runs as uid %d: %w", st.Uid, uid, orchestrator.ErrInvalid))
	}
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return fail(os.NewSyscallError("open_tree", err))
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_SLAVE}); err != nil {
		return fail(os.NewSyscallError("mount_setattr", err))
	}
	if err := os.Mkdir(w.home(), 0o700); err != nil {
		return fail(err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, w.home(), unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// volumeDir is where the home volume of user uid lies: users do not share names.
func (m *Manager) volumeDir(uid int, name string) string {
	return filepath.Join(m.opt.Layout.Volumes(), strconv.Itoa(uid), name)
}

// dropVolume deletes a home volume unless a session other than own, which may be nil, has claimed it: then it is left,
// ErrState. One that is not there is ErrNotFound.
func (m *Manager) dropVolume(own *session, uid int, name string) error {
	m.mu.Lock()
	for _, s := range m.sessions {
		if s != own && s.volume() == name && s.rec.User.UID == uid {
			m.mu.Unlock()
			return fmt.Errorf("home volume %q: %w: session %q uses it", name, orchestrator.ErrState, s.name)
		}
	}
	dir := m.volumeDir(uid, name)
	gone := filepath.Join(filepath.Dir(dir), unfinishedHome+randomHex(8))
	err := os.Rename(dir, gone)
	m.mu.Unlock()
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("home volume %q: %w", name, orchestrator.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("home volume %q: %w", name, err)
	}
	return rmtree.Remove(gone)
}

// removeVolume deletes the home volume of c's that is called name; for root, the only one of that name, whoever's it is.
func (m *Manager) removeVolume(c api.Caller, name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("home volume %q: %w", name, orchestrator.ErrNotFound)
	}
	uid := c.UID
	if c.Root() {
		have, err := filepath.Glob(m.volumeDirs(name))
		if err != nil {
			return err
		}
		if len(have) > 1 {
			return fmt.Errorf("home volume %q: %w: several users have one; remove one of %s by hand", name, orchestrator.ErrInvalid, strings.Join(have, ", "))
		}
		if len(have) == 1 {
			if uid, err = strconv.Atoi(filepath.Base(filepath.Dir(have[0]))); err != nil {
				return fmt.Errorf("home volume %q: %w", have[0], err)
			}
		}
	}
	return m.dropVolume(nil, uid, name)
}

// volumeDirs is a pattern of filepath.Glob for the volumes called name of all users.
func (m *Manager) volumeDirs(name string) string {
	return filepath.Join(m.opt.Layout.Volumes(), "*", name)
}

// clearHomes removes what starts and removals that were killed have left.
func (m *Manager) clearHomes() error {
	left, err := filepath.Glob(m.volumeDirs(unfinishedHome + "*"))
	if err != nil {
		return err
	}
	more, err := filepath.Glob(filepath.Join(m.opt.Layout.State, "ephemeral", unfinishedHome+"*"))
	for _, dir := range append(left, more...) {
		err = errors.Join(err, rmtree.Remove(dir))
	}
	return err
}
