//go:build linux

package main

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"
)

func TestFleet(t *testing.T) {
	seen := make(map[string]bool)
	for _, i := range []int{0, 49, 50, 255, 256, 65535, 65536, 99_999, 1<<22 - 1} {
		var v struct {
			Address string
			Weight  int
		}
		if err := json.Unmarshal([]byte(fleetValue(i, 7)), &v); err != nil {
			t.Fatal(err)
		}
		a, err := netip.ParseAddrPort(v.Address)
		if err != nil || !a.Addr().IsLoopback() || seen[v.Address] || seen[fleetKey(i)] || v.Weight != 7 {
			t.Errorf("%d: %+v, %v", i, v, err)
		}
		seen[v.Address], seen[fleetKey(i)] = true, true
	}
	if got := fleetKey(123); got != "/rota/services/fleet-2/i23" {
		t.Error(got)
	}
}

func TestSummarize(t *testing.T) {
	var samples []time.Duration
	for i := 100; i > 0; i-- {
		samples = append(samples, time.Duration(i)*time.Millisecond)
	}
	if got, want := summarize(samples), (latency{51, 100, 100}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
