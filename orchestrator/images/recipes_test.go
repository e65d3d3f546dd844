package images

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"berth/assets"
	"berth/internal/paths"
	"berth/orchestrator"
	"berth/orchestrator/fake"
	"berth/session/api"

	"github.com/google/go-cmp/cmp"
)

func TestParseRecipe(t *testing.T) {
	got, err := parseRecipe("x", []byte("description = \"d\"\nbases = [\"trixie\"]\nfrom = [\"y\"]\n"))
	want := recipeFile{Description: "d", Bases: []string{"trixie"}, From: []string{"y"}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("parseRecipe: %v (-want +got):\n%s", err, d)
	}
	if got, err := parseRecipe("x", nil); err != nil || len(got.Bases) != 2 {
		t.Errorf("parseRecipe of nothing = %+v, %v; want both bases", got, err)
	}
	for in, want := range map[string]string{
		"descripton = 1":                    "unknown key",
		"bases = [\"buster\"]":              "none of bookworm, trixie",
		"bases = [\"trixie\", \"trixie\"]":  "occurs twice",
		"bases = 1":                         "line 1",
		"x\n= [":                            "line",
		"from = [\"../x\"]":                 "not the name of a recipe",
		"description = \"a\x00b\"":          "NUL",
		"description = \"a\"\ndescription=": "line 2",
	} {
		_, err := parseRecipe("x", []byte(in))
		if !errors.Is(err, orchestrator.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("parseRecipe(%q): error %v, want ErrInvalid with %q", in, err, want)
		}
	}
}

func FuzzParseRecipe(f *testing.F) {
	f.Add("description = \"d\"\nbases = [\"trixie\"]\nfrom = [\"y\"]\n")
	f.Add("bases = [")
	f.Fuzz(func(t *testing.T, in string) {
		r, err := parseRecipe("x", []byte(in))
		if err != nil {
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if len(r.Bases) == 0 || slices.ContainsFunc(r.From, func(n string) bool { return strings.ContainsAny(n, "/.") }) {
			t.Errorf("parseRecipe(%q) = %+v", in, r)
		}
	})
}

// recipes for tests: c stands on b, which stands on a; a is on both releases.
func testRecipes() fstest.MapFS {
	return fstest.MapFS{
		"a/Dockerfile":  {Data: []byte("ARG BASE\nFROM ${BASE}\nCOPY f /\n")},
		"a/f":           {Data: []byte("1")},
		"b/Dockerfile":  {Data: []byte("FROM berth/a\n")},
		"b/recipe.toml": {Data: []byte("bases = [\"bookworm\"]\n")},
		"c/Dockerfile":  {Data: []byte("FROM scratch\nCOPY --from=localhost/berth/b:latest /f /\n")},
		"c/recipe.toml": {Data: []byte("bases = [\"bookworm\"]\n")},
	}
}

func bookOf(t *testing.T, tree fstest.MapFS) (*book, error) {
	t.Helper()
	r, err := loadRecipes(tree, "")
	if err != nil {
		return nil, err
	}
	return newBook(r)
}

func TestBook(t *testing.T) {
	b, err := bookOf(t, testRecipes())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a", "a-13", "b", "c"}, b.names()); d != "" {
		t.Errorf("names (-want +got):\n%s", d)
	}
	ts, err := b.closure([]string{"c", "a-13", "b"})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, x := range ts {
		order = append(order, x.name())
	}
	if d := cmp.Diff([]string{"a", "b", "c", "a-13"}, order); d != "" {
		t.Errorf("closure (-want +got):\n%s", d)
	}
	if _, err := b.closure([]string{"nope"}); !errors.Is(err, orchestrator.ErrNotFound) || !strings.Contains(err.Error(), "known are a, a-13") {
		t.Errorf("closure of an unknown name: %v", err)
	}
	if got, want := b.targets["a-13"].ref(), "localhost/berth/a-13:latest"; got != want {
		t.Errorf("ref = %q, want %q", got, want)
	}
}

func TestDigestCoversFilesAndParents(t *testing.T) {
	digests := func(tree fstest.MapFS) map[string]string {
		b, err := bookOf(t, tree)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for n, x := range b.targets {
			out[n] = x.digest
		}
		return out
	}
	before := digests(testRecipes())
	if d := cmp.Diff(before, digests(testRecipes())); d != "" {
		t.Errorf("digests are not stable:\n%s", d)
	}
	if before["a"] == before["a-13"] {
		t.Error("both releases have one digest")
	}
	tree := testRecipes()
	tree["a/f"] = &fstest.MapFile{Data: []byte("2")}
	after := digests(tree)
	for n := range before {
		if before[n] == after[n] {
			t.Errorf("digest of %s has not changed with a's file", n)
		}
	}
	tree = testRecipes()
	tree["b/recipe.toml"].Data = append(tree["b/recipe.toml"].Data, "# changed"...)
	after = digests(tree)
	if before["a"] != after["a"] || before["b"] == after["b"] || before["c"] == after["c"] {
		t.Error("a change of b must change b and c, not a")
	}
}

func TestBadRecipes(t *testing.T) {
	for _, tt := range []struct {
		name string
		tree fstest.MapFS
		want string
		is   error
	}{
		{"cycle", fstest.MapFS{"a/Dockerfile": {Data: []byte("FROM berth/b")}, "b/Dockerfile": {Data: []byte("FROM berth/a")}}, "a -> b -> a", orchestrator.ErrInvalid},
		{"unknown_parent", fstest.MapFS{"a/Dockerfile": {Data: []byte("FROM berth/zz")}}, `from "zz"`, orchestrator.ErrNotFound},
		{"no_dockerfile", fstest.MapFS{"a/recipe.toml": {}}, "Dockerfile", nil},
		{"syntax", fstest.MapFS{"a/Dockerfile": {Data: []byte("FROM x\nRUNN y\n")}}, "line 2", orchestrator.ErrInvalid},
		{"name", fstest.MapFS{"A_b/Dockerfile": {Data: []byte("FROM x")}}, "lower-case", orchestrator.ErrInvalid},
		{"release_in_name", fstest.MapFS{"a-13/Dockerfile": {Data: []byte("FROM x")}}, "-13", orchestrator.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bookOf(t, tt.tree)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %v with %q", err, tt.is, tt.want)
			}
		})
	}
}

func TestBuiltinRecipes(t *testing.T) {
	r, err := loadRecipes(assets.Images, "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBook(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range b.targets {
		if x.recipe.description == "" {
			t.Errorf("recipe %s lacks a description", x.recipe.name)
		}
	}
}

// A misspelt name of a built-in image is no image of a registry's.
func TestUnknownRecipe(t *testing.T) {
	engine := fake.New()
	if err := engine.AddImage(fake.ImageSpec{Ref: "localhost/berth/imported:latest"}); err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Layout: paths.Layout{Run: t.TempDir()}, Recipes: testRecipes(), UserRecipes: t.TempDir(), Store: engine.Connect().Images()})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"berth/aa", "berth/aa:latest", "localhost/berth/aa:latest"} {
		_, ensure := s.Ensure(t.Context(), []string{name}, api.EnsureOptions{}, nil)
		_, pull := s.Pull(t.Context(), name, orchestrator.TransferOptions{})
		for what, err := range map[string]error{"Ensure": ensure, "Pull": pull} {
			if !errors.Is(err, orchestrator.ErrNotFound) || !strings.Contains(err.Error(), `did you mean "a"? known are a, a-13`) {
				t.Errorf("%s(%s) = %v; want ErrNotFound that lists the recipes", what, name, err)
			}
		}
	}
	if _, err := s.Pull(t.Context(), "berth/a:other", orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("Pull of a recipe's other tag = %v; want ErrNotFound", err)
	}
	if _, err := s.Pull(t.Context(), "berth/a", orchestrator.TransferOptions{}); !errors.Is(err, orchestrator.ErrInvalid) || !strings.Contains(err.Error(), "berth image build") {
		t.Errorf("Pull of a recipe = %v; want ErrInvalid that says what to do", err)
	}
	refs, err := s.Ensure(t.Context(), []string{"berth/imported"}, api.EnsureOptions{}, nil)
	if err != nil || refs["berth/imported"] != "localhost/berth/imported:latest" {
		t.Errorf("Ensure of an imported image = %v, %v", refs, err)
	}
}

func TestResolve(t *testing.T) {
	b, err := bookOf(t, testRecipes())
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"a":                            "localhost/berth/a:latest",
		"a-13":                         "localhost/berth/a-13:latest",
		"berth/a":                      "localhost/berth/a:latest",
		"berth/a:latest":               "localhost/berth/a:latest",
		"localhost/berth/a-13":         "localhost/berth/a-13:latest",
		"localhost/berth/other:latest": "localhost/berth/other:latest",
		"berth/other":                  "localhost/berth/other:latest",
		"library/a":                    "docker.io/library/a:latest",
		"debian:13":                    "docker.io/library/debian:13",
		"reg.invalid/berth/a":          "reg.invalid/berth/a:latest",
	} {
		got, err := resolve(b, in)
		if err != nil || got != want {
			t.Errorf("resolve(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}
