package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

func (c *CLI) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a shell's completion script",
		Long: "Print a script that completes commands, flags, and the names of sessions, components, profiles and images.\n" +
			"SHELL is bash, zsh, fish or powershell.",
		Example:   "  berth completion bash > /etc/bash_completion.d/berth\n  source <(berth completion zsh)",
		Args:      nargs(1, 1),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(c.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(c.Stdout)
			case "fish":
				return root.GenFishCompletion(c.Stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(c.Stdout)
			}
			return usagef("shell %q: must be one of %v", args[0], shells)
		},
	}
}

// completing bounds what a press of the tab key may take.
const completing = 2 * time.Second

// completeSession completes up to max names of sessions (no bound if negative). Errors complete nothing.
func (c *CLI) completeSession(max int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if max >= 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), completing)
		defer cancel()
		cl, err := c.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		sessions, err := cl.Sessions(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, s := range sessions {
			if !slices.Contains(args, s.Name) {
				out = append(out, cobra.CompletionWithDesc(s.Name, fmt.Sprintf("%s, %s", s.Profile, s.State)))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeComponent completes a session's name and then one of its components.
func (c *CLI) completeComponent(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return c.completeSession(1)(cmd, args, word)
	}
	ctx, cancel := context.WithTimeout(context.Background(), completing)
	defer cancel()
	cl, err := c.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, err := cl.Session(ctx, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, p := range s.Components {
		out = append(out, cobra.CompletionWithDesc(p.Name, p.State))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeImage completes names of images, and of recipes if asked for.
func (c *CLI) completeImage(images, recipes bool, max int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if max >= 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), completing)
		defer cancel()
		cl, err := c.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := cl.Images(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		if images {
			for _, i := range list.Images {
				out = append(out, i.Ref)
			}
		}
		if recipes {
			out = append(out, list.Recipes...)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
