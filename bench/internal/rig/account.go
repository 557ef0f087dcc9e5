//go:build linux

package rig

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of /proc/PID/stat: USER_HZ, 100 on every Linux there is.
const tick = 10 * time.Millisecond

// Account is what a process had used at one moment.
type Account struct {
	threads   map[int]time.Duration // on-CPU time by thread: exact
	user, sys time.Duration         // in ticks, of all threads that ever were
}

// Account reads what the process and its descendants have used. Time the kernel spends on loopback inside their own
// calls is theirs.
func (p *Process) Account() (Account, error) {
	pids, err := p.PIDs()
	if err != nil {
		return Account{}, err
	}
	a := Account{threads: map[int]time.Duration{}}
	for _, pid := range pids {
		fields, err := statFields(pid)
		if err != nil {
			return a, err
		}
		a.user += tick * time.Duration(atoi(fields[statUser]))
		a.sys += tick * time.Duration(atoi(fields[statSys]))
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return a, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				continue // the thread ended meanwhile
			}
			a.threads[atoi(filepath.Base(filepath.Dir(file)))] = parseSchedstat(string(data))
		}
	}
	return a, nil
}

// parseSchedstat returns the first figure: nanoseconds on a CPU.
func parseSchedstat(s string) time.Duration {
	first, _, _ := strings.Cut(s, " ")
	return time.Duration(atoi(first))
}

// Since returns the CPU time used between the two moments and the share of it spent in user mode.
func (a Account) Since(before Account) (total time.Duration, userShare float64) {
	user, sys := a.user-before.user, a.sys-before.sys
	if user+sys > 0 {
		userShare = float64(user) / float64(user+sys)
	}
	for tid, used := range a.threads {
		total += used - before.threads[tid]
	}
	for tid := range before.threads {
		if _, alive := a.threads[tid]; !alive {
			return user + sys, userShare // a thread ended with its account: the ticks have it
		}
	}
	if len(a.threads) == 0 {
		total = user + sys // no scheduler statistics in this kernel
	}
	return total, userShare
}

// Positions in /proc/PID/stat after the command's closing parenthesis.
const (
	statState = 0
	statGroup = 2
	statUser  = 11
	statSys   = 12
)

func statFields(pid int) ([]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return parseStat(string(data))
}

// parseStat splits /proc/PID/stat behind the command, which may hold anything.
func parseStat(s string) ([]string, error) {
	i := strings.LastIndexByte(s, ')')
	fields := strings.Fields(s[i+1:])
	if i < 0 || len(fields) <= statSys {
		return nil, fmt.Errorf("unreadable stat %q", s)
	}
	return fields, nil
}

// PIDs are the process and its descendants.
func (p *Process) PIDs() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fields, err := statFields(pid)
		if err == nil && fields[statState] != "Z" && atoi(fields[statGroup]) == p.cmd.Process.Pid {
			out = append(out, pid)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s is gone\n%s", p.Name, p.output)
	}
	return out, nil
}

// PSS is the process's proportional share of memory in bytes, with all descendants. What the kernel holds for it,
// sockets above all, is not in it.
func (p *Process) PSS() (int64, error) {
	pids, err := p.PIDs()
	if err != nil {
		return 0, err
	}
	var total int64
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		total += int64(field(string(data), "Pss:")) << 10
	}
	return total, nil
}

// field is the number that follows a label at the beginning of a line.
func field(text, label string) int {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, label); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				return atoi(f[0])
			}
		}
	}
	return 0
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// System is what the whole machine had used at one moment, in ticks.
type System struct{ Busy, Steal, Total int64 }

// ReadSystem reads /proc/stat.
func ReadSystem() System {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return System{}
	}
	return parseSystem(string(data))
}

func parseSystem(text string) System {
	line, _, _ := strings.Cut(text, "\n")
	var s System
	for i, f := range strings.Fields(line) {
		n := int64(atoi(f))
		switch {
		case i == 0 || i > 8: // the label; guest time is part of user time
			continue
		case i == 8:
			s.Steal += n
		case i != 4 && i != 5: // idle, iowait
			s.Busy += n
		}
		s.Total += n
	}
	return s
}

// Since is the difference of two moments.
func (s System) Since(before System) System {
	return System{s.Busy - before.Busy, s.Steal - before.Steal, s.Total - before.Total}
}

// StealShare is the part of the time that the hypervisor gave to others.
func (s System) StealShare() float64 {
	if s.Total == 0 {
		return 0
	}
	return float64(s.Steal) / float64(s.Total)
}

// BusyTime is the CPU time used by everything on the machine.
func (s System) BusyTime() time.Duration { return tick * time.Duration(s.Busy) }

// Machine describes what a run was measured on.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

// ReadMachine asks the system.
func ReadMachine() Machine {
	m := Machine{CPU: "unknown", Cores: runtime.NumCPU(), Go: strings.TrimPrefix(runtime.Version(), "go")}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		m.Kernel = text(u.Sysname[:]) + " " + kernelVersion(text(u.Release[:]))
	}
	return m
}

// kernelVersion keeps the number of a release: what follows names a distribution or a build.
func kernelVersion(release string) string {
	for i, r := range release {
		if r != '.' && (r < '0' || r > '9') {
			return release[:i]
		}
	}
	return release
}

func text[T int8 | uint8](raw []T) string {
	var b []byte
	for _, c := range raw {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}
