//go:build linux

package main

import (
	"errors"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// cpus says where things run: load and upstream on the first, the contestant alone on the second. It is nil where
// everything may run everywhere.
var cpus []int

// setApart gives this process, and with it whatever it starts, one of two processors, and lets contestants have one worker.
func setApart() error {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return err
	}
	for cpu := 0; len(cpus) < 2; cpu++ {
		if cpu == len(allowed)*64 {
			return errors.New("-apart needs two processors")
		}
		if allowed.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	workers = 1
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := runOn(id, cpus[0]); err != nil {
			return err
		}
	}
	return nil
}

// startApart calls start on a thread that runs where contestants do: a program runs where the thread did that started it.
func startApart(start func() (*running, error)) (*running, error) {
	if cpus == nil {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := runOn(0, cpus[1]); err != nil {
		return nil, err
	}
	p, err := start()
	return p, errors.Join(err, runOn(0, cpus[0]))
}

// runOn gives a thread a processor; 0 is the calling one.
func runOn(thread, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(thread, &set)
}
