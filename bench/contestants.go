//go:build linux

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// contestant is a proxy that can be started in front of one upstream.
type contestant struct {
	name    string
	version string
	// copies means that it only copies bytes: it adds no header and pools no upstream connection.
	copies bool
	// metrics means that it exports those of its Go runtime.
	metrics bool
	start   func(r *rig.Rig, listen, upstream string) (*running, error)
}

// running is a started contestant.
type running struct {
	*rig.Process
	address string
	metrics string // URL of Prometheus metrics, or empty
}

// logged says that everybody keeps an access log, in a file: as JSON, or the way it does by itself.
var logged bool

// find makes the contestant of that name.
func find(ctx context.Context, r *rig.Rig, name string, o *options) (*contestant, error) {
	switch name {
	case "floor":
		return floor(ctx, r)
	case "rota", "rota-quiet":
		return rota(ctx, r, name, o.rota)
	case "rota-b":
		if o.ab == "" {
			return nil, errors.New("rota-b is the binary that -ab names")
		}
		return rota(ctx, r, name, o.ab)
	case "nginx", "nginx-16k":
		c := &contestant{name: name, version: version("nginx", "-v")}
		c.start = func(r *rig.Rig, listen, upstream string) (*running, error) {
			return startNginx(r, name == "nginx" && asked.size > 16<<10, listen, upstream)
		}
		return c, need("nginx")
	case "haproxy":
		return &contestant{name: name, version: version("haproxy", "-v"), start: startHAProxy}, need("haproxy")
	case "caddy":
		return &contestant{name: name, version: version("caddy", "version"), start: startCaddy}, need("caddy")
	case "httputil":
		return httputil(ctx, r)
	}
	return nil, fmt.Errorf("unknown contestant %q: there are floor, rota, nginx, nginx-16k, whose buffers have 16 KiB whatever the body, haproxy, caddy, httputil, rota-quiet, which never logs, rota-b with -ab, and -extra", name)
}

func need(tool string) error {
	if _, err := exec.LookPath(tool); err != nil {
		return fmt.Errorf("%s is needed: apt install %s, or leave it out with -contestants", tool, tool)
	}
	return nil
}

var versionNumber = regexp.MustCompile(`[0-9]+\.[0-9]+[0-9A-Za-z.+~-]*`)

// version is the first thing in a program's answer that looks like one.
func version(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return ""
	}
	if v := versionNumber.FindString(string(out)); v != "" {
		return v
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first
}

// rotaVersion is the word that follows the name: a build from a working tree has no number.
func rotaVersion(binary string) string {
	out, err := exec.Command(binary, "version").Output()
	if f := strings.Fields(string(out)); err == nil && len(f) > 1 {
		return f[1]
	}
	return ""
}

//go:embed floor/floor.c
var floorSource string

// compile makes a program of one C file.
func compile(ctx context.Context, r *rig.Rig, name, source string) (binary string, err error) {
	file, err := r.File(name+".c", source)
	if err != nil {
		return "", err
	}
	binary = filepath.Join(r.Dir, name)
	out, err := exec.CommandContext(ctx, "cc", "-O2", "-o", binary, file, "-pthread").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compiling %s: %w\n%s", name, err, out)
	}
	return binary, nil
}

func floor(ctx context.Context, r *rig.Rig) (*contestant, error) {
	binary, err := compile(ctx, r, "floor", floorSource)
	if err != nil {
		return nil, err
	}
	return &contestant{name: "floor", copies: true, start: func(r *rig.Rig, listen, upstream string) (*running, error) {
		_, port, err := net.SplitHostPort(listen)
		if err != nil {
			return nil, err
		}
		_, upstreamPort, err := net.SplitHostPort(upstream)
		if err != nil {
			return nil, err
		}
		p, err := r.Start("floor", nil, binary, port, upstreamPort, fmt.Sprint(workers))
		return &running{Process: p, address: listen}, err
	}}, nil
}

// rota runs the binary, or builds it if none is given.
func rota(ctx context.Context, r *rig.Rig, name, binary string) (*contestant, error) {
	if binary == "" {
		var err error
		if binary, err = r.Build(ctx, "cmd/rota"); err != nil {
			return nil, err
		}
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, err
	}
	c := &contestant{name: name, version: rotaVersion(binary), metrics: true}
	c.start = func(r *rig.Rig, listen, upstream string) (*running, error) {
		admin, err := rig.Address()
		if err != nil {
			return nil, err
		}
		secure := ""
		if asked.tls {
			cert, key, _, err := certificate(r)
			if err != nil {
				return nil, err
			}
			secure = fmt.Sprintf(`, protocol: https, tls: {certificates: [{cert: %q, key: %q}]}`, cert, key)
		}
		access, id := "off", "off"
		if logged && name != "rota-quiet" {
			access, id = "./"+name+".log", "X-Request-Id"
		}
		config, err := r.File("rota.yaml", fmt.Sprintf(`etcd: {disabled: true}
listeners: [{address: "%s"%s}]
admin: {address: "%s"}
loops: %d
grace: 0s
request_id: "%s"
log: {level: warn, access: "%s"}
routes: [{name: b, path: /, service: b}]
services: {b: {instances: [{address: "%s"}]}}
`, listen, secure, admin, workers, id, access, upstream))
		if err != nil {
			return nil, err
		}
		p, err := r.Start(name, nil, binary, "serve", "-c", config)
		return &running{Process: p, address: listen, metrics: "http://" + admin + "/metrics"}, err
	}
	return c, nil
}

// startNginx runs nginx, with long buffers where bodies are long: it is what somebody would set who measures for those.
func startNginx(r *rig.Rig, long bool, listen, upstream string) (*running, error) {
	secure, with := "", ""
	if asked.tls {
		cert, key, _, err := certificate(r)
		if err != nil {
			return nil, err
		}
		secure = fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;", cert, key)
		with = "ssl "
	}
	buffers := "8 16k"
	if long {
		buffers = "16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 256k"
	}
	access := "off"
	if logged {
		access = "nginx.log combined buffer=64k flush=1s"
	}
	config, err := r.File("nginx.conf", fmt.Sprintf(`daemon off;
worker_processes %d;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 20000; accept_mutex off; }
http {
  access_log %s; server_tokens off; tcp_nodelay on;
  keepalive_timeout 1h; keepalive_requests 1000000000;
  proxy_temp_path proxy_temp; client_body_temp_path body_temp;
  fastcgi_temp_path fastcgi_temp; uwsgi_temp_path uwsgi_temp; scgi_temp_path scgi_temp;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_max_temp_file_size 0; client_body_buffer_size 64k; proxy_buffers %s;
  upstream b {
    zone b 1m;
    server %s max_fails=0;
    keepalive 8192; keepalive_requests 1000000000; keepalive_timeout 1h;
  }
  server { listen %s %sreuseport backlog=4096; %s location / { proxy_pass http://b; } }
}
`, workers, access, buffers, upstream, listen, with, secure))
	if err != nil {
		return nil, err
	}
	p, err := r.Start("nginx", nil, "nginx", "-e", "stderr", "-p", filepath.Dir(config), "-c", config)
	return &running{Process: p, address: listen}, err
}

func startHAProxy(r *rig.Rig, listen, upstream string) (*running, error) {
	secure, splice, pipes := "", "", ""
	if asked.tls {
		_, _, both, err := certificate(r)
		if err != nil {
			return nil, err
		}
		secure = "ssl crt " + both + " ssl-min-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256"
	}
	if asked.size > 16<<10 {
		splice, pipes = "option splice-auto", "maxpipes 256"
	}
	log := ""
	if logged {
		log = "log stdout format raw local0 info\n  option httplog"
	}
	config, err := r.File("haproxy.cfg", fmt.Sprintf(`global
  nbthread %d
  maxconn 9000
  tune.pool-low-fd-ratio 100
  tune.pool-high-fd-ratio 100
  %s
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  http-reuse always
  option http-keep-alive
  %s
  %s
  retries 1
frontend f
  bind %s %s shards by-thread
  option forwardfor
  default_backend b
backend b
  balance roundrobin
  server s1 %s pool-max-conn -1 pool-purge-delay 1h
`, workers, pipes, splice, log, listen, secure, upstream))
	if err != nil {
		return nil, err
	}
	p, err := r.Start("haproxy", nil, "haproxy", "-db", "-q", "-f", config)
	return &running{Process: p, address: listen}, err
}

func startCaddy(r *rig.Rig, listen, upstream string) (*running, error) {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, err
	}
	secure := ""
	if asked.tls {
		cert, key, _, err := certificate(r)
		if err != nil {
			return nil, err
		}
		secure = fmt.Sprintf("tls %s %s {\n    protocols tls1.3\n  }", cert, key)
	}
	config, err := r.File("Caddyfile", fmt.Sprintf(`{
  admin off
  auto_https off
  servers {
    protocols h1
  }
  log {
    level ERROR
  }
}
%s:%s {
  bind 127.0.0.1
  %s
  reverse_proxy %s {
    transport http {
      versions 1.1
      compression off
      keepalive 1h
      keepalive_idle_conns_per_host 1000000
    }
  }
}
`, scheme(), port, secure, upstream))
	if err != nil {
		return nil, err
	}
	env := []string{fmt.Sprintf("GOMAXPROCS=%d", workers), "XDG_CONFIG_HOME=" + r.Dir, "XDG_DATA_HOME=" + r.Dir}
	p, err := r.Start("caddy", env, "caddy", "run", "--config", config, "--adapter", "caddyfile")
	return &running{Process: p, address: listen}, err
}

func httputil(ctx context.Context, r *rig.Rig) (*contestant, error) {
	binary, err := r.Build(ctx, "bench/httputil")
	if err != nil {
		return nil, err
	}
	return &contestant{name: "httputil", start: func(r *rig.Rig, listen, upstream string) (*running, error) {
		argv := []string{binary, listen, upstream}
		if asked.tls {
			cert, key, _, err := certificate(r)
			if err != nil {
				return nil, err
			}
			argv = append(argv, cert, key)
		}
		p, err := r.Start("httputil", []string{fmt.Sprintf("GOMAXPROCS=%d", workers)}, argv...)
		return &running{Process: p, address: listen}, err
	}}, nil
}

// extra makes a contestant from name=command.
func extra(spec string) *contestant {
	name, command, _ := strings.Cut(spec, "=")
	return &contestant{name: name, start: func(r *rig.Rig, listen, upstream string) (*running, error) {
		_, port, err := net.SplitHostPort(listen)
		if err != nil {
			return nil, err
		}
		p, err := r.Start(name, []string{"PORT=" + port, "UPSTREAM=" + upstream}, "sh", "-c", "exec "+command)
		return &running{Process: p, address: listen}, err
	}}
}
