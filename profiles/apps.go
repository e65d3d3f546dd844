package profiles

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// defaultIdle is how long a container of applications goes on without any.
const defaultIdle = 10 * time.Minute

// apps lists the images of the tree t whose applications are shown to the others: those of [[apps]] in their order, then
// those that the desktop's own components are made from. In a session of one image there is nobody to show them to.
func apps(t *node) []App {
	var out []App
	known := func(image string) bool { return slices.ContainsFunc(out, func(a App) bool { return a.Image == image }) }
	if listed := t.get("apps"); listed.good() {
		for _, a := range listed.list {
			image := a.text("", "image")
			if image == "" || known(image) {
				continue // reported
			}
			app := App{Image: image, Export: a.strings("export"), Idle: a.duration(defaultIdle, "idle")}
			if a.get("export") == nil {
				app.Export = []string{"*"}
			}
			out = append(out, app)
		}
	}
	if comps := t.get("components"); comps.good() {
		for _, name := range comps.keys {
			c := comps.get(name)
			image := c.text("", "image")
			// What has no command only changes keys of a component that Berth contributes.
			if image == "" || c.get("command") == nil || known(image) {
				continue
			}
			if n := c.get("disable"); n.good() && n.bool {
				continue
			}
			if needs := c.get("needs"); needs.good() && !slices.Contains(c.strings("needs"), WireX11) {
				continue
			}
			out = append(out, App{Image: image, Export: []string{"*"}, Idle: defaultIdle})
		}
	}
	if len(out) < 2 {
		return nil
	}
	out = slices.DeleteFunc(out, func(a App) bool { return len(a.Export) == 0 })
	var names []string
	for i := range out {
		names = append(names, appsName(out[i].Image, names))
		out[i].Component = names[i]
	}
	return out
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// appsName makes the name of the component that runs the applications of image: "apps-gnome". A reference counts by the
// last part of its path.
func appsName(image string, taken []string) string {
	word := path.Base(image)
	word, _, _ = strings.Cut(word, "@")
	word, _, _ = strings.Cut(word, ":")
	word = strings.Trim(notName.ReplaceAllString(strings.ToLower(word), "-"), "-")
	if word == "" {
		word = "image"
	}
	name := "apps-" + strings.TrimRight(word[:min(len(word), 24)], "-")
	for n, base := 2, name; slices.Contains(taken, name); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	return name
}
