// Package web is the operator's page, as it was built into dist/ before the gateway was.
package web

import (
	"embed"
	"io/fs"
)

//go:embed dist
var dist embed.FS

// Page is the built page's files; without index.html when it was not built.
func Page() fs.FS {
	files, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // the name is fixed
	}
	return files
}
