package hostcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/firewall"
	"berth/internal/rmtree"
)

// Real is this machine.
func Real() Host {
	return Host{
		EUID:       os.Geteuid(),
		ReadFile:   readFile,
		LookPath:   lookPath,
		FileSystem: fileSystem,
		TryOverlay: tryOverlay,
		TryVeth:    tryVeth,
		TryNAT:     tryNAT,
		Forwarding: func() firewall.Drops { return firewall.Forwarding(context.Background()) },
		Cgroup2: func(path string) bool {
			var st unix.Statfs_t
			return unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
		},
	}
}

// readFile is os.ReadFile, except that a link to a namespace, which cannot be read, is empty.
func readFile(path string) ([]byte, error) {
	if strings.HasPrefix(path, "/proc/self/ns/") {
		_, err := os.Lstat(path)
		return nil, err
	}
	return os.ReadFile(path)
}

// lookPath is exec.LookPath, also in the directories for root's programs, which su without - leaves out of PATH.
func lookPath(name string) (string, error) {
	p, err := exec.LookPath(name)
	if err == nil || strings.Contains(name, "/") {
		return p, err
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", err
}

// existing is path or the nearest directory above it that exists.
func existing(path string) (string, error) {
	for {
		_, err := os.Stat(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return path, err
		}
		path = filepath.Dir(path)
	}
}

var fsNames = map[int64]string{
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.FUSE_SUPER_MAGIC:      "fuse",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.RAMFS_MAGIC:           "ramfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.XFS_SUPER_MAGIC:       "xfs",
	0x2fc12fc1:                 "zfs",
}

func fileSystem(path string) (FileSystem, error) {
	dir, err := existing(path)
	if err != nil {
		return FileSystem{}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return FileSystem{}, fmt.Errorf("file system of %q: %w", dir, err)
	}
	name := fsNames[int64(st.Type)]
	if name == "" {
		name = fmt.Sprintf("%#x", st.Type)
	}
	return FileSystem{Type: name, Free: st.Bavail * uint64(st.Bsize), Inodes: st.Ffree, Counts: st.Files > 0}, nil
}

// tryOverlay does what a container does: two lower layers, a file changed, one deleted and a directory replaced.
func tryOverlay(path string) (err error) {
	parent, err := existing(path)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(parent, ".berth-check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rmtree.Remove(dir)) }()
	sub := func(s string) string { return filepath.Join(dir, s) }
	for _, d := range []string{"a", "b", "b/d", "upper", "work", "m"} {
		if err := os.Mkdir(sub(d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"a/change", "b/delete", "b/d/f"} {
		if err := os.WriteFile(sub(f), []byte("old"), 0o644); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s", sub("a"), sub("b"), sub("upper"), sub("work"))
	if err := unix.Mount("overlay", sub("m"), "overlay", 0, data); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return errors.New("the kernel has no overlayfs (modprobe overlay)")
		}
		return fmt.Errorf("mount: %w", err)
	}
	defer func() {
		if uerr := unix.Unmount(sub("m"), unix.MNT_DETACH); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %q: %w", sub("m"), uerr))
		}
	}()
	if err := os.WriteFile(sub("m/change"), []byte("new"), 0o644); err != nil {
		return err
	}
	if err := os.Remove(sub("m/delete")); err != nil {
		return err
	}
	if err := os.RemoveAll(sub("m/d")); err != nil {
		return err
	}
	if err := os.Mkdir(sub("m/d"), 0o755); err != nil {
		return err
	}
	got, err := os.ReadFile(sub("m/change"))
	if err == nil && string(got) != "new" {
		err = fmt.Errorf("a changed file reads %q", got)
	}
	if _, gone := os.Stat(sub("m/delete")); err == nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.New("a deleted file is still there")
	}
	if _, gone := os.Stat(sub("m/d/f")); err == nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.New("a replaced directory still has its content")
	}
	return err
}

// tryVeth runs in a thread with a network namespace of its own; both end with the goroutine.
func tryVeth() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread is not used again
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("network namespace: %w", err)
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "berth0"
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "berth1"}); err != nil {
				return fmt.Errorf("veth: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

// tryNAT runs the program in a network namespace of its own, which ends with it.
func tryNAT(program string) error {
	path, err := lookPath(program)
	if err != nil {
		return err
	}
	args := []string{"-w", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.0/24", "-j", "MASQUERADE"}
	if program == "nft" {
		args = []string{"add table ip berth; add chain ip berth post { type nat hook postrouting priority srcnat; }; " +
			"add rule ip berth post ip saddr 192.0.2.0/24 masquerade"}
	}
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		out, _, _ = bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}
