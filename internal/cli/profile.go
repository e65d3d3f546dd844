package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"berth/profiles"
	"berth/session/api"
)

func (c *CLI) profileCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "profile",
		Short: "List, show, check and make profiles",
		Long: "List, show, check and make profiles, the TOML files that say what a session is made of. They lie in\n" +
			"~/.config/berth/profiles and /etc/berth/profiles, and some are built in; the first of a name counts.",
		Example: "  berth profile ls\n  berth profile check ./duo.toml\n  berth profile plan xfce",
	})
	cmd.AddCommand(c.profileLs(), c.profileShow(), c.profileCheck(), c.profilePlan(), c.profileGraph(), c.profileNew())
	return cmd
}

// sources are the places of profiles as the daemon sees them for the caller.
func (c *CLI) sources() profiles.Sources {
	return profiles.StandardSources(c.Home, -1, c.Profiles)
}

// profileNames is for completion; errors complete nothing.
func (c *CLI) profileNames() []string {
	list, err := profiles.List(c.sources())
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range list {
		out = append(out, cobra.CompletionWithDesc(e.Name, e.Description))
	}
	return out
}

func (c *CLI) completeProfile(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) > 0:
		return nil, cobra.ShellCompDirectiveNoFileComp
	case strings.Contains(word, "/"):
		return []string{"toml"}, cobra.ShellCompDirectiveFilterFileExt
	}
	return c.profileNames(), cobra.ShellCompDirectiveDefault
}

func (c *CLI) profileLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "ls",
		Short:             "List profiles",
		Example:           "  berth profile ls\n  berth profile ls --json",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			list, err := profiles.List(c.sources())
			if err != nil {
				return err
			}
			if asJSON {
				if list == nil {
					list = []profiles.Entry{}
				}
				return c.printJSON(list)
			}
			rows := [][]string{{"NAME", "EXTENDS", "FILE", "DESCRIPTION"}}
			for _, e := range list {
				text := e.Description
				if e.Error != "" {
					text = "invalid: " + e.Error
				}
				rows = append(rows, []string{e.Name, dash(e.Extends), e.File, text})
			}
			return writeTable(c.Stdout, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the profiles as JSON")
	return cmd
}

// profileText finds the text of a profile by name or path, and its file's name.
func (c *CLI) profileText(ref string) (file string, text []byte, err error) {
	if strings.Contains(ref, "/") || strings.HasSuffix(ref, ".toml") {
		text, err = profiles.ReadFile(ref)
		return c.sources().Path(ref), text, err
	}
	return c.sources().Find(ref)
}

func (c *CLI) profileShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "show PROFILE",
		Short:             "Print a profile's text",
		Example:           "  berth profile show xfce\n  berth profile show xfce > ~/.config/berth/profiles/mine.toml",
		Args:              nargs(1, 1),
		ValidArgsFunction: c.completeProfile,
		RunE: func(_ *cobra.Command, args []string) error {
			file, text, err := c.profileText(args[0])
			if err != nil {
				return err
			}
			if !asJSON {
				_, err := c.Stdout.Write(text)
				return err
			}
			doc := struct {
				Name        string   `json:"name"`
				Description string   `json:"description,omitempty"`
				File        string   `json:"file"`
				Files       []string `json:"files"` // with those it extends
				Text        string   `json:"text"`
			}{Name: strings.TrimSuffix(filepath.Base(file), ".toml"), File: file, Text: string(text), Files: []string{file}}
			p, err := profiles.Load(args[0], c.sources())
			if err != nil {
				return err
			}
			doc.Name, doc.Description, doc.Files = p.Name, p.Description, p.Files
			return c.printJSON(doc)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print text and origin as JSON")
	return cmd
}

func (c *CLI) profileCheck() *cobra.Command {
	var set []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "check FILE",
		Short:             "Report every mistake in a profile",
		Long:              "Report every mistake in a profile at once, with its place, and what was probably meant. FILE may also be a name.",
		Example:           "  berth profile check ./duo.toml\n  berth profile check xfce --set display.size=800x600",
		Args:              nargs(1, 1),
		ValidArgsFunction: c.completeProfile,
		RunE: func(cmd *cobra.Command, args []string) error {
			file, _, err := c.profileText(args[0])
			if err == nil {
				_, err = profiles.Load(args[0], c.sources(), set...)
				// The plan's errors have those of the text in them, and what only shows beside the components of display,
				// audio and bus. Without a planner or a daemon, the text alone is checked.
				plan, planErr := c.planOf(cmd.Context(), args[0], set)
				if planErr != nil && !errors.Is(planErr, errNoPlanner) {
					err = planErr
				}
				if err == nil {
					c.warn(plan)
				}
			}
			var list profiles.Errors
			if !asJSON {
				if errors.As(err, &list) { // each begins with its place, as editors read it
					fmt.Fprintln(c.Stderr, list)
					return exitError(1)
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.Stdout, "%s: ok\n", file)
				return err
			}
			var mistakes profiles.Errors
			if err != nil && !errors.As(err, &mistakes) {
				return err
			}
			doc := struct {
				File   string          `json:"file"`
				OK     bool            `json:"ok"`
				Errors profiles.Errors `json:"errors"`
			}{file, len(mistakes) == 0, mistakes}
			if doc.Errors == nil {
				doc.Errors = profiles.Errors{}
			}
			if err := c.printJSON(doc); err != nil {
				return err
			}
			if !doc.OK {
				return exitError(1)
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "change the profile: `KEY=VALUE`; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the mistakes as JSON")
	return cmd
}

// errNoPlanner: profiles can be resolved neither here nor by a daemon.
var errNoPlanner = errors.New("no planner")

// plan resolves a profile here, or through the daemon.
func (c *CLI) plan(ctx context.Context, req api.UpRequest) (api.Plan, error) {
	if c.Plan != nil {
		return c.Plan(ctx, req)
	}
	cl, err := c.client()
	if err != nil {
		return api.Plan{}, err
	}
	if err := ping(cl.Socket); err != nil {
		return api.Plan{}, errors.Join(err, errNoPlanner)
	}
	return cl.Plan(ctx, req)
}

// planOf resolves a profile given by name or path.
func (c *CLI) planOf(ctx context.Context, ref string, set []string) (api.Plan, error) {
	profile, source, err := c.profileArg(ref)
	if err != nil {
		return api.Plan{}, err
	}
	return c.plan(ctx, api.UpRequest{Profile: profile, Source: source, Set: set})
}

// warn says which keys of a profile do nothing.
func (c *CLI) warn(plan api.Plan) {
	if len(plan.Unused) > 0 {
		c.note("berth: warning: profile %q: not used yet and ignored: %s", plan.Profile, strings.Join(plan.Unused, ", "))
	}
}

// withImages asks the daemon, which has the images, what they make of the plan: which of them compete for names on the bus,
// and what they would start by themselves. Without an answer the plan stays as it is.
func (c *CLI) withImages(ctx context.Context, ref string, set []string, plan api.Plan) api.Plan {
	cl, err := c.client()
	if err == nil {
		err = ping(cl.Socket)
	}
	if err == nil {
		var profile, source string
		if profile, source, err = c.profileArg(ref); err == nil {
			var full api.Plan
			if full, err = cl.Plan(ctx, api.UpRequest{Profile: profile, Source: source, Set: set}); err == nil {
				return full
			}
		}
	}
	if len(plan.Apps) > 0 {
		c.note("berth: which image starts which service on the bus is shown when a daemon runs: %v", err)
	}
	return plan
}

func (c *CLI) profilePlan() *cobra.Command {
	var set []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "plan PROFILE",
		Short:             "Show what a session of a profile would be",
		Long:              "Resolve a profile into its components, in the order in which they can start. Nothing is started.\n\nWhile a daemon runs, it also shows what depends on the images: the names on the\nsession bus that several could start, and which one does, and the autostart\nentries that are switched off because the session has something instead.",
		Example:           "  berth profile plan xfce\n  berth profile plan xfce --set audio.server=none --json",
		Args:              nargs(1, 1),
		ValidArgsFunction: c.completeProfile,
		RunE: func(cmd *cobra.Command, args []string) error {
			plan, err := c.planOf(cmd.Context(), args[0], set)
			if err != nil {
				return err
			}
			if c.Plan != nil { // else it is a daemon's answer already
				plan = c.withImages(cmd.Context(), args[0], set, plan)
			}
			c.warn(plan)
			if asJSON {
				return c.printJSON(plan)
			}
			return plan.Text(c.Stdout)
		},
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "change the profile: `KEY=VALUE`; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the plan as JSON")
	return cmd
}

func (c *CLI) profileGraph() *cobra.Command {
	var set []string
	var file string
	cmd := &cobra.Command{
		Use:               "graph PROFILE",
		Short:             "Draw what waits for what in a profile",
		Long:              "Draw the components of a profile as a tree: below each stands what starts once it is ready. With -o, as a picture.",
		Example:           "  berth profile graph xfce\n  berth profile graph xfce -o xfce.svg",
		Args:              nargs(1, 1),
		ValidArgsFunction: c.completeProfile,
		RunE: func(cmd *cobra.Command, args []string) error {
			plan, err := c.planOf(cmd.Context(), args[0], set)
			if err != nil {
				return err
			}
			if file == "" {
				return plan.Graph(c.Stdout)
			}
			var svg bytes.Buffer
			if err := plan.SVG(&svg); err != nil {
				return err
			}
			return c.writeResult(file, svg.Bytes())
		},
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "change the profile: `KEY=VALUE`; may be repeated")
	cmd.Flags().StringVarP(&file, "svg", "o", "", "write an SVG picture to `FILE` instead, - for stdout")
	return cmd
}
