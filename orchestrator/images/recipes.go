package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"berth/assets"
	"berth/orchestrator"
	"berth/profiles"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/pelletier/go-toml/v2"
)

// prefix is what the names of recipes' images begin with in the store; tag ends them.
const (
	prefix = "localhost/berth/"
	tag    = ":latest"
)

// maxContext bounds a recipe's files. They are read whole to make its digest.
const maxContext = 256 << 20

var recipeName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// recipe is one directory of recipes.
type recipe struct {
	name        string
	description string
	bases       []string // releases
	from        []string // recipes
	onBase      bool     // a stage of the Dockerfile starts from the base
	files       fs.FS    // rooted at the recipe
	dir         string   // where files is on disk, "" if embedded
	digest      string   // of the files alone
}

// recipeFile is recipe.toml.
type recipeFile struct {
	Description string   `toml:"description"`
	Bases       []string `toml:"bases"`
	From        []string `toml:"from"`
}

// parseRecipe parses recipe.toml strictly.
func parseRecipe(name string, data []byte) (recipeFile, error) {
	var f recipeFile
	bad := func(err error) (recipeFile, error) {
		return recipeFile{}, fmt.Errorf("recipe %q: recipe.toml: %w: %w", name, orchestrator.ErrInvalid, err)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return bad(errors.New("holds a NUL byte"))
	}
	d := toml.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		var strict *toml.StrictMissingError
		var where *toml.DecodeError
		switch {
		case errors.As(err, &strict):
			return bad(fmt.Errorf("unknown key (known are description, bases, from):\n%s", strict.String()))
		case errors.As(err, &where):
			line, col := where.Position()
			return bad(fmt.Errorf("line %d, column %d: %w", line, col, err))
		}
		return bad(err)
	}
	if len(f.Bases) == 0 {
		f.Bases = []string{"bookworm", "trixie"}
	}
	for i, b := range f.Bases {
		if _, ok := releases[b]; !ok {
			return bad(fmt.Errorf("base %q is none of bookworm, trixie", b))
		}
		if slices.Contains(f.Bases[:i], b) {
			return bad(fmt.Errorf("base %q occurs twice", b))
		}
	}
	for _, n := range f.From {
		if !recipeName.MatchString(n) {
			return bad(fmt.Errorf("from %q is not the name of a recipe", n))
		}
	}
	return f, nil
}

// loadRecipes reads every recipe of tree; dir is where tree lies on disk, "" if embedded.
func loadRecipes(tree fs.FS, dir string) (map[string]*recipe, error) {
	entries, err := fs.ReadDir(tree, ".")
	if err != nil {
		return nil, fmt.Errorf("recipes: %w", err)
	}
	out := map[string]*recipe{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := loadRecipe(tree, dir, e.Name())
		if err != nil {
			return nil, err
		}
		out[r.name] = r
	}
	return out, nil
}

// UserRecipes is where recipes of the host's own lie.
const UserRecipes = "/etc/berth/images"

// RecipeNames lists what can be built, from the built-in recipes and those below UserRecipes, without reading more than
// the recipe.toml of each. A recipe with a mistake in it counts for all bases: the mistake is reported when it is built.
func RecipeNames() []string {
	var out []string
	for _, tree := range []fs.FS{assets.Images, os.DirFS(UserRecipes)} {
		entries, err := fs.ReadDir(tree, ".")
		if err != nil {
			continue // there are none
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			data, _ := fs.ReadFile(tree, e.Name()+"/recipe.toml") // a recipe can do without
			f, err := parseRecipe(e.Name(), data)
			if err != nil {
				f.Bases = slices.Sorted(maps.Keys(releases))
			}
			for _, b := range f.Bases {
				out = append(out, e.Name()+releases[b].suffix)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func loadRecipe(tree fs.FS, dir, name string) (*recipe, error) {
	if !recipeName.MatchString(name) || strings.HasSuffix(name, releases["trixie"].suffix) {
		return nil, fmt.Errorf("recipe %q: %w name: want lower-case words joined by -, not ending in %s", name, orchestrator.ErrInvalid,
			releases["trixie"].suffix)
	}
	files, err := fs.Sub(tree, name)
	if err != nil {
		return nil, fmt.Errorf("recipe %q: %w", name, err)
	}
	data, err := fs.ReadFile(files, "recipe.toml")
	if err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("recipe %q: %w", name, err)
	}
	meta, err := parseRecipe(name, data)
	if err != nil {
		return nil, err
	}
	docker, err := fs.ReadFile(files, "Dockerfile")
	if err != nil {
		return nil, fmt.Errorf("recipe %q: %w", name, err)
	}
	named, onBase, err := dockerfileParents(name, docker)
	if err != nil {
		return nil, err
	}
	r := &recipe{name: name, description: meta.Description, bases: meta.Bases, from: meta.From, onBase: onBase, files: files}
	for _, n := range named {
		if !slices.Contains(r.from, n) {
			r.from = append(r.from, n)
		}
	}
	if dir != "" {
		r.dir = filepath.Join(dir, name)
	}
	if r.digest, err = treeDigest(files); err != nil {
		return nil, fmt.Errorf("recipe %q: %w", name, err)
	}
	return r, nil
}

// dockerfileParents returns the recipes that a Dockerfile's FROM and COPY --from lines name literally, and whether it may
// start from the base: by its name or by an argument.
func dockerfileParents(name string, data []byte) (parents []string, onBase bool, err error) {
	tree, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return nil, false, fmt.Errorf("recipe %q: Dockerfile: %w: %w", name, orchestrator.ErrInvalid, err)
	}
	stages, _, err := instructions.Parse(tree.AST, nil)
	if err != nil {
		return nil, false, fmt.Errorf("recipe %q: Dockerfile: %w: %w", name, orchestrator.ErrInvalid, err)
	}
	add := func(ref string) {
		onBase = onBase || strings.Contains(ref, "$") || strings.HasPrefix(ref, "debian:")
		n := strings.TrimPrefix(ref, "localhost/")
		if n, ok := strings.CutPrefix(n, "berth/"); ok {
			n = strings.TrimSuffix(n, tag)
			if recipeName.MatchString(n) && !slices.Contains(parents, n) {
				parents = append(parents, n)
			}
		}
	}
	for _, s := range stages {
		add(s.BaseName)
		for _, c := range s.Commands {
			if cp, ok := c.(*instructions.CopyCommand); ok {
				add(cp.From)
			}
		}
	}
	return parents, onBase, nil
}

// treeDigest digests the names, modes and contents of all files, in order.
func treeDigest(tree fs.FS) (string, error) {
	h := sha256.New()
	var total int64
	err := fs.WalkDir(tree, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			fmt.Fprintf(h, "dir %q\n", p)
			return nil
		}
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := fs.ReadLink(tree, p)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "link %q %q\n", p, target)
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("file %q: %w: neither a regular file nor a link", p, orchestrator.ErrInvalid)
		}
		if total += info.Size(); total > maxContext {
			return fmt.Errorf("%w: files are larger than %d MiB", orchestrator.ErrInvalid, maxContext>>20)
		}
		f, err := tree.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintf(h, "file %q %v %d\n", p, info.Mode()&0o111 != 0, info.Size())
		_, err = io.Copy(h, f)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// target is one image that can be built: a recipe on a release.
type target struct {
	recipe  *recipe
	release string
	parents []*target
	digest  string // of the recipe and, through them, its parents
}

// name is what users call the image.
func (t *target) name() string { return t.recipe.name + releases[t.release].suffix }

// ref is the image's full reference.
func (t *target) ref() string { return prefix + t.name() + tag }

// book is all recipes, and what can be built from them.
type book struct {
	targets map[string]*target // by name()
}

// newBook resolves the parents of all recipes.
func newBook(recipes map[string]*recipe) (*book, error) {
	b := &book{map[string]*target{}}
	for _, r := range recipes {
		for _, rel := range r.bases {
			t := &target{recipe: r, release: rel}
			b.targets[t.name()] = t
		}
	}
	for _, t := range b.targets {
		for _, n := range t.recipe.from {
			p, ok := b.targets[n+releases[t.release].suffix]
			if !ok {
				return nil, fmt.Errorf("recipe %q: from %q: %w recipe, or it has no base %s", t.recipe.name, n, orchestrator.ErrNotFound, t.release)
			}
			t.parents = append(t.parents, p)
		}
	}
	for _, n := range b.names() {
		if err := b.targets[n].seal(nil); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// seal computes the digests of t and its parents, and finds cycles: path is how t was reached.
func (t *target) seal(path []string) error {
	if t.digest != "" {
		return nil
	}
	if slices.Contains(path, t.name()) {
		return fmt.Errorf("recipe %q: %w: stands on itself: %s", t.recipe.name, orchestrator.ErrInvalid,
			strings.Join(append(path, t.name()), " -> "))
	}
	h := sha256.New()
	// The number is the format's: raise it when the same files would be built differently.
	fmt.Fprintf(h, "berth recipe 1\n%s\n%s\n", t.release, t.recipe.digest)
	for _, p := range t.parents {
		if err := p.seal(append(path, t.name())); err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %s\n", p.name(), p.digest)
	}
	t.digest = hex.EncodeToString(h.Sum(nil))
	return nil
}

// names lists all targets.
func (b *book) names() []string {
	out := make([]string, 0, len(b.targets))
	for n := range b.targets {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// unknown is the error that name is no target's.
func (b *book) unknown(name string) error {
	hint := ""
	if near := profiles.Nearest(recipeOf(name), b.names()); near != "" {
		hint = fmt.Sprintf("did you mean %q? ", near)
	}
	return fmt.Errorf("image %q: recipe: %w; %sknown are %s", name, orchestrator.ErrNotFound, hint, strings.Join(b.names(), ", "))
}

// closure returns the named targets and everything they stand on, parents first.
func (b *book) closure(names []string) ([]*target, error) {
	var out []*target
	seen := map[*target]bool{}
	var visit func(t *target)
	visit = func(t *target) {
		if seen[t] {
			return
		}
		seen[t] = true
		for _, p := range t.parents {
			visit(p)
		}
		out = append(out, t)
	}
	for _, n := range names {
		t, ok := b.targets[n]
		if !ok {
			return nil, b.unknown(n)
		}
		visit(t)
	}
	return out, nil
}

// materialize writes a recipe's files to dir. Embedded files have neither modes nor times.
func (r *recipe) materialize(dir string) error {
	return fs.WalkDir(r.files, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(p))
		if e.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := fs.ReadFile(r.files, p)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, modeOf(data)); err != nil {
			return err
		}
		return os.Chtimes(to, baseEpoch, baseEpoch)
	})
}
