package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/session/api"
)

func (c *CLI) lsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "ls",
		Short:             "List sessions",
		Long:              "List the sessions: root sees all, others their own.",
		Example:           "  berth ls\n  berth ls --json",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			sessions, err := cl.Sessions(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(sessions)
			}
			rows := [][]string{{"NAME", "PROFILE", "STATE", "USER", "SIZE", "WEB", "VNC", "AGE"}}
			for _, s := range sessions {
				rows = append(rows, []string{s.Name, s.Profile, s.State, s.User, dash(s.Display.Size), dash(s.Remote.Web),
					dash(s.Remote.VNC), age(c.Now().Sub(s.Created))})
			}
			return writeTable(c.Stdout, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the sessions as JSON")
	return cmd
}

func (c *CLI) showCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a session and its components",
		Example:           "  berth show work\n  berth show work --json",
		Args:              nargs(1, 1),
		ValidArgsFunction: c.completeSession(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := cl.Session(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(s)
			}
			fingerprint := ""
			if strings.HasPrefix(s.Remote.Web, "https:") {
				info, err := cl.Info(cmd.Context())
				if err != nil {
					return err
				}
				fingerprint = info.Fingerprint
			}
			return c.printSession(s, fingerprint)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the session as JSON")
	return cmd
}

// printSession prints a session for people; fingerprint is the certificate's, "" without TLS.
func (c *CLI) printSession(s api.Session, fingerprint string) error {
	state := s.State
	if s.Error != "" {
		state += ": " + s.Error
	}
	address := s.IP
	if s.NetworkError != "" {
		address = "none: " + s.NetworkError
	}
	rows := [][]string{
		{"name", s.Name}, {"id", s.ID}, {"profile", s.Profile}, {"state", state},
		{"user", fmt.Sprintf("%s (%d)", s.User, s.UID)},
		{"created", s.Created.Local().Format("2006-01-02 15:04:05")},
		{"ready", "after " + seconds(s.ReadyMS)},
		{"display", fmt.Sprintf("%s :%d, %s, %d dpi", s.Display.Server, s.Display.Number, s.Display.Size, s.Display.DPI)},
		{"audio", s.Audio.Server},
		{"bus", s.Bus.Address},
		{"web", s.Remote.Web}, {"vnc", s.Remote.VNC}, {"password", s.Remote.Password},
		{"home", s.Home}, {"address", address},
	}
	for i, row := range rows {
		rows[i] = []string{row[0], dash(row[1])}
	}
	if s.ReadyMS == 0 {
		rows[6][1] = "not yet"
	}
	if fingerprint != "" {
		web := slices.IndexFunc(rows, func(row []string) bool { return row[0] == "web" })
		rows = slices.Insert(rows, web+1, []string{"certificate", "SHA-256 " + fingerprint})
	}
	if err := writeTable(c.Stdout, rows); err != nil {
		return err
	}
	comps := [][]string{{"COMPONENT", "ROLES", "IMAGE", "STATE", "PID", "RESTARTS", "READY", "CPU", "MEMORY"}}
	for _, p := range s.Components {
		ready := "-"
		if p.ReadyMS > 0 {
			ready = seconds(p.ReadyMS)
		}
		comps = append(comps, []string{p.Name, dash(strings.Join(p.Roles, ",")), p.Image, p.State, fmt.Sprint(p.PID), fmt.Sprint(p.Restarts),
			ready, fmt.Sprintf("%.1f%%", p.CPU), size(p.Memory)})
	}
	fmt.Fprintln(c.Stdout)
	if err := writeTable(c.Stdout, comps); err != nil {
		return err
	}
	for _, p := range s.Components {
		if p.Error != "" {
			fmt.Fprintf(c.Stdout, "%s: %s\n", p.Name, p.Error)
		}
	}
	return nil
}
