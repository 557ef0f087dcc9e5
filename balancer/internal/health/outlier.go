package health

import (
	"cmp"
	"math"
	"time"
)

// Class is how an exchange with an endpoint ended, as far as it tells of the endpoint.
type Class uint8

// The classes.
const (
	Success     Class = iota // it answered, and not with a status of 500 or more
	ServerError              // it answered with a status of 500 or more
	Refused                  // the connection was refused, or reset before an answer
)

// OutlierSettings say when and for how long an endpoint is ejected. The zero value has the defaults.
type OutlierSettings struct {
	// Consecutive5xx is how many server errors in a row eject. Zero or less is 5.
	Consecutive5xx int
	// Base is the time of a first ejection; each further one in short succession lasts as much longer. Zero or less is 1 s.
	Base time.Duration
	// Max is the longest time of an ejection, also if Base is longer. Zero or less is 5 min.
	Max time.Duration
}

// forgets is after how long without one an ejection is forgotten.
const forgets = time.Minute

// Outlier decides from the outcomes of exchanges when an endpoint is ejected. It holds no clock: times are given, and
// should not run backwards. It does not know the pool, so it does not keep to [MostEjected]; who asks it does. The zero
// Outlier has seen nothing. It may be used by one goroutine at a time, and copied.
//
// An endpoint is in, ejected, or on trial. It is ejected by the first refused connection or by server errors in a row, for
// Base times the number of its ejections, at most Max. While it is ejected, outcomes do not count: they are of exchanges
// that had begun before, or that nobody else could take. Then it is on trial: the first success brings it in, the first
// failure of either class ejects it again, for longer. For each minute since the end of the last ejection one is
// forgotten; when all are, a trial ends as if there had been none.
type Outlier struct {
	until     time.Time // end of the last ejection
	ejections int       // as of until
	errors    int       // server errors in a row
	trial     bool      // no success since the last ejection
}

// Note takes the outcome of an exchange that ended at now, and reports whether it ejects the endpoint.
func (o *Outlier) Note(class Class, now time.Time, s OutlierSettings) (eject bool) {
	if now.Before(o.until) {
		return false
	}
	if class == Success {
		o.errors, o.trial = 0, false
		return false
	}
	remembered := o.remembered(now)
	o.errors++
	limit := s.Consecutive5xx
	if limit <= 0 {
		limit = 5
	}
	if class != Refused && o.errors < limit && !(o.trial && remembered > 0) {
		return false
	}
	o.ejections = remembered + 1
	o.until = now.Add(s.lasts(o.ejections))
	o.errors, o.trial = 0, true
	return true
}

// Until is when the ejection ends that the endpoint is under at now, or zero if it is under none.
func (o *Outlier) Until(now time.Time) time.Time {
	if now.Before(o.until) {
		return o.until
	}
	return time.Time{}
}

// remembered is how many ejections count at now, which is not before the end of the last.
func (o *Outlier) remembered(now time.Time) int {
	if o.ejections == 0 {
		return 0
	}
	return o.ejections - int(min(now.Sub(o.until)/forgets, time.Duration(o.ejections)))
}

// lasts is how long the n-th ejection lasts.
func (s *OutlierSettings) lasts(n int) time.Duration {
	base, most := cmp.Or(max(s.Base, 0), time.Second), cmp.Or(max(s.Max, 0), 5*time.Minute)
	if time.Duration(n) > math.MaxInt64/base {
		return most
	}
	return min(base*time.Duration(n), most)
}

// MostEjected is how many endpoints of a pool of n may be ejected at a time: half of them, rounded down. So one of two may
// be, and never the only one.
func MostEjected(n int) int { return max(n, 0) / 2 }
