package edge

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

const frontPage = `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Vigil</title>
<h1>Vigil gateway</h1>
<p>This port speaks gRPC-Web, Connect and gRPC. Services are listed by server reflection.</p>
</html>
`

// policy lets the page load what comes with it, and talk to whoever served it.
const policy = "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// pageFile is one file of the page, as it is sent.
type pageFile struct {
	kind, tag     string
	plain, zipped []byte
}

// Pages serves the operator's page from the files of its build; without files, or an index.html
// among them, a page that says what this port is.
func Pages(files fs.FS) http.Handler {
	known := map[string]pageFile{}
	if files != nil {
		known = readPages(files)
	}
	if _, built := known["/"]; !built {
		known["/"] = newPageFile("index.html", []byte(frontPage))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, found := known[r.URL.Path]
		if !found {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(self), microphone=(), geolocation=()")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		h.Set("Content-Type", file.kind)
		h.Set("Cache-Control", "no-cache") // asked for each time, and answered by 304: an old page must not outlive an update
		h.Set("Vary", "Accept-Encoding")
		body, tag := file.plain, file.tag
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && len(file.zipped) < len(file.plain) {
			h.Set("Content-Encoding", "gzip")
			body, tag = file.zipped, tag+"-gz"
		}
		h.Set("ETag", `"`+tag+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
}

func readPages(files fs.FS) map[string]pageFile {
	known := map[string]pageFile{}
	names, _ := fs.Glob(files, "*")
	for _, name := range names {
		data, err := fs.ReadFile(files, name)
		if err != nil || kindOf(name) == "" {
			continue
		}
		known["/"+name] = newPageFile(name, data)
	}
	if index, built := known["/index.html"]; built {
		known["/"] = index
	}
	return known
}

// kindOf is a file's content type; empty for what is not shown.
func kindOf(name string) string {
	return map[string]string{
		".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
		".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
	}[path.Ext(name)]
}

func newPageFile(name string, data []byte) pageFile {
	sum := sha256.Sum256(data)
	var zipped bytes.Buffer
	w, _ := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
	_, _ = w.Write(data)
	_ = w.Close()
	return pageFile{kindOf(name), hex.EncodeToString(sum[:8]), data, zipped.Bytes()}
}
