package netloop

// stick keeps a loop busy.
func (e *loops) stick(until <-chan struct{}) { e.all[1].Post(func() { <-until }) }
