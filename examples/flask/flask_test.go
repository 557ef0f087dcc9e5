package flask

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
	"github.com/rota-lb/rota/registry/registrytest"
)

// needFlask skips the test where the programs are missing.
func needFlask(t *testing.T) {
	t.Helper()
	for _, program := range []string{"bash", "timeout", "python3", "gunicorn"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	if out, err := exec.Command("gunicorn", "--check-config", "app:app").CombinedOutput(); err != nil {
		t.Skipf("gunicorn cannot load the application; is flask there? %v\n%s", err, out)
	}
}

// TestRun is the example as a reader runs it: three instances, one killed, one restarted, no request failed.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	needFlask(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "./run.sh")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it cleans up
	cmd.WaitDelay = 30 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), ", 0 failed") {
		t.Errorf("run.sh: %v", err)
	}
}

// python is register.py in a process of its own.
type python struct {
	*exec.Cmd
	t    *testing.T
	done chan struct{}

	mu  sync.Mutex
	out strings.Builder
}

func (p *python) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *python) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start runs register.py for the instance cart/a.
func start(t *testing.T, etcd *etcdtest.Server, env ...string) *python {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3")
	}
	const main = "import register; register.main(ttl=2)"
	return launch(t, etcd, exec.Command("python3", "-c", main, "cart", "127.0.0.1:5001", "a"), env...)
}

func launch(t *testing.T, etcd *etcdtest.Server, cmd *exec.Cmd, env ...string) *python {
	t.Helper()
	p := &python{Cmd: cmd, t: t, done: make(chan struct{})}
	p.Stdout, p.Stderr = p, p
	p.Env = append(append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "ROTA_ETCD_ENDPOINTS="+strings.Join(etcd.Endpoints(), ",")), env...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.Wait(); close(p.done) }()
	t.Cleanup(func() { p.Process.Kill(); <-p.done })
	return p
}

func (p *python) ends(status int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.t.Fatalf("register.py still runs: %s", p)
	}
	if got := p.ProcessState.ExitCode(); got != status || strings.Contains(p.String(), "Traceback") {
		p.t.Errorf("register.py ended with %d, want %d: %s", got, status, p)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func connect(t *testing.T, o registryetcd.Options) *registryetcd.Client {
	t.Helper()
	client, err := registryetcd.Connect(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// TestRegister holds register.py against what docs/registration.md asks of a registration that lasts. What it writes is
// read, and judged, by the package registry.
func TestRegister(t *testing.T) {
	etcd := etcdtest.Start(t)
	client := connect(t, registryetcd.Options{Endpoints: etcd.Endpoints()})
	w := registrytest.Watch(t, client, registry.Scope{Service: "cart"})
	const key = "/rota/services/cart/a"
	// record waits for one of register.py.
	record := func(what string, is func(registry.Change) bool) (found registry.Change) {
		t.Helper()
		w.Wait(t, what, func(view map[string]registry.Change) bool {
			ch, ok := view[key]
			if !ok || ch.Err != nil || ch.Instance.Address != "127.0.0.1:5001" || !is(ch) {
				return false
			}
			found = ch
			return true
		})
		return found
	}
	after := func(revision int64) func(registry.Change) bool {
		return func(ch registry.Change) bool { return ch.ModRevision > revision }
	}

	p := start(t, etcd)
	first := record("the registration", after(0))
	if in := first.Instance; in.Address != "127.0.0.1:5001" || in.State != registry.Ready && in.State != "" || len(in.Incarnation) != 26 || in.RegisteredAt.IsZero() || len(in.Extra) > 0 {
		t.Errorf("the record is %+v", in)
	}
	if first.Lease == 0 {
		t.Error("the key has no lease")
	}
	if later := registry.NewIncarnation(); later <= first.Instance.Incarnation {
		t.Errorf("the incarnation %s is not before %s", first.Instance.Incarnation, later)
	}

	deleted, err := etcd.Client().Delete(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	record("the record after the key was deleted", after(deleted.Header.Revision))
	put, err := etcd.Client().Put(t.Context(), key, `{"address":"127.0.0.1:6","incarnation":"0"}`)
	if err != nil {
		t.Fatal(err)
	}
	last := record("the record after it was overwritten", after(put.Header.Revision))
	anotherLease := func(ch registry.Change) bool { return ch.Lease != last.Lease }
	if _, err := etcd.Client().Revoke(t.Context(), clientv3.LeaseID(last.Lease)); err != nil {
		t.Fatal(err)
	}
	last = record("the record after its lease was lost", anotherLease)
	etcd.Stop()
	etcd.Wipe()
	etcd.Restart()
	if ch := record("the record in an empty store", anotherLease); ch.Instance.Incarnation != first.Instance.Incarnation {
		t.Errorf("another incarnation: %+v", ch.Instance)
	}

	// It leaves when the balancer has acknowledged, not before.
	b, err := client.Join(registry.Balancer{ID: "b", Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the balancer shows itself", func() bool {
		resp, err := client.Etcd().Get(t.Context(), "/rota/balancers/b")
		return err == nil && len(resp.Kvs) == 1
	})
	p.Process.Signal(syscall.SIGTERM)
	draining := record("draining", func(ch registry.Change) bool { return ch.Instance.State == registry.Draining && ch.Instance.DrainAck })
	b.Acknowledge("cart", "a", first.Instance.Incarnation)
	w.Wait(t, "its end", func(view map[string]registry.Change) bool { return len(view) == 0 })
	p.ends(0)
	ack, err := client.Etcd().Get(t.Context(), "/rota/acks/cart/a/b")
	if err != nil || len(ack.Kvs) != 1 {
		t.Fatalf("the acknowledgement: %v, %v", ack, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	end := <-client.Etcd().Watch(ctx, key, clientv3.WithRev(draining.ModRevision), clientv3.WithFilterPut())
	if len(end.Events) == 0 || end.Events[0].Kv.ModRevision < ack.Kvs[0].ModRevision {
		t.Errorf("deleted by %v, acknowledged at %d", end.Events, ack.Kvs[0].ModRevision)
	}
}

// TestPassword: with etcd's access control, a role for its own keys is enough; a token that etcd has forgotten is replaced.
func TestPassword(t *testing.T) {
	etcd := etcdtest.Start(t)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	auth := etcd.Client()
	for _, user := range []string{"root", "cart"} {
		must(auth.UserAdd(t.Context(), user, "secret"))
		must(auth.RoleAdd(t.Context(), user))
		must(auth.UserGrantRole(t.Context(), user, user))
	}
	for prefix, right := range map[string]clientv3.PermissionType{
		"/rota/services/cart/": clientv3.PermissionType(clientv3.PermReadWrite),
		"/rota/balancers/":     clientv3.PermissionType(clientv3.PermRead),
		"/rota/acks/cart/":     clientv3.PermissionType(clientv3.PermRead),
	} {
		must(auth.RoleGrantPermission(t.Context(), "cart", prefix, clientv3.GetPrefixRangeEnd(prefix), right))
	}
	must(auth.AuthEnable(t.Context()))

	client := connect(t, registryetcd.Options{Endpoints: etcd.Endpoints(), Username: "root", Password: "secret"})
	w := registrytest.Watch(t, client, registry.Scope{Service: "cart"})
	there := func(view map[string]registry.Change) bool { return len(view) == 1 }
	p := start(t, etcd, "ETCDCTL_USER=cart:secret")
	w.Wait(t, "the registration", there)
	etcd.Stop()
	etcd.Restart()
	var deleted int64
	until(t, "the key can be deleted", func() bool {
		resp, err := client.Etcd().Delete(t.Context(), "/rota/services/cart/a")
		if err == nil {
			deleted = resp.Header.Revision
		}
		return err == nil
	})
	w.Wait(t, "the record after the key was deleted", func(view map[string]registry.Change) bool {
		return there(view) && view["/rota/services/cart/a"].ModRevision > deleted
	})
	p.Process.Signal(syscall.SIGTERM)
	w.Wait(t, "its end", func(view map[string]registry.Change) bool { return len(view) == 0 })
	p.ends(0)
	if strings.Contains(p.String(), "not drained") || strings.Contains(p.String(), "not deleted") {
		t.Errorf("it could not do something: %s", p)
	}
}

// TestGunicorn: gunicorn registers itself, once for all its workers, and drains before it stops them.
func TestGunicorn(t *testing.T) {
	needFlask(t)
	etcd := etcdtest.Start(t)
	client := connect(t, registryetcd.Options{Endpoints: etcd.Endpoints()})
	w := registrytest.Watch(t, client, registry.Scope{Service: "flask"})
	p := launch(t, etcd, exec.Command("gunicorn", "-c", "registered.conf.py", "app:app"), "PORT=0")
	p.WaitDelay = 10 * time.Second
	var ch registry.Change
	w.Wait(t, "the registration", func(view map[string]registry.Change) bool {
		for _, ch = range view {
		}
		return len(view) == 1
	})
	ask := func() {
		t.Helper()
		resp, err := http.Get("http://" + ch.Instance.Address)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("answered %s", resp.Status)
		}
	}
	ask()
	b, err := client.Join(registry.Balancer{ID: "b", Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the balancer shows itself", func() bool {
		resp, err := client.Etcd().Get(t.Context(), "/rota/balancers/b")
		return err == nil && len(resp.Kvs) == 1
	})
	p.Process.Signal(syscall.SIGTERM)
	w.Wait(t, "draining", func(view map[string]registry.Change) bool { return view[ch.Key].Instance.State == registry.Draining })
	ask() // it serves until the acknowledgement
	b.Acknowledge("flask", ch.ID, ch.Instance.Incarnation)
	w.Wait(t, "its end", func(view map[string]registry.Change) bool { return len(view) == 0 })
	p.ends(0)
}

// TestSuperseded: a successor's record is left alone.
func TestSuperseded(t *testing.T) {
	etcd := etcdtest.Start(t)
	client := connect(t, registryetcd.Options{Endpoints: etcd.Endpoints()})
	w := registrytest.Watch(t, client, registry.Scope{Service: "cart"})
	p := start(t, etcd)
	w.Wait(t, "the registration", func(view map[string]registry.Change) bool { return len(view) == 1 })
	reg, err := client.Register(t.Context(), registry.Instance{Service: "cart", ID: "a", Address: "127.0.0.1:5002"})
	if err != nil {
		t.Fatal(err)
	}
	p.ends(1)
	if !strings.Contains(p.String(), "newer incarnation") {
		t.Errorf("it does not say why: %s", p)
	}
	if reg.State() != registry.Registered {
		t.Errorf("the successor is %v: %v", reg.State(), reg.Err())
	}
}

// TestAway: etcd is away at the start, and at the end.
func TestAway(t *testing.T) {
	etcd := etcdtest.Start(t)
	etcd.Stop()
	p := start(t, etcd)
	until(t, "it says that etcd is away", func() bool { return strings.Contains(p.String(), "trying again") })
	etcd.Restart()
	w := registrytest.Watch(t, connect(t, registryetcd.Options{Endpoints: etcd.Endpoints()}), registry.Scope{Service: "cart"})
	w.Wait(t, "the registration", func(view map[string]registry.Change) bool { return len(view) == 1 })
	etcd.Stop()
	p.Process.Signal(syscall.SIGTERM)
	p.ends(0)
}

// The gateway of etcd answers 200 to the renewal of a lease that has expired. This is the trap; it is held here so that we
// notice when it goes.
func TestTrap(t *testing.T) {
	etcd := etcdtest.Start(t)
	resp, err := http.Post("http://"+etcd.Endpoints()[0]+"/v3/lease/keepalive", "application/json", strings.NewReader(`{"ID":"4711"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := make([]byte, 1<<10)
	n, _ := resp.Body.Read(body)
	if text := string(body[:n]); resp.StatusCode != 200 || strings.Contains(text, "TTL") {
		t.Errorf("renewing a lease that is not there answers %s: %s", resp.Status, text)
	}
}
