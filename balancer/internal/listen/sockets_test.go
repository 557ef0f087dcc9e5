package listen

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestBindErrors(t *testing.T) {
	s := new(Sockets)
	defer s.Close()
	ln, err := s.Bind("127.0.0.1:0", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	os.WriteFile(plain, []byte("x"), 0o600)
	live := filepath.Join(dir, "live")
	l, err := s.Bind("unix:"+live, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for address, want := range map[string]string{
		ln.Addr().String(): "in use", "unix:" + plain: "no socket", "unix:" + live: "another process listens",
		"unix:" + dir + "/no/where": "no such directory", "systemd:http": `FileDescriptorName=http`, "192.0.2.1:80": "no such address",
	} {
		if _, err := s.Bind(address, 0o600); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if data, err := os.ReadFile(plain); err != nil || string(data) != "x" {
		t.Error("a file that is no socket was touched")
	}
}

// The file of a dead socket is replaced, and the permissions are those asked for.
func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, mode := range []fs.FileMode{0o600, 0o666} {
		s := new(Sockets)
		ln, err := s.Bind("unix:"+path, mode)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%v, mode %v, want %v", err, info.Mode(), mode)
		}
		ln.Close()
		s.Close()
	}
}

func TestLimits(t *testing.T) {
	a := netip.MustParseAddr
	l := &Limits{Max: 5, PerClient: 2}
	for _, tc := range []struct {
		client string
		ok     bool
	}{
		{"10.0.0.1", true}, {"::ffff:10.0.0.1", true}, {"10.0.0.1", false}, {"2001:db8::1", true}, {"2001:db8::ffff", true},
		{"2001:db8::2", false}, {"10.0.0.2", true}, {"10.0.0.3", false},
	} {
		if l.Admit(a(tc.client)) != tc.ok {
			t.Errorf("%s: admitted %v", tc.client, !tc.ok)
		}
	}
	l.Release(a("10.0.0.1"))
	if !l.Admit(netip.Addr{}) || l.Admit(netip.Addr{}) {
		t.Error("a unix socket's peers count for Max")
	}
	l.Release(netip.Addr{})
	for _, c := range []string{"10.0.0.1", "10.0.0.2", "2001:db8::7", "2001:db8::7"} {
		l.Release(a(c))
	}
	if l.counts.Open != 0 || len(l.clients) != 0 {
		t.Errorf("%d open, %v", l.counts.Open, l.clients)
	}
	// Who speaks for others counts for Max alone, those it speaks for count each.
	balancer := a("192.0.2.1")
	proxied := &Limits{PerClient: 1, Speaks: func(a netip.Addr) bool { return a == balancer }}
	for _, tc := range []struct {
		client string
		ok     bool
	}{{"10.0.0.1", true}, {"10.0.0.1", false}, {"10.0.0.2", true}} {
		if !proxied.Admit(balancer) || proxied.Readmit(balancer, a(tc.client)) != tc.ok {
			t.Errorf("%s behind a balancer: admitted %v", tc.client, !tc.ok)
		}
	}
	for _, c := range []string{"10.0.0.1", "192.0.2.1", "10.0.0.2"} {
		proxied.Release(a(c))
	}
	if proxied.counts.Open != 0 || len(proxied.clients) != 0 || proxied.counts.Refused != 1 {
		t.Errorf("%+v, %v", proxied.counts, proxied.clients)
	}
	free := new(Limits)
	if n := testing.AllocsPerRun(10, func() { free.Admit(a("10.0.0.1")); free.Release(a("10.0.0.1")) }); n != 0 || free.counts.Open != 0 {
		t.Error("no bound costs something")
	}
}

// The child of TestHandover is this test binary, started with an argument.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "successor" { // never the tests, which would start successors of their own
		if len(os.Args) > 3 {
			successor()
		}
		os.Exit(0)
	}
}

func successor() {
	how := os.Args[2]
	s, err := Inherit()
	if err != nil || how == "dies" {
		os.Exit(3)
	}
	ln, err := s.Bind(os.Args[3], 0)
	if err != nil {
		os.Exit(4)
	}
	if how == "hangs" {
		time.Sleep(time.Minute) // long after the test has given up, but not for ever
		os.Exit(8)
	}
	if _, err := s.Bind("127.0.0.1:0", 0); err != nil {
		os.Exit(5)
	}
	s.Ready()
	if how == "dies later" {
		os.Exit(6)
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			os.Exit(7)
		}
		var b [1]byte
		c.Read(b[:])
		io.WriteString(c, "successor")
		c.Close()
		if b[0] == 'q' {
			os.Exit(0)
		}
	}
}

func TestHandover(t *testing.T) {
	t.Setenv("GORACE", "atexit_sleep_ms=0") // successors end at once, and with them who waits for them
	for _, address := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "s")} {
		s := new(Sockets)
		defer s.Close()
		ln, err := s.Bind(address, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		start := func(how string, timeout time.Duration) error {
			return s.Handover(context.Background(), Handover{
				Path: os.Args[0], Args: []string{"successor", how, address}, Timeout: timeout, Probation: 500 * time.Millisecond,
			})
		}
		for how, want := range map[string]string{"dies": "exit status 3", "dies later": "exit status 6", "hangs": "not warm within"} {
			timeout := 20 * time.Second
			if how == "hangs" {
				timeout = 300 * time.Millisecond
			}
			if err := start(how, timeout); err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "before it was warm") {
				t.Errorf("%s: %v", how, err)
			}
		}
		// The old process still has its socket.
		c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if a, err := ln.Accept(); err != nil {
			t.Fatal(err)
		} else {
			a.Close()
		}
		c.Close()
		if err := start("serves", 20*time.Second); err != nil {
			t.Fatal(err)
		}
		ln.Close()
		for _, b := range []string{"x", "q"} {
			c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, b)
			if text, err := io.ReadAll(c); string(text) != "successor" {
				t.Errorf("answered %q, %v", text, err)
			}
			c.Close()
		}
	}
	if err := new(Sockets).Handover(context.Background(), Handover{Path: "/nowhere/rota"}); err == nil || errors.Is(err, ErrHandover) {
		t.Error("started nothing:", err)
	}
}
