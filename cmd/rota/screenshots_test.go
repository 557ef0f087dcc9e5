//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// TestScreenshots takes the pictures of docs/screenshots, of a shop that has been busy for as long as ROTA_TEST_SCREENSHOTS says.
func TestScreenshots(t *testing.T) {
	busy, err := time.ParseDuration(os.Getenv("ROTA_TEST_SCREENSHOTS"))
	if err != nil {
		t.Skip("ROTA_TEST_SCREENSHOTS=5m takes them")
	}
	b := newBrowser(t, busy+3*time.Minute)
	shot := func(name string) {
		t.Helper()
		var png []byte
		b.do(chromedp.CaptureScreenshot(&png))
		if err := os.WriteFile(filepath.Join("../../docs/screenshots", name+".png"), png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	scheme := func(name string) {
		b.do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}))
	}
	etcd := etcdtest.Start(t)
	daemon := spawn(t, "serve", "--endpoints", etcd.Endpoints()[0], "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--access-log", "off")
	address := daemon.find(listening)
	admin := "http://" + daemon.find(`"admin API","url":"http://([^"]+)"`)
	b.do(emulation.SetDeviceMetricsOverride(1280, 800, 1, false), chromedp.Navigate(admin))
	b.until("No service is known")
	b.until("etcd in reach")
	shot("empty")

	cli := etcd.Client()
	for key, value := range map[string]string{
		"routes/shop":   `{"host":"shop.example.com","service":"web"}`,
		"routes/cart":   `{"host":"shop.example.com","path":"/cart","service":"cart","timeout":"15s"}`,
		"routes/search": `{"host":"shop.example.com","path":"/search","service":"search"}`,
		"routes/users":  `{"host":"shop.example.com","path":"/users","service":"users"}`,
		"policies/cart": `{"check":{"path":"/healthz","interval":"5s"}}`,
	} {
		if _, err := cli.Put(t.Context(), "/rota/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	var leases []clientv3.LeaseID
	for s, service := range []string{"cart", "search", "users", "web"} {
		for i := range []int{6, 3, 2, 4}[s] {
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/healthz" {
					return
				}
				time.Sleep(time.Duration(float64([]int{3, 11, 2, 5}[s]) * math.Exp(rand.NormFloat64()/2) * float64(time.Millisecond)))
				if rand.IntN(1000) < []int{4, 1, 0, 2}[s] {
					http.Error(w, "no", http.StatusInternalServerError)
				}
			}))
			t.Cleanup(up.Close)
			value, err := json.Marshal(map[string]any{
				"address": up.Listener.Addr().String(), "version": "1.4." + fmt.Sprint(i%2), "zone": []string{"eu-1", "eu-2"}[i%2],
			})
			if err != nil {
				t.Fatal(err)
			}
			lease, err := cli.Grant(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			kept, err := cli.KeepAlive(t.Context(), lease.ID)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for range kept {
				}
			}()
			if _, err := cli.Put(t.Context(), fmt.Sprintf("/rota/services/%s/%s-%d", service, service, i), string(value), clientv3.WithLease(lease.ID)); err != nil {
				t.Fatal(err)
			}
			if service == "cart" {
				leases = append(leases, lease.ID)
			}
		}
	}
	began := time.Now()
	for range 12 {
		go func() {
			for t.Context().Err() == nil {
				tide := 1.3 + math.Sin(time.Since(began).Seconds()/40)
				time.Sleep(time.Duration(rand.ExpFloat64() * 30 / tide * float64(time.Millisecond)))
				ctx, done := context.WithTimeout(t.Context(), 5*time.Second)
				req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+address+[]string{"/", "/", "/cart", "/cart", "/search", "/users"}[rand.IntN(6)], nil)
				req.Host = "shop.example.com"
				if resp, err := http.DefaultClient.Do(req); err == nil {
					resp.Body.Close()
				}
				done()
			}
		}()
	}
	page := func(hash, shows string) {
		t.Helper()
		b.eval(fmt.Sprintf("location.hash = %q", hash))
		b.until(shows)
	}
	time.Sleep(busy * 3 / 4)
	page("#/services/cart", "cart-5") // its endpoints need a history, too
	time.Sleep(busy / 4)
	page("#/services/cart", "cart-5")
	b.click("cart-2")
	b.click("Drain…")
	b.click("Do it")
	b.until(`cart-2\s+127\S+\s+◐ draining`)
	time.Sleep(6 * time.Second)
	shot("service")
	page("#/", `cart\s+5 of 6`)
	time.Sleep(3 * time.Second)
	shot("overview")
	scheme("dark")
	shot("overview-dark")
	scheme("light")
	page("#/routes", `shop\.example\.com`)
	b.do(chromedp.SetValue(`input[aria-label="URL"]`, "http://shop.example.com/cart/7", chromedp.ByQuery))
	b.click("Where would it go?")
	b.until(`cart-2.*no\s+0\s+◐ draining`)
	shot("why")

	// All leases of a service are lost.
	for _, id := range leases {
		if _, err := cli.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	page("#/", `Brake: cart has lost \d of \d records at once`)
	shot("brake")
	page("#/events", `registered`)
	shot("events")
	page("#/", `cart`)
	etcd.Stop()
	b.until(`etcd is out of reach\. Requests are served by the last table`)
	shot("etcd-lost")
	daemon.Process.Signal(syscall.SIGKILL)
	b.until(`The daemon does not answer`)
	shot("daemon-gone")
}
