package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
)

// freeAddr is an address on loopback that nobody has at present, and that the kernel gives nobody.
func freeAddr(t *testing.T) string {
	t.Helper()
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// One daemon with etcd inside keeps what it holds over a restart, and moves to an etcd elsewhere by another line.
func TestEmbedded(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	defer up.Close()
	dir, client := filepath.Join(t.TempDir(), "etcd"), freeAddr(t)
	const rest = "listeners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"off\"}\nauto_routes: true\n"
	file := write(t, "rota.yaml", fmt.Sprintf("etcd: {embedded: {dir: %s, client: %q}}\n%s", dir, client, rest))
	start := func(file string) (*child, string) {
		c := spawn(t, "serve", "-c", file)
		return c, c.find(listening)
	}
	answers := func(address string) {
		t.Helper()
		until(t, "an answer", func() bool { status, _, _ := get(t, address, "web.localhost", "/"); return status == 200 })
	}
	c, address := start(file)
	cli := etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{client}})
	if _, err := cli.Put(t.Context(), "/rota/services/web/a", up.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	answers(address)
	c.Process.Signal(handoverSignal)
	c.find(`(cannot be handed over)`)
	answers(address)
	c.Process.Signal(syscall.SIGTERM)
	if status := c.exit(); status != 0 {
		t.Errorf("exit %d: %s", status, c.out)
	}
	_, address = start(file)
	answers(address)

	// The same daemon, with an etcd elsewhere.
	elsewhere := etcdtest.Start(t)
	if _, err := elsewhere.Client().Put(t.Context(), "/rota/services/web/b", up.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	_, address = start(write(t, "rota.yaml", fmt.Sprintf("etcd: {endpoints: [%q]}\n%s", elsewhere.Endpoints()[0], rest)))
	answers(address)
}

// What docs/operations.md says of backups: a member that has lost its disk gets its data back, and so does an etcd elsewhere that the
// daemon then moves to by another line.
func TestEmbeddedBackup(t *testing.T) {
	restoreTo := restorer(t)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	defer up.Close()
	home := t.TempDir()
	dir, client := filepath.Join(home, "etcd"), freeAddr(t)
	start := func(etcd string) (*child, string) {
		t.Helper()
		c := spawn(t, "serve", "-c", write(t, "rota.yaml", "etcd: "+etcd+"\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"off\"}\n"))
		return c, c.find(listening)
	}
	answers := func(address string) {
		t.Helper()
		until(t, "an answer", func() bool { status, _, _ := get(t, address, "shop.example.com", "/"); return status == 200 })
	}
	inside := fmt.Sprintf("{embedded: {dir: %s, client: %q}}", dir, client)
	c, address := start(inside)
	cli := etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{client}})
	for key, value := range map[string]string{"services/web/a": up.Listener.Addr().String(), "routes/shop": `{"host":"shop.example.com","service":"web"}`} {
		if _, err := cli.Put(t.Context(), "/rota/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	answers(address)
	if s, err := cli.Status(t.Context(), client); err != nil || s.DbSizeQuota != 2<<30 {
		t.Errorf("the quota: %v %v", s, err)
	}

	backup := save(t, cli)
	c.Process.Signal(syscall.SIGTERM)
	c.exit()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	restoreTo(dir, backup)
	_, address = start(inside)
	answers(address)

	restoreTo(filepath.Join(home, "elsewhere"), backup)
	elsewhere, err := startMember(config.Embedded{Dir: filepath.Join(home, "elsewhere"), Name: "elsewhere", Client: freeAddr(t)}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	if c := elsewhere.Config(); c.AutoCompactionMode != "periodic" || c.AutoCompactionRetention != "1h" {
		t.Errorf("history is kept: %s %s", c.AutoCompactionMode, c.AutoCompactionRetention)
	}
	_, address = start(fmt.Sprintf("{endpoints: [%q]}", elsewhere.Clients[0].Addr().String()))
	answers(address)
}

// save writes a backup as "etcdctl snapshot save" does, and returns its file.
func save(t *testing.T, cli *clientv3.Client) string {
	t.Helper()
	from, err := cli.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to, err := os.Create(filepath.Join(t.TempDir(), "backup.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	return to.Name()
}

// restorer is the command that makes a data directory of a backup, with what is added to it. Without etcdutl the test is skipped.
func restorer(t *testing.T) func(dir, backup string, more ...string) {
	t.Helper()
	etcdutl, err := exec.LookPath("../../bin/etcdutl")
	if err != nil {
		if etcdutl, err = exec.LookPath("etcdutl"); err != nil {
			t.Skip("etcdutl is not there: make bin/etcdutl")
		}
	}
	return func(dir, backup string, more ...string) {
		t.Helper()
		args := append([]string{"snapshot", "restore", backup, "--data-dir", dir, "--bump-revision", "1000000000", "--mark-compacted"}, more...)
		if out, err := exec.Command(etcdutl, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
}

// What docs/operations.md says of backups of three: all go back to the same one, which any of them made, and are a cluster again.
func TestEmbeddedClusterBackup(t *testing.T) {
	t.Parallel()
	restoreTo := restorer(t)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	defer up.Close()
	home, names, peers, clients := t.TempDir(), []string{"a", "b", "c"}, map[string]string{}, map[string]string{}
	members, cluster := "", []string{} // as the configuration and as etcdutl name them
	for _, n := range names {
		peers[n], clients[n] = freeAddr(t), freeAddr(t)
		members += fmt.Sprintf("%s: %q, ", n, peers[n])
		cluster = append(cluster, n+"=http://"+peers[n])
	}
	daemons, addresses := map[string]*child{}, map[string]string{}
	start := func() {
		t.Helper()
		for _, n := range names {
			daemons[n] = spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(`
etcd: {embedded: {dir: %s, name: %s, client: %q, members: {%s}}}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "off"}
`, filepath.Join(home, n), n, clients[n], members)))
		}
		for _, n := range names {
			addresses[n] = daemons[n].find(listening)
		}
	}
	put := func(through, key, value string) {
		t.Helper()
		cli := etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{clients[through]}})
		until(t, "a record by "+through, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, err := cli.Put(ctx, "/rota/"+key, value)
			return err == nil
		})
	}
	answer := func(host string, want int) {
		t.Helper()
		for _, n := range names {
			until(t, fmt.Sprintf("%d of %s for %s", want, n, host), func() bool { status, _, _ := get(t, addresses[n], host, "/"); return status == want })
		}
	}
	const shop = `{"host":"shop.example.com","service":"web"}`
	start()
	put("a", "services/web/a", up.Listener.Addr().String())
	put("a", "routes/shop", shop)
	answer("shop.example.com", 200)
	backup := save(t, etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{clients["b"]}}))
	put("c", "routes/shop", `{"host":"wrong.example.com","service":"web"}`)
	answer("shop.example.com", 404)

	for _, n := range names {
		daemons[n].Process.Signal(syscall.SIGTERM)
	}
	for _, n := range names {
		daemons[n].exit()
		if err := os.Rename(filepath.Join(home, n), filepath.Join(home, n+".old")); err != nil {
			t.Fatal(err)
		}
		restoreTo(filepath.Join(home, n), backup, "--name", n, "--initial-cluster", strings.Join(cluster, ","), "--initial-advertise-peer-urls", "http://"+peers[n])
	}
	start()
	answer("shop.example.com", 200)
	answer("wrong.example.com", 404)
	// One may go again: the others are more than half of the three.
	daemons["a"].Process.Kill()
	names = names[1:]
	put("b", "routes/more", strings.Replace(shop, "shop", "more", 1))
	answer("more.example.com", 200)
}

// Three daemons are a cluster, with TLS; one of them may go.
func TestEmbeddedCluster(t *testing.T) {
	t.Parallel()
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	defer up.Close()
	cert, key, _ := keyPair(t, "member")
	names := []string{"a", "b", "c"}
	members, clients := "", map[string]string{}
	for _, n := range names {
		members += fmt.Sprintf("%s: %q, ", n, freeAddr(t))
		clients[n] = freeAddr(t)
	}
	dir := t.TempDir()
	daemons, addresses := map[string]*child{}, map[string]string{}
	for _, n := range names {
		daemons[n] = spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(`
etcd: {embedded: {dir: %s, name: %s, client: %q, members: {%s}, cert: %s, key: %s, cacert: %s}}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "off"}
auto_routes: true
`, filepath.Join(dir, n), n, clients[n], members, cert, key, cert)))
	}
	for _, n := range names {
		addresses[n] = daemons[n].find(listening)
	}
	put := func(through, id string) {
		t.Helper()
		until(t, "a record by "+through, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, err := secure(t, clients[through], cert, key).Put(ctx, "/rota/services/"+id+"/a", up.Listener.Addr().String())
			return err == nil
		})
	}
	put("a", "web")
	for _, n := range names {
		until(t, "an answer of "+n, func() bool { status, _, _ := get(t, addresses[n], "web.localhost", "/"); return status == 200 })
	}
	daemons["a"].Process.Kill()
	put("b", "more")
	for _, n := range names[1:] {
		until(t, "an answer of "+n, func() bool { status, _, _ := get(t, addresses[n], "more.localhost", "/"); return status == 200 })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := secure(t, clients["b"], cert, "").Get(ctx, "/rota/services/web/a"); err == nil {
		t.Error("who has no certificate is let in")
	}
}

// What docs/operations.md says of members that join: one of three that has lost its disk, and a fourth.
func TestEmbeddedJoin(t *testing.T) {
	t.Parallel()
	dir, peers, clients := t.TempDir(), map[string]string{}, map[string]string{}
	for _, n := range []string{"a", "b", "c", "d"} {
		peers[n], clients[n] = freeAddr(t), freeAddr(t)
	}
	members := fmt.Sprintf("a: %q, b: %q, c: %q", peers["a"], peers["b"], peers["c"])
	start := func(n, more string) *child {
		t.Helper()
		return spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(`
etcd: {embedded: {dir: %s, name: %s, client: %q, members: {%s}%s}}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "off"}
`, filepath.Join(dir, n), n, clients[n], members, more)))
	}
	knows := func(n string) {
		t.Helper()
		cli := etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{clients[n]}})
		until(t, "what "+n+" knows", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			got, err := cli.Get(ctx, "/rota/services/web/a") // linearizable
			return err == nil && got.Count == 1
		})
	}
	start("a", "")
	start("b", "")
	c := start("c", "")
	cli := etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{clients["a"]}})
	until(t, "a record", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := cli.Put(ctx, "/rota/services/web/a", "127.0.0.1:1")
		return err == nil
	})
	add := func(n string) {
		t.Helper()
		until(t, "a place for "+n, func() bool { // members that have met just now take no other
			_, err := cli.MemberAdd(t.Context(), []string{"http://" + peers[n]})
			return err == nil
		})
	}

	knows("c")
	c.Process.Kill()
	<-c.done
	if err := os.RemoveAll(filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	c = start("c", "")
	if status := c.exit(); status != exitFailed || !strings.Contains(c.out.String(), "member remove") || !strings.Contains(c.out.String(), "initial_cluster_state: existing") {
		t.Fatalf("without its data: %d %s", status, c.out)
	}
	list, err := cli.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.Name == "c" {
			if _, err := cli.MemberRemove(t.Context(), m.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	add("c")
	c = start("c", ", initial_cluster_state: existing")
	knows("c")
	c.Process.Signal(syscall.SIGTERM)
	c.exit()
	start("c", "") // it has data, and is not asked
	knows("c")

	add("d")
	members += fmt.Sprintf(", d: %q", peers["d"])
	start("d", ", initial_cluster_state: existing")
	knows("d")
}

// secure is a client that trusts a certificate, and shows it if it has the key.
func secure(t *testing.T, endpoint, cert, key string) *clientv3.Client {
	t.Helper()
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AppendCertsFromPEM(pem)
	if key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{"https://" + endpoint}, TLS: cfg})
}
