package proxy

import (
	"net/netip"
	"testing"

	"github.com/rota-lb/rota/balancer/internal/route"
)

// A route knows how the client came, by what a trusted proxy says of it: so a redirect to https can stand beside the site.
func TestScheme(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := echo(t)
		to, err := route.NewRedirect("https://{host}{uri}", 308, nil)
		if err != nil {
			t.Fatal(err)
		}
		settings := Settings{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
		r := startWith(t, engine, settings, func(r *rig) {
			r.routes = append(r.routes, route.Route{Name: "to-https", Rules: &route.Rules{
				Conditions: []route.Condition{{Of: route.OfScheme, Value: "http"}}, Redirect: to,
			}})
		}, up.address)
		c := r.dial()
		for _, step := range []struct {
			field  string
			status int
		}{{"", 308}, {"X-Forwarded-Proto: http\r\n", 308}, {"X-Forwarded-Proto: https\r\n", 200}} {
			c.send("GET /x HTTP/1.1\r\nHost: a\r\n" + step.field + "\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != step.status || step.status == 308 && resp.Header.Get("Location") != "https://a/x" {
				t.Errorf("%q: answered %d %s", step.field, resp.StatusCode, resp.Header.Get("Location"))
			}
		}
	})
}
