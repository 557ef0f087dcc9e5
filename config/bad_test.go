package config

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the messages of testdata/*.txt anew")

// TestBad reads testdata/*.txt: cases separated by lines of ====, each an input, a line of ----, and the exact
// message it must give. Each problem has its line and column, and what to do about it.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	bound := regexp.MustCompile(`must be \S+( \([^)]*\))? to \S`) // says what to write, like a hint
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for c := range strings.SplitSeq(string(data), "====\n") {
			in, want, _ := strings.Cut(c, "----\n")
			_, err := Parse("rota.yaml", []byte(in))
			if err == nil {
				t.Errorf("%s: accepted:\n%s", file, in)
				continue
			}
			got := err.Error() + "\n"
			for _, e := range err.(Errors) {
				if (e.Line == 0 || e.Column == 0) && len(in) <= maxFileBytes || e.Hint == "" && !bound.MatchString(e.Message) {
					t.Errorf("%s: no place or no remedy: %v", file, e)
				}
			}
			if got != want && !*update {
				t.Errorf("%s:\n%s\ngot:\n%s\nwant:\n%s", file, in, got, want)
			}
			out = append(out, in+"----\n"+got)
		}
		if *update {
			if err := os.WriteFile(file, []byte(strings.Join(out, "====\n")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
