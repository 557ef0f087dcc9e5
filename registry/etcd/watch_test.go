package registryetcd

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
)

func compact(t *testing.T, s *etcdtest.Server) {
	t.Helper()
	resp, err := s.Client().Get(limit(t), "x", clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client().Compact(limit(t), resp.Header.Revision); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatal(err)
	}
}

// A connection that breaks and comes back at once is nobody's business.
func TestWatchResumes(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	// What is told here is that it is the same watch, not how soon a machine with much else to do connects.
	c := dial(t, []string{relay.Addr()}, func(o *Options) { o.resumeWithin = time.Minute })
	w := watchAll(t, c)
	want := map[string]string{}
	for i := range 10 {
		key := registry.Keys{}.Instance("resume", fmt.Sprint(i))
		relay.Cut()
		put(t, s, key, "10.0.0.7:1")
		want[key] = "10.0.0.7:1"
		waitView(t, w, want)
	}
	st := c.Stats()
	if st.Relists[RelistStart] != 1 || st.Relists[RelistLost] != 0 || st.Resumes == 0 || st.Connected != 1 {
		t.Errorf("after ten cuts: %+v", st)
	}
}

// While a watch is cut off, what it would go on from is compacted.
func TestWatchCompacted(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()}, func(o *Options) { o.PageSize = 7 })
	w := watchAll(t, c)
	want := map[string]string{}
	for i := range 50 {
		want[registry.Keys{}.Instance("compact", fmt.Sprint(i))] = "10.0.0.7:1"
	}
	for key, address := range want {
		put(t, s, key, address)
	}
	waitView(t, w, want)
	relay.Refuse()
	for key := range want {
		put(t, s, key, "10.0.0.7:2")
		want[key] = "10.0.0.7:2"
	}
	for key := range want {
		if len(want) == 40 {
			break
		}
		if _, err := s.Client().Delete(limit(t), key); err != nil {
			t.Fatal(err)
		}
		delete(want, key)
	}
	compact(t, s)
	relay.Accept()
	waitView(t, w, want)
	if st := c.Stats(); st.Relists[RelistCompacted]+st.Relists[RelistLost] != 1 {
		t.Errorf("%+v", st.Relists)
	}
}

// A connection that says nothing is noticed, and left for another.
func TestWatchSilent(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()}, func(o *Options) { o.ProgressEvery, o.Silence = 200*time.Millisecond, 500*time.Millisecond })
	w := watchAll(t, c)
	key := registry.Keys{}.Instance("silent", "a")
	put(t, s, key, "10.0.0.7:1")
	waitView(t, w, map[string]string{key: "10.0.0.7:1"})
	relay.Pause()
	start := time.Now()
	put(t, s, key, "10.0.0.7:2")
	w.WaitErr(t)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("noticed after %s", took)
	}
	waitView(t, w, map[string]string{key: "10.0.0.7:1"})
	relay.Resume()
	waitView(t, w, map[string]string{key: "10.0.0.7:2"})
	w.WaitReset(t)
	if st := c.Stats(); st.Relists[RelistSilent]+st.Relists[RelistLost] != 1 {
		t.Errorf("%+v", st.Relists)
	}
}

// An etcd in which nobody writes has nothing to say, and is not taken for a dead one.
func TestWatchIdle(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints(), func(o *Options) { o.ProgressEvery, o.Silence = 20*time.Millisecond, 100*time.Millisecond })
	key := registry.Keys{}.Instance("idle", "a")
	put(t, s, key, "10.0.0.7:1")
	w := watchAll(t, c)
	updates := 0
	w.Wait(t, "ten updates", func(map[string]registry.Change) bool { updates++; return updates > 10 })
	if st := c.Stats(); st.Connected != 1 || st.Relists[RelistSilent] != 0 {
		t.Errorf("while nothing was written: %+v", st)
	}
	put(t, s, key, "10.0.0.7:2")
	waitView(t, w, map[string]string{key: "10.0.0.7:2"})
}

// Leaders go, one after the other, and nothing flaps.
func TestLeaderChanges(t *testing.T) {
	t.Parallel()
	s := etcdtest.StartCluster(t, 3)
	c, watcher := dial(t, s.Endpoints()), dial(t, s.Endpoints())
	w := watchAll(t, watcher)
	want := map[string]string{}
	var regs []registry.Registration
	for i := range 5 {
		id := fmt.Sprint(i)
		regs = append(regs, register(t, c, instance("leader", id)))
		want[registry.Keys{}.Instance("leader", id)] = "10.0.0.7:5001"
	}
	waitView(t, w, want)
	for i := range 3 {
		old := s.Leader()
		old.Stop()
		s.Leader()
		key := registry.Keys{}.Instance("moved", fmt.Sprint(i))
		eventually(t, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := s.Client().Put(ctx, key, "10.0.0.8:1")
			return err
		})
		want[key] = "10.0.0.8:1"
		waitView(t, w, want)
		old.Restart()
	}
	for _, reg := range regs {
		waitState(t, reg, registry.Registered)
	}
	waitView(t, w, want)
	if st := watcher.Stats(); st.Deletes != 0 {
		t.Errorf("%d records flapped", st.Deletes)
	}
}

// The store is replaced by an empty one at the same address, which even has the same cluster id.
func TestWipedStore(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints())
	w := watchAll(t, c)
	reg := register(t, c, instance("wiped", "a"))
	mine, gone := registry.Keys{}.Instance("wiped", "a"), registry.Keys{}.Instance("gone", "a")
	for range 50 {
		put(t, s, gone, "10.0.0.8:1")
	}
	waitView(t, w, map[string]string{mine: "10.0.0.7:5001", gone: "10.0.0.8:1"})
	s.Stop()
	s.Wipe()
	s.Restart()
	waitView(t, w, map[string]string{mine: "10.0.0.7:5001"})
	waitStored(t, s, c, reg)
}

// Wiped, restarted and filled beyond the old revision while the watch was cut off for a moment only.
func TestWipedStoreThatOvertook(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints(), func(o *Options) { o.AuditEvery = 100 * time.Millisecond })
	w := watchAll(t, c)
	old, fresh := registry.Keys{}.Instance("old", "a"), registry.Keys{}.Instance("new", "a")
	put(t, s, old, "10.0.0.8:1")
	waitView(t, w, map[string]string{old: "10.0.0.8:1"})
	s.Stop()
	s.Wipe()
	s.Restart()
	for range 20 {
		put(t, s, fresh, "10.0.0.9:1")
	}
	waitView(t, w, map[string]string{fresh: "10.0.0.9:1"})
}

// A store is put back to a state that is further than the one that took its place in the meantime. What happened in it long ago is not
// told as if it were news, and the reader learns that this is not the store he knew.
func TestRestoredStoreThatIsFurther(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	old, fresh := registry.Keys{}.Instance("old", "a"), registry.Keys{}.Instance("new", "a")
	for i := range 20 {
		put(t, s, old, fmt.Sprint("10.0.0.8:", i+1))
	}
	s.Stop()
	backup := s.Backup()
	s.Wipe()
	s.Restart()
	put(t, s, fresh, "10.0.0.9:1")
	for _, resume := range []time.Duration{time.Minute, time.Nanosecond} { // the watch goes on; or it lists anew
		c := dial(t, s.Endpoints(), func(o *Options) { o.AuditEvery, o.resumeWithin = -1, resume })
		updates := make(chan registry.Update, 100)
		ctx, cancel := context.WithCancel(limit(t))
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Watch(ctx, registry.Scope{Instances: true}, func(u registry.Update) {
				if u.Err == nil && (u.Reset || len(u.Changes) > 0) {
					updates <- u
				}
			})
		}()
		if u := <-updates; !u.Reset || u.Elsewhere || len(u.Changes) != 1 {
			t.Fatalf("at first: %+v", u)
		}
		s.Stop()
		s.Restore(backup)
		s.Restart()
		if u := <-updates; !u.Reset || !u.Elsewhere || len(u.Changes) != 1 || u.Changes[0].Instance.Address != "10.0.0.8:20" {
			t.Errorf("resumed within %v: %+v", resume, u)
		}
		s.Stop() // and once more, the state as it was being none of the past
		s.Restart()
		put(t, s, old, "10.0.0.8:21")
		for at := ""; at != "10.0.0.8:21"; {
			u := <-updates
			if at = u.Changes[0].Instance.Address; u.Elsewhere {
				t.Errorf("resumed within %v, after a restart: %+v", resume, u)
			}
		}
		cancel()
		<-done
		s.Stop()
		s.Wipe()
		s.Restart()
		put(t, s, fresh, "10.0.0.9:1")
	}
}

// A backlog larger than a message comes in fragments, and revisions stay whole.
func TestWatchFragments(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, func(cfg *embed.Config) { cfg.MaxRequestBytes = 64 << 10 })
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()})
	w := watchAll(t, c)
	first := registry.Keys{}.Instance("fragments", "first")
	put(t, s, first, "10.0.0.7:1")
	waitView(t, w, map[string]string{first: "10.0.0.7:1"}) // the list has been followed by a watch
	relay.Refuse()
	want := map[string]string{first: "10.0.0.7:1"}
	value := `{"address":"10.0.0.7:1","note":"` + strings.Repeat("x", 5000) + `"}`
	for i := range 40 {
		var ops []clientv3.Op
		for j := range 10 {
			key := registry.Keys{}.Instance("fragments", fmt.Sprintf("%d-%d", i, j))
			ops = append(ops, clientv3.OpPut(key, value))
			want[key] = "10.0.0.7:1"
		}
		if _, err := s.Client().Txn(limit(t)).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	relay.Accept()
	waitView(t, w, want)
	if st := c.Stats(); st.Resumes == 0 && st.Relists[RelistLost] == 0 {
		t.Errorf("%+v", st)
	}
}

// Random writes, cuts, pauses and compactions: in the end the watch shows what etcd holds.
func TestWatchConverges(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()}, func(o *Options) {
		o.ProgressEvery, o.Silence = 100*time.Millisecond, 300*time.Millisecond
		o.AuditEvery, o.PageSize = 50*time.Millisecond, 10
	})
	w := watchAll(t, c)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	want := map[string]string{}
	for i := range 3000 {
		key := registry.Keys{}.Instance("random", fmt.Sprint(rng.IntN(60)))
		if rng.IntN(3) == 0 {
			if _, err := s.Client().Delete(limit(t), key); err != nil {
				t.Fatal(err)
			}
			delete(want, key)
		} else {
			want[key] = fmt.Sprintf("10.0.0.7:%d", i+1)
			put(t, s, key, want[key])
		}
		switch rng.IntN(400) {
		case 0:
			relay.Cut()
		case 1:
			relay.Pause()
		case 2, 3, 4, 10, 11, 12, 13, 14, 15:
			relay.Resume()
		case 5:
			relay.Refuse()
		case 6, 7, 8, 16, 17, 18, 19, 20, 21:
			relay.Accept()
		case 9:
			compact(t, s)
		}
	}
	relay.Resume()
	relay.Accept()
	waitView(t, w, want)
	before := c.Stats()
	eventually(t, func() error { // audits go on, and find nothing
		if c.Stats().Audits < before.Audits+3 {
			return errors.New("no audit")
		}
		return nil
	})
	after := c.Stats()
	t.Logf("%+v", after)
	if after.Relists[RelistAudit] != 0 || after.Relists[RelistOrder] != 0 {
		t.Errorf("differences where there are none: %v", after.Relists)
	}
}

// The audit notices whatever a watch may have missed.
func TestAudit(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints(), func(o *Options) { o.PageSize = 3 })
	for i := range 10 {
		put(t, s, registry.Keys{}.Instance("audit", fmt.Sprint(i)), "10.0.0.7:1")
	}
	w := &watch{c: c, log: c.log, prefixes: []string{"/rota/services/"}, seed: maphash.MakeSeed(), apply: func(registry.Update) {}}
	if err := w.reset(t.Context(), RelistStart); err != nil {
		t.Fatal(err)
	}
	held := maps.Clone(w.seen)
	key := func(i int) uint64 { return w.hash([]byte(registry.Keys{}.Instance("audit", fmt.Sprint(i)))) }
	for name, test := range map[string]struct {
		spoil func()
		touch uint64
		want  error
	}{
		"equal":   {func() {}, 0, nil},
		"missed":  {func() { delete(w.seen, key(3)) }, 0, errAudit},
		"wrong":   {func() { w.seen[key(3)]-- }, 0, errAudit},
		"extra":   {func() { w.seen[key(99)] = 2 }, 0, errAudit},
		"touched": {func() { w.seen[key(3)]++ }, key(3), nil},
		"deleted": {func() { delete(w.seen, key(3)) }, key(3), nil},
		"new":     {func() { w.seen[key(99)] = 2 }, key(99), nil},
	} {
		w.seen = maps.Clone(held)
		test.spoil()
		a := w.startAudit(t.Context())
		<-a.done
		a.touched[test.touch] = struct{}{}
		if !a.finished(w.rev) || a.finished(w.rev-1) {
			t.Errorf("%s: the audit of revision %d at revision %d", name, a.rev, w.rev)
		}
		if err := w.judge(a); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

// Changes said twice are dropped; a change that comes too late is no longer trusted.
func TestEventsOnce(t *testing.T) {
	c, err := connect(Options{}, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got []int64
	w := &watch{c: c, log: c.log, seed: maphash.MakeSeed(), seen: map[uint64]int64{}, rev: 10, apply: func(u registry.Update) {
		for _, ch := range u.Changes {
			got = append(got, ch.ModRevision)
		}
	}}
	event := func(key string, rev int64, deleted bool) *mvccpb.Event {
		ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("/rota/services/s/" + key), ModRevision: rev, Value: []byte("10.0.0.7:1")}}
		if deleted {
			ev.Type, ev.Kv.Value = mvccpb.Event_DELETE, nil
		}
		return ev
	}
	for _, step := range []struct {
		events []*mvccpb.Event
		got    string
		err    error
	}{
		{[]*mvccpb.Event{event("a", 11, false), event("b", 11, false), event("c", 12, false)}, "[11 11 12]", nil},
		{[]*mvccpb.Event{event("c", 12, false), event("a", 13, false)}, "[13]", nil},
		{[]*mvccpb.Event{event("a", 11, false)}, "[]", nil},
		{[]*mvccpb.Event{event("b", 14, true)}, "[14]", nil},
		{[]*mvccpb.Event{event("b", 14, true)}, "[]", nil},
		{[]*mvccpb.Event{event("d", 13, false)}, "[]", errOrder},
		{[]*mvccpb.Event{event("c", 13, true)}, "[]", errOrder},
		{[]*mvccpb.Event{event("a", 16, false), event("b", 15, false)}, "[]", errOrder},
	} {
		got = nil
		if err := w.events(step.events, 0, nil); !errors.Is(err, step.err) {
			t.Errorf("%v: %v, want %v", step.events, err, step.err)
		}
		if s := fmt.Sprint(got); s != step.got {
			t.Errorf("%v: delivered %s, want %s", step.events, s, step.got)
		}
	}
}

// A response that broke off, for a change came after a later one, does not make another store of the one that it came from.
func TestBrokenOffIsNotElsewhere(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints())
	var last registry.Update
	w := &watch{
		c: c, log: c.log, seed: maphash.MakeSeed(), prefixes: c.prefixes(registry.Scope{Instances: true}),
		apply: func(u registry.Update) { last = u },
	}
	record := func(id string) *mvccpb.Event {
		t.Helper()
		key := registry.Keys{}.Instance("s", id)
		put(t, s, key, "10.0.0.7:1")
		got, err := s.Client().Get(limit(t), key)
		if err != nil {
			t.Fatal(err)
		}
		return &mvccpb.Event{Kv: got.Kvs[0]}
	}
	record("a")
	if err := w.reset(limit(t), RelistStart); err != nil {
		t.Fatal(err)
	}
	early, late := record("b"), record("c")
	if err := w.events([]*mvccpb.Event{late, early}, 0, nil); !errors.Is(err, errOrder) {
		t.Fatal(err)
	}
	if err := w.reset(limit(t), RelistOrder); err != nil || !last.Reset || last.Elsewhere || len(last.Changes) != 3 {
		t.Errorf("%v, %+v", err, last)
	}
}

// The revision of a list is compacted while it is read: it begins again.
func TestListCompacted(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints(), func(o *Options) { o.PageSize = 10 })
	for i := range 35 {
		put(t, s, registry.Keys{}.Instance("list", fmt.Sprintf("%02d", i)), "10.0.0.7:1")
	}
	begun, n := 0, 0
	header, err := c.list(t.Context(), []string{"/rota/"}, false, func() { begun++; n = 0 }, func(kv *mvccpb.KeyValue) {
		if n++; n == 15 && begun == 1 {
			put(t, s, registry.Keys{}.Instance("list", "99"), "10.0.0.7:1")
			compact(t, s)
		}
	})
	if err != nil || begun != 2 || n != 36 || header.Revision != 37 {
		t.Errorf("begun %d times, %d keys, %v, %v", begun, n, header, err)
	}
}

// One change among 100,000 instances.
func BenchmarkEvent(b *testing.B) {
	c, err := connect(Options{}, noEnv)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	w := &watch{c: c, log: c.log, seed: maphash.MakeSeed(), seen: map[uint64]int64{}, apply: func(registry.Update) {}}
	value := []byte(`{"address":"10.0.0.7:5001","weight":100,"zone":"eu-1a","version":"1.4.2","incarnation":"01JC0000000000000000000000"}`)
	keys := make([][]byte, 100_000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "/rota/services/service-%d/host-%d", i%5000, i)
		w.seen[w.hash(keys[i])] = 1
	}
	b.ReportAllocs()
	rev := int64(1)
	for b.Loop() {
		rev++
		ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: keys[rev%int64(len(keys))], Value: value, ModRevision: rev, CreateRevision: 1}}
		if err := w.events([]*mvccpb.Event{ev}, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
}
