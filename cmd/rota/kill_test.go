//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// An instance is killed under load, again and again, ROTA_TEST_KILLS times: no request fails that may be repeated, of the others only those that it
// was working on, and it is out of the pool at once.
func TestKilledInstance(t *testing.T) {
	const each = 4 // clients that GET, and as many that POST
	kills := 5
	if text := os.Getenv("ROTA_TEST_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	etcd := etcdtest.Start(t)
	daemon := spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(deployConfig, strings.Join(etcd.Endpoints(), `","`))))
	w := &world{t: t}
	var instances []*struck
	var lives [3]int
	for i := range 3 {
		s := &struck{start: func() *child { // each life under an id of its own: one that dies again and again is damped
			lives[i]++
			return w.role("instance", storeEnv+"="+strings.Join(etcd.Endpoints(), ","), idEnv+"="+fmt.Sprint(i, "-", lives[i]))
		}}
		s.process = s.start()
		instances = append(instances, s)
	}
	address, admin := daemon.find(listening), daemon.find(adminURL)
	ready(t, admin, 3)

	var done, gets, posts atomic.Int64
	var first atomic.Pointer[error]
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	hc := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2 * each}}
	defer hc.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 2 * each {
		wg.Go(func() {
			for ctx.Err() == nil {
				method, failed := http.MethodGet, &gets
				if i%2 == 1 {
					method, failed = http.MethodPost, &posts
				}
				req, _ := http.NewRequest(method, "http://"+address+"/cart/", nil)
				resp, err := hc.Do(req)
				if err == nil {
					if resp.Body.Close(); resp.StatusCode != http.StatusOK {
						err = fmt.Errorf("%s: status %d, reason %s", method, resp.StatusCode, resp.Header.Get("X-Rota-Reason"))
					}
				}
				done.Add(1)
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	for k := range kills {
		before := posts.Load()
		until(t, "some requests", func() bool { return done.Load() > int64(200*(k+1)) })
		s := instances[k%3]
		s.kill()
		began := time.Now()
		until(t, "a pool without it", func() bool {
			code, body, _ := get(t, admin, admin, "/api/v1/services/cart")
			return code == 200 && strings.Contains(body, `"eligible": 2`)
		})
		out := time.Since(began)
		here := done.Load()
		until(t, "more requests", func() bool { return done.Load() > here+200 })
		t.Logf("out after %v; %d POSTs failed", out, posts.Load()-before)
		// A process that dies closes its connections one after the other: a client whose request went with the first of them can
		// reach another one of them.
		if n := posts.Load() - before; n > 2*each {
			t.Errorf("%d POSTs failed, and %d can have been in flight", n, each)
		}
		if out > 100*time.Millisecond {
			t.Errorf("it was out after %v", out)
		}
		// So that the next death meets no other one: an instance that is known to be dead is held until its lease ends.
		dead := fmt.Sprintf("/rota/services/cart/%d-%d", k%3, lives[k%3])
		if _, err := etcd.Client().Delete(t.Context(), dead); err != nil {
			t.Fatal(err)
		}
		s.restart()
		ready(t, admin, 3)
	}
	stop()
	wg.Wait()
	t.Logf("%d requests; %d GETs and %d POSTs failed", done.Load(), gets.Load(), posts.Load())
	if n := gets.Load(); n > 0 {
		t.Errorf("%d GETs failed, the first failure: %v", n, *first.Load())
	}
}
