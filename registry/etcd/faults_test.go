//go:build unix

package registryetcd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// faultsVariable is how many registrations each kind of fault hits: 100 in full.
const faultsVariable = "ROTA_TEST_FAULTS"

// fault is a way in which a registration can lose its record, or come near to it.
type fault struct {
	name    string
	members int  // of the cluster; 0 is 1
	auth    bool // access control is on
	// do does it, and says by rig.over of every registration from when on it is over.
	do func(*rig)
}

var faults = []fault{
	{name: "lease revoked", do: func(r *rig) {
		for _, s := range r.subjects {
			l, _, _ := s.client.lease.get()
			resp, err := r.etcd.Revoke(limit(r.t), l.id)
			r.must(err)
			r.over(s, resp.Header.Revision)
		}
	}},
	{name: "key deleted", do: func(r *rig) { r.deleteKeys() }},
	{name: "key overwritten", do: func(r *rig) {
		for _, s := range r.subjects {
			resp, err := r.etcd.Put(limit(r.t), s.key, "garbage")
			r.must(err)
			r.over(s, resp.Header.Revision)
		}
	}},
	{name: "etcd away", do: func(r *rig) {
		r.server.Stop()
		r.each(func(s *subject) { waitState(r.t, s.reg, registry.Retrying) }) // for as long as leases live
		r.server.Restart()
		r.overAll(0)
	}},
	{name: "store wiped", do: func(r *rig) {
		r.server.Stop()
		r.server.Wipe()
		r.server.Restart()
		r.overAll(0)
	}},
	{name: "connection refused", do: func(r *rig) {
		r.each(func(s *subject) { s.relay.Refuse() })
		r.untilGone()
		r.each(func(s *subject) { r.over(s, 0); s.relay.Accept() })
	}},
	{name: "connection hangs", do: func(r *rig) {
		r.each(func(s *subject) { s.relay.Pause() })
		r.untilGone()
		r.each(func(s *subject) { r.over(s, 0); s.relay.Resume() })
	}},
	{name: "leader gone", members: 3, do: func(r *rig) {
		r.server.Leader().Stop()
		r.server.Leader()
		r.deleteKeys() // who watched through the member that is gone has to find out elsewhere
	}},
	{name: "compacted", do: func(r *rig) {
		r.each(func(s *subject) { s.relay.Refuse() })
		var rev int64
		for _, s := range r.subjects {
			resp, err := r.etcd.Delete(limit(r.t), s.key)
			r.must(err)
			rev = resp.Header.Revision
		}
		for range 5 {
			_, err := r.etcd.Put(limit(r.t), "/other", "x")
			r.must(err)
		}
		_, err := r.etcd.Compact(limit(r.t), rev+5)
		r.must(err)
		r.each(func(s *subject) { r.over(s, rev); s.relay.Accept() })
	}},
	{name: "token invalid", auth: true, do: func(r *rig) {
		_, err := r.etcd.UserChangePassword(limit(r.t), "rota", "secret") // ends every token of the user
		r.must(err)
		r.deleteKeys()
	}},
	{name: "store full", do: func(r *rig) {
		alarm := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: uint64(r.server.Members[0].Etcd().Server.MemberID())}
		_, err := pb.NewMaintenanceClient(r.etcd.ActiveConnection()).Alarm(limit(r.t), alarm)
		r.must(err)
		for _, s := range r.subjects {
			revoke(r.t, r.server, s.client)
		}
		r.each(func(s *subject) { waitErr(r.t, s.reg, rpctypes.ErrNoSpace) })
		r.overAll(0)
		_, err = r.etcd.AlarmDisarm(limit(r.t), &clientv3.AlarmMember{MemberID: alarm.MemberID, Alarm: alarm.Alarm})
		r.must(err)
	}},
	{name: "process stopped", do: func(r *rig) {
		r.process.Signal(syscall.SIGSTOP)
		r.untilGone()
		r.overAll(0)
		r.process.Signal(syscall.SIGCONT)
	}},
}

// subject is a registration that a fault hits, with a client, a lease and a link to etcd of its own.
type subject struct {
	key    string
	relay  *etcdtest.Relay
	client *Client // nil in another process, as reg is
	reg    registry.Registration

	ended time.Time // when the fault was over; zero before
	after int64     // a record no newer than this revision is not back
	took  time.Duration
	back  bool
}

// rig is a cluster with registrations in it.
type rig struct {
	t        *testing.T
	server   *etcdtest.Server
	etcd     *clientv3.Client // the test's own
	process  *os.Process      // that registers, if that is not us
	subjects []*subject

	mu sync.Mutex // protects what is measured of the subjects
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) each(f func(*subject)) {
	for _, s := range r.subjects {
		f(s)
	}
}

// over says that the fault is over for a registration whose record, to be back, has to be newer than rev.
func (r *rig) over(s *subject, rev int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.ended, s.after = time.Now(), rev
}

func (r *rig) overAll(rev int64) { r.each(func(s *subject) { r.over(s, rev) }) }

func (r *rig) deleteKeys() {
	for _, s := range r.subjects {
		resp, err := r.etcd.Delete(limit(r.t), s.key)
		r.must(err)
		r.over(s, resp.Header.Revision)
	}
}

// untilGone waits until etcd has let every lease run out.
func (r *rig) untilGone() {
	eventually(r.t, func() error {
		resp, err := r.etcd.Get(limit(r.t), r.prefix(), clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && resp.Count > 0 {
			err = fmt.Errorf("%d records are still there", resp.Count)
		}
		return err
	})
}

func (r *rig) prefix() string { return registry.Keys{}.RangePrefix(registry.Scope{Service: "fault"}) }

// observe notes when records are back, until all are or ctx ends. Back is a record of the same incarnation, newer than the
// fault, under a lease that lives; which its client holds, and knows to be registered.
func (r *rig) observe(ctx context.Context) {
	alive := map[int64]bool{}
	for left := len(r.subjects); left > 0 && sleep(ctx, 5*time.Millisecond); {
		cctx, cancel := context.WithTimeout(ctx, time.Second)
		resp, err := r.etcd.Get(cctx, r.prefix(), clientv3.WithPrefix())
		cancel()
		now := time.Now()
		if err != nil {
			continue
		}
		records := map[string]int{}
		for i, kv := range resp.Kvs {
			records[string(kv.Key)] = i + 1
		}
		for _, s := range r.subjects {
			r.mu.Lock()
			ended, after, back := s.ended, s.after, s.back
			r.mu.Unlock()
			i := records[s.key]
			if i == 0 || ended.IsZero() || back || ended.After(now) {
				continue
			}
			kv := resp.Kvs[i-1]
			if in, err := codec.Decode("fault", "a", kv.Value); err != nil || in.Address != "10.0.0.7:5001" || kv.ModRevision <= after {
				continue
			}
			if s.reg != nil {
				l, _, _ := s.client.lease.get()
				if s.reg.State() != registry.Registered || l == nil || int64(l.id) != kv.Lease {
					continue
				}
			}
			if !alive[kv.Lease] {
				cctx, cancel := context.WithTimeout(ctx, time.Second)
				ttl, err := r.etcd.TimeToLive(cctx, clientv3.LeaseID(kv.Lease))
				cancel()
				if err != nil || ttl.TTL <= 0 {
					continue
				}
				alive[kv.Lease] = true
			}
			r.mu.Lock()
			s.back, s.took = true, now.Sub(ended)
			r.mu.Unlock()
			left--
		}
	}
}

// newRig registers n instances.
func newRig(t *testing.T, f fault, n int) *rig {
	r := &rig{t: t, server: etcdtest.StartCluster(t, max(1, f.members))}
	// Whoever watches must not be slower than those who are watched.
	soon := grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           grpcbackoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond},
		MinConnectTimeout: time.Second,
	})
	cfg := clientv3.Config{Endpoints: r.server.Endpoints(), DialOptions: []grpc.DialOption{soon}}
	if f.auth {
		enableAuth(t, r.server)
		cfg.Username, cfg.Password = "root", "secret"
	}
	r.etcd = etcdtest.NewClient(t, cfg)
	for i := range n {
		r.subjects = append(r.subjects, &subject{key: registry.Keys{}.Instance("fault", strconv.Itoa(i))})
	}
	if f.name == "process stopped" {
		r.process = registrars(t, r.server, n)
		return r
	}
	for i, s := range r.subjects {
		endpoints := r.server.Endpoints()
		if f.members == 0 {
			s.relay = etcdtest.NewRelay(t, endpoints[0])
			endpoints = []string{s.relay.Addr()}
		}
		s.client = dial(t, endpoints, func(o *Options) {
			if f.auth {
				o.Username, o.Password = "rota", "secret"
			}
		})
		var err error
		s.reg, err = s.client.Register(context.Background(), instance("fault", strconv.Itoa(i)))
		r.must(err)
	}
	r.each(func(s *subject) { waitState(t, s.reg, registry.Registered) })
	return r
}

// registrars starts a process that registers n instances, each with its own client.
func registrars(t *testing.T, s *etcdtest.Server, n int) *os.Process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+s.Endpoints()[0], childrenVariable+"="+strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGCONT)
		in.Close()
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "registered\n" {
		t.Fatalf("the process says %q: %v", line, err)
	}
	return cmd.Process
}

// Whatever takes a record away, its registration puts it back. Twelve kinds of faults, each against as many registrations as
// ROTA_TEST_FAULTS says. They are hit at once, which costs a hundredth of the time of one after the other and is harder, since all
// come back at once; each has a client, a lease, a link and a record of its own, and none knows of the others.
//
// In full (100), the slowest but one of each hundred has to be back within half the lifetime of a lease.
func TestFaults(t *testing.T) {
	t.Parallel()
	n, full := 2, false
	if s := os.Getenv(faultsVariable); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 1 {
			t.Fatalf("%s=%q: write a number", faultsVariable, s)
		}
		full = n >= 100
	}
	var mu sync.Mutex
	var table strings.Builder
	lines := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(lines, "fault\tn\tback\tp50\tp99\tworst\t")
	all, back := 0, 0
	t.Run("kinds", func(t *testing.T) {
		for _, f := range faults {
			t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
				if n <= 10 {
					t.Parallel()
				}
				r := newRig(t, f, n)
				ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
				defer cancel()
				observed := make(chan struct{})
				go func() { defer close(observed); r.observe(ctx) }()
				defer func() { cancel(); <-observed }()
				f.do(r)
				<-observed

				var took []time.Duration
				for i, s := range r.subjects {
					switch {
					case s.back:
						took = append(took, s.took)
					case s.reg == nil:
						t.Errorf("registration %d, in another process, is not back", i)
					default:
						t.Errorf("registration %d is not back: state %d, %v", i, s.reg.State(), s.reg.Err())
					}
				}
				slices.Sort(took)
				at := func(percent int) time.Duration {
					if len(took) == 0 {
						return 0
					}
					return took[(len(took)*percent+99)/100-1].Round(100 * time.Microsecond)
				}
				if p99 := at(99); full && p99 > testTTL/2 {
					t.Errorf("p99 is %s, want at most %s", p99, testTTL/2)
				}
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintf(lines, "%s\t%d\t%d\t%s\t%s\t%s\t\n", f.name, n, len(took), at(50), at(99), at(100))
				all, back = all+n, back+len(took)
			})
		}
	})
	lines.Flush()
	t.Logf("%d of %d registered again, leases of %s, from the end of the fault:\n%s", back, all, testTTL, table.String())
}
