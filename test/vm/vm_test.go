// Package vm is the third ring: a Debian machine in QEMU, in which Berth is installed, with the kernels and init systems
// that the host of the tests is not. The second ring's own tests run in it, and what needs users and a service of systemd.
package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/hostcheck"
	"berth/session/api"
	"berth/test/berthtest"
	"berth/test/vmtest"
	"berth/test/vmtest/wire"
)

// images are those of the machine; small are those of the openbox profile.
var (
	small  = []string{"xvfb", "x11vnc", "bus", "pipewire", "openbox"}
	images = append(slices.Clone(small), "xfce")
)

// disks are made once for all machines.
var disks struct {
	sync.Once
	inst *berthtest.Instance
	lab  *vmtest.Lab
	vmtest.Disks
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	err := disks.Close()
	if disks.inst != nil {
		err = errors.Join(err, disks.inst.StopDaemon())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// boot starts a machine; cmdline is for its kernel.
func boot(t *testing.T, processors int, cmdline ...string) *vmtest.Machine {
	t.Helper()
	if testing.Short() {
		t.Skip("machines take minutes")
	}
	if os.Getuid() != 0 {
		t.Skip("making a machine's disks needs root")
	}
	disks.Do(func() {
		if disks.inst, disks.err = berthtest.New(); disks.err != nil {
			return
		}
		if disks.lab, disks.err = vmtest.New(disks.inst); disks.err != nil {
			return
		}
		disks.Disks, disks.err = disks.lab.Prepare(context.Background(), images, t.Logf)
	})
	if errors.Is(disks.err, vmtest.ErrCannot) {
		t.Skip(disks.err)
	}
	if disks.err != nil {
		t.Fatal(disks.err)
	}
	m := disks.lab.Boot(t, disks.Disks, processors, cmdline...)
	// What the administrator does after `make install`.
	m.Run(t, `systemd-sysusers && systemctl daemon-reload
		mkdir -p /etc/berth && printf '[session]\npatience = "3m"\n' >/etc/berth/config.toml`)
	return m
}

// ring2 runs tests of the second ring in a machine.
func ring2(t *testing.T, m *vmtest.Machine, pattern string, images []string) {
	t.Helper()
	start := time.Now()
	_, file, _, _ := runtime.Caller(0)
	top := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	name, _, _ := strings.Cut(strings.TrimPrefix(t.Name(), "Test"), "/")
	m.Ring2(t, pattern, strings.Join(images, " "), filepath.Join(top, "build", "pictures"), "vm-"+strings.ToLower(name)+"-")
	t.Logf("%.0f s", time.Since(start).Seconds())
}

// doctor returns what berth doctor finds, by check.
func doctor(t *testing.T, m *vmtest.Machine) map[string]hostcheck.Finding {
	t.Helper()
	r, err := m.Do(wire.Request{Argv: []string{vmtest.Berth, "doctor", "--json"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []hostcheck.Finding
	decode(t, r.Stdout, &all)
	found := map[string]hostcheck.Finding{}
	bad := false
	for _, f := range all {
		found[f.Check] = f
		bad = bad || f.Status == hostcheck.Error
		t.Logf("doctor: %s %s: %s %s", f.Status, f.Check, f.Detail, f.Hint)
	}
	if bad != (r.Code == 1) {
		t.Errorf("doctor ends with code %d", r.Code)
	}
	return found
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
}

func wantText(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("message lacks %q:\n%s", w, got)
		}
	}
}

// TestUnified is Debian 12 as it is installed: cgroup version 2 and nothing else.
func TestUnified(t *testing.T) {
	m := boot(t, 2)
	t.Run("doctor", func(t *testing.T) {
		found := doctor(t, m)
		wantText(t, found["cgroups"].Detail, "v2", "cpu", "memory", "pids")
		wantText(t, found["snapshotter"].Detail, "overlayfs on ext4")
		wantText(t, found["builds"].Detail, "mmdebstrap") // which the machine lacks
		for check, f := range found {
			if f.Status != hostcheck.OK && check != "builds" && check != "daemon" {
				t.Errorf("%s: %s: %s", f.Status, check, f.Detail)
			}
		}
	})
	t.Run("ring2", func(t *testing.T) {
		ring2(t, m, "^TestSession$|^TestLimits$", images)
	})
	t.Run("service", func(t *testing.T) { service(t, m) })
}

// service has users of the installed systemd service.
func service(t *testing.T, m *vmtest.Machine) {
	m.Run(t, "useradd -m -G berth anna; useradd -m -G berth bert; useradd -m eve")
	as := func(user, args string) string { return "runuser -u " + user + " -- berth " + args }

	wantText(t, m.Fail(t, as("anna", "up openbox")), "daemon", "not running")
	m.Run(t, "systemctl start berth")
	uid := strings.TrimSpace(m.Run(t, "id -u anna"))
	// The first session of a daemon makes directories for all, the first of a user one for homes.
	m.NothingLeft(t, "files: /run/berth/containerd/state/io.containerd.runtime.v2.task/berth", "files: /run/berth/s",
		"files: /var/lib/berth/volumes", "files: /var/lib/berth/volumes/"+uid)
	if got := strings.TrimSpace(m.Run(t, "stat -c '%U %G %a' /run/berth/berth.sock")); got != "root berth 660" {
		t.Errorf("the socket is %s; want root berth 660", got)
	}

	var anna, root api.Session
	decode(t, m.Run(t, as("anna", "up openbox --json")), &anna)
	decode(t, m.Run(t, `berth up openbox --name roots --set 'home.kind="ephemeral"' --json`), &root)
	for _, c := range anna.Components {
		if c.PID != 0 {
			if got := strings.TrimSpace(m.Run(t, fmt.Sprintf("stat -c %%u /proc/%d", c.PID))); got != uid {
				t.Errorf("%s of anna's session runs as %s; want %s", c.Name, got, uid)
			}
		}
	}
	names := func(prefix string) (all []string) {
		var s []api.Session
		decode(t, m.Run(t, prefix+" ls --json"), &s)
		for _, s := range s {
			all = append(all, s.Name)
		}
		slices.Sort(all)
		return all
	}
	for user, want := range map[string][]string{"anna": {anna.Name}, "bert": nil, "root": {anna.Name, "roots"}} {
		if got := names("runuser -u " + user + " -- berth"); !slices.Equal(got, want) {
			t.Errorf("%s sees %v; want %v", user, got, want)
		}
	}
	for _, verb := range []string{"show", "stop", "logs"} {
		wantText(t, m.Fail(t, as("bert", verb+" "+anna.Name)), "not found")
		wantText(t, m.Fail(t, as("anna", verb+" roots")), "not found")
	}
	wantText(t, m.Fail(t, as("eve", "up openbox")), "not allowed to use the daemon", "usermod -aG berth eve")
	wantText(t, m.Fail(t, as("anna", "image rm openbox")), "root")

	if f := doctor(t, m)["daemon"]; f.Status != hostcheck.OK || !strings.Contains(f.Detail, "cgroups v2") {
		t.Errorf("daemon: %+v", f)
	}
	// systemd starts a daemon that died, and the sessions know nothing of it.
	pid := func() string { return strings.TrimSpace(m.Run(t, "systemctl show -P MainPID berth")) }
	before := pid()
	m.Run(t, "kill -9 "+before)
	berthtest.WaitUntil(t, "a new daemon", func() bool { p := pid(); return p != "0" && p != before })
	m.Run(t, "systemctl start berth") // returns when it serves
	var after api.Session
	decode(t, m.Run(t, as("anna", "show "+anna.Name+" --json")), &after)
	if after.State != api.StateRunning {
		t.Errorf("state after the daemon's death = %q (%s); want running", after.State, after.Error)
	}
	for i, c := range after.Components {
		if c.PID != anna.Components[i].PID {
			t.Errorf("%s: pid %d before the daemon's death, %d after", c.Name, anna.Components[i].PID, c.PID)
		}
	}
	// Sessions outlive the service, its containerd does not.
	m.Run(t, "systemctl stop berth")
	m.Run(t, fmt.Sprintf("test -d /proc/%d", anna.Components[0].PID))
	if out := m.Run(t, "ps -C containerd,buildkitd,berth -o pid=,args= || true"); out != "" {
		t.Errorf("after systemctl stop there still are:\n%s", out)
	}
	m.Run(t, "systemctl start berth")
	m.Run(t, as("anna", "stop "+anna.Name))
	m.Run(t, "berth stop roots")
	m.Run(t, as("anna", "rm --home openbox"))
	if out := m.Run(t, "journalctl -q -o cat -p warning -u berth"); out != "" {
		t.Logf("warnings of the service:\n%s", out)
	}
}

// TestLegacy is cgroup version 1 alone, as systemd sets it up when it is told to.
func TestLegacy(t *testing.T) {
	m := boot(t, 1, "systemd.unified_cgroup_hierarchy=0", "systemd.legacy_systemd_cgroup_controller=1")
	wantText(t, doctor(t, m)["cgroups"].Detail, "v1 with", "cpu", "devices", "freezer", "memory", "pids")
	ring2(t, m, "^TestLimits$", small)
	// Every container needs the freezer.
	m.Run(t, "umount /sys/fs/cgroup/freezer")
	m.NothingLeft(t)
	wantText(t, m.Fail(t, "berth up openbox"), "v1: no freezer controller", "mount -t cgroup -o freezer")
}

// TestNoOverlay is a kernel that lacks what the defaults need: overlayfs, and the memory controller.
func TestNoOverlay(t *testing.T) {
	m := boot(t, 2, "module_blacklist=overlay", "cgroup_disable=memory")
	t.Run("message", func(t *testing.T) {
		m.NothingLeft(t, "files: /run/berth", "files: /run/berth/start.lock") // a lock's file stays
		wantText(t, m.Fail(t, "berth up openbox"), "overlayfs does not work", `snapshotter = "native"`, "/etc/berth/config.toml")
		found := doctor(t, m)
		if f := found["snapshotter"]; f.Status != hostcheck.Error {
			t.Errorf("without overlayfs: %+v", f)
		}
		if f := found["cgroups"]; f.Status != hostcheck.Warning || !strings.Contains(f.Detail, "limits.memory") {
			t.Errorf("without memory controller: %+v", f)
		}
	})
	// What the message says is done. No desktop is started: native copies every layer of every image, in here for many minutes.
	t.Run("native", func(t *testing.T) {
		m.Run(t, `printf '[engine]\nsnapshotter = "native"\n' >>/etc/berth/config.toml; systemctl start berth`)
		wantText(t, doctor(t, m)["daemon"].Detail, "snapshotter native")
		wantText(t, m.Run(t, "berth image ls"), "localhost/berth/openbox")
		up := func() {
			wantText(t, m.Fail(t, `berth up openbox --set limits.memory=1GiB --set 'home.kind="ephemeral"'`), `no controller "memory"`, "cgroup_enable=memory")
		}
		up() // makes the directories that all sessions use
		m.NothingLeft(t)
		up()
	})
}
