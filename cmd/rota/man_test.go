package main

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// Every page is one that man's formatter has nothing to say about.
func TestMan(t *testing.T) {
	dir := t.TempDir()
	if status, _, errs := command(t, "man", dir); status != 0 {
		t.Fatalf("%d %s", status, errs)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 25 {
		t.Fatal(pages, err)
	}
	pages = append(pages, filepath.Join(dir, "rota.yaml.5"))
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not there")
	}
	for _, p := range pages {
		if out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z", p).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v %s", filepath.Base(p), err, out)
		}
	}
}
