package health

import "math"

// RateOutcomes is how many outcomes an endpoint must have for its share of failures to be compared.
const RateOutcomes = 100

const (
	rateEndpoints  = 5    // that are to be compared, at least
	rateDeviations = 1.9  // from the mean, in standard deviations
	rateMargin     = 0.05 // above the mean, at least: alike endpoints deviate by little, and one of them is always the worst
)

// FailureLimit is the share of failures above which an endpoint stands out among those whose shares are given, each of which
// had [RateOutcomes]. It is more than 1 if there are too few to tell.
func FailureLimit(shares []float64) float64 {
	n := float64(len(shares))
	if n < rateEndpoints {
		return math.Inf(1)
	}
	sum, squares := 0.0, 0.0
	for _, s := range shares {
		sum += s
	}
	mean := sum / n
	for _, s := range shares {
		squares += (s - mean) * (s - mean)
	}
	return mean + max(rateDeviations*math.Sqrt(squares/n), rateMargin)
}
