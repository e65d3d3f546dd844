package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/internal/config"
	"berth/internal/hostcheck"
	"berth/internal/paths"
	"berth/session/api/client"
)

// lookAtHost is `berth doctor` without a Doctor: what the daemon's own configuration asks of this host.
func lookAtHost(_ context.Context, l paths.Layout) ([]hostcheck.Finding, error) {
	cfg, err := config.Load(l.Config)
	if err != nil {
		return nil, err
	}
	return hostcheck.Check(hostcheck.Real(), hostcheck.Options{Layout: l, Snapshotter: cfg.Engine.Snapshotter,
		Existing: cfg.Engine.Containerd != ""}), nil
}

func (c *CLI) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this host can run sessions",
		Long: "Check what sessions need of this host and what the daemon reports. Fails if something keeps sessions\n" +
			"from working.",
		Example:           "  berth doctor\n  berth doctor --json",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := c.layout()
			if err != nil {
				return usageError{err}
			}
			findings, err := c.Doctor(cmd.Context(), l)
			if err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			info, err := cl.Info(cmd.Context())
			switch {
			case errors.Is(err, client.ErrNoDaemon):
				findings = append(findings, hostcheck.Finding{Check: "daemon", Status: hostcheck.Warning, Detail: "is not running", Hint: c.hint(err)})
			case err != nil:
				findings = append(findings, hostcheck.Finding{Check: "daemon", Status: hostcheck.Error, Detail: err.Error(), Hint: c.hint(err)})
			default:
				findings = append(findings, hostcheck.Finding{Check: "daemon", Status: hostcheck.OK,
					Detail: fmt.Sprintf("version %s, process %d, %s %s, snapshotter %s, cgroups %s", info.Version, info.PID,
						info.Engine.Name, info.Engine.Version, info.Engine.Snapshotter, info.Engine.Cgroup)})
				gateway := info.Gateway
				if info.Fingerprint != "" {
					gateway += ", certificate SHA-256 " + info.Fingerprint
				}
				findings = append(findings, hostcheck.Finding{Check: "gateway", Status: hostcheck.OK, Detail: gateway})
				for _, p := range info.Problems {
					// What was found here too is already said, and as it is now.
					check, _, _ := strings.Cut(p, ": ")
					if !slices.ContainsFunc(findings, func(f hostcheck.Finding) bool { return f.Check == check && f.Status != hostcheck.OK }) {
						findings = append(findings, hostcheck.Finding{Check: "daemon", Status: hostcheck.Warning, Detail: p})
					}
				}
			}
			bad := 0
			rows := [][]string{}
			for _, f := range findings {
				if f.Status == hostcheck.Error {
					bad++
				}
				rows = append(rows, []string{f.Status, f.Check, f.Detail})
				if f.Hint != "" {
					rows = append(rows, []string{"", "", "-> " + f.Hint})
				}
			}
			if asJSON {
				err = c.printJSON(findings)
			} else {
				err = writeTable(c.Stdout, rows)
			}
			if err == nil && bad > 0 {
				return exitError(1)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	return cmd
}
