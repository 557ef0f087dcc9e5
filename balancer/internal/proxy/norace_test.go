//go:build !race

package proxy

const raceEnabled = false

// slower is how much longer things take than without the race detector.
const slower = 1
