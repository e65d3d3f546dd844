package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"berth/internal/atomicfile"
	"berth/session/api"
)

func (c *CLI) shotCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:               "shot NAME",
		Short:             "Take a screenshot",
		Long:              "Write a session's screen as a PNG and print the file's name.",
		Example:           "  berth shot work\n  berth shot work -o desktop.png\n  berth shot work -o - | display",
		Args:              nargs(1, 1),
		ValidArgsFunction: c.completeSession(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, tty := terminal(c.Stdout); tty && c.isStdout(file) {
				return usagef("a picture on the terminal would only be noise; name a file or send it to a pipe")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			png, err := cl.Shot(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if file == "" {
				file = args[0] + ".png"
			}
			return c.writeResult(file, png)
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "write to `FILE`, - for stdout (default NAME.png)")
	return cmd
}

// writeResult writes data to a file and prints its name, or to stdout.
func (c *CLI) writeResult(file string, data []byte) error {
	if err := c.output(file, bytes.NewReader(data)); err != nil || c.isStdout(file) {
		return err
	}
	_, err := fmt.Fprintln(c.Stdout, file)
	return err
}

// output writes what r holds to what the user named: stdout, or a file that appears only when it is whole.
func (c *CLI) output(file string, r io.Reader) error {
	if c.isStdout(file) {
		_, err := io.Copy(c.Stdout, r)
		return err
	}
	return atomicfile.Output(file, r, 0o644)
}

// isStdout tells whether file is "-" or another name of what stdout is, such as /dev/stdout.
func (c *CLI) isStdout(file string) bool {
	if file == "-" {
		return true
	}
	f, ok := c.Stdout.(*os.File)
	if !ok {
		return false
	}
	out, err := f.Stat()
	if err != nil {
		return false
	}
	info, err := os.Stat(file)
	return err == nil && os.SameFile(out, info)
}

func (c *CLI) openCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "open [NAME]",
		Short: "Open a session in the browser",
		Long: "Open a session, or for root without a name the list of all sessions, in $BROWSER or the desktop's browser;\n" +
			"without a desktop here, print the URL. It holds the token that logs in.",
		Example:           "  berth open work\n  berth open",
		Args:              nargs(0, 1),
		ValidArgsFunction: c.completeSession(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			url, err := c.pageURL(cmd.Context(), args)
			if err != nil {
				return err
			}
			if browser := c.browser(); browser != nil {
				open := exec.CommandContext(cmd.Context(), browser[0], append(browser[1:], url)...)
				open.Env, open.Stdout, open.Stderr = c.Env, c.Stderr, c.Stderr
				if err := open.Run(); err == nil {
					return nil
				} else {
					c.note("berth: %s: %v; this is the address:", browser[0], err)
				}
			}
			_, err = fmt.Fprintln(c.Stdout, url)
			return err
		},
	}
}

// pageURL is the address of a session's page, or without a name of the list of all sessions.
func (c *CLI) pageURL(ctx context.Context, name []string) (string, error) {
	cl, err := c.client()
	if err != nil {
		return "", err
	}
	if len(name) == 0 {
		info, err := cl.Info(ctx)
		if err == nil && info.AdminURL == "" {
			err = api.WithHint(fmt.Errorf("list of all sessions: %w to others than root", api.ErrForbidden), "berth ls lists yours, and berth open NAME opens one")
		}
		return info.AdminURL, err
	}
	s, err := cl.Session(ctx, name[0])
	if err == nil && s.Remote.Web == "" {
		err = api.WithHint(fmt.Errorf("session %q: has no web address", s.Name), "berth show "+s.Name+" says how it is reached")
	}
	return s.Remote.Web, err
}

// browser is the command that opens a URL, nil where there is no screen to show it on.
func (c *CLI) browser() []string {
	if c.getenv("DISPLAY") == "" && c.getenv("WAYLAND_DISPLAY") == "" {
		return nil
	}
	// $BROWSER is a list of commands (as xdg-open and Debian's sensible-browser read it); the first that is there.
	for one := range strings.SplitSeq(c.getenv("BROWSER"), ":") {
		if words := strings.Fields(strings.ReplaceAll(one, "%s", "")); len(words) > 0 {
			if path, ok := c.lookPath(words[0]); ok {
				return append([]string{path}, words[1:]...)
			}
		}
	}
	if path, ok := c.lookPath("xdg-open"); ok {
		return []string{path}
	}
	return nil
}

// lookPath finds a program in the PATH of Env.
func (c *CLI) lookPath(name string) (string, bool) {
	if strings.Contains(name, "/") {
		return name, true
	}
	for _, dir := range filepath.SplitList(c.getenv("PATH")) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, true
		}
	}
	return "", false
}
