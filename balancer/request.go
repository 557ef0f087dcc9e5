package balancer

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/route"
)

// readRequest reads a request as the proxy would read it from a connection: with the same strictness, and normalised alike.
func readRequest(method, url string, header http.Header) (*route.Request, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	if ok {
		url = rest
	} else {
		scheme = ""
	}
	host, target := url, "/"
	if i := strings.IndexAny(url, "/?"); i >= 0 {
		if host, target = url[:i], url[i:]; target[0] == '?' {
			target = "/" + target
		}
	}
	target, _, _ = strings.Cut(target, "#")
	if host == "" {
		return nil, fmt.Errorf("url %q: write it with its host, as in http://shop.example.com/cart", url)
	}
	var head strings.Builder
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, target, host)
	for name, values := range header {
		for _, value := range values {
			fmt.Fprintf(&head, "%s: %s\r\n", name, value)
		}
	}
	head.WriteString("\r\n")
	lines := 2
	for _, values := range header {
		lines += len(values)
	}
	if strings.Count(head.String(), "\n") != lines+1 {
		return nil, fmt.Errorf("a line break has no place in a request")
	}
	var r http1.Request
	if err := r.Parse([]byte(head.String())); err != nil {
		return nil, fmt.Errorf("it would be refused by %d: %s", err.Status, err.Text)
	}
	return &route.Request{Scheme: strings.ToLower(scheme), Method: r.Method, Host: r.Host, Path: r.Path, Query: r.Query, Fields: &r}, nil
}
