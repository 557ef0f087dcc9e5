package listen

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	unixPrefix    = "unix:"
	systemdPrefix = "systemd:"

	// handoverVariable tells a successor the addresses of the sockets that it gets, as a JSON list. They are its descriptors
	// from firstFD on, followed by the pipe on which it says that it is warm.
	handoverVariable = "ROTA_HANDOVER"
	firstFD          = 3
)

// systemdVariables tell a process what systemd passes to it (sd_listen_fds(3)).
var systemdVariables = []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

// defaultMode are the permissions of unix sockets.
const defaultMode fs.FileMode = 0o660

// Sockets are the listening sockets of a process: those it binds, those that systemd passes to it ([Inherit]), and those that
// it takes over from its predecessor. The zero value has inherited none. Its methods may be called concurrently.
type Sockets struct {
	mu        sync.Mutex
	inherited []inherited // not asked for yet
	bound     []socket
	ready     *os.File // to the predecessor; nil without one
	parent    int      // the predecessor, while it lives
	handing   bool
	handed    bool // a successor has them
}

// inherited is a socket that was passed to this process.
type inherited struct {
	address string // as the predecessor was asked for it, or systemd:name
	ln      net.Listener
}

// socket is a duplicate of a listening socket, kept for a successor. It is a bare descriptor, because an os.File of the
// same socket would make the socket block when it is passed on, under whoever is accepting from it.
type socket struct {
	address string
	fd      int         // -1 where sockets are not handed over
	file    fs.FileInfo // of a unix socket that was bound here, else nil
}

// Inherit takes over what was passed to this process: by a predecessor, else by systemd. It is done once, before other
// processes are started; afterwards the environment does not speak of it any more.
func Inherit() (*Sockets, error) {
	text, succeeds := os.LookupEnv(handoverVariable)
	os.Unsetenv(handoverVariable)
	var system []string
	for _, name := range systemdVariables {
		system = append(system, os.Getenv(name))
		os.Unsetenv(name)
	}
	s := &Sockets{}
	var err error
	if succeeds {
		err = s.succeed(text)
	} else {
		err = s.activate(system[0], system[1], system[2])
	}
	if err != nil {
		s.Unclaimed()
		return nil, err
	}
	return s, nil
}

// succeed takes over the sockets of a predecessor.
func (s *Sockets) succeed(text string) error {
	var addresses []string
	if err := json.Unmarshal([]byte(text), &addresses); err != nil {
		return fmt.Errorf("%s is not for this process: %w", handoverVariable, err)
	}
	for i, a := range addresses {
		if err := s.inherit(a, firstFD+i); err != nil {
			return err
		}
	}
	pipe := firstFD + len(addresses)
	keepPrivate(pipe)
	s.ready, s.parent = os.NewFile(uintptr(pipe), "ready"), os.Getppid()
	return nil
}

// activate takes over the sockets of systemd.
func (s *Sockets) activate(pid, count, names string) error {
	if pid != strconv.Itoa(os.Getpid()) {
		return nil // nothing was passed, or not to us
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return fmt.Errorf("LISTEN_FDS=%q is not a number of sockets", count)
	}
	list := strings.Split(names, ":")
	for i := range n {
		name := "unknown"
		if i < len(list) && list[i] != "" {
			name = list[i]
		}
		if err := s.inherit(systemdPrefix+name, firstFD+i); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sockets) inherit(address string, fd int) error {
	f := os.NewFile(uintptr(fd), address)
	if f == nil {
		return fmt.Errorf("no socket was passed for %s", address)
	}
	defer f.Close() // net.FileListener works on a duplicate, which other processes do not get
	if !listening(fd) {
		return fmt.Errorf("descriptor %d, passed for %s, is no listening socket: it must be of a .socket unit with ListenStream= and Accept=no", fd, address)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("descriptor %d, passed for %s, cannot be used: %w", fd, address, err)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	s.inherited = append(s.inherited, inherited{address, ln})
	return nil
}

// Bind returns a listening socket for an address: host:port, unix:/path, or systemd:name. One that was passed to the process
// for the same address is used; else a new one is bound, a unix socket with the permissions in mode (zero is 0660). A
// duplicate is kept for a successor until Close: closing the listener alone does not end listening. Errors name the remedy.
func (s *Sockets) Bind(address string, mode fs.FileMode) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := socket{address: address}
	ln := s.take(address)
	if ln == nil {
		var err error
		path, isUnix := strings.CutPrefix(address, unixPrefix)
		switch name, systemd := strings.CutPrefix(address, systemdPrefix); {
		case systemd:
			return nil, s.missing(name)
		case isUnix:
			ln, err = bindUnix(path, mode)
		default:
			ln, err = Bind(address)
		}
		if err != nil {
			return nil, err
		}
		if isUnix {
			kept.file, _ = os.Lstat(path) // an abstract socket has none
		}
	}
	var err error
	if kept.fd, err = duplicate(ln.(syscall.Conn)); err != nil {
		ln.Close()
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	s.bound = append(s.bound, kept)
	return ln, nil
}

// take returns the socket that was passed for an address, or nil. One that goes by the same words is preferred to one that
// is merely bound to the same address.
func (s *Sockets) take(address string) net.Listener {
	i := slices.IndexFunc(s.inherited, func(in inherited) bool { return in.address == address })
	if i < 0 && !strings.HasPrefix(address, systemdPrefix) {
		i = slices.IndexFunc(s.inherited, func(in inherited) bool { return at(in.ln.Addr(), address) })
	}
	if i < 0 {
		return nil
	}
	ln := s.inherited[i].ln
	s.inherited = slices.Delete(s.inherited, i, i+1)
	return ln
}

// at reports whether a socket that is bound to addr is what listening on address would give.
func at(addr net.Addr, address string) bool {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		have, ok := addr.(*net.UnixAddr)
		return ok && have.Name == path
	}
	have, ok := addr.(*net.TCPAddr)
	if !ok {
		return false
	}
	want, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || want.Port == 0 || want.Port != have.Port || want.Zone != have.Zone {
		return false
	}
	// Package net binds 0.0.0.0 and no host at all to every address of both families.
	everywhere := want.IP == nil || want.IP.IsUnspecified()
	return everywhere && have.IP.IsUnspecified() || !everywhere && want.IP.Equal(have.IP)
}

func (s *Sockets) missing(name string) error {
	var have []string
	for _, in := range s.inherited {
		if n, ok := strings.CutPrefix(in.address, systemdPrefix); ok {
			have = append(have, n)
		}
	}
	if have == nil {
		return fmt.Errorf("systemd passes no socket %q: start rota from a .socket unit with FileDescriptorName=%s", name, name)
	}
	slices.Sort(have)
	return fmt.Errorf("systemd passes no socket %q, but %s: set FileDescriptorName= in the .socket unit", name, strings.Join(have, ", "))
}

// Close ends listening: it closes the duplicates that are kept for a successor, and what was passed and nobody asked for. The
// files of unix sockets that were bound here are removed, unless a successor has the sockets.
func (s *Sockets) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.bound {
		closeSocket(b.fd)
		if b.file == nil || s.handed {
			continue
		}
		path := strings.TrimPrefix(b.address, unixPrefix)
		if now, err := os.Lstat(path); err == nil && os.SameFile(now, b.file) {
			os.Remove(path)
		}
	}
	s.bound = nil
	s.unclaimed()
}

// Unclaimed closes what was passed and nobody asked for.
func (s *Sockets) Unclaimed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unclaimed()
}

func (s *Sockets) unclaimed() {
	for _, in := range s.inherited {
		in.ln.Close()
	}
	s.inherited = nil
}

// bindUnix binds a unix socket. The file of a dead one is replaced; any other file stays.
func bindUnix(path string, mode fs.FileMode) (net.Listener, error) {
	if mode == 0 {
		mode = defaultMode
	}
	abstract := strings.HasPrefix(path, "@")
	if !abstract {
		if err := removeDead(path); err != nil {
			return nil, err
		}
	}
	// The permissions are there from the moment of binding on, less what the umask takes.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return restrict(c, mode) }}
	ln, err := lc.Listen(context.Background(), "unix", path)
	switch {
	case err == nil:
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("cannot listen on unix:%s: permission denied; the user that rota runs as must be allowed to write to the directory", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("cannot listen on unix:%s: there is no such directory; make it, or set RuntimeDirectory= in the unit", path)
	case errors.Is(err, syscall.EINVAL):
		return nil, fmt.Errorf("cannot listen on unix:%s: the path is too long; about a hundred bytes are allowed", path)
	default:
		return nil, fmt.Errorf("cannot listen on unix:%s: %w", path, err)
	}
	// The file stays when the listener is closed: a successor may be using it.
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if abstract {
		return ln, nil
	}
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		os.Remove(path)
		return nil, fmt.Errorf("cannot listen on unix:%s: %w", path, err)
	}
	return ln, nil
}

// removeDead removes the file of a unix socket that nobody listens on any more, if there is one.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil // binding will say what is wrong
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("cannot listen on unix:%s: a file is there that is no socket; move it away or choose another path", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		fallthrough
	case errors.Is(err, syscall.EAGAIN): // it is too busy to answer
		return fmt.Errorf("cannot listen on unix:%s: another process listens there; stop it (ss -lxp shows it) or choose another path", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("cannot listen on unix:%s: a socket is there that cannot be asked whether it is in use: %w; remove it or choose another path", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot listen on unix:%s: a dead socket is there: %w; remove it", path, err)
	}
	return nil
}
