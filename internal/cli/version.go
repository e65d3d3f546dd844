package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version is the release, set by the linker (-X berth/internal/cli.Version=...).
var Version = "devel"

// BuildInfo is what `berth version --json` prints.
type BuildInfo struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	// Modules are the versions of the libraries that matter for what containers and builds do.
	Modules map[string]string `json:"modules,omitempty"`
}

func buildInfo() BuildInfo {
	out := BuildInfo{Version: Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			out.Revision = s.Value
		case "vcs.modified":
			out.Modified = s.Value == "true"
		}
	}
	for _, m := range info.Deps {
		switch m.Path {
		case "github.com/containerd/containerd/v2", "github.com/moby/buildkit":
			if out.Modules == nil {
				out.Modules = map[string]string{}
			}
			out.Modules[m.Path] = m.Version
		}
	}
	return out
}

func (c *CLI) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Show the version",
		Example:           "  berth version\n  berth version --json",
		Args:              nargs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			info := buildInfo()
			if asJSON {
				return c.printJSON(info)
			}
			line := fmt.Sprintf("berth %s %s %s", info.Version, info.Platform, info.Go)
			if info.Revision != "" {
				line += " " + info.Revision[:min(len(info.Revision), 12)]
				if info.Modified {
					line += "+"
				}
			}
			_, err := fmt.Fprintln(c.Stdout, line)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print version and libraries as JSON")
	return cmd
}
