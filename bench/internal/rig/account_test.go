//go:build linux

package rig

import (
	"context"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	f, err := parseStat("12 (a ) b) S 1 12 12 0 -1 4194304 90 0 0 0 34 56 0 0 20 0 1 0 100 1000 10")
	if err != nil || f[statGroup] != "12" || f[statUser] != "34" || f[statSys] != "56" {
		t.Errorf("%q, %v", f, err)
	}
	if _, err := parseStat("nonsense"); err == nil {
		t.Error("accepted")
	}
}

func TestParseSystem(t *testing.T) {
	got := parseSystem("cpu  100 1 50 1000 5 2 3 7 40 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
	if want := (System{Busy: 156, Steal: 7, Total: 1168}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAccountSince(t *testing.T) {
	ms := time.Millisecond
	before := Account{threads: map[int]time.Duration{1: 5 * ms, 2: 7 * ms}, user: 10 * ms, sys: 0}
	after := Account{threads: map[int]time.Duration{1: 8 * ms, 2: 7 * ms, 3: 2 * ms}, user: 20 * ms, sys: 30 * ms}
	if total, share := after.Since(before); total != 5*ms || share != 0.25 {
		t.Errorf("%v, %v", total, share)
	}
	delete(after.threads, 2)
	if total, _ := after.Since(before); total != 40*ms {
		t.Errorf("with a thread gone the ticks count: %v", total)
	}
}

func TestKernelVersion(t *testing.T) {
	if got := kernelVersion("6.1.0-28-amd64"); got != "6.1.0" {
		t.Error(got)
	}
}

func TestProcess(t *testing.T) {
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := r.Start("sh", []string{"GREETING=hello"}, "sh", "-c", "echo $GREETING; sleep 60 & i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; wait")
	if err != nil {
		t.Fatal(err)
	}
	before := Account{}
	err = p.Ready(t.Context(), func() error {
		if pids, err := p.PIDs(); err != nil || len(pids) < 2 {
			return context.DeadlineExceeded
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	after, err := p.Account()
	if err != nil {
		t.Fatal(err)
	}
	if total, _ := after.Since(before); total <= 0 {
		t.Errorf("a busy process used %v", total)
	}
	if pss, err := p.PSS(); err != nil || pss <= 0 {
		t.Errorf("%d bytes, %v", pss, err)
	}
	p.Stop()
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) { // death takes a moment
		pids, err := p.PIDs()
		if err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("descendants live on: %v", pids)
		}
	}
	if p.Output() != "hello" {
		t.Errorf("output %q", p.Output())
	}
}
