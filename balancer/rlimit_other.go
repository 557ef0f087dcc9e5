//go:build !unix

package balancer

// socketBound is none where there is no limit on descriptors.
func socketBound() int { return 0 }
