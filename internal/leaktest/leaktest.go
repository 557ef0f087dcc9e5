// Package leaktest finds what the tests of a package leave behind: goroutines, coroutines among them, and open descriptors.
//
// What is on its way out is waited for. Descriptors are compared where the system lists them, which is Linux.
//
// Its use is one line beside the tests:
//
//	func TestMain(m *testing.M) { leaktest.Main(m) }
package leaktest

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"go.uber.org/goleak"
)

// patience is how long what is on its way out may take.
const patience = 10 * time.Second

// Main runs the tests and ends the process: with their status, or with 1 when they have passed but goroutines or descriptors
// are left that were not there before. Options are for goroutines that cannot end.
func Main(m interface{ Run() int }, options ...goleak.Option) {
	warm()
	before := descriptors()
	status := m.Run()
	http.DefaultClient.CloseIdleConnections() // kept on purpose, and by no test alone
	if status == 0 {
		if err := settled(before, options); err != nil {
			fmt.Fprintln(os.Stderr, "leak:", err)
			status = 1
		}
	}
	os.Exit(status)
}

// warm has the runtime open what it keeps: its poller.
func warm() {
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
}

func settled(before []string, options []goleak.Option) error {
	if err := goleak.Find(options...); err != nil {
		return err
	}
	var more []string
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if more = beyond(before, descriptors()); len(more) == 0 {
			return nil
		}
		if slices.Contains(more, "pipe") {
			runtime.GC() // package net keeps pipes for io.Copy in a sync.Pool
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d open descriptors more than before the tests: %s", len(more), strings.Join(more, ", "))
		}
	}
}

// descriptors is what the open descriptors of this process are, without what tells them apart; nil where the system has no
// list of them.
func descriptors() []string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []string
	for _, e := range entries {
		// The descriptor that the list itself was read from is closed.
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			if kind, _, ok := strings.Cut(target, ":["); ok && (kind == "socket" || kind == "pipe") {
				target = kind // a number follows
			}
			list = append(list, target)
		}
	}
	return list
}

// beyond returns what is in now more often than in before.
func beyond(before, now []string) []string {
	rest := slices.Clone(before)
	var more []string
	for _, d := range now {
		if i := slices.Index(rest, d); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			more = append(more, d)
		}
	}
	return more
}
