// Package firewall lets a subnet behind this host reach the network, whatever firewall the host has: it hides the subnet
// behind the host's addresses, and where the host drops what it would forward, as it does with Docker or ufw, it has the
// subnet let through.
//
// All it makes bears a name of the caller's, and all is gone after Close. Open may be called again at any time and puts
// back what is missing: whoever reloads the host's firewall takes what is not in its own files.
package firewall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/orchestrator"
)

// Subnet is an IPv4 network behind this host. Its methods must not run at the same time.
type Subnet struct {
	Name string // of the table in nftables, the comment of each rule in iptables: a-z, 0-9 and dashes
	Net  string // "10.200.0.0/16"
}

// Open lets the subnet out.
func (s Subnet) Open(ctx context.Context) error {
	if err := s.masquerade(ctx); err != nil {
		return err
	}
	return s.accept(ctx)
}

// Close takes away what Open of this or an earlier process has made.
func (s Subnet) Close(ctx context.Context) error {
	return errors.Join(s.unmasquerade(ctx), s.unaccept(ctx))
}

// table is what is fed to nft(8): a table of our own, which adding again replaces.
func (s Subnet) table() string {
	return fmt.Sprintf(`table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %[2]s ip daddr != %[2]s masquerade
	}
}
`, s.Name, s.Net)
}

// rule is the same for iptables(8), behind the command.
func (s Subnet) rule() []string {
	return []string{"POSTROUTING", "-s", s.Net, "!", "-d", s.Net, "-m", "comment", "--comment", s.Name, "-j", "MASQUERADE"}
}

func (s Subnet) masquerade(ctx context.Context) error {
	nftErr := nft(ctx, s.table())
	if nftErr == nil || iptables(ctx, "nat", "-C", s.rule()...) == nil {
		return nil
	}
	if err := iptables(ctx, "nat", "-A", s.rule()...); err != nil {
		return fmt.Errorf("masquerade %q: %w: %w; %w; install nftables, or choose network = \"none\" or \"host\"",
			s.Net, orchestrator.ErrUnavailable, nftErr, err)
	}
	return nil
}

func (s Subnet) unmasquerade(ctx context.Context) error {
	// Declared first, so that deleting it succeeds in any case.
	if nft(ctx, fmt.Sprintf("table ip %[1]s\ndelete table ip %[1]s\n", s.Name)) == nil {
		return nil
	}
	if iptables(ctx, "nat", "-C", s.rule()...) != nil {
		return nil
	}
	if err := iptables(ctx, "nat", "-D", s.rule()...); err != nil {
		return fmt.Errorf("masquerade %q: %w", s.Net, err)
	}
	return nil
}

// A packet must be accepted by the chains of every table: an accept in a table of our own does not outweigh the drop of
// another, so the rules have to stand in iptables' own chain. Docker's daemon keeps one for the rules of others, which it
// never flushes and always asks first (https://docs.docker.com/engine/network/packet-filtering-firewalls/).
const (
	forwardChain = "FORWARD"
	dockerChain  = "DOCKER-USER"
)

// pass is the rules that let the subnet through: what it sends, and what comes back.
func (s Subnet) pass() [][]string {
	comment := []string{"-m", "comment", "--comment", s.Name, "-j", "ACCEPT"}
	return [][]string{
		append([]string{"-s", s.Net}, comment...),
		append([]string{"-d", s.Net, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"}, comment...),
	}
}

// accept puts the rules into iptables if it drops what is forwarded. Where iptables cannot be used it drops nothing.
func (s Subnet) accept(ctx context.Context) error {
	rules, err := filterRules(ctx)
	if err != nil || !dropsForwarded(rules) {
		return ctx.Err()
	}
	chain := forwardChain
	if slices.Contains(rules, "-A "+forwardChain+" -j "+dockerChain) {
		chain = dockerChain
	}
	for _, rule := range s.pass() {
		rule = append([]string{chain}, rule...)
		if iptables(ctx, "filter", "-C", rule...) == nil {
			continue
		}
		if err := iptables(ctx, "filter", "-I", rule...); err != nil {
			return fmt.Errorf("forwarding of %q: %w: iptables drops it, and no exception can be made: %w", s.Net, orchestrator.ErrUnavailable, err)
		}
	}
	return nil
}

func (s Subnet) unaccept(ctx context.Context) error {
	rules, err := filterRules(ctx)
	if err != nil {
		return ctx.Err()
	}
	var errs []error
	for _, chain := range []string{dockerChain, forwardChain} {
		ours := func(r string) bool {
			return strings.HasPrefix(r, "-A "+chain+" ") && slices.Contains(strings.Fields(strings.ReplaceAll(r, `"`, "")), s.Name)
		}
		if !slices.ContainsFunc(rules, ours) {
			continue
		}
		for _, rule := range s.pass() {
			rule = append([]string{chain}, rule...)
			if iptables(ctx, "filter", "-C", rule...) != nil {
				continue
			}
			if err := iptables(ctx, "filter", "-D", rule...); err != nil {
				errs = append(errs, fmt.Errorf("forwarding of %q: %w", s.Net, err))
			}
		}
	}
	return errors.Join(errs...)
}

// filterRules is iptables' table filter, a line per chain and rule.
func filterRules(ctx context.Context) ([]string, error) {
	out, err := output(ctx, "", "iptables", "-w", lockPatience, "-t", "filter", "-S")
	return strings.Split(out, "\n"), err
}

// dropsForwarded tells whether a packet that no rule knows is not forwarded.
func dropsForwarded(rules []string) bool {
	for _, r := range rules {
		if r == "-P "+forwardChain+" DROP" || r == "-A "+forwardChain+" -j DROP" || strings.HasPrefix(r, "-A "+forwardChain+" -j REJECT") {
			return true
		}
	}
	return false
}

// Drops is who drops what this host would forward, by default.
type Drops struct {
	IPTables bool     // Open makes an exception for its subnet
	Others   []string // chains of nftables in which only their owner can: "table inet filter, chain forward"
}

// Forwarding looks for who drops what is forwarded.
func Forwarding(ctx context.Context) Drops {
	var d Drops
	if rules, err := filterRules(ctx); err == nil {
		d.IPTables = dropsForwarded(rules)
	}
	text, err := output(ctx, "", "nft", "-j", "list", "chains")
	if err != nil {
		return d
	}
	var list struct {
		NFTables []struct {
			Chain *struct{ Family, Table, Name, Hook, Policy string }
		}
	}
	if json.Unmarshal([]byte(text), &list) != nil {
		return d
	}
	for _, x := range list.NFTables {
		c := x.Chain
		if c == nil || c.Hook != "forward" || c.Policy != "drop" || c.Family != "ip" && c.Family != "inet" {
			continue
		}
		if d.IPTables && c.Family == "ip" && c.Table == "filter" && c.Name == forwardChain {
			continue // iptables' own, by the program iptables-nft
		}
		d.Others = append(d.Others, fmt.Sprintf("table %s %s, chain %s", c.Family, c.Table, c.Name))
	}
	return d
}

// toolTimeout ends a program that hangs; lockPatience, in seconds, is how long iptables waits for others that change rules.
const (
	toolTimeout  = 30 * time.Second
	lockPatience = "20"
)

func nft(ctx context.Context, script string) error {
	_, err := output(ctx, script, "nft", "-f", "-")
	return err
}

func iptables(ctx context.Context, table, verb string, rule ...string) error {
	_, err := output(ctx, "", "iptables", append([]string{"-w", lockPatience, "-t", table, verb}, rule...)...)
	return err
}

func output(ctx context.Context, input, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, find(program), args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.WaitDelay = time.Second
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", fmt.Errorf("program %q: %w: %s", program, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// find looks also where root's programs are, which su without - leaves out of PATH.
func find(program string) string {
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return p
		}
	}
	return program
}
