package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	read := func(text string) *Config {
		c, err := Parse("rota.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := read(`
etcd: {username: u, password: one}
admin: {tokens: {alice: {token: alice-has-this-one}}}
listeners: [{address: ":8080"}]
routes:
  - {name: cart, host: shop.example.com, path: /cart, service: cart, timeout: 15s}
  - {name: old, path: /old, service: old}
  - {name: api, path: /api, service: api, request_headers: {set: {Authorization: Basic one}}}
services: {cart: {balance: p2c, overrides: {a: {drain: true}}}, gone: {balance: p2c}}
`)
	b := read(`
etcd: {username: u, password: two}
admin: {tokens: {alice: {token: alice-has-another-one}, bob: {token: bob-has-this-one}}}
listeners: [{address: ":8081"}]
routes:
  - {name: new, path: /new, service: new}
  - {name: api, path: /api, service: api, request_headers: {set: {Authorization: Basic two}}}
  - {name: cart, host: shop.example.com, path: /cart, service: basket, timeout: 30s}
services: {cart: {balance: round_robin, overrides: {b: {drain: true}}}}
timeouts: {connect: 2s}
`)
	want := []Difference{
		{"admin.tokens.alice.token", "(hidden)", "(hidden)", true},
		{"admin.tokens.bob", "", "{}", true},
		{"admin.tokens.bob.token", "", "(hidden)", true},
		{"etcd.password", "(hidden)", "(hidden)", true},
		{"listeners", `[{"address":":8080","protocol":"http"}]`, `[{"address":":8081","protocol":"http"}]`, true},
		{"routes.api.request_headers.set.Authorization", "(hidden)", "(hidden)", false},
		{"routes.cart.service", `"cart"`, `"basket"`, false},
		{"routes.cart.timeout", "15s", "30s", false},
		{"routes.new", "", "{}", false},
		{"routes.new.name", "", `"new"`, false},
		{"routes.new.path", "", `"/new"`, false},
		{"routes.new.service", "", `"new"`, false},
		{"routes.old", "{}", "", false},
		{"routes.old.name", `"old"`, "", false},
		{"routes.old.path", `"/old"`, "", false},
		{"routes.old.service", `"old"`, "", false},
		{"services.cart.balance", `"p2c"`, `"round_robin"`, false},
		{"services.cart.overrides.a", "{}", "", false},
		{"services.cart.overrides.a.drain", "true", "", false},
		{"services.cart.overrides.b", "", "{}", false},
		{"services.cart.overrides.b.drain", "", "true", false},
		{"services.gone", "{}", "", false},
		{"services.gone.balance", `"p2c"`, "", false},
		{"timeouts.connect", "1s", "2s", false},
	}
	if diff := cmp.Diff(want, Diff(a, b)); diff != "" {
		t.Error(diff)
	}
	if list := Diff(a, a); len(list) != 0 {
		t.Errorf("of the same: %v", list)
	}
	route := a.Routes[0]
	if list := DiffRoute("cart", &route, nil); len(list) == 0 || !strings.HasPrefix(list[0].Path, "routes.cart") {
		t.Errorf("of a route that goes: %v", list)
	}
}
