package health

// Judge makes a verdict of the outcomes of probes, with hysteresis. The zero Judge has seen nothing. It may be used by one
// goroutine at a time, and copied.
type Judge struct {
	known, up bool
	against   int // outcomes in a row that contradict the verdict
}

// Trusted is a Judge whose verdict is up already: of an endpoint that has proven itself before it was watched.
func Trusted() Judge { return Judge{known: true, up: true} }

// Add takes an outcome and returns the verdict, and whether this outcome made it. The first outcome decides alone: an
// endpoint is up after its first pass and down after its first failure, and either counts as a change. Later fall failures
// in a row take it down, and rise passes in a row bring it up; an outcome that agrees with the verdict begins the count
// anew. Less than 1 is 1. Both may differ from call to call; those of the call count.
func (j *Judge) Add(ok bool, rise, fall int) (up, changed bool) {
	switch {
	case !j.known:
		j.known = true
	case ok == j.up:
		j.against = 0
		return j.up, false
	default:
		j.against++
		need := fall
		if ok {
			need = rise
		}
		if j.against < need {
			return j.up, false
		}
	}
	j.up, j.against = ok, 0
	return j.up, true
}

// Up is the verdict. It is false while nothing is known.
func (j *Judge) Up() bool { return j.up }

// Known reports whether there was an outcome.
func (j *Judge) Known() bool { return j.known }
