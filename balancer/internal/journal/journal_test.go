package journal

import (
	"fmt"
	"testing"
	"time"
)

func TestJournal(t *testing.T) {
	j := New(2)
	now := time.Unix(1000, 0)
	add := func(loop int, at time.Time, id string, notable bool) {
		if wanted, sampled := j.Wants(loop, at, notable); wanted {
			j.Add(loop, Entry{At: at, ID: id, Sampled: sampled}, notable)
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
