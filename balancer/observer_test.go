package balancer

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/proxy"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
)

// A loop that has run for a while allocates nothing for what it remembers of exchanges.
func TestRememberAllocations(t *testing.T) {
	o := observer{journal: journal.New(1)}
	var r http1.Request
	head := "GET /cart/7?v=2 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\nCookie: a=b\r\n\r\n"
	if bad := r.Parse([]byte(head)); bad != nil {
		t.Fatal(bad)
	}
	rec := proxy.Record{
		Method: r.Method, Host: r.Host, Path: r.Path, Query: r.Query, Head: &r, ID: []byte("0123456789abcdef0123456789abcdef"),
		Client: netip.MustParseAddrPort("[2001:db8::1]:1234"), Table: new(route.Table), Service: pool.NewService("cart"),
	}
	at := time.Unix(1000, 0)
	once := func() {
		at = at.Add(time.Second)
		rec.Start = at
		o.remember(&rec)
	}
	for range 5000 {
		once()
	}
	if n := testing.AllocsPerRun(1000, once); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if e, ok := o.journal.Find("0123456789abcdef0123456789abcdef"); !ok || e.At != at || e.Client != "2001:db8::1" || e.Query != "?v=2" {
		t.Errorf("found %v, %+v", ok, e)
	}
}

// Why a request was answered as it was is asked of the request as it was: with its header fields, by the scheme that it came by. What
// is not remembered of it, for it may be a secret, leaves the answer open.
func TestWhyRemembered(t *testing.T) {
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled, c.TrustedProxies = true, []string{"127.0.0.0/8"}
		c.Routes = []config.Route{
			{Name: "beta", Host: "a", Path: "/beta", Headers: map[string]string{"X-Beta": "1"}, Scheme: "https", Service: "none"},
			{Name: "key", Host: "a", Path: "/key", Headers: map[string]string{"X-Api-Key": "1"}, Service: "none"},
			{Name: "all", Host: "a", Path: "/", Service: "none"},
		}
		c.Services = map[string]config.Service{"none": {}}
	})
	for i, tc := range []struct {
		path, header, route string
		uncertain           bool
	}{{"/beta", "X-Beta", "beta", false}, {"/beta", "X-Other", "all", false}, {"/key", "X-Api-Key", "all", true}, {"/key", "X-Other", "all", false}} {
		req, err := http.NewRequest("GET", d.url+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("request-", i)
		req.Host = "a"
		req.Header = http.Header{"X-Request-Id": {id}, tc.header: {"1"}, "X-Forwarded-Proto": {"https"}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 503 {
			t.Fatalf("%s: status %d", tc.path, resp.StatusCode)
		}
		var w Why
		for deadline := time.Now().Add(10 * time.Second); w.Exchange == nil && time.Now().Before(deadline); { // it is noted after its last byte
			d.api("/api/v1/why?request_id="+id, &w)
		}
		if w.Exchange == nil || w.Route == nil || w.Route.Name != tc.route || w.Scheme != "https" || w.Uncertain != tc.uncertain {
			t.Errorf("%s with %s: %+v of %+v", tc.path, tc.header, w, w.Route)
		}
	}
}
