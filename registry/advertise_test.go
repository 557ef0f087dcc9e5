package registry

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// machine fakes the system of a machine.
type machine struct {
	env    string
	routes map[string]string // by remote; "*" for all others
	addrs  []string
	broken bool
}

func (m machine) network() network {
	return network{
		getenv: func(name string) string {
			if name == AdvertiseEnv {
				return m.env
			}
			return ""
		},
		route: func(remote string) (netip.Addr, error) {
			if _, err := netip.ParseAddrPort(remote); err != nil {
				return netip.Addr{}, err
			}
			local, ok := m.routes[remote]
			if !ok {
				local, ok = m.routes["*"]
			}
			if !ok {
				return netip.Addr{}, errors.New("network is unreachable")
			}
			return netip.MustParseAddr(local), nil
		},
		addresses: func() (out []netip.Addr, err error) {
			if m.broken {
				return nil, errors.New("permission denied")
			}
			for _, s := range m.addrs {
				out = append(out, netip.MustParseAddr(s))
			}
			return out, nil
		},
	}
}

func TestAdvertise(t *testing.T) {
	online := machine{routes: map[string]string{"*": "10.0.0.7", "10.9.0.1:2379": "10.9.0.7", "127.0.0.1:2379": "127.0.0.1"},
		addrs: []string{"127.0.0.1", "10.0.0.7", "10.9.0.7"}}
	with := func(m machine, env string) machine { m.env = env; return m }
	offline := func(addrs ...string) machine { return machine{addrs: addrs} }
	for _, test := range []struct {
		name     string
		a        Advertise
		m        machine
		listener string
		want     string // "" means ErrNotAdvertisable, "!" ErrInvalid
	}{
		{"explicit wins", Advertise{Address: "cart.example:1"}, with(online, "10.1.1.1"), "0.0.0.0:80", "cart.example:1"},
		{"explicit loopback", Advertise{Address: "127.0.0.1:1"}, online, "127.0.0.1:80", "127.0.0.1:1"},
		{"explicit wildcard", Advertise{Address: "0.0.0.0:1"}, online, "10.0.0.7:80", ""},
		{"explicit garbage", Advertise{Address: "cart"}, online, "10.0.0.7:80", "!"},
		{"env host", Advertise{}, with(online, "10.1.1.1"), "0.0.0.0:80", "10.1.1.1:80"},
		{"env host port", Advertise{}, with(online, "10.1.1.1:8080"), "0.0.0.0:80", "10.1.1.1:8080"},
		{"env name", Advertise{}, with(online, "box.example"), "127.0.0.1:80", "box.example:80"},
		{"env loopback", Advertise{}, with(online, "127.0.0.1"), "127.0.0.1:80", "127.0.0.1:80"},
		{"env v6 bare", Advertise{}, with(online, "2001:db8::7"), "0.0.0.0:80", "[2001:db8::7]:80"},
		{"env v6 brackets", Advertise{}, with(online, "[2001:db8::7]"), "0.0.0.0:80", "[2001:db8::7]:80"},
		{"env v6 port", Advertise{}, with(online, "[2001:db8::7]:1"), "0.0.0.0:80", "[2001:db8::7]:1"},
		{"env wildcard", Advertise{}, with(online, "0.0.0.0"), "0.0.0.0:80", "!"},
		{"env garbage", Advertise{}, with(online, "http://x"), "0.0.0.0:80", "!"},
		{"env port only", Advertise{}, with(online, ":80"), "0.0.0.0:80", "!"},
		{"bound", Advertise{}, online, "10.0.0.9:80", "10.0.0.9:80"},
		{"bound v6", Advertise{}, online, "[2001:db8::9]:80", "[2001:db8::9]:80"},
		{"bound mapped", Advertise{}, online, "[::ffff:10.0.0.9]:80", "10.0.0.9:80"},
		{"bound loopback", Advertise{}, online, "127.0.0.1:80", ""},
		{"bound loopback v6", Advertise{}, online, "[::1]:80", ""},
		{"bound loopback allowed", Advertise{AllowLoopback: true}, online, "127.0.0.1:80", "127.0.0.1:80"},
		{"bound link-local", Advertise{}, online, "[fe80::1%2]:80", ""},
		{"wildcard", Advertise{}, online, "[::]:80", "10.0.0.7:80"},
		{"wildcard v4", Advertise{}, online, "0.0.0.0:80", "10.0.0.7:80"},
		{"wildcard allowed", Advertise{AllowLoopback: true}, online, "[::]:80", "10.0.0.7:80"},
		{"via", Advertise{Via: "10.9.0.1:2379"}, online, "[::]:80", "10.9.0.7:80"},
		{"via loopback", Advertise{Via: "127.0.0.1:2379"}, online, "[::]:80", "10.0.0.7:80"},
		{"via name", Advertise{Via: "etcd.example:2379"}, online, "[::]:80", "10.0.0.7:80"},
		{"v6 route", Advertise{}, machine{routes: map[string]string{"*": "2001:db8::7"}}, "[::]:80", "[2001:db8::7]:80"},
		{"v6 route, v4 listener", Advertise{}, machine{routes: map[string]string{"*": "2001:db8::7"}, addrs: []string{"2001:db8::7"}}, "0.0.0.0:80", ""},
		{"no route, one address", Advertise{}, offline("127.0.0.1", "::1", "fe80::1", "192.168.1.4"), "[::]:80", "192.168.1.4:80"},
		{"no route, one of each", Advertise{}, offline("2001:db8::7", "192.168.1.4"), "[::]:80", "192.168.1.4:80"},
		{"no route, v6 only", Advertise{}, offline("2001:db8::7"), "[::]:80", "[2001:db8::7]:80"},
		{"no route, several", Advertise{}, offline("192.168.1.4", "172.17.0.1"), "[::]:80", ""},
		{"no network", Advertise{}, offline("127.0.0.1"), "[::]:80", ""},
		{"no network allowed", Advertise{AllowLoopback: true}, offline("127.0.0.1"), "[::]:80", "127.0.0.1:80"},
		{"link-local route", Advertise{}, machine{routes: map[string]string{"*": "169.254.1.1"}, addrs: []string{"169.254.1.1"}}, "[::]:80", ""},
		{"interfaces unreadable", Advertise{}, machine{broken: true}, "[::]:80", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(test.listener))
			got, err := test.a.resolve(addr, test.m.network())
			want := test.want
			switch want {
			case "":
				if !errors.Is(err, ErrNotAdvertisable) {
					t.Fatalf("got %q, %v; want ErrNotAdvertisable", got, err)
				}
				if !strings.Contains(err.Error(), "ROTA_ADVERTISE") && test.a.Address == "" {
					t.Errorf("error without a remedy: %v", err)
				}
			case "!":
				if !errors.Is(err, ErrInvalid) {
					t.Fatalf("got %q, %v; want ErrInvalid", got, err)
				}
			default:
				if got != want || err != nil {
					t.Fatalf("got %q, %v; want %q", got, err, want)
				}
			}
		})
	}
}

func TestAdvertiseUnixListener(t *testing.T) {
	unix := &net.UnixAddr{Name: "/run/cart.sock", Net: "unix"}
	if got, err := (Advertise{}).resolve(unix, machine{}.network()); !errors.Is(err, ErrNotAdvertisable) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := (Advertise{}).resolve(unix, machine{env: "10.0.0.7:80"}.network()); got != "10.0.0.7:80" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := (Advertise{}).resolve(unix, machine{env: "10.0.0.7"}.network()); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %q, %v", got, err)
	}
}

// The real system, of which nothing is known but that it has loopback.
func TestAdvertiseHost(t *testing.T) {
	t.Setenv(AdvertiseEnv, "")
	wild := &net.TCPAddr{Port: 80}
	got, err := Advertise{AllowLoopback: true}.Resolve(wild)
	if err != nil && !strings.Contains(err.Error(), "has several") {
		t.Fatal(err)
	}
	if err == nil {
		if _, port, err := ParseAddress(got); err != nil || port != 80 {
			t.Errorf("%q: %v", got, err)
		}
	}
	if ip, err := localAddrTowards("127.0.0.1:9"); err != nil || !ip.IsLoopback() {
		t.Errorf("towards loopback: %v, %v", ip, err)
	}
	if addrs, err := interfaceAddrs(); err != nil || len(addrs) == 0 {
		t.Errorf("interfaces: %v, %v", addrs, err)
	}
}
