package netloop

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a loop waits, so that neither Go's runtime nor the kernel's timers are in its way.
const (
	glance     = 6 * time.Millisecond // less than the runtime grants, more than the tick of most kernels
	quietAfter = 80                   // glances without an event: half a second
	stayEach   = 4 * time.Millisecond // less than half of what the runtime grants
	longest    = time.Second          // wait of a loop that has nothing to do but to keep what it has
)

// wait waits for events. While there were some of late it is a raw call, without the runtime's bookkeeping and without giving this
// loop's P away: under load that happens thousands of times a second, and each time the runtime's monitor would come to take the P, and
// look every few microseconds whether there is another one to take. The collector does not have to wait for it: it preempts by
// a signal, which ends the call. Once nothing has happened for a while, the wait goes through the runtime, which then can sleep; it
// lasts until a deadline has to be enforced.
//
// A glance is longer than the tick of most kernels: a timer that is the next one to expire is written to the hardware when it is set,
// and in a virtual machine that leaves the guest. With one millisecond it cost more than the rest of a wait. It is shorter than what the
// runtime takes for a computation without end: see [loop.stay].
func (l *loop) wait(events []unix.EpollEvent) int {
	later := len(l.later) > 0
	if later || l.quiet < quietAfter {
		milliseconds := uintptr(glance / time.Millisecond)
		if later {
			milliseconds = 0
		}
		n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), milliseconds, 0, 0)
		if e == 0 && n > 0 {
			l.brought()
			return int(n)
		}
		if !later {
			l.quiet++
		}
		return 0 // and so after EINTR
	}
	l.lag.Store(0)
	timeout := -1
	if len(l.conns) > 0 || len(l.listeners) > 0 {
		timeout = int(min(max(time.Duration(l.due-l.tick), Tick), longest)/time.Millisecond) + 1
	}
	n, err := unix.EpollWait(l.ep, events, timeout)
	if err != nil {
		return 0 // EINTR
	}
	if n > 0 {
		l.brought()
	}
	return n
}

// brought notes that a wait has brought something.
func (l *loop) brought() {
	l.quiet, l.due = 0, 0
	l.scheduling.rounds++
}

// stay tells the runtime that this loop is not a computation without end. Whatever runs for 10 ms without a word is taken for one, and
// moved to another thread: for a loop, a stall of some hundred microseconds. goyield lets what waits for this P go
// first, and comes back without waking a thread that would look for work, as [runtime.Gosched] does, and find this loop.
func (l *loop) stay() {
	if l.tick-l.stayed >= int64(stayEach) {
		l.stayed = l.tick
		goyield()
		l.scheduling.follow(l.tick)
	}
}

//go:linkname goyield runtime.goyield
func goyield()
