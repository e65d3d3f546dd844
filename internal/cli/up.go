package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
)

func (c *CLI) upCommand() *cobra.Command {
	var req api.UpRequest
	var of api.GuessRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "up [PROFILE]",
		Short: "Start a session and wait until it is ready",
		Long: "Start a session of a profile and wait until every part of it is ready. Images that are missing are built\n" +
			"or pulled first, and root's first `berth up` starts the daemon. PROFILE is a name that `berth profile ls`\n" +
			"shows, or the path of a file (with a slash, or ending in .toml).\n\n" +
			"With --image instead of a profile, the desktop in any image is started: how is guessed from the image's X\n" +
			"sessions, its programs and its command, and said. `berth profile new --image` writes the guess down.\n\n" +
			"An interrupt takes back what was begun and waits for it; a second one leaves at once.",
		Example: "  berth up xfce\n  berth up xfce --name work --set display.size=1280x800\n  berth up ./duo.toml --json\n" +
			"  berth up --image registry.example/desktop:1\n  berth up --image registry.example/desktop:1 --session openbox",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case of.Image != "" && len(args) > 0:
				return fmt.Errorf("profile %q and --image %q: only one can be started", args[0], of.Image)
			case of.Image == "" && of.Session != "":
				return fmt.Errorf("--session %q is a session of an image: it goes with --image", of.Session)
			case of.Image == "" && len(args) == 0:
				return fmt.Errorf("missing argument: %s PROFILE, or --image REF", cmd.CommandPath())
			}
			return nargs(0, 1)(cmd, args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			if strings.Contains(word, "/") {
				return []string{"toml"}, cobra.ShellCompDirectiveFilterFileExt
			}
			return c.profileNames(), cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				var err error
				if req.Profile, req.Source, err = c.profileArg(args[0]); err != nil {
					return err
				}
			}
			if req.VNCPort < 0 || req.VNCPort > 65535 {
				return usagef("vnc port %d: must be 1 to 65535", req.VNCPort)
			}
			if of.Image != "" {
				g, err := c.guess(cmd.Context(), of)
				if err != nil {
					return err
				}
				keep := []string{"berth", "profile", "new", "--image", of.Image}
				if of.Session != "" {
					keep = append(keep, "--session", of.Session)
				}
				c.note("berth: to keep or change it: %s -o %s.toml", shellWords(keep), g.Profile)
				req.Profile, req.Source = g.Profile+".toml", g.Source
			}
			return c.up(cmd.Context(), req, asJSON)
		},
	}
	f := cmd.Flags()
	c.imageFlags(cmd, &of)
	f.StringVar(&req.Name, "name", "", "call the session `NAME` (default: after the profile)")
	f.StringArrayVar(&req.Set, "set", nil, "change the profile: `KEY=VALUE`, such as display.dpi=120; may be repeated")
	f.IntVar(&req.VNCPort, "vnc-port", 0, "listen for VNC viewers on `PORT`, and fail if it is taken (default: any)")
	f.StringVar(&req.User, "user", "", "run as the host's user `USER`; root only (default: the caller)")
	f.BoolVar(&asJSON, "json", false, "print the session as JSON")
	return cmd
}

// profileArg tells a profile's name from the path of a file, whose text is then read, since the daemon has another
// working directory and other rights.
func (c *CLI) profileArg(arg string) (profile, source string, err error) {
	if !strings.Contains(arg, "/") && !strings.HasSuffix(arg, ".toml") {
		return arg, "", nil
	}
	text, err := profiles.ReadFile(arg)
	if err != nil {
		return "", "", err
	}
	if len(text) == 0 {
		return "", "", fmt.Errorf("profile %q: %w: the file is empty", arg, orchestrator.ErrInvalid)
	}
	return c.sources().Path(arg), string(text), nil
}

func (c *CLI) up(ctx context.Context, req api.UpRequest, asJSON bool) error {
	// Under a millisecond, and a mistake in the profile is told before a daemon is started for it.
	if c.Plan != nil {
		plan, err := c.Plan(ctx, req)
		if err != nil {
			return err
		}
		c.warn(plan)
	}
	if err := c.ensureDaemon(ctx); err != nil {
		return err
	}
	cl, err := c.client()
	if err != nil {
		return err
	}
	what := filepath.Base(req.Profile)
	if req.Name != "" {
		what = req.Name
	}
	p := c.startProgress("starting " + what)
	stop := context.AfterFunc(ctx, func() { p.message("interrupted: taking back what was begun") })
	session, err := cl.Up(ctx, req, p.up)
	stop()
	p.close()
	if err != nil {
		return interrupted(ctx, err, undone)
	}
	if asJSON {
		return c.printJSON(session)
	}
	return writeTable(c.Stdout, [][]string{
		{"session", session.Name},
		{"web", dash(session.Remote.Web)},
		{"vnc", dash(session.Remote.VNC)},
		{"password", dash(session.Remote.Password)},
		{"ready", seconds(session.ReadyMS)},
	})
}
