package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/assets"
	"berth/internal/paths"
	"berth/orchestrator"
	"berth/session/api"

	bkclient "github.com/moby/buildkit/client"
)

// Options configures New. Only Layout and Store are required.
type Options struct {
	Layout paths.Layout
	// Store is the engine's image store.
	Store orchestrator.Images
	// Buildkit returns the address of a running buildkitd, which it keeps running until release is called. Its containerd
	// worker must use the engine's containerd, namespace and snapshotter. private.Engine has such a method; nil means one
	// that somebody else runs at Layout.BuildkitSocket().
	Buildkit func(ctx context.Context) (address string, release func(), err error)
	// Recipes holds the built-in recipes; nil means assets.Images.
	Recipes fs.FS
	// UserRecipes is a directory of further ones, which override built-in ones of the same name; "" means the constant
	// UserRecipes. It need not exist.
	UserRecipes string
	// Sources, in the format of apt's sources files, says which mirrors bases are made from; "" means the host's apt's.
	Sources string
	// BaseAge is how old a base may be when a build without cache asks for a fresh one; 0 means a day.
	BaseAge time.Duration
	// Event is told of "image.built", "image.pulled" and "image.removed" with the image's reference; may be nil.
	Event func(what, ref string)
	// Log receives warnings; nil means slog.Default().
	Log *slog.Logger
}

func (o Options) baseAge() time.Duration {
	if o.BaseAge > 0 {
		return o.BaseAge
	}
	return 24 * time.Hour
}

// Service implements api.Images. It is safe for concurrent use.
type Service struct {
	opt      Options
	store    orchestrator.Images
	bases    *bases
	building keyLock // by target name
	builtin  func() (map[string]*recipe, error)
}

var _ api.Images = (*Service)(nil)

// New returns a service. It connects to BuildKit when something is built.
func New(opt Options) (*Service, error) {
	if opt.Buildkit == nil {
		opt.Buildkit = func(context.Context) (string, func(), error) {
			return "unix://" + opt.Layout.BuildkitSocket(), func() {}, nil
		}
	}
	if opt.Recipes == nil {
		opt.Recipes = assets.Images
	}
	if opt.UserRecipes == "" {
		opt.UserRecipes = UserRecipes
	}
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	s := &Service{opt: opt, store: opt.Store, bases: &bases{
		dir: opt.Layout.Bases(), aptRoot: os.DirFS("/"), tool: "mmdebstrap", now: time.Now,
	}}
	if opt.Sources != "" {
		var err error
		if s.bases.sources, err = parseSources("images.sources", []byte(opt.Sources)); err != nil {
			return nil, err
		}
	}
	s.builtin = sync.OnceValues(func() (map[string]*recipe, error) { return loadRecipes(opt.Recipes, "") })
	// A killed daemon's; an instance has one daemon at a time, and none builds before this returns.
	if err := os.RemoveAll(s.scratch()); err != nil {
		return nil, fmt.Errorf("recipes: %w", err)
	}
	// A mistake in a recipe of the user's is reported when images are asked for; it does not keep a daemon from starting.
	builtin, err := s.builtin()
	if err != nil {
		return nil, err
	}
	if _, err := newBook(builtin); err != nil {
		return nil, err
	}
	return s, nil
}

// buildkit starts BuildKit if need be and connects to it; done ends both.
func (s *Service) buildkit(ctx context.Context) (_ *bkclient.Client, done func(), err error) {
	address, release, err := s.opt.Buildkit(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("buildkit: %w", err)
	}
	c, err := bkclient.New(ctx, address)
	if err != nil {
		release()
		return nil, nil, fmt.Errorf("buildkit %q: %w: %w", address, orchestrator.ErrUnavailable, err)
	}
	return c, func() {
		if err := c.Close(); err != nil {
			s.opt.Log.Warn("connection to buildkit", "error", err)
		}
		release()
	}, nil
}

// book returns all recipes. Users' own are read anew every time, so that a change counts at once.
func (s *Service) book() (*book, error) {
	builtin, err := s.builtin()
	if err != nil {
		return nil, err
	}
	all := make(map[string]*recipe, len(builtin))
	for n, r := range builtin {
		all[n] = r
	}
	if _, err := os.Stat(s.opt.UserRecipes); err == nil {
		own, err := loadRecipes(os.DirFS(s.opt.UserRecipes), s.opt.UserRecipes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.opt.UserRecipes, err)
		}
		for n, r := range own {
			all[n] = r
		}
	} else if !isNotExist(err) {
		return nil, fmt.Errorf("recipes: %w", err)
	}
	return newBook(all)
}

// scratch is where built-in recipes are written for BuildKit to read.
func (s *Service) scratch() string { return filepath.Join(s.opt.Layout.Run, "recipes") }

func (s *Service) event(what, ref string) {
	if s.opt.Event != nil {
		s.opt.Event(what, ref)
	}
}

// recipeOf strips what may stand around a recipe's name.
func recipeOf(name string) string {
	n := strings.TrimPrefix(strings.TrimPrefix(name, "localhost/"), "berth/")
	if n == name && !strings.Contains(name, "/") || n != name {
		return strings.TrimSuffix(n, tag)
	}
	return name
}

// Recipes implements api.Images.
func (s *Service) Recipes() []string {
	b, err := s.book()
	if err != nil {
		s.opt.Log.Warn("recipes cannot be read", "error", err)
		return nil
	}
	return b.names()
}

// Resolve implements api.Images. A recipe's name wins over a repository of Docker Hub, which is reached as library/NAME.
func (s *Service) Resolve(name string) (string, error) {
	b, err := s.book()
	if err != nil {
		return "", err
	}
	return resolve(b, name)
}

func resolve(b *book, name string) (string, error) {
	if t, ok := b.targets[recipeOf(name)]; ok {
		return t.ref(), nil
	}
	if strings.HasPrefix(name, "berth/") {
		name = "localhost/" + name
	}
	return orchestrator.NormalizeRef(name)
}

// Ensure implements api.Images.
func (s *Service) Ensure(ctx context.Context, names []string, opt api.EnsureOptions, progress func(api.UpEvent)) (map[string]string, error) {
	b, err := s.book()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	say := func(e api.UpEvent) {
		if progress != nil {
			mu.Lock()
			defer mu.Unlock()
			progress(e)
		}
	}
	out := make(map[string]string, len(names))
	var recipes []string
	var pull []string
	for _, n := range names {
		if _, ok := out[n]; ok {
			continue
		}
		ref, err := resolve(b, n)
		if err != nil {
			return nil, err
		}
		out[n] = ref
		t, ok := b.targets[recipeOf(n)]
		if !ok {
			_, err := s.store.Get(ctx, ref)
			switch {
			case errors.Is(err, orchestrator.ErrNotFound) && strings.HasPrefix(ref, prefix):
				return nil, b.unknown(n) // no registry has it
			case errors.Is(err, orchestrator.ErrNotFound):
				pull = append(pull, ref)
			case err != nil:
				return nil, err
			}
			continue
		}
		recipes = append(recipes, t.name())
	}
	targets, err := s.outdated(ctx, b, recipes, nil)
	if err != nil {
		return nil, err
	}
	if len(targets) > 0 {
		var build []string
		for _, t := range targets {
			build = append(build, t.name())
		}
		say(api.UpEvent{Message: "building images " + strings.Join(build, ", ")})
		rep := newReporter(func(p api.Build) { say(api.UpEvent{Build: &p}) })
		if err := s.buildAll(ctx, targets, nil, false, rep); err != nil {
			return nil, err
		}
	}
	slices.Sort(pull)
	for _, ref := range slices.Compact(pull) {
		say(api.UpEvent{Message: "pulling image " + ref})
		if _, err := s.Pull(ctx, ref, orchestrator.TransferOptions{Anonymous: opt.Anonymous}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// List implements api.Images.
func (s *Service) List(ctx context.Context) ([]orchestrator.Image, error) { return s.store.List(ctx) }

// Pull implements api.Images.
func (s *Service) Pull(ctx context.Context, ref string, opt orchestrator.TransferOptions) (orchestrator.Image, error) {
	b, err := s.book()
	if err != nil {
		return orchestrator.Image{}, err
	}
	full, err := resolve(b, ref)
	if err != nil {
		return orchestrator.Image{}, err
	}
	if strings.HasPrefix(full, prefix) {
		if b.targets[recipeOf(ref)] == nil {
			return orchestrator.Image{}, b.unknown(ref)
		}
		return orchestrator.Image{}, fmt.Errorf("image %q: %w: it is built here, not pulled; use `berth image build`", ref, orchestrator.ErrInvalid)
	}
	img, err := s.store.Pull(ctx, full, opt)
	if err != nil {
		return orchestrator.Image{}, s.diskFull(ctx, err)
	}
	s.event("image.pulled", full)
	return img, nil
}

// Push implements api.Images.
func (s *Service) Push(ctx context.Context, ref string, opt orchestrator.TransferOptions) error {
	full, err := s.Resolve(ref)
	if err != nil {
		return err
	}
	if strings.HasPrefix(full, prefix) {
		return fmt.Errorf("image %q: %w: it names no registry; tag it REGISTRY/NAME first", ref, orchestrator.ErrInvalid)
	}
	return s.store.Push(ctx, full, opt)
}

// Import implements api.Images.
func (s *Service) Import(ctx context.Context, r io.Reader, opt orchestrator.TransferOptions) ([]orchestrator.Image, error) {
	imgs, err := s.store.Import(ctx, r, opt)
	return imgs, s.diskFull(ctx, err)
}

// Export implements api.Images.
func (s *Service) Export(ctx context.Context, w io.Writer, refs ...string) error {
	full := make([]string, len(refs))
	for i, r := range refs {
		var err error
		if full[i], err = s.Resolve(r); err != nil {
			return err
		}
	}
	return s.store.Export(ctx, w, full...)
}

// Tag implements api.Images.
func (s *Service) Tag(ctx context.Context, src, dst string) error {
	from, err := s.Resolve(src)
	if err != nil {
		return err
	}
	to, err := orchestrator.NormalizeRef(dst)
	if err != nil {
		return err
	}
	return s.store.Tag(ctx, from, to)
}

// Remove implements api.Images. Unlike the store's, it is ErrNotFound if there is no such image: a person asked.
func (s *Service) Remove(ctx context.Context, ref string) error {
	full, err := s.Resolve(ref)
	if err != nil {
		return err
	}
	if _, err := s.store.Get(ctx, full); err != nil {
		return err
	}
	if err := s.store.Remove(ctx, full); err != nil {
		return err
	}
	s.event("image.removed", full)
	return nil
}

// pruner is an engine's image store that can collect garbage.
type pruner interface {
	Prune(ctx context.Context) (int64, error)
	DiskUsage(ctx context.Context) (int64, error)
}

// Prune implements api.Images.
func (s *Service) Prune(ctx context.Context) (_ int64, err error) {
	b, err := s.book()
	if err != nil {
		return 0, err
	}
	// Whoever prunes is short of room, perhaps so much that it could not even be recorded what goes.
	if err := s.reserve().give(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.reserve().keep()) }()
	p, measured := s.store.(pruner)
	var before int64
	if measured {
		if before, err = p.DiskUsage(ctx); err != nil {
			return 0, err
		}
	}
	imgs, err := s.store.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, img := range imgs {
		name, ours := strings.CutPrefix(strings.TrimSuffix(img.Ref, tag), prefix)
		if !ours || img.InUse || img.Labels[labelRecipe] == "" || b.targets[name] != nil {
			continue
		}
		if err := s.store.Remove(ctx, img.Ref); err != nil && !errors.Is(err, orchestrator.ErrState) {
			return 0, err
		}
		s.event("image.removed", img.Ref)
	}
	// The store counts what is finished. What BuildKit can still write to, above all the cache of downloaded packages,
	// only BuildKit knows the size of.
	var cache int64
	bk, hangUp, err := s.buildkit(ctx)
	if err != nil {
		return 0, err
	}
	defer hangUp()
	freed := make(chan bkclient.UsageInfo)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range freed {
			if u.Mutable || !measured {
				cache += u.Size
			}
		}
	}()
	err = bk.Prune(ctx, freed)
	close(freed)
	<-done
	if err != nil {
		return 0, fmt.Errorf("build cache: %w", err)
	}
	if !measured {
		return cache, nil
	}
	if _, err := p.Prune(ctx); err != nil {
		return 0, err
	}
	after, err := p.DiskUsage(ctx)
	if err != nil {
		return 0, err
	}
	return max(before-after, 0) + cache, nil
}
