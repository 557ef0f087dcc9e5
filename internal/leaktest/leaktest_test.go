package leaktest

import (
	"iter"
	"net"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// Each kind of thing that stays open is found, and only while it does.
func TestDescriptors(t *testing.T) {
	if descriptors() == nil {
		t.Skip("no list of descriptors")
	}
	warm()
	before := descriptors()
	for kind, open := range map[string]func() (close func() error, err error){
		"socket": func() (func() error, error) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			return ln.Close, err
		},
		"pipe": func() (func() error, error) {
			r, w, err := os.Pipe()
			w.Close()
			return r.Close, err
		},
		"/dev/null": func() (func() error, error) {
			f, err := os.Open(os.DevNull)
			return f.Close, err
		},
	} {
		end, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if more := beyond(before, descriptors()); len(more) != 1 || !strings.HasPrefix(more[0], kind) {
			t.Errorf("%s is open, found %v", kind, more)
		}
		end()
		if more := beyond(before, descriptors()); len(more) > 0 {
			t.Errorf("%s is closed, found %v", kind, more)
		}
	}
}

// Coroutines that are left are found as goroutines are, whether they were ever resumed or not.
func TestCoroutines(t *testing.T) {
	for _, resumed := range []bool{true, false} {
		next, stop := iter.Pull(func(yield func(int) bool) { yield(1) })
		if resumed {
			next()
		}
		if goleak.Find() == nil {
			t.Errorf("a coroutine was not found (resumed %v)", resumed)
		}
		stop()
		if err := goleak.Find(); err != nil {
			t.Errorf("after its end: %v", err)
		}
	}
}
