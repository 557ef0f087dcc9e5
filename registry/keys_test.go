package registry

import (
	"errors"
	"strings"
	"testing"
)

func TestKeysRoundTrip(t *testing.T) {
	for _, k := range []Keys{{}, {Prefix: "/a/b.c"}} {
		for _, test := range []struct {
			key  string
			want Key
		}{
			{k.Instance("cart", "h-5001"), Key{Kind: KindInstance, Service: "cart", ID: "h-5001"}},
			{k.Instance("a.b-c", "A:b_c.D-9"), Key{Kind: KindInstance, Service: "a.b-c", ID: "A:b_c.D-9"}},
			{k.Route("cart"), Key{Kind: KindRoute, ID: "cart"}},
			{k.Policy("cart"), Key{Kind: KindPolicy, Service: "cart"}},
			{k.Grant("cart"), Key{Kind: KindGrant, Service: "cart"}},
			{k.Balancer("lb-1"), Key{Kind: KindBalancer, ID: "lb-1"}},
			{k.Ack("cart", "a", "lb-1"), Key{Kind: KindAck, Service: "cart", ID: "a", Balancer: "lb-1"}},
		} {
			got, err := k.Parse(test.key)
			if err != nil || got != test.want {
				t.Errorf("Parse(%q) = %+v, %v; want %+v", test.key, got, err, test.want)
			}
		}
	}
	if got := (Keys{}).Instance("cart", "a"); got != "/rota/services/cart/a" {
		t.Errorf("default prefix: %q", got)
	}
}

func TestKeysRefuse(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, key := range []string{
		"", "/", "/rota", "/rota/", "rota/services/a/b", "/rot/services/a/b", "/rotas/services/a/b", "/ROTA/services/a/b", "//rota/services/a/b",
		"/rota/services", "/rota/services/", "/rota/services/a", "/rota/services/a/", "/rota/services//b", "/rota/services/a//b", "/rota//services/a/b",
		"/rota/services/a/b/", "/rota/services/a/b/c", "/rota/services/a/../../b", "/rota/services/../a", "/rota/services/a/..", "/rota/services/a/.",
		"/rota/services/a%2fb/c", "/rota/services/a/b%2fc", "/rota/services/a/b\x00", "/rota/services/a\x00/b", "/rota/services/A/b", "/rota/services/a_b/c",
		"/rota/services/-a/b", "/rota/services/a-/b", "/rota/services/.a/b", "/rota/services/a./b", "/rota/services/" + long + "/b",
		"/rota/services/аcart/b", "/rota/services/cart/bе", "/rota/services/cart/b b", "/rota/services/cart/b\n", "/rota/services/cart/" + strings.Repeat("a", 129),
		"/rota/services/cart/" + strings.Repeat("a", 64<<10), "/rota/Services/cart/a", "/rota/service/cart/a", "/rota/routes", "/rota/routes/", "/rota/routes/a/b",
		"/rota/routes/..", "/rota/policies/Cart", "/rota/policies/a/b", "/rota/grants/", "/rota/balancers/a/b", "/rota/balancers/a b", "/rota/acks/cart/a",
		"/rota/acks/cart/a/b/c", "/rota/acks/Cart/a/b", "/rota/acks/cart/a b/c", "/rota/acks/cart/a/", "/rota/else/x",
	} {
		got, err := (Keys{}).Parse(key)
		if !errors.Is(err, ErrInvalid) || got != (Key{Kind: KindUnknown}) {
			t.Errorf("Parse(%.80q) = %+v, %v; want unknown and ErrInvalid", key, got, err)
		}
		if err != nil && (len(err.Error()) > 700 || strings.ContainsAny(err.Error(), "\x00\n") || !strings.Contains(err.Error(), "write") && !strings.Contains(err.Error(), "not below")) {
			t.Errorf("Parse(%.80q): unhelpful or unsafe error %q", key, err)
		}
	}
}

func TestRangePrefix(t *testing.T) {
	k := Keys{Prefix: "/p"}
	for scope, want := range map[Scope]string{
		{}:                                "/p/",
		{Instances: true}:                 "/p/services/",
		{Service: "foo"}:                  "/p/services/foo/",
		{Service: "foo", Instances: true}: "/p/services/foo/",
	} {
		if got := k.RangePrefix(scope); got != want {
			t.Errorf("RangePrefix(%+v) = %q, want %q", scope, got, want)
		}
	}
}

func TestKeysValidate(t *testing.T) {
	for prefix, ok := range map[string]bool{
		"": true, "/rota": true, "/a/b-c_d.E": true, "rota": false, "/": false, "/rota/": false, "//rota": false, "/a//b": false,
		"/a b": false, "/../a": false, "/a:b": false, "/ä": false, "/a\x00": false,
	} {
		err := Keys{Prefix: prefix}.Validate()
		if (err == nil) != ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("prefix %q: %v", prefix, err)
		}
	}
}

func TestServiceGrammar(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "0": true, "a-b.c": true, "a..b": true, strings.Repeat("a", 63): true,
		"": false, "-": false, ".": false, "a-": false, "A": false, "a_b": false, strings.Repeat("a", 64): false, "ä": false,
	} {
		if err := CheckService(name); (err == nil) != ok {
			t.Errorf("service %q: %v", name, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("/rota/services/cart/a")
	f.Add("/rota/acks/cart/a/lb-1")
	f.Add("/rota/services/a/../../b")
	f.Fuzz(func(t *testing.T, key string) {
		k := Keys{}
		got, err := k.Parse(key)
		if err != nil {
			if got != (Key{Kind: KindUnknown}) || !errors.Is(err, ErrInvalid) {
				t.Fatalf("%+v, %v", got, err)
			}
			return
		}
		var again string
		switch got.Kind {
		case KindInstance:
			again = k.Instance(got.Service, got.ID)
		case KindRoute:
			again = k.Route(got.ID)
		case KindPolicy:
			again = k.Policy(got.Service)
		case KindGrant:
			again = k.Grant(got.Service)
		case KindBalancer:
			again = k.Balancer(got.ID)
		case KindAck:
			again = k.Ack(got.Service, got.ID, got.Balancer)
		}
		if again != key {
			t.Fatalf("%q reads as %+v, which is %q", key, got, again)
		}
	})
}
