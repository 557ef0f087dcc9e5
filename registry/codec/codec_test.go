package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-lb/rota/registry"
)

func TestDecode(t *testing.T) {
	const value = `{"address":"10.0.0.7:5001","protocol":"http","state":"ready","weight":100,"zone":"eu-1a","version":"1.4.2",
	 "metadata":{"team":"shop"},"claims":[{"host":"shop.example.com","path":"/cart"}],
	 "check":{"type":"http","path":"/healthz","interval":"5s","timeout":"1s"},
	 "idle_timeout":"2s","drain_ack":true,"incarnation":"01JC","registered_at":"2026-11-22T10:00:00Z","schema":2}`
	want := registry.Instance{
		Service: "cart", ID: "a", Address: "10.0.0.7:5001", Protocol: registry.HTTP, State: registry.Ready, Weight: new(100), Zone: "eu-1a", Version: "1.4.2",
		Metadata: map[string]string{"team": "shop"}, Claims: []registry.Claim{{Host: "shop.example.com", Path: "/cart"}},
		Check:       &registry.Check{Type: "http", Path: "/healthz", Interval: registry.Duration(5 * time.Second), Timeout: registry.Duration(time.Second)},
		IdleTimeout: registry.Duration(2 * time.Second), DrainAck: true, Incarnation: "01JC", RegisteredAt: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
		Extra: map[string]json.RawMessage{"schema": json.RawMessage("2")},
	}
	got, err := Decode("cart", "a", []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, addr := range []string{"10.0.0.7:5001", "[2001:db8::7]:80", "cart.example:80"} {
		got, err := Decode("cart", "a", []byte(addr))
		if d := cmp.Diff(registry.Instance{Service: "cart", ID: "a", Address: addr}, got); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", addr, err, d)
		}
	}
}

func TestDecodeKeepsNoReference(t *testing.T) {
	value := []byte(`{"address":"10.0.0.7:5001","zone":"eu","x":[1]}`)
	in, err := Decode("cart", "a", value)
	if err != nil {
		t.Fatal(err)
	}
	before := in.Clone()
	for i := range value {
		value[i] = 'z'
	}
	if d := cmp.Diff(before, in); d != "" {
		t.Error(d)
	}
}

// poison is a value that must be refused.
type poison struct{ name, value string }

// poisons builds the classes of hostile values, class by class and field by field.
func poisons() (all []poison) {
	add := func(name, value string) { all = append(all, poison{name, value}) }
	const addr = `"address":"10.0.0.7:5001"`
	field := func(class, name, raw string) {
		if name == "address" {
			add(class+" "+name, `{"address":`+raw+`}`)
			return
		}
		add(class+" "+name, `{`+addr+`,"`+name+`":`+raw+`}`)
	}
	str := func(s string) string {
		b, err := json.Marshal(s)
		if err != nil {
			panic(err)
		}
		return string(b)
	}

	// The whole value.
	good := `{` + addr + `,"zone":"eu"}`
	for name, v := range map[string]string{
		"empty": "", "space": " ", "newline": "\n", "NUL": "\x00", "byte": "\xff", "BOM": "\ufeff" + good, "BOM only": "\ufeff", "UTF-16": "{\x00\"\x00",
		"NUL after": good + "\x00", "NUL inside": `{"address":"10.0.0.7:5001` + "\x00" + `"}`, "latin-1": "{" + addr + `,"zone":"` + "\xe4" + `"}`,
		"overlong": "{" + addr + `,"zone":"` + "\xc0\x80" + `"}`, "surrogate": "{" + addr + `,"zone":"` + "\xed\xa0\x80" + `"}`,
		"null": "null", "true": "true", "number": "7", "string": `"10.0.0.7:5001"`, "array": "[]", "array of it": "[" + good + "]", "empty object": "{}",
		"two": good + good, "two lines": good + "\n" + good, "trailing comma": `{` + addr + `,}`, "single quotes": `{'address':'10.0.0.7:5001'}`,
		"no quotes": `{address:"10.0.0.7:5001"}`, "comment": `{` + addr + `/* x */}`, "line comment": good + "// x", "yaml": "address: 10.0.0.7:5001", "xml": "<address>10.0.0.7:5001</address>",
		"html": "<script>alert(1)</script>", "shell": "$(reboot)", "path": "../../etc/passwd", "url": "http://10.0.0.7:5001", "esc": "\x1b[2J",
		"prefix": "x" + good, "suffix": good + "x", "unicode space": "\u00a0" + good, "form feed": "\f" + good, "raw newline": "{" + addr + ",\"zone\":\"a\nb\"}",
		"too large":       `{` + addr + `,"x":"` + strings.Repeat("x", registry.MaxValueBytes) + `"}`,
		"1.5 MiB":         strings.Repeat("x", 3<<19),
		"deep arrays":     strings.Repeat("[", 100_000),
		"deep objects":    strings.Repeat(`{"a":`, 20_000),
		"deep unknown":    `{` + addr + `,"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`,
		"deep objects 17": `{` + addr + `,"x":` + strings.Repeat(`{"a":`, 17) + "1" + strings.Repeat("}", 17) + `}`,
		"deep in check":   `{` + addr + `,"check":{"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}}`,
		"deep in claims":  `{` + addr + `,"claims":[{"path":"/","x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}]}`,
		"deep 30000":      `{` + addr + `,"x":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + `}`,
	} {
		add("value "+name, v)
	}
	for i := 1; i < len(good); i++ {
		add("truncated", good[:i])
	}

	// Types: every field, every wrong one.
	want := map[string]string{"address": "s", "protocol": "s", "state": "s", "weight": "n", "zone": "s", "version": "s", "metadata": "o", "claims": "a", "check": "o",
		"idle_timeout": "s", "drain_ack": "b", "incarnation": "s", "registered_at": "s"}
	raw := map[string]string{"s": `"0"`, "n": `5`, "b": `true`, "a": `[1]`, "o": `{"x":{}}`, "f": `1.5`}
	for name, kind := range want {
		for k, v := range raw {
			if k == kind && k != "o" || kind == "o" && k == "o" && name == "check" {
				continue
			}
			field("type "+k, name, v)
		}
	}

	// Names: twice, twice with an escape, and in other case.
	for name := range want {
		v := map[string]string{"s": `"10.0.0.7:5001"`, "n": `5`, "b": `true`, "a": `[]`, "o": `{}`}[want[name]]
		escaped := fmt.Sprintf(`\u%04x`, name[0]) + name[1:]
		first := addr + ","
		if name == "address" {
			first = ""
		}
		// zone's value would be no good for other fields, but a name that stands twice is refused before.
		add("twice "+name, `{`+first+`"`+name+`":null,"`+name+`":`+v+`}`)
		add("twice escaped "+name, `{`+first+`"`+name+`":null,"`+escaped+`":null}`)
		add("upper case "+name, `{`+first+`"`+strings.ToUpper(name)+`":`+v+`}`)
		add("capital "+name, `{`+first+`"`+strings.ToUpper(name[:1])+name[1:]+`":`+v+`}`)
	}
	add("twice unknown", `{`+addr+`,"x":1,"x":1}`)
	add("twice in unknown", `{`+addr+`,"x":{"y":1,"y":1}}`)
	add("twice in unknown array", `{`+addr+`,"x":[[{"y":1,"y":1}]]}`)
	add("twice in metadata", `{`+addr+`,"metadata":{"a":"1","a":"2"}}`)
	add("twice in check", `{`+addr+`,"check":{"path":"/a","path":"/b"}}`)
	add("twice in claim", `{`+addr+`,"claims":[{"path":"/a","path":"/b"}]}`)
	add("case in check", `{`+addr+`,"check":{"Path":"/a"}}`)
	add("case in claim", `{`+addr+`,"claims":[{"PATH":"/a"}]}`)
	add("case folding", `{`+addr+`,"\u017ftate":"ready"}`) // a long s folds to s
	many := `{` + addr
	for i := range 40 {
		many += fmt.Sprintf(`,"x%d":1`, i)
	}
	add("twice among many", many+`,"x7":1}`)

	// Numbers.
	for _, n := range []string{"-1", "-0", "10001", "1e2", "1E2", "1e308", "1e-1", "0.5", "100.0", "9223372036854775808", "18446744073709551616", strings.Repeat("9", 1000),
		"NaN", "Infinity", "-Infinity", "+5", "05", "0x10", "0b1", "1_000", "5.", ".5", `"5"`, `"NaN"`, "٥", "--5", "5 5"} {
		field("number "+n[:min(len(n), 10)], "weight", n)
	}
	// Durations.
	for _, d := range []string{`"-1s"`, `"5"`, `5`, `"5 s"`, `"s"`, `""`, `"1d"`, `"1e9s"`, `"NaNs"`, `"999999999h"`, `"5s "`, `"５s"`, `["5s"]`} {
		field("duration "+d, "idle_timeout", d)
		add("duration "+d+" interval", `{`+addr+`,"check":{"interval":`+d+`}}`)
		add("duration "+d+" timeout", `{`+addr+`,"check":{"timeout":`+d+`}}`)
	}
	add("interval 1ns", `{`+addr+`,"check":{"interval":"1ns"}}`)
	add("interval a year", `{`+addr+`,"check":{"interval":"8760h"}}`)
	// Times.
	for _, v := range []string{`""`, `"now"`, `"2026-11-22"`, `"2026-11-22 10:00:00"`, `"2026-13-01T00:00:00Z"`, `"2026-11-22T25:00:00Z"`, `"0000-01-01T00:00:00Z"`, `"9999-12-31T23:59:59-23:00"`, `1763800000`} {
		field("time "+v, "registered_at", v)
	}

	// Text that cannot be shown, in every field that holds text, as a byte sequence and as an escape.
	for _, r := range []rune{0x01, 0x07, '\t', '\n', '\r', 0x1b, 0x7f, 0x85, 0x9b, 0x200e, 0x2028, 0x2029, 0x202a, 0x202e, 0x2066, 0x2069, 0xfeff} {
		for _, name := range []string{"address", "protocol", "state", "zone", "version", "incarnation"} {
			field(fmt.Sprintf("%U", r), name, fmt.Sprintf(`"10.0.0.7:5001\u%04x"`, r))
		}
		add(fmt.Sprintf("%U metadata name", r), fmt.Sprintf(`{%s,"metadata":{"a\u%04x":"b"}}`, addr, r))
		add(fmt.Sprintf("%U metadata value", r), fmt.Sprintf(`{%s,"metadata":{"a":"b\u%04x"}}`, addr, r))
		add(fmt.Sprintf("%U claim host", r), fmt.Sprintf(`{%s,"claims":[{"host":"b\u%04x"}]}`, addr, r))
		add(fmt.Sprintf("%U claim path", r), fmt.Sprintf(`{%s,"claims":[{"path":"/b\u%04x"}]}`, addr, r))
		add(fmt.Sprintf("%U check path", r), fmt.Sprintf(`{%s,"check":{"path":"/b\u%04x"}}`, addr, r))
		add(fmt.Sprintf("%U unknown name", r), fmt.Sprintf(`{%s,"b\u%04x":1}`, addr, r))
		add(fmt.Sprintf("%U bare", r), "10.0.0.7:5001"+string(r))
	}
	add("U+0000 zone", `{`+addr+`,"zone":"\u0000"}`)
	add("U+0000 unknown name", `{`+addr+`,"\u0000":1}`)

	// Addresses, in both forms.
	for _, a := range []string{"", ":", ":80", "10.0.0.7", "10.0.0.7:", "10.0.0.7:0", "10.0.0.7:-1", "10.0.0.7:+80", "10.0.0.7:080", "10.0.0.7:65536", "10.0.0.7:80 ", " 10.0.0.7:80", "10.0.0.7:80\n",
		"10.0.0.7:80:80", "10.0.0.7:http", "0.0.0.0:80", "[::]:80", "::1:80", "[fe80::1%eth0]:80", "[::1", "[10.0.0.7]:80", "2852039166:80", "0x7f.1:80", "017700000001:80", "127.1:80", "256.0.0.1:80",
		"user@host:80", "http://host:80", "host/path:80", "host:80/path", "a b:80", "224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80", "..:80", "-:80", strings.Repeat("a", 300) + ":80",
		"10.0.0.7:80,10.0.0.8:80", "*:80", "<script>:80", "10.0.0.7\u202e:80", "хост:80"} {
		add("address "+a[:min(len(a), 30)], `{"address":`+str(a)+`}`)
		add("bare address "+a[:min(len(a), 30)], a)
	}

	// Words, lengths, counts.
	for _, p := range []string{"HTTP", "http/1.1", "udp", "http ", "javascript:"} {
		field("word "+p, "protocol", str(p))
		field("word "+p, "state", str(p))
		add("word "+p+" check", `{`+addr+`,"check":{"type":`+str(p)+`}}`)
	}
	long := str(strings.Repeat("x", 2000))
	for _, name := range []string{"zone", "version", "incarnation"} {
		field("long", name, long)
	}
	add("long metadata name", `{`+addr+`,"metadata":{`+long+`:""}}`)
	add("long metadata value", `{`+addr+`,"metadata":{"a":`+long+`}}`)
	add("long unknown name", `{`+addr+`,`+long+`:1}`)
	add("long check path", `{`+addr+`,"check":{"path":"/`+long[1:]+`}}`)
	add("long claim path", `{`+addr+`,"claims":[{"path":"/`+long[1:]+`}]}`)
	add("long claim host", `{`+addr+`,"claims":[{"host":`+long+`}]}`)
	var entries, fields []string
	for i := range 5000 {
		entries, fields = append(entries, fmt.Sprintf(`"t%d":""`, i)), append(fields, fmt.Sprintf(`"t%d":1`, i))
	}
	add("many tags", `{`+addr+`,"metadata":{`+strings.Join(entries, ",")+`}}`)
	add("many unknown", `{`+addr+`,`+strings.Join(fields, ",")+`}`)
	add("many claims", `{`+addr+`,"claims":[`+strings.Repeat(`{"path":"/"},`, 3000)+`{"path":"/"}]}`)
	for _, c := range []string{`{}`, `{"host":"a:80"}`, `{"host":"*"}`, `{"host":"*.*.a"}`, `{"host":"http://a"}`, `{"path":"a"}`, `{"path":"/a?b"}`, `{"path":"/a#b"}`, `{"path":"/a/../b"}`, `{"path":"/."}`, `{"path":"/a b"}`, `{"path":"/ä"}`, `null`, `1`, `"/a"`, `[]`} {
		add("claim "+c, `{`+addr+`,"claims":[`+c+`]}`)
	}
	for _, c := range []string{`{"path":"a"}`, `{"path":"//\\a"}`, `{"path":"/a b"}`, `{"path":"/a#b"}`, `{"path":"/../a"}`, `{"path":"http://a/"}`, `{"type":"tcp","path":"/"}`, `{"type":"exec"}`, `{"type":1}`} {
		add("check "+c, `{`+addr+`,"check":`+c+`}`)
	}
	for _, m := range []string{`{"":"x"}`, `{"a":1}`, `{"a":null}`, `{"a":["b"]}`, `{"a":{}}`, `[["a","b"]]`, `"a=b"`} {
		add("metadata "+m, `{`+addr+`,"metadata":`+m+`}`)
	}
	return all
}

func TestDecodeRefusesPoison(t *testing.T) {
	all := poisons()
	if len(all) < 300 {
		t.Errorf("only %d poisoned values", len(all))
	}
	seen := make(map[string]bool)
	for _, p := range all {
		seen[p.value] = true
		in, err := Decode("cart", "a", []byte(p.value))
		if !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %.80q decoded as %+v, %v", p.name, p.value, in, err)
			continue
		}
		if d := cmp.Diff(registry.Instance{}, in); d != "" {
			t.Errorf("%s: an instance came with the error:\n%s", p.name, d)
		}
		msg := err.Error()
		if len(msg) > 1000 {
			t.Errorf("%s: message of %d bytes", p.name, len(msg))
		}
		for _, r := range msg {
			if r < ' ' || r > '~' && r != '…' {
				t.Errorf("%s: unsafe message %q", p.name, msg)
				break
			}
		}
	}
	t.Logf("%d poisoned values, %d of them different", len(all), len(seen))
}

// TestDecodeBoundsMemory decodes the values that could cost most.
func TestDecodeBoundsMemory(t *testing.T) {
	for _, p := range poisons() {
		if len(p.value) < 10_000 {
			continue
		}
		allocated := testing.AllocsPerRun(1, func() { _, _ = Decode("cart", "a", []byte(p.value)) })
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = Decode("cart", "a", []byte(p.value))
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("%s: %d bytes in %d allocations", p.name, got, int(allocated))
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	in := registry.Instance{Service: "cart", ID: "a", Address: "10.0.0.7:5001"}
	for _, spoil := range []func(*registry.Instance){
		func(in *registry.Instance) { in.Address = "x" },
		func(in *registry.Instance) { in.ID = "" },
		func(in *registry.Instance) {
			in.Extra = map[string]json.RawMessage{"x": json.RawMessage(`"` + strings.Repeat("x", registry.MaxValueBytes) + `"`)}
		},
	} {
		bad := in.Clone()
		spoil(&bad)
		if b, err := Encode(bad); !errors.Is(err, registry.ErrInvalid) || b != nil {
			t.Errorf("Encode: %.40s, %v", b, err)
		}
	}
	// The foreign escapes that HTML would need are not for etcdctl's readers.
	in.Metadata = map[string]string{"a": "<b> & c"}
	if b, err := Encode(in); err != nil || string(b) != `{"address":"10.0.0.7:5001","metadata":{"a":"<b> & c"}}` {
		t.Errorf("%s, %v", b, err)
	}
}

func TestShare(t *testing.T) {
	value := []byte(`{"address":"10.0.0.7:5001","zone":"eu","metadata":{"a":"1","b":"2"},"check":{"path":"/healthz"}}`)
	a, err := Decode("cart", "a", value)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Decode("cart", "b", value)
	if err != nil {
		t.Fatal(err)
	}
	if a.Check != b.Check || fmt.Sprintf("%p", a.Metadata) != fmt.Sprintf("%p", b.Metadata) {
		t.Error("equal metadata and checks are held twice")
	}
	c, err := Decode("cart", "c", slices.Concat(value[:len(value)-1], []byte(`,"weight":1}`)))
	if err != nil || c.Weight == nil || b.Weight != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestMemoryPerInstance holds a fleet whose instances differ in address and id only, as fleets do.
func TestMemoryPerInstance(t *testing.T) {
	if testing.Short() {
		t.Skip("holds a fleet")
	}
	const n = 20_000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	fleet := make([]registry.Instance, n)
	before := heap()
	for i := range fleet {
		id := fmt.Sprintf("cart-%d", i)
		value := fmt.Sprintf(`{"address":"10.%d.%d.%d:5001","protocol":"http","state":"ready","weight":100,"zone":"eu-1a","version":"1.4.2",
		"metadata":{"team":"shop","commit":"8f3a9c1"},"check":{"type":"http","path":"/healthz","interval":"5s","timeout":"1s"},
		"idle_timeout":"2s","drain_ack":true,"incarnation":"%s","registered_at":"2026-11-22T10:00:00Z"}`, i>>16, i>>8&255, i&255, registry.NewIncarnation())
		in, err := Decode("cart", id, []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		fleet[i] = in
	}
	per := (heap() - before) / n
	const inSlice = 232 // is counted in before
	t.Logf("%d bytes per instance beside the struct", per)
	if per+inSlice > 600 {
		t.Errorf("%d bytes per instance, want at most 600", per+inSlice)
	}
	runtime.KeepAlive(fleet)
}

func FuzzDecode(f *testing.F) {
	for _, p := range poisons() {
		if len(p.value) < 1000 {
			f.Add([]byte(p.value))
		}
	}
	f.Add([]byte("10.0.0.7:5001"))
	f.Add([]byte(`{"address":"[::1]:80","weight":0,"metadata":{"a":"b","c":"\u00e4"},"claims":[{"host":"*.a","path":"/b"}],"check":{"type":"http","path":"/x?y","interval":"5s"},"idle_timeout":"1h","registered_at":"2026-11-22T10:00:00.5+01:00","new":{"x":[1,null,"\ud800"]}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		in, err := Decode("cart", "a", value)
		if err != nil {
			if !errors.Is(err, registry.ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		if err := in.Validate(); err != nil {
			t.Fatalf("decoded, but not valid: %v", err)
		}
		if len(value) > registry.MaxValueBytes-1024 {
			return // "1h" becomes "1h0m0s", which may be too much
		}
		written, err := Encode(in)
		if err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		again, err := Decode("cart", "a", written)
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		if d := cmp.Diff(in, again); d != "" {
			t.Fatalf("%s\n(-first +again):\n%s", written, d)
		}
		if twice, err := Encode(again); err != nil || string(twice) != string(written) {
			t.Fatalf("%s\nbecame\n%s (%v)", written, twice, err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	value := []byte(`{"address":"10.0.0.7:5001","protocol":"http","state":"ready","weight":100,"zone":"eu-1a","version":"1.4.2","metadata":{"team":"shop"},"check":{"type":"http","path":"/healthz","interval":"5s","timeout":"1s"},"idle_timeout":"2s","incarnation":"01JCABCDEFGHJKMNPQRSTVWXYZ","registered_at":"2026-11-22T10:00:00Z"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode("cart", "a", value); err != nil {
			b.Fatal(err)
		}
	}
}
