package firewall

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run with -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

var subnet = Subnet{Name: "berth-1a2b3c", Net: "10.200.0.0/16"}

func TestTexts(t *testing.T) {
	golden(t, "masquerade.nft", subnet.table())
	golden(t, "masquerade.iptables", strings.Join(subnet.rule(), " ")+"\n")
	var pass strings.Builder
	for _, r := range subnet.pass() {
		fmt.Fprintln(&pass, strings.Join(r, " "))
	}
	golden(t, "accept.iptables", pass.String())
}

func TestDropsForwarded(t *testing.T) {
	for _, c := range []struct {
		name, rules string
		want        bool
	}{
		{"no_table", "", false},
		{"accept", "-P INPUT DROP\n-P FORWARD ACCEPT\n-A FORWARD -s 10.0.0.0/8 -j DROP", false},
		{"docker", "-P INPUT ACCEPT\n-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER", true},
		{"last_rule", "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := dropsForwarded(strings.Split(c.rules, "\n")); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// isolated runs f in a thread with a network namespace of its own, which the programs it starts are in too; both end with f.
func isolated(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range []string{"nft", "iptables", "ip"} {
		if find(p) == p {
			t.Skipf("no %s here", p)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked, so that the thread is not used again
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("network namespace: %v", err)
			return
		}
		f()
	}()
	<-done
}

// rules counts the rules of the host that name the subnet or the instance.
func rules() int {
	n := 0
	for _, c := range []string{"nft list ruleset", "iptables -w -t nat -S", "iptables -w -S"} {
		f := strings.Fields(c)
		out, _ := exec.Command(find(f[0]), f[1:]...).Output()
		n += strings.Count(string(out), subnet.Net)
	}
	return n
}

func TestOpenOutlivesAReload(t *testing.T) {
	isolated(t, func() {
		ctx := t.Context()
		if err := subnet.Open(ctx); err != nil {
			t.Error(err)
			return
		}
		first := rules()
		if err := subnet.Open(ctx); err != nil || rules() != first || first == 0 {
			t.Errorf("after a second Open: %d lines, %v; want %d", rules(), err, first)
		}
		// What systemctl reload nftables, or iptables-restore, does.
		sh(t, "nft flush ruleset")
		sh(t, "iptables -w -t nat -F")
		if n := rules(); n != 0 {
			t.Errorf("after a flush: %d lines", n)
		}
		if err := subnet.Open(ctx); err != nil || rules() != first {
			t.Errorf("Open after a flush: %d lines, %v; want %d", rules(), err, first)
		}
		if err := subnet.Close(ctx); err != nil || rules() != 0 {
			t.Errorf("after Close: %d lines, %v", rules(), err)
		}
	})
}

func sh(t *testing.T, line string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", line)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", line, err, out)
	}
}

// neighbour makes a network namespace that is joined to the current one by a cable, and returns a process in it.
func neighbour(t *testing.T, name, here, there, route string) (pid int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read x") // until its input ends
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Error(err)
		return 0
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	pid = cmd.Process.Pid
	sh(t, fmt.Sprintf("ip link add %s type veth peer name eth0 netns %d; ip addr add %s dev %[1]s; ip link set %[1]s up", name, pid, here))
	sh(t, fmt.Sprintf("nsenter -t %d -n sh -ec 'ip link set lo up; ip addr add %s dev eth0; ip link set eth0 up; %s'", pid, there, route))
	return pid
}

// within runs f in the network namespace of a process.
func within(pid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(ns, unix.CLONE_NEWNET), unix.Close(ns))
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// A pod reaches a server beyond a host whose firewall is Docker's or ufw's.
func TestForwardingIsDropped(t *testing.T) {
	for _, c := range []struct {
		name, firewall string
		chain          string // where the exceptions stand
	}{
		{"policy", "iptables -w -P FORWARD DROP", "FORWARD"},
		{"docker", "iptables -w -P FORWARD DROP; iptables -w -N DOCKER-USER; iptables -w -A DOCKER-USER -j RETURN; iptables -w -A FORWARD -j DOCKER-USER", "DOCKER-USER"},
		{"reject", "iptables -w -A FORWARD -j REJECT", "FORWARD"},
	} {
		t.Run(c.name, func(t *testing.T) {
			isolated(t, func() {
				server := neighbour(t, "out", "192.0.2.1/24", "192.0.2.2/24", "true")
				pod := neighbour(t, "pod", "10.200.0.1/16", "10.200.0.2/16", "ip route add default via 10.200.0.1")
				if t.Failed() {
					return
				}
				sh(t, "echo 1 > /proc/sys/net/ipv4/ip_forward")
				sh(t, c.firewall)
				var l net.Listener
				if err := within(server, func() (err error) { l, err = net.Listen("tcp4", "192.0.2.2:80"); return err }); err != nil {
					t.Error(err)
					return
				}
				defer l.Close()
				go func() {
					for {
						conn, err := l.Accept()
						if err != nil {
							return
						}
						fmt.Fprint(conn, conn.RemoteAddr().(*net.TCPAddr).IP)
						conn.Close()
					}
				}()
				reach := func(patience time.Duration) (from string, err error) {
					err = within(pod, func() error {
						conn, err := net.DialTimeout("tcp4", "192.0.2.2:80", patience)
						if err != nil {
							return err
						}
						defer conn.Close()
						text, err := io.ReadAll(conn)
						from = string(text)
						return err
					})
					return from, err
				}
				before, _ := exec.Command(find("iptables"), "-w", "-S").Output()
				if !Forwarding(t.Context()).IPTables {
					t.Error("Forwarding does not see that iptables drops")
				}
				if _, err := reach(300 * time.Millisecond); err == nil {
					t.Error("the firewall of this test does not work")
				}
				for range 2 {
					if err := subnet.Open(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if from, err := reach(time.Minute); err != nil || from != "192.0.2.1" {
					t.Errorf("got %q, %v; want to be seen as 192.0.2.1", from, err)
				}
				open, _ := exec.Command(find("iptables"), "-w", "-S", c.chain).Output()
				if n := strings.Count(string(open), subnet.Name); n != 2 {
					t.Errorf("%d exceptions in %s, want 2:\n%s", n, c.chain, open)
				}
				if err := subnet.Close(t.Context()); err != nil {
					t.Error(err)
				}
				after, _ := exec.Command(find("iptables"), "-w", "-S").Output()
				if diff := cmp.Diff(string(before), string(after)); diff != "" {
					t.Errorf("after Close (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestForwardingOthers(t *testing.T) {
	isolated(t, func() {
		if d := Forwarding(t.Context()); d.IPTables || d.Others != nil {
			t.Errorf("a host without firewall: %+v", d)
		}
		sh(t, "nft 'table inet fw { chain passing { type filter hook forward priority 0; policy drop; }; chain incoming { type filter hook input priority 0; policy drop; }; }'")
		want := Drops{Others: []string{"table inet fw, chain passing"}}
		if diff := cmp.Diff(want, Forwarding(t.Context())); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
