package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/internal/atomicfile"
	"berth/internal/firewall"
	"berth/orchestrator"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
)

// network connects pods through CNI plugins (https://www.cni.dev/docs/spec/): a veth pair with the plugin ptp, an address
// from the instance's subnet with host-local. The runtime brings up loopback itself.
//
// The host's firewall is opened for the whole subnet, once; that comes with the first pod and goes with the last. (The
// plugin's own masquerading adds a rule per pod, and leaves it for good when the pod's namespace ends before the plugin is
// asked to remove it, which is what the death of an anchor is.)
//
// Nothing waits for it: it takes longer than a display server needs to start, and most of a desktop never asks for it.
type network struct {
	e       *Engine
	subnet  string        // as configured
	timeout time.Duration // networkTimeout, but in tests
	cni     *libcni.CNIConfig
	conf    sync.Mutex
	list    *libcni.NetworkConfigList // guarded by conf, like all up to mu
	wall    firewall.Subnet
	joins   int // pods being connected

	mu   sync.Mutex
	jobs map[string]*netJob // by pod
}

type netJob struct {
	cancel context.CancelFunc
	done   chan struct{}
}

const podInterface = "eth0"

// networkTimeout ends a plugin that hangs, on a lock of the kernel's or in a file system that does not answer.
const networkTimeout = time.Minute

func newNetwork(e *Engine, subnet string) *network {
	return &network{
		e: e, subnet: subnet, timeout: networkTimeout, jobs: make(map[string]*netJob),
		cni: libcni.NewCNIConfigWithCacheDir([]string{e.layout.Libexec}, filepath.Join(e.layout.State, "cni"), nil),
	}
}

// start connects a pod in the background.
func (n *network) start(pod string, anchor int, mode orchestrator.NetworkMode) {
	if mode != orchestrator.NetworkNAT {
		return
	}
	ctx, cancel := context.WithTimeout(n.e.withNamespace(context.Background()), n.timeout)
	job := &netJob{cancel: cancel, done: make(chan struct{})}
	n.mu.Lock()
	n.jobs[pod] = job
	n.mu.Unlock()
	go func() {
		defer close(job.done)
		defer cancel()
		ip, err := n.connect(ctx, pod, netnsOf(anchor))
		if err == nil {
			err = n.e.setExtension(ctx, pod, extNet, []byte(ip))
		}
		if err == nil || errors.Is(ctx.Err(), context.Canceled) {
			return
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%w after %v: %w", ctx.Err(), n.timeout, err)
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		n.e.log.Warn("pod has no network", "pod", pod, "error", err)
		if err := n.e.setExtension(ctx, pod, extNetErr, []byte(err.Error())); err != nil {
			n.e.log.Warn("cannot record that a pod has no network", "pod", pod, "error", err)
		}
	}()
}

// resume connects the pods that a daemon which was killed left without a network: those that run, want one, and have neither
// an address nor a reason.
func (n *network) resume(ctx context.Context) error {
	ctx = n.e.withNamespace(ctx)
	pods, err := n.e.client.SandboxStore().List(ctx)
	if err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	for _, sb := range pods {
		if sb.Extensions[extNet] != nil || sb.Extensions[extNetErr] != nil {
			continue
		}
		if used, err := n.used(ctx, sb.ID); err != nil || !used {
			continue // what cannot be read is no pod of ours
		}
		t, err := n.e.task(ctx, sb.ID)
		if err != nil || !n.e.runs(sb.ID, t) {
			continue
		}
		// What was begun is taken back first.
		if err := n.disconnect(ctx, sb.ID, netnsOf(int(t.Pid))); err != nil {
			return fmt.Errorf("pod %q: %w", sb.ID, err)
		}
		n.start(sb.ID, int(t.Pid), orchestrator.NetworkNAT)
	}
	return nil
}

func (n *network) connect(ctx context.Context, pod, netns string) (ip string, err error) {
	list, err := n.join(ctx)
	if err != nil {
		return "", err
	}
	defer func() {
		n.conf.Lock()
		n.joins--
		n.conf.Unlock()
	}()
	res, err := n.cni.AddNetworkList(ctx, list, &libcni.RuntimeConf{ContainerID: pod, NetNS: netns, IfName: podInterface})
	if err != nil {
		return "", fmt.Errorf("network plugin: %w", err)
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return "", err
	}
	if len(r.IPs) == 0 {
		return "", errors.New("network plugin: gave no address")
	}
	return r.IPs[0].Address.IP.String(), nil
}

// remove undoes start, in this process or an earlier one.
func (n *network) remove(ctx context.Context, pod string) error {
	n.mu.Lock()
	job := n.jobs[pod]
	n.mu.Unlock()
	if job != nil {
		// A plugin that is killed half-way leaves its address behind, which is given back below, and its interfaces, which go
		// with the namespace. While it runs there is no telling.
		select {
		case <-job.done:
		case <-ctx.Done():
			job.cancel()
			return fmt.Errorf("network: the pod is still being connected: %w", ctx.Err())
		}
	}
	if used, err := n.used(ctx, pod); err != nil || !used {
		return err
	}
	// Without a namespace: the interface pair goes with it, only the address is left to be given back.
	if err := n.disconnect(ctx, pod, ""); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.jobs, pod)
	n.mu.Unlock()
	return n.leave(ctx)
}

// disconnect gives a pod's address back and, unless netns is "", removes its interface there. What is not there is fine.
func (n *network) disconnect(ctx context.Context, pod, netns string) error {
	n.conf.Lock()
	list, err := n.config()
	n.conf.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	if err := n.cni.DelNetworkList(ctx, list, &libcni.RuntimeConf{ContainerID: pod, NetNS: netns, IfName: podInterface}); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

func netnsOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// used tells whether the pod was ever connected, or may have been.
func (n *network) used(ctx context.Context, pod string) (bool, error) {
	sb, err := n.e.client.SandboxStore().Get(ctx, pod)
	if err != nil {
		return false, err
	}
	var rec podRecord
	if x := sb.Extensions[extSpec]; x != nil {
		if err := json.Unmarshal(x.GetValue(), &rec); err != nil {
			return false, err
		}
	}
	return rec.Network == orchestrator.NetworkNAT, nil
}

// join prepares the host for one more pod. The caller counts joins down again when the pod has its address.
func (n *network) join(ctx context.Context) (*libcni.NetworkConfigList, error) {
	n.conf.Lock()
	defer n.conf.Unlock()
	list, err := n.config()
	if err != nil {
		return nil, err
	}
	if err := n.wall.Open(ctx); err != nil {
		return nil, err
	}
	n.joins++
	return list, nil
}

// leave closes the firewall again when no pod has an address any more.
func (n *network) leave(ctx context.Context) error {
	n.conf.Lock()
	defer n.conf.Unlock()
	if n.joins > 0 {
		return nil
	}
	// host-local keeps a file per address in use, named like it.
	entries, err := os.ReadDir(filepath.Join(n.addresses(), n.e.layout.Instance()))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, d := range entries {
		if _, err := netip.ParseAddr(d.Name()); err == nil {
			return nil
		}
	}
	return n.wall.Close(ctx)
}

// addresses is host-local's directory.
func (n *network) addresses() string { return filepath.Join(n.e.layout.State, "cni", "addresses") }

// config returns the plugins' configuration, made at first use. The caller holds conf.
func (n *network) config() (*libcni.NetworkConfigList, error) {
	if n.list != nil {
		return n.list, nil
	}
	subnet, err := n.chooseSubnet()
	if err != nil {
		return nil, err
	}
	n.wall = firewall.Subnet{Name: n.e.layout.Instance(), Net: subnet}
	n.list, err = libcni.ConfListFromBytes([]byte(networkConfig(n.e.layout.Instance(), subnet, n.addresses())))
	return n.list, err
}

// networkConfig is the CNI configuration list of an instance.
func networkConfig(name, subnet, dataDir string) string {
	conf := map[string]any{
		"cniVersion": "1.0.0",
		"name":       name,
		"plugins": []any{map[string]any{
			"type": "ptp",
			"ipam": map[string]any{
				"type":    "host-local",
				"dataDir": dataDir,
				"ranges":  []any{[]any{map[string]any{"subnet": subnet}}},
				"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}},
			},
		}},
	}
	text, err := json.Marshal(conf)
	if err != nil {
		panic(err) // strings and booleans only
	}
	return string(text)
}

// chooseSubnet returns the instance's network. The choice is kept on disk, because pods may hold addresses in it.
func (n *network) chooseSubnet() (string, error) {
	if n.subnet != "" {
		p, err := netip.ParsePrefix(n.subnet)
		if err != nil || !p.Addr().Is4() || p.Bits() > 29 {
			return "", fmt.Errorf("subnet %q: %w: want an IPv4 network such as 10.210.0.0/16", n.subnet, orchestrator.ErrInvalid)
		}
		return p.Masked().String(), nil
	}
	file := n.e.layout.Subnet()
	if data, err := os.ReadFile(file); err == nil {
		if p, err := netip.ParsePrefix(strings.TrimSpace(string(data))); err == nil {
			return p.String(), nil
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return "", fmt.Errorf("routes: %w", err)
	}
	var taken []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, err := netip.ParsePrefix(r.Dst.String()); err == nil && p.Bits() > 0 {
			taken = append(taken, p)
		}
	}
	p, err := freeSubnet(n.e.layout.Instance(), taken)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	return p.String(), atomicfile.Write(file, []byte(p.String()+"\n"), 0o644)
}

// freeSubnet picks a /16 of 10.0.0.0/8 by the instance's name that overlaps none of taken. The lower half, where home and
// company networks usually are, is left alone.
func freeSubnet(instance string, taken []netip.Prefix) (netip.Prefix, error) {
	const first, count, bits = 128, 127, 16
	sum := sha256.Sum256([]byte(instance))
next:
	for i := range count {
		second := byte(first + (int(sum[0])+i)%count)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), bits)
		for _, t := range taken {
			if p.Overlaps(t) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, fmt.Errorf("subnet: %w: the host's routes cover all of 10.128.0.0/9; name one as engine.subnet in the configuration",
		orchestrator.ErrUnavailable)
}
