package balancer

import (
	"os"
	"syscall"
)

// roomyTable is for how many descriptors the kernel's table of them is made at once. It costs eight bytes for each.
const roomyTable = 1 << 16

// growTable makes the kernel's table of the process's descriptors large before there are many. It doubles as they become more,
// and a process with threads waits for all processors each time: ten milliseconds in which the loop that accepts serves nobody.
func growTable() {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		return
	}
	defer f.Close()
	if fd, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_DUPFD_CLOEXEC, uintptr(min(r.Cur, roomyTable)-1)); errno == 0 {
		syscall.Close(int(fd))
	}
}
