package edge

import (
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
)

func ask(t *testing.T, h http.Handler, method, path string, header map[string]string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPagesAreServedWhole(t *testing.T) {
	script := strings.Repeat("let x = 1;\n", 1000)
	h := Pages(fstest.MapFS{
		"index.html": {Data: []byte("<!doctype html>page")}, "page.js": {Data: []byte(script)},
		"README.md": {Data: []byte("not for browsers")}, "size.json": {Data: []byte("{}")},
	})
	for path, want := range map[string]int{
		"/": 200, "/index.html": 200, "/page.js": 200, "/README.md": 404, "/size.json": 404, "/other": 404, "/../page.js": 404, "//": 404,
	} {
		if got := ask(t, h, "GET", path, nil); got.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, got.StatusCode, want)
		}
	}
	plain := ask(t, h, "GET", "/page.js", nil)
	if got := body(t, plain.Body); got != script || plain.Header.Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("%d bytes of %s", len(got), plain.Header.Get("Content-Type"))
	}
	zipped := ask(t, h, "GET", "/page.js", map[string]string{"Accept-Encoding": "br, gzip"})
	reader, err := gzip.NewReader(zipped.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, reader); got != script || zipped.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("unpacked: %d bytes", len(got))
	}
	if zipped.Header.Get("ETag") == plain.Header.Get("ETag") {
		t.Error("both forms have one tag")
	}
	again := ask(t, h, "GET", "/page.js", map[string]string{"If-None-Match": plain.Header.Get("ETag")})
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("the same once more: %d", again.StatusCode)
	}
	for _, r := range []*http.Response{plain, zipped, again, ask(t, h, "GET", "/", nil)} {
		if p := r.Header.Get("Content-Security-Policy"); !strings.Contains(p, "default-src 'none'") || strings.Contains(p, "unsafe") {
			t.Errorf("policy %q", p)
		}
	}
	if got := ask(t, h, "POST", "/", nil); got.StatusCode != http.StatusMethodNotAllowed || got.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d", got.StatusCode)
	}
	if got := ask(t, h, "HEAD", "/", nil); got.StatusCode != 200 || body(t, got.Body) != "" {
		t.Errorf("HEAD: %d", got.StatusCode)
	}
}

func TestWithoutABuiltPageThePortSaysWhatItIs(t *testing.T) {
	for name, files := range map[string]fs.FS{"off": nil, "not built": fstest.MapFS{"README.md": {Data: []byte("note")}}} {
		h := Pages(files)
		if got := ask(t, h, "GET", "/", nil); got.StatusCode != 200 || !strings.Contains(body(t, got.Body), "gRPC-Web") {
			t.Errorf("%s: %d", name, got.StatusCode)
		}
		if got := ask(t, h, "GET", "/page.js", nil); got.StatusCode != 404 {
			t.Errorf("%s: page.js %d", name, got.StatusCode)
		}
	}
}
