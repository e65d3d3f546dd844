package gateway

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

// page is one file of the web page, ready to be sent.
type page struct {
	data []byte
	gz   []byte // compressed, nil if that gains nothing
	kind string
	etag string
}

// pageKinds are the files that are served, with their media types. Not taken from the host's tables, which vary.
var pageKinds = map[string]string{
	".html":        "text/html; charset=utf-8",
	".js":          "text/javascript; charset=utf-8",
	".css":         "text/css; charset=utf-8",
	".svg":         "image/svg+xml",
	".png":         "image/png",
	".webmanifest": "application/manifest+json",
	".txt":         "text/plain; charset=utf-8",
}

// loadPages reads the built page; nil is an empty one.
func loadPages(files fs.FS) (map[string]page, error) {
	pages := map[string]page{}
	if files == nil {
		return pages, nil
	}
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		kind := pageKinds[path.Ext(name)]
		if err != nil || d.IsDir() || kind == "" {
			return err
		}
		data, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		p := page{data: data, kind: kind, etag: `"` + hex.EncodeToString(sum[:12]) + `"`}
		var b bytes.Buffer
		zw, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := zw.Write(data); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		if b.Len() < len(data)*9/10 {
			p.gz = b.Bytes()
		}
		pages[name] = p
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("web page: %w", err)
	}
	return pages, nil
}

// servePage serves an HTML page. It holds nothing secret: what a login may see comes through the API.
func (g *Gateway) servePage(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, ok := g.pages[name]; !ok {
			http.Error(w, "The web page is not part of this build of Berth: `make web` builds it (Node.js 18 or later is needed).\n"+
				"VNC works without it.", http.StatusServiceUnavailable)
			return
		}
		g.send(w, r, name)
	}
}

func (g *Gateway) serveAsset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	if _, ok := g.pages[name]; !ok || path.Ext(name) == ".html" {
		http.NotFound(w, r)
		return
	}
	g.send(w, r, name)
}

func (g *Gateway) send(w http.ResponseWriter, r *http.Request, name string) {
	p := g.pages[name]
	h := w.Header()
	h.Set("Content-Type", p.kind)
	h.Set("Cache-Control", "no-cache") // may be kept, is asked for again: a new build shows at once
	h.Set("Vary", "Accept-Encoding")
	data, etag := p.data, p.etag
	if p.gz != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		data, etag = p.gz, strings.TrimSuffix(p.etag, `"`)+`-gz"`
	}
	h.Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		h.Del("Content-Encoding")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", fmt.Sprint(len(data)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // an error means that the client has gone
	}
}
