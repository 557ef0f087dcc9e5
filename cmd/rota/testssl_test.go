package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Nothing that testssl.sh looks at in a listener as it comes is worse than it should be: protocols, ciphers, key exchange, known
// holes. What it says of the certificate, which is the test's own, and of the lifetime that crypto/tls writes into tickets of
// TLS 1.2, whose keys are gone long before, is not of the listener.
func TestTestssl(t *testing.T) {
	if os.Getenv("ROTA_TEST_TESTSSL") == "" {
		t.Skip("takes minutes: set ROTA_TEST_TESTSSL=1")
	}
	if _, err := exec.LookPath("testssl"); err != nil {
		t.Fatal("testssl is not there: apt install testssl.sh")
	}
	cert, key, _ := keyPair(t, "one")
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(`
etcd: {disabled: true}
admin: {address: "127.0.0.1:0"}
listeners: [{address: "127.0.0.1:0", protocol: https, tls: {certificates: [{cert: %s, key: %s}]}}]
routes: [{name: a, service: s}]
services: {s: {instances: [{address: "%s"}]}}
`, cert, key, freeAddr(t))))
	report := filepath.Join(t.TempDir(), "report.json")
	out, err := exec.Command("testssl", "--warnings", "off", "--color", "0", "--quiet", "--protocols", "--std", "--pfs", "--server-defaults", "--vulnerable",
		"--jsonfile", report, c.find(listening)).CombinedOutput()
	text, unread := os.ReadFile(report)
	var findings []struct{ ID, Severity, Finding string }
	if unread != nil || json.Unmarshal(text, &findings) != nil {
		t.Fatalf("%v: %.2000s", err, out)
	}
	asked := map[string]bool{}
	for _, f := range findings {
		asked[f.ID] = true
		if strings.HasPrefix(f.ID, "cert_") || f.ID == "TLS_session_ticket" || f.ID == "DNS_CAArecord" {
			continue
		}
		switch f.Severity {
		case "LOW", "MEDIUM", "HIGH", "CRITICAL":
			t.Errorf("%s: %s: %s", f.Severity, f.ID, f.Finding)
		}
	}
	for _, id := range []string{"TLS1_1", "TLS1_2", "TLS1_3", "cipherlist_AVERAGE", "cipherlist_STRONG", "PFS", "heartbleed", "ROBOT", "secure_client_renego"} {
		if !asked[id] {
			t.Errorf("it does not say anything of %s", id)
		}
	}
	t.Logf("%d findings", len(findings))
}
