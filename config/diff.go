package config

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Difference is a setting that two configurations do not agree on.
type Difference struct {
	Path string `json:"path"`          // "routes.cart.timeout", "listeners"
	Was  string `json:"was,omitempty"` // as JSON, secrets hidden; empty is not set
	Is   string `json:"is,omitempty"`  // likewise
	// Restart says that a reload does not change it.
	Restart bool `json:"restart,omitempty"`
}

// Diff lists what is different in b, by path. Routes are compared by name, wherever they stand; that two of them have changed
// places, which matters only between equals, is not told.
func Diff(a, b *Config) []Difference {
	list := diff("", reflect.ValueOf(a.Static), reflect.ValueOf(b.Static))
	for i := range list {
		list[i].Restart = true
	}
	return append(list, diff("", reflect.ValueOf(a.Dynamic), reflect.ValueOf(b.Dynamic))...)
}

// DiffRoute lists what is different in another version of a route; nil is none.
func DiffRoute(name string, a, b *Route) []Difference {
	return diff("routes."+name, reflect.ValueOf(a), reflect.ValueOf(b))
}

// DiffPolicy lists what is different in another version of a policy; nil is none.
func DiffPolicy(service string, a, b *Service) []Difference {
	return diff("services."+service, reflect.ValueOf(a), reflect.ValueOf(b))
}

func diff(prefix string, a, b reflect.Value) []Difference {
	was, is := map[string]string{}, map[string]string{}
	flatten(prefix, a, was, false)
	flatten(prefix, b, is, false)
	paths := map[string]bool{}
	for _, m := range []map[string]string{was, is} {
		for p := range m {
			paths[p] = true
		}
	}
	var list []Difference
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if x, y := was[p], is[p]; x != y {
			list = append(list, Difference{Path: p, Was: show(x), Is: show(y)})
		}
	}
	return list
}

// secretMark is before what is a secret, so that two of them can be told apart until they are shown.
const secretMark = "\x00"

func show(text string) string {
	if strings.HasPrefix(text, secretMark) {
		return hidden
	}
	return text
}

// flatten writes what is set in v by path.
func flatten(path string, v reflect.Value, out map[string]string, headers bool) {
	if !v.IsValid() || v.IsZero() {
		return
	}
	below := func(key string) string { return strings.TrimPrefix(path+"."+key, ".") }
	text := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			panic("config: " + err.Error()) // strings, numbers and lists of them
		}
		return string(data)
	}
	switch {
	case v.Type() == durationType:
		out[path] = shortDuration(time.Duration(v.Int()))
	case v.Kind() == reflect.Pointer:
		if path != "" {
			out[path] = "{}" // that it is there counts, whatever it holds
		}
		flatten(path, v.Elem(), out, headers)
	case v.Kind() == reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			x := v.FieldByIndex(f.index)
			if v.Type().FieldByIndex(f.index).Tag.Get("secret") != "" && !x.IsZero() {
				out[below(f.key)] = secretMark + x.String()
				continue
			}
			flatten(below(f.key), x, out, f.key == "headers" || v.Type() == reflect.TypeFor[HeaderEdit]())
		}
	case v.Kind() == reflect.Map:
		for k, x := range v.Seq2() {
			if headers && secretName.MatchString(k.String()) {
				out[below(k.String())] = secretMark + x.String()
				continue
			}
			if x.Kind() == reflect.Struct {
				out[below(k.String())] = "{}"
			}
			flatten(below(k.String()), x, out, false)
		}
	case v.Type() == reflect.TypeFor[[]Route]():
		for i := range v.Len() {
			r := v.Index(i).Interface().(Route)
			flatten(below(r.Name), reflect.ValueOf(&r), out, false)
		}
	default:
		if v.Kind() == reflect.Slice {
			out[path] = text(plain(v))
			return
		}
		out[path] = text(v.Interface())
	}
}
