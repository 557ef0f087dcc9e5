package netloop

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
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
	thread := unix.Gettid()
	if s.never || thread == s.thread {
		return
	}
	now, ok := threadTurns()
	if !ok {
		s.never = s.thread == 0
		return
	}
	if s.thread == 0 {
		s.batch, s.penalty = true, firstTry
	} else {
		setPolicy(s.thread, unix.SCHED_NORMAL)
	}
	s.thread = thread
	s.begin(tick, now)
}

// schedule looks how the loop's thread has fared.
func (s *scheduling) schedule(tick int64) {
	if s.never || s.thread == 0 || tick-s.looked < int64(lookEach) {
		return
	}
	now, ok := threadTurns()
	if !ok {
		return // no descriptor left for it
	}
	d := now.less(s.seen)
	if s.rounds >= max(lookAfter, d.n/2) {
		s.judge(tick, d)
	} else if d.n < lookAfter {
		return
	}
	s.begin(tick, now)
}

// begin sets the policy, and begins to look. The policy is said again each time: another loop may have left this thread.
func (s *scheduling) begin(tick int64, now turns) {
	policy := uint32(unix.SCHED_NORMAL)
	if s.batch {
		policy = unix.SCHED_BATCH
	}
	s.never = !setPolicy(0, policy)
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
		setPolicy(s.thread, unix.SCHED_NORMAL)
	}
}

func (t turns) less(than turns) turns {
	return turns{t.ran - than.ran, t.waited - than.waited, t.n - than.n}
}

// threadTurns reads the turns of the calling thread. It says false where it cannot: some kernels do not count them.
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

// setPolicy sets the policy of a thread, 0 being the calling one, and nothing else; threads and processes that come of it do not inherit
// it. It says false where it may not, or somebody has set one that is neither of ours.
func setPolicy(thread int, policy uint32) bool {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL && attr.Policy != unix.SCHED_BATCH {
		return false
	}
	attr.Policy, attr.Flags = policy, unix.SCHED_FLAG_RESET_ON_FORK
	return unix.SchedSetAttr(thread, attr, 0) == nil
}
