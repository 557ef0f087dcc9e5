//go:build !unix

package main

import "os"

// There are no such signals here; these are never sent.
var (
	reopenSignal   os.Signal = noSignal("reopen")
	handoverSignal os.Signal = noSignal("handover")
)

type noSignal string

func (s noSignal) String() string { return string(s) }
func (s noSignal) Signal()        {}
