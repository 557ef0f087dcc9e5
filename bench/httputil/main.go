// Command httputil is the proxy that the standard library makes in a few lines, measured for scale. It keeps every upstream
// connection and adds the forwarding headers, as the other contestants do.
//
//	httputil LISTEN UPSTREAM [CERT KEY]
package main

import (
	"crypto/tls"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"time"
)

func main() {
	args := os.Args[1:]
	if len(args) != 2 && len(args) != 4 {
		log.Fatal("usage: httputil LISTEN UPSTREAM [CERT KEY]")
	}
	upstream := &url.URL{Scheme: "http", Host: args[1]}
	s := &http.Server{
		Addr: args[0],
		Handler: &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(upstream)
				r.SetXForwarded()
			},
			// The default transport keeps two idle connections.
			Transport: &http.Transport{MaxIdleConnsPerHost: 1 << 20, IdleConnTimeout: time.Hour, DisableCompression: true},
		},
		TLSConfig:    &tls.Config{MinVersion: tls.VersionTLS13},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1 only
	}
	if len(args) == 4 {
		log.Fatal(s.ListenAndServeTLS(args[2], args[3]))
	}
	log.Fatal(s.ListenAndServe())
}
