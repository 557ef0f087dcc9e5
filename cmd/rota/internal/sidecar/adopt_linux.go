package sidecar

import "syscall"

// adopt makes this process the parent of those among its descendants that lose theirs, as if it were process 1. Only
// then is it told when the last of the program's group has ended, whatever the init of the container is worth.
func adopt() {
	const setChildSubreaper = 36 // PR_SET_CHILD_SUBREAPER
	syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0)
}
