package config

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

var configType = reflect.TypeFor[Config]()

// FuzzParse checks that loading never panics, that a problem always has a message and a bounded size, and that what
// is accepted is complete.
func FuzzParse(f *testing.F) {
	f.Add(Example())
	for _, file := range []string{"testdata/bad.txt"} {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for c := range strings.SplitSeq(string(data), "====\n") {
			in, _, _ := strings.Cut(c, "----\n")
			f.Add([]byte(in))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("rota.yaml", data)
		if err == nil {
			if len(c.Listeners) == 0 || c.Log.Level == "" || c.Timeouts.Connect <= 0 || c.Grace < 0 {
				t.Errorf("incomplete: %+v", c)
			}
			return
		}
		checkErrors(t, err, data)
	})
}

// FuzzParseRoute checks the same of a route, and that an accepted one survives being written and read.
func FuzzParseRoute(f *testing.F) {
	for _, in := range []string{
		`{"service":"cart"}`, `{"service":"cart","host":"*.example.com","path":"=/cart","timeout":"1m30s","priority":-1,"strip_prefix":true}`,
		`{"split":[{"service":"cart","version":"1","metadata":{"a":"b"},"weight":1}],"path":"~/(a|b)","methods":["GET"],"query":{"a":"\x7f\u0085"}}`,
		`{"redirect":{"to":"https://{host}{uri}","status":301},"rate_limit":{"rate":"1/s","burst":2},"max_body":"1KiB","upgrades":["none"]}`,
		"service: cart\npath: /a%20b", `{"service":"cart","timeout":15}`, `{"service":"cart","service":"cart"}`, "&a [*a]", "null", "",
	} {
		f.Add("cart", []byte(in))
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		r, err := ParseRoute(name, data)
		if err != nil {
			checkErrors(t, err, data)
			return
		}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseRoute(name, out)
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%s: %v\n%+v\n%+v", out, err, r, again)
		}
	})
}

func checkErrors(t *testing.T, err error, data []byte) {
	t.Helper()
	es, ok := errors.AsType[Errors](err)
	if !ok || len(es) == 0 || len(es) > maxErrors+1 {
		t.Fatalf("%T with %d", err, len(es))
	}
	lines := len(lineBreaks.FindAll(data, -1)) + 2
	for _, e := range es {
		if e.Message == "" || e.Line < 0 || e.Line > lines || e.Line > 0 && e.Column < 1 || len(e.Error()) > 8<<10 {
			t.Errorf("%+v", e)
		}
	}
}
