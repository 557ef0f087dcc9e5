package importer

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-lb/rota/config"
)

var update = flag.Bool("update", false, "write what comes out into testdata")

// TestNginx holds what is made of each file in testdata, and what is said about it, against the files beside it.
func TestNginx(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			r, err := Nginx(file)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, r, strings.TrimSuffix(file, ".conf"))
		})
	}
}

// golden compares a result with name.yaml and name.notes.
func golden(t *testing.T, r *Result, name string) {
	t.Helper()
	var notes strings.Builder
	for _, n := range r.Notes {
		notes.WriteString(n.String() + "\n")
		if n.What == "" || n.File != "" && n.Line == 0 && !strings.HasSuffix(n.File, ".keys") {
			t.Errorf("a note without its place: %+v", n)
		}
	}
	for ending, got := range map[string]string{".yaml": string(r.YAML), ".notes": notes.String()} {
		if *update {
			if err := os.WriteFile(name+ending, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name + ending)
		if err != nil {
			t.Fatalf("%v; run the test with -update", err)
		}
		if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
			t.Errorf("%s%s (-want +got):\n%s", name, ending, d)
		}
	}
	if _, err := config.Load(name+".yaml", config.WithEnviron(nil)); err != nil {
		t.Errorf("rota check would say: %v", err)
	}
}

func TestGrammar(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`a;`, `[a]`},
		{`a b"c 'd e' "f;{}#g" #h;` + "\n;", `[a b"c d e f;{}#g]`},
		{`a "x\"y\\z\n" \.php;`, "[a x\"y\\z\n \\.php]"},
		{`a ${b}c$d;`, `[a ${b}c$d]`},
		{`a{b c;d{}}e;`, `[a]{[b c][d]{}}[e]`},
		{`# only`, ``},
		{"\ufeffa x#y;", `[a x#y]`},
		{`content_by_lua_block { if x then y = {} end } a;`, `[content_by_lua_block]{}[a]`},
		{`'' "";`, `[ ]`},
	} {
		r := &reader{notebook: &notebook{}}
		list, err := r.text("f", c.in)
		if got := show(list); err != nil || got != c.want {
			t.Errorf("%q is %s, %v; want %s", c.in, got, err, c.want)
		}
	}
	for in, want := range map[string]string{
		"a":            `f:1: "a" is not ended`,
		"\na b":        `f:2: "a" is not ended`,
		"a {\nb;":      `f:1: this block is never closed`,
		"a;\n}":        `f:2: unexpected '}'`,
		";":            `f:1: unexpected ';'`,
		"a {\nb }":     `f:2: "b" is not ended`,
		"a 'b;\n\n":    `f:1: a quote is never closed`,
		"\n\na \"b\"c": `f:3: "c" directly behind a quoted word`,
		strings.Repeat("a{", 100) + strings.Repeat("}", 100): `f:1: blocks stand more than`,
	} {
		r := &reader{notebook: &notebook{}}
		_, err := r.text("f", in)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

func show(list []*directive) string {
	var b strings.Builder
	for _, d := range list {
		b.WriteString("[" + strings.Join(append([]string{d.name}, d.args...), " ") + "]")
		if d.open {
			b.WriteString("{" + show(d.block) + "}")
		}
	}
	return b.String()
}

func TestArguments(t *testing.T) {
	one := func(arg string) *directive { return &directive{name: "a", args: []string{arg}} }
	for in, want := range map[string]time.Duration{
		"30": 30 * time.Second, "1500ms": 1500 * time.Millisecond, "1h 30m": 90 * time.Minute, "1d12h": 36 * time.Hour, "0": 0,
		"1y": longest, "10000000y": longest, "999999999y 999999999M": longest, "999999999ms": 999999999 * time.Millisecond,
	} {
		if w := newWork(""); w.duration(one(in)) != want || len(w.notes) > 0 {
			t.Errorf("%s is %s, with notes %v; want %s", in, w.duration(one(in)), w.notes, want)
		}
	}
	for in, want := range map[string]config.Size{
		"0": 0, "10m": 10 << 20, "1k": 1 << 10, "1500000": 1500000, "1048577": 1<<20 + 1, "2000000k": 2000000 << 10, "3G": 3 << 30,
		"999999999999g": unlimited, "999999999999": 999999999999,
	} {
		if w := newWork(""); w.size(one(in)) != want || len(w.notes) > 0 {
			t.Errorf("%s is %d, with notes %v; want %d", in, w.size(one(in)), w.notes, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1x", "1 2x"} {
		w := newWork("")
		if w.size(one(in)); len(w.notes) != 1 {
			t.Errorf("size %q: no note", in)
		}
	}
}

func TestIncludes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"loop.conf": "include loop.conf;", "two.conf": "a;\ninclude loop.conf;"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"loop.conf": "includes itself", "two.conf": "includes itself", "none.conf": "no such file", ".": "is not a file"} {
		if _, err := Nginx(filepath.Join(dir, name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want: %s", name, err, want)
		}
	}
}

func TestBegins(t *testing.T) {
	for re, want := range map[string]string{
		`^/admin/(?!x)`: "/admin/", `^/admin(?!x)`: "/", `^/a/b-c/d.e`: "/a/b-c/", `\.bak$`: "/", `^/a/x|^/b`: "/", `^/`: "/", `^`: "/", ``: "/",
	} {
		if got := begins(re, false); got != want {
			t.Errorf("%s begins with %s, want %s", re, got, want)
		}
	}
}

func FuzzNginx(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.conf")
	more, _ := filepath.Glob("testdata/*/*.conf")
	for _, file := range append(files, more...) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	for _, s := range []string{
		"upstream a { server 127.0.0.1:1 weight=0; server unix:/a; } server { location = / { proxy_pass http://a/x; } }",
		"server { listen 443 ssl; ssl_certificate a; ssl_certificate_key b; location ~ ( { proxy_pass http://[::1]:80; } }",
		"server { location /a { return 301 $scheme://$http_host/b?c=$arg_d; } rewrite ^/x$ /y permanent; }",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w := newWork("/etc/nginx")
		r := &reader{notebook: &w.notebook, base: t.TempDir()}
		if strings.Contains(text, "include") {
			return // other files
		}
		tree, err := r.text("f", text)
		if err != nil {
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Line < 1 {
				t.Fatalf("an error without its place: %v", err)
			}
			return
		}
		w.nginx(tree)
		if _, err := w.result(); err != nil {
			t.Fatalf("%v\n%s", err, w.yaml())
		}
	})
}
