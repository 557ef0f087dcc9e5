package registryetcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
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

// A lease that is gone, or a key, is put again within half the lease's lifetime, every time.
func TestRecoversAtOnce(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	for name, harm := range map[string]func(*Client, string){
		"lease revoked": func(c *Client, _ string) { revoke(t, s, c) },
		"key deleted": func(_ *Client, key string) {
			if _, err := s.Client().Delete(limit(t), key); err != nil {
				t.Fatal(err)
			}
		},
		"key overwritten": func(_ *Client, key string) { put(t, s, key, "nonsense") },
		"older record":    func(_ *Client, key string) { put(t, s, key, `{"address":"10.9.9.9:9","incarnation":"0"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, s.Endpoints())
			w := watchAll(t, c)
			reg := register(t, c, instance(strings.ReplaceAll(name, " ", "-"), "a"))
			in := reg.Instance()
			key := registry.Keys{}.Instance(in.Service, in.ID)
			var took []time.Duration
			for i := range 20 {
				waitStored(t, s, c, reg)
				if i < 15 { // the last ones come too fast to be answered at once
					<-time.After(atRest)
				}
				resp, err := s.Client().Get(limit(t), key)
				if err != nil {
					t.Fatal(err)
				}
				rev := resp.Kvs[0].ModRevision
				start := time.Now()
				harm(c, key)
				w.Wait(t, "the record to be put again", func(view map[string]registry.Change) bool {
					ch := view[key]
					return ch.ModRevision > rev && ch.Instance != nil && ch.Instance.Incarnation == in.Incarnation
				})
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			t.Logf("back after: median %s, longest %s", took[len(took)/2], took[len(took)-1])
			if longest := took[len(took)-1]; longest > testTTL/2 {
				t.Errorf("took up to %s, want at most %s", longest, testTTL/2)
			}
			waitStored(t, s, c, reg)
			if err := reg.Leave(limit(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The watch on the own key is cut off, and where it would go on is compacted.
func TestNoticesAfterCompaction(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()})
	reg := register(t, c, instance("compacted", "a"))
	for range 10 {
		put(t, s, "/other", "x")
	}
	compact(t, s)
	relay.Cut()
	for range 3 {
		if _, err := s.Client().Delete(limit(t), registry.Keys{}.Instance("compacted", "a")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		waitStored(t, s, c, reg)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("noticed after %s", took)
		}
	}
}

// A put whose answer was not waited for must not outlive the registration.
func TestLatePut(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()})
	stays := register(t, c, instance("stays", "a"))
	relay.Pause()
	reg, err := c.Register(context.Background(), instance("late", "a"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := reg.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) || reg.State() != registry.Left {
		t.Errorf("Leave while etcd hangs: %v, state %d", err, reg.State())
	}
	relay.Resume()
	if err := reg.Leave(limit(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if in, _ := stored(t, s, "late", "a"); in != nil {
			return errors.New("it is there")
		}
		return nil
	})
	waitStored(t, s, c, stays)
}

// etcd is away for three lifetimes of a lease and comes back with its data.
func TestOutage(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints())
	w := watchAll(t, c)
	reg := register(t, c, instance("outage", "a"))
	key := registry.Keys{}.Instance("outage", "a")
	put(t, s, registry.Keys{}.Instance("fixed", "a"), "10.0.0.8:80")
	want := map[string]string{key: "10.0.0.7:5001", registry.Keys{}.Instance("fixed", "a"): "10.0.0.8:80"}
	waitView(t, w, want)

	s.Stop()
	down := time.Now()
	w.WaitErr(t)
	waitState(t, reg, registry.Retrying)
	if err := reg.Err(); err == nil {
		t.Error("Err is nil while etcd is away")
	}
	if in := reg.Instance(); in.Address == "" {
		t.Error("the record is forgotten")
	}
	if st := c.Stats(); st.Connected != 0 || st.Registered != 0 || st.Watches != 1 {
		t.Errorf("while etcd is away: %+v", st)
	}
	waitView(t, w, want) // stale, not gone
	<-time.After(time.Until(down.Add(3 * testTTL)))
	s.Restart()
	up := time.Now()
	waitState(t, reg, registry.Registered)
	t.Logf("registered %s after the restart", time.Since(up))
	waitStored(t, s, c, reg)
	w.WaitReset(t)
	waitView(t, w, want)
	if st := c.Stats(); st.Connected != 1 || st.Registered != 1 || st.Lost != 1 || st.Relists[RelistLost] != 1 {
		t.Errorf("after the outage: %+v", st)
	}
}

// The connection hangs, with nothing closed, for longer than the lease lives. The record is gone meanwhile.
func TestHangingConnection(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()})
	other := watchAll(t, dial(t, s.Endpoints()))
	reg := register(t, c, instance("hang", "a"))
	key := registry.Keys{}.Instance("hang", "a")
	waitView(t, other, map[string]string{key: "10.0.0.7:5001"})
	relay.Pause()
	waitView(t, other, nil)
	waitState(t, reg, registry.Retrying)
	relay.Resume()
	waitStored(t, s, c, reg)
	waitView(t, other, map[string]string{key: "10.0.0.7:5001"})
}

func TestSurvivesNoSpace(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, func(cfg *embed.Config) { cfg.QuotaBackendBytes = 4 << 20 })
	c := dial(t, s.Endpoints())
	w := watchAll(t, c)
	reg := register(t, c, instance("full", "a"))
	etcd, ctx := s.Client(), limit(t)
	big := strings.Repeat("x", 256<<10)
	for {
		_, err := etcd.Put(ctx, "/big", big)
		if errors.Is(err, rpctypes.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	revoke(t, s, c)
	waitState(t, reg, registry.Retrying)
	waitErr(t, reg, rpctypes.ErrNoSpace)
	waitView(t, w, nil)

	resp, err := etcd.Get(ctx, "/big")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Compact(ctx, resp.Header.Revision); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Defragment(ctx, s.Endpoints()[0]); err != nil {
		t.Fatal(err)
	}
	alarms, err := etcd.AlarmList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alarms.Alarms {
		if _, err := etcd.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			t.Fatal(err)
		}
	}
	waitStored(t, s, c, reg)
	waitView(t, w, map[string]string{registry.Keys{}.Instance("full", "a"): "10.0.0.7:5001"})
}

// Tokens end while nobody uses them; writes and watches go on.
func TestTokenExpiry(t *testing.T) {
	t.Parallel()
	const ttl = 1 // seconds
	s := etcdtest.Start(t, func(cfg *embed.Config) { cfg.AuthToken, cfg.AuthTokenTTL = "simple", ttl })
	enableAuth(t, s)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()}, func(o *Options) { o.Username, o.Password = "rota", "secret" })
	if err := c.Check(limit(t)); err != nil {
		t.Fatal(err)
	}
	w := watchAll(t, c)
	reg := register(t, c, instance("auth", "a"))
	for i := range 2 {
		<-time.After(ttl*time.Second + 1500*time.Millisecond) // etcd looks for old tokens once a second
		if err := reg.Update(limit(t), func(in *registry.Instance) { in.Version = fmt.Sprint(i) }); err != nil {
			t.Fatal(err)
		}
		key := registry.Keys{}.Instance("auth", "a")
		w.Wait(t, "the update", func(view map[string]registry.Change) bool {
			return view[key].Instance != nil && view[key].Instance.Version == fmt.Sprint(i)
		})
		relay.Cut() // the next watch and heartbeat need a token again
	}
	if st := reg.State(); st != registry.Registered {
		t.Errorf("state %d: %v", st, reg.Err())
	}

	wrong := dial(t, s.Endpoints(), func(o *Options) { o.Username, o.Password = "rota", "wrong" })
	if err := wrong.Check(limit(t)); !errors.Is(err, rpctypes.ErrAuthFailed) || !strings.Contains(err.Error(), `refuses user "rota"`) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("Check with a wrong password: %v", err)
	}
	none := dial(t, s.Endpoints())
	if err := none.Check(limit(t)); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("Check without a user: %v", err)
	}
	narrow := dial(t, s.Endpoints(), func(o *Options) { o.Username, o.Password = "narrow", "secret" })
	if err := narrow.Check(limit(t)); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("Check without the right: %v", err)
	}
	register(t, narrow, instance("narrow", "a")) // readwrite on its own keys is enough for a service
	denied, err := narrow.Register(context.Background(), instance("other", "a"))
	if err != nil {
		t.Fatal(err)
	}
	waitErr(t, denied, rpctypes.ErrPermissionDenied)
	registrytest.Watch(t, narrow, registry.Scope{Service: "narrow"}).WaitReset(t)
}

// enableAuth makes the users root, rota (everything below /rota/) and narrow (its own service).
func enableAuth(t *testing.T, s *etcdtest.Server) {
	t.Helper()
	enableAuthAs(t, s.Client())
}

func enableAuthAs(t *testing.T, etcd *clientv3.Client) {
	t.Helper()
	ctx := limit(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []struct{ name, prefix string }{{"root", ""}, {"rota", "/rota/"}, {"narrow", "/rota/services/narrow/"}} {
		_, err := etcd.UserAdd(ctx, user.name, "secret")
		must(err)
		_, err = etcd.RoleAdd(ctx, user.name)
		must(err)
		_, err = etcd.UserGrantRole(ctx, user.name, user.name)
		must(err)
		if user.prefix != "" {
			_, err = etcd.RoleGrantPermission(ctx, user.name, user.prefix, clientv3.GetPrefixRangeEnd(user.prefix), clientv3.PermissionType(clientv3.PermReadWrite))
			must(err)
		}
	}
	_, err := etcd.AuthEnable(ctx)
	must(err)
}

// What is left behind when etcd is away at the end runs out by itself; Close does not wait for it for long.
func TestCloseWithoutEtcd(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()})
	reg := register(t, c, instance("close", "a"))
	relay.Refuse()
	start := time.Now()
	if err := c.Close(); err == nil {
		t.Error("Close could not delete the key and said nothing")
	}
	if took := time.Since(start); took > closeTimeout+time.Second {
		t.Errorf("Close took %s", took)
	}
	if reg.State() != registry.Left {
		t.Errorf("state %d after Close", reg.State())
	}
	eventually(t, func() error {
		if in, _ := stored(t, s, "close", "a"); in != nil {
			return errors.New("the record is still there")
		}
		return nil
	})
	if _, err := c.Register(context.Background(), instance("close", "a")); !errors.Is(err, ErrClosed) {
		t.Errorf("Register after Close: %v", err)
	}
	if err := c.Watch(context.Background(), registry.Scope{}, func(registry.Update) {}); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
}

func TestCloseLeavesAndRevokes(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints())
	w := watchAll(t, dial(t, s.Endpoints()))
	for i := range 20 {
		register(t, c, instance("close", fmt.Sprint(i)))
	}
	ended := make(chan error, 1)
	synced := make(chan struct{})
	go func() {
		ended <- c.Watch(context.Background(), registry.Scope{}, func(u registry.Update) {
			if u.Reset {
				close(synced)
			}
		})
	}()
	<-synced
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("Watch returned %v", err)
	}
	waitView(t, w, nil)
	leases, err := s.Client().Leases(limit(t))
	if err != nil || len(leases.Leases) != 0 {
		t.Errorf("leases after Close: %v, %v", leases, err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// A fleet of processes comes back after an outage of etcd within the life of a lease, ROTA_TEST_FLEET instances of it, and not all
// at one moment.
func TestFleetReturns(t *testing.T) {
	t.Parallel()
	n := 100
	if text := os.Getenv("ROTA_TEST_FLEET"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	const each = 5 // instances of a process
	s := etcdtest.Start(t)
	var all []registry.Registration
	for i := 0; i < n; i += each {
		c := dial(t, s.Endpoints())
		for k := range each {
			reg, err := c.Register(context.Background(), instance(fmt.Sprintf("fleet-%d", i+k), "a"))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, reg)
		}
	}
	for _, reg := range all {
		waitState(t, reg, registry.Registered)
	}
	s.Stop()
	down := time.Now()
	for _, reg := range all {
		waitState(t, reg, registry.Retrying)
	}
	<-time.After(time.Until(down.Add(2 * testTTL)))
	s.Restart()
	if _, err := s.Client().Get(limit(t), "any"); err != nil {
		t.Fatal(err)
	}
	up := time.Now() // etcd answers
	var returned []time.Duration
	for _, reg := range all {
		waitState(t, reg, registry.Registered)
		returned = append(returned, time.Since(up))
	}
	last := slices.Max(returned)
	t.Logf("%d instances are back: the first after %v, the last after %v", n, slices.Min(returned), last)
	if last > 2*testTTL {
		t.Errorf("the last is back after %v, leases live for %v", last, testTTL)
	}
	resp, err := s.Client().Get(limit(t), registry.DefaultPrefix+"/services/fleet-", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || resp.Count != int64(len(all)) {
		t.Errorf("etcd has %d of %d, %v", resp.Count, len(all), err)
	}
}
