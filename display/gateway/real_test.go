package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/des"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"math/bits"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/display/x11"
	"berth/display/xauth"
)

// program finds a program from a Debian package or skips the test.
func program(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed (Debian package %s)", name, pkg)
	}
	return path
}

// start runs a program until the test ends or stop is called. Its output is shown if the test fails.
func start(t testing.TB, cmd *exec.Cmd) (stop func()) {
	t.Helper()
	var out bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	cmd.Stderr = &out
	// What a program starts goes with it, also if the test process is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd.Path, err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed: always an error
		close(done)
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Errorf("stop %s: %v", cmd.Path, err)
			}
			select {
			case <-done:
			case <-time.After(patience):
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				<-done
			}
			if t.Failed() {
				t.Logf("%s said:\n%s", cmd.Path, out.Bytes())
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// until polls a condition whose change nothing announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// realX is an X server with a VNC server on a Unix socket and an xterm, from Debian's packages.
type realX struct {
	t       testing.TB
	kind    string // "xvfb" or "xvnc"
	dir     string
	display string // ":7"
	socket  string // of X
	auth    string // Xauthority
	vnc     string // socket of VNC
	tcp     string // address of VNC over TCP, which Xvnc has here for benchmarks
	stopVNC func()
	env     []string
}

func startX(t testing.TB, kind string, width, height int) *realX {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	x := &realX{t: t, kind: kind, dir: dir, vnc: filepath.Join(dir, "vnc.sock"), auth: filepath.Join(dir, "Xauthority")}
	var cmd *exec.Cmd
	switch kind {
	case "xvfb":
		program(t, "x11vnc", "x11vnc")
		cmd = exec.Command(program(t, "Xvfb", "xvfb"), "-screen", "0", "2560x1600x24")
	case "xvnc":
		tcp := "-1"
		if _, ok := t.(*testing.B); ok { // tests do without: another program may take the port
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			x.tcp = ln.Addr().String()
			ln.Close()
			_, tcp, _ = net.SplitHostPort(x.tcp)
		}
		cmd = exec.Command(program(t, "Xvnc", "tigervnc-standalone-server"), "-geometry", fmt.Sprintf("%dx%d", width, height),
			"-depth", "24", "-SecurityTypes", "None", "-rfbunixpath", x.vnc, "-rfbport="+tcp, "-localhost")
	}
	cookie := xauth.NewCookie()
	authorize := func(displays ...int) {
		t.Helper()
		var entries []xauth.Entry
		for _, d := range displays {
			entries = append(entries, xauth.Wild(d, cookie))
		}
		if err := xauth.WriteFile(x.auth, os.Getuid(), os.Getgid(), entries...); err != nil {
			t.Fatal(err)
		}
	}
	authorize(0)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append(cmd.Args, "-displayfd", "3", "-auth", x.auth, "-nolisten", "tcp", "-noreset")
	cmd.ExtraFiles = []*os.File{w}
	start(t, cmd)
	w.Close()
	// The server writes its number when it is ready for clients.
	number, err := bufio.NewReader(r).ReadString('\n')
	r.Close()
	if err != nil {
		t.Fatalf("%s did not start: %v", kind, err)
	}
	number = strings.TrimSpace(number)
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	authorize(0, n) // the first is what package display looks for, the second what X clients do
	x.display, x.socket = ":"+number, "/tmp/.X11-unix/X"+number
	x.env = append(os.Environ(), "LC_ALL=C.UTF-8", "DISPLAY="+x.display, "XAUTHORITY="+x.auth)
	if err := x.resize(t.Context(), width, height); err != nil {
		t.Fatal(err)
	}
	if kind == "xvfb" {
		x.startVNC()
	}
	return x
}

// startVNC starts x11vnc and waits until it answers.
func (x *realX) startVNC() {
	x.t.Helper()
	os.Remove(x.vnc)
	x.stopVNC = start(x.t, exec.Command("x11vnc", "-display", x.display, "-auth", x.auth, "-unixsock", x.vnc, "-rfbport", "0",
		"-rfbportv6", "-1", "-norc", "-nopw", "-forever", "-shared", "-nobell", "-noipv6", "-no6", "-xrandr", "newfbsize", "-xkb",
		"-repeat", "-cursor", "arrow", "-nodpms", "-ncache", "0", "-q"))
	until(x.t, "x11vnc", func() bool {
		c, err := net.Dial("unix", x.vnc)
		if err != nil {
			return false
		}
		defer c.Close()
		// x11vnc listens before it is ready to answer.
		return c.SetDeadline(time.Now().Add(5*time.Second)) == nil && joinServer(c) == nil
	})
}

// xterm runs a shell in the whole screen, after the commands given, and waits until it is there.
func (x *realX) xterm(commands ...string) {
	x.t.Helper()
	ready := filepath.Join(x.dir, "ready")
	script := strings.Join(append(commands, "touch "+ready, "exec env PS1='desk$ ' /bin/sh"), "; ")
	cmd := exec.Command(program(x.t, "xterm", "xterm"), "-fa", "monospace", "-fs", "14", "-bg", "#14303f", "-fg", "#f4efe4", "-b", "12",
		"-geometry", "200x80+0+0", "-e", "/bin/sh", "-c", script)
	cmd.Env, cmd.Dir = x.env, x.dir
	start(x.t, cmd)
	until(x.t, "xterm", func() bool { _, err := os.Stat(ready); return err == nil })
}

// open connects to the X server.
func (x *realX) open(ctx context.Context) (*x11.Conn, error) { return x11.Open(ctx, x.socket, x.auth) }

// size asks the X server.
func (x *realX) size() (w, h int) {
	x.t.Helper()
	c, err := x.open(context.Background())
	if err != nil {
		x.t.Fatal(err)
	}
	defer c.Close()
	s, err := c.Size(context.Background())
	if err != nil {
		x.t.Fatal(err)
	}
	return s.Width, s.Height
}

func (x *realX) resize(ctx context.Context, w, h int) error {
	c, err := x.open(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Resize(ctx, w, h, 96)
}

// fit is resize to the nearest size there is, as the manager does it for the gateway.
func (x *realX) fit(ctx context.Context, w, h int) (x11.Size, error) {
	c, err := x.open(ctx)
	if err != nil {
		return x11.Size{}, err
	}
	defer c.Close()
	return c.Fit(ctx, w, h, 96)
}

func (x *realX) png(ctx context.Context, maxWidth int) ([]byte, error) {
	c, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	img, err := c.Screenshot(ctx)
	if err != nil {
		return nil, err
	}
	return x11.PNG(x11.Thumbnail(img, maxWidth, maxWidth))
}

func (x *realX) session(name string) Session {
	s := fakeSession(name, x.vnc)
	s.Width, s.Height = x.size()
	return s
}

// passwordFile is what vncpasswd(1) writes: the password encrypted with a well-known key.
func passwordFile(t testing.TB, password string) string {
	t.Helper()
	key := []byte{23, 82, 107, 6, 35, 78, 88, 7}
	for i, b := range key {
		key[i] = bits.Reverse8(b)
	}
	block, err := des.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	var plain, secret [8]byte
	copy(plain[:], password)
	block.Encrypt(secret[:], plain[:])
	path := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(path, secret[:], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A viewer from a package takes a picture with the password, and gets none with a wrong one.
func TestRealViewer(t *testing.T) {
	snapshot := program(t, "vncsnapshot", "vncsnapshot")
	for _, kind := range []string{"xvfb", "xvnc"} {
		t.Run(kind, func(t *testing.T) {
			x := startX(t, kind, 640, 480)
			x.xterm()
			s := &fakeSessions{}
			s.set(x.session("one"))
			host, port, err := net.SplitHostPort(openVNC(t, newGateway(t, s), "one"))
			if err != nil {
				t.Fatal(err)
			}
			number, err := strconv.Atoi(port)
			if err != nil {
				t.Fatal(err)
			}
			addr := fmt.Sprintf("%s:%d", host, number-5900) // vncsnapshot takes display numbers only
			shoot := func(password string) (image.Image, string) {
				file := filepath.Join(t.TempDir(), "shot.jpg")
				out, err := exec.CommandContext(t.Context(), snapshot, "-passwd", passwordFile(t, password), "-encodings", "raw", "-allowblank", "-quality", "95", addr, file).CombinedOutput()
				if err != nil {
					return nil, string(out)
				}
				f, err := os.Open(file)
				if err != nil {
					return nil, string(out)
				}
				defer f.Close()
				img, err := jpeg.Decode(f)
				if err != nil {
					t.Fatal(err)
				}
				return img, string(out)
			}
			// The shell is there when xterm is mapped; its prompt a moment later.
			until(t, "a picture of the xterm", func() bool {
				img, said := shoot("secret-one")
				if img == nil {
					t.Fatalf("no picture with the right password:\n%s", said)
				}
				if img.Bounds().Dx() != 640 || img.Bounds().Dy() != 480 {
					t.Fatalf("picture of %v; want 640x480", img.Bounds())
				}
				return colours(img) > 10
			})
			if img, said := shoot("wrong"); img != nil || !strings.Contains(strings.ToLower(said), "auth") {
				t.Errorf("wrong password: picture %v; want a refusal, got\n%s", img != nil, said)
			}
		})
	}
}

func colours(img image.Image) int {
	seen := map[[3]uint32]bool{}
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y += 2 {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x += 2 {
			r, g, b, _ := img.At(x, y).RGBA()
			seen[[3]uint32{r, g, b}] = true
		}
	}
	return len(seen)
}
