package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
)

// TestDocs holds docs/cli.md, which is made from the commands, against them.
func TestDocs(t *testing.T) {
	var doc strings.Builder
	doc.WriteString("# The command line\n\nMade from the commands' own help by `go test ./internal/cli -update`; do not edit.\n\n" +
		"Results go to stdout, everything else to stderr. `--json` prints one document, to which fields are only ever added.\n" +
		"The exit code is 0 for done, 1 for failed, 2 for wrong usage; `exec` passes on its command's.\n")
	for _, cmd := range commands(t) {
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		var out bytes.Buffer
		c := &CLI{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, Env: []string{}}
		if code := c.Run(context.Background()); code != 0 {
			t.Errorf("berth %v = %d", args, code)
		}
		fmt.Fprintf(&doc, "\n## %s\n\n```\n%s\n```\n", cmd.CommandPath(), strings.TrimSpace(out.String()))
	}
	golden(t, "../../../docs/cli.md", doc.String())
}
