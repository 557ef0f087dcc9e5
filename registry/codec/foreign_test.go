package codec

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-lb/rota/registry"
)

// fixture is a foreign record and what becomes of it; testdata has them by format.
type fixture struct {
	Foreign struct {
		Prefix, Service string
		Format          Format
		Protocol        registry.Protocol
	}
	Key     string
	Value   json.RawMessage // a string stands for its text, anything else for itself
	Service string
	ID      string // HASH stands for the part of a key's hash
	// Instance is the value as it would be written in our format. Error is a part of why there is none.
	Instance json.RawMessage
	Error    string
}

func (f fixture) foreign() Foreign {
	return Foreign{Prefix: f.Foreign.Prefix, Service: f.Foreign.Service, Format: f.Foreign.Format, Protocol: f.Foreign.Protocol}
}

func (f fixture) value() []byte {
	var text string
	if json.Unmarshal(f.Value, &text) == nil {
		return []byte(text)
	}
	return f.Value
}

// fixtures reads testdata: by format, and by name of the file.
func fixtures(tb testing.TB) map[Format]map[string]fixture {
	tb.Helper()
	all := map[Format]map[string]fixture{}
	for format := range decoders {
		files, err := filepath.Glob(filepath.Join("testdata", string(format), "*.json"))
		if err != nil || len(files) == 0 {
			tb.Fatalf("format %s has no fixtures: %v", format, err)
		}
		all[format] = map[string]fixture{}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				tb.Fatal(err)
			}
			var f fixture
			if err := json.Unmarshal(data, &f); err != nil {
				tb.Fatalf("%s: %v", file, err)
			}
			all[format][strings.TrimSuffix(filepath.Base(file), ".json")] = f
		}
	}
	return all
}

var keyHash = regexp.MustCompile(`-[0-9a-f]{16}$`)

// Every fixture, by its format's name and by what auto makes of it.
func TestForeign(t *testing.T) {
	for format, files := range fixtures(t) {
		for name, fx := range files {
			formats := []Format{"", Auto, format}
			if fx.Foreign.Format != "" { // auto could not know
				formats = []Format{fx.Foreign.Format}
			}
			for _, as := range formats {
				t.Run(string(format)+"/"+name+"/"+string(as), func(t *testing.T) {
					f := fx.foreign()
					f.Format = as
					if err := f.Validate(); err != nil {
						t.Fatal(err)
					}
					got, err := f.Decode(fx.Key, fx.value())
					if fx.Error != "" {
						if !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), fx.Error) {
							t.Errorf("error %v, want one that says %q", err, fx.Error)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					want := registry.Instance{Service: fx.Service, ID: fx.ID}
					if err := want.UnmarshalJSON(fx.Instance); err != nil {
						t.Fatal(err)
					}
					service, id, err := f.Key(fx.Key)
					if err != nil || service != got.Service || id != got.ID {
						t.Errorf("Key says %s/%s (%v), Decode %s/%s", service, id, err, got.Service, got.ID)
					}
					if strings.HasSuffix(want.ID, "-HASH") {
						got.ID = keyHash.ReplaceAllString(got.ID, "-HASH")
					}
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("(-want +got):\n%s", d)
					}
				})
			}
		}
	}
}

// A record of one format is not read as another.
func TestForeignFormatIsMeant(t *testing.T) {
	for format, files := range fixtures(t) {
		for name, fx := range files {
			if fx.Error != "" {
				continue
			}
			for other := range decoders {
				if other == format || other == Plain && format == GoZero || other == GoZero && format == Plain {
					continue // which both are a bare host:port
				}
				f := fx.foreign()
				f.Format = other
				if in, err := f.Decode(fx.Key, fx.value()); err == nil {
					t.Errorf("%s/%s read as %s: %+v", format, name, other, in)
				}
			}
		}
	}
}

// Different keys are different instances, however alike they look.
func TestForeignKeysAreDistinct(t *testing.T) {
	long := strings.Repeat("x", 200)
	seen := map[string]string{}
	for _, c := range []struct{ prefix, keys string }{
		{"/m", "/m/a/1 /m/b/1 /m/A/1 /m/a_b/1 /m/a-b/1 /m/A_b/1 /m/a/b/1 /m/b.a/1 /m/a/1! /m/a/1? /m/a/1- /m/a/b:1"},
		{"/m", "/m/a/" + long + "1 /m/a/" + long + "2 /m/a/\xff /m/a/\xfe /m/a/ü /m/a/[::1]:80 /m/a/(::1):80"},
		{"n", "n/a/1 n/a/1! n/a/m:1"},
		{"n2/m", "n2/m/a/1"},
		{"n2/o", "n2/o/a/1"},
	} {
		for key := range strings.FieldsSeq(c.keys) {
			service, id, err := Foreign{Prefix: c.prefix}.Key(key)
			if err != nil {
				t.Errorf("%q: %v", key, err)
				continue
			}
			if err := errors.Join(registry.CheckService(service), registry.CheckID(id)); err != nil {
				t.Errorf("%q: %v", key, err)
			}
			if other, twice := seen[service+"/"+id]; twice {
				t.Errorf("%q and %q are both %s/%s", key, other, service, id)
			}
			seen[service+"/"+id] = key
		}
	}
	for _, key := range []string{"/m", "/m/", "/m//", "/m/a", "/m/a/", "/m//1", "/m/a//1", "/ma/1/2", "m/a/1", "", "/m/ü/1", "/m/./1", "/m/" + long + "/1"} {
		if service, id, err := (Foreign{Prefix: "/m"}).Key(key); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%q is %s/%s (%v), want an error", key, service, id, err)
		}
	}
}

func TestForeignValidate(t *testing.T) {
	for _, f := range []Foreign{
		{}, {Prefix: "/"}, {Prefix: "/a/"}, {Prefix: "//a"}, {Prefix: "/a//b"}, {Prefix: "/a b"}, {Prefix: "/a:b"}, {Prefix: "/.."}, {Prefix: "/*"},
		{Prefix: "/a", Format: "consul"}, {Prefix: "/a", Format: "Auto"}, {Prefix: "/a", Service: "A"}, {Prefix: "/a", Protocol: "udp"},
	} {
		if err := f.Validate(); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%+v: %v, want an error", f, err)
		}
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"/a", "/a", true}, {"/a", "a", true}, {"/a", "/a/b", true}, {"/a/b/c", "a/b", true},
		{"/a", "/ab", false}, {"/a/b", "/a/c", false}, {"a-b", "a", false},
	} {
		if got := Overlap(c.a, c.b); got != c.want || Overlap(c.b, c.a) != got {
			t.Errorf("%s and %s overlap: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

func FuzzForeign(f *testing.F) {
	for _, files := range fixtures(f) {
		for _, fx := range files {
			f.Add(fx.Foreign.Prefix, fx.Key, fx.value())
		}
	}
	for _, p := range poisons() {
		if len(p.value) < 1000 {
			f.Add("/m", "/m/cart/a", []byte(p.value))
		}
	}
	f.Fuzz(func(t *testing.T, prefix, key string, value []byte) {
		for _, format := range Formats() {
			fo := Foreign{Prefix: prefix, Format: Format(format)}
			if fo.Validate() != nil {
				return
			}
			service, id, keyErr := fo.Key(key)
			in, err := fo.Decode(key, value)
			if err != nil {
				if !errors.Is(err, registry.ErrInvalid) {
					t.Fatalf("%s: %v is not ErrInvalid", format, err)
				}
				for _, r := range err.Error() {
					if r < ' ' || r == 0x7f {
						t.Fatalf("%s: the error holds %U: %q", format, r, err)
					}
				}
				continue
			}
			if keyErr != nil || in.Service != service || in.ID != id {
				t.Fatalf("%s: decoded as %s/%s, the key says %s/%s (%v)", format, in.Service, in.ID, service, id, keyErr)
			}
			written, err := Encode(in)
			if err != nil {
				t.Fatalf("%s: decoded, but not encoded: %v", format, err)
			}
			again, err := Decode(service, id, written)
			if err != nil {
				t.Fatalf("%s: %s: %v", format, written, err)
			}
			if d := cmp.Diff(in, again); d != "" {
				t.Fatalf("%s (-first +again):\n%s", format, d)
			}
		}
	})
}
