package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A Prometheus scrapes the daemon, knows its histograms, and evaluates the alert rules.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("prometheus is not there: apt install prometheus")
	}
	up := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer up.Close()
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(`
etcd: {disabled: true}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0", token: %s}
log: {access: "off"}
routes: [{name: web, path: /, service: web}]
services: {web: {instances: [{address: "%s"}]}}
`, strings.Repeat("scraped", 6), up.Listener.Addr())))
	address := c.find(listening)
	admin := c.find(`"admin API","url":"http://([^"]+)"`)
	for range 20 {
		get(t, address, "a", "/")
	}
	text, err := os.ReadFile("../../deploy/prometheus/rota.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules := write(t, "rules.yml", string(text))
	config := write(t, "prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: 200ms, evaluation_interval: 200ms}
rule_files: [%s]
scrape_configs:
  - job_name: rota
    authorization: {credentials: %s}
    static_configs: [{targets: ["%s"]}]
`, rules, strings.Repeat("scraped", 6), admin))
	web := freeAddr(t)
	cmd := exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+t.TempDir(), "--web.listen-address="+web)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	query := func(expr string) string {
		resp, err := http.Get("http://" + web + "/api/v1/query?query=" + url.QueryEscape(expr))
		if err != nil {
			return ""
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return ""
		}
		var answer struct {
			Data struct{ Result []struct{ Value [2]any } }
		}
		if json.Unmarshal(body, &answer) != nil || len(answer.Data.Result) == 0 {
			return ""
		}
		return fmt.Sprint(answer.Data.Result[0].Value[1])
	}
	for expr, want := range map[string]string{
		`up{job="rota"}`: "1", `sum(rota_http_requests_total{service="web",code="200"})`: "20", `rota_upstream_state{state="up"}`: "1",
		`rota_http_request_duration_seconds_count{service="web"}`: "20",
	} {
		until(t, expr+" "+want, func() bool { return query(expr) == want })
	}
	resp, err := http.Get("http://" + web + "/api/v1/rules")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(body), `"type":"alerting"`); n < 10 || strings.Contains(string(body), `"health":"err"`) {
		t.Errorf("%d rules: %s", n, body)
	}
}
