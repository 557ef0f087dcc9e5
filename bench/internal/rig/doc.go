// Package rig is what the benchmarks stand on: child processes that never outlive the run, free ports, and the
// kernel's accounts of what a process used. It works on Linux only, where /proc is.
package rig
