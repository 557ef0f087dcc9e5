package netloop

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What x/sys does not name of linux/sched.h.
const (
	schedNormal      = 0
	schedResetOnFork = 0x40000000
)

// When a loop changes how it is scheduled. Beside a process that computes, a loop that is kept from the processor waits for milliseconds
// on average, tens of times as long as it runs. Beside those it works for it waits twice as long as it runs at most, however busy they are.
const (
	lookEach  = 100 * time.Millisecond
	lookAfter = 16                     // turns on the processor: fewer say nothing
	waitsLong = 500 * time.Microsecond // on average, and
	waitsMore = 4                      // times as long as it runs
	firstTry  = time.Second            // after having waited long
	lastTry   = 30 * time.Second
)

// scheduling is how a loop shares a processor. Woken by the first of several messages, a thread interrupts who is about to send the
// others, and is woken for each; as SCHED_BATCH (sched(7)) it lets the other finish, and has all of them in one round. Beside a process that
// computes it would wait for that one's whole slice: a loop that waits long goes back to what is usual, and tries again later, ever more
// seldom. A thread that somebody gave another policy keeps it, and so does one whose policy may not be changed.
type scheduling struct {
	thread  int
	batch   bool
	never   bool
	looked  int64 // tick
	seen    turns // then
	rounds  int64 // since then, that brought something
	again   int64 // tick of the next try, while not batch
	penalty time.Duration
}

// turns is how a thread has had the processor, as the kernel counts it.
type turns struct {
	ran, waited time.Duration
	n           int64
}

// follow takes the loop's policy along when the runtime has moved the loop to another thread. It runs where the loop does, between two
// rounds, as schedule does.
func (s *scheduling) follow(tick int64) {
	thread := gettid()
	if s.never || thread == s.thread {
		return
	}
	if s.thread == 0 {
		policy, err := schedulerOf(0)
		s.never = err != nil || policy != schedNormal && policy != unix.SCHED_BATCH
		s.batch, s.penalty = true, firstTry
	} else {
		setScheduler(s.thread, schedNormal)
	}
	s.thread = thread
	s.begin(tick)
}

// schedule looks how the loop's thread has fared.
func (s *scheduling) schedule(tick int64) {
	if s.never || s.thread == 0 || tick-s.looked < int64(lookEach) {
		return
	}
	now, _ := threadTurns()
	d := now.less(s.seen)
	if s.rounds >= max(lookAfter, d.n/2) {
		s.judge(tick, d)
	} else if d.n < lookAfter {
		return
	}
	s.begin(tick)
}

// begin sets the policy, and begins to look. The policy is said again each time: another loop may have left this thread.
func (s *scheduling) begin(tick int64) {
	if s.never {
		return
	}
	policy := schedNormal
	if s.batch {
		policy = unix.SCHED_BATCH
	}
	now, ok := threadTurns()
	s.never = !ok || !setScheduler(0, policy)
	s.seen, s.looked, s.rounds = now, tick, 0
}

// judge decides how the loop goes on, after it has had those turns.
func (s *scheduling) judge(tick int64, d turns) {
	long := d.waited > time.Duration(d.n)*waitsLong && d.waited > waitsMore*d.ran
	switch {
	case s.batch && long:
		s.batch, s.again = false, tick+int64(s.penalty)
		s.penalty = min(2*s.penalty, lastTry)
	case !s.batch && tick > s.again:
		s.batch = true
	case s.batch && tick > s.again+int64(s.penalty):
		s.penalty = firstTry
	}
}

// end leaves the thread as others expect one.
func (s *scheduling) end() {
	if s.thread != 0 && !s.never {
		setScheduler(s.thread, schedNormal)
	}
}

func (t turns) less(than turns) turns {
	return turns{t.ran - than.ran, t.waited - than.waited, t.n - than.n}
}

// threadTurns reads the turns of the calling thread. It says false where the kernel does not count them.
func threadTurns() (t turns, ok bool) {
	var b [96]byte
	fd, err := unix.Open("/proc/thread-self/schedstat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return t, false
	}
	n, err := unix.Read(fd, b[:])
	unix.Close(fd)
	if err != nil {
		return t, false
	}
	_, err = fmt.Sscan(string(b[:n]), &t.ran, &t.waited, &t.n)
	return t, err == nil
}

func gettid() int {
	tid, _, _ := syscall.RawSyscall(unix.SYS_GETTID, 0, 0, 0)
	return int(tid)
}

func schedulerOf(thread int) (policy int, err error) {
	r, _, e := syscall.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(thread), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(r) &^ schedResetOnFork, nil
}

// setScheduler sets a thread's policy; threads and processes that come of it do not inherit it, where that may be said: it
// may not under systemd's RestrictRealtime.
func setScheduler(thread, policy int) bool {
	var priority int32
	for _, policy := range [...]int{policy | schedResetOnFork, policy} {
		_, _, e := syscall.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(thread), uintptr(policy), uintptr(unsafe.Pointer(&priority)))
		if e == 0 {
			return true
		}
	}
	return false
}
