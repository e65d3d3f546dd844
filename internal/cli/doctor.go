package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"berth/session/api/client"
)

// Finding is one thing that doctor looked at.
type Finding struct {
	Check  string `json:"check"`          // "cgroups"
	Status string `json:"status"`         // ok | warning | error
	Detail string `json:"detail"`         // what was found
	Hint   string `json:"hint,omitempty"` // what to do
}

func (c *CLI) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "doctor",
		Short:             "Check whether this host can run sessions",
		Long:              "Check what sessions need of this host and what the daemon reports. Fails if something keeps sessions from working.",
		Example:           "  berth doctor\n  berth doctor --json",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := c.layout()
			if err != nil {
				return usageError{err}
			}
			var findings []Finding
			if c.Doctor != nil {
				if findings, err = c.Doctor(cmd.Context(), l); err != nil {
					return err
				}
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			info, err := cl.Info(cmd.Context())
			switch {
			case errors.Is(err, client.ErrNoDaemon):
				findings = append(findings, Finding{Check: "daemon", Status: "warning", Detail: "is not running", Hint: c.hint(err)})
			case err != nil:
				findings = append(findings, Finding{Check: "daemon", Status: "error", Detail: err.Error(), Hint: c.hint(err)})
			default:
				findings = append(findings, Finding{Check: "daemon", Status: "ok",
					Detail: fmt.Sprintf("version %s, process %d, %s %s, snapshotter %s, cgroups %s", info.Version, info.PID,
						info.Engine.Name, info.Engine.Version, info.Engine.Snapshotter, info.Engine.Cgroup)})
				for _, p := range info.Problems {
					findings = append(findings, Finding{Check: "daemon", Status: "warning", Detail: p})
				}
			}
			bad := 0
			rows := [][]string{}
			for _, f := range findings {
				if f.Status == "error" {
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
