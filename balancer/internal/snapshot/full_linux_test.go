package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rota-lb/rota/registry"
)

// On a disk that is full the last file stays, and nothing else.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("a small disk cannot be had: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	path := filepath.Join(dir, "table.json")
	good := example()
	if err := Write(path, good); err != nil {
		t.Fatal(err)
	}
	big := example()
	key := registry.Keys{}.Route("big")
	big.Changes = append(big.Changes, registry.Change{Kind: registry.KindRoute, Key: key, ID: "big", Value: []byte(strings.Repeat("x", 100_000))})
	if err := Write(path, big); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("more than there is room for: %v", err)
	}
	got, err := Read(path, "/rota")
	if err != nil || len(got.Changes) != len(good.Changes) {
		t.Errorf("%d of %d keys are left: %v", len(got.Changes), len(good.Changes), err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("left behind: %v", list)
	}
}
