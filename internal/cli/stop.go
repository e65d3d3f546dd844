package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"berth/session/api/client"
)

func (c *CLI) stopCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stop NAME...",
		Short: "End sessions",
		Long: "End sessions: their components are taken down in order, and everything but a home volume is removed.\n" +
			"Returns when all is gone.",
		Example:           "  berth stop work",
		Args:              nargs(1, -1),
		ValidArgsFunction: c.completeSession(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), "stopping", args, func(ctx context.Context, cl *client.Client, name string) error {
				return cl.Stop(ctx, name)
			})
		},
	}
}

func (c *CLI) rmCommand() *cobra.Command {
	var force, home bool
	cmd := &cobra.Command{
		Use:               "rm NAME...",
		Short:             "Remove failed sessions",
		Long:              "Remove failed sessions; with --force running ones too, with --home their home volumes as well.",
		Example:           "  berth rm work\n  berth rm --force --home work",
		Args:              nargs(1, -1),
		ValidArgsFunction: c.completeSession(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), "removing", args, func(ctx context.Context, cl *client.Client, name string) error {
				return cl.Remove(ctx, name, force, home)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove running sessions too")
	cmd.Flags().BoolVar(&home, "home", false, "remove the home volume too")
	return cmd
}

// each does something to several sessions, goes on after a failure, and prints the names of those done.
func (c *CLI) each(ctx context.Context, verb string, names []string, do func(context.Context, *client.Client, string) error) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		p := c.startProgress(verb + " " + name)
		err := do(ctx, cl, name)
		p.close()
		if err != nil {
			errs = append(errs, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		fmt.Fprintln(c.Stdout, name)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
