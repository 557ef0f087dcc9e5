package balancer

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/config"
)

// What clients make up, names of services among it, is in no metric (L11): the same series are there after many requests as after few.
func TestSeriesOfClients(t *testing.T) {
	const few, many, batch = 500, 10_000, 100
	eachEngine(t, func(t *testing.T, engine string) {
		upstream, _ := counted(t)
		d := run(t, nil, func(c *config.Config) {
			c.Engine, c.Etcd.Disabled = engine, true
			c.Routes = []config.Route{{Name: "r", Path: "/one", Service: "s"}}
			c.Services = map[string]config.Service{"s": static(upstream)}
		})
		d.get("anything", "/") // it serves
		c, err := net.Dial("tcp", d.Addresses()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		answers, sent := bufio.NewReader(c), 0
		// ask sends requests of which no two have anything in common, a quarter of them to the service, and lists the series then.
		ask := func(to int) map[string]bool {
			t.Helper()
			for ; sent < to; sent += batch {
				var all strings.Builder
				for i := sent; i < sent+batch; i++ {
					path, host := fmt.Sprintf("/made-up-%d/x", i), fmt.Sprintf("made-up-%d.example.com", i)
					switch i % 4 {
					case 0:
						path = "/one"
					case 1: // as the automatic routes of a service are
						path, host = "/", fmt.Sprintf("made-up-%d.localhost", i)
					}
					fmt.Fprintf(&all, "MADE-UP-%d %s?made-up=%d HTTP/1.1\r\nHost: %s\r\nUser-Agent: made-up-%d\r\nX-Request-Id: made-up-%d\r\n\r\n", i, path, i, host, i, i)
				}
				if _, err := io.WriteString(c, all.String()); err != nil {
					t.Fatal(err)
				}
				for i := sent; i < sent+batch; i++ {
					resp, err := http.ReadResponse(answers, nil)
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					if want := map[bool]int{true: 200, false: 404}[i%4 == 0]; resp.StatusCode != want {
						t.Fatalf("request %d is answered %d", i, resp.StatusCode)
					}
				}
			}
			series := map[string]bool{}
			for line := range strings.Lines(d.metrics(t)) {
				if strings.Contains(line, "made-up") || strings.Contains(line, "MADE-UP") {
					t.Errorf("a client's words: %s", line)
				}
				name, _, _ := strings.Cut(line, "} ")
				if !strings.HasPrefix(line, "#") && strings.HasPrefix(line, "rota_") {
					series[name] = true
				}
			}
			return series
		}
		first, last := ask(few), ask(many)
		for name := range last {
			if !first[name] && strings.Contains(name, "{") {
				t.Errorf("a new series: %s", name)
			}
		}
		t.Logf("%d series after %d requests, %d after %d", len(first), few, len(last), many)
		if len(last) < 50 {
			t.Error("hardly a metric")
		}
	})
}
