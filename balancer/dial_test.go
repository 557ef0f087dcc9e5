package balancer

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
)

// What must not be dialled is set aside, and what leads back here by a detour is noticed.
func TestCircles(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, func(c *config.Config) { c.InstanceNetworks = []string{"127.0.0.0/8"} })
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	t.Cleanup(up.Close)
	own, admin := d.Addresses()[0].String(), d.AdminAddress().String()
	detour := etcdtest.NewRelay(t, own)
	for key, value := range map[string]string{
		"web/good": up.Listener.Addr().String(), "web/own": own, "web/admin": admin, "web/outside": "192.0.2.1:80",
		"web/metadata": "169.254.169.254:80", "circle/a": detour.Addr(),
	} {
		if _, err := etcd.Client().Put(t.Context(), "/rota/services/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	d.until("web", 200)
	d.until("circle", 508)
	var s Status
	d.api("/api/v1/status", &s)
	reasons := map[string]string{}
	for _, q := range s.Quarantined {
		reasons[strings.TrimPrefix(q.Key, "/rota/services/web/")] = q.Reason
	}
	for id, want := range map[string]string{"own": "listens there", "admin": "listens there", "outside": "instance_networks", "metadata": "link-local"} {
		if !strings.Contains(reasons[id], want) {
			t.Errorf("%s is set aside for %q, want %q", id, reasons[id], want)
		}
	}
	if len(reasons) != 4 {
		t.Errorf("set aside: %v", reasons)
	}
	req, _ := http.NewRequest("GET", d.url, nil)
	req.Host = "circle.localhost"
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 508 || resp.Header.Get("X-Rota-Reason") != "loop_detected" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
}

func TestListensAt(t *testing.T) {
	for _, tc := range []struct {
		listener, address string
		want              bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true}, {"127.0.0.1:80", "127.0.0.1:81", false}, {"127.0.0.1:80", "127.0.0.2:80", false},
		{"0.0.0.0:80", "127.0.0.9:80", true}, {"[::]:80", "127.0.0.1:80", true}, {"[::]:80", "[::1]:80", true}, {"[::]:80", "192.0.2.77:80", false},
		{"[::1]:80", "127.0.0.1:80", false},
	} {
		ln := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tc.listener))
		if got := listensAt(ln, netip.MustParseAddrPort(tc.address)); got != tc.want {
			t.Errorf("%s listens at %s: %v", tc.listener, tc.address, got)
		}
	}
	if listensAt(&net.UnixAddr{Name: "/x"}, netip.MustParseAddrPort("127.0.0.1:80")) {
		t.Error("a unix socket listens at no address")
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if at := netip.AddrPortFrom(ip.Unmap(), 80); !listensAt(&net.TCPAddr{Port: 80}, at) {
			t.Errorf("everywhere, but not at %s", at)
		}
	}
}
