package registry_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rota-lb/rota/registry"
)

// TestLoadZero has every way in which a handler may answer alone: the load is 1 in each, and 0 after.
func TestLoadZero(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		status  int
		body    string
	}{
		"nothing":     {func(http.ResponseWriter, *http.Request) {}, 200, ""},
		"status":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 404, ""},
		"bytes":       {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("a")); w.Write([]byte("b")) }, 200, "ab"},
		"string":      {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ab") }, 200, "ab"},
		"error":       {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }, 500, "no\n"},
		"own header":  {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Rota-Load", "99") }, 200, ""},
		"file":        {func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }, 200, "from a file"},
		"early hints": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); io.WriteString(w, "a") }, 200, "a"},
		"flush first": {func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); io.WriteString(w, "a") }, 200, "a"},
		"controller": {func(w http.ResponseWriter, _ *http.Request) {
			c := http.NewResponseController(w)
			if err := c.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
				http.Error(w, err.Error(), 500)
			}
			if err := c.Flush(); err != nil {
				panic(err)
			}
		}, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var load registry.Load
			srv := httptest.NewServer(load.Middleware(c.handler))
			defer srv.Close()
			resp, err := newClient(t).Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.status || string(body) != c.body {
				t.Errorf("%d %q, %v; want %d %q", resp.StatusCode, body, err, c.status, c.body)
			}
			if got := resp.Header.Values(registry.LoadHeader); len(got) != 1 || got[0] != "1" {
				t.Errorf("%s: %q, want 1", registry.LoadHeader, got)
			}
			srv.Close() // waits for the handler
			if n := load.InFlight(); n != 0 {
				t.Errorf("%d in flight after the last", n)
			}
		})
	}
}

// TestLoadOfMany has ten requests in flight, of which each reports how many there still are as it is let go.
func TestLoadOfMany(t *testing.T) {
	const n = 10
	var load registry.Load
	var arrived sync.WaitGroup
	arrived.Add(n)
	letGo := make(chan struct{})
	srv := httptest.NewServer(load.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived.Done()
		<-letGo
	})))
	defer srv.Close()
	c := newClient(t)
	loads := make(chan string, n)
	for range n {
		go func() {
			resp, err := c.Get(srv.URL)
			if err != nil {
				t.Error(err)
				loads <- ""
				return
			}
			resp.Body.Close()
			loads <- resp.Header.Get(registry.LoadHeader)
		}()
	}
	arrived.Wait()
	if got := load.InFlight(); got != n {
		t.Errorf("%d in flight, want %d", got, n)
	}
	for left := n; left > 0; left-- {
		letGo <- struct{}{}
		if got := <-loads; got != fmt.Sprint(left) {
			t.Errorf("reported %s with %d left", got, left)
		}
		// The count ends after the answer has come.
		for deadline := time.Now().Add(10 * time.Second); load.InFlight() != left-1 && time.Now().Before(deadline); {
			runtime.Gosched()
		}
	}
	srv.Close()
	if got := load.InFlight(); got != 0 {
		t.Errorf("%d in flight after the last", got)
	}
}

// TestLoadStreaming has a response whose head goes out long before its end: it counts until then.
func TestLoadStreaming(t *testing.T) {
	var load registry.Load
	end := make(chan struct{})
	srv := httptest.NewServer(load.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "begun\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-end
		io.WriteString(w, "ended\n")
	})))
	defer srv.Close()
	resp, err := newClient(t).Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if line, err := r.ReadString('\n'); err != nil || line != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if n := load.InFlight(); n != 1 {
		t.Errorf("%d in flight while streaming", n)
	}
	close(end)
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "ended\n" {
		t.Errorf("%q, %v", rest, err)
	}
	srv.Close()
	if n := load.InFlight(); n != 0 {
		t.Errorf("%d in flight after the last", n)
	}
}

// TestLoadHijacked has a handler take the connection: it counts while the handler stays, and says nothing of itself.
func TestLoadHijacked(t *testing.T) {
	for name, hijack := range map[string]func(http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error){
		"assertion": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) { return w.(http.Hijacker).Hijack() },
		"controller": func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
			return http.NewResponseController(w).Hijack()
		},
	} {
		t.Run(name, func(t *testing.T) {
			var load registry.Load
			left := make(chan struct{})
			srv := httptest.NewServer(load.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				defer close(left)
				conn, rw, err := hijack(w)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				line, _ := rw.ReadString('\n')
				fmt.Fprintf(conn, "%d %s", load.InFlight(), line)
			})))
			defer srv.Close()
			req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			resp, err := newClient(t).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != 101 || resp.Header.Get(registry.LoadHeader) != "" {
				t.Errorf("%s, load %q", resp.Status, resp.Header.Get(registry.LoadHeader))
			}
			io.WriteString(resp.Body.(io.Writer), "hello\n")
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "1 hello\n" {
				t.Errorf("%q, %v", got, err)
			}
			<-left
		})
	}
}

// TestLoadPanic has a handler give up: it does not count for ever.
func TestLoadPanic(t *testing.T) {
	var load registry.Load
	srv := httptest.NewServer(load.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })))
	defer srv.Close()
	if resp, err := newClient(t).Get(srv.URL); err == nil {
		resp.Body.Close()
		t.Error("an answer")
	}
	srv.Close()
	if n := load.InFlight(); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

// TestServeLoad has Serve put the middleware around the server's handler.
func TestServeLoad(t *testing.T) {
	var load registry.Load
	s := serve(t, registry.ServeOptions{Settle: -1, Load: &load}, &http.Server{Handler: answer("hello")}, registry.Instance{})
	in := s.instance("there", there)
	resp, err := newClient(t).Get("http://" + in.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "hello" || resp.Header.Get(registry.LoadHeader) != "1" {
		t.Errorf("%q, %v, load %q", body, err, resp.Header.Get(registry.LoadHeader))
	}
	s.stop()
	if err := s.result(); err != nil {
		t.Error(err)
	}
	if n := load.InFlight(); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

func ExampleLoad() {
	var load registry.Load
	handler := load.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "hello")
	}))

	srv := httptest.NewServer(handler)
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp.Body.Close()
	fmt.Println(registry.LoadHeader, resp.Header.Get(registry.LoadHeader))
	// Output: Rota-Load 1
}
