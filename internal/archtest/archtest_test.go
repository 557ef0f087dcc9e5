package archtest

import (
	"bytes"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/rota-lb/rota"

// row is what a package may import beside the standard library. A pattern is an import path; with /... at its end also all
// below it. Patterns of module are relative to the module.
type row struct {
	pkg     string
	module  []string
	outside []string
	planned bool // named by the design, not written yet
}

const (
	zap       = "go.uber.org/zap/..."
	retryable = "github.com/hashicorp/go-retryablehttp"
	public    = "(public)" // every package of the module without "internal" in its path
)

// table says what each package may import. It is ordered: a package may only name packages above it, so imports run in
// one direction. Whoever adds a package adds its line here, below everything that it imports.
var table = []row{
	// Registration and discovery: what services embed, so it stays light.
	{pkg: "registry", outside: []string{zap}},
	{pkg: "registry/codec", module: []string{"registry"}},
	{pkg: "registry/memory", module: []string{"registry", "registry/codec"}},
	{
		pkg: "registry/etcd", module: []string{"registry", "registry/codec"},
		outside: []string{"go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/api/v3/...", "google.golang.org/grpc/...", zap},
	},
	{pkg: "registry/registrytest", module: []string{"registry", "registry/codec"}, outside: []string{"github.com/google/go-cmp/..."}},

	// The data plane: it knows tables, bytes and sockets; no registry, no configuration file.
	{pkg: "balancer/pool"},
	{pkg: "balancer/internal/netloop", outside: []string{"golang.org/x/sys/..."}},
	{pkg: "balancer/internal/http1"},
	{pkg: "balancer/internal/route", module: []string{"balancer/pool"}},
	{pkg: "balancer/internal/limit"},
	{pkg: "balancer/internal/proxyproto"},
	{
		pkg: "balancer/internal/proxy",
		module: []string{
			"balancer/internal/http1", "balancer/internal/limit", "balancer/internal/netloop", "balancer/internal/proxyproto",
			"balancer/internal/route", "balancer/pool",
		},
	},
	{pkg: "balancer/internal/listen", module: []string{"balancer/internal/netloop", "balancer/internal/proxyproto"}},

	// Calls between services: the policies of the data plane in the processes of services.
	{pkg: "registry/discover", module: []string{"registry", "balancer/pool"}, outside: []string{retryable, zap}},
	{
		pkg: "registry/discover/grpcdiscover", module: []string{"registry", "registry/discover", "balancer/pool"},
		outside: []string{"google.golang.org/grpc/..."},
	},

	// The control plane: it turns what is known into tables.
	{
		pkg: "config", module: []string{"balancer/pool", "registry", "registry/codec"},
		outside: []string{"go.yaml.in/yaml/v4/..."},
	},
	{pkg: "balancer/internal/membership", module: []string{"registry", "balancer/pool"}},
	{pkg: "balancer/internal/snapshot", module: []string{"registry"}},
	{pkg: "balancer/internal/health", module: []string{"balancer/pool", "balancer/internal/proxyproto"}, outside: []string{"google.golang.org/grpc/..."}},
	{
		pkg: "balancer/internal/control",
		module: []string{
			"registry", "config", "balancer/internal/membership", "balancer/internal/snapshot", "balancer/internal/health",
			"balancer/internal/route",
			"balancer/pool",
		},
		outside: []string{zap},
	},

	// What looks at it, and what joins it.
	{pkg: "balancer/internal/telemetry", outside: []string{zap, "github.com/prometheus/client_golang/...", "github.com/prometheus/client_model/go", "google.golang.org/protobuf/..."}},
	{pkg: "balancer/internal/journal"},
	{pkg: "balancer/internal/admin/dashboard"},
	{pkg: "balancer/internal/tracing", outside: []string{"go.opentelemetry.io/otel/...", zap}},
	{
		pkg:     "balancer/internal/admin",
		module:  []string{"config", "balancer/internal/control", "balancer/internal/route", "balancer/pool", "balancer/internal/admin/dashboard", "balancer/internal/journal", "balancer/internal/telemetry"},
		outside: []string{zap},
	},
	{pkg: "balancer", module: []string{"balancer/...", "registry", "config"}, outside: []string{zap}},

	// Programs.
	{pkg: "cmd/rota/internal/sdnotify", outside: []string{"golang.org/x/sys/..."}},
	{pkg: "cmd/rota/internal/sidecar", module: []string{"registry"}, outside: []string{zap}},
	{pkg: "cmd/rota/internal/importer", module: []string{"config", "registry/codec"}, outside: []string{"go.etcd.io/etcd/client/v3"}},
	{
		pkg: "cmd/rota", module: []string{public, "cmd/rota/internal/importer", "cmd/rota/internal/sdnotify", "cmd/rota/internal/sidecar"},
		outside: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", retryable, "go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/server/v3/embed", "go.etcd.io/etcd/client/pkg/v3/transport", zap, "golang.org/x/term"},
	},
	{pkg: "examples/hello", module: []string{public}},
	{pkg: "examples/flask"},
	{pkg: "bench/internal/rig"},
	{pkg: "bench", module: []string{"bench/internal/rig"}, outside: []string{"golang.org/x/sys/..."}},
	{pkg: "bench/httputil"},
	{
		pkg: "bench/discovery", module: []string{"bench/internal/rig"},
		outside: []string{"go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/server/v3/embed", zap},
	},

	// For tests alone: no line above names them.
	{
		pkg:     "internal/etcdtest",
		outside: []string{"go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/server/v3/embed", "google.golang.org/grpc/...", zap},
	},
	{pkg: "internal/leaktest", outside: []string{"go.uber.org/goleak"}},
	{pkg: "internal/archtest"},
}

// light are the packages that services embed. Nothing that they link may come from the etcd server, and nothing from
// outside the standard library that etcd's client, or zap, does not link itself; but those that call others may link
// go-retryablehttp.
var light = []string{
	"registry", "registry/codec", "registry/memory", "registry/etcd", "registry/discover", "registry/discover/grpcdiscover",
}

var (
	lightRoots = []string{"go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/api/v3/...", "go.uber.org/zap"}
	callers    = []string{"registry/discover", "registry/discover/grpcdiscover"}
	heavy      = []string{"go.etcd.io/etcd/server/...", "go.etcd.io/bbolt/...", "go.etcd.io/raft/..."}
)

// forbidden are names that say nothing about what a package is for.
var forbidden = []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "shared"}

// pkg is a package as its files say, for every system at once: build constraints are not looked at.
type pkg struct {
	path    string // relative to the module
	name    string
	comment string
	imports map[string]string // import path to a file that has it; test files left out
}

// TestTable is the table itself: every package has a line, every line a package, and lines only name packages above them.
func TestTable(t *testing.T) {
	packages := load(t)
	listed := map[string]bool{}
	for _, r := range table {
		if listed[r.pkg] {
			t.Errorf("%s stands in the table twice", r.pkg)
		}
		for _, pattern := range r.module {
			if pattern == public || strings.HasSuffix(pattern, "/...") {
				continue // covered by the imports themselves, see TestImports
			}
			if !listed[pattern] {
				t.Errorf("%s may not import %s: it stands below in the table, or not at all; imports run upwards in the table only", r.pkg, pattern)
			}
		}
		listed[r.pkg] = true
		if exists := packages[r.pkg] != nil; exists == r.planned {
			if exists {
				t.Errorf("%s exists now: remove \"planned\" from its line in internal/archtest/archtest_test.go", r.pkg)
			} else {
				t.Errorf("%s does not exist any more: remove its line from internal/archtest/archtest_test.go", r.pkg)
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(packages)) {
		if !listed[p] {
			t.Errorf("%s is a new package: say what it may import in the table of internal/archtest/archtest_test.go, "+
				"below everything that it imports, and add it to the package map of docs/ARCHITECTURE.md", p)
		}
	}
}

// TestImports holds every import of every file against the table.
func TestImports(t *testing.T) {
	packages := load(t)
	position := map[string]int{}
	for i, r := range table {
		position[r.pkg] = i
	}
	for _, r := range table {
		p := packages[r.pkg]
		if p == nil {
			continue
		}
		for _, imported := range slices.Sorted(maps.Keys(p.imports)) {
			file := p.imports[imported]
			inside, ours := strings.CutPrefix(imported, module+"/")
			switch {
			case imported == "C":
				t.Errorf("%s uses cgo; the module is built without", file)
			case !ours && standard(imported):
			case !ours:
				if !slices.ContainsFunc(r.outside, func(pattern string) bool { return match(pattern, imported) }) {
					t.Errorf("%s imports %s, which the table of internal/archtest/archtest_test.go does not allow in %s: "+
						"a new dependency is a decision, see docs/decisions/0004-dependencies.md", file, imported, r.pkg)
				}
			case position[inside] >= position[r.pkg]:
				t.Errorf("%s imports %s, which stands below %s in the table: imports run upwards only", file, inside, r.pkg)
			case !slices.ContainsFunc(r.module, func(pattern string) bool { return match(pattern, inside) }):
				t.Errorf("%s imports %s; the table of internal/archtest/archtest_test.go allows %s only %q", file, inside, r.pkg, r.module)
			}
		}
	}
}

// TestLight looks at everything that the packages for embedding link, not only at what they import, on every system.
func TestLight(t *testing.T) {
	packages := load(t)
	var present []string
	for _, p := range light {
		if packages[p] != nil {
			present = append(present, p)
		}
	}
	for _, system := range []string{"linux", "darwin", "windows"} {
		t.Run(system, func(t *testing.T) {
			t.Parallel()
			allowed := map[string]bool{}
			for _, p := range dependencies(t, system, lightRoots) {
				allowed[p] = true
			}
			retrying := map[string]bool{}
			for _, p := range dependencies(t, system, []string{retryable}) {
				retrying[p] = true
			}
			for _, p := range present {
				var server, other []string
				for _, d := range dependencies(t, system, []string{module + "/" + p}) {
					switch {
					case slices.ContainsFunc(heavy, func(pattern string) bool { return match(pattern, d) }):
						server = append(server, d)
					case strings.HasPrefix(d, module+"/"), standard(d), allowed[d], retrying[d] && slices.Contains(callers, p):
					default:
						other = append(other, d)
					}
				}
				if len(server) > 0 {
					t.Errorf("%s links %s: those who embed it would carry the etcd server (%d packages)", p, server[0], len(server))
				}
				if len(other) > 0 {
					t.Errorf("%s links %d packages that it may not, %s among them: it must stay light for those who embed it", p, len(other), other[0])
				}
			}
		})
	}
}

// TestPackageComments wants a comment on every package that says what it is for and what it promises.
func TestPackageComments(t *testing.T) {
	for _, p := range load(t) {
		switch n := sentences(p.comment); {
		case p.comment == "":
			t.Errorf("%s has no package comment: say what it is for and what it promises", p.path)
		case n < 2:
			t.Errorf("%s: its package comment has %d sentence; say what it is for and also what it promises", p.path, n)
		}
	}
}

// TestNames refuses names under which anything could be put.
func TestNames(t *testing.T) {
	for _, p := range load(t) {
		for _, part := range append(strings.Split(p.path, "/"), p.name) {
			if slices.Contains(forbidden, part) {
				t.Errorf("%s: %q says nothing about what is in it; name it for what it provides", p.path, part)
				break
			}
		}
	}
}

func TestSentences(t *testing.T) {
	for text, want := range map[string]int{
		"":                                   0,
		"Package a does":                     0,
		"Package a is version 1.2 of it.":    1,
		"Package a is one. It promises two.": 2,
		"Package a is one:\n\n\tcode. More. Code.\n": 0,
		"Package a is one.\n\n# Head\n\nTwo.\n":      2,
		"It says (see b.md). It does \"this.\"":      2,
	} {
		if got := sentences(text); got != want {
			t.Errorf("sentences(%q) = %d, want %d", text, got, want)
		}
	}
}

// match reports whether an import path fits a pattern of the table.
func match(pattern, importPath string) bool {
	if pattern == public {
		return !slices.Contains(strings.Split(importPath, "/"), "internal")
	}
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return importPath == below || strings.HasPrefix(importPath, below+"/")
	}
	return importPath == pattern
}

// standard reports whether an import path is of the standard library, what that vendors included.
func standard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

// sentences counts the sentences in the paragraphs of a comment; code, headings and lists do not count.
func sentences(text string) int {
	var p comment.Parser
	var printer comment.Printer
	n := 0
	for _, block := range p.Parse(text).Content {
		paragraph, ok := block.(*comment.Paragraph)
		if !ok {
			continue
		}
		for word := range bytes.FieldsSeq(printer.Text(&comment.Doc{Content: []comment.Block{paragraph}})) {
			if word = bytes.TrimRight(word, `)"'”’`); bytes.HasSuffix(word, []byte(".")) {
				n++
			}
		}
	}
	return n
}

// root is the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = parent
	}
}

// load reads the packages of the module, whatever system their files are for.
func load(t *testing.T) map[string]*pkg {
	t.Helper()
	base := root(t)
	packages := map[string]*pkg{}
	err := filepath.WalkDir(base, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			_, nested := os.Stat(filepath.Join(file, "go.mod"))
			if file != base && (nested == nil || name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		relative, err := filepath.Rel(base, file)
		if err != nil {
			return err
		}
		relative = filepath.ToSlash(relative)
		syntax, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := path.Dir(relative)
		p := packages[dir]
		if p == nil {
			p = &pkg{path: dir, imports: map[string]string{}}
			packages[dir] = p
		}
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		p.name = syntax.Name.Name
		p.comment += text(syntax.Doc)
		for _, spec := range syntax.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			p.imports[imported] = relative
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

func text(doc *ast.CommentGroup) string {
	if doc == nil {
		return ""
	}
	return doc.Text()
}

// dependencies lists what packages link on a system, themselves included.
func dependencies(t *testing.T, system string, packages []string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps", "-f", "{{.ImportPath}}"}, packages...)...)
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	return strings.Fields(string(out))
}
