package conformance

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"testing"

	"berth/orchestrator"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// images is what a store of images does without a registry.
func (s *suite) images(t *testing.T) {
	ctx := t.Context()
	im := s.Engine.Images()
	own, err := im.Get(ctx, s.Image)
	if err != nil {
		t.Fatal(err)
	}
	if own.Ref != s.Image || own.Digest == "" || own.Size <= 0 || own.Packed <= 0 || len(own.Layers) != 2 || own.Created.Year() != 2026 ||
		own.Labels["berth.conformance"] != "1" || !slices.Contains(own.Env, "FROM_IMAGE=yes") || !slices.Equal(own.Cmd, []string{"toolbox", "wait"}) {
		t.Errorf("got %+v", own)
	}
	before := s.imageNames(t)
	if !slices.Contains(before, s.Image) || !slices.IsSorted(before) {
		t.Errorf("got images %q, want %q among them, by name", before, s.Image)
	}
	s.fileIs(t, s.Image, "/etc/release", "top\n")

	const other, missing = "localhost/berth/other:1", "localhost/berth/missing:1"
	t.Cleanup(func() {
		if err := im.Remove(context.Background(), other); err != nil {
			t.Error(err)
		}
	})
	if err := im.Tag(ctx, s.Image, other); err != nil {
		t.Fatal(err)
	}
	same := func(ref string) {
		t.Helper()
		got, err := im.Get(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(own, got, cmpopts.IgnoreFields(orchestrator.Image{}, "Ref", "InUse")); diff != "" || got.Ref != ref {
			t.Errorf("image %q is not the one called %q (-want +got):\n%s", got.Ref, ref, diff)
		}
	}
	same(other)

	// Out and in again.
	var archive bytes.Buffer
	if err := im.Export(ctx, &archive, s.Image, other); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := im.Remove(ctx, other); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, s.imageNames(t)); diff != "" {
		t.Errorf("after the removal (-want +got):\n%s", diff)
	}
	same(s.Image) // which is still called so
	s.fileIs(t, s.Image, "/etc/release", "top\n")
	got, err := im.Import(ctx, bytes.NewReader(archive.Bytes()), orchestrator.TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range got {
		names = append(names, i.Ref)
	}
	slices.Sort(names)
	if want := []string{s.Image, other}; !slices.Equal(names, want) {
		t.Errorf("imported %q, want %q", names, want)
	}
	same(other)

	// What fails leaves nothing.
	before = s.imageNames(t)
	damaged := variant(t, missing, "damaged\n")
	damaged[len(damaged)/2] ^= 1 // in the program
	for what, data := range map[string][]byte{"damaged": damaged, "cut_off": damaged[:len(damaged)/2], "no_archive": []byte("hello"), "empty": nil} {
		_, err := im.Import(ctx, bytes.NewReader(data), orchestrator.TransferOptions{})
		wantClass(t, "import: "+what, err, orchestrator.ErrInvalid)
	}
	_, err = im.Get(ctx, missing)
	wantClass(t, "get of a missing image", err, orchestrator.ErrNotFound)
	_, err = im.ReadFile(ctx, missing, "/etc/release")
	wantClass(t, "file of a missing image", err, orchestrator.ErrNotFound)
	wantClass(t, "view of a missing image", im.View(ctx, missing, func(fs.FS) error { return nil }), orchestrator.ErrNotFound)
	_, err = im.ReadFile(ctx, s.Image, "/etc/missing")
	wantClass(t, "missing file", err, orchestrator.ErrNotFound)
	wantClass(t, "tag of a missing image", im.Tag(ctx, missing, other), orchestrator.ErrNotFound)
	wantClass(t, "short name", im.Tag(ctx, s.Image, "short"), orchestrator.ErrInvalid)
	wantClass(t, "export of a missing image", im.Export(ctx, &bytes.Buffer{}, missing), orchestrator.ErrNotFound)
	wantClass(t, "export of nothing", im.Export(ctx, &bytes.Buffer{}), orchestrator.ErrInvalid)
	if err := im.Remove(ctx, missing); err != nil {
		t.Errorf("removal of what is not there: %v", err)
	}
	if diff := cmp.Diff(before, s.imageNames(t)); diff != "" {
		t.Errorf("after failures (-want +got):\n%s", diff)
	}
}

func (s *suite) imageNames(t *testing.T) (names []string) {
	t.Helper()
	list, err := s.Engine.Images().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		names = append(names, i.Ref)
	}
	return names
}

func (s *suite) fileIs(t *testing.T, ref, path, want string) {
	t.Helper()
	if got, err := s.Engine.Images().ReadFile(t.Context(), ref, path); err != nil || string(got) != want {
		t.Errorf("image %q: file %q: got %q, %v, want %q", ref, path, got, err, want)
	}
}

// A view shows the image's files, and links lead nowhere else.
func (s *suite) imageView(t *testing.T) {
	errSeen := errors.New("the visitor's own")
	err := s.Engine.Images().View(t.Context(), s.Image, func(root fs.FS) error {
		for _, name := range []string{"etc/release", "etc/absolute", "etc/outside"} {
			if data, err := fs.ReadFile(root, name); err != nil || string(data) != "top\n" {
				t.Errorf("file %q: %q, %v", name, data, err)
			}
		}
		if _, err := fs.Stat(root, "etc/missing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing file: %v", err)
		}
		kinds := map[string]fs.FileMode{}
		err := fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			kinds[name] = info.Mode().Type()
			return nil
		})
		if err != nil {
			t.Errorf("walk: %v", err)
		}
		want := map[string]fs.FileMode{"bin/toolbox": 0, "bin/notexec": 0, "etc/release": 0, "etc/absolute": fs.ModeSymlink, "etc/outside": fs.ModeSymlink}
		if diff := cmp.Diff(want, kinds); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
		if to, err := fs.ReadLink(root, "etc/outside"); err != nil || path.Clean(to) != "../../../etc/release" && to != "../etc/release" {
			t.Errorf("link: %q, %v", to, err)
		}
		return errSeen
	})
	if !errors.Is(err, errSeen) {
		t.Errorf("got %v, want the visitor's error", err)
	}
}

// An image is in use as long as there is a container that was made of it, running or not.
func (s *suite) imageInUse(t *testing.T) {
	ctx := t.Context()
	im := s.Engine.Images()
	const ref = "localhost/berth/used:1"
	if err := im.Tag(ctx, s.Image, ref); err != nil {
		t.Fatal(err)
	}
	used := func(want bool) {
		t.Helper()
		got, err := im.Get(ctx, ref)
		if err != nil || got.InUse != want {
			t.Errorf("in use: got %v, %v, want %v", got.InUse, err, want)
		}
		list, err := im.List(ctx)
		if i := slices.IndexFunc(list, func(i orchestrator.Image) bool { return i.Ref == ref }); err != nil || i < 0 || list[i].InUse != want {
			t.Errorf("in use: got %+v, %v, want %v", list, err, want)
		}
	}
	used(false)
	pod := s.newPod(t)
	spec := s.spec("c", "wait")
	spec.Image = ref
	s.create(t, pod, spec)
	used(true)
	wantClass(t, "removal of an image in use", im.Remove(ctx, ref), orchestrator.ErrState)
	s.fileIs(t, ref, "/etc/release", "top\n")
	if err := s.Engine.RemoveContainer(ctx, pod, "c"); err != nil {
		t.Fatal(err)
	}
	used(false)
	if err := im.Remove(ctx, ref); err != nil {
		t.Error(err)
	}
	if _, err := im.Get(ctx, ref); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("after the removal: got %v", err)
	}
}

// A name that is given to another image, as by a build, changes nothing for the containers that are there.
func (s *suite) imageRebuilt(t *testing.T) {
	ctx := t.Context()
	im := s.Engine.Images()
	const ref = "localhost/berth/rebuilt:1"
	build := func(release string) orchestrator.Image {
		t.Helper()
		got, err := im.Import(ctx, bytes.NewReader(variant(t, ref, release)), orchestrator.TransferOptions{})
		if err != nil || len(got) != 1 || got[0].Ref != ref {
			t.Fatalf("got %+v, %v", got, err)
		}
		s.fileIs(t, ref, "/etc/release", release)
		return got[0]
	}
	old := build("old\n")
	pod := s.newPod(t)
	t.Cleanup(func() { // before the pod's
		if err := errors.Join(s.Engine.RemovePod(context.Background(), pod), im.Remove(context.Background(), ref)); err != nil {
			t.Error(err)
		}
	})
	spec := s.spec("before", "cat", "/etc/release")
	spec.Image = ref
	s.output(t, pod, spec)
	if now := build("new\n"); now.Digest == old.Digest {
		t.Fatal("the other image is the same")
	}
	// Whatever the store collects now, it is not what the container needs.
	const junk = "localhost/berth/junk:1"
	if err := im.Tag(ctx, s.Image, junk); err != nil {
		t.Fatal(err)
	}
	if err := im.Remove(ctx, junk); err != nil {
		t.Fatal(err)
	}
	s.start(t, pod, "before")
	if st := s.exited(t, pod, "before"); st.ExitCode != 0 || st.Digest != old.Digest {
		t.Errorf("started anew: got %+v, want digest %s", st, old.Digest)
	}
	if got := s.log(t, pod, "before", -1); got != "old\nold\n" {
		t.Errorf("the container read %q, want its own image's file twice", got)
	}
	spec.Name = "after"
	if got := s.output(t, pod, spec); got != "new\n" {
		t.Errorf("a new container read %q, want the new image's file", got)
	}
}
