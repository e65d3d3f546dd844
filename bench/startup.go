package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"

	"berth/display/x11"
	"berth/display/xauth"
)

// startup measures from the command to window manager and panel on the screen: `berth up xfce`, images present and a
// fresh home, against the same programs started by bench/byhand.sh in one root file system. The sides take turns, so
// that a change of the machine's mood meets both. One probe, this program's, judges both.
func startup(ctx context.Context, b *bench) error {
	if _, err := b.do(ctx, "image", "build", "xvfb", "x11vnc", "pipewire", "bus", "xfce", "byhand"); err != nil {
		return err
	}
	root, clean, err := b.byhandRoot(ctx)
	if err != nil {
		return err
	}
	defer clean()
	var hand, berth []time.Duration
	for n := range b.runs + 1 { // the first of each only warms the caches
		h, err := byHand(ctx, root)
		if err != nil {
			return fmt.Errorf("by hand: %w", err)
		}
		u, err := b.up(ctx)
		if err != nil {
			return fmt.Errorf("berth up: %w", err)
		}
		if n > 0 {
			hand, berth = append(hand, h), append(berth, u)
		}
	}
	h, u := median(hand), median(berth)
	fmt.Printf("start of xfce to window manager and panel, median of %d runs\n", b.runs)
	fmt.Printf("  by hand in one root   %5d ms   (%s)\n", h.Milliseconds(), millis(hand))
	fmt.Printf("  berth up xfce         %5d ms   (%s)\n", u.Milliseconds(), millis(berth))
	fmt.Printf("  ratio                 %5.2f      (to hold: 1.15)\n", float64(u)/float64(h))
	return nil
}

// onScreen waits until the display behind the socket tmp/.X11-unix/X0 shows a window manager and a panel. The cookie
// file may appear only later, too.
func onScreen(ctx context.Context, tmp, cookieFile string) error {
	var cookie []byte
	for cookie == nil {
		entries, err := xauth.ReadFile(cookieFile)
		if errors.Is(err, os.ErrNotExist) || (err == nil && len(entries) == 0) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("cookie %q: %w", cookieFile, ctx.Err())
			case <-time.After(2 * time.Millisecond): // both sides pay the same
			}
			continue
		}
		if err != nil {
			return err
		}
		cookie, _ = xauth.Cookie(entries, 0)
	}
	for {
		if _, err := os.Stat(tmp); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	c, err := x11.Dial(ctx, tmp, ".X11-unix/X0", cookie)
	if err != nil {
		return err
	}
	defer c.Close()
	w, err := c.Watch()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Wait(ctx, x11.WM); err != nil {
		return err
	}
	return w.Wait(ctx, x11.Dock)
}

// up times one `berth up xfce` and ends the session.
func (b *bench) up(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	const name = "bench"
	dir := b.inst.Layout.Session(name)
	start := time.Now()
	cmd := b.inst.Command(ctx, "up", "xfce", "--name", name, "--set", `home.kind="ephemeral"`)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err := onScreen(ctx, filepath.Join(dir, "tmp"), filepath.Join(dir, "berth", "Xauthority"))
	took := time.Since(start)
	if werr := cmd.Wait(); werr != nil {
		return 0, errors.Join(err, werr)
	}
	if err != nil {
		return 0, err
	}
	_, err = b.do(ctx, "stop", name)
	return took, err
}

// byHand times one run of byhand.sh in root and ends it. The script prints "ready" when it has cleaned up after the
// previous run, waits for a line, and then starts everything; it ends everything when its input ends.
func byHand(ctx context.Context, root string) (_ time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "bench/byhand.sh", root)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		in.Close()
		err = errors.Join(err, cmd.Wait())
	}()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return 0, err
	}
	start := time.Now()
	fmt.Fprintln(in, "go")
	err = onScreen(ctx, filepath.Join(root, "tmp"), filepath.Join(root, "tmp", "Xauthority"))
	return time.Since(start), err
}

// byhandRoot unpacks the image byhand into a directory of its own.
func (b *bench) byhandRoot(ctx context.Context) (dir string, clean func(), err error) {
	dir, err = os.MkdirTemp("/var/tmp", "byhand-")
	if err != nil {
		return "", nil, err
	}
	clean = func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			clean()
		}
	}()
	client, err := containerd.New(b.inst.Layout.ContainerdSocket(), containerd.WithDefaultNamespace(b.inst.Layout.Instance()))
	if err != nil {
		return "", nil, err
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, b.inst.Layout.Instance())
	img, err := client.GetImage(ctx, "localhost/berth/byhand:latest")
	if err != nil {
		return "", nil, err
	}
	diffIDs, err := img.RootFS(ctx)
	if err != nil {
		return "", nil, err
	}
	sn := client.SnapshotService("overlayfs")
	const key = "bench-byhand"
	mounts, err := sn.View(ctx, key, identity.ChainID(diffIDs).String())
	if err != nil {
		return "", nil, err
	}
	defer sn.Remove(context.WithoutCancel(ctx), key)
	return dir, clean, mount.WithReadonlyTempMount(ctx, mounts, func(src string) error {
		return exec.CommandContext(ctx, "cp", "-a", src+"/.", dir).Run()
	})
}
