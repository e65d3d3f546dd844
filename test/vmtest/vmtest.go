// Package vmtest boots Debian 12 with systemd in QEMU, with Berth installed in it, for the tests that need a kernel and an
// init system of their own.
//
// # The machine
//
// It has three disks; changes to them are thrown away when it ends:
//
//	root   Debian as mmdebstrap makes it from the mirrors the host's apt uses, with systemd and Debian's cloud kernel
//	state  /var/lib/berth, where the images are, unpacked
//	local  /usr/local: what `make install` puts there and, in lib/vmtest, the test's own programs
//
// root and state take a minute each to make, so they are kept beside the images of the second ring (BERTH_TEST_ROOT/vm),
// under names that are digests of what goes into them; local is made in a few seconds by every run. The images are made
// by the second ring's Berth, carried over by `berth image export` and `import` into a Berth in namespaces of its own, and
// the state of that one becomes the disk. The machine then finds them as its own: unpacking them in there, where every
// instruction is emulated, would take many minutes.
//
// Disks are made by `mke2fs -d` and mounted nowhere on the host. The machine has no network.
//
// # The agent
//
// A small static program, started by a unit of the root disk, runs commands for the test, one at a time. They come through
// a virtio-serial port whose other end is a socket that QEMU inherits. The kernel's console goes to a file, the end of
// which a failed test shows. Nothing is slept for: the agent says when it is there, commands are waited for.
//
// # What runs in it
//
// The binary of the second ring's tests, on the installed program (berthtest.EnvInstalled): the same assertions. And
// commands as an administrator or a user would type them.
//
// # Acceleration
//
// QEMU translates (TCG) with a thread per processor. When a kernel changes code that another processor runs, QEMU 7.2 may go
// on with the old: version 1's freezer does so at a container's every kill, by a static key in recalc_sigpending, and now
// and then both processors were found there in int3 for ever. Machines with version 1 get one processor.
//
// BERTH_TEST_VM_ACCEL=kvm has QEMU use KVM, which cannot be tried out cheaply: in some places /dev/kvm opens and guests hang.
package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/orchestrator/images"
	"berth/session/api"
	"berth/test/berthtest"
)

// EnvAccel names the accelerator QEMU is to use.
const EnvAccel = "BERTH_TEST_VM_ACCEL"

// release is that of the machine.
const release = "bookworm"

// packages of the machine, besides those every Debian has: systemd, and what a host of Berth needs.
var packages = []string{
	"systemd-sysv", "udev", "dbus", "kmod", "procps", "iproute2", "iptables", "nftables", "linux-image-cloud-amd64",
}

// rootFiles are put over the root disk.
var rootFiles = map[string]string{
	"etc/fstab": "LABEL=berth-root / ext4 noatime 0 0\n" +
		"LABEL=berth-state /var/lib/berth ext4 noatime,noinit_itable 0 0\n" +
		"LABEL=berth-local /usr/local ext4 noatime 0 0\n",
	"etc/hostname":   "machine\n",
	"etc/hosts":      "127.0.0.1 localhost machine\n",
	"etc/machine-id": "0123456789abcdef0123456789abcdef\n", // without one every boot would be the first, with all its presets
	"etc/systemd/system/vmtest-agent.service": `[Unit]
Description=Runs commands for the test
DefaultDependencies=no
Requires=dev-virtio\x2dports-berth.vmtest.device
After=dev-virtio\x2dports-berth.vmtest.device multi-user.target
RequiresMountsFor=/usr/local /var/lib/berth

[Service]
ExecStart=/usr/local/lib/vmtest/agent
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
`,
}

// rootLinks are symbolic links of the root disk.
var rootLinks = map[string]string{
	"etc/systemd/system/multi-user.target.wants/vmtest-agent.service": "../vmtest-agent.service",
	// What a machine that lives for two minutes need not do.
	"etc/systemd/system/apt-daily.timer":            "/dev/null",
	"etc/systemd/system/apt-daily-upgrade.timer":    "/dev/null",
	"etc/systemd/system/dpkg-db-backup.timer":       "/dev/null",
	"etc/systemd/system/e2scrub_all.timer":          "/dev/null",
	"etc/systemd/system/e2scrub_reap.service":       "/dev/null",
	"etc/systemd/system/fstrim.timer":               "/dev/null",
	"etc/systemd/system/getty@tty1.service":         "/dev/null",
	"etc/systemd/system/serial-getty@ttyS0.service": "/dev/null",
}

// Places in the machine.
const (
	// Ring2 is the binary of the second ring's tests.
	Ring2 = "/usr/local/lib/vmtest/ring2"
	// Agent is the agent, which also tells what Berth has on the machine.
	Agent = "/usr/local/lib/vmtest/agent"
	// Berth is the installed program.
	Berth = "/usr/local/bin/berth"
)

// Lab makes machines.
type Lab struct {
	inst *berthtest.Instance // whose images they get
	top  string              // the checkout
	dir  string              // where the disks are
	qemu string
}

// ErrCannot is the error of New where machines cannot be had.
var ErrCannot = errors.New("no machine can be made here")

// New finds what is needed. inst has the images, or can build them.
func New(inst *berthtest.Instance) (*Lab, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: it would be one of %s; only amd64 has been tried", ErrCannot, runtime.GOARCH)
	}
	l := &Lab{inst: inst, dir: filepath.Join(inst.Layout.Root, "vm")}
	for name, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "mmdebstrap": "mmdebstrap", "make": "make", "go": "golang-go"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w; install package %s", ErrCannot, err, pkg)
		}
		if pkg == "qemu-system-x86" {
			l.qemu = path
		}
	}
	_, file, _, _ := runtime.Caller(0)
	l.top = filepath.Dir(filepath.Dir(filepath.Dir(file)))
	return l, os.MkdirAll(l.dir, 0o700)
}

// Disks are what machines boot from.
type Disks struct {
	Kernel, Initrd, Root, State, Local string
}

// Prepare makes the disks that are not there yet; the machine will have the named images. All but the local disk are
// kept, and what they replace is removed. logf hears what takes long.
func (l *Lab) Prepare(ctx context.Context, imgs []string, logf func(string, ...any)) (d Disks, err error) {
	g, ctx := errgroup.WithContext(ctx)
	timed := func(what string, f func() error) error {
		start := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s disk: %w", what, err)
		}
		logf("%s disk: %.1f s", what, time.Since(start).Seconds())
		return nil
	}
	g.Go(func() error { return timed("root", func() error { return l.root(ctx, &d) }) })
	g.Go(func() error {
		// The program that is installed decides which images are up to date.
		if err := timed("local", func() error { return l.local(ctx, &d) }); err != nil {
			return err
		}
		return timed("state", func() error { return l.state(ctx, imgs, &d) })
	})
	return d, g.Wait()
}

// kept returns the directory that fill has filled once for all with this key, in which it may use tmp; others of the same
// kind are removed before.
func (l *Lab) kept(kind string, key any, fill func(dir, tmp string) error) (string, error) {
	text, err := json.Marshal(key)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	dir := filepath.Join(l.dir, kind+"-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	old, err := filepath.Glob(filepath.Join(l.dir, kind+"-*"))
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return "", err
		}
	}
	work, err := os.MkdirTemp(l.dir, kind+"-new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	out, tmp := filepath.Join(work, "out"), filepath.Join(work, "tmp")
	for _, d := range []string{out, tmp} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	if err := fill(out, tmp); err != nil {
		return "", err
	}
	return dir, os.Rename(out, dir)
}

func (l *Lab) root(ctx context.Context, d *Disks) error {
	args := []string{"--variant=minbase", "--mode=root", "--format=dir", "--include=" + strings.Join(packages, ",")}
	for _, o := range []string{"force-unsafe-io", "path-exclude=/usr/share/doc/*", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*"} {
		args = append(args, "--dpkgopt="+o)
	}
	dir, err := l.kept("root", []any{release, args, rootFiles, rootLinks}, func(out, tmp string) error {
		tree := filepath.Join(tmp, "tree")
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd, err := images.Bootstrap(ctx, release, tree, tmp, args...)
		if err != nil {
			return err
		}
		if err := run(cmd); err != nil {
			return err
		}
		for name, text := range rootFiles {
			if err := put(filepath.Join(tree, name), func(p string) error { return os.WriteFile(p, []byte(text), 0o644) }); err != nil {
				return err
			}
		}
		for name, to := range rootLinks {
			if err := put(filepath.Join(tree, name), func(p string) error { return os.Symlink(to, p) }); err != nil {
				return err
			}
		}
		for from, to := range map[string]string{"vmlinuz-*": "kernel", "initrd.img-*": "initrd"} {
			found, err := filepath.Glob(filepath.Join(tree, "boot", from))
			if err != nil || len(found) != 1 {
				return fmt.Errorf("boot/%s: want one file, got %v", from, found)
			}
			if err := os.Rename(found[0], filepath.Join(out, to)); err != nil {
				return err
			}
		}
		for _, empty := range []string{"dev", "var/cache/apt", "var/lib/apt/lists"} {
			if err := os.RemoveAll(filepath.Join(tree, empty)); err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Join(tree, empty), 0o755); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Join(tree, "var/lib/berth"), 0o711); err != nil {
			return err
		}
		return disk(ctx, filepath.Join(out, "disk"), "berth-root", tree, 2<<30)
	})
	d.Kernel, d.Initrd, d.Root = filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd"), filepath.Join(dir, "disk")
	return err
}

func (l *Lab) state(ctx context.Context, names []string, d *Disks) error {
	if err := berth(ctx, l.inst, append([]string{"image", "build"}, names...)...); err != nil {
		return err
	}
	r, err := l.inst.Do(ctx, "image", "ls", "--json")
	if err != nil || r.Code != 0 {
		return fmt.Errorf("berth image ls: code %d, %w: %s", r.Code, err, r.Stderr)
	}
	var all api.ImageList
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
		return err
	}
	key := map[string]string{}
	for _, i := range all.Images {
		if name := strings.TrimSuffix(strings.TrimPrefix(i.Ref, "localhost/berth/"), ":latest"); slices.Contains(names, name) {
			key[name] = i.Digest
		}
	}
	if len(key) != len(names) {
		return fmt.Errorf("images: want %v, got %v", names, slices.Sorted(maps.Keys(key)))
	}
	dir, err := l.kept("state", []any{key, importScript}, func(out, tmp string) error {
		tree := filepath.Join(tmp, "tree")
		if err := os.Mkdir(tree, 0o711); err != nil {
			return err
		}
		export := l.inst.Command(ctx, append(append([]string{"image", "export"}, names...), "-")...)
		imp := exec.CommandContext(ctx, "/bin/sh", "-c", importScript, l.inst.Bin)
		imp.Dir = tree
		imp.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		runtime.LockOSThread() // the parent whose death ends it is this thread
		defer runtime.UnlockOSThread()
		pipe, err := export.StdoutPipe()
		if err != nil {
			return err
		}
		imp.Stdin = pipe
		if err := run(export, imp); err != nil {
			return err
		}
		for _, name := range []string{"buildkit", "bases", "logs", "log", "daemon.log", "reserve"} {
			if err := os.RemoveAll(filepath.Join(tree, name)); err != nil {
				return err
			}
		}
		return disk(ctx, filepath.Join(out, "disk"), "berth-state", tree, 8<<30)
	})
	d.State = filepath.Join(dir, "disk")
	return err
}

// importScript has a Berth without a root of its own, for its containerd namespace is to be the machine's, import an archive
// into the working directory. In namespaces of its own it neither meets one that the host has, nor leaves anything there.
const importScript = `set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/berth
mount --bind . /var/lib/berth
if [ -d /etc/berth ]; then mount -t tmpfs tmpfs /etc/berth; fi
unset BERTH_ROOT
"$0" image import -
"$0" daemon stop
`

func (l *Lab) local(ctx context.Context, d *Disks) error {
	tmp, err := os.MkdirTemp(l.dir, "local-")
	if err != nil {
		return err
	}
	d.Local = filepath.Join(tmp, "disk")
	tree := filepath.Join(tmp, "tree")
	defer os.RemoveAll(tree)
	install := exec.CommandContext(ctx, "make", "-s", "-C", l.top, "install", "DESTDIR="+tree)
	// A make that runs this test has variables of its own for the makes it starts.
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "MAKE") && !strings.HasPrefix(e, "MFLAGS=") && !strings.HasPrefix(e, "DESTDIR=") && !strings.HasPrefix(e, "PREFIX=") {
			install.Env = append(install.Env, e)
		}
	}
	if err := run(install); err != nil {
		return err
	}
	in := filepath.Join(tree, "usr/local/lib/vmtest")
	for _, args := range [][]string{
		{"build", "-trimpath", "-o", filepath.Join(in, "agent"), "./test/vmtest/agent"},
		{"test", "-c", "-o", filepath.Join(in, "ring2"), "./test"},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = l.top
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // the machine's libc may be older
		if err := run(cmd); err != nil {
			return err
		}
	}
	return disk(ctx, d.Local, "berth-local", filepath.Join(tree, "usr/local"), 1<<30)
}

// Close removes what is not kept.
func (d Disks) Close() error {
	if d.Local == "" {
		return nil
	}
	return os.RemoveAll(filepath.Dir(d.Local))
}

// disk makes an ext4 of a directory, in a sparse file of the given size.
func disk(ctx context.Context, file, label, tree string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	// Who changes it throws the changes away, so there is no journal.
	return run(exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-m", "0",
		"-L", label, "-d", tree, file))
}

// put makes a file by f, whatever was there.
func put(path string, f func(string) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f(path)
}

func berth(ctx context.Context, i *berthtest.Instance, args ...string) error {
	r, err := i.Do(ctx, args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("code %d: %s", r.Code, tail([]byte(r.Stderr), 4000))
	}
	if err != nil {
		return fmt.Errorf("berth %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// run runs commands at once; what a failed one printed is in the error.
func run(cmds ...*exec.Cmd) error {
	said := make([]bytes.Buffer, len(cmds))
	var errs []error
	for i, c := range cmds {
		if c.Stdout == nil && i == len(cmds)-1 {
			c.Stdout = &said[i]
		}
		c.Stderr = &said[i]
		if err := c.Start(); err != nil {
			errs = append(errs, err)
			break
		}
	}
	// The last reads what those before print: it is waited for first.
	for i, c := range slices.Backward(cmds) {
		if c.Process == nil {
			continue
		}
		if err := c.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, tail(said[i].Bytes(), 4000)))
		}
	}
	return errors.Join(errs...)
}

func tail(b []byte, n int) string { return string(b[max(0, len(b)-n):]) }
