package proxy

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Every reason has a flag and a text, and stands with its flag and its status in the table that operators look it up in.
func TestReasons(t *testing.T) {
	text, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for reason, f := range failures {
		if f.flag == "" || f.text == "" || f.status < 400 {
			t.Errorf("%s: %+v", reason, f)
		}
		found := false
		for line := range strings.Lines(string(text)) {
			cells := strings.Split(line, " | ")
			found = found || len(cells) == 4 && strings.Contains(cells[0], "`"+string(reason)+"`") && cells[1] == f.flag && strings.Contains(cells[2], fmt.Sprint(f.status))
		}
		if !found {
			t.Errorf("docs/operations.md does not list %s with %s and %d", reason, f.flag, f.status)
		}
	}
}
