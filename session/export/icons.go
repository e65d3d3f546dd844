package export

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"berth/internal/desktopentry"
)

// hicolorDir is the theme that every other falls back on (Icon Theme Specification).
const hicolorDir = "usr/share/icons/hicolor"

// hicolor copies the image's whole fallback theme: not only applications have icons in it, notifications and tray icons
// name theirs when they appear. The caches stay behind, as they count only beside what they were made of.
func (w *writer) hicolor() error {
	return w.walk(hicolorDir, 3, func(name string) error {
		if !iconFile(name) && path.Base(name) != "index.theme" {
			return nil
		}
		return w.copyIcon(name, "icons/hicolor"+strings.TrimPrefix(name, hicolorDir))
	})
}

func iconFile(name string) bool {
	return slices.Contains([]string{".png", ".svg", ".svgz", ".xpm"}, path.Ext(name))
}

// copyIcon copies name to dst below share.
func (w *writer) copyIcon(name, dst string) error {
	info, err := fs.Stat(w.root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a link to nowhere
	}
	if err != nil {
		return err
	}
	if w.written[dst] || !info.Mode().IsRegular() {
		return nil
	}
	if info.Size() > maxIcon || w.icons+info.Size() > maxIcons {
		w.skip(name, "too large: an icon has at most %d MiB, and all together %d MiB", maxIcon>>20, maxIcons>>20)
		return nil
	}
	data, err := fs.ReadFile(w.root, name)
	if err != nil {
		return err
	}
	w.icons += int64(len(data))
	w.written[dst] = true
	return w.file(dst, data)
}

// icon sees to it that the icon of a group of a desktop file is found.
func (w *writer) icon(g *desktopentry.Group) error {
	name := g.Get("Icon")
	switch {
	case name == "":
		return nil
	case path.IsAbs(name): // a file, which only its own image has
		src := strings.TrimPrefix(path.Clean(name), "/")
		info, err := fs.Stat(w.root, src)
		if err != nil || !info.Mode().IsRegular() || !iconFile(src) {
			g.Delete("Icon")
			return nil
		}
		dst := "icons/berth/" + strings.ReplaceAll(src, "/", "-")
		if err := w.copyIcon(src, dst); err != nil {
			return err
		}
		if !w.written[dst] {
			g.Delete("Icon")
			return nil
		}
		return g.Set("Icon", path.Join(w.opt.Dir, "share", dst))
	case strings.Contains(name, "/"):
		g.Delete("Icon")
		return nil
	}
	for _, ext := range []string{".png", ".svg", ".xpm"} { // Icon=name.png, which the specification knew once
		name = strings.TrimSuffix(name, ext)
	}
	if w.themes == nil {
		if err := w.indexThemes(); err != nil {
			return err
		}
	}
	found := w.themes[name]
	if slices.ContainsFunc(found, func(i themeIcon) bool { return i.rank == inHicolor }) {
		return nil
	}
	// Of the theme that counts most, one of each size.
	if len(found) == 0 {
		return nil // every theme has some of the standard names
	}
	best := slices.MinFunc(found, func(a, b themeIcon) int { return a.rank - b.rank }).rank
	for _, i := range found {
		if i.rank != best {
			continue
		}
		if err := w.copyIcon(i.file, "icons/hicolor/"+i.size+"/apps/"+name+path.Ext(i.file)); err != nil {
			return err
		}
	}
	return nil
}

// themeIcon is a file of a theme.
type themeIcon struct {
	file string
	size string // "48x48", "scalable"
	rank int    // of its theme, the smallest counts most
}

const (
	inHicolor = iota
	inPixmaps
	firstTheme
)

// preferred are the themes whose icons stand for an application, if an image has several: those that desktops use by default.
var preferred = []string{"breeze", "Adwaita", "elementary", "elementary-xfce", "Papirus", "mate", "oxygen", "gnome", "Humanity"}

// indexThemes finds all icons by their names. Only directories are read.
func (w *writer) indexThemes() error {
	w.themes = map[string][]themeIcon{}
	add := func(rank int, dir string) error {
		return w.names(dir, 3, func(file string) {
			if !iconFile(file) {
				return
			}
			if size, ok := sizeOf(strings.TrimPrefix(file, dir)); ok || rank < firstTheme {
				base := strings.TrimSuffix(path.Base(file), path.Ext(file))
				w.themes[base] = append(w.themes[base], themeIcon{file: file, size: size, rank: rank})
			}
		})
	}
	if err := add(inHicolor, hicolorDir); err != nil {
		return err
	}
	entries, err := fs.ReadDir(w.root, "usr/share/icons")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for i, e := range entries {
		rank := slices.Index(preferred, e.Name())
		if rank < 0 {
			rank = len(preferred) + i
		}
		if e.IsDir() && e.Name() != "hicolor" {
			if err := add(firstTheme+rank, "usr/share/icons/"+e.Name()); err != nil {
				return err
			}
		}
	}
	// Pixmaps are in no theme: every size is this one.
	return w.names("usr/share/pixmaps", 0, func(file string) {
		if iconFile(file) {
			base := strings.TrimSuffix(path.Base(file), path.Ext(file))
			w.themes[base] = append(w.themes[base], themeIcon{file: file, size: "48x48", rank: inPixmaps})
		}
	})
}

// names is walk without a look at the files themselves; links to directories are not followed.
func (w *writer) names(dir string, deep int, visit func(name string)) error {
	entries, err := fs.ReadDir(w.root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if !e.IsDir() {
			visit(name)
		} else if deep > 0 {
			if err := w.names(name, deep-1, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// sizeOf reads the size of an icon from its path in a theme: "48x48/apps/x.png", "apps/48/x.svg", "scalable/apps/x.svg".
// Symbolic icons, which are recoloured, and those for doubled sizes do not count.
func sizeOf(file string) (string, bool) {
	size := ""
	for part := range strings.SplitSeq(path.Dir(file), "/") {
		w, h, square := strings.Cut(part, "x")
		n, err := strconv.Atoi(w)
		switch {
		case part == "symbolic" || strings.Contains(part, "@"):
			return "", false
		case part == "scalable":
			size = part
		case err == nil && n > 0 && n <= 1024 && (!square || h == w):
			size = w + "x" + w
		}
	}
	return size, size != "" && !strings.HasSuffix(strings.TrimSuffix(path.Base(file), path.Ext(file)), "-symbolic")
}
