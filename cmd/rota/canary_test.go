package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// keyPair writes a certificate for 127.0.0.1, and returns a line of its key.
func keyPair(t *testing.T, name string) (cert, key, secret string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	cert = write(t, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return cert, write(t, name+".key", text), strings.Split(text, "\n")[2]
}

// What is secret shows nowhere: not in logs, metrics, pages, what is printed, traces of requests, nor in the snapshot.
func TestCanaries(t *testing.T) {
	etcd := etcdtest.Start(t)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Set-Cookie", "session=canary-response-cookie")
		if r.URL.Path == "/fails" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		io.WriteString(w, "canary-response-body")
	}))
	defer up.Close()
	if _, err := etcd.Client().Put(t.Context(), "/rota/services/web/a", up.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	cert, key, listenerKey := keyPair(t, "listener")
	upCert, upKey, clientKey := keyPair(t, "client")
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("canary-etcd-password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const token = "canary-admin-token-canary-admin-token"
	file := write(t, "rota.yaml", fmt.Sprintf(`
etcd: {endpoints: ["%s"]}
listeners: [{address: "127.0.0.1:0", protocol: https, tls: {certificates: [{cert: %s, key: %s}]}}]
admin: {address: "127.0.0.1:0", token: %s}
snapshot: {path: %s}
log: {level: debug, access: %s}
routes:
  - {name: web, path: /, service: web, request_headers: {set: {Authorization: canary-route-header}}}
services:
  web: {check: {path: /, headers: {X-Auth-Token: canary-check-header}}}
  other: {protocol: https, tls: {cert: %s, key: %s}, instances: [{address: "127.0.0.1:1"}]}
`, etcd.Endpoints()[0], cert, key, token, filepath.Join(dir, "snapshot"), filepath.Join(dir, "access.log"), upCert, upKey))
	canaries := []string{
		"canary-etcd-password", token, "canary-route-header", "canary-check-header", listenerKey, clientKey, "canary-authorization", "canary-cookie",
		"canary-api-key", "canary-query-token", "canary-request-body", "canary-response-body", "canary-response-cookie", "canary-referer",
	}
	t.Setenv("ROTA_ETCD_USERNAME", "rota")
	t.Setenv("ROTA_ETCD_PASSWORD_FILE", password)
	logged := spawn(t, "serve", "-c", file)
	logged.find(`"admin API","url":"(http)`)
	logged.Process.Kill()
	<-logged.done
	seen := map[string]string{"the log of one with a password": logged.out.String()}

	t.Setenv("ROTA_ETCD_USERNAME", "")
	t.Setenv("ROTA_ETCD_PASSWORD_FILE", "")
	c := spawn(t, "serve", "-c", file)
	address := c.find(listening)
	admin := c.find(`"admin API","url":"http://([^"]+)"`)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 10 * time.Second}
	ask := func(path string) int {
		t.Helper()
		req, err := http.NewRequest("POST", "https://"+address+path, strings.NewReader("canary-request-body"))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Authorization": "Bearer canary-authorization", "Cookie": "a=canary-cookie", "X-Api-Key": "canary-api-key", "X-Request-Id": "watched",
			"Referer": "http://a/?access_token=canary-referer",
		} {
			req.Header.Set(name, value)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	until(t, "an answer", func() bool { return ask("/?token=canary-query-token") == 200 })
	if status := ask("/fails?token=canary-query-token"); status != 500 {
		t.Errorf("status %d", status)
	}

	t.Setenv("ROTA_ADMIN_ADDRESS", admin)
	t.Setenv("ROTA_ADMIN_TOKEN", token)
	pages := []string{"/", "/assets/dashboard.js", "/metrics", "/livez", "/readyz", "/api/v1/nothing"}
	for _, p := range []string{"status", "services", "services/web", "services/web/instances/a", "routes", "stats", "events", "config", "loglevel", "openapi.json", "why?request_id=watched", "why?url=http://a/"} {
		pages = append(pages, "/api/v1/"+p)
	}
	for _, p := range pages {
		req, err := http.NewRequest("GET", "http://"+admin+p, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		seen[p] = string(body)
	}
	for _, list := range []string{
		"status", "config print " + file, "config print --daemon", "services ls -o json", "instances ls", "routes ls", "why --request-id watched", "events", "top --rounds 1", "plan -c " + file,
	} {
		_, out, errs := command(t, strings.Fields(list)...)
		seen["rota "+list] = out + errs
	}
	if !strings.Contains(seen["/api/v1/why?request_id=watched"], "REDACTED") || !strings.Contains(seen["/api/v1/config"], "(hidden)") {
		t.Errorf("what is hidden is not there at all: %s %s", seen["/api/v1/why?request_id=watched"], seen["/api/v1/config"])
	}
	until(t, "the snapshot", func() bool { _, err := os.Stat(filepath.Join(dir, "snapshot")); return err == nil })
	c.Process.Signal(os.Interrupt)
	if status := c.exit(); status != 0 {
		t.Errorf("exit %d", status)
	}
	seen["the event log"] = c.out.String()
	for _, name := range []string{"snapshot", "access.log"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		seen[name] = string(text)
	}
	if !regexp.MustCompile(`token=REDACTED.*access_token=REDACTED`).MatchString(seen["access.log"]) {
		t.Errorf("the access log: %s", seen["access.log"])
	}
	for where, text := range seen {
		if text == "" && where != "events" {
			t.Errorf("%s is empty", where)
		}
		for _, secret := range canaries {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s", where, secret)
			}
		}
	}
}
