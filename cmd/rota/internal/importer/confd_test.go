package importer

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// TestConfd makes configurations of dumps, and of a template with one, and holds them against the files beside them.
func TestConfd(t *testing.T) {
	for name, c := range map[string]Confd{
		"registrator": {Prefix: "/services", Endpoints: []string{"10.0.0.1:2379"}},
		"myapp":       {Prefix: "/myapp"},
		"template":    {Prefix: "/services", Template: "testdata/confd/template.tmpl"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", "confd", name)
			data, err := os.ReadFile(file + ".keys")
			if err != nil {
				t.Fatal(err)
			}
			c.Source = file + ".keys"
			if c.Keys, err = ReadKeys(c.Source, data); err != nil {
				t.Fatal(err)
			}
			r, err := c.Import()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, r, file)
		})
	}
}

func TestConfdRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		name := filepath.Join(dir, fmt.Sprintf("%d.tmpl", len(text)))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for want, c := range map[string]Confd{
		"write it like /services": {Prefix: "a b"},
		"choose another --prefix": {Prefix: "/services", Keys: []Key{{"/other/a/1", "10.0.0.1:80"}}},
		"rota import nginx":       {Prefix: "/a", Template: file(`{{range}}`)},
		"key /b is not there":     {Prefix: "/a", Template: file(`{{getv "/b"}};`)},
		"this block is never clo": {Prefix: "/a", Template: file("{{if true}}\nserver {\n{{end}}\n")},
		"makes too much":          {Prefix: "/a", Template: file(`{{range seq 0 99999}}{{range seq 0 99999}}aaaaaaaa{{end}}{{end}}`)},
	} {
		if _, err := c.Import(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want: %s", err, want)
		}
	}
}

func TestReadKeys(t *testing.T) {
	b := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	want := []Key{{"/a/b/1", "10.0.0.1:80"}, {"/a/b/2", "x\ny"}}
	got, err := ReadKeys("f", fmt.Appendf(nil, `{"header":{"revision":7},"kvs":[{"key":%q,"value":%q,"lease":1},{"key":%q,"value":%q}],"count":2}`,
		b("/a/b/1"), b("10.0.0.1:80"), b("/a/b/2"), b("x\ny")))
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Error(err, d)
	}
	got, err = ReadKeys("f", []byte("/a/b/1\r\n10.0.0.1:80\r\n"))
	if d := cmp.Diff(want[:1], got); err != nil || d != "" {
		t.Error(err, d)
	}
	for in, want := range map[string]string{
		"/a/b":           "f:1: key \"/a/b\" has no value",
		"/a\nb\nc\nd\n":  "f:3: \"c\" is no key",
		"\xff":           "is not text",
		`{"kvs": 7}`:     "is not what etcdctl prints",
		"/a\nb\n/c\n":    "f:3: key \"/c\" has no value",
		"/a\n{\n}\n/b\n": "f:3: \"}\" is no key",
	} {
		if _, err := ReadKeys("f", []byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

func TestFetchKeys(t *testing.T) {
	client := etcdtest.Start(t).Client()
	for k, v := range map[string]string{"/services/web/1": "10.0.0.1:80", "/servicesx/web/1": "10.0.0.2:80"} {
		if _, err := client.Put(context.Background(), k, v); err != nil {
			t.Fatal(err)
		}
	}
	got, err := FetchKeys(context.Background(), client, "/services/")
	if d := cmp.Diff([]Key{{"/services/web/1", "10.0.0.1:80"}}, got); err != nil || d != "" {
		t.Error(err, d)
	}
}
