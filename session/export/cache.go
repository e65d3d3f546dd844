package export

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"berth/internal/rmtree"
	"berth/orchestrator"
	"berth/profiles"
	"berth/session/autostart"
)

// version is a part of every key: it changes when Write makes something else of the same image.
const version = "1"

// Cache keeps exports below a directory. It is safe for concurrent use within one process.
type Cache struct {
	Dir    string // made when something is put into it
	Images orchestrator.Images
	Inside string // where components see the exports: /run/berth/exports
	Log    *slog.Logger

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by key
}

// Export returns the directory with what the image ref shows to others, which is made if it is not there, and its report.
func (c *Cache) Export(ctx context.Context, ref string, app profiles.App) (string, Report, error) {
	dir, report, err := c.get(ctx, ref, append([]string{"share", app.Component}, app.Export...), func(root fs.FS, tmp string) (Report, error) {
		return Write(root, tmp, Options{Component: app.Component, Patterns: app.Export, Dir: path.Join(c.Inside, app.Component)})
	})
	if err != nil {
		return "", Report{}, fmt.Errorf("exports of image %q: %w", ref, err)
	}
	return dir, report, nil
}

// Autostart returns the autostart entries of the image ref.
func (c *Cache) Autostart(ctx context.Context, ref string) ([]autostart.Entry, error) {
	_, report, err := c.get(ctx, ref, []string{"autostart"}, func(root fs.FS, _ string) (r Report, err error) {
		r.Autostart, err = autostart.Entries(root)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("autostart entries of image %q: %w", ref, err)
	}
	return report.Autostart, nil
}

// get returns what make has made of an image, now or earlier. what is a part of the key.
func (c *Cache) get(ctx context.Context, ref string, what []string, make func(root fs.FS, dir string) (Report, error)) (string, Report, error) {
	img, err := c.Images.Get(ctx, ref)
	if err != nil {
		return "", Report{}, err
	}
	h := sha256.Sum256([]byte(strings.Join(append([]string{version, img.Digest}, what...), "\x00")))
	key := hex.EncodeToString(h[:10])
	c.mu.Lock()
	if c.locks == nil {
		c.locks = map[string]*sync.Mutex{}
	}
	lock := c.locks[key]
	if lock == nil {
		lock = &sync.Mutex{}
		c.locks[key] = lock
	}
	c.mu.Unlock()
	lock.Lock()
	defer lock.Unlock()

	dir := filepath.Join(c.Dir, key)
	report, err := readReport(dir)
	if err == nil {
		return dir, report, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", Report{}, err
	}
	if report, err = c.make(ctx, ref, img.Digest, dir, make); err != nil {
		return "", Report{}, err
	}
	for _, s := range report.Skipped {
		c.Log.Warn("not shown to other images", "image", ref, "file", s.File, "why", s.Why)
	}
	return dir, report, nil
}

// make writes into a directory beside dir and renames it.
func (c *Cache) make(ctx context.Context, ref, digest, dir string, write func(root fs.FS, dir string) (Report, error)) (report Report, err error) {
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		return Report{}, err
	}
	tmp, err := os.MkdirTemp(c.Dir, partial)
	if err != nil {
		return Report{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, rmtree.Remove(tmp))
		}
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return Report{}, err
	}
	err = c.Images.View(ctx, ref, func(root fs.FS) error {
		report, err = write(root, tmp)
		return err
	})
	if err != nil {
		return Report{}, err
	}
	report.Digest = digest
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return Report{}, err
	}
	if err := os.WriteFile(filepath.Join(tmp, reportFile), data, 0o644); err != nil {
		return Report{}, err
	}
	return report, os.Rename(tmp, dir)
}

const (
	partial    = ".partial-"
	reportFile = "report.json"
)

func readReport(dir string) (r Report, err error) {
	data, err := os.ReadFile(filepath.Join(dir, reportFile))
	if err != nil {
		return Report{}, err
	}
	return r, json.Unmarshal(data, &r)
}

// Prune removes the exports of images that are not in the store any more, but for those that used says are in use. Nothing may
// be exported meanwhile.
func (c *Cache) Prune(ctx context.Context, used func(dir string) bool) error {
	entries, err := os.ReadDir(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("exports: %w", err)
	}
	images, err := c.Images.List(ctx)
	if err != nil {
		return fmt.Errorf("exports: %w", err)
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(c.Dir, e.Name())
		report, err := readReport(dir)
		if err == nil && slices.ContainsFunc(images, func(i orchestrator.Image) bool { return i.Digest == report.Digest }) || used(dir) {
			continue
		}
		if err := rmtree.Remove(dir); err != nil {
			errs = append(errs, fmt.Errorf("exports: %w", err))
		}
	}
	return errors.Join(errs...)
}
