package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rota-lb/rota/registry"
)

func example() Table {
	keys := registry.Keys{}
	t := Table{Prefix: "/rota", StoreID: 0xfeedfacecafebeef, Revision: 4711}
	for i := range 20 {
		id := fmt.Sprint("cart-", i)
		t.Changes = append(t.Changes, registry.Change{
			Kind: registry.KindInstance, Key: keys.Instance("cart", id), Service: "cart", ID: id, Lease: int64(1)<<62 + int64(i),
			CreateRevision: int64(i), ModRevision: int64(100 + i),
			Instance: &registry.Instance{
				Service: "cart", ID: id, Address: fmt.Sprintf("10.0.0.%d:80", i+1), Incarnation: "01", Metadata: map[string]string{"a": "ü \"q\""},
			},
		})
	}
	t.Changes = append(t.Changes,
		registry.Change{
			Kind: registry.KindInstance, Key: "/microservices/cart/1", Service: "cart", ID: "microservices:1", Lease: 5, CreateRevision: 1, ModRevision: 2,
			Instance: &registry.Instance{Service: "cart", ID: "microservices:1", Address: "10.0.0.99:80"},
		},
		registry.Change{Kind: registry.KindRoute, Key: keys.Route("r"), ID: "r", Value: []byte(`{"host":"a","service":"cart"}`), CreateRevision: 1, ModRevision: 2},
		registry.Change{Kind: registry.KindPolicy, Key: keys.Policy("cart"), Service: "cart", Value: []byte(`{"balance":"random"}`), CreateRevision: 3, ModRevision: 3},
	)
	t.Orphaned = map[string]bool{keys.Route("r"): true}
	return t
}

func TestWriteAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "table.json")
	want := example()
	for range 2 { // over nothing, and over an older one
		if err := Write(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path, "/rota")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Table{}, "Saved", "Until")); d != "" || got.Saved.IsZero() || time.Since(got.Until) > time.Minute {
			t.Error(d, got.Saved)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, long, long); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path, "/rota"); err != nil || time.Since(got.Until) < time.Minute {
		t.Errorf("true until %v, %v", got.Until, err)
	}
	if err := Touch(path); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path, "/rota"); err != nil || time.Since(got.Until) > time.Minute {
		t.Errorf("still true until %v, %v", got.Until, err)
	}
	if list, _ := os.ReadDir(filepath.Dir(path)); len(list) != 1 {
		t.Errorf("left behind: %v", list)
	}
	empty := Table{Prefix: "/rota", Changes: []registry.Change{}}
	if err := Write(path, empty); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path, "/rota"); err != nil || len(got.Changes) != 0 {
		t.Error(got, err)
	}
}

func TestRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table.json")
	if _, err := Read(path, "/rota"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := Write(path, example()); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, "/other"); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "no line": "{}", "text": "hello\n", "JSON of another kind": `{"a":1}` + "\n", "null": "null\n", "endless": strings.Repeat("x", 1<<20),
		"another version": strings.Replace(string(good), format, "rota-snapshot/2", 1),
	} {
		if _, err := decode(strings.NewReader(text), "/rota"); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Not a byte may be another one, missing, or too many.
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		bad := bytes.Clone(good)
		at := random.IntN(len(bad))
		if bad[at] ^= 1 << random.IntN(8); bytes.Equal(bad, good) {
			continue
		}
		if _, err := decode(bytes.NewReader(bad), "/rota"); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
			t.Errorf("bit flipped at %d of %d: %v", at, len(bad), err)
		}
		if _, err := decode(bytes.NewReader(good[:random.IntN(len(good))]), "/rota"); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) {
			t.Errorf("cut off: %v", err)
		}
	}
	if _, err := decode(strings.NewReader(string(good)+"\n"), "/rota"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
	// What cannot be written takes nothing away.
	dir := filepath.Join(filepath.Dir(path), "d")
	if err := os.MkdirAll(filepath.Join(dir, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, example()); err == nil {
		t.Error("a directory was replaced")
	}
	if list, _ := os.ReadDir(filepath.Dir(path)); len(list) != 2 {
		t.Errorf("left behind: %v", list)
	}
}

func FuzzRead(f *testing.F) {
	path := filepath.Join(f.TempDir(), "table.json")
	if err := Write(path, example()); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"format":"rota-snapshot/1","prefix":"/rota","store":"0","revision":1,"saved":"2026-01-01T00:00:00Z","keys":0,"bytes":0,"sha256":""}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decode(bytes.NewReader(data), "/rota")
		if err != nil {
			return
		}
		for _, ch := range got.Changes {
			if ch.Instance != nil && ch.Instance.Validate() != nil {
				t.Error("an invalid instance came through")
			}
		}
	})
}
