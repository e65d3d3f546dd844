package profiles

import (
	"bytes"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestPrint compares every form of the plans in testdata/plans with the files beside them.
func TestPrint(t *testing.T) {
	files, err := filepath.Glob("testdata/plans/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".toml"), func(t *testing.T) {
			p, err := Load(file, nil)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := Build(p, testInfra())
			if err != nil {
				t.Fatal(err)
			}
			for _, form := range []struct {
				suffix string
				write  func(io.Writer) error
			}{{".txt", plan.Text}, {".graph.txt", plan.Graph}, {".svg", plan.SVG}, {".full.toml.txt", p.TOML}} {
				var got bytes.Buffer
				if err := form.write(&got); err != nil {
					t.Fatal(err)
				}
				golden := strings.TrimSuffix(file, ".toml") + form.suffix
				if *update {
					if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
					continue
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got.String()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", golden, diff)
				}
				if form.suffix == ".svg" {
					wellFormed(t, got.Bytes())
				}
			}
		})
	}
}

func wellFormed(t *testing.T, svg []byte) {
	t.Helper()
	dec := xml.NewDecoder(bytes.NewReader(svg))
	for {
		_, err := dec.Token()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("SVG: %v", err)
		}
	}
}

// TestSVGOfNothing: a plan without components is a picture, too.
func TestSVGOfNothing(t *testing.T) {
	var b bytes.Buffer
	if err := (&Plan{Profile: "<none>"}).SVG(&b); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.Bytes())
	if s := b.String(); strings.Contains(s, "NaN") || strings.Contains(s, "Inf") {
		t.Errorf("SVG has no numbers: %s", s)
	}
}

// TestLayout: no two boxes of a plan with many waits overlap, and every wait goes from left to right.
func TestLayout(t *testing.T) {
	plan := &Plan{}
	for i := range 40 {
		c := Component{Name: "c" + string(rune('A'+i)), Image: "x"}
		for _, back := range []int{3, 7, 12} {
			if i%back == 1 && i >= back {
				c.After = append(c.After, plan.Components[i-back].Name)
			}
		}
		plan.Components = append(plan.Components, c)
	}
	d := layOut(plan)
	for _, layer := range d.layers {
		for i := 1; i < len(layer); i++ {
			if gap := layer[i].y - layer[i-1].y; gap < separation(layer[i-1], layer[i])-1 {
				t.Errorf("layer %d: neighbours are %v apart", layer[i].layer, gap)
			}
		}
	}
	for _, line := range d.lines {
		for i := 1; i < len(line); i++ {
			if line[i].x < line[i-1].x+line[i-1].width {
				t.Errorf("a line goes back at %v", line[i].x)
			}
		}
	}
}

// TestTOMLRoundTrip: what TOML writes loads to the same plan.
func TestTOMLRoundTrip(t *testing.T) {
	set := []string{"env.X=\"a\\\"b\\\\c\\n\\t\"", "look.scale=2", "components.wm.files.'/etc/x y'='1'", "apps=[{image='a'}]", "limits.memory=1.5GiB"}
	p, err := LoadText("test.toml", []byte("extends = \"base\"\n"), testSources(), set...)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := p.TOML(&b); err != nil {
		t.Fatal(err)
	}
	again, err := LoadText("other.toml", b.Bytes(), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	want, err := Build(p, testInfra())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Build(again, testInfra())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
