package balancer

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/telemetry"
	"github.com/rota-lb/rota/config"
)

// What a configuration may name is what the log knows.
func TestLogVariables(t *testing.T) {
	if !slices.Equal(config.LogVariables, telemetry.Variables()) {
		t.Errorf("config knows\n%q\nthe log\n%q", config.LogVariables, telemetry.Variables())
	}
	for _, format := range config.LogFormats {
		if err := telemetry.CheckFormat(format); err != nil {
			t.Error(err)
		}
	}
}

// A reload changes the format and the filter of a log that is open.
func TestAccessLogReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access.log")
	change := func(format string) func(c *config.Config) {
		return func(c *config.Config) {
			c.Etcd.Disabled, c.Log.Access, c.Log.Format = true, file, format
			c.Services = map[string]config.Service{"web": {Instances: []config.StaticInstance{{Address: backend(t, "hello")}}}}
		}
	}
	d := run(t, nil, change("combined"))
	log := func(count int) []string {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"); len(lines) >= count && lines[0] != "" {
				return lines
			}
			if time.Now().After(deadline) {
				t.Fatalf("no %d lines in %q", count, text)
			}
		}
	}
	d.get("web", "/a?token=s3cret")
	if lines := log(1); !regexp.MustCompile(`^127\.0\.0\.1 - - \[.*\] "GET /a\?token=REDACTED HTTP/1\.1" 200 5 "-" "Go-http-client/1\.1"$`).MatchString(lines[0]) {
		t.Errorf("combined: %q", lines)
	}
	next := *d.config
	next.Dynamic = *d.dynamic.Load()
	next.Log.Format, next.Log.Filter.Status = "$status $uri $service", []string{"404"}
	d.Reload(t.Context(), next.Dynamic)
	d.get("web", "/b")
	d.get("nowhere", "/c")
	if lines := log(2); len(lines) != 2 || lines[1] != "404 /c -" {
		t.Errorf("after the reload: %q", lines)
	}
	if path, text := d.effective(); path != "" || !strings.Contains(string(text), "$status $uri $service") {
		t.Errorf("in effect: %s", text)
	}
}

// Listeners that leave their port open are two, and told apart by what was bound.
func TestListenerMetrics(t *testing.T) {
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled = true
		c.Listeners = append(c.Listeners, c.Listeners[0])
	})
	text := d.metrics(t)
	for _, a := range d.Addresses() {
		if want := `rota_open_connections{listener="` + a.String() + `"} 0`; !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
}
