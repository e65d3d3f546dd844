// Command berth-systembus answers on a session's system bus. It runs in the component "system-services", from
// /run/berth/bin, and ends with 0 when the desktop has asked for the session's end.
package main

import (
	"context"
	"fmt"
	"os"

	"berth/session/systembus"
)

func main() {
	if err := systembus.Run(context.Background(), os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")); err != nil {
		fmt.Fprintln(os.Stderr, "berth-systembus:", err)
		os.Exit(1)
	}
}
