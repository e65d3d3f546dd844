package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"berth/profiles"
)

func (c *CLI) setCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME KEY=VALUE...",
		Short: "Change the look or keyboard of a session",
		Long: "Change keys of a running session's profile, written as for berth up --set. Programs that run follow, and those\n" +
			"started later have it from the first. The profile itself stays as it is. What can change:\n" +
			strings.Join(profiles.LiveKeys(), ", ") + ".",
		Example: "  berth set work look.dark=true\n  berth set work look.scale=1.5 'look.font=Noto Sans 11'\n" +
			"  berth set work 'locale.keyboard=[\"us\", \"de(nodeadkeys)\"]'",
		Args: nargs(2, -1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return c.completeSession(1)(cmd, args, word)
			}
			var out []string
			for _, k := range profiles.LiveKeys() {
				out = append(out, k+"=")
			}
			return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			p := c.startProgress("changing " + args[0])
			err = cl.Set(cmd.Context(), args[0], args[1:])
			p.close()
			return err
		},
	}
}
