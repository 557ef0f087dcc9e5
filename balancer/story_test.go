package balancer

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	zapobserver "go.uber.org/zap/zaptest/observer"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// The event log of the control plane reads as a story: of every instance what it has become and why, and what else has changed.
func TestStory(t *testing.T) {
	etcd := etcdtest.Start(t)
	log, logged := zapobserver.New(zap.InfoLevel)
	d := runLogged(t, etcd, zap.New(log), nil)
	f := newFleet(t, etcd.Client(), "cart", 5)
	d.count("cart", map[string]int{"ready": 5})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	// An operator drains the first one, and takes it back.
	for _, body := range []string{`{"drain": true}`, `{"drain": false}`} {
		if status, text := d.ask("PATCH", "/api/v1/services/cart/instances/0", body); status != http.StatusNoContent {
			t.Fatalf("%s: %d %s", body, status, text)
		}
		d.count("cart", map[string]map[string]int{`{"drain": true}`: {"ready": 4, "draining": 1}, `{"drain": false}`: {"ready": 5}}[body])
	}
	// The second one leaves as one should.
	if _, err := f.etcd.Put(ctx, f.key(1), fmt.Sprintf(`{"address":%q,"incarnation":"i1","state":"draining"}`, f.address[1]), clientv3.WithLease(f.leases[1])); err != nil {
		t.Fatal(err)
	}
	d.count("cart", map[string]int{"ready": 4, "draining": 1})
	if _, err := f.etcd.Delete(ctx, f.key(1)); err != nil {
		t.Fatal(err)
	}
	d.count("cart", map[string]int{"ready": 4})
	// The third one loses its lease, lives, and comes back.
	if err := f.revoke(ctx, 2); err != nil {
		t.Fatal(err)
	}
	d.count("cart", map[string]int{"ready": 3, "suspect": 1})
	if err := f.register(ctx, 2); err != nil {
		t.Fatal(err)
	}
	d.count("cart", map[string]int{"ready": 4})
	// The fourth one dies: whoever meets it next finds out, and then its lease ends.
	f.servers[3].Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		d.get("cart", "/")
		list, err := d.control.Services(ctx, "cart")
		if err != nil || time.Now().After(deadline) {
			t.Fatal("the dead one is not ejected", err)
		}
		if len(list) == 1 && list[0].Eligible == 3 {
			break
		}
	}
	if err := f.revoke(ctx, 3); err != nil {
		t.Fatal(err)
	}
	d.count("cart", map[string]int{"ready": 3})

	// A route comes, is changed, and goes.
	told := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			for _, l := range logged.FilterMessage("routes have changed").All() {
				if fmt.Sprint(l.ContextMap()[what]) == "[etcd shop]" {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("that the route was %s is not told", what)
			}
		}
	}
	put(t, f.etcd, "/rota/routes/shop", `{"path": "/", "service": "cart"}`)
	told("added")
	put(t, f.etcd, "/rota/routes/shop", `{"path": "/", "service": "cart", "priority": 1}`)
	told("changed")
	if _, err := f.etcd.Delete(ctx, "/rota/routes/shop"); err != nil {
		t.Fatal(err)
	}
	told("removed")

	want := map[string][]string{
		"0": {"info instance ready: registered", "info instance draining: the policy of its service says so", "info instance ready: registered"},
		"1": {"info instance ready: registered", "info instance draining: it says it is draining", "info instance gone: "},
		"2": {"info instance ready: registered", "warn instance suspect: ", "info instance ready: registered"},
		"3": {"info instance ready: registered", "warn instance ejected: it refused a connection", "info instance gone: "},
		"4": {"info instance ready: registered"},
	}
	tell := func() map[string][]string {
		told := map[string][]string{}
		for _, l := range logged.All() {
			m := l.ContextMap()
			if id, _ := m["instance"].(string); strings.HasPrefix(l.Message, "instance ") && m["service"] == "cart" {
				n := len(told[id])
				text := fmt.Sprintf("%s %s: %s", l.Level, l.Message, m["why"])
				if n < len(want[id]) && strings.HasSuffix(want[id][n], ": ") && strings.HasPrefix(text, want[id][n]) && m["why"] != "" {
					text = want[id][n] // for which of several reasons depends on what comes first
				}
				if m["address"] != f.address[id[0]-'0'] || m["revision"] == int64(0) {
					t.Errorf("%s says %v", text, m)
				}
				told[id] = append(told[id], text)
			}
		}
		return told
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		told := tell()
		if reflect.DeepEqual(told, want) {
			break
		}
		if time.Now().After(deadline) {
			for id, lines := range told {
				t.Errorf("%s: %q, want %q", id, lines, want[id])
			}
			break
		}
	}
	for message, n := range map[string]int{"registry in sync": 1, "an operator has changed something": 2} {
		if got := logged.FilterMessage(message).Len(); got != n {
			t.Errorf("%q is logged %d times, want %d", message, got, n)
		}
	}
}
