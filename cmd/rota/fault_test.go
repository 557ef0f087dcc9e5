//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// shell is the command, started by a shell that does something first. The process stays the same.
func shell(first string, list ...string) *exec.Cmd {
	return exec.Command("/bin/sh", append([]string{"-c", first + ` exec "$0" "$@"`, os.Args[0]}, list...)...)
}

const adminURL = `"admin API","url":"http://([^"]+)"`

// figure is the value of a metric, over all of its labels.
func figure(t *testing.T, admin, name string) (sum float64) {
	t.Helper()
	status, text, _ := get(t, admin, admin, "/metrics")
	list := regexp.MustCompile(`(?m)^`+name+`(?:\{[^}]*\})? ([0-9.e+]+)$`).FindAllStringSubmatch(text, -1)
	if status != 200 || list == nil {
		t.Fatalf("no %s in the metrics: %d", name, status)
	}
	for _, m := range list {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// ticks is the CPU time that a process has used, to a hundredth of a second.
func ticks(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may contain spaces
	fields := strings.Fields(rest)
	var sum time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}

// named answers with a name.
func named(t *testing.T, name string) (address string) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
	t.Cleanup(up.Close)
	return up.Listener.Addr().String()
}

// A daemon without descriptors to spare: whoever fits in is served, the rest waits; it does not spin, the admin API and etcd
// go on, and when there is room again everybody is served, also by what has registered meanwhile.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	const limit, crowd = 120, 200
	for _, engine := range []string{"loops", "goroutines"} {
		t.Run(engine, func(t *testing.T) {
			etcd := etcdtest.Start(t)
			c := launch(t, shell(fmt.Sprintf("ulimit -n %d;", limit), "serve", "--endpoints", etcd.Endpoints()[0], "--listen", "127.0.0.1:0",
				"--admin", "127.0.0.1:0", "--auto-routes", "--access-log", "off", "--engine", engine))
			address, admin, pid := c.find(listening), c.find(adminURL), c.Process.Pid
			register := func(id, upstream string) {
				t.Helper()
				if _, err := etcd.Client().Put(t.Context(), "/rota/services/web/"+id, upstream); err != nil {
					t.Fatal(err)
				}
			}
			register("a", named(t, "a"))
			until(t, "routable", func() bool { status, _, _ := get(t, address, "web.localhost", "/"); return status == 200 })
			resets := figure(t, admin, "rota_registry_relists_total")
			calm := func(what string) {
				t.Helper()
				before := ticks(t, pid)
				time.Sleep(time.Second) // the span of the measurement
				used := ticks(t, pid) - before
				t.Logf("%s: %v of CPU in a second", what, used)
				if used > 300*time.Millisecond {
					t.Errorf("%s: %v of CPU in a second", what, used)
				}
			}
			var held []net.Conn
			hold := func(address string) {
				t.Helper()
				for range crowd {
					conn, err := net.DialTimeout("tcp", address, 5*time.Second)
					if err != nil {
						t.Fatal(err)
					}
					held = append(held, conn)
				}
			}
			release := func() {
				for _, conn := range held {
					conn.Close()
				}
				held = nil
			}
			defer func() { release() }()

			hold(address)
			var open float64
			until(t, "full", func() bool {
				last := open
				open = figure(t, admin, "rota_open_connections")
				return open > 10 && open == last
			})
			if open > limit {
				t.Fatalf("%v connections with %d descriptors", open, limit)
			}
			began := time.Now()
			if status, _, _ := get(t, admin, admin, "/livez"); status != 200 || time.Since(began) > time.Second {
				t.Errorf("livez: %d after %v", status, time.Since(began))
			}
			register("b", named(t, "b"))
			until(t, "the registration is seen", func() bool { return figure(t, admin, "rota_registry_instances") == 2 })
			calm(fmt.Sprintf("%v of %d connections", open, crowd))
			if n := figure(t, admin, "rota_open_connections"); n > open {
				t.Errorf("%v connections, %v before", n, open)
			}
			release()
			seen := map[string]bool{}
			until(t, "both instances serve", func() bool {
				_, body, _ := get(t, address, "web.localhost", "/")
				seen[body] = true
				return seen["a"] && seen["b"]
			})

			// Now really none: the admin API takes what the data plane leaves.
			kept, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer kept.Close()
			answers := bufio.NewReader(kept)
			ask := func() {
				t.Helper()
				kept.SetDeadline(time.Now().Add(5 * time.Second))
				io.WriteString(kept, "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n")
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				if io.Copy(io.Discard, resp.Body); resp.StatusCode != 200 {
					t.Errorf("answered %d", resp.StatusCode)
				}
			}
			ask()
			ask() // both instances have a connection that is kept
			hold(admin)
			until(t, "no descriptor is left", func() bool {
				list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
				return err == nil && len(list) >= limit-1
			})
			calm("no descriptor left")
			ask()
			register("c", named(t, "c"))
			release()
			until(t, "the third instance serves", func() bool {
				_, body, _ := get(t, address, "web.localhost", "/")
				return body == "c"
			})
			if status, _, _ := get(t, admin, admin, "/livez"); status != 200 {
				t.Errorf("livez: %d", status)
			}
			if n := figure(t, admin, "rota_registry_relists_total"); n != resets || figure(t, admin, "rota_registry_connected") != 1 {
				t.Errorf("the connection to etcd broke: %v resets, %v before", n, resets)
			}
			c.Process.Signal(syscall.SIGTERM)
			if status := c.exit(); status != 0 {
				t.Errorf("exit %d", status)
			}
		})
	}
}

const logConfig = `
etcd: {disabled: true}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
log: {access: %q}
grace: 2s
routes: [{name: a, service: s}]
services: {s: {instances: [{address: %q}]}}
`

// latencies does n requests on eight connections, by a client whose name takes 2 KB of a log.
func latencies(t *testing.T, address string, n int) (p99, longest time.Duration) {
	t.Helper()
	const connections = 8
	agent := strings.Repeat("a client with some name ", 80)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var all []time.Duration
	for range connections {
		wg.Go(func() {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			var mine []time.Duration
			for r := bufio.NewReader(c); len(mine) < n/connections; {
				began := time.Now()
				c.SetDeadline(began.Add(10 * time.Second))
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: "+agent+"\r\n\r\n")
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(all) == 0 {
		t.Fatal("no request was done")
	}
	slices.Sort(all)
	return all[len(all)*99/100], all[len(all)-1]
}

// Nobody reads the log: no request waits for it, the lines that are lost are counted, and the daemon still does what it is told.
func TestStuckLog(t *testing.T) {
	const requests = 20_000 // 40 MB of log
	up := named(t, "ok")
	file := filepath.Join(t.TempDir(), "access.log")
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(logConfig, file, up)))
	address := c.find(listening)
	latencies(t, address, requests/10)
	p99, longest := latencies(t, address, requests)
	t.Logf("to a file: p99 %v, longest %v", p99, longest)
	if info, err := os.Stat(file); err != nil || info.Size() == 0 {
		t.Fatalf("nothing in the log: %v", err)
	}
	c.Process.Signal(syscall.SIGTERM)
	c.exit()

	for _, kind := range []string{"fifo", "stdout"} {
		t.Run(kind, func(t *testing.T) {
			to, cmd := kind, exec.Command(os.Args[0])
			if kind == "fifo" {
				to = filepath.Join(t.TempDir(), "log")
				if err := syscall.Mkfifo(to, 0o600); err != nil {
					t.Fatal(err)
				}
				reader, err := os.OpenFile(to, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer reader.Close()
			} else {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				defer w.Close()
				cmd.Stdout = w
			}
			cmd.Args = append(cmd.Args, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(logConfig, to, up)))
			c := launch(t, cmd)
			address, admin := c.find(listening), c.find(adminURL)
			latencies(t, address, requests/10)
			stuck, most := latencies(t, address, requests)
			t.Logf("p99 %v, longest %v", stuck, most)
			slow := func() bool { return stuck > max(5*p99, 10*time.Millisecond) || most > 250*time.Millisecond }
			if slow() { // the machine may have been busy with something else: what is slow is slow twice
				stuck, most = latencies(t, address, requests)
				t.Logf("once more: p99 %v, longest %v", stuck, most)
			}
			if slow() {
				t.Errorf("p99 %v, longest %v; to a file %v, %v", stuck, most, p99, longest)
			}
			lost := figure(t, admin, "rota_access_log_dropped_total")
			latencies(t, address, 800)
			n := lost
			for late := time.Now().Add(10 * time.Second); n < lost+800 && time.Now().Before(late); { // a line comes after its answer
				n = figure(t, admin, "rota_access_log_dropped_total")
			}
			if lost == 0 || n < lost+800 {
				t.Errorf("%v lines lost, %v before", n, lost)
			}
			c.Process.Signal(syscall.SIGUSR1) // to open the log anew, which is stuck too
			c.Process.Signal(syscall.SIGTERM)
			select {
			case <-c.done:
				if status := c.ProcessState.ExitCode(); status != 0 {
					t.Errorf("exit %d", status)
				}
			case <-time.After(8 * time.Second):
				t.Error("still running long after it was told to end")
			}
		})
	}
}

// full fills a pipe, at a path.
func full(t *testing.T, path string) {
	t.Helper()
	fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for page := bytes.Repeat([]byte{'\n'}, os.Getpagesize()); err == nil; {
		_, err = syscall.Write(fd, page)
	}
	if err != syscall.EAGAIN {
		t.Fatal(err)
	}
}

// Nobody reads stderr, and the pipe is full: instances and routes come and go all the same, the watchdog is answered, and the
// daemon ends when it is told to. What it had to say is still there for a reader who comes back.
func TestStuckEventLog(t *testing.T) {
	stuck := func(t *testing.T) (path string, stderr *os.File, reader *bufio.Reader) {
		t.Helper()
		path = filepath.Join(t.TempDir(), "stderr")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := os.OpenFile(path, os.O_RDWR, 0) // there is a reader, for as long as the test lasts
		if err != nil {
			t.Fatal(err)
		}
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		r.SetReadDeadline(time.Now().Add(time.Minute))
		return path, w, bufio.NewReader(r)
	}
	soon := func(t *testing.T, c *child, want int) {
		t.Helper()
		select {
		case <-c.done:
			if status := c.ProcessState.ExitCode(); status != want {
				t.Errorf("exit %d", status)
			}
		case <-time.After(8 * time.Second):
			t.Error("still running long after it should have ended")
		}
	}

	t.Run("serve", func(t *testing.T) {
		etcd := etcdtest.Start(t)
		put := func(key, value string) {
			t.Helper()
			if _, err := etcd.Client().Put(t.Context(), key, value); err != nil {
				t.Fatal(err)
			}
		}
		remove := func(key string) {
			t.Helper()
			if _, err := etcd.Client().Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		file := write(t, "rota.yaml", "")
		path, stderr, reader := stuck(t)
		cmd := exec.Command(os.Args[0], "serve", "-c", file, "--endpoints", etcd.Endpoints()[0], "--listen", "127.0.0.1:0",
			"--admin", "127.0.0.1:0", "--auto-routes", "--access-log", "off", "--grace", "1s")
		cmd.Stderr = stderr
		c := launch(t, cmd)
		for !strings.Contains(c.out.String(), "admin API") { // and then no more
			line, err := reader.ReadBytes('\n')
			if err != nil {
				t.Fatal(err)
			}
			c.out.Write(line)
		}
		address, admin := c.find(listening), c.find(adminURL)
		put("/rota/services/web/a", named(t, "a"))
		answered := func(host, want string) {
			t.Helper()
			until(t, host+" is answered by "+want, func() bool { _, body, _ := get(t, address, host, "/"); return body == want })
		}
		answered("web.localhost", "a")

		full(t, path)
		for i := range 300 {
			key := fmt.Sprintf("/rota/services/many/%d", i)
			put(key, "127.0.0.1:1")
			remove(key)
		}
		put("/rota/services/web/b", named(t, "b"))
		remove("/rota/services/web/a")
		answered("web.localhost", "b")
		put("/rota/routes/r", `{"host":"a.example.com","service":"web"}`)
		answered("a.example.com", "b")
		if err := os.WriteFile(file, []byte("routes: [{name: f, host: b.example.com, service: web}]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Process.Signal(syscall.SIGHUP)
		answered("b.example.com", "b")
		if status, _, _ := get(t, admin, admin, "/api/v1/status"); status != 200 { // which the control loop answers, as it does the watchdog
			t.Errorf("status: %d", status)
		}

		for _, want := range []string{`"service":"many"`, "configuration reloaded"} {
			for found := false; !found; {
				line, err := reader.ReadBytes('\n')
				if err != nil {
					t.Fatalf("no line with %s: %v", want, err)
				}
				line = bytes.TrimSpace(line)
				if len(line) > 0 && !json.Valid(line) || bytes.Contains(line, []byte("lines are missing")) {
					t.Errorf("%q", line)
				}
				found = bytes.Contains(line, []byte(want))
			}
		}

		full(t, path)
		c.Process.Signal(syscall.SIGTERM)
		soon(t, c, exitOK)
	})

	// It cannot even say why it does not start.
	t.Run("start", func(t *testing.T) {
		path, stderr, _ := stuck(t)
		full(t, path)
		cmd := exec.Command(os.Args[0], "serve", "-c", write(t, "rota.yaml", "etcd: {disabled: true}\n"), "--listen", named(t, "busy"), "--admin", "off")
		cmd.Stderr = stderr
		soon(t, launch(t, cmd), exitFailed)
	})
}

// private looks whether a process that the daemon starts would get any of its descriptors, beside the standard ones. It
// returns how many the daemon has.
func private(t *testing.T, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	list, err := os.ReadDir(dir + "fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if number, err := strconv.Atoi(fd.Name()); err != nil || number <= 2 {
			continue
		}
		info, err := os.ReadFile(dir + "fdinfo/" + fd.Name())
		if err != nil {
			continue // closed meanwhile
		}
		m := regexp.MustCompile(`(?m)^flags:\s*([0-7]+)$`).FindSubmatch(info)
		if m == nil {
			t.Fatalf("descriptor %s: %s", fd.Name(), info)
		}
		n++
		const closeOnExec = 0o2000000
		if flags, err := strconv.ParseUint(string(m[1]), 8, 64); err != nil || flags&closeOnExec == 0 {
			what, _ := os.Readlink(dir + "fd/" + fd.Name())
			if ours, _ := os.Readlink("/proc/self/fd/" + fd.Name()); ours == what && !strings.HasPrefix(what, "socket:") {
				continue // whoever runs the tests has left it open, and has given it to all
			}
			t.Errorf("descriptor %s, %s, would be inherited: flags %s, %v", fd.Name(), what, m[1], err)
		}
	}
	return n
}

// What a daemon opens stays with it: listeners, clients, instances, etcd, logs, pipes; and so does what it was given.
func TestDescriptorsArePrivate(t *testing.T) {
	etcd := etcdtest.Start(t)
	dir := t.TempDir()
	file := write(t, "rota.yaml", fmt.Sprintf(`
etcd: {endpoints: [%q]}
listeners: [{address: "127.0.0.1:0"}, {address: "unix:%s/rota.sock"}]
admin: {address: "127.0.0.1:0"}
log: {access: %q}
routes: [{name: a, service: s}]
services: {s: {instances: [{address: %q}]}}
`, etcd.Endpoints()[0], dir, dir+"/log", answering(t)))
	for _, engine := range []string{"loops", "goroutines"} {
		t.Run(engine, func(t *testing.T) {
			c := spawn(t, "serve", "-c", file, "--engine", engine)
			address, admin := c.find(listening), c.find(adminURL)
			client, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			io.WriteString(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if _, err := client.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			until(t, "etcd is there", func() bool { return figure(t, admin, "rota_registry_connected") == 1 })
			if n := private(t, c.Process.Pid); n < 8 {
				t.Errorf("only %d descriptors were looked at", n)
			}
			client.Close()

			syscall.Kill(c.Process.Pid, syscall.SIGUSR2)
			c.find(`(the successor serves)`)
			pids := regexp.MustCompile(`"rota starts".*"pid":([0-9]+)`).FindAllStringSubmatch(c.out.String(), -1)
			successor, err := strconv.Atoi(pids[len(pids)-1][1])
			if err != nil || successor == c.Process.Pid {
				t.Fatalf("no successor: %v", pids)
			}
			defer syscall.Kill(successor, syscall.SIGKILL)
			if n := private(t, successor); n < 8 {
				t.Errorf("only %d descriptors of the successor were looked at", n)
			}
		})
	}
}

// Sockets that the parent has opened, as systemd does: who has connected before the daemon was there is answered.
func TestSocketActivation(t *testing.T) {
	config := func() string {
		return write(t, "rota.yaml", fmt.Sprintf(`
etcd: {disabled: true}
listeners: [{address: "systemd:web"}]
admin: {address: "off"}
routes: [{name: a, service: s}]
services: {s: {instances: [{address: %q}]}}
`, named(t, "ok")))
	}
	for _, engine := range []string{"loops", "goroutines"} {
		t.Run(engine, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			f, err := ln.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			early, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer early.Close()
			io.WriteString(early, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			activated := func(first string) *child {
				cmd := shell(first, "serve", "-c", config(), "--engine", engine)
				cmd.ExtraFiles = []*os.File{f}
				cmd.Env = []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=web"}
				return launch(t, cmd)
			}
			// What is meant for another process is not taken.
			other := activated("LISTEN_PID=1; export LISTEN_PID;")
			other.find(`(systemd passes no socket "web")`)
			if status := other.exit(); status != exitFailed {
				t.Errorf("not for us: exit %d", status)
			}
			c := activated("LISTEN_PID=$$; export LISTEN_PID;")
			address := c.find(listening)
			f.Close()
			ln.Close()
			early.SetDeadline(time.Now().Add(10 * time.Second))
			if answer, err := io.ReadAll(early); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
				t.Errorf("who came early got %q, %v", answer, err)
			}
			if status, _, _ := get(t, address, "a", "/"); status != 200 {
				t.Errorf("who came late got %d", status)
			}
			private(t, c.Process.Pid)
			environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.Process.Pid))
			if err != nil || !strings.Contains(string(environ), fmt.Sprintf("LISTEN_PID=%d", c.Process.Pid)) {
				t.Errorf("it was not started as systemd does: %v", err)
			}
			c.Process.Signal(syscall.SIGTERM)
			if status := c.exit(); status != 0 {
				t.Errorf("exit %d", status)
			}
		})
	}
}

// logrotate moves the access log and sends SIGUSR1: what comes after is in a new file, and nothing is lost.
func TestRotate(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "access.log")
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(rotateConfig, log, answering(t))))
	url := "http://" + c.find(listening)
	ask := func(path string) {
		t.Helper()
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	has := func(file, path string) func() bool {
		return func() bool {
			text, _ := os.ReadFile(file)
			return strings.Contains(string(text), `"uri":"`+path+`"`)
		}
	}
	ask("/before")
	until(t, "a line", has(log, "/before"))
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	ask("/between")
	c.Process.Signal(syscall.SIGUSR1)
	until(t, "the new file", func() bool { _, err := os.Stat(log); return err == nil })
	ask("/after")
	until(t, "a line in the new file", has(log, "/after"))
	if !has(log+".1", "/between")() && !has(log, "/between")() || has(log, "/before")() {
		t.Error("the lines from before are not where they belong")
	}
	c.Process.Signal(syscall.SIGTERM)
	c.exit()
}

const rotateConfig = `
etcd: {disabled: true}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
log: {access: "%s"}
routes: [{name: a, service: s}]
services: {s: {instances: [{address: "%s"}]}}
`
