package health

import "testing"

func TestFailureLimit(t *testing.T) {
	for name, tc := range map[string]struct {
		shares []float64
		out    []bool
	}{
		"too few":             {[]float64{0, 0, 0, 1}, []bool{false, false, false, false}},
		"one fails":           {[]float64{0, 0, 0, 0, 1}, []bool{false, false, false, false, true}},
		"one fails a little":  {[]float64{0, 0, 0, 0, 0.04}, []bool{false, false, false, false, false}},
		"one fails more":      {[]float64{0.01, 0.02, 0.01, 0.02, 0.3, 0.01}, []bool{false, false, false, false, true, false}},
		"all fail":            {[]float64{0.9, 1, 1, 0.9, 1}, []bool{false, false, false, false, false}},
		"a few in many fail":  {[]float64{0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0.5}, []bool{false, false, false, false, false, false, false, false, true, true}},
		"nobody, and nothing": {nil, nil},
	} {
		limit := FailureLimit(tc.shares)
		for i, s := range tc.shares {
			if out := s > limit; out != tc.out[i] {
				t.Errorf("%s: %v of %v is out: %v, limit %v", name, s, tc.shares, out, limit)
			}
		}
	}
}
