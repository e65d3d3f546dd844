package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/diskfull"
	"berth/orchestrator"
	"berth/session/api"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/docker/cli/cli/config"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// Labels of built images.
const (
	labelRecipe = "berth.recipe"  // digest of the recipe and its parents
	labelBase   = "berth.base"    // manifest digest of the base
	labelParent = "berth.parent." // + recipe name: chain ID of the parent's layers
	labelTitle  = "org.opencontainers.image.description"
)

// Names of the content stores a build reads from through its session.
const (
	storeBases  = "berth-bases"
	storeEngine = "berth-engine"
)

// contentProvider is an engine's image store that can hand out blobs; containerd's can.
type contentProvider interface {
	ContentStore() content.Store
}

// Build implements api.Images.
func (s *Service) Build(ctx context.Context, names []string, opt api.BuildOptions, progress func(api.Build)) error {
	book, err := s.book()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("build: %w: name at least one recipe; known are %s", orchestrator.ErrInvalid, strings.Join(book.names(), ", "))
	}
	plain := make([]string, len(names))
	for i, n := range names {
		plain[i] = recipeOf(n)
	}
	forced := map[string]bool{}
	for _, n := range plain {
		forced[n] = opt.Force || opt.NoCache
	}
	targets, err := s.outdated(ctx, book, plain, forced)
	if err != nil {
		return err
	}
	rep := newReporter(progress)
	if opt.NoCache {
		// Made anew at most once a day: the mirrors do not change faster.
		for _, rel := range baseReleases(targets) {
			if _, err := s.bases.ensure(ctx, rel, s.opt.baseAge(), rep); err != nil {
				return s.diskFull(ctx, err)
			}
		}
	}
	return s.buildAll(ctx, targets, forced, opt.NoCache, rep)
}

// outdated returns the named targets that are forced or not up to date, and what has to be built for them, parents first.
// An image that is up to date does not need its parents: it may have been imported without them.
func (s *Service) outdated(ctx context.Context, b *book, names []string, forced map[string]bool) ([]*target, error) {
	all, err := b.closure(names)
	if err != nil {
		return nil, err
	}
	// Parents are asked for by each of their children.
	type answer struct {
		img orchestrator.Image
		err error
	}
	known := map[string]answer{}
	get := func(ctx context.Context, ref string) (orchestrator.Image, error) {
		a, ok := known[ref]
		if !ok {
			a.img, a.err = s.store.Get(ctx, ref)
			known[ref] = a
		}
		return a.img, a.err
	}
	stale := map[*target]bool{} // there is an image, but not of now
	build := map[*target]bool{}
	for _, t := range all {
		there, fresh, err := s.upToDate(ctx, t, get)
		if err != nil {
			return nil, err
		}
		stale[t] = there && !fresh || slices.ContainsFunc(t.parents, func(p *target) bool { return stale[p] })
		build[t] = forced[t.name()] || !fresh || stale[t]
	}
	// From the children to the parents: a parent is wanted by its own name, or for a child that is built.
	wanted := map[*target]bool{}
	for _, t := range slices.Backward(all) {
		if wanted[t] = build[t] && (wanted[t] || slices.Contains(names, t.name())); wanted[t] {
			for _, p := range t.parents {
				wanted[p] = true
			}
		}
	}
	return slices.DeleteFunc(all, func(t *target) bool { return !wanted[t] }), nil
}

// buildAll builds those targets that are forced or not up to date; parents come before children in targets.
func (s *Service) buildAll(ctx context.Context, targets []*target, forced map[string]bool, noCache bool, rep *reporter) error {
	g, ctx := errgroup.WithContext(ctx)
	done := map[*target]chan struct{}{}
	for _, t := range targets {
		done[t] = make(chan struct{})
	}
	// Builds of one release mostly wait for the package cache they share, so the processors are shared out by release.
	lanes := map[string]chan struct{}{}
	for _, t := range targets {
		lanes[t.release] = nil
	}
	for rel := range lanes {
		lanes[rel] = make(chan struct{}, max(1, runtime.NumCPU()/len(lanes)))
	}
	for _, t := range targets {
		g.Go(func() error {
			for _, p := range t.parents {
				if done[p] == nil {
					continue // it is there
				}
				select {
				case <-done[p]:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			// One build of an image at a time; who waited finds it up to date.
			unlock, err := s.building.lock(ctx, t.name())
			if err != nil {
				return err
			}
			defer unlock()
			if !forced[t.name()] {
				_, fresh, err := s.upToDate(ctx, t, s.store.Get)
				if err != nil {
					return err
				}
				if fresh {
					close(done[t])
					return nil
				}
			}
			var b base
			if t.recipe.onBase {
				if b, err = s.bases.ensure(ctx, t.release, 0, rep); err != nil {
					return s.diskFull(ctx, err)
				}
			}
			lane := lanes[t.release]
			select {
			case lane <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			defer func() { <-lane }()
			if err := s.solve(ctx, t, b, noCache && forced[t.name()], rep); err != nil {
				return err
			}
			s.event("image.built", t.ref())
			close(done[t])
			return nil
		})
	}
	return g.Wait()
}

// upToDate tells whether there is an image of a target, and whether it is what building it now would be about.
func (s *Service) upToDate(ctx context.Context, t *target, get func(context.Context, string) (orchestrator.Image, error)) (there, fresh bool, err error) {
	img, err := get(ctx, t.ref())
	if errors.Is(err, orchestrator.ErrNotFound) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	if img.Labels[labelRecipe] != t.digest {
		return true, false, nil
	}
	if t.recipe.onBase {
		b, err := s.bases.get(t.release)
		if err != nil && !errors.Is(err, orchestrator.ErrNotFound) {
			return true, false, err
		}
		if err == nil && img.Labels[labelBase] != b.desc.Digest.String() {
			return true, false, nil
		}
	}
	for _, p := range t.parents {
		parent, err := get(ctx, p.ref())
		if errors.Is(err, orchestrator.ErrNotFound) {
			continue
		}
		if err != nil {
			return true, false, err
		}
		if img.Labels[labelParent+p.recipe.name] != chainID(parent) {
			return true, false, nil
		}
	}
	return true, true, nil
}

// solve builds one target with BuildKit.
func (s *Service) solve(ctx context.Context, t *target, b base, noCache bool, rep *reporter) (err error) {
	if err := s.reserve().keep(); err != nil {
		return err
	}
	defer func() { err = s.diskFull(ctx, err) }()
	fail := func(err error) error {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("image %q: %w", t.name(), err)
	}
	bk, hangUp, err := s.buildkit(ctx)
	if err != nil {
		return fail(err)
	}
	defer hangUp()
	dir := t.recipe.dir
	if dir == "" {
		if err := os.MkdirAll(s.scratch(), 0o700); err != nil {
			return fail(err)
		}
		if dir, err = os.MkdirTemp(s.scratch(), t.name()+"-"); err != nil {
			return fail(err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := t.recipe.materialize(dir); err != nil {
			return fail(err)
		}
	}
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return fail(err)
	}
	stores := map[string]content.Store{}
	attrs := map[string]string{
		"filename":             "Dockerfile",
		"build-arg:BASE":       baseRef(t.release),
		"build-arg:RELEASE":    t.release,
		"label:" + labelRecipe: t.digest,
	}
	if t.recipe.description != "" {
		attrs["label:"+labelTitle] = t.recipe.description
	}
	if noCache {
		attrs["no-cache"] = "" // all stages
	}
	for k, v := range hostProxies(ctx) {
		attrs["build-arg:"+k] = v
	}
	if t.recipe.onBase {
		stores[storeBases] = layoutStore{s.bases.dir}
		attrs["label:"+labelBase] = b.desc.Digest.String()
		version := releases[t.release].version
		for _, name := range []string{baseRef(t.release), "debian:" + version, baseRef(t.release) + "-slim", "debian:" + version + "-slim"} {
			attrs["context:"+name] = ociContext(storeBases, b.desc.Digest)
		}
	}
	for _, p := range t.parents {
		img, err := s.store.Get(ctx, p.ref())
		if err != nil {
			return fail(fmt.Errorf("parent: %w", err))
		}
		provider, ok := s.store.(contentProvider)
		if !ok {
			return fail(fmt.Errorf("parent %q: %w: this engine's store does not lend images to builds", p.name(), orchestrator.ErrUnavailable))
		}
		stores[storeEngine] = provider.ContentStore()
		for _, name := range []string{"berth/" + p.recipe.name, "localhost/berth/" + p.recipe.name} {
			attrs["context:"+name] = ociContext(storeEngine, digest.Digest(img.Digest))
		}
		attrs["label:"+labelParent+p.recipe.name] = chainID(img)
	}
	log := newSolveLog()
	status := make(chan *bkclient.SolveStatus)
	var wg sync.WaitGroup
	wg.Go(func() {
		for st := range status {
			log.add(st)
			rep.send(t.name(), st)
		}
	})
	_, err = bk.Solve(ctx, nil, bkclient.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: attrs,
		LocalMounts:   map[string]fsutil.FS{"context": files, "dockerfile": files},
		OCIStores:     stores,
		// BuildKit keeps what it was sent under this key and asks only for files whose size or time differ, and all
		// files of a built-in recipe have one time.
		SharedKey: "berth-recipe-" + t.recipe.digest,
		Session: []session.Attachable{authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
			AuthConfigProvider: authprovider.LoadAuthConfig(config.LoadDefaultConfigFile(os.Stderr)),
		})},
		Exports: []bkclient.ExportEntry{{Type: bkclient.ExporterImage, Attrs: map[string]string{
			"name": t.ref(), "unpack": "true", "oci-mediatypes": "true",
			// Packs three times as fast as gzip and smaller; Export makes gzip of it for older Dockers.
			"compression": "zstd", "compression-level": "1",
		}}},
	}, status)
	wg.Wait()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fail(ctx.Err())
	}
	if step, output, cause := log.failed(); step != "" {
		if output != "" {
			output = "; its last output:\n" + output
		}
		return fail(fmt.Errorf("step %q: %s%s", step, cause, output))
	}
	return fail(err)
}

// diskFull explains an error that means a full disk, after it has cleaned up what the failed operation could not, for
// lack of room to write that down.
func (s *Service) diskFull(ctx context.Context, err error) error {
	if !diskfull.Is(err) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	cleanup := s.reserve().give()
	if bk, hangUp, err := s.buildkit(ctx); err != nil {
		cleanup = errors.Join(cleanup, err)
	} else {
		cleanup = errors.Join(cleanup, pruneUnfinished(ctx, bk))
		hangUp()
	}
	if p, ok := s.store.(pruner); ok {
		_, pruneErr := p.Prune(ctx)
		cleanup = errors.Join(cleanup, pruneErr)
	}
	if cleanup = errors.Join(cleanup, s.reserve().keep()); cleanup != nil {
		s.opt.Log.Warn("cleaning up after a full disk", "error", cleanup)
	}
	return diskfull.Explain(err, s.opt.Layout.State)
}

// pruneUnfinished removes the steps that did not end and files that were sent to them: all of the build cache that can
// be written to but the package caches. BuildKit lets go of a failed build's some time after it has reported the
// failure, without a word, so it is asked until it has; what other builds hold keeps this from ending sooner.
func pruneUnfinished(ctx context.Context, bk *bkclient.Client) error {
	unfinished := bkclient.WithFilter([]string{"mutable,type!=exec.cachemount"})
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for {
		held, err := bk.DiskUsage(ctx, unfinished)
		if err != nil {
			return fmt.Errorf("build cache: %w", err)
		}
		if err := bk.Prune(ctx, nil, bkclient.PruneAll, unfinished); err != nil {
			return fmt.Errorf("build cache: %w", err)
		}
		if !slices.ContainsFunc(held, func(u *bkclient.UsageInfo) bool { return u.InUse }) {
			return nil
		}
		select {
		case <-deadline.C:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// chainID identifies an image's layers. Unlike the manifest's digest it is not changed by packing them another way, as
// an export does.
func chainID(img orchestrator.Image) string {
	ids := make([]digest.Digest, len(img.Layers))
	for i, l := range img.Layers {
		ids[i] = digest.Digest(l)
	}
	return identity.ChainID(ids).String()
}

// ociContext is a named context that is an image in one of the session's stores.
func ociContext(store string, d digest.Digest) string {
	return "oci-layout://" + store + "@" + d.String()
}

// baseReleases lists the releases whose bases targets need.
func baseReleases(targets []*target) []string {
	var out []string
	for _, t := range targets {
		if t.recipe.onBase && !slices.Contains(out, t.release) {
			out = append(out, t.release)
		}
	}
	return out
}
