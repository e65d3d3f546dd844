package containerd

import (
	"fmt"
	"os/exec"
	"strings"

	"berth/orchestrator"
)

// masquerade hides a subnet behind the host's addresses: by a table of its own in nftables where the host has it, else
// by one rule in iptables. It is not safe for concurrent use.
type masquerade struct {
	name   string // of the table, or the rule's comment
	subnet string
}

// table is what is fed to nft(8). Adding it again replaces it.
func (m *masquerade) table() string {
	return fmt.Sprintf(`table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %[2]s ip daddr != %[2]s masquerade
	}
}
`, m.name, m.subnet)
}

// rule is the arguments of iptables(8) behind the command.
func (m *masquerade) rule() []string {
	return []string{"POSTROUTING", "-s", m.subnet, "!", "-d", m.subnet, "-m", "comment", "--comment", m.name, "-j", "MASQUERADE"}
}

// add may be called again, and is, for each pod: whoever reloads the host's firewall takes what is not in its own files.
func (m *masquerade) add() error {
	nftErr := nft(m.table())
	if nftErr != nil {
		if iptables("-C", m.rule()) != nil {
			if err := iptables("-A", m.rule()); err != nil {
				return fmt.Errorf("masquerade %q: %w: %w; %w; install nftables, or choose network = \"none\" or \"host\"",
					m.subnet, orchestrator.ErrUnavailable, nftErr, err)
			}
		}
	}
	return nil
}

// remove removes what add of this or an earlier process made.
func (m *masquerade) remove() error {
	if _, err := exec.LookPath("nft"); err == nil {
		// Declared first, so that deleting it succeeds in any case.
		if nft(fmt.Sprintf("table ip %[1]s\ndelete table ip %[1]s\n", m.name)) == nil {
			return nil
		}
	}
	if iptables("-C", m.rule()) != nil {
		return nil
	}
	if err := iptables("-D", m.rule()); err != nil {
		return fmt.Errorf("masquerade %q: %w", m.subnet, err)
	}
	return nil
}

func nft(script string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	return runTool(cmd)
}

func iptables(verb string, rule []string) error {
	return runTool(exec.Command("iptables", append([]string{"-w", "-t", "nat", verb}, rule...)...))
}

func runTool(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("program %q: %w: %s", cmd.Args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
