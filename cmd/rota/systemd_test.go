//go:build linux

package main

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A service manager hears when the daemon serves, reads its configuration, is alive, hands over, and stops.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	until := func(want string) {
		t.Helper()
		manager.SetReadDeadline(time.Now().Add(20 * time.Second))
		for {
			var b [4096]byte
			n, err := manager.Read(b[:])
			if err != nil {
				t.Fatalf("nothing says %q: %v", want, err)
			}
			if got := string(b[:n]); got == want || strings.HasPrefix(got, want+"\n") {
				return
			}
		}
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "500000")
	file := write(t, "rota.yaml", "etcd: {disabled: true}\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"off\"}\nlog: {access: \"off\"}\n")
	c := spawn(t, "serve", "-c", file)
	until(fmt.Sprintf("READY=1\nMAINPID=%d", c.Process.Pid))
	until("WATCHDOG=1")
	c.Process.Signal(syscall.SIGHUP)
	until("RELOADING=1")
	until("READY=1")
	c.Process.Signal(syscall.SIGTERM)
	until("STOPPING=1")
	if status := c.exit(); status != 0 {
		t.Errorf("exit %d", status)
	}
}

// A successor is the main process from its first table on. When it dies before it has proved itself, its predecessor is again;
// else that one goes without a word, since it is not the service that stops.
func TestNotifyHandover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	next := func(want string) (rest string) {
		t.Helper()
		manager.SetReadDeadline(time.Now().Add(20 * time.Second))
		for {
			var b [4096]byte
			n, err := manager.Read(b[:])
			if err != nil {
				t.Fatalf("nothing says %q: %v", want, err)
			}
			switch got := string(b[:n]); {
			case strings.HasPrefix(got, want):
				return got[len(want):]
			case strings.HasPrefix(got, "STOPPING=1"):
				t.Fatalf("the service stops before %q", want)
			}
		}
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "500000")
	file := write(t, "rota.yaml", "etcd: {disabled: true}\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"off\"}\nlog: {access: \"off\"}\n")
	c := spawn(t, "serve", "-c", file)
	main := func() (pid int) {
		t.Helper()
		if _, err := fmt.Sscan(next("READY=1\nMAINPID="), &pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	first := main()
	if first != c.Process.Pid {
		t.Fatalf("the main process is %d, want %d", first, c.Process.Pid)
	}
	c.Process.Signal(syscall.SIGUSR2)
	failed := main()
	if failed == first {
		t.Fatal("the successor does not say that it is there")
	}
	syscall.Kill(failed, syscall.SIGKILL)
	if again := main(); again != first {
		t.Fatalf("the main process is %d, want the first again, %d", again, first)
	}
	c.Process.Signal(syscall.SIGUSR2)
	second := main()
	t.Cleanup(func() { syscall.Kill(second, syscall.SIGKILL) })
	c.find("the successor serves")
	next("WATCHDOG=1")
	syscall.Kill(second, syscall.SIGTERM)
	next("STOPPING=1")
	if status := c.exit(); status != 0 { // when both have gone
		t.Errorf("exit %d", status)
	}
}

// The unit is one that systemd understands, and is as closed as it says.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not there")
	}
	const unit = "../../deploy/systemd/rota.service"
	out, err := exec.Command("systemd-analyze", "verify", unit, "../../deploy/systemd/rota.socket").CombinedOutput()
	for line := range strings.Lines(string(out)) {
		// What is not installed here is not the unit's fault.
		if !strings.Contains(line, "/usr/bin/rota is not executable") && !strings.Contains(line, "man rota(1)") {
			t.Errorf("verify: %s (%v)", line, err)
		}
	}
	if out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit).CombinedOutput(); err != nil {
		t.Errorf("an exposure of more than 2.0: %v\n%s", err, out)
	}
}
