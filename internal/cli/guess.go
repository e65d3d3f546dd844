package cli

import (
	"context"

	"github.com/spf13/cobra"

	"berth/profiles"
	"berth/session/api"
	"berth/session/api/client"
)

// imageFlags adds the flags that name an image's desktop.
func (c *CLI) imageFlags(cmd *cobra.Command, req *api.GuessRequest) {
	cmd.Flags().StringVar(&req.Image, "image", "", "the desktop in the image `REF`, which is pulled or built if missing")
	cmd.Flags().StringVar(&req.Session, "session", "", "with --image: the image's session `NAME`; cmd is its own command (default: guessed)")
	complete := c.completeImage(true, true, -1)
	err := cmd.RegisterFlagCompletionFunc("image", func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return complete(cmd, nil, word)
	})
	if err != nil {
		panic(err) // the flag is there, and has no other
	}
}

// guess asks the daemon, which is started if need be, for the desktop in an image and says what it found.
func (c *CLI) guess(ctx context.Context, req api.GuessRequest) (g api.Guess, err error) {
	err = c.change(ctx, "looking into "+req.Image, func(cl *client.Client, p *progress) error {
		g, err = cl.Guess(ctx, req, p.up)
		return err
	})
	if err != nil {
		return g, err
	}
	c.note("berth: image %s: %s (%s), from %s; %s", g.Image, g.Session.Title, shellWords(g.Session.Command), g.Session.From, g.Reason)
	for _, s := range g.Others {
		c.note("berth: also there, with --session %s: %s (%s), from %s", shellWords([]string{s.Name}), s.Title, shellWords(s.Command), s.From)
	}
	for _, n := range g.Notes {
		c.note("berth: note: %s", n)
	}
	return g, nil
}

// shellWords is a command for people, as a shell would take it.
func shellWords(argv []string) string { return profiles.CommandText(argv) }
