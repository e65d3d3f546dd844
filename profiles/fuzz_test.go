package profiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// FuzzLoad: no input may make loading panic, every error has a place inside the text, and what loads is TOML to
// go-toml's own decoder, too.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/check/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		in, _, _ := strings.Cut(string(data), separator)
		f.Add(in, "display.size=1x1")
	}
	f.Add("extends = \"base\"\n[components.wm]\nenv = {A.B = 1, A.C = [{}, [1]]}\r\n", "a.'b'.\"c\"=[1,#\n2]")
	f.Fuzz(func(t *testing.T, text, set string) {
		plan, err := ResolveText("fuzz.toml", []byte(text), testSources(), []string{set}, func(*Profile) ([]Component, error) { return testInfra(), nil })
		if err == nil {
			if plan == nil {
				t.Fatal("neither plan nor error")
			}
			var doc map[string]any
			if err := toml.Unmarshal([]byte(strings.TrimPrefix(text, "\xef\xbb\xbf")), &doc); err != nil {
				t.Fatalf("accepted what go-toml refuses: %v", err)
			}
			return
		}
		var errs Errors
		if !errors.As(err, &errs) || len(errs) == 0 {
			t.Fatalf("error %T without Errors: %v", err, err)
		}
		lines := strings.Count(text, "\n") + 1
		for _, e := range errs {
			if e.Message == "" || e.File == "fuzz.toml" && e.Line > lines {
				t.Fatalf("error without place: %+v", e)
			}
		}
		if len(err.Error()) == 0 {
			t.Fatal("empty text")
		}
	})
}

// FuzzValues: what is accepted is printed so that it is accepted again, as the same.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"1920x1080", "4GiB", "1.5MiB", "123", "bus:org.a.B", "socket:/x", "exec:true", "dock", "bus"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParseProbe(s); err == nil && p.String() != s {
			t.Errorf("probe %q is printed as %q", s, p)
		}
		if w, h, err := ParseSize(s); err == nil && (w < 320 || h < 200 || w > 8192 || h > 8192) {
			t.Errorf("size %q is %dx%d", s, w, h)
		}
		if n, err := ParseBytes(s); err == nil {
			if again, err := ParseBytes(formatBytes(n)); err != nil || again != n {
				t.Errorf("amount %q is %d, printed %q, read as %d, %v", s, n, formatBytes(n), again, err)
			}
		}
	})
}
