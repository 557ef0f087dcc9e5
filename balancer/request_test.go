package balancer

import (
	"net/http"
	"strings"
	"testing"
)

func TestReadRequest(t *testing.T) {
	for url, want := range map[string]string{
		"http://Shop.example.com/a/../cart/7?x=1": "shop.example.com /cart/7 ?x=1", "shop.example.com": "shop.example.com / ", "https://a:8443?q": "a / ?q",
		"http://a/%63art#here": "a /cart ", "http://[::1]:80/x": "[::1] /x ",
	} {
		r, err := readRequest("GET", url, http.Header{"X-Beta": {"1"}})
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if got := string(r.Host) + " " + string(r.Path) + " " + string(r.Query); got != want {
			t.Errorf("%s is read as %q, want %q", url, got, want)
		}
		if v, _ := r.Fields.Value("x-beta", 0); string(v) != "1" {
			t.Errorf("%s: field %q", url, v)
		}
	}
	for _, tc := range []struct{ method, url, header, want string }{
		{"GET", "", "", "with its host"}, {"GET", "/cart", "", "with its host"}, {"GET", "http://a b/", "", "refused by 400"}, {"G T", "http://a/", "", "refused by"},
		{"GET", "http://a/%zz", "", "refused by 400"}, {"GET", "http://a/", "x\r\nHost: b", "line break"}, {"CONNECT", "http://a/", "", "refused by"},
		{"GET", "http://a/\r\nX: y", "", "line break"},
	} {
		_, err := readRequest(tc.method, tc.url, http.Header{"X-A": {tc.header}})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %q: %v, want %q", tc.method, tc.url, err, tc.want)
		}
	}
}
