package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/orchestrator"
	"berth/profiles"
	"berth/profiles/mix"
	"berth/session/api"
)

// newProfile is what `berth profile new` was told.
type newProfile struct {
	image api.GuessRequest
	mix   mix.Answers
	yes   bool // take the defaults for what is not said
	file  string
	save  bool
	force bool
}

func (c *CLI) profileNew() *cobra.Command {
	var n newProfile
	var flags []string // of the mix
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Make a profile: a mix of desktops, or an image's desktop",
		Long: "Make a profile of parts of other profiles, in at most ten lines: one desktop with another's panel, window\n" +
			"manager or applications. What no flag says is asked on the terminal; without one, or with --yes, it gets its\n" +
			"default. With --image, the profile starts the desktop in an image, as `berth up --image` does.\n\n" +
			"It is written to stdout unless -o or --save says otherwise. Ctrl-C and Ctrl-D leave nothing.",
		Example: "  berth profile new\n  berth profile new --base kde --panel xfce --applications gnome --yes --save\n" +
			"  berth profile new --image registry.example/desktop:1 -o desktop.toml",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n.image.Session != "" && n.image.Image == "" {
				return usagef("--session %q is a session of an image: it goes with --image", n.image.Session)
			}
			for _, f := range flags {
				if n.image.Image != "" && cmd.Flags().Changed(f) {
					return usagef("--%s makes a mix of profiles and does not go with --image", f)
				}
			}
			if n.save && n.file != "" {
				return usagef("--save and -o %q: the profile goes to one place", n.file)
			}
			if name := n.mix.Name; name != "" && !profiles.ValidName(name) {
				return usagef("name %q: %s", name, nameRule)
			}
			return c.newProfile(cmd.Context(), n)
		},
	}
	c.imageFlags(cmd, &n.image)
	f := cmd.Flags()
	f.StringVar(&n.mix.Base, "base", "", "build on the profile `PROFILE`")
	f.StringVar(&n.mix.Panel, "panel", "", "take the panel of `PROFILE`; own is the base's, none leaves it out (default: own)")
	f.StringVar(&n.mix.WindowManager, "window-manager", "", "take the window manager of `PROFILE`; own is the base's (default: own)")
	f.StringSliceVar(&n.mix.Applications, "applications", nil, "add the applications of `PROFILE`; may be repeated, none for none (default: none)")
	f.StringVar(&n.mix.Size, "size", "", "make the screen `WIDTHxHEIGHT` (default: the base's)")
	flags = []string{"base", "panel", "window-manager", "applications", "size"}
	for _, name := range []string{"base", "panel", "window-manager", "applications"} {
		err := cmd.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return c.profileNames(), cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			panic(err) // the flag is there, and has no other
		}
	}
	f.StringVar(&n.mix.Name, "name", "", "call the profile `NAME` (default: after what is in it)")
	f.BoolVarP(&n.yes, "yes", "y", false, "ask nothing")
	f.StringVarP(&n.file, "output", "o", "", "write to `FILE`, - for stdout")
	f.BoolVar(&n.save, "save", false, "write to ~/.config/berth/profiles/NAME.toml, where berth up finds it")
	f.BoolVar(&n.force, "force", false, "replace a file that is there")
	return cmd
}

const nameRule = "a profile's name has up to 32 of a-z, 0-9 and single dashes between them"

func (c *CLI) newProfile(ctx context.Context, n newProfile) error {
	var name, text string
	var q *questions
	if n.image.Image != "" {
		n.image.Profile = n.mix.Name
		g, err := c.guess(ctx, n.image)
		if err != nil {
			return err
		}
		name, text = g.Profile, g.Source
	} else {
		sources, err := c.mixSources(ctx)
		if err != nil {
			return err
		}
		if _, tty := terminal(c.Stdin); tty && !n.yes {
			q = c.newQuestions(ctx)
		}
		if name, text, err = c.mix(&n, sources, q); err != nil {
			return interrupted(ctx, err, "; nothing was written")
		}
	}
	if q != nil && !n.save && n.file == "" {
		err := q.ask("save as "+c.ownProfile(name), "yes", []string{"yes", "no"}, func(a string) error {
			n.save = a == "yes"
			return nil
		})
		if err != nil {
			return interrupted(ctx, err, "; nothing was written")
		}
	}
	switch {
	case n.save:
		n.file = c.ownProfile(name)
		if err := os.MkdirAll(filepath.Dir(n.file), 0o755); err != nil {
			return fmt.Errorf("profile %q: %w", name, err)
		}
	case n.file == "":
		n.file = "-"
	}
	if !n.force && !c.isStdout(n.file) {
		if _, err := os.Lstat(n.file); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("profile %q: %w; --force replaces it", n.file, cmp.Or(err, orchestrator.ErrExists))
		}
	}
	return c.writeResult(n.file, []byte(text))
}

// ownProfile is where the user's own profile called name lies.
func (c *CLI) ownProfile(name string) string {
	return filepath.Join(c.Home, ".config", "berth", "profiles", name+".toml")
}

// mixSources are the profiles that have no mistakes, resolved.
func (c *CLI) mixSources(ctx context.Context) ([]mix.Source, error) {
	list, err := profiles.List(c.sources())
	if err != nil {
		return nil, err
	}
	var out []mix.Source
	for _, e := range list {
		if e.Error != "" {
			continue // berth profile ls shows it
		}
		plan, err := c.plan(ctx, api.UpRequest{Profile: e.Name})
		if errors.Is(err, orchestrator.ErrInvalid) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, mix.Source{Name: e.Name, Description: e.Description, Plan: plan})
	}
	if len(mix.Bases(out)) == 0 {
		return nil, fmt.Errorf("profiles: %w: there is none with a window manager to build on", orchestrator.ErrNotFound)
	}
	return out, nil
}

// mix makes a mix's text of what flags say and, if q is not nil, what the user answers.
func (c *CLI) mix(n *newProfile, sources []mix.Source, q *questions) (name, text string, err error) {
	a := &n.mix
	if q != nil && a.Base == "" {
		fmt.Fprintln(c.Stderr, "The desktop to build on:")
		bases := mix.Bases(sources)
		rows := [][]string{}
		for _, s := range sources {
			if slices.Contains(bases, s.Name) {
				rows = append(rows, []string{"  " + s.Name, s.Description})
			}
		}
		if err := writeTable(c.Stderr, rows); err != nil {
			return "", "", err
		}
		if err := q.ask("base desktop", "", bases, func(s string) error { a.Base = s; return nil }); err != nil {
			return "", "", err
		}
	}
	if a.Base == "" {
		return "", "", usagef("base desktop: name it with --base PROFILE: %s", strings.Join(mix.Bases(sources), ", "))
	}
	// A wrong flag is told before the first question that follows from it.
	if _, err := mix.Write(sources, mix.Answers{Base: a.Base, Panel: a.Panel, WindowManager: a.WindowManager, Size: a.Size,
		Applications: applications(a.Applications)}); err != nil {
		return "", "", usageError{err}
	}
	if q != nil {
		if err := c.askMix(a, sources, q); err != nil {
			return "", "", err
		}
	}
	a.Applications = applications(a.Applications)
	if a.Name == "" {
		a.Name = mix.DefaultName(*a)
	}
	text, err = mix.Write(sources, *a)
	return a.Name, text, err
}

// applications is a list of profiles in which none stands for no profile.
func applications(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == mix.None })
}

// askMix asks for what a does not say yet.
func (c *CLI) askMix(a *mix.Answers, sources []mix.Source, q *questions) error {
	choose := func(what string, to *string, of []string) error {
		if *to != "" || len(of) < 2 {
			return nil
		}
		return q.ask(what, of[0], of, func(s string) error { *to = s; return nil })
	}
	if err := choose("window manager of", &a.WindowManager, mix.WindowManagers(sources, a.Base)); err != nil {
		return err
	}
	if err := choose("panel of", &a.Panel, mix.Panels(sources, a.Base)); err != nil {
		return err
	}
	if of := mix.Applications(sources, a.Base); a.Applications == nil && len(of) > 0 {
		of = append([]string{mix.None}, of...)
		err := q.ask("applications of, as many as you like", mix.None, nil, func(s string) error {
			list := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
			for _, one := range list {
				if !slices.Contains(of, one) {
					return wrongAnswer(one, of)
				}
			}
			a.Applications = list
			return nil
		}, of...)
		if err != nil {
			return err
		}
	}
	if a.Size == "" {
		i := slices.IndexFunc(sources, func(s mix.Source) bool { return s.Name == a.Base })
		d := sources[i].Plan.Display
		err := q.ask("screen size", fmt.Sprintf("%dx%d", d.Width, d.Height), nil, func(s string) error {
			_, _, err := profiles.ParseSize(s)
			a.Size = s
			return err
		})
		if err != nil {
			return err
		}
	}
	if a.Name == "" {
		def := *a
		def.Applications = applications(a.Applications)
		return q.ask("name of the profile", mix.DefaultName(def), nil, func(s string) error {
			if !profiles.ValidName(s) {
				return errors.New(nameRule)
			}
			a.Name = s
			return nil
		})
	}
	return nil
}

// questions asks on the terminal, on Stderr, and reads Stdin line by line.
type questions struct {
	c     *CLI
	ctx   context.Context
	lines chan string // closed at the end of Stdin
	err   error       // why Stdin ended; read behind the close
}

func (c *CLI) newQuestions(ctx context.Context) *questions {
	q := &questions{c: c, ctx: ctx, lines: make(chan string)}
	go func() { // a reader of a terminal cannot be interrupted; it is left behind when the command ends
		defer close(q.lines)
		in := bufio.NewReader(c.Stdin)
		for {
			l, err := in.ReadString('\n')
			if err != nil {
				if err != io.EOF {
					q.err = err
				}
				return
			}
			select {
			case q.lines <- strings.TrimSpace(l):
			case <-ctx.Done():
				return
			}
		}
	}()
	return q
}

// ask asks until take accepts the answer. An empty one stands for def, unless that is empty. of, if not nil, are the only
// answers there are; shown are choices that take knows itself.
func (q *questions) ask(what, def string, of []string, take func(string) error, shown ...string) error {
	prompt := what
	if list := append(slices.Clone(of), shown...); len(list) > 0 {
		prompt += " (" + strings.Join(list, ", ") + ")"
	}
	if def != "" {
		prompt += " [" + def + "]"
	}
	for {
		fmt.Fprintf(q.c.Stderr, "%s: ", prompt)
		var answer string
		select {
		case l, ok := <-q.lines:
			if !ok {
				fmt.Fprintln(q.c.Stderr)
				return cmp.Or(q.err, errors.New("no answer; nothing was written"))
			}
			answer = cmp.Or(l, def)
		case <-q.ctx.Done():
			fmt.Fprintln(q.c.Stderr)
			return q.ctx.Err()
		}
		var err error
		switch {
		case answer == "":
			err = errors.New("an answer is needed")
		case of != nil && !slices.Contains(of, answer):
			err = wrongAnswer(answer, of)
		default:
			err = take(answer)
		}
		if err == nil {
			return nil
		}
		fmt.Fprintf(q.c.Stderr, "  %v\n", err)
	}
}

func wrongAnswer(answer string, of []string) error {
	hint := ""
	if near := profiles.Nearest(answer, of); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	return fmt.Errorf("%q is none of %s%s", answer, strings.Join(of, ", "), hint)
}
