//go:build unix

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// event is what a program under "rota register" tells, and how its record stood at that moment.
type event struct {
	who, what, port, id string
	pid                 int
	state               string // of the record; "" when there is none
	acked               bool   // a balancer has acknowledged
}

// registered is a "rota register" with a program, and what the test sees of both.
type registered struct {
	*child
	t      *testing.T
	etcd   *clientv3.Client
	events map[string]chan event // by who
	key    string
	port   string      // of the program, once it is up
	pid    int         // likewise
	blind  atomic.Bool // etcd is away: events come without a look at the record
}

// program words of the program, flags of the command. The service is named after the test.
func register(t *testing.T, etcd *etcdtest.Server, flags string, words ...string) *registered {
	t.Helper()
	return registerAs(t, etcd, nil, flags, words...)
}

func registerAs(t *testing.T, etcd *etcdtest.Server, attr *syscall.SysProcAttr, flags string, words ...string) *registered {
	t.Helper()
	service := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
	r := &registered{t: t, etcd: etcd.Client(), events: map[string]chan event{"program": make(chan event, 8), "lone": make(chan event, 8)}, key: "/rota/services/" + service + "/one"}
	notify := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		e := event{who: q.Get("who"), what: q.Get("what"), port: q.Get("port"), id: q.Get("id")}
		e.pid, _ = strconv.Atoi(q.Get("pid"))
		if !r.blind.Load() && (e.what == "terminated" || e.what == "interrupt") {
			e.state, e.acked = r.state(), r.acked()
		}
		r.events[e.who] <- e
	}))
	t.Cleanup(notify.Close)
	alive, hold, err := os.Pipe() // the programs end when hold is closed
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close(); alive.Close() })
	list := []string{"register", "--service", service, "--id", "one", "--address", "127.0.0.1", "--endpoints", etcd.Endpoints()[0]}
	list = append(append(list, strings.Fields(flags)...), "--", os.Args[0], programArg)
	cmd := exec.Command(os.Args[0], append(list, words...)...)
	cmd.Stdin, cmd.SysProcAttr, cmd.WaitDelay = alive, attr, 10*time.Second
	cmd.Env = []string{"ROTA_TEST_NOTIFY=" + notify.URL}
	r.child = launch(t, cmd)
	t.Cleanup(func() { hold.Close() })
	up := r.wait("program", "up")
	r.port, r.pid = up.port, up.pid
	if up.id != "one" {
		t.Errorf("ROTA_INSTANCE is %q", up.id)
	}
	return r
}

// wait returns the next event of who, which must be what.
func (r *registered) wait(who, what string) event {
	r.t.Helper()
	select {
	case e := <-r.events[who]:
		if e.what != what {
			r.t.Fatalf("%s: %s, want %s", who, e.what, what)
		}
		return e
	case <-time.After(20 * time.Second):
		r.t.Fatalf("%s: never %s: %s", who, what, r.out)
		return event{}
	}
}

// tell asks the program for a path, and returns its answer.
func (r *registered) tell(path string) string {
	r.t.Helper()
	_, body, _ := get(r.t, "127.0.0.1:"+r.port, "x", path)
	return body
}

// record is the value under the key, nil when there is none.
func (r *registered) record() *registry.Instance {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := r.etcd.Get(ctx, r.key)
	if err != nil || len(resp.Kvs) == 0 {
		return nil
	}
	in := &registry.Instance{}
	if err := json.Unmarshal(resp.Kvs[0].Value, in); err != nil {
		r.t.Errorf("the record %s: %v", resp.Kvs[0].Value, err)
	}
	in.State = cmp.Or(in.State, registry.Ready)
	return in
}

func (r *registered) state() string {
	in := r.record()
	if in == nil {
		return ""
	}
	return string(in.State)
}

func (r *registered) acked() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := r.etcd.Get(ctx, strings.Replace(r.key, "/services/", "/acks/", 1)+"/", clientv3.WithPrefix())
	return err == nil && len(resp.Kvs) > 0
}

func (r *registered) until(state string) {
	r.t.Helper()
	until(r.t, "state "+strconv.Quote(state), func() bool { return r.state() == state })
}

func (r *registered) ends(status int) {
	r.t.Helper()
	if got := r.exit(); got != status {
		r.t.Errorf("exit %d, want %d: %s", got, status, r.out)
	}
	if s := r.state(); s != "" {
		r.t.Errorf("the record is still there, %s", s)
	}
}

// join lets a balancer show itself in etcd. It acknowledges what the test says.
func join(t *testing.T, etcd *etcdtest.Server, id string) (registry.Presence, *registryetcd.Client) {
	t.Helper()
	client, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	p, err := client.Join(registry.Balancer{ID: id, Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the balancer shows itself", func() bool {
		resp, err := etcd.Client().Get(t.Context(), "/rota/balancers/"+id)
		return err == nil && len(resp.Kvs) == 1
	})
	return p, client
}

func TestRegister(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)

	// The life of a well-behaved program: registered when it is well and not before, withdrawn while it is not, drained before
	// it is told to stop.
	t.Run("life", func(t *testing.T) {
		r := register(t, etcd, "--check-http /healthz --check-interval 100ms --weight 50 --zone z --version-label 1.2 --metadata team=shop --claim a.example.com/cart --claim /x --idle-timeout 2s",
			"unwell", "exit=7")
		until(t, "the check has failed a few times", func() bool { n, _ := strconv.Atoi(r.tell("/asked")); return n > 3 })
		if s := r.state(); s != "" {
			t.Errorf("registered before its check passed: %s", s)
		}
		r.tell("/well")
		r.until("ready")
		in := r.record()
		if in.Address != "127.0.0.1:"+r.port || in.EffectiveWeight() != 50 || in.Zone != "z" || in.Version != "1.2" || in.Metadata["team"] != "shop" ||
			time.Duration(in.IdleTimeout) != 2*time.Second || in.Check == nil || in.Check.Path != "/healthz" ||
			!slices.Equal(in.Claims, []registry.Claim{{Host: "a.example.com", Path: "/cart"}, {Path: "/x"}}) || in.RegisteredAt.IsZero() {
			t.Errorf("the record is %+v", in)
		}
		r.tell("/unwell")
		r.until("starting")
		r.tell("/well")
		r.until("ready")
		if now := r.record(); now.Incarnation != in.Incarnation || !now.RegisteredAt.Equal(in.RegisteredAt) {
			t.Errorf("after a withdrawal it is another record: %+v", now)
		}
		r.Process.Signal(syscall.SIGTERM)
		if e := r.wait("program", "terminated"); e.state != "draining" {
			t.Errorf("told to stop while its record was %q", e.state)
		}
		r.ends(7)
	})

	t.Run("tcp check", func(t *testing.T) {
		r := register(t, etcd, "", "unwell") // it accepts connections, nobody asks more
		r.until("ready")
		http.Get("http://127.0.0.1:" + r.port + "/exit") // which it does not live to answer
		r.ends(0)
	})

	// The program is told to stop when the balancer has acknowledged, and not before.
	t.Run("acknowledgement", func(t *testing.T) {
		p, _ := join(t, etcd, "b")
		defer p.Leave(t.Context())
		r := register(t, etcd, "--drain-timeout 1m")
		r.until("ready")
		r.Process.Signal(syscall.SIGINT)
		r.until("draining")
		in := r.record()
		if !in.DrainAck {
			t.Errorf("the record does not ask for acknowledgements: %+v", in)
		}
		p.Acknowledge(strings.Split(r.key, "/")[3], "one", in.Incarnation)
		if e := r.wait("program", "interrupt"); !e.acked {
			t.Error("told to stop before the balancer's acknowledgement")
		}
		r.ends(0)
	})

	// A balancer that does not acknowledge: the second signal does not wait for it, the third does not wait for the program.
	t.Run("hurry", func(t *testing.T) {
		p, _ := join(t, etcd, "c")
		defer p.Leave(t.Context())
		r := register(t, etcd, "--drain-timeout 1m --grace 1m", "stubborn")
		r.until("ready")
		r.Process.Signal(syscall.SIGTERM)
		r.until("draining")
		time.Sleep(2 * sameSignal) // a second signal, and not the same one twice
		r.Process.Signal(syscall.SIGTERM)
		r.wait("program", "terminated")
		time.Sleep(2 * sameSignal)
		r.Process.Signal(syscall.SIGTERM)
		r.ends(128 + 9)
	})

	t.Run("grace over", func(t *testing.T) {
		r := register(t, etcd, "--grace 50ms", "stubborn", "family")
		r.wait("lone", "up")
		r.until("ready")
		r.Process.Signal(syscall.SIGTERM)
		r.ends(128 + 9)
	})

	// The record goes when the program does, not a minute later; and what it leaves behind is told to stop.
	t.Run("killed", func(t *testing.T) {
		r := register(t, etcd, "--ttl 60s", "family")
		lone := r.wait("lone", "up")
		r.until("ready")
		began := time.Now()
		syscall.Kill(r.pid, syscall.SIGKILL)
		r.until("")
		took := time.Since(began)
		t.Logf("the record was gone %s after kill -9", took.Round(time.Millisecond))
		if took > 10*time.Second {
			t.Errorf("the record stayed for %s", took)
		}
		r.wait("lone", "terminated")
		r.ends(128 + 9)
		if syscall.Kill(lone.pid, 0) == nil {
			t.Error("a process is left in the group")
		}
	})

	// What asks for the end goes to the whole group, anything else to the program alone.
	t.Run("group", func(t *testing.T) {
		if signal.Ignored(syscall.SIGHUP) {
			t.Skip("hangups are ignored, as under nohup, and so not passed on")
		}
		r := register(t, etcd, "", "family", "exit=3")
		r.wait("lone", "up")
		r.until("ready")
		r.Process.Signal(syscall.SIGHUP)
		r.wait("program", "hangup")
		r.Process.Signal(syscall.SIGTERM)
		r.wait("lone", "terminated") // and no hangup before
		r.wait("program", "terminated")
		r.ends(3)
	})

	t.Run("superseded", func(t *testing.T) {
		r := register(t, etcd, "", "exit=3")
		r.until("ready")
		_, client := join(t, etcd, "d")
		service := strings.Split(r.key, "/")[3]
		reg, err := client.Register(t.Context(), registry.Instance{Service: service, ID: "one", Address: "127.0.0.1:1"})
		if err != nil {
			t.Fatal(err)
		}
		r.wait("program", "terminated")
		if status := r.exit(); status != exitFailed || !strings.Contains(r.out.String(), "--id") {
			t.Errorf("exit %d: %s", status, r.out)
		}
		if in := r.record(); in == nil || in.Incarnation != reg.Instance().Incarnation {
			t.Errorf("the successor's record is %+v", in)
		}
	})

	t.Run("elsewhere", func(t *testing.T) {
		up := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		defer up.Close()
		c := spawn(t, "register", "--service", "elsewhere", "--id", "one", "--address", up.Listener.Addr().String(), "--endpoints", etcd.Endpoints()[0])
		r := &registered{child: c, t: t, etcd: etcd.Client(), key: "/rota/services/elsewhere/one"}
		r.until("ready")
		c.Process.Signal(syscall.SIGTERM)
		r.ends(0)
	})

	// etcd is away at the start and at the end: the program is none the wiser.
	t.Run("etcd away", func(t *testing.T) {
		etcd := etcdtest.Start(t)
		etcd.Client()
		etcd.Stop()
		r := register(t, etcd, "--check-http /healthz --ttl 2s", "exit=5")
		r.find(`(not registered, trying again)`)
		r.tell("/healthz")
		etcd.Restart()
		r.until("ready")
		etcd.Stop()
		r.blind.Store(true)
		r.tell("/healthz")
		r.Process.Signal(syscall.SIGTERM)
		r.wait("program", "terminated")
		if status := r.exit(); status != 5 {
			t.Errorf("exit %d: %s", status, r.out)
		}
	})
}

// What cannot be run has the statuses of a shell.
func TestRegisterStart(t *testing.T) {
	flags := []string{"register", "--service", "s", "--address", "127.0.0.1", "--log-level", "error", "--"}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		program string
		status  int
		want    string
	}{
		{"no-such-program-anywhere", 127, "no such program"},
		{"/none/such", 127, "no such program"},
		{plain, 126, "cannot be run"},
	} {
		status, _, errs := command(t, append(flags, tc.program)...)
		if status != tc.status || !strings.Contains(errs, tc.want) || !strings.Contains(errs, tc.program) {
			t.Errorf("%s: %d %q", tc.program, status, errs)
		}
	}
}

func TestRegisterUsage(t *testing.T) {
	for _, tc := range []struct{ list, want string }{
		{"-- x", "--service is missing"},
		{"--service s x y", "rota register --service cart -- x y"},
		{"--service s x -- y", "after it"},
		{"--service s --", "nothing after --"},
		{"--service s", "--address"},
		{"--service Cart -- x", "Cart"},
		{"--service s --id a/b -- x", "a/b"},
		{"--service s --port 70000 -- x", "65535"},
		{"--service s --port x -- y", "port"},
		{"--service s --address 10.0.0.1", "port is missing"},
		{"--service s --address 10.1:99999 -- x", "65535"},
		{"--service s --address http://a:1 -- x", "scheme"},
		{"--service s --protocol carrier-pigeon -- x", "grpc"},
		{"--service s --weight 20000 -- x", "10000"},
		{"--service s --metadata team -- x", "name=value"},
		{"--service s --claim a_b:80 -- x", "claim host"},
		{"--service s --check-http healthz -- x", "slash"},
		{"--service s --check-http healthz --check-address 127.0.0.1:1 -- x", "slash"},
		{"--service s --check-http /a --no-check -- x", "one of them"},
		{"--service s --check-interval 0s -- x", "more than zero"},
		{"--service s --check-http /a --check-interval 1ms -- x", "100ms"},
		{"--service s --fall 0 -- x", "1 or more"},
		{"--service s --grace=-1s -- x", "--grace"},
		{"--service s --ttl 10ms -- x", "--ttl"},
		{"--service s --log-level loud -- x", "loud"},
		{"--service s --frob -- x", "frob"},
	} {
		status, _, errs := command(t, append([]string{"register"}, strings.Fields(tc.list)...)...)
		if status != exitUsage || !strings.Contains(errs, tc.want) || !strings.HasPrefix(errs, "rota: ") {
			t.Errorf("%s: %d %q", tc.list, status, errs)
		}
	}
}

// The program reads what the command gets, unless that is a terminal.
func TestRegisterInput(t *testing.T) {
	cmd := exec.Command(os.Args[0], "register", "--service", "s", "--address", "127.0.0.1", "--log-level", "error", "--", "cat")
	cmd.Env = append(os.Environ(), "ROTA_TEST_MAIN=1")
	cmd.Stdin = strings.NewReader("passed on")
	out, err := cmd.Output()
	if err != nil || string(out) != "passed on" {
		t.Errorf("%q, %v", out, err)
	}
}

// The port for a program is none that the kernel gives to whoever asks for any.
func TestFreePort(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "", "[::1]", "192.0.2.1"} {
		port, err := freePort(host)
		if err != nil || port < lowestPort || port >= lowestPort+ports {
			t.Errorf("%q: %d, %v", host, port, err)
		}
		if ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			t.Errorf("%q: %v", host, err)
		} else {
			ln.Close()
		}
	}
}
