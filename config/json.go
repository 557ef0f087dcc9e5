package config

import (
	"encoding/json"
	"reflect"
	"strings"
	"time"
)

// MarshalJSON writes what is set, in the form that [ParseRoute] reads: durations as strings such as "15s".
func (r Route) MarshalJSON() ([]byte, error) {
	out, err := json.Marshal(plain(reflect.ValueOf(r)))
	return []byte(notYAML.Replace(string(out))), err
}

// EditPolicy changes the value of the key <prefix>/policies/<service>; nil is none, before and after. What the value says
// already stays as it is, but for its layout. An error is of type [Errors] and names the key.
func EditPolicy(service string, value []byte, change func(*Service)) ([]byte, error) {
	s := newSource("policies/"+service, value)
	var v Service
	s.read(value, maxValueBytes, &v)
	if err := s.err(); err != nil {
		return nil, err
	}
	if change(&v); reflect.ValueOf(v).IsZero() {
		return nil, nil
	}
	s.service(service, v, "")
	if err := s.err(); err != nil {
		return nil, err
	}
	out, err := json.Marshal(plain(reflect.ValueOf(v)))
	return []byte(notYAML.Replace(string(out))), err
}

// notYAML escapes the characters that JSON holds as they are and YAML does not.
var notYAML = strings.NewReplacer("\x7f", `\u007f`, "\u0085", `\u0085`, "\ufeff", `\ufeff`, "\ufffe", `\ufffe`, "\uffff", `\uffff`)

// UnmarshalJSON reads what MarshalJSON writes. Unlike [ParseRoute] it does not ask whether it can be meant.
func (r *Route) UnmarshalJSON(data []byte) error {
	s := newSource("", data)
	s.read(data, maxValueBytes, r)
	return s.err()
}

// plain turns a value into what JSON holds, by the keys of the file and without what is zero.
func plain(v reflect.Value) any {
	switch {
	case v.Type() == durationType:
		return shortDuration(time.Duration(v.Int()))
	case v.Kind() == reflect.Struct:
		out := map[string]any{}
		for _, f := range fieldsOf(v.Type()) {
			if x := v.FieldByIndex(f.index); !x.IsZero() {
				out[f.key] = plain(x)
			}
		}
		return out
	case v.Kind() == reflect.Pointer:
		return plain(v.Elem())
	case v.Kind() == reflect.Map:
		out := map[string]any{}
		for k, x := range v.Seq2() {
			out[k.String()] = plain(x)
		}
		return out
	case v.Kind() == reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = plain(v.Index(i))
		}
		return out
	}
	return v.Interface()
}
