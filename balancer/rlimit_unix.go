//go:build unix

package balancer

import "syscall"

// socketReserve are descriptors that are not for sockets of the data plane: etcd, the admin API, logs, certificates.
const socketReserve = 256

// socketBound is how many sockets the data plane may have open, by the limit on file descriptors, so that running into it
// hurts neither etcd nor the admin API. The runtime has raised the soft limit to the hard one.
func socketBound() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > 1<<30 {
		return 0
	}
	return max(int(r.Cur)-socketReserve, int(r.Cur)/2)
}
