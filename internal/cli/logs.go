package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"berth/session/api"
)

func (c *CLI) logsCommand() *cobra.Command {
	var follow bool
	var tail int
	cmd := &cobra.Command{
		Use:               "logs NAME [COMPONENT]",
		Short:             "Show what components write",
		Long:              "Show the output of one component, or of all, each line led by its component's name.",
		Example:           "  berth logs work\n  berth logs work panel -f\n  berth logs work --tail 20",
		Args:              nargs(1, 2),
		ValidArgsFunction: c.completeComponent,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			component := ""
			if len(args) == 2 {
				component = args[1]
			}
			log, err := cl.Logs(cmd.Context(), args[0], component, tail, follow)
			if err != nil {
				return err
			}
			defer log.Close()
			_, err = io.Copy(c.Stdout, log)
			if cmd.Context().Err() != nil && follow {
				return nil // an interrupt is how following ends
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written from now on")
	cmd.Flags().IntVarP(&tail, "tail", "n", -1, "only the last `N` lines (default: all)")
	cmd.Flags().Lookup("tail").DefValue = "0" // of which the help says nothing
	return cmd
}

func (c *CLI) eventsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "events",
		Short:             "Follow what happens to sessions",
		Long:              "Print what happens to sessions, components and images from now on, until interrupted.",
		Example:           "  berth events\n  berth events --json",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			err = cl.Events(cmd.Context(), func() { c.note("listening; interrupt to end") }, func(e api.Event) error {
				if asJSON {
					return jsonLine(c.Stdout, e)
				}
				line := fmt.Sprintf("%s  %-19s", e.Time.Local().Format("15:04:05.000"), e.Type)
				for _, word := range []string{e.Session, e.Component, e.Message} {
					if word != "" {
						line += "  " + word
					}
				}
				_, err := fmt.Fprintln(c.Stdout, line)
				return err
			})
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document per line")
	return cmd
}
