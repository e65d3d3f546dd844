package images

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"

	"berth/orchestrator"
)

// aptSource is one entry of apt's sources (sources.list(5)).
type aptSource struct {
	URIs       []string
	Suites     []string
	Components []string
	// SignedBy is a keyring's path, fingerprints, or a key block of several lines.
	SignedBy string
	// Options are those that decide whether a mirror is accepted: trusted, check-valid-until, check-date, allow-insecure.
	Options map[string]string
}

// keptOptions maps one-line option names to deb822 fields.
var keptOptions = map[string]string{
	"trusted": "Trusted", "check-valid-until": "Check-Valid-Until", "check-date": "Check-Date", "allow-insecure": "Allow-Insecure",
}

// debianKeyring is where package debian-archive-keyring puts Debian's keys, on the host and in every base.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// parseSources parses a sources file, in deb822 style if its name ends in .sources or a field Types is in it, else in
// one-line style. Entries that are disabled or for source packages are left out.
func parseSources(name string, data []byte) ([]aptSource, error) {
	if strings.HasSuffix(name, ".sources") || !strings.HasSuffix(name, ".list") && looksLikeDeb822(data) {
		return parseDeb822(name, data)
	}
	return parseOneLine(name, data)
}

func looksLikeDeb822(data []byte) bool {
	for line := range bytes.Lines(data) {
		if len(line) > 6 && strings.EqualFold(string(line[:6]), "types:") {
			return true
		}
	}
	return false
}

func sourceError(name string, line int, format string, args ...any) error {
	return fmt.Errorf("apt sources %q: line %d: %w: %s", name, line, orchestrator.ErrInvalid, fmt.Sprintf(format, args...))
}

// parseOneLine parses `deb [option=value...] uri suite component...`.
func parseOneLine(name string, data []byte) ([]aptSource, error) {
	var out []aptSource
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, 1<<20)
	n := 0
	for sc.Scan() {
		n++
		line, _, _ := strings.Cut(sc.Text(), "#")
		typ, rest := cutField(line)
		switch typ {
		case "", "deb-src":
			continue
		case "deb":
		default:
			return nil, sourceError(name, n, "type %q, want deb or deb-src", typ)
		}
		s := aptSource{}
		if strings.HasPrefix(rest, "[") {
			opts, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				return nil, sourceError(name, n, "options lack a closing ]")
			}
			rest = strings.TrimSpace(after)
			for _, o := range strings.Fields(opts) {
				k, v, ok := strings.Cut(o, "=")
				if !ok {
					return nil, sourceError(name, n, "option %q lacks a value", o)
				}
				s.option(strings.TrimRight(k, "+-"), v)
			}
		}
		var uri string
		if strings.HasPrefix(rest, "cdrom:[") { // a disc's label may hold blanks
			continue
		}
		uri, rest = cutField(rest)
		f := strings.Fields(rest)
		if uri == "" || len(f) == 0 {
			return nil, sourceError(name, n, "want `deb uri suite component...`")
		}
		s.URIs, s.Suites, s.Components = []string{uri}, f[:1], f[1:]
		if len(s.Components) == 0 && !strings.HasSuffix(f[0], "/") {
			return nil, sourceError(name, n, "suite %q lacks a component", f[0])
		}
		out = append(out, s)
	}
	if err := sc.Err(); err != nil {
		return nil, sourceError(name, n+1, "%v", err)
	}
	return out, nil
}

func cutField(s string) (field, rest string) {
	s = strings.TrimSpace(s)
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimSpace(s[i:])
}

func (s *aptSource) option(key, value string) {
	key = strings.ToLower(key)
	if key == "signed-by" {
		s.SignedBy = value
		return
	}
	if _, ok := keptOptions[key]; ok {
		if s.Options == nil {
			s.Options = map[string]string{}
		}
		s.Options[key] = value
	}
}

// parseDeb822 parses stanzas of fields (deb822(5)).
func parseDeb822(name string, data []byte) ([]aptSource, error) {
	var out []aptSource
	fields := map[string]string{}
	last, start := "", 0
	flush := func() error {
		defer func() { fields, last = map[string]string{}, "" }()
		if len(fields) == 0 {
			return nil
		}
		if no(fields["enabled"]) || !slices.Contains(strings.Fields(fields["types"]), "deb") {
			return nil
		}
		s := aptSource{
			URIs: strings.Fields(fields["uris"]), Suites: strings.Fields(fields["suites"]), Components: strings.Fields(fields["components"]),
		}
		if len(s.URIs) == 0 || len(s.Suites) == 0 {
			return sourceError(name, start, "stanza lacks URIs or Suites")
		}
		for k, v := range fields {
			s.option(k, v)
		}
		s.SignedBy = strings.TrimSpace(s.SignedBy)
		out = append(out, s)
		return nil
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, 1<<20)
	n := 0
	for sc.Scan() {
		n++
		line := strings.TrimRight(sc.Text(), " \t\r")
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			if err := flush(); err != nil {
				return nil, err
			}
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return nil, sourceError(name, n, "continuation of no field")
			}
			fields[last] += "\n" + line
		default:
			k, v, ok := strings.Cut(line, ":")
			k = strings.ToLower(strings.TrimSpace(k))
			if !ok || k == "" || strings.ContainsAny(k, " \t") {
				return nil, sourceError(name, n, "want `Field: value`, got %q", line)
			}
			if len(fields) == 0 {
				start = n
			}
			fields[k], last = strings.TrimSpace(v), k
		}
	}
	if err := sc.Err(); err != nil {
		return nil, sourceError(name, n+1, "%v", err)
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}

// no tells apt's words for false (apt.conf(5)).
func no(s string) bool {
	switch strings.ToLower(s) {
	case "no", "false", "without", "off", "disable", "0":
		return true
	}
	return false
}

// hostSources reads the sources of the apt configured below root, in apt's order.
func hostSources(root fs.FS) ([]aptSource, error) {
	names := []string{"etc/apt/sources.list"}
	more, err := fs.ReadDir(root, "etc/apt/sources.list.d")
	if err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("apt sources: %w", err)
	}
	for _, e := range more {
		if ext := path.Ext(e.Name()); ext == ".list" || ext == ".sources" {
			names = append(names, "etc/apt/sources.list.d/"+e.Name())
		}
	}
	var out []aptSource
	for _, n := range names {
		b, err := fs.ReadFile(root, n)
		if isNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("apt sources: %w", err)
		}
		s, err := parseSources("/"+n, b)
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, expandMirrorLists(root, out)
}

// expandMirrorLists replaces mirror+file: URIs, which cloud images of Debian use, by the mirrors listed there
// (apt-transport-mirror(1)): the list is a file of the host, which no build can read.
func expandMirrorLists(root fs.FS, sources []aptSource) error {
	for i := range sources {
		var uris []string
		for _, u := range sources[i].URIs {
			file, ok := strings.CutPrefix(u, "mirror+file:")
			if !ok {
				uris = append(uris, u)
				continue
			}
			name := strings.TrimPrefix(path.Clean("/"+strings.TrimLeft(file, "/")), "/")
			b, err := fs.ReadFile(root, name)
			if err != nil {
				return fmt.Errorf("apt mirror list %q: %w", "/"+name, err)
			}
			for line := range strings.Lines(string(b)) {
				line, _, _ = strings.Cut(line, "#")
				if f := strings.Fields(line); len(f) > 0 {
					uris = append(uris, f[0])
				}
			}
		}
		sources[i].URIs = uris
	}
	return nil
}

// releases are the Debian releases Berth makes bases of, by code name.
var releases = map[string]struct{ version, suffix string }{
	"bookworm": {"12", ""},
	"trixie":   {"13", "-13"},
}

// knownSuites are the names under which one of Debian's releases may stand in a sources file.
var knownSuites = []string{
	"bookworm", "trixie", "bullseye", "forky", "duke", "sid", "unstable", "testing", "stable", "oldstable", "oldoldstable",
}

// releaseSources derives release's sources from the host's: those of them that are Debian's, with the suites' release
// replaced. origin returns what the archive says of itself (field Origin of its Release file), or "" if unknown.
func releaseSources(host []aptSource, release string, origin func(uri, suite string) string) ([]aptSource, error) {
	var out []aptSource
	seen := map[string]bool{}
	skipped := []string{}
	for _, s := range host {
		t := aptSource{SignedBy: s.SignedBy, Options: s.Options}
		for _, c := range s.Components {
			switch c {
			case "main", "contrib", "non-free", "non-free-firmware":
				t.Components = append(t.Components, c)
			}
		}
		if !slices.Contains(t.Components, "main") {
			continue
		}
		for _, uri := range s.URIs {
			for _, suite := range s.Suites {
				base, suffix := splitSuite(suite)
				if !slices.Contains(knownSuites, base) || suffix != "" && suffix != "-updates" && suffix != "-security" {
					continue
				}
				if !reachable(uri) {
					skipped = append(skipped, uri)
					continue
				}
				public, secret := withoutLogin(uri)
				if !isDebian(s, public, origin(public, suite)) {
					continue
				}
				if secret {
					return nil, fmt.Errorf("base debian:%s: %w: apt's source %s has a user name or password in it, which everybody who has "+
						"an image could read; set images.sources in the configuration to a mirror without, or to a proxy that logs in",
						release, orchestrator.ErrUnavailable, public)
				}
				u := t
				u.URIs, u.Suites = []string{uri}, []string{release + suffix}
				// Debian's own keyrings go by several names, of which older releases lack some; this one all have.
				if u.SignedBy == "" || strings.Contains(u.SignedBy, "debian-archive-") {
					u.SignedBy = debianKeyring
				}
				key := uri + " " + u.Suites[0]
				if !seen[key] {
					seen[key] = true
					out = append(out, u)
				}
			}
		}
	}
	if !slices.ContainsFunc(out, func(s aptSource) bool { return s.Suites[0] == release }) {
		hint := ""
		if len(skipped) > 0 {
			hint = fmt.Sprintf(" (%s cannot be used from a build)", strings.Join(skipped, ", "))
		}
		return nil, fmt.Errorf("base debian:%s: %w: apt's sources on this host name no Debian mirror%s; "+
			"add one to /etc/apt/sources.list or set images.sources in the configuration", release, orchestrator.ErrUnavailable, hint)
	}
	return out, nil
}

// withoutLogin cuts `user:password@` out of a URI and tells whether it was there.
func withoutLogin(uri string) (string, bool) {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return uri, false
	}
	host, path, slash := strings.Cut(rest, "/")
	i := strings.LastIndexByte(host, '@')
	if i < 0 {
		return uri, false
	}
	if uri = scheme + "://" + host[i+1:]; slash {
		uri += "/" + path
	}
	return uri, true
}

// splitSuite splits "bookworm-updates" and the older form "buster/updates".
func splitSuite(s string) (base, suffix string) {
	if b, ok := strings.CutSuffix(s, "/updates"); ok {
		return b, "-security"
	}
	if i := strings.IndexByte(s, '-'); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// reachable tells whether a container can use the mirror: discs and local directories it cannot.
func reachable(uri string) bool {
	scheme, _, _ := strings.Cut(uri, ":")
	switch scheme {
	case "http", "https", "tor+http", "tor+https", "mirror", "mirror+http", "mirror+https", "ftp":
		return true
	}
	return false
}

// isDebian tells Debian's archive from others that use the same suite names.
func isDebian(s aptSource, uri, origin string) bool {
	if origin != "" {
		return origin == "Debian"
	}
	if strings.Contains(s.SignedBy, "debian-archive") {
		return true
	}
	last := path.Base(strings.TrimRight(uri, "/"))
	return s.SignedBy == "" && (last == "debian" || last == "debian-security" || strings.Contains(uri, "/archive/debian"))
}

// listsOrigin returns an origin function that looks into the lists apt has downloaded, by default below
// /var/lib/apt/lists.
func listsOrigin(lists fs.FS) func(uri, suite string) string {
	return func(uri, suite string) string {
		_, rest, ok := strings.Cut(uri, "://")
		if !ok {
			return ""
		}
		name := strings.ReplaceAll(strings.TrimRight(rest, "/")+"/dists/"+suite, "_", "%5f")
		name = strings.ReplaceAll(name, "/", "_")
		for _, suffix := range []string{"_InRelease", "_Release"} {
			b, err := fs.ReadFile(lists, name+suffix)
			if err != nil {
				continue // not downloaded: the caller decides without
			}
			for line := range bytes.Lines(b) {
				if v, ok := strings.CutPrefix(string(line), "Origin:"); ok {
					return strings.TrimSpace(v)
				}
			}
		}
		return ""
	}
}

// formatDeb822 prints sources as a .sources file.
func formatDeb822(sources []aptSource) string {
	var b strings.Builder
	for i, s := range sources {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\n", strings.Join(s.URIs, " "), strings.Join(s.Suites, " "))
		if len(s.Components) > 0 {
			fmt.Fprintf(&b, "Components: %s\n", strings.Join(s.Components, " "))
		}
		keys := make([]string, 0, len(s.Options))
		for k := range s.Options {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			fmt.Fprintf(&b, "%s: %s\n", keptOptions[k], s.Options[k])
		}
		if s.SignedBy != "" {
			fmt.Fprintf(&b, "Signed-By: %s\n", s.SignedBy)
		}
	}
	return b.String()
}
