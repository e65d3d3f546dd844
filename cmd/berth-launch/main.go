// Command berth-launch runs a program in another component of the session it is called in, or, as the first process of
// such a component, runs programs for others. It lies in /run/berth/bin of every container.
package main

import (
	"os"

	"berth/session/launch"
)

func main() {
	os.Exit(launch.Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
