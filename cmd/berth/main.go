// Command berth runs Linux desktops as sets of containers.
package main

import (
	"context"
	"os"

	"berth/assets"
	"berth/internal/cli"
	"berth/internal/daemon"
)

func main() {
	c := &cli.CLI{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Daemon: daemon.Run, Plan: daemon.PlanHere, Profiles: assets.Profiles}
	os.Exit(c.Run(context.Background()))
}
