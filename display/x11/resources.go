package x11

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/xproto"
)

// maxResources is how much of RESOURCE_MANAGER is read, in bytes. Desktops put some KiB there.
const maxResources = 1 << 20

// SetResources sets X resources, "Xft.dpi", in the root window's RESOURCE_MANAGER, as xrdb -merge does: what else is there
// stays. Programs that start afterwards see them; toolkits that watch the property follow at once.
func (c *Conn) SetResources(ctx context.Context, values map[string]string) error {
	_, err := call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
		root := c.screen.Root
		// Between reading and writing nobody else may write.
		xproto.GrabServer(x)
		defer xproto.UngrabServer(x)
		r, err := xproto.GetProperty(x, false, root, xproto.AtomResourceManager, xproto.AtomString, 0, maxResources/4).Reply()
		if err != nil {
			return struct{}{}, fmt.Errorf("resources: %w", err)
		}
		if r.BytesAfter > 0 {
			return struct{}{}, fmt.Errorf("resources: more than %d bytes", maxResources)
		}
		text := []byte(mergeResources(string(r.Value), values))
		if err := xproto.ChangePropertyChecked(x, xproto.PropModeReplace, root, xproto.AtomResourceManager, xproto.AtomString, 8,
			uint32(len(text)), text).Check(); err != nil {
			return struct{}{}, fmt.Errorf("resources: %w", err)
		}
		return struct{}{}, nil
	})
	return err
}

// Resources is the text of RESOURCE_MANAGER.
func (c *Conn) Resources(ctx context.Context) (string, error) {
	return call(ctx, c, func(x *xgb.Conn) (string, error) {
		r, err := xproto.GetProperty(x, false, c.screen.Root, xproto.AtomResourceManager, xproto.AtomString, 0, maxResources/4).Reply()
		if err != nil {
			return "", fmt.Errorf("resources: %w", err)
		}
		return string(r.Value), nil
	})
}

// mergeResources replaces or adds lines "NAME:\tVALUE" (the form that xrdb writes), sorted by name where added.
func mergeResources(text string, values map[string]string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		name, _, found := strings.Cut(line, ":")
		if _, ours := values[strings.TrimSpace(name)]; found && ours {
			continue
		}
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		b.WriteString(k + ":\t" + values[k] + "\n")
	}
	return b.String()
}
