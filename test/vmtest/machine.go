package vmtest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/hoststate"
	"berth/test/berthtest"
	"berth/test/vmtest/wire"
)

// bootPatience is how long a machine may take until its agent is there.
const bootPatience = 5 * time.Minute

// Machine is one that runs.
type Machine struct {
	conn    net.Conn
	in      *json.Decoder
	out     *json.Encoder
	console string
	exited  chan error
}

// Boot starts a machine with so many processors and returns when its agent is there. It ends with the test. cmdline is added
// to the kernel's.
func (l *Lab) Boot(t testing.TB, d Disks, processors int, cmdline ...string) *Machine {
	t.Helper()
	m := &Machine{console: filepath.Join(t.TempDir(), "console"), exited: make(chan error, 1)}
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	m.conn, m.in, m.out = ours, json.NewDecoder(ours), json.NewEncoder(ours)

	accel := cmp.Or(os.Getenv(EnvAccel), "tcg")
	processor := "host"
	if accel == "tcg" {
		// Not "max": page tables of five levels and vector units cost, and bring nothing here.
		accel, processor = "tcg,thread=multi", "Nehalem"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", accel, "-cpu", processor, "-smp", strconv.Itoa(processors), "-m", "3G",
		"-kernel", d.Kernel, "-initrd", d.Initrd,
		"-append", strings.Join(append([]string{"root=LABEL=berth-root", "rw", "console=ttyS0", "loglevel=6", "systemd.show_status=false",
			// A kernel that hangs is to say where and to end.
			"panic=-1", "softlockup_panic=1", "watchdog_thresh=30"}, cmdline...), " "),
		"-serial", "file:" + m.console, "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,fd=3", "-device", "virtserialport,chardev=agent,name=" + wire.Port,
	}
	for _, disk := range []string{d.Root, d.State, d.Local} {
		args = append(args, "-drive", "if=virtio,format=raw,snapshot=on,cache=unsafe,file="+disk)
	}
	cmd := exec.Command(l.qemu, args...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), "TMPDIR="+l.dir) // where the changes go
	said, err := os.Create(filepath.Join(filepath.Dir(m.console), "qemu"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the parent whose death ends it is this thread
		err := cmd.Start()
		started <- err
		if err == nil {
			m.exited <- cmd.Wait()
			ours.Close() // whoever waits for a reply stops
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("QEMU said: %s\nthe console's end:\n%s", end(said.Name(), 2000), end(m.console, 6000))
		}
		cmd.Process.Kill()
		<-m.exited
	})
	start := time.Now()
	if err := m.conn.SetReadDeadline(start.Add(bootPatience)); err != nil {
		t.Fatal(err)
	}
	var hello wire.Reply
	if err := m.in.Decode(&hello); err != nil {
		t.Fatalf("the agent did not come within %.0f s: %v", time.Since(start).Seconds(), err)
	}
	t.Logf("booted in %.1f s: %s", time.Since(start).Seconds(), strings.Join(cmdline, " "))
	return m
}

// Do runs a command in the machine as root. progress, if not nil, gets what it prints as it comes.
func (m *Machine) Do(r wire.Request, progress io.Writer) (berthtest.Result, error) {
	r.Seconds = cmp.Or(r.Seconds, 180)
	if err := m.conn.SetDeadline(time.Now().Add(time.Duration(r.Seconds)*time.Second + 30*time.Second)); err != nil {
		return berthtest.Result{}, err
	}
	if err := m.out.Encode(r); err != nil {
		return berthtest.Result{}, err
	}
	var out, errOut strings.Builder
	for {
		var p wire.Reply
		if err := m.in.Decode(&p); err != nil {
			return berthtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: -1}, fmt.Errorf("the machine does not answer: %w", err)
		}
		out.Write(p.Stdout)
		errOut.Write(p.Stderr)
		if progress != nil {
			progress.Write(p.Stdout)
			progress.Write(p.Stderr)
		}
		if p.Done {
			var err error
			if p.Error != "" {
				err = errors.New(p.Error)
			}
			return berthtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: p.Code}, err
		}
	}
}

// Run runs a shell script in the machine as root, which has to succeed, and returns its standard output.
func (m *Machine) Run(t testing.TB, script string) string {
	t.Helper()
	r, err := m.Do(wire.Request{Argv: []string{"sh", "-ec", script}}, nil)
	if err != nil || r.Code != 0 {
		t.Fatalf("%s\ncode %d, %v\n%s%s", script, r.Code, err, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Fail runs a shell script in the machine as root, which has to fail with exit code 1, and returns its standard error.
func (m *Machine) Fail(t testing.TB, script string) string {
	t.Helper()
	r, err := m.Do(wire.Request{Argv: []string{"sh", "-ec", script}}, nil)
	if err != nil || r.Code != 1 {
		t.Fatalf("%s\ncode %d, %v; want code 1\n%s%s", script, r.Code, err, r.Stdout, r.Stderr)
	}
	return r.Stderr
}

// NothingLeft fails the test, at its end, if Berth then has more on the machine than now, but for things named as
// "kind: name".
func (m *Machine) NothingLeft(t testing.TB, but ...string) {
	t.Helper()
	take := func() hoststate.State {
		var s hoststate.State
		if err := json.Unmarshal([]byte(m.Run(t, Agent+" hoststate")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := take()
	t.Cleanup(func() {
		var left []string
		defer func() {
			if len(left) > 0 {
				t.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
			}
		}()
		berthtest.WaitUntil(t, "the machine as it was before", func() bool {
			left = slices.DeleteFunc(hoststate.Diff(before, take()), func(s string) bool { return slices.Contains(but, s) })
			return len(left) == 0
		})
	})
}

// Ring2 runs tests of the second ring that match pattern in the machine, with the images they need there, and leaves their
// pictures in directory pictures under names that begin with prefix.
func (m *Machine) Ring2(t testing.TB, pattern, images, pictures, prefix string) {
	t.Helper()
	const inside = "/tmp/pictures"
	passed := 0
	r, err := m.Do(wire.Request{
		Argv: []string{Ring2, "-test.v", "-test.run", pattern, "-test.timeout", "15m"}, Seconds: 900,
		Env: []string{berthtest.EnvInstalled + "=" + Berth, "BERTH_TEST_IMAGES=" + images, "BERTH_TEST_PICTURES=" + inside},
	}, lines(func(line string) {
		if strings.HasPrefix(line, "--- PASS") {
			passed++
		}
		if strings.Contains(line, "--- ") {
			t.Log(line)
		}
	}))
	switch {
	case err != nil || r.Code != 0:
		t.Errorf("the second ring in the machine: code %d, %v\n%s%s", r.Code, err, r.Stdout, r.Stderr)
	case passed == 0:
		t.Errorf("no test of the second ring matches %s:\n%s", pattern, r.Stdout)
	}
	for name := range strings.Lines(m.Run(t, "ls "+inside)) {
		name = strings.TrimSpace(name)
		r, err := m.Do(wire.Request{Argv: []string{"cat", inside + "/" + name}}, nil)
		if err == nil {
			err = os.MkdirAll(pictures, 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(pictures, prefix+name), []byte(r.Stdout), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "agent")
	defer f.Close() // FileConn has its own
	theirs = os.NewFile(uintptr(fds[1]), "agent")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
	}
	return ours, theirs, err
}

// lines returns a writer that calls f with every whole line.
func lines(f func(string)) io.Writer {
	var rest []byte
	return writer(func(b []byte) {
		rest = append(rest, b...)
		for {
			line, after, ok := bytes.Cut(rest, []byte("\n"))
			if !ok {
				return
			}
			f(string(line))
			rest = after
		}
	})
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

// end returns a file's last bytes.
func end(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return tail(b, n)
}
