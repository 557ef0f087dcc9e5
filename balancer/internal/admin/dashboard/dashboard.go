// Package dashboard is the page that the admin API shows in a browser.
//
// It is static: its figures come from the API, with the token that the visitor gives. Sources are in src, in TypeScript; dist is what
// esbuild makes of them (npm ci && npm run build), and is what is embedded. Everything shown is set as text.
package dashboard

import (
	"embed"
	"io/fs"
	"net/http"
)

//go:embed dist
var built embed.FS

// policy lets the page load what is here and talk to where it came from, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Page serves the page.
func Page(w http.ResponseWriter, r *http.Request) { serve(w, r, "index.html") }

// Asset serves a file of the page, by the path value "file".
func Asset(w http.ResponseWriter, r *http.Request) { serve(w, r, r.PathValue("file")) }

func serve(w http.ResponseWriter, r *http.Request, name string) {
	files, err := fs.Sub(built, "dist")
	if err != nil {
		panic("dashboard: " + err.Error()) // it is embedded
	}
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.ServeFileFS(w, r, files, name)
}
