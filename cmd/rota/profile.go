//go:build profile

package main

import (
	"os"
	"runtime/pprof"
	"time"
)

// A binary built with the tag "profile" writes a CPU profile of its first half minute to the file that ROTA_CPUPROFILE
// names. That is how default.pgo is made (make pgo); no other binary has it.
func init() {
	f, err := os.Create(os.Getenv("ROTA_CPUPROFILE"))
	if err != nil || pprof.StartCPUProfile(f) != nil {
		return
	}
	time.AfterFunc(30*time.Second, func() {
		pprof.StopCPUProfile()
		f.Close()
	})
}
