package unixsock

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestDialWaits(t *testing.T) {
	for _, name := range []string{"s", "a/s", "a/b/s"} {
		dir := t.TempDir()
		got := make(chan error, 1)
		go func() {
			c, err := Dial(ctx(t), dir, name)
			if err == nil {
				c.Close()
			}
			got <- err
		}()
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		listen(t, filepath.Join(dir, name))
		if err := <-got; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDialSaysWhatItSaw(t *testing.T) {
	dir := t.TempDir()
	c, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := Dial(c, dir, "x")
	if !errors.Is(err, os.ErrNotExist) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("missing socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	c, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err = Dial(c, dir, "dead"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dead socket: %v", err)
	}
}

func TestDialFollowsNoLinks(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	listen(t, filepath.Join(other, "s"))
	os.Symlink(filepath.Join(other, "s"), filepath.Join(dir, "direct"))
	os.Symlink(other, filepath.Join(dir, "parent"))
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	for _, name := range []string{"direct", "parent/s", "../" + filepath.Base(other) + "/s", "file"} {
		c, err := Dial(ctx(t), dir, name)
		if !errors.Is(err, ErrNotSocket) {
			t.Errorf("%s: got %v, %v; want ErrNotSocket", name, c, err)
		}
	}
}

func TestLongPath(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("x", 100)
	os.Mkdir(filepath.Join(dir, long), 0o755)
	listen(t, filepath.Join(dir, "s"))
	if err := os.Rename(filepath.Join(dir, "s"), filepath.Join(dir, long, "s")); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(ctx(t), dir, long+"/s")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
