package images

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/internal/atomicfile"
	"berth/internal/revert"
	"berth/internal/rmtree"
	"berth/orchestrator"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// baseEpoch is the modification time no file of a base exceeds, and the time a base claims to be made at. Being fixed,
// it makes equal packages an equal image.
var baseEpoch = time.Date(2023, 6, 10, 0, 0, 0, 0, time.UTC)

// annotationMade is when a base was last made, in RFC 3339, in the layout's index.
const annotationMade = "berth.made"

// dpkgConfig makes a base slim: no manuals and no documentation but the licences. Translations stay, for desktops speak
// them. Nothing is synced to disk, for a build that is interrupted starts anew.
var dpkgConfig = []string{
	"force-unsafe-io",
	"path-exclude=/usr/share/doc/*",
	"path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/groff/*",
	"path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/lintian/*",
	"path-exclude=/usr/share/linda/*",
}

// baseFiles are put over a base.
var baseFiles = map[string]string{
	// Package scripts start no daemons: nothing runs in a build but the build.
	"usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
	// Packages stay in /var/cache/apt, which builds mount as a cache they share.
	"etc/apt/apt.conf.d/90berth": `Acquire::Languages "none";
Acquire::GzipIndexes "true";
APT::Keep-Downloaded-Packages "true";
Binary::apt::APT::Keep-Downloaded-Packages "true";
APT::Install-Recommends "false";
Dpkg::Use-Pty "0";
`,
}

// passedAptOptions are those of the host's apt that its mirrors may need, copied into bases.
var passedAptOptions = []string{
	"Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6",
	"Acquire::http::Pipeline-Depth",
}

// bases is the OCI layout of base images.
type bases struct {
	dir     string
	sources []aptSource // from the configuration; empty means the host's
	aptRoot fs.FS       // where etc/apt and var/lib/apt are looked for
	tool    string      // mmdebstrap
	now     func() time.Time

	mu    sync.Mutex // guards the layout's index
	locks keyLock    // one maker per release
}

// base is one base image.
type base struct {
	release string
	desc    ocispec.Descriptor
	made    time.Time
}

// ref is the name Dockerfiles know a base by.
func baseRef(release string) string { return "debian:" + release }

// get returns the base of a release; ErrNotFound if none was made.
func (b *bases) get(release string) (base, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	idx, err := b.index()
	if err != nil {
		return base{}, err
	}
	for _, m := range idx.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != baseRef(release) {
			continue
		}
		if _, err := os.Stat(b.blob(m.Digest)); err != nil {
			break // the index outlived its blobs: make it anew
		}
		made, _ := time.Parse(time.RFC3339, m.Annotations[annotationMade]) // unknown means old
		return base{release, m, made}, nil
	}
	return base{}, fmt.Errorf("base %q: %w", baseRef(release), orchestrator.ErrNotFound)
}

func (b *bases) blob(d digest.Digest) string {
	return filepath.Join(b.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// index reads the layout's index; an empty one if there is none.
func (b *bases) index() (ocispec.Index, error) {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	data, err := os.ReadFile(filepath.Join(b.dir, ocispec.ImageIndexFile))
	if isNotExist(err) {
		return idx, nil
	}
	if err != nil {
		return idx, fmt.Errorf("bases: %w", err)
	}
	if err := json.Unmarshal(data, &idx); err != nil {
		return idx, fmt.Errorf("bases %q: index: %w: %w; remove the directory to make them anew", b.dir, orchestrator.ErrInvalid, err)
	}
	return idx, nil
}

// ensure returns the base of a release and makes it if it is missing or, with maxAge > 0, older than that.
func (b *bases) ensure(ctx context.Context, release string, maxAge time.Duration, rep *reporter) (base, error) {
	if _, ok := releases[release]; !ok {
		return base{}, fmt.Errorf("base %q: %w: no such release", baseRef(release), orchestrator.ErrInvalid)
	}
	unlock, err := b.locks.lock(ctx, release)
	if err != nil {
		return base{}, err
	}
	defer unlock()
	have, err := b.get(release)
	if err == nil && (maxAge <= 0 || b.now().Sub(have.made) < maxAge) {
		return have, nil
	}
	if err != nil && !errors.Is(err, orchestrator.ErrNotFound) {
		return base{}, err
	}
	v := rep.vertex(baseRef(release), "[base] mmdebstrap "+release)
	made, err := b.make(ctx, release, v)
	v.done(err)
	return made, err
}

// make runs mmdebstrap and puts the result into the layout.
func (b *bases) make(ctx context.Context, release string, log *vertex) (_ base, err error) {
	fail := func(err error) (base, error) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return base{}, fmt.Errorf("base %q: %w", baseRef(release), err)
	}
	var undo revert.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()

	sources, err := b.sourcesOf(release)
	if err != nil {
		return base{}, err
	}
	tool, err := exec.LookPath(b.tool)
	if err != nil {
		return base{}, fmt.Errorf("base %q: %w: %w; install package mmdebstrap", baseRef(release), orchestrator.ErrUnavailable, err)
	}
	blobs := filepath.Join(b.dir, ocispec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return fail(err)
	}
	// mmdebstrap works in TMPDIR. Within the state directory it is on the disk meant for it, and a dead run's rest is
	// found by the next. Berth before it gave mmdebstrap a mount namespace may have left mounts too.
	tmp := filepath.Join(b.dir, "tmp-"+release)
	if err := errors.Join(rmtree.Unmount(tmp), rmtree.Remove(tmp)); err != nil {
		return fail(err)
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return fail(err)
	}
	undo.Add("remove "+tmp, func(context.Context) error { return rmtree.Remove(tmp) })
	overlay := filepath.Join(tmp, "overlay")
	if err := writeOverlay(overlay, sources, b.hostOptions(ctx)); err != nil {
		return fail(err)
	}

	layer := filepath.Join(tmp, "layer.tar.zst")
	desc, diffID, err := b.bootstrap(ctx, tool, release, tmp, overlay, layer, sources, log)
	if err != nil {
		return fail(err)
	}
	created := baseEpoch
	config := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"bash"},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
		History: []ocispec.History{{Created: &created, CreatedBy: "mmdebstrap --variant=minbase " + release}},
	}
	configDesc, err := b.put(config, ocispec.MediaTypeImageConfig)
	if err != nil {
		return fail(err)
	}
	manifest, err := b.put(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: configDesc, Layers: []ocispec.Descriptor{desc},
	}, ocispec.MediaTypeImageManifest)
	if err != nil {
		return fail(err)
	}
	if err := os.Rename(layer, b.blob(desc.Digest)); err != nil {
		return fail(err)
	}
	out, err := b.publish(release, manifest)
	if err != nil {
		return fail(err)
	}
	return out, nil
}

// bootstrap runs mmdebstrap, whose tar becomes the compressed layer.
func (b *bases) bootstrap(ctx context.Context, tool, release, tmp, overlay, layer string, sources []aptSource, log *vertex) (
	_ ocispec.Descriptor, diffID digest.Digest, err error,
) {
	var none ocispec.Descriptor
	args := []string{
		"--variant=minbase", "--mode=root", "--format=tar", "--skip=output/dev", "--skip=chroot/policy-rc.d", // ours stays
		"--customize-hook=rm -f \"$1\"/etc/resolv.conf \"$1\"/etc/hostname \"$1\"/etc/apt/sources.list \"$1\"/etc/apt/sources.list.d/*",
		"--customize-hook=sync-in " + overlay + " /",
		// Left by dpkg and ldconfig with contents that differ from run to run.
		"--customize-hook=rm -rf \"$1\"/var/cache/ldconfig/aux-cache \"$1\"/var/log/*.log \"$1\"/var/log/apt/* \"$1\"/var/lib/dpkg/*-old",
	}
	for _, o := range dpkgConfig {
		args = append(args, "--dpkgopt="+o)
	}
	for _, s := range sources {
		if strings.Contains(s.URIs[0], "https:") {
			args = append(args, "--include=ca-certificates")
			break
		}
	}
	// What the command is to die with is the thread that starts it, which must not end before it does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := mmdebstrap(ctx, tool, tmp, sources, append(args, release, "-", "-")...)
	tail := &tailWriter{w: log}
	cmd.Stderr = tail
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return none, "", err
	}
	f, err := os.OpenFile(layer, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return none, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := cmd.Start(); err != nil {
		return none, "", err
	}
	packed, plain := digest.Canonical.Digester(), digest.Canonical.Digester()
	count := &countWriter{}
	buf := bufio.NewWriterSize(io.MultiWriter(f, packed.Hash(), count), 1<<20)
	z, err := zstd.NewWriter(buf, zstd.WithEncoderConcurrency(1)) // one, for an output that does not depend on the machine
	if err != nil {
		return none, "", errors.Join(err, cmd.Cancel(), cmd.Wait())
	}
	_, copyErr := io.Copy(io.MultiWriter(z, plain.Hash()), bufio.NewReaderSize(stdout, 1<<20))
	if copyErr != nil {
		_ = cmd.Cancel() // nobody reads its output any more
	}
	waitErr := cmd.Wait()
	switch {
	case copyErr != nil && ctx.Err() == nil:
		return none, "", copyErr
	case waitErr != nil:
		return none, "", bootstrapError(waitErr, tail.String())
	}
	if err := errors.Join(z.Close(), buf.Flush(), f.Sync()); err != nil {
		return none, "", err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: packed.Digest(), Size: count.n}, plain.Digest(), nil
}

// Bootstrap returns the command that makes a Debian release, "bookworm", from the mirrors the host's apt uses, as bases are
// made: mmdebstrap with args, the release, and target. It works below the directory tmp; cancelling ctx lets it clean up.
// It is killed when the thread that starts it ends, to which the caller locks itself (runtime.LockOSThread).
func Bootstrap(ctx context.Context, release, target, tmp string, args ...string) (*exec.Cmd, error) {
	b := &bases{aptRoot: os.DirFS("/")}
	sources, err := b.sourcesOf(release)
	if err != nil {
		return nil, err
	}
	tool, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return nil, fmt.Errorf("base %q: %w: %w; install package mmdebstrap", baseRef(release), orchestrator.ErrUnavailable, err)
	}
	return mmdebstrap(ctx, tool, tmp, sources, slices.Concat(args, []string{release, target, "-"})...), nil
}

// mmdebstrap is the command with args, the last of which have it read sources from its standard input.
func mmdebstrap(ctx context.Context, tool, tmp string, sources []aptSource, args ...string) *exec.Cmd {
	// mmdebstrap mounts below its root, the host's /dev/shm among others, and takes that back only if nothing and nobody
	// interrupts it. In namespaces of its own the mounts are never the host's and go with its processes. The shell is
	// what a PID namespace wants as its first process: it reaps orphans, SIGTERM does not end it, and with it, or with
	// the daemon, all others end.
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", `"$@"; exit $?`, "sh", tool}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, // whose mounts Go makes private
		Setpgid: true, Pdeathsig: syscall.SIGKILL,
	}
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", baseEpoch.Unix()), "TMPDIR="+tmp, "LC_ALL=C.UTF-8")
	for k, v := range hostProxies(ctx) { // mmdebstrap does not read the host's apt.conf
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stdin = strings.NewReader(formatDeb822(sources))
	// On SIGTERM mmdebstrap removes what it made; killed at once it could not.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	return cmd
}

// bootstrapError explains what mmdebstrap said.
func bootstrapError(err error, said string) error {
	hint := ""
	switch {
	case strings.Contains(said, "NO_PUBKEY"):
		hint = "; the host's keyring lacks this release's key: upgrade package debian-archive-keyring"
	case strings.Contains(said, "No space left on device"):
		err = errors.Join(err, syscall.ENOSPC)
	case strings.Contains(said, "Could not resolve"), strings.Contains(said, "Could not connect"), strings.Contains(said, "Temporary failure"):
		hint = "; the mirror cannot be reached: check the network and apt's sources"
	case strings.Contains(said, "does not have a Release file"):
		hint = "; the mirror does not carry this release: name another in images.sources of the configuration"
	}
	return fmt.Errorf("mmdebstrap: %w%s; its last words:\n%s", err, hint, said)
}

// sourcesOf returns the sources for a release, from the configuration or the host.
func (b *bases) sourcesOf(release string) ([]aptSource, error) {
	from, origin := b.sources, func(string, string) string { return "Debian" }
	if len(from) == 0 {
		var err error
		if from, err = hostSources(b.aptRoot); err != nil {
			return nil, err
		}
		lists, err := fs.Sub(b.aptRoot, "var/lib/apt/lists")
		if err != nil {
			return nil, fmt.Errorf("apt lists: %w", err)
		}
		origin = listsOrigin(lists)
	}
	out, err := releaseSources(from, release, origin)
	if err != nil {
		return nil, err
	}
	for _, s := range out {
		if !strings.HasPrefix(s.SignedBy, "/") {
			continue
		}
		if _, err := fs.Stat(b.aptRoot, strings.TrimPrefix(s.SignedBy, "/")); err != nil {
			return nil, fmt.Errorf("base %q: %w: keyring: %w; install package debian-archive-keyring",
				baseRef(release), orchestrator.ErrUnavailable, err)
		}
	}
	return out, nil
}

// hostOptions asks the host's apt for the options its mirrors may need. Without apt there are none.
func (b *bases) hostOptions(ctx context.Context) map[string]string {
	return aptConfig(ctx, passedAptOptions)
}

// aptConfig returns the host's values of apt options; a host without apt has none.
func aptConfig(ctx context.Context, keys []string) map[string]string {
	out := map[string]string{}
	dump, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%F %v%n").Output()
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(dump)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, want := range keys {
			if strings.EqualFold(k, want) && v != "" && !strings.ContainsAny(v, "\"\n") {
				out[want] = v
			}
		}
	}
	return out
}

// proxyVars are the variables that apt and most else heed, and that BuildKit, as build arguments, passes to every step
// without making them part of its cache's key.
var proxyVars = []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"}

// hostProxies returns the host's proxies: those of the environment and, where there is none, those of apt.
func hostProxies(ctx context.Context) map[string]string {
	out := map[string]string{}
	for _, name := range proxyVars {
		for _, n := range []string{strings.ToUpper(name), name} {
			if v := os.Getenv(n); v != "" {
				out[name] = v
			}
		}
	}
	apt := aptConfig(ctx, []string{"Acquire::http::Proxy", "Acquire::https::Proxy"})
	for name, key := range map[string]string{"http_proxy": "Acquire::http::Proxy", "https_proxy": "Acquire::https::Proxy"} {
		if v := apt[key]; out[name] == "" && v != "" && v != "DIRECT" {
			out[name] = v
		}
	}
	return out
}

// writeOverlay writes the files put over a base.
func writeOverlay(dir string, sources []aptSource, options map[string]string) error {
	files := map[string]string{"etc/apt/sources.list.d/debian.sources": formatDeb822(sources)}
	for k, v := range baseFiles {
		files[k] = v
	}
	for _, k := range passedAptOptions {
		if v, ok := options[k]; ok {
			files["etc/apt/apt.conf.d/90berth"] += fmt.Sprintf("%s %q;\n", k, v)
		}
	}
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), modeOf([]byte(text))); err != nil {
			return err
		}
		if err := os.Chtimes(p, baseEpoch, baseEpoch); err != nil {
			return err
		}
	}
	return nil
}

// put writes a JSON blob.
func (b *bases) put(v any, mediaType string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, atomicfile.Write(b.blob(d.Digest), data, 0o644)
}

// publish makes manifest the base of its release and removes blobs that no base needs any more.
func (b *bases) publish(release string, manifest ocispec.Descriptor) (base, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	idx, err := b.index()
	if err != nil {
		return base{}, err
	}
	now := b.now().UTC().Truncate(time.Second)
	manifest.Platform = &ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: baseRef(release), annotationMade: now.Format(time.RFC3339)}
	kept := []ocispec.Descriptor{manifest}
	for _, m := range idx.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != baseRef(release) {
			kept = append(kept, m)
		}
	}
	idx.Manifests = kept
	data, err := json.MarshalIndent(idx, "", "  ")
	if err != nil {
		return base{}, err
	}
	version := fmt.Sprintf("{\"imageLayoutVersion\":%q}\n", ocispec.ImageLayoutVersion)
	if err := atomicfile.Write(filepath.Join(b.dir, ocispec.ImageLayoutFile), []byte(version), 0o644); err != nil {
		return base{}, err
	}
	if err := atomicfile.Write(filepath.Join(b.dir, ocispec.ImageIndexFile), data, 0o644); err != nil {
		return base{}, err
	}
	return base{release, manifest, now}, b.sweep(idx)
}

// sweep removes blobs that idx does not reach. Manifests of bases being made are not in the index yet, so blobs younger
// than a day stay.
func (b *bases) sweep(idx ocispec.Index) error {
	need := map[string]bool{}
	for _, m := range idx.Manifests {
		need[m.Digest.Encoded()] = true
		data, err := os.ReadFile(b.blob(m.Digest))
		if err != nil {
			return err
		}
		var man ocispec.Manifest
		if err := json.Unmarshal(data, &man); err != nil {
			return fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		need[man.Config.Digest.Encoded()] = true
		for _, l := range man.Layers {
			need[l.Digest.Encoded()] = true
		}
	}
	dir := filepath.Join(b.dir, ocispec.ImageBlobsDir, "sha256")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || need[e.Name()] || b.now().Sub(info.ModTime()) < 24*time.Hour {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !isNotExist(err) {
			return err
		}
	}
	return nil
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// modeOf makes scripts executable: embedded files have no mode of their own.
func modeOf(data []byte) os.FileMode {
	if strings.HasPrefix(string(data[:min(2, len(data))]), "#!") {
		return 0o755
	}
	return 0o644
}

type countWriter struct{ n int64 }

func (c *countWriter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// tailWriter passes on what is written and remembers the last lines.
type tailWriter struct {
	w     io.Writer
	mu    sync.Mutex
	lines lastLines
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.lines.add(p)
	t.mu.Unlock()
	return t.w.Write(p)
}

func (t *tailWriter) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lines.String()
}
