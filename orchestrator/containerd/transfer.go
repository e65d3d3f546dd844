package containerd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/orchestrator"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/docker/cli/cli/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
)

// Pull implements orchestrator.Images.
func (s *images) Pull(ctx context.Context, ref string, opt orchestrator.TransferOptions) (orchestrator.Image, error) {
	ctx = quiet(s.withNamespace(ctx))
	ctx, done, err := s.lease(ctx)
	if err != nil {
		return orchestrator.Image{}, err
	}
	defer done()
	resolver, err := newResolver(opt, nil)
	if err != nil {
		return orchestrator.Image{}, imageError(ref, "pull", err)
	}
	opts := []containerd.RemoteOpt{
		containerd.WithResolver(resolver),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(s.snapshotter),
	}
	watch := newWatch(opt.Progress, func(ctx context.Context, d ocispec.Descriptor) (int64, bool, error) {
		if _, err := s.client.ContentStore().Info(ctx, d.Digest); err == nil {
			return d.Size, true, nil
		}
		st, err := s.client.ContentStore().Status(ctx, remotes.MakeRefKey(ctx, d))
		if errdefs.IsNotFound(err) {
			return 0, false, nil
		}
		return st.Offset, false, err
	})
	if opt.Progress != nil {
		opts = append(opts, containerd.WithImageHandler(coreimages.HandlerFunc(
			func(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
				watch.add(d)
				return nil, nil
			})))
	}
	stop := watch.run(ctx, "downloading")
	_, err = s.client.Pull(ctx, ref, opts...)
	stop(err == nil)
	if err != nil {
		return orchestrator.Image{}, registryError(ref, "pull", opt.Anonymous, err)
	}
	return s.Get(ctx, ref)
}

// Push implements orchestrator.Images.
func (s *images) Push(ctx context.Context, ref string, opt orchestrator.TransferOptions) error {
	ctx = quiet(s.withNamespace(ctx))
	r, err := s.client.ImageService().Get(ctx, ref)
	if err != nil {
		return imageError(ref, "", err)
	}
	desc, err := s.complete(ctx, r)
	if err != nil {
		return err
	}
	tracker := docker.NewInMemoryTracker()
	opt.Anonymous = false
	resolver, err := newResolver(opt, tracker)
	if err != nil {
		return imageError(ref, "push", err)
	}
	watch := newWatch(opt.Progress, func(ctx context.Context, d ocispec.Descriptor) (int64, bool, error) {
		st, err := tracker.GetStatus(remotes.MakeRefKey(ctx, d))
		if errdefs.IsNotFound(err) {
			return 0, false, nil
		}
		return st.Offset, st.Committed, err
	})
	stop := watch.run(ctx, "uploading")
	err = s.client.Push(ctx, ref, desc,
		containerd.WithResolver(resolver),
		containerd.WithImageHandler(coreimages.HandlerFunc(func(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			watch.add(d)
			return nil, nil
		})))
	stop(err == nil)
	if err != nil {
		return registryError(ref, "push", false, err)
	}
	return nil
}

// quiet keeps containerd's client from logging what it returns as an error anyway.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// complete returns what of an image can be sent whole: its target if all of its platforms are here, else the manifest
// of this host's platform, which is all that Pull fetches.
func (s *images) complete(ctx context.Context, r coreimages.Image) (ocispec.Descriptor, error) {
	cs := s.client.ContentStore()
	if !coreimages.IsIndexType(r.Target.MediaType) {
		return r.Target, nil
	}
	_, _, _, missing, err := coreimages.Check(ctx, cs, r.Target, platforms.All)
	if err == nil && len(missing) == 0 {
		return r.Target, nil
	}
	var found ocispec.Descriptor
	best := platforms.Default()
	err = coreimages.Walk(ctx, coreimages.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if coreimages.IsIndexType(d.MediaType) {
			kids, err := coreimages.Children(ctx, cs, d)
			if errdefs.IsNotFound(err) {
				return nil, coreimages.ErrSkipDesc
			}
			return kids, err
		}
		if !coreimages.IsManifestType(d.MediaType) || d.Platform != nil && !best.Match(*d.Platform) {
			return nil, coreimages.ErrSkipDesc
		}
		if _, err := cs.Info(ctx, d.Digest); err != nil {
			return nil, coreimages.ErrSkipDesc
		}
		if found.Digest == "" || d.Platform != nil && found.Platform != nil && best.Less(*d.Platform, *found.Platform) {
			found = d
		}
		return nil, coreimages.ErrSkipDesc
	}), r.Target)
	if err != nil {
		return found, imageError(r.Name, "manifest", err)
	}
	if found.Digest == "" {
		return found, fmt.Errorf("image %q: manifest for this platform: %w", r.Name, orchestrator.ErrNotFound)
	}
	return found, nil
}

// newResolver returns a client of registries. Loopback registries, and with Insecure all, may speak plain HTTP or show
// a certificate nobody signed. Credentials are for those who are not Anonymous.
func newResolver(opt orchestrator.TransferOptions, tracker docker.StatusTracker) (remotes.Resolver, error) {
	var creds func(host string) (user, secret string, err error)
	if !opt.Anonymous {
		var err error
		if creds, err = dockerCredentials(); err != nil {
			return nil, err
		}
	}
	hosts := func(host string) ([]docker.RegistryHost, error) {
		transport := newTransport()
		var rt http.RoundTripper = transport
		if opt.Insecure || docker.IsLocalhost(host) {
			transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // what the option says
			rt = docker.NewHTTPFallback(transport)
		}
		client := &http.Client{Transport: rt}
		return docker.ConfigureDefaultRegistries(
			docker.WithClient(client),
			docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(creds))),
			docker.WithPlainHTTP(func(string) (bool, error) { return false, nil }),
		)(host)
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Tracker: tracker}), nil
}

// dockerCredentials returns what looks up credentials in the Docker config file. The file is read for every operation,
// so that a `docker login` counts at once; credential helpers named there are asked.
func dockerCredentials() (func(host string) (user, secret string, err error), error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		// Not config.Dir(), which is computed once per process.
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/root" // a service without HOME; Berth's daemon runs as root
		}
		dir = filepath.Join(home, ".docker")
	}
	cfg, err := config.Load(dir)
	if err != nil {
		return nil, fmt.Errorf("docker config %q: %w: %w", dir, orchestrator.ErrInvalid, err)
	}
	return func(host string) (string, string, error) {
		if host == "registry-1.docker.io" {
			host = "https://index.docker.io/v1/" // the key under which `docker login` files Docker Hub
		}
		a, err := cfg.GetAuthConfig(host)
		if err != nil {
			return "", "", fmt.Errorf("credentials for %q: %w", host, err)
		}
		if a.IdentityToken != "" {
			return "", a.IdentityToken, nil
		}
		return a.Username, a.Password, nil
	}, nil
}

// newTransport is http.DefaultTransport's behaviour in a value of its own.
func newTransport() *http.Transport {
	d := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext, ForceAttemptHTTP2: true, MaxIdleConns: 16,
		IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: 5 * time.Second,
	}
}

// registryError is imageError with what registries answer.
func registryError(ref, what string, anonymous bool, err error) error {
	host, _, _ := strings.Cut(ref, "/")
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden),
		errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), errors.Is(err, docker.ErrInvalidAuthorization):
		hint := fmt.Sprintf("log in with `docker login %s` as root or check the name", host)
		if anonymous {
			hint = "only root pulls with credentials, which are root's: have root run `berth image pull " + ref + "`, or check the name"
		}
		return fmt.Errorf("image %q: %s: %w: registry %q refuses: %w; %s", ref, what, orchestrator.ErrUnavailable, host, err, hint)
	case errors.As(err, &status) && status.StatusCode == http.StatusNotFound, errdefs.IsNotFound(err):
		return fmt.Errorf("image %q: %s: registry %q: %w", ref, what, host, orchestrator.ErrNotFound)
	}
	var certErr *tls.CertificateVerificationError
	if errors.As(err, &certErr) {
		return fmt.Errorf("image %q: %s: %w: %w; --insecure accepts it", ref, what, orchestrator.ErrUnavailable, err)
	}
	return imageError(ref, what, err)
}

// watch reports the progress of the blobs of a transfer.
type watch struct {
	report func(orchestrator.Progress)
	state  func(context.Context, ocispec.Descriptor) (done int64, committed bool, err error)

	mu    sync.Mutex
	blobs []ocispec.Descriptor
	seen  map[digest.Digest]bool
	last  map[digest.Digest]orchestrator.Progress
}

func newWatch(report func(orchestrator.Progress), state func(context.Context, ocispec.Descriptor) (int64, bool, error)) *watch {
	return &watch{report: report, state: state, seen: map[digest.Digest]bool{}, last: map[digest.Digest]orchestrator.Progress{}}
}

// add registers a blob.
func (w *watch) add(d ocispec.Descriptor) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.seen[d.Digest] {
		w.seen[d.Digest] = true
		w.blobs = append(w.blobs, d)
	}
}

// run reports changes several times a second until stop is called; stop reports the last state.
func (w *watch) run(ctx context.Context, verb string) (stop func(ok bool)) {
	if w.report == nil {
		return func(bool) {}
	}
	quit, idle := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(idle)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-ctx.Done():
				return
			case <-t.C:
				w.tick(ctx, verb, false)
			}
		}
	}()
	return func(ok bool) {
		close(quit)
		<-idle
		if ok {
			w.tick(ctx, verb, true)
		}
	}
}

func (w *watch) tick(ctx context.Context, verb string, finished bool) {
	w.mu.Lock()
	blobs := append([]ocispec.Descriptor(nil), w.blobs...)
	w.mu.Unlock()
	for _, d := range blobs {
		p := orchestrator.Progress{ID: d.Digest.String(), Status: "done", Done: d.Size, Total: d.Size}
		if !finished {
			n, committed, err := w.state(ctx, d)
			switch {
			case err != nil:
				continue // the next tick knows more; the transfer itself reports errors
			case committed:
			case n == 0:
				p.Status, p.Done = "waiting", 0
			default:
				p.Status, p.Done = verb, n
			}
		}
		if w.last[d.Digest] != p {
			w.last[d.Digest] = p
			w.report(p)
		}
	}
}

var _ content.Store = nsStore{}
