package importer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Key is one key of etcd with its value.
type Key struct{ Name, Value string }

// ReadKeys reads what etcdctl get --prefix prints: lines of keys and values in turn, or JSON with -w json. The file name
// is for errors.
func ReadKeys(file string, data []byte) ([]Key, error) {
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		return jsonKeys(file, trimmed)
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%s is not text; make it with: etcdctl get --prefix / -w json", file)
	}
	text := strings.ReplaceAll(string(data), "\r\n", "\n")
	if text == "" {
		return nil, nil
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	var keys []Key
	for i := 0; i < len(lines); i += 2 {
		if !strings.Contains(lines[i], "/") {
			return nil, &SyntaxError{file, i + 1, fmt.Sprintf("%q is no key; where values have several lines, use: etcdctl get --prefix / -w json", clip(lines[i]))}
		}
		if i+1 == len(lines) {
			return nil, &SyntaxError{file, i + 1, fmt.Sprintf("key %q has no value; use: etcdctl get --prefix / -w json", clip(lines[i]))}
		}
		keys = append(keys, Key{lines[i], lines[i+1]})
	}
	return keys, nil
}

func jsonKeys(file string, data []byte) ([]Key, error) {
	var answer struct {
		KVs []struct{ Key, Value []byte } `json:"kvs"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("%s is not what etcdctl prints: %w; make it with: etcdctl get --prefix / -w json", file, err)
	}
	var keys []Key
	for _, kv := range answer.KVs {
		keys = append(keys, Key{string(kv.Key), string(kv.Value)})
	}
	return keys, nil
}

func clip(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}
