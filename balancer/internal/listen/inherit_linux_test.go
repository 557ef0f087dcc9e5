package listen

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nonblocking reports whether accepting from ln returns when nobody is there.
func nonblocking(t *testing.T, ln net.Listener) bool {
	t.Helper()
	raw, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags uintptr
	var failed syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		flags, _, failed = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
	}); err != nil || failed != 0 {
		t.Fatal(err, failed)
	}
	return flags&syscall.O_NONBLOCK != 0
}

// TestHandoverKeepsNonblocking starts a program that knows nothing of hand-overs. The mode belongs to the socket, not to the
// descriptor: were it changed on the way, the loop that accepts here would stand still.
func TestHandoverKeepsNonblocking(t *testing.T) {
	s := new(Sockets)
	defer s.Close()
	ln, err := s.Bind("127.0.0.1:0", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = s.Handover(context.Background(), Handover{Path: "/bin/true", Args: []string{}})
	if err == nil || !strings.Contains(err.Error(), "before it was warm (exit status 0)") {
		t.Error(err)
	}
	if !nonblocking(t, ln) {
		t.Error("the socket blocks after a hand-over")
	}
}

func TestHandoverBrokenOff(t *testing.T) {
	s := new(Sockets)
	defer s.Close()
	ctx, stop := context.WithCancelCause(context.Background())
	reason := errors.New("enough")
	stop(reason)
	err := s.Handover(ctx, Handover{Path: "/bin/sleep", Args: []string{"60"}})
	if !errors.Is(err, reason) {
		t.Error(err)
	}
	s.handing = true
	if err := s.Handover(ctx, Handover{}); !errors.Is(err, ErrHandover) {
		t.Error(err)
	}
	s.handing, s.handed = false, true
	if err := s.Handover(ctx, Handover{}); !errors.Is(err, ErrHanded) {
		t.Error(err)
	}
}

// TestTake has sockets that were passed, and asks for them by name and by address.
func TestTake(t *testing.T) {
	s := new(Sockets)
	defer s.Close()
	pass := func(address string) net.Listener {
		t.Helper()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.inherited = append(s.inherited, inherited{address, ln})
		return ln
	}
	web, also, moved := pass("systemd:web"), pass("systemd:web"), pass("localhost:0")
	pass("systemd:unused")
	for _, c := range []struct {
		address string
		want    net.Listener
	}{
		{also.Addr().String(), also}, {"systemd:web", web}, {"localhost:0", moved},
	} {
		got, err := s.Bind(c.address, 0)
		if err != nil || got != c.want {
			t.Errorf("%s: %v, %v", c.address, got, err)
			continue
		}
		defer got.Close()
	}
	if _, err := s.Bind("systemd:web", 0); err == nil || !strings.Contains(err.Error(), "but unused") {
		t.Error(err)
	}
	s.Unclaimed()
	if _, err := s.Bind("systemd:web", 0); err == nil || !strings.Contains(err.Error(), "FileDescriptorName=web") {
		t.Error(err)
	}
}

func TestAt(t *testing.T) {
	tcp := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	for _, c := range []struct {
		addr    net.Addr
		address string
		want    bool
	}{
		{tcp("::", 80), ":80", true}, {tcp("0.0.0.0", 80), ":80", true}, {tcp("::", 80), "0.0.0.0:80", true},
		{tcp("::", 80), "[::]:80", true}, {tcp("::", 80), "127.0.0.1:80", false}, {tcp("127.0.0.1", 80), ":80", false},
		{tcp("127.0.0.1", 80), "127.0.0.1:80", true}, {tcp("127.0.0.1", 80), "127.0.0.1:81", false},
		{tcp("127.0.0.1", 80), "127.0.0.1:0", false}, {tcp("::1", 80), "[::1]:80", true}, {tcp("::1", 80), "rubbish", false},
		{&net.UnixAddr{Name: "/s"}, "unix:/s", true}, {&net.UnixAddr{Name: "/s"}, "unix:/t", false},
		{&net.UnixAddr{Name: "/s"}, "127.0.0.1:80", false}, {tcp("::1", 80), "unix:/s", false},
	} {
		if got := at(c.addr, c.address); got != c.want {
			t.Errorf("%v for %s: %v", c.addr, c.address, got)
		}
	}
}

// TestUnixFile closes sockets whose file is ours, a successor's, or another's.
func TestUnixFile(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(s *Sockets, path string)
		stays  bool
	}{
		{"ours", func(*Sockets, string) {}, false},
		{"handed over", func(s *Sockets, _ string) { s.handed = true }, true},
		{"replaced", func(_ *Sockets, path string) {
			os.Rename(path, path+".old") // or the next file may get the same inode
			os.WriteFile(path, nil, 0o600)
		}, true},
	} {
		path := filepath.Join(t.TempDir(), "s")
		s := new(Sockets)
		ln, err := s.Bind("unix:"+path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != defaultMode {
			t.Errorf("%s: %v, %v", c.name, info, err)
		}
		c.before(s, path)
		ln.Close()
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: closing the listener removed the file", c.name)
		}
		s.Close()
		if _, err := os.Stat(path); (err == nil) != c.stays {
			t.Errorf("%s: after Close: %v", c.name, err)
		}
	}
}
