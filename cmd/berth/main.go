// Command berth runs Linux desktops as sets of containers.
package main

import (
	"context"
	"os"

	"berth/internal/cli"
)

func main() {
	c := &cli.CLI{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	os.Exit(c.Run(context.Background()))
}
