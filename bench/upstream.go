//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// upstream is one nginx worker with a file. Its own counters tell who reconnects.
//
// A body that is posted has to be read before the answer, as a service would. Neither a file nor "return" waits for it,
// but a mirrored request does; that a file refuses POST then is what leads to the answer.
type upstream struct {
	*rig.Process
	address string
	status  string
	client  *http.Client
}

func startUpstream(ctx context.Context, r *rig.Rig) (*upstream, error) {
	address, err := rig.Address()
	if err != nil {
		return nil, err
	}
	status, err := rig.Address()
	if err != nil {
		return nil, err
	}
	posts := ""
	if asked.post > 0 {
		posts = `
    location = ` + bodyPath + ` { client_body_buffer_size 64k; mirror /read; error_page 405 =200 /answer; }
    location = /read { internal; return 204; }
    location = /answer { internal; alias www` + bodyPath + `; }`
	}
	config, err := r.File("nginx.conf", fmt.Sprintf(`daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 20000; accept_mutex off; }
http {
  access_log off; server_tokens off; tcp_nodelay on; etag off; sendfile on;
  keepalive_timeout 1h; keepalive_requests 1000000000;
  open_file_cache max=16 inactive=1h; open_file_cache_valid 1h;
  client_body_temp_path body_temp; proxy_temp_path proxy_temp;
  fastcgi_temp_path fastcgi_temp; uwsgi_temp_path uwsgi_temp; scgi_temp_path scgi_temp;
  server { listen %s backlog=4096; root www;%s }
  server { listen %s; location / { stub_status; } }
}
`, address, posts, status))
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(config)
	if err := os.Mkdir(filepath.Join(dir, "www"), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "www", bodyPath), body, 0o644); err != nil {
		return nil, err
	}
	p, err := r.Start("upstream", nil, "nginx", "-e", "stderr", "-p", dir, "-c", config)
	if err != nil {
		return nil, err
	}
	u := &upstream{Process: p, address: address, status: "http://" + status + "/",
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxConnsPerHost: 1}}}
	return u, p.Ready(ctx, func() error { return verifyAt("http://"+address, 1) })
}

// counters are nginx's own, without the questions for them.
type counters struct{ accepted, requests int64 }

func (u *upstream) counters() (counters, error) {
	if u.Process == nil {
		return counters{}, nil // somebody else's
	}
	resp, err := u.client.Get(u.status)
	if err != nil {
		return counters{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return counters{}, err
	}
	return parseStatus(string(text))
}

// parseStatus reads the third line of a stub_status page: accepted, handled, requests.
func parseStatus(text string) (counters, error) {
	var accepted, handled, requests int64
	lines := strings.Split(text, "\n")
	if len(lines) < 3 {
		return counters{}, fmt.Errorf("unreadable status %q", text)
	}
	if _, err := fmt.Sscan(lines[2], &accepted, &handled, &requests); err != nil {
		return counters{}, fmt.Errorf("unreadable status %q", text)
	}
	return counters{accepted, requests}, nil
}

// verify asks a contestant n times on one connection and compares every byte of the answers.
func verify(address string, n int) error { return verifyAt(scheme()+address, n) }

func verifyAt(url string, n int) error {
	client := asking()
	defer client.CloseIdleConnections()
	for range n {
		req, err := http.NewRequest(method(), url+bodyPath, bytes.NewReader(sent))
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err != nil:
			return err
		case resp.StatusCode != http.StatusOK:
			return fmt.Errorf("status %d", resp.StatusCode)
		case !bytes.Equal(got, body):
			return fmt.Errorf("a body of %d bytes that is not the upstream's", len(got))
		case asked.close && !resp.Close:
			return errors.New("the connection is kept though it shall be closed")
		}
	}
	return nil
}

// echo is an upstream that notes the forwarding header it last saw. What is posted must arrive unchanged.
type echo struct {
	net.Listener
	forwarded chan string
}

func startEcho() (*echo, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := &echo{l, make(chan string, 16)}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if got, err := io.ReadAll(req.Body); err != nil || !bytes.Equal(got, sent) {
			http.Error(w, "that is not what was sent", http.StatusBadRequest)
			return
		}
		select {
		case e.forwarded <- req.Header.Get("X-Forwarded-For"):
		default:
		}
		w.Write(body)
	}))
	return e, nil
}
