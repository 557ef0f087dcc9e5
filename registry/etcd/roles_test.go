package registryetcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/registrytest"
)

// documentedRoles does in etcd what the documentation says under "Permissions", and returns the passwords by user.
func documentedRoles(t *testing.T, etcd *clientv3.Client) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/registration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Permissions\n")
	_, section, _ = strings.Cut(section, "```sh\n")
	block, _, _ := strings.Cut(section, "```\n")
	types := map[string]clientv3.PermissionType{
		"read": clientv3.PermissionType(clientv3.PermRead), "write": clientv3.PermissionType(clientv3.PermWrite),
		"readwrite": clientv3.PermissionType(clientv3.PermReadWrite),
	}
	passwords, ctx, enabled := map[string]string{}, limit(t), false
	for line := range strings.Lines(block) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		err := errors.New("the test does not know this command")
		switch verb := strings.Join(f[:min(3, len(f))], " "); {
		case verb == "etcdctl role add" && len(f) == 4:
			_, err = etcd.RoleAdd(ctx, f[3])
		case verb == "etcdctl role grant-permission" && len(f) == 7 && f[4] == "--prefix=true" && strings.HasSuffix(f[6], "/"):
			_, err = etcd.RoleGrantPermission(ctx, f[3], f[6], clientv3.GetPrefixRangeEnd(f[6]), types[f[5]])
		case verb == "etcdctl user add" && len(f) == 4:
			name, password, _ := strings.Cut(f[3], ":")
			passwords[name] = password
			_, err = etcd.UserAdd(ctx, name, password)
		case verb == "etcdctl user grant-role" && len(f) == 5:
			_, err = etcd.UserGrantRole(ctx, f[3], f[4])
		case verb == "etcdctl auth enable":
			_, err = etcd.AuthEnable(ctx)
			enabled = true
		}
		if err != nil && !errors.Is(err, rpctypes.ErrRoleAlreadyExist) { // root's is made by etcd
			t.Fatalf("%s: %v", strings.TrimSpace(line), err)
		}
	}
	if !enabled {
		t.Fatal("the documentation does not say how to enable access control")
	}
	return passwords
}

// Everybody may do what the documented role is for, and nothing else.
func TestRoles(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	passwords := documentedRoles(t, s.Client())
	root := etcdtest.NewClient(t, clientv3.Config{Endpoints: s.Endpoints(), Username: "root", Password: passwords["root"]})
	everything := map[string]string{
		"its own":      "/rota/services/cart/a",
		"a neighbour":  "/rota/services/cart2/a",
		"other":        "/rota/services/pay/a",
		"route":        "/rota/routes/r",
		"policy":       "/rota/policies/cart",
		"grant":        "/rota/grants/cart",
		"balancer":     "/rota/balancers/b",
		"its ack":      "/rota/acks/cart/a/b",
		"other ack":    "/rota/acks/pay/a/b",
		"another part": "/rota/future/x",
		"elsewhere":    "/elsewhere/x",
	}
	may := map[string]struct{ read, write string }{ // names of the above, separated by commas
		"cart":   {"its own,balancer,its ack", "its own"},
		"daemon": {"its own,a neighbour,other,route,policy,grant,balancer,its ack,other ack,another part", "balancer,its ack,other ack"},
		"olga":   {"its own,a neighbour,other,route,policy,grant,balancer,its ack,other ack,another part", "its own,a neighbour,other,route,policy,grant"},
		"vic":    {"its own,a neighbour,other,route,policy,grant,balancer,its ack,other ack,another part", ""},
	}
	tried := 0
	for user, rights := range may {
		etcd := etcdtest.NewClient(t, clientv3.Config{Endpoints: s.Endpoints(), Username: user, Password: passwords[user]})
		for name, key := range everything {
			if _, err := root.Put(limit(t), key, "10.0.0.7:80"); err != nil {
				t.Fatal(err)
			}
			for what, do := range map[string]func() error{
				"read":   func() error { _, err := etcd.Get(limit(t), key); return err },
				"write":  func() error { _, err := etcd.Put(limit(t), key, "10.0.0.8:80"); return err },
				"delete": func() error { _, err := etcd.Delete(limit(t), key); return err },
			} {
				tried++
				list := rights.read
				if what != "read" {
					list = rights.write
				}
				allowed := strings.Contains(","+list+",", ","+name+",")
				if err := do(); allowed && err != nil || !allowed && !errors.Is(err, rpctypes.ErrPermissionDenied) {
					t.Errorf("%s, to %s %s (%s): allowed %v, got %v", user, what, name, key, allowed, err)
				}
			}
		}
	}
	t.Logf("%d attempts of %d users", tried, len(may))

	// A service cannot end a lease that holds another's keys, nor put its own keys under it.
	lease, err := root.Grant(limit(t), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Put(limit(t), everything["other"], "10.0.0.7:80", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	cart := etcdtest.NewClient(t, clientv3.Config{Endpoints: s.Endpoints(), Username: "cart", Password: passwords["cart"]})
	if _, err := cart.Revoke(limit(t), lease.ID); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("cart ends another's lease: %v", err)
	}
	if _, err := cart.Put(limit(t), everything["its own"], "x", clientv3.WithLease(lease.ID)); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("cart puts under another's lease: %v", err)
	}
}

// A service registers, changes, drains and leaves with nothing but its role, and the daemon watches, shows itself and
// acknowledges with nothing but its own, while their tokens expire over and over.
func TestRolesAreEnough(t *testing.T) {
	t.Parallel()
	const ttl = 1 // seconds; etcd looks for old tokens once a second
	s := etcdtest.Start(t, func(cfg *embed.Config) { cfg.AuthToken, cfg.AuthTokenTTL = "simple", ttl })
	passwords := documentedRoles(t, s.Client())
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	as := func(user string) *Client {
		return dial(t, []string{relay.Addr()}, func(o *Options) { o.Username, o.Password, o.TTL = user, passwords[user], 6*time.Second })
	}
	daemon, cart := as("daemon"), as("cart")
	if err := daemon.Check(limit(t)); err != nil {
		t.Fatal(err)
	}
	w := registrytest.Watch(t, daemon, registry.Scope{})
	w.WaitReset(t)
	presence, err := daemon.Join(registry.Balancer{ID: "b", Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	key := daemon.keys.Balancer("b")
	w.Wait(t, "the balancer's record", func(view map[string]registry.Change) bool { _, ok := view[key]; return ok })

	reg := register(t, cart, instance("cart", "a"))
	own := daemon.keys.Instance("cart", "a")
	for i := range 3 {
		<-time.After(ttl*time.Second + 1200*time.Millisecond) // nobody asks for a token meanwhile
		relay.Cut()
		version := fmt.Sprint(i)
		if err := reg.Update(limit(t), func(in *registry.Instance) { in.Version = version }); err != nil {
			t.Fatal(err)
		}
		w.Wait(t, "the update", func(view map[string]registry.Change) bool {
			in := view[own].Instance
			return in != nil && in.Version == version
		})
		waitState(t, reg, registry.Registered)
	}
	if n := cart.Stats().LeasesLost + daemon.Stats().LeasesLost; n != 0 {
		t.Errorf("%d leases were lost because tokens expired", n)
	}

	drained := make(chan error, 1)
	go func() { drained <- reg.Drain(limit(t)) }()
	w.Wait(t, "the draining", func(view map[string]registry.Change) bool {
		in := view[own].Instance
		return in != nil && in.State == registry.Draining
	})
	presence.Acknowledge("cart", "a", reg.Instance().Incarnation)
	if err := <-drained; err != nil {
		t.Errorf("draining: %v", err)
	}
	if err := reg.Leave(limit(t)); err != nil {
		t.Errorf("leaving: %v", err)
	}
	presence.Forget("cart", "a")
	w.Wait(t, "all but the balancer gone", func(view map[string]registry.Change) bool { _, ok := view[key]; return ok && len(view) == 1 })
	if err := presence.Leave(limit(t)); err != nil {
		t.Errorf("the balancer leaving: %v", err)
	}

	// Elsewhere it is told what it lacks, and goes on trying.
	denied, err := cart.Register(context.Background(), instance("pay", "a"))
	if err != nil {
		t.Fatal(err)
	}
	waitErr(t, denied, rpctypes.ErrPermissionDenied)
	if text := denied.Err().Error(); !strings.Contains(text, "grant-permission") || !strings.Contains(text, `user "cart"`) {
		t.Errorf("without the right: %s", text)
	}
	beside := dial(t, []string{relay.Addr()}, withForeign, func(o *Options) { o.Username, o.Password = "daemon", passwords["daemon"] })
	lost := registrytest.Watch(t, beside, registry.Scope{})
	lost.WaitErr(t)
	if st := beside.Stats(); st.Connected != 0 || len(st.Relists) != len(relistReasons) || st.Relists[RelistStart] != 0 {
		t.Errorf("a prefix that may not be read: %+v", st)
	}
}
