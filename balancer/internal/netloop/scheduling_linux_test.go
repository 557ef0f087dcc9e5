package netloop

import (
	"io"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func policyOf(thread int) (uint32, error) {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil {
		return 0, err
	}
	return attr.Policy, nil
}

// A loop is SCHED_BATCH, and leaves its threads as they were.
func TestScheduling(t *testing.T) {
	if policy, err := policyOf(0); err != nil || policy != unix.SCHED_NORMAL || !setPolicy(0, policy) {
		t.Skipf("policy %d, %v: loops keep it", policy, err)
	}
	type under struct {
		thread int
		policy uint32
		err    error
	}
	threads := make(chan under, 1)
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil {
			return 0
		}
		policy, err := policyOf(0)
		threads <- under{unix.Gettid(), policy, err}
		c.Write(b[:])
		return time.Minute
	})
	c := r.dial()
	ask := func() under {
		t.Helper()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return <-threads
	}
	now := ask()
	for began := time.Now(); now.policy != unix.SCHED_BATCH; now = ask() {
		if now.err != nil || time.Since(began) > 10*time.Second {
			t.Fatalf("the policy of the loop's thread is %d, not SCHED_BATCH: %v", now.policy, now.err)
		}
	}
	r.stop()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		thread, _ := strconv.Atoi(task.Name())
		if policy, err := policyOf(thread); err == nil && policy == unix.SCHED_BATCH {
			t.Errorf("thread %d is left as SCHED_BATCH; the loop's was %d", thread, now.thread)
		}
	}
}

// A policy that somebody else has set stays.
func TestForeignPolicy(t *testing.T) {
	done := make(chan struct{})
	go func() { // the thread ends with its goroutine
		defer close(done)
		runtime.LockOSThread()
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Error(err)
			return
		}
		attr.Policy = unix.SCHED_IDLE
		if err := unix.SchedSetAttr(0, attr, 0); err != nil {
			t.Log(err)
			return
		}
		defer func() {
			attr.Policy = unix.SCHED_NORMAL
			unix.SchedSetAttr(0, attr, 0)
		}()
		if setPolicy(0, unix.SCHED_BATCH) {
			t.Error("it was set")
		}
		if policy, err := policyOf(0); err != nil || policy != unix.SCHED_IDLE {
			t.Errorf("the policy is %d, %v", policy, err)
		}
	}()
	<-done
}

func TestJudge(t *testing.T) {
	const ms = time.Millisecond
	good := turns{ran: 40 * ms, waited: 60 * ms, n: 600}
	bad := turns{ran: 10 * ms, waited: 90 * ms, n: 30}
	var tick time.Duration
	s := scheduling{batch: true, penalty: firstTry}
	for i, step := range []struct {
		name  string
		after time.Duration
		turns turns
		batch bool
	}{
		{"usual load", 100 * ms, good, true},
		{"long waits of a loop that runs for long", 100 * ms, turns{ran: 40 * ms, waited: 60 * ms, n: 30}, true},
		{"short waits of a loop that hardly runs", 100 * ms, turns{ran: 1 * ms, waited: 90 * ms, n: 300}, true},
		{"nothing", 100 * ms, turns{}, true},
		{"a process that computes", 100 * ms, bad, false},
		{"it still does", 100 * ms, bad, false},
		{"it does no more, perhaps", 800 * ms, good, false},
		{"a try", 200 * ms, good, true},
		{"which fails", 100 * ms, bad, false},
		{"longer now", 1900 * ms, good, false},
		{"another try", 200 * ms, good, true},
		{"which lasts", 5 * time.Second, good, true},
		{"so a failure", 100 * ms, bad, false},
		{"is the first again", 1100 * ms, good, true},
	} {
		tick += step.after
		if s.judge(int64(tick), step.turns); s.batch != step.batch {
			t.Fatalf("step %d, %s: batch is %v", i, step.name, s.batch)
		}
	}
	for range 20 {
		s.batch = true
		s.judge(s.again, bad)
	}
	if s.penalty != lastTry {
		t.Errorf("the longest penalty is %v", s.penalty)
	}
}
