//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
)

const outageConfig = deployConfig + `
snapshot: {path: "%s"}
`

// outage runs a daemon with a snapshot before five instances under load.
func outage(t *testing.T) (etcd *etcdtest.Server, daemon *child, admin string, instances []func(), load *clients) {
	t.Helper()
	etcd = etcdtest.Start(t)
	snapshot := filepath.Join(t.TempDir(), "table.json")
	daemon = spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(outageConfig, strings.Join(etcd.Endpoints(), `","`), snapshot)))
	for i := range 5 {
		instances = append(instances, serveInstance(t, etcd, i, 5*time.Millisecond, registry.ServeOptions{ShutdownTimeout: time.Second}))
	}
	address := daemon.find(listening)
	admin = daemon.find(adminURL)
	ready(t, admin, 5)
	until(t, "a snapshot with all", func() bool {
		text, err := os.ReadFile(snapshot)
		return err == nil && strings.Count(string(text), "/services/cart/") == 5
	})
	return etcd, daemon, admin, instances, ask(address, "/cart/", 8)
}

// stored is how many instances etcd holds.
func stored(t *testing.T, etcd *etcdtest.Server) int64 {
	t.Helper()
	resp, err := etcd.Client().Get(t.Context(), "/rota/services/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	return resp.Count
}

// etcd is away, for as long as ROTA_TEST_OUTAGE says, and in the middle of it the daemon is replaced by a new one, which knows
// the instances from the snapshot only. No request fails.
func TestOutage(t *testing.T) {
	t.Parallel()
	away := 6 * time.Second
	if text := os.Getenv("ROTA_TEST_OUTAGE"); text != "" {
		var err error
		if away, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	etcd, daemon, admin, instances, load := outage(t)
	began := time.Now()
	etcd.Stop()
	until(t, "a daemon that knows of it", func() bool {
		_, body, _ := get(t, admin, admin, "/readyz")
		return strings.Contains(body, "out of reach")
	})
	time.Sleep(away/2 - time.Since(began))
	syscall.Kill(daemon.Process.Pid, syscall.SIGUSR2)
	daemon.find("the successor serves")
	daemon.find("serving the snapshot")
	pids := regexp.MustCompile(`"rota starts".*"pid":([0-9]+)`).FindAllStringSubmatch(daemon.out.String(), -1)
	successor, err := strconv.Atoi(pids[len(pids)-1][1])
	if err != nil || len(pids) != 2 {
		t.Fatal(pids, err)
	}
	t.Cleanup(func() { syscall.Kill(successor, syscall.SIGKILL) })
	if d := ready(t, admin, 5); d > 5*time.Second {
		t.Errorf("the successor took %v to know all", d)
	}
	time.Sleep(away - time.Since(began))
	etcd.Restart()
	back := time.Now()
	until(t, "a daemon in touch", func() bool {
		code, body, _ := get(t, admin, admin, "/readyz")
		return code == 200 && !strings.Contains(body, "out of reach")
	})
	ready(t, admin, 5)
	until(t, "all in etcd", func() bool { return stored(t, etcd) == 5 })
	t.Logf("etcd was away for %v; %v after its return all is as before", away, time.Since(back))
	t.Logf("%d requests", load.end(t))
	for _, stop := range instances {
		stop()
	}
}

// etcd loses everything, and later is put back to what it was before every instance was replaced: what it says then is where
// nobody is any more. No request fails, and within five seconds the table is what is true.
func TestStoreReplaced(t *testing.T) {
	t.Parallel()
	etcd, _, admin, instances, load := outage(t)
	converged := func(what string, began time.Time) {
		t.Helper()
		ready(t, admin, 5)
		until(t, "all in etcd", func() bool { return stored(t, etcd) == 5 })
		ready(t, admin, 5)
		d := time.Since(began)
		t.Logf("%s: all is as before after %v", what, d)
		if d > 5*time.Second {
			t.Errorf("%s: it took %v", what, d)
		}
	}
	etcd.Stop()
	backup := etcd.Backup()
	etcd.Wipe()
	etcd.Restart()
	converged("wiped", time.Now())

	began := time.Now()
	for i := range instances {
		instances[i]()
		instances[i] = serveInstance(t, etcd, i, 5*time.Millisecond, registry.ServeOptions{ShutdownTimeout: time.Second})
	}
	t.Logf("every instance replaced within %v", time.Since(began))
	ready(t, admin, 5)
	etcd.Stop()
	etcd.Restore(backup)
	etcd.Restart()
	converged("restored", time.Now())
	t.Logf("%d requests", load.end(t))
	for _, stop := range instances {
		stop()
	}
}
