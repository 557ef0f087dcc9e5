package health

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestJudge(t *testing.T) {
	const rise, fall = 2, 3
	type step struct{ ok, up, changed bool }
	for name, steps := range map[string][]step{
		"in after the first pass":      {{true, true, true}, {true, true, false}},
		"out after the first failure":  {{false, false, true}, {false, false, false}},
		"three failures in a row":      {{true, true, true}, {false, true, false}, {false, true, false}, {false, false, true}},
		"a pass between starts again":  {{true, true, true}, {false, true, false}, {false, true, false}, {true, true, false}, {false, true, false}, {false, true, false}, {false, false, true}},
		"two passes bring it back":     {{false, false, true}, {true, false, false}, {true, true, true}},
		"a failure between, as well":   {{false, false, true}, {true, false, false}, {false, false, false}, {true, false, false}, {true, true, true}},
		"down needs rise passes again": {{true, true, true}, {false, true, false}, {false, true, false}, {false, false, true}, {true, false, false}, {true, true, true}},
	} {
		var j Judge
		if j.Up() || j.Known() {
			t.Fatal("the zero Judge knows something")
		}
		for i, s := range steps {
			if up, changed := j.Add(s.ok, rise, fall); up != s.up || changed != s.changed || j.Up() != up || !j.Known() {
				t.Errorf("%s: step %d: up %v, changed %v; want %v, %v", name, i, up, changed, s.up, s.changed)
			}
		}
	}
}

// The verdict is what the longest suffixes of the history say.
func TestJudgeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rise, fall := rapid.IntRange(-1, 5).Draw(t, "rise"), rapid.IntRange(-1, 5).Draw(t, "fall")
		outcomes := rapid.SliceOfN(rapid.Bool(), 1, 60).Draw(t, "outcomes")
		var j Judge
		was, row := false, 0
		for i, ok := range outcomes {
			if row++; i > 0 && outcomes[i-1] != ok {
				row = 1
			}
			up, changed := j.Add(ok, rise, fall)
			need := max(fall, 1)
			if ok {
				need = max(rise, 1)
			}
			switch {
			case i == 0:
				if up != ok || !changed {
					t.Fatalf("the first outcome, %v, made it %v", ok, up)
				}
			case up == ok && was != ok && row < need:
				t.Fatalf("%d of %v in a row made it %v", row, ok, up)
			case up != ok && row >= need:
				t.Fatalf("%d of %v in a row left it %v", row, ok, up)
			case changed != (up != was):
				t.Fatalf("from %v to %v, changed %v", was, up, changed)
			}
			was = up
		}
	})
}

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestOutlier(t *testing.T) {
	type step struct {
		after time.Duration
		class Class
		lasts time.Duration // zero: not ejected by it
	}
	for name, steps := range map[string][]step{
		"refused at once":                   {{0, Refused, time.Second}},
		"the fifth server error":            {{0, ServerError, 0}, {0, ServerError, 0}, {0, ServerError, 0}, {0, ServerError, 0}, {0, ServerError, time.Second}},
		"not if a success is between":       {{0, ServerError, 0}, {0, ServerError, 0}, {0, ServerError, 0}, {0, ServerError, 0}, {0, Success, 0}, {0, ServerError, 0}},
		"nothing counts while it is out":    {{0, Refused, time.Second}, {time.Second - 1, Refused, 0}, {0, Success, 0}, {1, ServerError, 2 * time.Second}},
		"one failure on trial, for longer":  {{0, Refused, time.Second}, {time.Second, ServerError, 2 * time.Second}, {2 * time.Second, Refused, 3 * time.Second}},
		"one success ends the trial":        {{0, Refused, time.Second}, {time.Second, Success, 0}, {0, ServerError, 0}},
		"but the number is remembered":      {{0, Refused, time.Second}, {time.Second, Success, 0}, {0, Refused, 2 * time.Second}},
		"for a minute":                      {{0, Refused, time.Second}, {time.Second, Success, 0}, {time.Minute, Refused, time.Second}},
		"one of two after a minute":         {{0, Refused, time.Second}, {time.Second, Refused, 2 * time.Second}, {2*time.Second + time.Minute, Refused, 2 * time.Second}},
		"a trial that nobody used is over":  {{0, Refused, time.Second}, {time.Second + time.Minute, ServerError, 0}},
		"a trial within the minute is none": {{0, Refused, time.Second}, {time.Second + time.Minute - 1, ServerError, 2 * time.Second}},
	} {
		var o Outlier
		now := start
		for i, s := range steps {
			now = now.Add(s.after)
			if got := o.Note(s.class, now, OutlierSettings{}); got != (s.lasts > 0) {
				t.Errorf("%s: step %d: ejected %v", name, i, got)
			}
			if until := o.Until(now); s.lasts > 0 && !until.Equal(now.Add(s.lasts)) {
				t.Errorf("%s: step %d: until %v, want %v", name, i, until.Sub(now), s.lasts)
			}
		}
	}
}

func TestOutlierProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := OutlierSettings{
			Consecutive5xx: rapid.IntRange(-1, 6).Draw(t, "consecutive"),
			Base:           time.Duration(rapid.Int64Range(-1, int64(time.Minute)).Draw(t, "base")),
			Max:            time.Duration(rapid.Int64Range(-1, int64(10*time.Minute)).Draw(t, "max")),
		}
		limit, base, most := s.Consecutive5xx, s.Base, s.Max
		if limit <= 0 {
			limit = 5
		}
		if base <= 0 {
			base = time.Second
		}
		if most <= 0 {
			most = 5 * time.Minute
		}
		var o Outlier
		now, row := start, 0
		var last time.Duration
		var ended time.Time
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			step := rapid.SampledFrom([]time.Duration{0, 1, time.Second, base, most, time.Minute, 5 * time.Minute}).Draw(t, "step")
			now = now.Add(step)
			class := rapid.SampledFrom([]Class{Success, ServerError, Refused}).Draw(t, "class")
			out := !o.Until(now).IsZero()
			eject := o.Note(class, now, s)
			switch {
			case out && eject:
				t.Fatal("ejected what is ejected")
			case out:
				continue
			case class == Success && eject:
				t.Fatal("a success ejects")
			case class == Refused && !eject:
				t.Fatal("a refused connection does not eject")
			}
			if row++; class == Success {
				row = 0
			}
			if class == ServerError && row >= limit && !eject {
				t.Fatalf("%d server errors in a row do not eject", row)
			}
			if !eject {
				if !o.Until(now).IsZero() {
					t.Fatal("it is out, but was not ejected")
				}
				continue
			}
			lasts := o.Until(now).Sub(now)
			switch {
			case lasts <= 0 || lasts > most || lasts < min(base, most):
				t.Fatalf("it is out for %v", lasts)
			case last > 0 && now.Sub(ended) < time.Minute && lasts < min(last+1, most):
				t.Fatalf("out again after %v: for %v, before that for %v", now.Sub(ended), lasts, last)
			case o.Until(now.Add(lasts)) != time.Time{}:
				t.Fatal("it is out when the time is over")
			}
			last, ended, row = lasts, now.Add(lasts), 0
		}
	})
}

// However often, and with whatever settings, no time overflows.
func TestOutlierMost(t *testing.T) {
	for _, s := range []OutlierSettings{{}, {Base: 1 << 62, Max: 1 << 62}, {Base: 1}, {Base: time.Hour}} {
		var o Outlier
		now := start
		for range 2000 {
			if !o.Note(Refused, now, s) {
				t.Fatal("not ejected")
			}
			until := o.Until(now)
			if most := max(s.Max, 5*time.Minute); until.Sub(now) <= 0 || until.Sub(now) > most {
				t.Fatalf("%+v: out for %v", s, until.Sub(now))
			}
			if s.Base < 1<<40 {
				now = until
			} else {
				o = Outlier{ejections: o.ejections, until: now}
			}
		}
		if s == (OutlierSettings{}) && o.Until(now.Add(-1)).IsZero() {
			t.Error("the last ejection is forgotten")
		}
	}
}

func TestMostEjected(t *testing.T) {
	for n, want := range map[int]int{-1: 0, 0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 101: 50} {
		if got := MostEjected(n); got != want {
			t.Errorf("of %d: %d, want %d", n, got, want)
		}
	}
}
