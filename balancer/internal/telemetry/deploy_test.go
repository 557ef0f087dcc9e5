package telemetry

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

const deploy = "../../../deploy/"

// expressions are those of the alert rules and of the dashboard, by where they stand.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile(deploy + "prometheus/rota.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	operations, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules.Groups[0].Rules {
		out[r.Alert] = r.Expr
		for _, name := range []string{"summary", "description", "runbook_url"} {
			if r.Annotations[name] == "" {
				t.Errorf("%s has no %s", r.Alert, name)
			}
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		if want := "docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want || !strings.Contains(string(operations), "### "+r.Alert+"\n") {
			t.Errorf("%s: the runbook is %s, want %s and a heading there", r.Alert, r.Annotations["runbook_url"], want)
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct {
				Name, Type string
				Query      any // text where the type is another
			}
		}
	}
	if text, err = os.ReadFile(deploy + "grafana/rota.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			out["panel "+p.Title+" "+target.Expr] = target.Expr
		}
	}
	// What variables offer to choose from, as the expression that has the same values.
	variables := 0
	for _, v := range board.Templating.List {
		if v.Type != "query" {
			continue
		}
		query, _ := v.Query.(map[string]any)
		m := regexp.MustCompile(`^label_values\((.+), *(\w+)\)$`).FindStringSubmatch(fmt.Sprint(query["query"]))
		if m == nil {
			t.Errorf("variable %s: label_values(metric, label) is checked, %v is not", v.Name, v.Query)
			continue
		}
		out["variable "+v.Name] = fmt.Sprintf("count by (%s) (%s)", m[2], m[1])
		variables++
	}
	if variables == 0 {
		t.Error("the dashboard has no variable")
	}
	// What the documentation tells people to ask: code that names a metric and does something with it.
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("`([^`\n]*rota_[^`\n]*)`")
	for _, page := range append(pages, "../../../README.md") {
		if text, err = os.ReadFile(page); err != nil {
			t.Fatal(err)
		}
		for _, m := range code.FindAllStringSubmatch(string(text), -1) {
			if strings.ContainsAny(m[1], "({[") {
				out[filepath.Base(page)+" "+m[1]] = m[1]
			}
		}
	}
	if len(out) < 50 {
		t.Fatalf("only %d expressions", len(out))
	}
	return out
}

var (
	selector = regexp.MustCompile(`\b((?:rota|process|go)_[a-z0-9_]+|up)\b(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-zA-Z_]+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([^)]*)\)`)
)

// Every expression asks for metrics and labels that there are.
func TestExpressions(t *testing.T) {
	known := map[string][]string{"up": {}}
	for _, f := range families {
		known[f.Name] = f.Labels
		if f.Kind == histogram {
			known[f.Name+"_bucket"] = append(slices.Clone(f.Labels), "le")
			known[f.Name+"_count"], known[f.Name+"_sum"] = f.Labels, f.Labels
		}
	}
	var own []string
	m := NewMetrics("test", full)
	_, others := scrape(t, m, asProtobuf)
	for name := range others {
		if known[name] == nil {
			known[name] = own
		}
	}
	for where, expr := range expressions(t) {
		labels := []string{"instance", "job"} // Prometheus' own
		found := 0
		for _, s := range selector.FindAllStringSubmatch(expr, -1) {
			has, ok := known[s[1]]
			if !ok {
				t.Errorf("%s: there is no %s", where, s[1])
				continue
			}
			found++
			labels = append(labels, has...)
			for _, l := range matcher.FindAllStringSubmatch(s[2], -1) {
				if !slices.Contains(append([]string{"instance", "job"}, has...), l[1]) {
					t.Errorf("%s: %s has no label %s", where, s[1], l[1])
				}
			}
		}
		if found == 0 {
			t.Errorf("%s asks for nothing: %s", where, expr)
		}
		for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
			for _, l := range strings.Split(g[1], ",") {
				if l = strings.TrimSpace(l); !slices.Contains(labels, l) {
					t.Errorf("%s: nothing there has the label %s", where, l)
				}
			}
		}
	}
}

// Every alert is seen to fire: an expression may be right in all its names and never be true.
func TestAlertsAreTested(t *testing.T) {
	type file struct {
		Groups []struct{ Rules []struct{ Alert string } }
		Tests  []struct {
			Cases []struct {
				Name   string `yaml:"alertname"`
				Alerts []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	var all file
	for _, name := range []string{"rota.rules.yml", "rota.rules_test.yml"} {
		text, err := os.ReadFile(deploy + "prometheus/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &all); err != nil {
			t.Fatal(err)
		}
	}
	fires := map[string]bool{}
	for _, test := range all.Tests {
		for _, c := range test.Cases {
			fires[c.Name] = fires[c.Name] || len(c.Alerts) > 0
		}
	}
	for _, r := range all.Groups[0].Rules {
		if !fires[r.Alert] {
			t.Errorf("no test in rota.rules_test.yml lets %s fire", r.Alert)
		}
	}
}

// Prometheus' own tool finds nothing wrong with the rules, nor with what is served.
func TestPromtool(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not there: apt install prometheus")
	}
	run := func(in string, list ...string) {
		t.Helper()
		cmd := exec.Command(tool, list...)
		cmd.Dir = deploy + "prometheus"
		cmd.Stdin = strings.NewReader(in)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(list, " "), err, out)
		}
	}
	run("", "check", "config", "prometheus.yml")
	run("", "check", "rules", "rota.rules.yml")
	run("", "test", "rules", "rota.rules_test.yml")
	// The other expressions, as rules that record them.
	type rule struct{ Record, Expr string }
	var rules []rule
	grafana := strings.NewReplacer("$__rate_interval", "5m", "$__interval", "1m", "$__range", "1h", "$service", "web")
	for where, expr := range expressions(t) {
		if expr = grafana.Replace(expr); strings.Contains(expr, "$") {
			t.Errorf("%s: there is a variable left in %s", where, expr)
		}
		rules = append(rules, rule{fmt.Sprint("test:", len(rules)), expr})
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "all", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	run("", "check", "rules", file)
	w := httptest.NewRecorder()
	NewMetrics("test", full).Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	run(w.Body.String(), "check", "metrics")
}
