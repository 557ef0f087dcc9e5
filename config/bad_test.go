package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the messages of testdata/*.txt anew")

// TestBad reads testdata/*.txt: cases separated by lines of ====, each an input, a line of ----, and the exact
// message it must give.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
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
