package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth/orchestrator"
	"berth/session/api"
	"berth/session/api/execstream"
)

func (c *CLI) execCommand() *cobra.Command {
	var req api.ExecRequest
	var noStdin, noTTY bool
	cmd := &cobra.Command{
		Use:                   "exec [FLAGS] NAME COMPONENT [--] COMMAND...",
		DisableFlagsInUseLine: true,
		Short:                 "Run a command in a component",
		Long: "Run a command in a component of a session, with the session's environment. It gets a terminal when stdin\n" +
			"and stdout are one. The exit code is the command's.",
		Example: "  berth exec work panel -- sh\n  berth exec work panel -- xrandr\n" +
			"  tar c . | berth exec work files -- tar x -C /home/anna",
		Args:              nargs(3, -1),
		ValidArgsFunction: c.completeComponent,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Component, req.Command = args[1], args[2:]
			if req.Command[0] == "--" {
				req.Command = req.Command[1:]
			}
			if len(req.Command) == 0 {
				return usagef("missing argument: COMMAND")
			}
			return c.exec(cmd.Context(), args[0], req, noStdin, noTTY)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the names belongs to the command
	f.StringArrayVarP(&req.Env, "env", "e", nil, "set a variable: `KEY=VALUE`; may be repeated")
	f.StringVarP(&req.Cwd, "cwd", "w", "", "start in `DIR` (default: the component's)")
	f.BoolVar(&req.Root, "as-root", false, "be the component's root instead of the session's user; root only")
	f.BoolVarP(&noStdin, "no-stdin", "n", false, "leave stdin alone")
	f.BoolVarP(&noTTY, "no-tty", "T", false, "no terminal, even if stdin and stdout are one")
	return cmd
}

func (c *CLI) exec(ctx context.Context, name string, req api.ExecRequest, noStdin, noTTY bool) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	streams := execstream.Streams{Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr}
	if noStdin {
		streams.Stdin = nil
	}
	in, inTerm := terminal(c.Stdin)
	out, outTerm := terminal(c.Stdout)
	if inTerm && outTerm && !noTTY && !noStdin {
		req.TTY = true
		resize := make(chan orchestrator.TermSize, 1)
		current := func() (orchestrator.TermSize, bool) {
			w, h, err := term.GetSize(out)
			return orchestrator.TermSize{Cols: uint16(w), Rows: uint16(h)}, err == nil && w > 0 && h > 0
		}
		if size, ok := current(); ok {
			req.Size = &size
		}
		winch := make(chan os.Signal, 1)
		signal.Notify(winch, syscall.SIGWINCH)
		done := make(chan struct{})
		defer func() { signal.Stop(winch); close(done) }()
		go func() {
			for {
				select {
				case <-winch:
					if size, ok := current(); ok {
						select {
						case resize <- size:
						case <-done:
							return
						}
					}
				case <-done:
					return
				}
			}
		}()
		streams.Resize = resize
		if t := c.getenv("TERM"); t != "" {
			req.Env = append([]string{"TERM=" + t}, req.Env...)
		}
		// Raw only once the daemon has taken the request: until then Ctrl-C is an interrupt. An interrupt, which now comes
		// from elsewhere, ends it at once, since the second one leaves without coming back here.
		restore := func() {}
		defer func() { restore() }()
		streams.Begin = func() error {
			before, err := term.MakeRaw(in)
			if err != nil {
				return fmt.Errorf("terminal: %w", err)
			}
			restore = sync.OnceFunc(func() {
				if err := term.Restore(in, before); err != nil {
					c.note("berth: terminal: %v", err)
				}
			})
			context.AfterFunc(ctx, restore)
			return nil
		}
	}
	code, err := cl.Exec(ctx, name, req, streams)
	if err != nil {
		if ctx.Err() != nil {
			return exitError(130) // as shells report an interrupt
		}
		return err
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}
