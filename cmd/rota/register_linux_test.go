package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// As process 1 of a container the command reaps whoever has lost its parent, and still knows its own program's status.
func TestRegisterAsInit(t *testing.T) {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	try := exec.Command("/bin/true")
	try.SysProcAttr = attr
	if err := try.Run(); errors.Is(err, os.ErrPermission) {
		t.Skip("needs root, for a PID namespace of its own")
	} else if err != nil {
		t.Skipf("no PID namespace to be had: %v", err)
	}
	etcd := etcdtest.Start(t)
	r := registerAs(t, etcd, attr, "", "orphan", "exit=9")
	if r.pid == r.Process.Pid || r.pid > 1000 {
		t.Fatalf("the program has pid %d: it is in no namespace of its own", r.pid)
	}
	r.wait("program", "reaped")
	r.until("ready")
	r.Process.Signal(syscall.SIGTERM)
	r.wait("program", "terminated")
	r.ends(9)
}
