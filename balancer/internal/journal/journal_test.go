package journal

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestJournal(t *testing.T) {
	j := New(2)
	now := time.Unix(1000, 0)
	add := func(loop int, at time.Time, id string, notable bool) {
		if wanted, sampled := j.Wants(loop, at.UnixNano(), notable); wanted {
			j.Add(loop, &Facts{At: at, Sampled: sampled}, &Texts{ID: []byte(id)}, notable)
		}
	}
	add(0, now, "first", false)
	add(0, now.Add(time.Millisecond), "too soon", false)
	add(0, now.Add(2*time.Millisecond), "failed", true)
	add(1, now, "elsewhere", false)
	for i := range 3 * kept { // a flood of failures takes nothing from the samples
		add(0, now.Add(time.Duration(i)*time.Millisecond), fmt.Sprint("flood-", i), true)
	}
	for id, want := range map[string]bool{
		"first": true, "too soon": false, "failed": false, "elsewhere": true, "": false,
		fmt.Sprint("flood-", 2*kept-1): false, fmt.Sprint("flood-", 2*kept): true, fmt.Sprint("flood-", 3*kept-1): true,
	} {
		if e, ok := j.Find(id); ok != want || ok && e.ID != id {
			t.Errorf("%q: %v %+v", id, ok, e)
		}
	}
	last := now.Add(time.Hour)
	for i := range 10 * mostNotable { // all at once, most are not taken
		add(1, last, fmt.Sprint("burst-", i), true)
	}
	if _, ok := j.Find(fmt.Sprint("burst-", mostNotable-1)); !ok {
		t.Error("the first of a burst are not there")
	}
	if _, ok := j.Find(fmt.Sprint("burst-", mostNotable)); ok {
		t.Error("all of a burst is there")
	}
	add(1, now.Add(2*time.Hour), "elsewhere", true)
	if e, _ := j.Find("elsewhere"); !e.At.Equal(now.Add(2 * time.Hour)) {
		t.Errorf("of two with one id the later one counts: %+v", e)
	}
	if list := j.Sample(); len(list) < 3 || list[0].ID != "elsewhere" {
		t.Errorf("sampled: %+v", list)
	}
}

// An entry is what was added, whatever stood in its memory before, and long texts leave none behind.
func TestTexts(t *testing.T) {
	j := New(1)
	at := time.Unix(1000, 0)
	add := func(n int, path string) {
		at = at.Add(time.Second)
		texts := Texts{
			ID: fmt.Append(nil, "id-", n), Method: []byte("GET"), Path: []byte(path), Client: []byte("::1"),
			Fields: AppendHidden(AppendField(nil, []byte("Accept"), []byte("*/*")), []byte("COOKIE")),
		}
		j.Add(0, &Facts{At: at, Status: n, Sampled: true}, &texts, true)
		for _, b := range [][]byte{texts.ID, texts.Method, texts.Path, texts.Client, texts.Fields} {
			clear(b) // it was copied
		}
	}
	path := func(n int) string { return "/" + strings.Repeat("x", n*37%1000) }
	for n := range 2 * kept {
		add(n, strings.Repeat("y", longText+n))
	}
	for n := range kept + 10 {
		add(n, path(n))
	}
	list := j.Sample()
	if len(list) != kept {
		t.Fatalf("%d entries", len(list))
	}
	for i, e := range list {
		n := kept + 9 - i
		want := Entry{
			Facts: Facts{At: at.Add(-time.Duration(i) * time.Second), Status: n, Sampled: true},
			ID:    fmt.Sprint("id-", n), Method: "GET", Path: path(n), Client: "::1", Fields: "accept: */*\ncookie\n",
		}
		if e != want {
			t.Fatalf("entry %d is %+v, want %+v", i, e, want)
		}
		if found, ok := j.Find(want.ID); !ok || found != want {
			t.Fatalf("%s is found as %+v", want.ID, found)
		}
	}
	held := 0
	j.each(func(s *stored) { held += cap(s.text) })
	if most := 2 * kept * 1280; held > most {
		t.Errorf("%d bytes are held, more than %d", held, most)
	}
}

// A clock that is set back does not end the sampling.
func TestClockSetBack(t *testing.T) {
	j := New(1)
	at := time.Unix(100000, 0)
	for _, step := range []struct {
		by      time.Duration
		sampled bool
	}{{0, true}, {sampleEach - 1, false}, {1, true}, {-time.Hour, true}, {time.Millisecond, false}, {sampleEach, true}} {
		at = at.Add(step.by)
		if _, sampled := j.Wants(0, at.UnixNano(), false); sampled != step.sampled {
			t.Errorf("after %v more: %v", step.by, sampled)
		}
	}
}
