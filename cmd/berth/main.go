// Command berth runs Linux desktops as sets of containers.
package main

import "os"

func main() { os.Exit(0) }
