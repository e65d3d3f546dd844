package cli

import (
	"io"

	"github.com/spf13/cobra"
)

func (c *CLI) traceCommand() *cobra.Command {
	var svg string
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "trace NAME",
		Short:             "Show how a session started: what waited for what",
		Long:              "Draw the start of a session as a Gantt chart: what each component did when, and what it waited for.",
		Example:           "  berth trace work\n  berth trace work --svg start.svg",
		Args:              nargs(1, 1),
		ValidArgsFunction: c.completeSession(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if svg != "" && asJSON {
				return usagef("--svg and --json exclude each other")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			trace, err := cl.Trace(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				return c.printJSON(trace)
			case svg != "":
				return c.writeResult(svg, ganttSVG(trace))
			}
			_, err = io.WriteString(c.Stdout, ganttText(trace, c.width(c.Stdout, 120)))
			return err
		},
	}
	cmd.Flags().StringVarP(&svg, "svg", "o", "", "write an SVG picture to `FILE` instead, - for stdout")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the steps as JSON")
	return cmd
}
