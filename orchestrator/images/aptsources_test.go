package images

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	"berth/orchestrator"

	"github.com/google/go-cmp/cmp"
)

func TestParseSources(t *testing.T) {
	for _, tt := range []struct {
		name, file, in string
		want           []aptSource
	}{
		{"one_line", "a.list", "# comment\n\ndeb http://m.invalid/debian bookworm main contrib # end\ndeb-src http://m.invalid/debian bookworm main\n", []aptSource{
			{URIs: []string{"http://m.invalid/debian"}, Suites: []string{"bookworm"}, Components: []string{"main", "contrib"}},
		}},
		{"one_line_options", "a.list", "deb [ arch=amd64 signed-by=/k.gpg Check-Valid-Until=no trusted=yes ]\thttp://m.invalid/d\ttrixie  main", []aptSource{{
			URIs: []string{"http://m.invalid/d"}, Suites: []string{"trixie"}, Components: []string{"main"}, SignedBy: "/k.gpg",
			Options: map[string]string{"check-valid-until": "no", "trusted": "yes"},
		}}},
		{"disc", "a.list", "deb cdrom:[Debian 12 _Bookworm_ - NETINST]/ bookworm main\n", nil},
		{"flat", "a.list", "deb http://m.invalid/x ./\n", []aptSource{{URIs: []string{"http://m.invalid/x"}, Suites: []string{"./"}, Components: []string{}}}},
		{"deb822", "a.sources", strings.Join([]string{
			"# mirrors", "Types: deb deb-src", "URIs: http://m.invalid/debian", "# between", " http://n.invalid/debian",
			"Suites: bookworm bookworm-updates", "Components: main", "Signed-By:", " -----BEGIN PGP PUBLIC KEY BLOCK-----", " .", " mQ==",
			" -----END PGP PUBLIC KEY BLOCK-----", "", "", "Types: deb", "Enabled: no", "URIs: http://o.invalid", "Suites: x", "",
			"types: deb-src", "uris: http://p.invalid", "suites: x", "",
		}, "\n"), []aptSource{{
			URIs: []string{"http://m.invalid/debian", "http://n.invalid/debian"}, Suites: []string{"bookworm", "bookworm-updates"},
			Components: []string{"main"},
			SignedBy:   "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==\n -----END PGP PUBLIC KEY BLOCK-----",
		}}},
		{"deb822_by_content", "images.sources.text", "Types: deb\nURIs: http://m.invalid\nSuites: trixie\nComponents: main\n", []aptSource{
			{URIs: []string{"http://m.invalid"}, Suites: []string{"trixie"}, Components: []string{"main"}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseSources(tt.file, []byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("parseSources (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseSourcesErrors(t *testing.T) {
	for _, tt := range []struct{ file, in, want string }{
		{"a.list", "deb http://m.invalid bookworm main\nrpm x y z\n", `"a.list": line 2`},
		{"a.list", "deb [signed-by=/x http://m.invalid bookworm main", "closing ]"},
		{"a.list", "deb [x] http://m.invalid bookworm main", "lacks a value"},
		{"a.list", "deb http://m.invalid", "want `deb uri suite"},
		{"a.list", "deb http://m.invalid bookworm", "lacks a component"},
		{"a.sources", " continued", "continuation of no field"},
		{"a.sources", "Types: deb\nnonsense\n", "line 2"},
		{"a.sources", "\n\nTypes: deb\nURIs: http://m.invalid\n", "line 3"},
	} {
		_, err := parseSources(tt.file, []byte(tt.in))
		if !errors.Is(err, orchestrator.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("parseSources(%q): error %v, want ErrInvalid with %q", tt.in, err, tt.want)
		}
	}
}

// host is the sources of a host with third parties among them.
var host = fstest.MapFS{
	"etc/apt/sources.list.d/debian.sources": {Data: []byte(`Types: deb
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main non-free-firmware

Types: deb
URIs: https://sec.invalid/debian-security
Suites: bookworm-security
Components: main
Check-Valid-Until: no
Signed-By: /usr/share/keyrings/debian-archive-bookworm-security-automatic.gpg
`)},
	"etc/apt/mirrors/debian.list":                                     {Data: []byte("# ours\nhttp://one.invalid/debian\tpriority:1\nhttp://two.invalid/debian\n")},
	"etc/apt/sources.list.d/tool.list":                                {Data: []byte("deb [signed-by=/etc/keyrings/tool.gpg] https://tool.invalid/apt bookworm main\n")},
	"etc/apt/sources.list.d/other.list":                               {Data: []byte("deb https://other.invalid/debian bookworm main\n")},
	"etc/apt/sources.list.d/suite.list":                               {Data: []byte("deb https://suite.invalid/debian nodistro main\n")},
	"etc/apt/sources.list.d/disc.list":                                {Data: []byte("deb file:/srv/debian bookworm main\n")},
	"etc/apt/sources.list.d/ignored.save":                             {Data: []byte("gibberish")},
	"var/lib/apt/lists/other.invalid_debian_dists_bookworm_InRelease": {Data: []byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Other\nLabel: x\n")},
	"var/lib/apt/lists/two.invalid_debian_dists_bookworm_Release":     {Data: []byte("Origin: Debian\n")},
}

func TestReleaseSources(t *testing.T) {
	all, err := hostSources(host)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := host.Sub("var/lib/apt/lists")
	if err != nil {
		t.Fatal(err)
	}
	got, err := releaseSources(all, "trixie", listsOrigin(lists))
	if err != nil {
		t.Fatal(err)
	}
	want := `Types: deb
URIs: http://one.invalid/debian
Suites: trixie
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://one.invalid/debian
Suites: trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://two.invalid/debian
Suites: trixie
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://two.invalid/debian
Suites: trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://sec.invalid/debian-security
Suites: trixie-security
Components: main
Check-Valid-Until: no
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`
	if d := cmp.Diff(want, formatDeb822(got)); d != "" {
		t.Errorf("sources for trixie (-want +got):\n%s", d)
	}
	again, err := parseSources("x.sources", []byte(formatDeb822(got)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(got, again); d != "" {
		t.Errorf("parsed again (-want +got):\n%s", d)
	}
}

func TestReleaseSourcesNone(t *testing.T) {
	for _, in := range []string{"", "deb http://archive.invalid/ubuntu noble main", "deb file:/srv/debian bookworm main"} {
		all, err := parseSources("x.list", []byte(in))
		if err != nil {
			t.Fatal(err)
		}
		_, err = releaseSources(all, "bookworm", func(string, string) string { return "" })
		if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), "images.sources") {
			t.Errorf("releaseSources(%q) = %v; want ErrUnavailable that says what to set", in, err)
		}
	}
}

// What is in a source is in every base made from it, so passwords must not be in one.
func TestReleaseSourcesWithLogin(t *testing.T) {
	for _, tt := range []struct {
		name, in, refused string
	}{
		{name: "password", in: "deb https://ann:swordfish@m.invalid/debian bookworm main", refused: "https://m.invalid/debian"},
		{name: "token", in: "deb http://swordfish@m.invalid:8080 bookworm main", refused: "http://m.invalid:8080"},
		{name: "at_in_password", in: "deb https://ann:sword@fish@m.invalid/debian/ bookworm main", refused: "https://m.invalid/debian/"},
		{name: "behind_another_method", in: "deb mirror+https://ann:swordfish@m.invalid/debian bookworm main", refused: "mirror+https://m.invalid/debian"},
		{name: "of_updates_only", refused: "https://m.invalid/debian",
			in: "deb http://m.invalid/debian bookworm main\ndeb https://ann:swordfish@m.invalid/debian bookworm-updates main"},
		{name: "at_in_path", in: "deb http://m.invalid/a@b/debian bookworm main"},
		{name: "of_somebody_else", in: "deb http://m.invalid/debian bookworm main\ndeb https://ann:swordfish@m.invalid/tools bookworm main"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, err := parseSources("x.list", []byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			got, err := releaseSources(all, "bookworm", func(uri, _ string) string {
				if strings.HasSuffix(uri, "/tools") {
					return "Somebody"
				}
				return "Debian"
			})
			if strings.Contains(formatDeb822(got), "swordfish") {
				t.Errorf("the password is in the sources:\n%s", formatDeb822(got))
			}
			if tt.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, orchestrator.ErrUnavailable) || !strings.Contains(err.Error(), " "+tt.refused+" ") || !strings.Contains(err.Error(), "images.sources") {
				t.Errorf("error %v; want ErrUnavailable that names %s and says what to do", err, tt.refused)
			}
			if err != nil && (strings.Contains(err.Error(), "fish") || strings.Contains(err.Error(), "ann")) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func FuzzParseSources(f *testing.F) {
	for name, file := range host {
		f.Add(name, string(file.Data))
	}
	f.Add("a.list", "deb [ trusted=yes ] http://m.invalid/d trixie main\n")
	f.Fuzz(func(t *testing.T, name, in string) {
		got, err := parseSources(name, []byte(in))
		if err != nil {
			if !errors.Is(err, orchestrator.ErrInvalid) {
				t.Errorf("class of %v", err)
			}
			return
		}
		// What goes into an image must come out of it the same.
		ours, err := releaseSources(got, "trixie", func(string, string) string { return "Debian" })
		if err != nil {
			return
		}
		again, err := parseSources("x.sources", []byte(formatDeb822(ours)))
		if err != nil {
			t.Fatalf("%v; text:\n%s", err, formatDeb822(ours))
		}
		if d := cmp.Diff(ours, again); d != "" {
			t.Errorf("parsed again (-want +got):\n%s", d)
		}
	})
}
