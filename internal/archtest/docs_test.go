package archtest

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rota-lb/rota/config"
)

// TestReadmeGo holds the Go in the README against the program it is taken from, which is compiled and tested.
func TestReadmeGo(t *testing.T) {
	program := read(t, "examples/hello/main.go")
	blocks := fenced(read(t, "README.md"), "go")
	if len(blocks) == 0 {
		t.Error("README.md shows no Go")
	}
	for _, b := range blocks {
		if !strings.Contains(program, b) {
			t.Errorf("this Go in README.md is not in examples/hello/main.go any more:\n%s", b)
		}
	}
}

// TestDiscoverGo holds the Go in docs/discover.md against the examples it is taken from, which are compiled and run.
func TestDiscoverGo(t *testing.T) {
	examples := read(t, "registry/discover/example_test.go") + read(t, "registry/discover/grpcdiscover/example_test.go") +
		read(t, "registry/load_test.go")
	examples = strings.ReplaceAll(examples, "\n\t", "\n") // they are bodies of functions
	blocks := fenced(read(t, "docs/discover.md"), "go")
	if len(blocks) == 0 {
		t.Error("docs/discover.md shows no Go")
	}
	for _, b := range blocks {
		if !strings.Contains(examples, b) {
			t.Errorf("this Go in docs/discover.md is not in the examples any more:\n%s", b)
		}
	}
}

// TestReadmeYAML loads the configurations in the README.
func TestReadmeYAML(t *testing.T) {
	blocks := fenced(read(t, "README.md"), "yaml")
	if len(blocks) == 0 {
		t.Error("README.md shows no configuration")
	}
	for _, b := range blocks {
		if _, err := config.Parse("README.md", []byte(b)); err != nil {
			t.Errorf("a configuration in README.md is refused: %v", err)
		}
	}
}

var (
	link = regexp.MustCompile(`\]\(([^)#:\s]+)(#[^)]*)?\)`)
	code = regexp.MustCompile("(?s)```.*?```|`[^`]*`")
)

// TestLinks follows the links between the documents.
func TestLinks(t *testing.T) {
	base := root(t)
	err := filepath.WalkDir(base, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && entry.Name() == ".git" {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(file, ".md") {
			return nil
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(string(content), ""), -1) {
			if path.Base(m[1]) == "benchmarks.md" {
				continue // written by hand after a run on a quiet machine
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", strings.TrimPrefix(file, base+string(filepath.Separator)), m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fenced returns the code blocks of a language in a Markdown text.
func fenced(markdown, language string) []string {
	var blocks []string
	for _, part := range strings.Split(markdown, "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```\n")
		blocks = append(blocks, block+"\n")
	}
	return blocks
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
