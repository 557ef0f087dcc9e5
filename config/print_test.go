package config

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is printed reads as what it was printed from, but for secrets, which are not in it.
func TestYAML(t *testing.T) {
	for name, text := range map[string]string{
		"example": string(Example()),
		"minimal": "",
		"secrets": `
etcd: {username: u, password: canary-1}
admin: {token: canary-2-canary-2-canary-2, tokens: {alice: {token: canary-7-canary-7-canary-7}}}
routes:
  - name: r
    host: "*.example.com"
    path: /a
    service: s
    headers: {X-Api-Key: canary-3, X-Beta: "yes"}
    request_headers: {set: {Authorization: Basic canary-4, X-Seen: "1"}, remove: [Cookie]}
    response_headers: {set: {Set-Cookie: canary-5}}
services:
  s: {check: {path: /healthz, interval: 1500ms, headers: {X-Auth-Token: canary-6}}, slow_start: 3s}
`,
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse(name, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			out := c.YAML()
			if bytes.Contains(out, []byte("canary")) {
				t.Errorf("a secret is in\n%s", out)
			}
			if name == "secrets" && strings.Count(string(out), hidden) != 7 {
				t.Errorf("%d values are hidden in\n%s", strings.Count(string(out), hidden), out)
			}
			again, err := Parse(name, bytes.ReplaceAll(out, []byte(hidden), []byte("stand-in-for-a-secret-value")))
			if err != nil {
				t.Fatalf("%v in\n%s", err, out)
			}
			if name != "secrets" {
				if diff := cmp.Diff(c, again); diff != "" {
					t.Errorf("read again (-was +is):\n%s", diff)
				}
			}
			if twice := again.YAML(); !bytes.Equal(out, twice) {
				t.Errorf("printed again it is\n%s", twice)
			}
		})
	}
}
