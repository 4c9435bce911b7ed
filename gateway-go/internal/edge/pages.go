package edge

import "net/http"

const frontPage = `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Vigil</title>
<h1>Vigil gateway</h1>
<p>This port speaks gRPC-Web, Connect and gRPC. Services are listed by server reflection.</p>
</html>
`

// Pages serves the gateway's own page.
func Pages() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write([]byte(frontPage))
	})
}
