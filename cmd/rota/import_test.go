package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
)

// lookPath finds a program of the system's, also where only root looks, or skips the test.
func lookPath(t *testing.T, name string) string {
	t.Helper()
	for _, path := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Skipf("%s is not there; install it to run this test", name)
	return ""
}

// seenBy is an instance that says who it is and what it was asked for.
func seenBy(t *testing.T, name string) (address string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s tenant=%q cookie=%q", name, r.Method, r.RequestURI, r.Header.Get("X-Tenant"), r.Header.Get("Cookie"))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

const importedNginx = `
daemon off;
pid nginx.pid;
error_log stderr;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    client_max_body_size 1k;
    upstream shop { server %[2]s; }
    upstream cart { server %[3]s; }
    upstream api { server %[4]s; }
    server {
        listen 127.0.0.1:%[1]d default_server;
        server_name shop.example.com;
        rewrite ^/blog/([0-9]+)$ /articles/$1 permanent;
        rewrite ^/tmp$ https://elsewhere.example.com/x? redirect;
        location / { proxy_pass http://shop; }
        location /cart/ { proxy_pass http://cart/; }
        location /same/ { proxy_pass http://cart/same/; }
        location /deep/er/ { proxy_pass http://cart/v1/x/; }
        location = /exact { proxy_pass http://api; }
        location ^~ /images/ { proxy_pass http://cart; }
        location ~ \.(png|css)$ { proxy_pass http://api; }
        location ~* ^/users/[0-9]+$ { proxy_pass http://cart; }
        location /legacy { return 301 https://new.example.com$request_uri; }
        location /gone/ { return 302 /here?from=$uri; }
        location /rewritten/ { rewrite ^/rewritten/(.*)$ /v2/$1 break; proxy_pass http://api; }
        location /tenant/ {
            proxy_set_header X-Tenant acme;
            proxy_set_header Cookie "";
            proxy_set_header Host $host;
            proxy_pass http://api/;
        }
        location /files/ { try_files $uri @files; }
        location @files { proxy_pass http://api; }
        location /outer/ {
            proxy_pass http://cart;
            location ~ \.php$ { proxy_pass http://api; }
            location /outer/inner/ { proxy_pass http://api/in/; }
        }
        location ^~ /slash/ { proxy_pass http://cart; }
        location /big/ { client_max_body_size 10k; proxy_pass http://api; }
    }
    server {
        listen 127.0.0.1:%[1]d;
        server_name api.example.com *.api.example.com;
        location / { proxy_pass http://api; }
        location /only/ { proxy_pass http://cart; }
    }
    server {
        listen 127.0.0.1:%[1]d;
        server_name old.example.com;
        return 301 http://shop.example.com$request_uri;
    }
}
`

// TestImportNginxAgrees puts nginx, and rota with what was imported of nginx's configuration, in front of the same
// instances: every request has to end the same way.
func TestImportNginxAgrees(t *testing.T) {
	nginx := lookPath(t, "nginx")
	dir := t.TempDir()
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(importedNginx, port, seenBy(t, "shop"), seenBy(t, "cart"), seenBy(t, "api"))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginx, "-p", dir, "-c", file)
	if os.Getuid() == 0 { // its workers would be nobody's
		cmd.Args = append(cmd.Args, "-g", "user root;")
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	theirs := fmt.Sprintf("127.0.0.1:%d", port)

	out := filepath.Join(dir, "rota.yaml")
	if status, _, stderr := command(t, "import", "nginx", file, "-o", out); status != 0 {
		t.Fatal(stderr)
	} else if strings.Contains(stderr, "not carried over") || strings.Contains(stderr, "left out,") {
		t.Fatal(stderr)
	}
	if _, _, stderr := command(t, "import", "nginx", file, "-o", out); !strings.Contains(stderr, "--force") {
		t.Fatalf("it writes over a file: %s", stderr)
	}
	rota := spawn(t, "serve", "-c", out, "--listen", "127.0.0.1:0", "--admin", "off", "--access-log", "off")
	ours := rota.find(`"listening","address":"([^"]+)"`)

	client := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	until(t, "nginx answers", func() bool {
		resp, err := client.Get("http://" + theirs + "/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	ask := func(address, method, host, path string, body int) string {
		req, err := http.NewRequest(method, "http://"+address+path, strings.NewReader(strings.Repeat("b", body)))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		req.Header.Set("X-Tenant", "client's")
		req.Header.Set("Cookie", "a=b")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		end := fmt.Sprint(resp.StatusCode)
		if where := resp.Header.Get("Location"); where != "" { // nginx makes them absolute
			at, err := (&url.URL{Scheme: "http", Host: host}).Parse(where)
			if err != nil {
				t.Fatal(err)
			}
			at.Host = strings.TrimSuffix(at.Host, fmt.Sprintf(":%d", port))
			return end + " to " + at.String()
		}
		if resp.StatusCode == 200 {
			end += " " + string(answer)
		}
		return end
	}
	const shop, api = "shop.example.com", "api.example.com"
	for _, c := range []struct {
		method, host, path string
		body               int
		want               string // the beginning of what both say
	}{
		{"GET", shop, "/", 0, "200 shop GET / "},
		{"GET", shop, "/a/b?c=d", 0, "200 shop GET /a/b?c=d "},
		{"HEAD", shop, "/", 0, "200"},
		{"DELETE", shop, "/x", 0, "200 shop DELETE /x"},
		{"GET", "nobody.example.com", "/", 0, "200 shop"},
		{"GET", "SHOP.example.com", "/", 0, "200 shop"},
		{"GET", shop, "/cart/", 0, "200 cart GET / "},
		{"GET", shop, "/cart/7?x=1", 0, "200 cart GET /7?x=1 "},
		{"GET", shop, "/cart/a/b/c", 0, "200 cart GET /a/b/c "},
		{"GET", shop, "/cart", 0, "301 to http://shop.example.com/cart/"},
		{"GET", shop, "/cart?x=1", 0, "301 to http://shop.example.com/cart/?x=1"},
		{"GET", shop, "/cartoon", 0, "200 shop GET /cartoon"},
		{"POST", shop, "/cart/", 100, "200 cart POST / "},
		{"GET", shop, "/same/x", 0, "200 cart GET /same/x "},
		{"GET", shop, "/deep/er/y", 0, "200 cart GET /v1/x/y "},
		{"GET", shop, "/deep/y", 0, "200 shop GET /deep/y "},
		{"GET", shop, "/exact", 0, "200 api GET /exact "},
		{"GET", shop, "/exact?a", 0, "200 api GET /exact?a "},
		{"GET", shop, "/exact/more", 0, "200 shop"},
		{"GET", shop, "/images/a.png", 0, "200 cart GET /images/a.png "},
		{"GET", shop, "/a.png", 0, "200 api GET /a.png "},
		{"GET", shop, "/cart/a.css", 0, "200 api GET /cart/a.css "},
		{"GET", shop, "/a.png/b", 0, "200 shop"},
		{"GET", shop, "/users/12", 0, "200 cart GET /users/12 "},
		{"GET", shop, "/USERS/12", 0, "200 cart GET /USERS/12 "},
		{"GET", shop, "/users/12/x", 0, "200 shop"},
		{"GET", shop, "/users/", 0, "200 shop"},
		{"GET", shop, "/legacy", 0, "301 to https://new.example.com/legacy"},
		{"GET", shop, "/legacy/a?b=c", 0, "301 to https://new.example.com/legacy/a?b=c"},
		{"GET", shop, "/gone/x", 0, "302 to http://shop.example.com/here?from=/gone/x"},
		{"GET", shop, "/blog/12", 0, "301 to http://shop.example.com/articles/12"},
		{"GET", shop, "/blog/12?a=b", 0, "301 to http://shop.example.com/articles/12?a=b"},
		{"GET", shop, "/blog/12/x", 0, "200 shop"},
		{"GET", shop, "/tmp?a=b", 0, "302 to https://elsewhere.example.com/x"},
		{"GET", shop, "/rewritten/a/b?c", 0, "200 api GET /v2/a/b?c "},
		{"GET", shop, "/tenant/x", 0, `200 api GET /x tenant="acme" cookie=""`},
		{"POST", shop, "/", 2000, "413"},
		{"POST", shop, "/big/", 2000, "200 api POST /big/ "},
		{"POST", shop, "/big/", 20_000, "413"},
		{"GET", shop, "/files/none", 0, "200 api GET /files/none "},
		{"GET", shop, "/outer/x", 0, "200 cart GET /outer/x "},
		{"GET", shop, "/outer/x.php", 0, "200 api GET /outer/x.php "},
		{"GET", shop, "/outer/inner/x", 0, "200 api GET /in/x "},
		{"GET", shop, "/x.php", 0, "200 shop"},
		{"GET", shop, "/slash", 0, "301 to http://shop.example.com/slash/"},
		{"GET", shop, "/slash/a.png", 0, "200 cart GET /slash/a.png "},
		{"GET", api, "/", 0, "200 api GET / "},
		{"GET", api, "/cart/7", 0, "200 api GET /cart/7 "},
		{"GET", api, "/a.png", 0, "200 api"},
		{"GET", api, "/only/x", 0, "200 cart GET /only/x "},
		{"GET", "eu.api.example.com", "/only/x", 0, "200 cart"},
		{"GET", "a.b.api.example.com", "/", 0, "200 api"},
		{"GET", "old.example.com", "/x?y=z", 0, "301 to http://shop.example.com/x?y=z"},
		{"GET", "old.example.com", "/cart", 0, "301 to http://shop.example.com/cart"},
	} {
		nginx, rota := ask(theirs, c.method, c.host, c.path, c.body), ask(ours, c.method, c.host, c.path, c.body)
		if nginx != rota || !strings.HasPrefix(nginx, c.want) {
			t.Errorf("%s http://%s%s:\n nginx %s\n rota  %s\n want  %s …", c.method, c.host, c.path, nginx, rota, c.want)
		}
	}
}

// TestImportConfd imports the keys of a running etcd, and follows them: an instance that comes later gets requests.
func TestImportConfd(t *testing.T) {
	etcd := etcdtest.Start(t)
	put := func(key, value string) {
		if _, err := etcd.Client().Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	put("/services/web/host1:web:80", seenBy(t, "first"))
	file := filepath.Join(t.TempDir(), "rota.yaml")
	if status, _, stderr := command(t, "import", "confd", "--endpoints", strings.Join(etcd.Endpoints(), ","), "-o", file); status != 0 {
		t.Fatal(stderr)
	}
	cfg, err := config.Load(file, config.WithEnviron(nil))
	if err != nil || len(cfg.Etcd.Foreign) != 1 || cfg.Etcd.Foreign[0].Prefix != "/services" {
		t.Fatalf("%+v, %v", cfg, err)
	}
	rota := spawn(t, "serve", "-c", file, "--listen", "127.0.0.1:0", "--admin", "off", "--access-log", "off")
	url := "http://" + rota.find(`"listening","address":"([^"]+)"`) + "/web/x"
	answered := func(name string) func() bool {
		return func() bool {
			resp, err := http.Get(url)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			return resp.StatusCode == 200 && strings.HasPrefix(string(body), name+" GET /x ")
		}
	}
	until(t, "the first instance answers", answered("first"))
	put("/services/web/host2:web:80", seenBy(t, "second"))
	until(t, "the second instance answers, which came later", answered("second"))
}
