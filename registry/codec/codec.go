// Package codec reads and writes the values of the registry: which bytes stand under the key of an instance.
//
// [Decode] accepts two forms: the JSON object described in docs/registration.md, and a bare host:port, so that
// "etcdctl put /rota/services/cart/a 10.0.0.7:5001" is a registration. [Encode] writes the first. Whatever Decode
// returns is valid and comes back the same from Encode and Decode.
//
// Values are written by any process that may write the key, so Decode treats them as hostile: it bounds size and depth,
// refuses what two readers could understand differently (repeated names, names in other case, numbers in quotes), and
// refuses text that cannot be shown safely on one line. An error is about one value; it never affects another.
//
// [Foreign] reads the records of other products, in six formats. It only reads: a foreign record is never written.
package codec

import (
	"bytes"
	"fmt"
	"unicode/utf8"

	"github.com/rota-lb/rota/registry"
)

var bom = []byte("\xef\xbb\xbf")

// Decode reads the value under the key of an instance. service and id are those of the key, as [registry.Keys.Parse]
// returns them. The error wraps [registry.ErrInvalid] and says what is wrong and what to write instead. It keeps no
// reference to value.
//
// Strings, metadata and checks that many instances have in common may be shared between the results: treat them as
// read-only. Decode may be called concurrently.
func Decode(service, id string, value []byte) (registry.Instance, error) {
	in, err := decode(service, id, value)
	if err != nil {
		return registry.Instance{}, err
	}
	share(&in)
	return in, nil
}

func decode(service, id string, value []byte) (registry.Instance, error) {
	in := registry.Instance{Service: service, ID: id}
	if err := checkText(value); err != nil {
		return in, err
	}
	if isJSON(value) {
		if err := in.UnmarshalJSON(value); err != nil {
			return in, err
		}
	} else {
		in.Address = string(value)
		if _, _, err := registry.ParseAddress(in.Address); err != nil {
			return in, fmt.Errorf("%w (a value that is not a JSON object is read as an address)", err)
		}
	}
	return in, in.Validate()
}

// checkText refuses what cannot be text of a record.
func checkText(value []byte) error {
	switch {
	case len(value) == 0:
		return invalid("empty; write JSON with an address, or host:port")
	case len(value) > registry.MaxValueBytes:
		return invalid("%d bytes; write at most %d", len(value), registry.MaxValueBytes)
	case bytes.HasPrefix(value, bom):
		return invalid("begins with a byte order mark; leave it out")
	case bytes.IndexByte(value, 0) >= 0:
		return invalid("holds a NUL byte; write text")
	case !utf8.Valid(value):
		return invalid("not UTF-8; write text")
	}
	return nil
}

// isJSON tells JSON from an address by its first character, as far as that is needed for a helpful error.
func isJSON(value []byte) bool {
	value = bytes.TrimLeft(value, " \t\r\n")
	return len(value) > 0 && (value[0] == '{' || value[0] == '"')
}

// Encode writes the value under the key of an instance. It validates first; the error wraps [registry.ErrInvalid].
func Encode(in registry.Instance) ([]byte, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	value, err := in.MarshalJSON()
	if err != nil {
		return nil, err
	}
	if len(value) > registry.MaxValueBytes {
		return nil, invalid("%d bytes; write at most %d", len(value), registry.MaxValueBytes)
	}
	return value, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w value: "+format, append([]any{registry.ErrInvalid}, args...)...)
}
