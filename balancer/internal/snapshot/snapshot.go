// Package snapshot keeps the last good content of the registry in a file, for a start while the registry is away.
//
// A file is one line of JSON that says what it is, from which store and revision, and what follows it, to the byte; and
// then a line for each key. It is written beside the old one, synced, and put in its place, so there is always a whole one.
// What is read is either exactly what was written or refused, with the reason.
package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rota-lb/rota/registry"
)

// Errors that callers can test for with errors.Is. A file that is not there is os.ErrNotExist.
var (
	// ErrCorrupt says that a file is not as it was written.
	ErrCorrupt = errors.New("the snapshot is damaged")
	// ErrForeign says that a file is no snapshot of this version, or is that of another prefix.
	ErrForeign = errors.New("the snapshot is not one for this balancer")
)

const (
	format   = "rota-snapshot/1"
	mostHead = 1 << 10
	mostBody = 1 << 30
)

// Table is the content of a registry at a revision.
type Table struct {
	Prefix   string
	StoreID  uint64
	Revision int64
	Saved    time.Time // filled by Write
	// Until is when it was last known to be what the registry held; filled by Read, from the time of the file.
	Until time.Time
	// Changes are instances, with Instance set, and routes, policies and grants, with Value set.
	Changes []registry.Change
	// Orphaned are the keys among them that the store does not have: it is another one than that they were written to.
	Orphaned map[string]bool
}

// Touch notes that the file at path is still what the registry holds.
func Touch(path string) error {
	now := time.Now()
	return os.Chtimes(path, now, now)
}

type head struct {
	Format   string    `json:"format"`
	Prefix   string    `json:"prefix"`
	Store    string    `json:"store"`
	Revision int64     `json:"revision"`
	Saved    time.Time `json:"saved"`
	Keys     int       `json:"keys"`
	Bytes    int       `json:"bytes"`  // after this line
	SHA256   string    `json:"sha256"` // of this line without this field, and of those bytes
}

type line struct {
	Key string `json:"key"`
	// Service and ID are those of an instance whose key is not one of ours.
	Service  string          `json:"service,omitempty"`
	ID       string          `json:"id,omitempty"`
	Instance json.RawMessage `json:"instance,omitempty"`
	Text     string          `json:"text,omitempty"` // of any other kind
	Orphaned bool            `json:"orphaned,omitempty"`
	Lease    int64           `json:"lease,omitempty"`
	Created  int64           `json:"created"`
	Modified int64           `json:"modified"`
}

// sum is the checksum of a file whose head has none yet.
func sum(h head, body []byte) (string, error) {
	h.SHA256 = ""
	text, err := json.Marshal(h)
	if err != nil {
		return "", err
	}
	s := sha256.New()
	s.Write(text)
	s.Write(body)
	return hex.EncodeToString(s.Sum(nil)), nil
}

// Write replaces the file at path, whose directory it makes if there is none. After an error the old file is still there.
func Write(path string, t Table) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("snapshot: %w", err)
		}
	}()
	var body bytes.Buffer
	keys := registry.Keys{Prefix: t.Prefix}
	for i := range t.Changes {
		ch := &t.Changes[i]
		l := line{Key: ch.Key, Text: string(ch.Value), Orphaned: t.Orphaned[ch.Key], Lease: ch.Lease, Created: ch.CreateRevision, Modified: ch.ModRevision}
		if _, err := keys.Parse(ch.Key); err != nil {
			l.Service, l.ID = ch.Service, ch.ID
		}
		if ch.Instance != nil {
			if l.Instance, err = ch.Instance.MarshalJSON(); err != nil {
				return err
			}
		}
		text, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("%s: %w", ch.Key, err)
		}
		body.Write(text)
		body.WriteByte('\n')
	}
	h := head{
		Format: format, Prefix: t.Prefix, Store: fmt.Sprintf("%016x", t.StoreID), Revision: t.Revision,
		Saved: time.Now().UTC().Truncate(time.Millisecond), Keys: len(t.Changes), Bytes: body.Len(),
	}
	if h.SHA256, err = sum(h, body.Bytes()); err != nil {
		return err
	}
	first, err := json.Marshal(h)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp") // readable by its owner only
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	for _, part := range [][]byte{first, []byte("\n"), body.Bytes()} {
		if _, err := f.Write(part); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if d, err := os.Open(dir); err == nil { // so that the name survives a power failure, where directories can be synced
		d.Sync()
		d.Close()
	}
	return nil
}

// Read returns what Write has written for a prefix.
func Read(path, prefix string) (Table, error) {
	t, err := read(path, prefix)
	if err != nil {
		return Table{}, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return t, nil
}

func read(path, prefix string) (t Table, err error) {
	f, err := os.Open(path)
	if err != nil {
		return t, err
	}
	defer f.Close()
	if t, err = decode(f, prefix); err != nil {
		return t, err
	}
	info, err := f.Stat()
	if err == nil {
		t.Until = info.ModTime()
	}
	return t, err
}

func decode(from io.Reader, prefix string) (t Table, err error) {
	r := bufio.NewReaderSize(from, mostHead)
	first, err := r.ReadSlice('\n')
	if err != nil {
		return t, fmt.Errorf("%w: it does not begin with a line that says what it is", ErrForeign)
	}
	first = bytes.Clone(first) // it is the reader's
	var h head
	d := json.NewDecoder(bytes.NewReader(first))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return t, fmt.Errorf("%w: its first line: %v", ErrForeign, err)
	}
	if h.Format != format {
		return t, fmt.Errorf("%w: format %.40q, want %q", ErrForeign, h.Format, format)
	}
	if h.Bytes < 0 || h.Bytes > mostBody || h.Keys < 0 || h.Keys > h.Bytes {
		return t, fmt.Errorf("%w: %d keys in %d bytes", ErrCorrupt, h.Keys, h.Bytes)
	}
	// Read, not allocated by what the file says of itself.
	body, err := io.ReadAll(io.LimitReader(r, int64(h.Bytes)+1))
	if err != nil {
		return t, err
	}
	if len(body) != h.Bytes {
		return t, fmt.Errorf("%w: %d bytes or more after the first line, want %d", ErrCorrupt, len(body), h.Bytes)
	}
	want, err := sum(h, body)
	if err != nil {
		return t, err
	}
	again, err := json.Marshal(h)
	if err != nil {
		return t, err
	}
	if h.SHA256 != want || !bytes.Equal(append(again, '\n'), first) {
		return t, fmt.Errorf("%w: its checksum is not that of its content", ErrCorrupt)
	}
	if h.Prefix != prefix {
		return t, fmt.Errorf("%w: it is of the prefix %q, not %q", ErrForeign, h.Prefix, prefix)
	}
	t = Table{Prefix: h.Prefix, Revision: h.Revision, Saved: h.Saved, Changes: make([]registry.Change, 0, h.Keys)}
	if _, err := fmt.Sscanf(h.Store, "%x", &t.StoreID); err != nil {
		return t, fmt.Errorf("%w: store %q", ErrCorrupt, h.Store)
	}
	keys := registry.Keys{Prefix: prefix}
	for text := range strings.Lines(string(body)) {
		ch, orphaned, err := decodeLine(keys, text)
		if err != nil {
			return t, fmt.Errorf("%w: key %d: %v", ErrCorrupt, len(t.Changes)+1, err)
		}
		if orphaned {
			if t.Orphaned == nil {
				t.Orphaned = map[string]bool{}
			}
			t.Orphaned[ch.Key] = true
		}
		t.Changes = append(t.Changes, ch)
	}
	if len(t.Changes) != h.Keys {
		return t, fmt.Errorf("%w: %d keys, want %d", ErrCorrupt, len(t.Changes), h.Keys)
	}
	return t, nil
}

func decodeLine(keys registry.Keys, text string) (ch registry.Change, orphaned bool, err error) {
	var l line
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return ch, false, err
	}
	k, err := keys.Parse(l.Key)
	if l.Service != "" {
		if err == nil {
			return ch, false, fmt.Errorf("key %q says itself whose it is", l.Key)
		}
		k, err = registry.Key{Kind: registry.KindInstance, Service: l.Service, ID: l.ID}, nil
	}
	if err != nil {
		return ch, false, err
	}
	ch = registry.Change{
		Kind: k.Kind, Key: l.Key, Service: k.Service, ID: k.ID, Lease: l.Lease, CreateRevision: l.Created, ModRevision: l.Modified,
	}
	switch k.Kind {
	case registry.KindInstance:
		in := registry.Instance{Service: k.Service, ID: k.ID}
		if err := in.UnmarshalJSON(l.Instance); err != nil {
			return ch, false, err
		}
		if err := in.Validate(); err != nil {
			return ch, false, err
		}
		ch.Instance = &in
	case registry.KindRoute, registry.KindPolicy, registry.KindGrant:
		ch.Value = []byte(l.Text)
	default:
		return ch, false, fmt.Errorf("key %q does not belong into a snapshot", l.Key)
	}
	return ch, l.Orphaned, nil
}
