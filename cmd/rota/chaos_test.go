//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer"
	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// The test binary is also what chaos strikes: a member of etcd, or an instance. What it needs to know is in its environment.
const (
	memberEnv = "ROTA_TEST_MEMBER"
	storeEnv  = "ROTA_TEST_STORE" // endpoints
	idEnv     = "ROTA_TEST_ID"
)

func init() {
	play := func(f func() error) func() int {
		return func() int {
			if err := f(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		}
	}
	roles["etcd"], roles["instance"] = play(beMember), play(beInstance)
}

// memberSpec says how a member of etcd runs. Others reach it by relays.
type memberSpec struct{ Name, Dir, Client, Peer, PeerRelay, Cluster string }

func beMember() error {
	var s memberSpec
	if err := json.Unmarshal([]byte(os.Getenv(memberEnv)), &s); err != nil {
		return err
	}
	at := func(address string) []url.URL { return []url.URL{{Scheme: "http", Host: address}} }
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = s.Name, s.Dir, s.Cluster
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at(s.Client), at(s.Client)
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at(s.Peer), at(s.PeerRelay)
	cfg.TickMs, cfg.ElectionMs = 20, 400
	cfg.UnsafeNoFsync = true // power does not fail here
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	return <-e.Err() // until it is killed
}

func beInstance() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client, err := registryetcd.Connect(registryetcd.Options{Endpoints: strings.Split(os.Getenv(storeEnv), ","), TTL: 3 * time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	srv := &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(5 * time.Millisecond)
		io.WriteString(w, "done")
	})}
	o := registry.ServeOptions{Advertise: registry.Advertise{AllowLoopback: true}, ShutdownTimeout: 5 * time.Second}
	return o.Serve(ctx, client, srv, registry.Instance{Service: "cart", ID: os.Getenv(idEnv)})
}

const chaosConfig = `
etcd: {endpoints: ["%s"]}
listeners: [{address: "%s"}]
admin: {address: "127.0.0.1:0"}
log: {access: off}
snapshot: {path: "%s"}
routes: [{name: cart, path: /, service: cart, timeout: 10s, timeouts: {response_head: 1s}}]
`

const (
	chaosInstances = 6
	chaosClients   = 8
	convergeWithin = 30 * time.Second
)

// world is what chaos strikes.
type world struct {
	t         *testing.T
	members   []*member
	daemons   []*struck
	instances []*struck
	backup    string // of etcd's data; empty until there is one
	random    *rand.Rand
	load      load
}

// member is one etcd server, with the relays that lead to it.
type member struct {
	spec          memberSpec
	process       *child
	clients, peer *etcdtest.Relay
}

// struck is a process that may die and come back.
type struck struct {
	process *child
	start   func() *child
	// away counts up when it is about to be gone, and again when it is back: even is there.
	away atomic.Int64
}

func (s *struck) kill() {
	s.away.Add(1)
	s.process.Process.Kill()
	<-s.process.done
}

func (s *struck) restart() {
	s.process = s.start()
	s.away.Add(1)
}

// freeAddresses are such as freeAddr finds, all different.
func freeAddresses(t *testing.T, n int) (list []string) {
	t.Helper()
	for len(list) < n {
		if address := freeAddr(t); !slices.Contains(list, address) {
			list = append(list, address)
		}
	}
	return list
}

func (w *world) role(role string, env ...string) *child {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(env, roleEnv+"="+role)
	return launch(w.t, cmd)
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 0))}
	dir, free := t.TempDir(), freeAddresses(t, 8)
	var cluster, endpoints []string
	for i := range 3 {
		m := &member{spec: memberSpec{Name: fmt.Sprint("m", i), Dir: filepath.Join(dir, fmt.Sprint("m", i)), Client: free[2*i], Peer: free[2*i+1]}}
		m.clients, m.peer = etcdtest.NewRelay(t, m.spec.Client), etcdtest.NewRelay(t, m.spec.Peer)
		m.spec.PeerRelay = m.peer.Addr()
		cluster = append(cluster, m.spec.Name+"=http://"+m.spec.PeerRelay)
		endpoints = append(endpoints, m.clients.Addr())
		w.members = append(w.members, m)
	}
	for _, m := range w.members {
		m.spec.Cluster = strings.Join(cluster, ",")
	}
	w.startMembers()
	for i := range 2 {
		config := write(t, "rota.yaml", fmt.Sprintf(chaosConfig, strings.Join(endpoints, `","`), free[6+i], filepath.Join(t.TempDir(), "table.json")))
		w.daemons = append(w.daemons, &struck{start: func() *child {
			c := spawn(t, "serve", "-c", config)
			c.find(listening)
			c.find(adminURL)
			return c
		}})
	}
	for i := range chaosInstances {
		w.instances = append(w.instances, &struck{start: func() *child {
			return w.role("instance", storeEnv+"="+strings.Join(endpoints, ","), idEnv+"="+fmt.Sprint(i))
		}})
	}
	for _, s := range slices.Concat(w.daemons, w.instances) {
		s.process = s.start()
	}
	w.converge()
	w.load.begin(w, free[6:])
	return w
}

func (w *world) startMembers() {
	for _, m := range w.members {
		text, err := json.Marshal(m.spec)
		if err != nil {
			w.t.Fatal(err)
		}
		m.process = w.role("etcd", memberEnv+"="+string(text))
	}
}

func (w *world) killMembers() {
	for _, m := range w.members {
		m.process.Process.Kill()
		<-m.process.done
	}
}

// stored are the addresses of the instances in etcd, sorted.
func (w *world) stored() ([]string, error) {
	var endpoints []string
	for _, m := range w.members {
		endpoints = append(endpoints, m.spec.Client)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
	defer cancel()
	resp, err := c.Get(ctx, "/rota/services/cart/", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var list []string
	for _, kv := range resp.Kvs {
		var in struct{ Address, State string }
		if err := json.Unmarshal(kv.Value, &in); err != nil {
			return nil, err
		}
		list = append(list, in.Address+" "+in.State)
	}
	slices.Sort(list)
	return list, nil
}

// seen are the addresses of the instances that a daemon has, sorted, and why those that are not ready are not.
func seen(daemon *child) (list, why []string, err error) {
	resp, err := http.Get("http://" + daemon.find(adminURL) + "/api/v1/services/cart")
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	var s balancer.Service
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return nil, nil, err
	}
	for _, in := range s.Instances {
		state := in.State
		if state == "ready" {
			state = ""
		} else {
			why = append(why, fmt.Sprintf("%s is %s since %s: %s, check %+v, lease %s", in.ID, state, in.Since.Format(time.TimeOnly), in.Reason, in.Check, in.Lease))
			for line := range strings.Lines(daemon.out.String()) {
				if strings.Contains(line, fmt.Sprintf("\"instance\":%q", in.ID)) {
					why = append(why, line)
				}
			}
		}
		list = append(list, in.Address+" "+state)
	}
	slices.Sort(list)
	return list, why, nil
}

// converge waits until etcd has every instance, ready, and each daemon has just these; it returns how long that took.
func (w *world) converge() time.Duration {
	w.t.Helper()
	began := time.Now()
	for {
		why := w.apart()
		if why == nil {
			return time.Since(began)
		}
		if time.Since(began) > convergeWithin {
			w.t.Fatalf("not as before after %v: %v", convergeWithin, why)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// apart says in what the world is not as it should be.
func (w *world) apart() error {
	truth, err := w.stored()
	if err != nil {
		return err
	}
	if len(truth) != chaosInstances {
		return fmt.Errorf("etcd has %q", truth)
	}
	for i, d := range w.daemons {
		list, why, err := seen(d.process)
		if err != nil {
			return err
		}
		if !slices.Equal(list, truth) {
			return fmt.Errorf("daemon %d has %q, etcd has %q; %q", i, list, truth, why)
		}
	}
	return nil
}

// load are clients that go to either daemon, as behind a balancer of connections: to one that is there.
type load struct {
	done, failed atomic.Int64
	mu           sync.Mutex
	errs         []error // since the last look
	stop         context.CancelFunc
	wg           sync.WaitGroup
}

func (l *load) begin(w *world, addresses []string) {
	var ctx context.Context
	ctx, l.stop = context.WithCancel(context.Background())
	hc := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: chaosClients}}
	for i := range chaosClients {
		l.wg.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) { // the pace of a client
				i++
				d := w.daemons[i%2]
				before := d.away.Load()
				if before%2 == 1 {
					continue
				}
				err := (&clients{}).once(hc, "http://"+addresses[i%2]+"/")
				if d.away.Load() != before {
					continue // it was killed: nobody else answers for that
				}
				l.done.Add(1)
				if err != nil {
					l.failed.Add(1)
					l.mu.Lock()
					l.errs = append(l.errs, err)
					l.mu.Unlock()
				}
			}
		})
	}
}

// look returns what has failed since the last look.
func (l *load) look() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	errs := l.errs
	l.errs = nil
	return errors.Join(errs...)
}

// fault is something that goes wrong and is put right again. Both return when that is done.
type fault struct {
	name string
	run  func(w *world)
}

var faults = []fault{
	{"an instance is killed and started again", func(w *world) {
		i := w.anyInstance()
		i.kill()
		time.Sleep(time.Second)
		i.restart()
	}},
	{"etcd is killed, all of it, and started again", func(w *world) {
		w.killMembers()
		w.backup = w.t.TempDir()
		w.copyData(func(m *member) (from, to string) { return m.spec.Dir, filepath.Join(w.backup, m.spec.Name) })
		time.Sleep(4 * time.Second) // longer than leases last
		w.startMembers()
	}},
	{"a daemon is killed and started again", func(w *world) {
		d := w.anyDaemon()
		d.kill()
		time.Sleep(time.Second)
		d.restart()
	}},
	{"etcd loses everything", func(w *world) {
		w.killMembers()
		for _, m := range w.members {
			if err := os.RemoveAll(m.spec.Dir); err != nil {
				w.t.Fatal(err)
			}
		}
		w.startMembers()
	}},
	{"an instance is stopped for longer than its lease lasts", func(w *world) {
		i := w.anyInstance()
		i.process.Process.Signal(syscall.SIGSTOP)
		time.Sleep(5 * time.Second)
		i.process.Process.Signal(syscall.SIGCONT)
	}},
	{"a member of etcd is stopped", func(w *world) { w.stopMembers(1, 3*time.Second) }},
	{"two members of etcd are stopped: nobody leads", func(w *world) { w.stopMembers(2, 5*time.Second) }},
	{"a member of etcd is cut off", func(w *world) {
		m := w.members[w.random.IntN(3)]
		m.peer.Pause()
		m.clients.Pause()
		time.Sleep(4 * time.Second)
		m.peer.Resume()
		m.clients.Resume()
	}},
	{"every way to etcd is slow", func(w *world) {
		for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
			w.relays((*etcdtest.Relay).Pause)
			time.Sleep(150 * time.Millisecond)
			w.relays((*etcdtest.Relay).Resume)
		}
	}},
	{"every connection to etcd is refused", func(w *world) {
		for _, m := range w.members {
			m.clients.Refuse()
		}
		time.Sleep(5 * time.Second)
		for _, m := range w.members {
			m.clients.Accept()
		}
	}},
	{"etcd is put back to an older state", func(w *world) {
		if w.backup == "" {
			return // nothing to put back yet
		}
		w.killMembers()
		for _, m := range w.members {
			if err := os.RemoveAll(m.spec.Dir); err != nil {
				w.t.Fatal(err)
			}
		}
		w.copyData(func(m *member) (from, to string) { return filepath.Join(w.backup, m.spec.Name), m.spec.Dir })
		w.startMembers()
	}},
	{"an instance leaves and another comes", func(w *world) {
		i := w.anyInstance()
		i.process.Process.Signal(syscall.SIGTERM)
		<-i.process.done
		i.process = i.start()
	}},
	{"a daemon and an instance are killed while etcd is away", func(w *world) {
		w.killMembers()
		d, i := w.anyDaemon(), w.anyInstance()
		i.kill()
		d.kill()
		d.restart()
		i.restart()
		time.Sleep(time.Second)
		w.startMembers()
	}},
}

func (w *world) anyInstance() *struck { return w.instances[w.random.IntN(len(w.instances))] }
func (w *world) anyDaemon() *struck   { return w.daemons[w.random.IntN(len(w.daemons))] }

func (w *world) relays(do func(*etcdtest.Relay)) {
	for _, m := range w.members {
		do(m.peer)
		do(m.clients)
	}
}

func (w *world) stopMembers(n int, d time.Duration) {
	struck := w.random.Perm(3)[:n]
	for _, i := range struck {
		w.members[i].process.Process.Signal(syscall.SIGSTOP)
	}
	time.Sleep(d)
	for _, i := range struck {
		w.members[i].process.Process.Signal(syscall.SIGCONT)
	}
}

func (w *world) copyData(way func(m *member) (from, to string)) {
	for _, m := range w.members {
		from, to := way(m)
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// Things go wrong, one after the other, while clients ask: for as long as ROTA_TEST_CHAOS says, else three of them. No request
// fails, and after each the table of every daemon is what etcd holds, which is every instance there is.
func TestChaos(t *testing.T) {
	list, until := faults[:3], time.Now()
	if text := os.Getenv("ROTA_TEST_CHAOS"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		list, until = faults, time.Now().Add(d)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t, seed)
	defer func() {
		w.load.stop()
		w.load.wg.Wait()
	}()
	for round := 0; round == 0 || time.Now().Before(until); round++ {
		for _, f := range list {
			before := w.load.done.Load()
			f.run(w)
			took := w.converge()
			if err := w.load.look(); err != nil {
				t.Errorf("%s: %.1000v", f.name, err)
			}
			t.Logf("%-55s as before after %6v; %d requests", f.name, took.Round(time.Millisecond), w.load.done.Load()-before)
			if round > 0 && time.Now().After(until) {
				break
			}
		}
	}
	t.Logf("%d of %d requests failed", w.load.failed.Load(), w.load.done.Load())
}
