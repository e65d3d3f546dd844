// Package cli is the command line: one file per noun or verb, each a thin layer over the API's client.
//
// A CLI value is one invocation. Everything it touches outside the API is a field, so that tests run whole commands in
// process. Results go to Stdout, all else to Stderr. The exit code is 0 for done, 1 for failed, 2 for wrong usage; exec
// passes on its process's. The first interrupt cancels what runs and waits until the daemon has undone it, the
// second leaves at once.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth/internal/hostcheck"
	"berth/internal/paths"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/api"
	"berth/session/api/client"
)

// CLI is one invocation of berth. Args, Stdin, Stdout and Stderr must be set; the rest has defaults.
type CLI struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Env    []string // KEY=VALUE; nil means the process's

	// Interrupts delivers Ctrl-C; nil means SIGINT and SIGTERM of the process.
	Interrupts <-chan os.Signal
	// Exit ends the process at the second interrupt; nil means os.Exit.
	Exit func(code int)
	// Getuid is the user who asks; nil means os.Getuid.
	Getuid func() int
	// Home is where the user's own profiles lie; "" means the home directory of the account, as the daemon looks for them.
	Home string
	// Now is the clock of tables; nil means time.Now.
	Now func() time.Time
	// Executable is the program that is started as the daemon; "" means this one.
	Executable string

	// Daemon is `berth daemon`: it serves until ctx ends. Once the API answers on the layout's socket, others may use it.
	Daemon func(ctx context.Context, opt DaemonOptions) error
	// Plan resolves a profile without a daemon, as api.Manager's Plan does with one. nil: the daemon is asked.
	Plan func(ctx context.Context, req api.UpRequest) (api.Plan, error)
	// Profiles holds the built-in profiles, NAME.toml each; may be nil.
	Profiles fs.FS
	// Doctor looks at the host; nil means package hostcheck with the instance's configuration.
	Doctor func(ctx context.Context, l paths.Layout) ([]hostcheck.Finding, error)

	root string // --root
	api  *client.Client
}

// DaemonOptions is what `berth daemon` was told.
type DaemonOptions struct {
	Layout  paths.Layout
	Version string
	Debug   bool      // log more
	Log     io.Writer // where the log goes
}

// usageError is wrong usage: exit code 2.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitError ends with a code and without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Run runs the command and returns the exit code.
func (c *CLI) Run(ctx context.Context) int {
	c.defaults()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := c.watchInterrupts(cancel)
	defer stop()

	root := c.rootCommand()
	root.SetArgs(c.Args)
	cmd, err := root.ExecuteContextC(ctx)
	if c.api != nil {
		c.api.Close()
	}
	return c.report(cmd, interrupted(ctx, err, ""))
}

// interruptError is an error that already says that it is an interrupt's.
type interruptError struct{ error }

func (i interruptError) Unwrap() error { return i.error }

// interrupted is how a command ended that may have been cancelled: err says whether there is more to know than that, and
// outcome, which may be "", what then has become of what it did.
func interrupted(ctx context.Context, err error, outcome string) error {
	var exit exitError
	var already interruptError
	if err == nil || ctx.Err() == nil || errors.As(err, &exit) || errors.As(err, &already) {
		return err
	}
	// Whoever undid something and failed says so behind the cancellation, on a line of its own.
	if text := err.Error(); strings.HasSuffix(text, context.Canceled.Error()) || strings.HasSuffix(text, io.ErrUnexpectedEOF.Error()) {
		return interruptError{errors.New("interrupted" + outcome)}
	}
	return interruptError{fmt.Errorf("interrupted: %w", err)}
}

// undone is the outcome of what the daemon takes back when it is cancelled.
const undone = "; what was begun is undone"

func (c *CLI) defaults() {
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Exit == nil {
		c.Exit = os.Exit
	}
	if c.Getuid == nil {
		c.Getuid = os.Getuid
	}
	if c.Home == "" {
		c.Home = api.NewCaller(c.Getuid(), -1).Home
	}
	if c.Doctor == nil {
		c.Doctor = lookAtHost
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// sameInterrupt is how soon after the first a second interrupt is none of its own: timeout(1) and other wrappers signal
// the process and its group, and nobody presses keys that fast.
const sameInterrupt = 200 * time.Millisecond

// watchInterrupts calls cancel at the first interrupt and leaves at the second, until stop is called.
func (c *CLI) watchInterrupts(cancel func()) (stop func()) {
	interrupts := c.Interrupts
	quit := make(chan struct{})
	unhook := func() {}
	if interrupts == nil {
		ch := make(chan os.Signal, 2)
		signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
		unhook = func() { signal.Stop(ch) }
		interrupts = ch
	}
	go func() {
		select {
		case <-interrupts:
			cancel()
		case <-quit:
			return
		}
		first := time.Now()
		for {
			select {
			case <-interrupts:
				if time.Since(first) < sameInterrupt {
					continue
				}
				fmt.Fprintln(c.Stderr, "berth: left without waiting")
				c.Exit(1)
				return
			case <-quit:
				return
			}
		}
	}()
	return func() { unhook(); close(quit) }
}

// report prints err and returns the exit code it stands for.
func (c *CLI) report(cmd *cobra.Command, err error) int {
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(c.Stderr, "berth: %v\nhint: %s --help shows how it is used\n", err, cmd.CommandPath())
		return 2
	}
	fmt.Fprintf(c.Stderr, "berth: %v\n", err)
	if hint := c.hint(err); hint != "" {
		fmt.Fprintf(c.Stderr, "hint: %s\n", hint)
	}
	return 1
}

// noSession is the error of a session that is not there, and not of something in one.
var noSession = regexp.MustCompile(`^session "[^"]*": not found`)

// hint says what to do about err: what the error itself knows, else what fits its kind.
func (c *CLI) hint(err error) string {
	if h := api.ErrorOf(err).Hint; h != "" {
		return h
	}
	switch {
	case errors.Is(err, client.ErrNoDaemon) && c.Getuid() == 0:
		return "berth up PROFILE starts it, and so does: berth daemon"
	case errors.Is(err, client.ErrNoDaemon):
		return "root can start it: berth daemon, or: systemctl start berth"
	case errors.Is(err, orchestrator.ErrNotFound) && noSession.MatchString(err.Error()):
		return "berth ls lists the sessions"
	case errors.Is(err, orchestrator.ErrNotFound) && strings.HasPrefix(err.Error(), "image "):
		return "berth image ls lists the images"
	}
	return ""
}

// getenv returns a variable of Env.
func (c *CLI) getenv(key string) string {
	for i := len(c.Env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(c.Env[i], key+"="); ok {
			return v
		}
	}
	return ""
}

// layout is where the instance keeps things.
func (c *CLI) layout() (paths.Layout, error) {
	root := c.root
	if root == "" {
		root = c.getenv("BERTH_ROOT")
	}
	return paths.New(root)
}

// client returns the API's client.
func (c *CLI) client() (*client.Client, error) {
	if c.api == nil {
		l, err := c.layout()
		if err != nil {
			return nil, usageError{err}
		}
		c.api = client.New(l.APISocket())
	}
	return c.api, nil
}

// Groups of the help.
const (
	groupSessions = "sessions"
	groupParts    = "parts"
	groupSystem   = "system"
)

// Commands are listed in the order of use. Cobra has only a variable for that, which invocations side by side must not write.
func init() { cobra.EnableCommandSorting = false }

func (c *CLI) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run Linux desktops made of containers",
		Long: "Berth runs a Linux desktop as a set of containers: one for the display server, one for the audio\n" +
			"daemon, one for the session bus and one for every part of the desktop environment.",
		Example: "  berth up xfce\n  berth ls\n  berth open xfce\n  berth stop xfce",
	}
	group(root)
	root.SetUsageTemplate(usageTemplate)
	root.SilenceUsage, root.SilenceErrors = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetIn(c.Stdin)
	root.SetOut(c.Stdout)
	root.SetErr(c.Stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&c.root, "root", "", "keep everything of this instance below `DIR` (default $BERTH_ROOT)")
	root.AddGroup(&cobra.Group{ID: groupSessions, Title: "Sessions:"}, &cobra.Group{ID: groupParts, Title: "What they are made of:"},
		&cobra.Group{ID: groupSystem, Title: "Berth itself:"})
	add := func(id string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = id
			root.AddCommand(cmd)
		}
	}
	add(groupSessions, c.upCommand(), c.lsCommand(), c.showCommand(), c.stopCommand(), c.rmCommand(), c.logsCommand(), c.execCommand(),
		c.eventsCommand(), c.shotCommand(), c.openCommand(), c.setCommand(), c.traceCommand())
	add(groupParts, c.profileCommand(), c.imageCommand())
	add(groupSystem, c.daemonCommand(), c.doctorCommand(), c.versionCommand(), c.completionCommand())
	help := &cobra.Command{
		Use: "help [COMMAND]", Short: "Show the help of a command", GroupID: groupSystem,
		Example: "  berth help up",
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("unknown command %q", strings.Join(args, " "))
			}
			return of.Help()
		},
	}
	root.SetHelpCommand(help)
	wrapArgs(root)
	return root
}

// usageTemplate is cobra's without what says nothing.
const usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} {{if and .Runnable .HasAvailableLocalFlags}}[FLAGS] {{end -}}
  {{if eq .Name "daemon"}}[COMMAND]{{else}}COMMAND{{end}}{{else}}{{.UseLine}}{{end}}

Examples:
{{.Example}}
{{- if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if eq (len .Groups) 0}}

Commands:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if (and (eq .GroupID $group.ID) (or .IsAvailableCommand (eq .Name "help")))}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Global flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`

// group makes cmd a mere group of subcommands: alone it shows its help, with an unknown one it is wrong usage.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		err := fmt.Sprintf("unknown command %q", strings.TrimPrefix(cmd.CommandPath()+" "+args[0], "berth "))
		names := []string{}
		for _, sub := range cmd.Commands() {
			names = append(names, sub.Name())
		}
		if near := profiles.Nearest(args[0], names); near != "" {
			err += fmt.Sprintf("; did you mean %q?", near)
		}
		return usageError{errors.New(err)}
	}
	return cmd
}

// wrapArgs makes every complaint about arguments wrong usage.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// nargs asks for at least low and at most high arguments (no bound if negative), named as in the usage line.
func nargs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		_, names, _ := strings.Cut(cmd.Use, " ")
		switch {
		case len(args) < low:
			return fmt.Errorf("missing argument: %s %s", cmd.CommandPath(), names)
		case high >= 0 && len(args) > high:
			return fmt.Errorf("unexpected argument %q", args[high])
		}
		return nil
	}
}

// printJSON writes a document as every --json prints it.
func (c *CLI) printJSON(doc any) error {
	enc := json.NewEncoder(c.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(doc)
}

// note writes a line for people to Stderr.
func (c *CLI) note(format string, args ...any) { fmt.Fprintf(c.Stderr, format+"\n", args...) }

// terminal returns the descriptor behind a stream if that is a terminal.
func terminal(stream any) (fd int, ok bool) {
	f, isFile := stream.(interface{ Fd() uintptr })
	if !isFile {
		return 0, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}

// width is how many columns a stream has: the terminal's, else $COLUMNS, else def.
func (c *CLI) width(stream any, def int) int {
	if fd, ok := terminal(stream); ok {
		if w, _, err := term.GetSize(fd); err == nil && w > 0 {
			return w
		}
	}
	var w int
	if _, err := fmt.Sscan(c.getenv("COLUMNS"), &w); err == nil && w > 0 {
		return w
	}
	return def
}
