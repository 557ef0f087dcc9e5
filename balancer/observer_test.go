package balancer

import (
	"net/netip"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/proxy"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
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
