package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/proxyproto"
	"github.com/rota-lb/rota/balancer/pool"
)

// IPv6 on both sides: the forms of addresses in what the upstream is told.
func TestIPv6(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	heads := make(chan string, 1)
	up := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heads <- fmt.Sprintf("host %s, for %s, host %s, proto %s", r.Host, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Forwarded-Proto"))
	})}
	go up.Serve(ln)
	defer up.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for name, address := range map[string]string{"::1": ln.Addr().String(), "::ffff:127.0.0.1": ""} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				upstream := address
				if upstream == "" { // an IPv4 instance, written as IPv6
					v4 := echo(t)
					upstream = "[::ffff:" + strings.Replace(v4.address, ":", "]:", 1)
				}
				r := start(t, engine, Settings{}, upstream)
				own, err := net.Listen("tcp", "[::1]:0")
				if err != nil {
					t.Fatal(err)
				}
				listening := own.Addr().String()
				if _, err := r.engine.Listen(own, r.proxy, nil); err != nil {
					t.Fatal(err)
				}
				c, err := net.Dial("tcp", listening)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: [::1]:%s\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", port)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != 200 {
					t.Fatal(resp, err)
				}
				resp.Body.Close()
				if address != "" {
					host := "[::1]:" + port
					if got, want := <-heads, fmt.Sprintf("host %s, for ::1, host %s, proto http", host, host); got != want {
						t.Errorf("the upstream saw %s, want %s", got, want)
					}
				}
				if rec := r.wait(1)[0]; rec.Client.Addr() != netip.MustParseAddr("::1") || string(rec.Host) != "[::1]" {
					t.Errorf("client %v, host %s", rec.Client, rec.Host)
				}
			})
		})
	}
}

// announcedTo is what an upstream that expects the PROXY protocol has been told: by connection, the header and the targets of the
// requests behind it.
type announcedTo struct {
	mu   sync.Mutex
	list []*announcement
}

type announcement struct {
	source  netip.AddrPort
	version byte
	targets []string
}

func (a *announcedTo) all() (list []announcement) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, one := range a.list {
		list = append(list, announcement{one.source, one.version, append([]string(nil), one.targets...)})
	}
	return list
}

// serve reads the header byte by byte, so that nothing behind it is lost, then perhaps TLS, then requests.
func (a *announcedTo) serve(t *testing.T, secure *tls.Config) func(c net.Conn, r *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		var head []byte
		var h proxyproto.Header
		for used := 0; used == 0; {
			b, err := r.ReadByte()
			if err != nil {
				return
			}
			head = append(head, b)
			if h, used, err = proxyproto.Parse(head); err != nil {
				t.Errorf("before anything else came %q: %v", head, err)
				return
			}
		}
		one := &announcement{source: h.Source, version: 1}
		if head[0] != 'P' {
			one.version = 2
		}
		a.mu.Lock()
		a.list = append(a.list, one)
		a.mu.Unlock()
		conn := net.Conn(&buffered{c, r})
		if secure != nil {
			conn = tls.Server(conn, secure)
			r = bufio.NewReader(conn)
		}
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			a.mu.Lock()
			one.targets = append(one.targets, req.RequestURI)
			a.mu.Unlock()
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}
}

// An instance is told in a PROXY protocol header who the client is, before anything else; its connections serve that client
// alone, and go on to.
func TestSendProxyProtocol(t *testing.T) {
	cert, roots := certificate(t, time.Now().Add(time.Hour), "s")
	for _, version := range []int{1, 2} {
		for name, settings := range map[string]*pool.Settings{
			"plain": {ProxyProtocol: version},
			"TLS":   {ProxyProtocol: version, Secure: true, TLS: &tls.Config{RootCAs: roots, ServerName: "s"}},
		} {
			t.Run(fmt.Sprintf("v%d %s", version, name), func(t *testing.T) {
				eachEngine(t, func(t *testing.T, engine string) {
					var told announcedTo
					var secure *tls.Config
					if settings.Secure {
						secure = &tls.Config{Certificates: []tls.Certificate{cert}}
					}
					up := newUpstream(t, told.serve(t, secure))
					r := startWith(t, engine, Settings{}, func(r *rig) { r.upstreams = settings }, up.address)
					clients := []*client{r.dial(), r.dial(), r.dial()}
					const rounds = 4
					for i := range rounds {
						for k, c := range clients {
							c.send(fmt.Sprintf("GET /%d/%d HTTP/1.1\r\nHost: a\r\n\r\n", k, i))
							if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
								t.Fatalf("status %d %v", resp.StatusCode, resp.Header)
							}
						}
					}
					list := told.all()
					if len(list) != len(clients) {
						t.Errorf("%d connections for %d clients", len(list), len(clients))
					}
					for _, one := range list {
						if int(one.version) != version || len(one.targets) != rounds {
							t.Errorf("version %d, %d requests", one.version, len(one.targets))
						}
						for _, target := range one.targets {
							k := int(target[1] - '0')
							if own := clients[k].LocalAddr().(*net.TCPAddr).AddrPort(); one.source != own {
								t.Errorf("%s of %v came on the connection of %v", target, own, one.source)
							}
						}
					}
				})
			})
		}
	}
}
