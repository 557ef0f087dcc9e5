package registry

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func full() Instance {
	return Instance{
		Service: "cart", ID: "cart-1", Address: "10.0.0.7:5001", Protocol: HTTP, State: Ready, Weight: new(100),
		Zone: "eu-1a", Version: "1.4.2", Metadata: map[string]string{"team": "shop", "note": "größer <b> 👩‍🚀"},
		Claims:      []Claim{{Host: "shop.example.com", Path: "/cart"}, {Host: "*.example.com"}, {Path: "/x"}},
		Check:       &Check{Type: "http", Path: "/healthz?full=1", Interval: Duration(5 * time.Second), Timeout: Duration(time.Second)},
		IdleTimeout: Duration(2 * time.Second), DrainAck: true, Incarnation: "01JC0000000000000000000000",
		RegisteredAt: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
		Extra:        map[string]json.RawMessage{"rack": json.RawMessage(`{"row":7,"deep":[[1],"a"]}`), "a<b": json.RawMessage(`null`)},
	}
}

func TestInstanceJSON(t *testing.T) {
	in := full()
	if err := in.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	got := Instance{Service: in.Service, ID: in.ID}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestInstanceJSONText(t *testing.T) {
	for _, test := range []struct {
		in   Instance
		want string
	}{
		{Instance{Address: "10.0.0.7:5001"}, `{"address":"10.0.0.7:5001"}`},
		{Instance{Address: "a:1", Weight: new(0)}, `{"address":"a:1","weight":0}`},
		{Instance{Address: "a:1", IdleTimeout: Duration(90 * time.Second), Extra: map[string]json.RawMessage{"z": json.RawMessage(" [ 1 ] "), "b": json.RawMessage("2")}},
			`{"address":"a:1","idle_timeout":"1m30s","b":2,"z":[1]}`},
		{Instance{Address: "a:1", Check: &Check{Path: "/?a&b"}}, `{"address":"a:1","check":{"path":"/?a&b"}}`},
	} {
		got, err := test.in.MarshalJSON()
		if err != nil || string(got) != test.want {
			t.Errorf("got %s, %v; want %s", got, err, test.want)
		}
	}
}

func TestInstanceJSONUnknownAndNull(t *testing.T) {
	const value = ` {"address":"a:1", "weight":null, "check":{"port":9,"path":"/x"}, "claims":[{"host":"a","more":[1]}], "new":{"x":[{"y":1}]}, "tags":["a"]} `
	var in Instance
	if err := in.UnmarshalJSON([]byte(value)); err != nil {
		t.Fatal(err)
	}
	want := Instance{Address: "a:1", Check: &Check{Path: "/x"}, Claims: []Claim{{Host: "a"}},
		Extra: map[string]json.RawMessage{"new": json.RawMessage(`{"x":[{"y":1}]}`), "tags": json.RawMessage(`["a"]`)}}
	if d := cmp.Diff(want, in); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestUnmarshalLeavesInstanceOnError(t *testing.T) {
	in := full()
	if err := in.UnmarshalJSON([]byte(`{"address":"b:1","weight":"5"}`)); !errors.Is(err, ErrInvalid) {
		t.Fatalf("error %v", err)
	}
	if d := cmp.Diff(full(), in); d != "" {
		t.Errorf("a failed read changed the instance:\n%s", d)
	}
}

func TestDurationJSON(t *testing.T) {
	for text, want := range map[string]time.Duration{`"5s"`: 5 * time.Second, `"250ms"`: 250 * time.Millisecond, `"1h2m"`: 62 * time.Minute, `"0"`: 0} {
		var d Duration
		if err := json.Unmarshal([]byte(text), &d); err != nil || time.Duration(d) != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
	}
	for _, text := range []string{`5`, `""`, `"5"`, `"5 s"`, `"s"`, `null`, `true`, `"1e3s"`, `"NaN"`, `"9999999999h"`, `["5s"]`} {
		var d Duration
		if err := d.UnmarshalJSON([]byte(text)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v; want ErrInvalid", text, d, err)
		}
	}
	if b, err := json.Marshal(Duration(1500 * time.Millisecond)); string(b) != `"1.5s"` || err != nil {
		t.Errorf("%s, %v", b, err)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	in := full()
	c := in.Clone()
	*c.Weight, c.Check.Path, c.Claims[0].Host = 1, "/z", "z"
	c.Metadata["team"] = "z"
	c.Extra["rack"][0] = 'z'
	if d := cmp.Diff(full(), in); d != "" {
		t.Errorf("a change to the clone reached the original:\n%s", d)
	}
	if d := cmp.Diff(Instance{}, (Instance{}).Clone()); d != "" {
		t.Errorf("zero: %s", d)
	}
}

func TestValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Instance){
		"service":           func(in *Instance) { in.Service = "Cart" },
		"id":                func(in *Instance) { in.ID = "" },
		"address missing":   func(in *Instance) { in.Address = "" },
		"protocol":          func(in *Instance) { in.Protocol = "HTTP" },
		"state":             func(in *Instance) { in.State = "up" },
		"weight low":        func(in *Instance) { in.Weight = new(-1) },
		"weight high":       func(in *Instance) { in.Weight = new(MaxWeight + 1) },
		"zone long":         func(in *Instance) { in.Zone = strings.Repeat("z", MaxLabelBytes+1) },
		"version newline":   func(in *Instance) { in.Version = "1\n2" },
		"version bidi":      func(in *Instance) { in.Version = "1\u202e2" },
		"version BOM":       func(in *Instance) { in.Version = "\ufeff1" },
		"version separator": func(in *Instance) { in.Version = "1\u20282" },
		"version UTF-8":     func(in *Instance) { in.Version = "\xff" },
		"version C1":        func(in *Instance) { in.Version = "\u009b2J" },
		"metadata name":     func(in *Instance) { in.Metadata = map[string]string{"": "x"} },
		"metadata esc":      func(in *Instance) { in.Metadata = map[string]string{"a\x1b": "x"} },
		"metadata value":    func(in *Instance) { in.Metadata = map[string]string{"a": "\x00"} },
		"metadata long":     func(in *Instance) { in.Metadata = map[string]string{"a": strings.Repeat("x", MaxMetadataValueBytes+1)} },
		"metadata many": func(in *Instance) {
			in.Metadata = map[string]string{}
			for i := range MaxMetadata + 1 {
				in.Metadata[strings.Repeat("x", i+1)] = ""
			}
		},
		"claim empty":      func(in *Instance) { in.Claims = []Claim{{}} },
		"claim port":       func(in *Instance) { in.Claims = []Claim{{Host: "a:80"}} },
		"claim star":       func(in *Instance) { in.Claims = []Claim{{Host: "*"}} },
		"claim stars":      func(in *Instance) { in.Claims = []Claim{{Host: "a.*.b"}} },
		"claim path":       func(in *Instance) { in.Claims = []Claim{{Path: "cart"}} },
		"claim query":      func(in *Instance) { in.Claims = []Claim{{Path: "/a?b"}} },
		"claim dots":       func(in *Instance) { in.Claims = []Claim{{Path: "/a/../b"}} },
		"claim backslash":  func(in *Instance) { in.Claims = []Claim{{Path: `/a\b`}} },
		"claims many":      func(in *Instance) { in.Claims = slices.Repeat([]Claim{{Path: "/"}}, MaxClaims+1) },
		"check type":       func(in *Instance) { in.Check = &Check{Type: "exec"} },
		"check path":       func(in *Instance) { in.Check = &Check{Path: "/a\r\nHost: b"} },
		"check path long":  func(in *Instance) { in.Check = &Check{Path: "/" + strings.Repeat("a", MaxPathBytes)} },
		"check path tcp":   func(in *Instance) { in.Check = &Check{Type: "tcp", Path: "/"} },
		"check interval":   func(in *Instance) { in.Check = &Check{Interval: 1} },
		"check interval -": func(in *Instance) { in.Check = &Check{Interval: -1} },
		"check timeout":    func(in *Instance) { in.Check = &Check{Timeout: -1} },
		"idle timeout":     func(in *Instance) { in.IdleTimeout = -1 },
		"incarnation":      func(in *Instance) { in.Incarnation = "a/b" },
		"incarnation long": func(in *Instance) { in.Incarnation = strings.Repeat("a", MaxIncarnationBytes+1) },
		"registered_at":    func(in *Instance) { in.RegisteredAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"extra known":      func(in *Instance) { in.Extra = map[string]json.RawMessage{"Zone": json.RawMessage(`1`)} },
		"extra JSON":       func(in *Instance) { in.Extra = map[string]json.RawMessage{"x": json.RawMessage(`{`)} },
		"extra name":       func(in *Instance) { in.Extra = map[string]json.RawMessage{"x\n": json.RawMessage(`1`)} },
	} {
		in := full()
		spoil(&in)
		err := in.Validate()
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v; want ErrInvalid", name, err)
		} else if strings.ContainsAny(err.Error(), "\n\x1b\x00\u202e") {
			t.Errorf("%s: unsafe message %q", name, err)
		}
	}
	for name, ok := range map[string]Instance{
		"least":         {Service: "a", ID: "b", Address: "c:1"},
		"weight 0":      {Service: "a", ID: "b", Address: "c:1", Weight: new(0)},
		"check default": {Service: "a", ID: "b", Address: "c:1", Check: &Check{}},
		"loopback":      {Service: "a", ID: "b", Address: "127.0.0.1:1"},
	} {
		if err := ok.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 999, time.FixedZone("", 3600))
	in, err := Prepare(Instance{Service: "cart", Address: "10.0.0.7:5001"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(in.ID, "-5001") || len(in.Incarnation) != 26 || !in.RegisteredAt.Equal(now.Truncate(time.Second)) {
		t.Errorf("%+v", in)
	}
	again, err := Prepare(in, now.Add(time.Hour))
	if d := cmp.Diff(in, again); d != "" || err != nil {
		t.Errorf("what is filled must stay: %v\n%s", err, d)
	}
	if _, err := Prepare(Instance{Service: "cart"}, now); !errors.Is(err, ErrInvalid) {
		t.Errorf("no address: %v", err)
	}
}

func TestIDFromHostname(t *testing.T) {
	for host, want := range map[string]string{"web1": "web1-80", "web 1.läb": "web-1.l--b-80", strings.Repeat("h", 200): strings.Repeat("h", 125) + "-80"} {
		if got := idFrom(host, 80); got != want || CheckID(got) != nil {
			t.Errorf("idFrom(%q) = %q, want %q", host, got, want)
		}
	}
}

func TestIncarnation(t *testing.T) {
	var s incarnationSource
	now := time.UnixMilli(1763800000000)
	times := []time.Time{now, now, now, now.Add(time.Millisecond), now.Add(-time.Hour), now.Add(time.Hour), time.Unix(-5, 0)}
	last := ""
	for i, at := range times {
		id := s.next(at)
		if len(id) != 26 || !isID(id) || id <= last {
			t.Errorf("%d: %q after %q", i, id, last)
		}
		last = id
	}
	s.last = [16]byte{0, 0, 0, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}
	before := encodeBase32(s.last)
	if id := s.next(time.UnixMilli(1)); id <= before {
		t.Errorf("%q after %q: the carry broke the order", id, before)
	}
	// The time is the first ten digits: 0x019AA... as Crockford's base 32.
	a, b := (&incarnationSource{}).next(time.UnixMilli(1)), (&incarnationSource{}).next(time.UnixMilli(1<<48-1))
	if a[:10] != "0000000001" || b[:10] != "7ZZZZZZZZZ" {
		t.Errorf("%s and %s", a, b)
	}
}
