package etcdtest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Option changes the configuration of every member before it starts, for example to enable TLS or a short token
// lifetime. It runs again at each restart.
type Option func(*embed.Config)

// Server is an etcd cluster of one member or more. Its methods fail the test when etcd does not do as told; they are
// for the test's goroutine only.
type Server struct {
	// Members are in order of their names, member0 first.
	Members []*Member

	tb     testing.TB
	client *clientv3.Client
}

// Member is one etcd server of a [Server].
type Member struct {
	Name string
	Dir  string // data directory
	// ClientAddr and PeerAddr are host:port and stay the same over restarts.
	ClientAddr, PeerAddr string

	tb      testing.TB
	opts    []Option
	cluster string // initial cluster
	etcd    *embed.Etcd
	streams *streams
}

// Start runs a single member until the test ends. It returns when the server answers.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	return StartCluster(tb, 1, opts...)
}

// StartCluster runs a cluster of n members until the test ends. It returns when there is a leader.
func StartCluster(tb testing.TB, n int, opts ...Option) *Server {
	tb.Helper()
	// Not tb.TempDir: its clean-up fails the test if a file appears while it deletes.
	dir, err := os.MkdirTemp("", "etcdtest-")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{tb: tb}
	ports, release := reservePorts(tb, 2*n)
	tb.Cleanup(func() {
		s.close()
		release()
		os.RemoveAll(dir)
	})
	var peers []string
	for i := range n {
		m := &Member{
			Name:       fmt.Sprintf("member%d", i),
			ClientAddr: fmt.Sprintf("127.0.0.1:%d", ports[2*i]),
			PeerAddr:   fmt.Sprintf("127.0.0.1:%d", ports[2*i+1]),
			tb:         tb,
			opts:       opts,
		}
		m.Dir = filepath.Join(dir, m.Name)
		peers = append(peers, m.Name+"=http://"+m.PeerAddr)
		s.Members = append(s.Members, m)
	}
	for _, m := range s.Members {
		m.cluster = strings.Join(peers, ",")
	}
	s.Restart()
	return s
}

// Endpoints are the members' client addresses, as host:port.
func (s *Server) Endpoints() []string {
	var out []string
	for _, m := range s.Members {
		out = append(out, m.ClientAddr)
	}
	return out
}

// Client is a client for the test's own look at the store. It is made at the first call and closed with the test.
func (s *Server) Client() *clientv3.Client {
	s.tb.Helper()
	if s.client == nil {
		s.client = NewClient(s.tb, clientv3.Config{Endpoints: s.Endpoints()})
	}
	return s.client
}

// NewClient returns a silent client that is closed with the test.
func NewClient(tb testing.TB, cfg clientv3.Config) *clientv3.Client {
	tb.Helper()
	cfg.Logger = zap.NewNop()
	c, err := clientv3.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// Stop ends every member and keeps their data.
func (s *Server) Stop() {
	s.tb.Helper()
	s.each(func(m *Member) error { m.Stop(); return nil })
}

// Restart starts every member that is not running and returns when there is a leader.
func (s *Server) Restart() {
	s.tb.Helper()
	s.each((*Member).start)
	s.Leader()
}

// Wipe deletes the data of every member; they must be stopped. After Restart the cluster is another, empty one at the
// same addresses, with the same cluster id.
func (s *Server) Wipe() {
	s.tb.Helper()
	for _, m := range s.Members {
		if m.etcd != nil {
			s.tb.Fatalf("etcdtest: wipe: %s is running", m.Name)
		}
		if err := os.RemoveAll(m.Dir); err != nil {
			s.tb.Fatal(err)
		}
	}
}

// Backup copies the data of every member, which must be stopped. Restore puts such a copy back, as an operator does who has
// nothing newer: the same cluster at an older revision.
func (s *Server) Backup() (backup string) {
	s.tb.Helper()
	backup = s.tb.TempDir()
	s.copyData(func(m *Member) (from, to string) { return m.Dir, filepath.Join(backup, m.Name) })
	return backup
}

// Restore replaces the data of every member, which must be stopped, by a copy that Backup made.
func (s *Server) Restore(backup string) {
	s.tb.Helper()
	s.Wipe()
	s.copyData(func(m *Member) (from, to string) { return filepath.Join(backup, m.Name), m.Dir })
}

func (s *Server) copyData(way func(m *Member) (from, to string)) {
	s.tb.Helper()
	for _, m := range s.Members {
		if m.etcd != nil {
			s.tb.Fatalf("etcdtest: copy: %s is running", m.Name)
		}
		from, to := way(m)
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			s.tb.Fatal(err)
		}
		if err := os.Chmod(to, 0o700); err != nil { // or etcd complains
			s.tb.Fatal(err)
		}
	}
}

// Leader waits until there is a leader and returns it.
func (s *Server) Leader() *Member {
	s.tb.Helper()
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		for _, m := range s.Members {
			if m.etcd != nil && m.etcd.Server.MemberID() == m.etcd.Server.Leader() {
				return m
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.tb.Fatal("etcdtest: no leader")
	return nil
}

// each runs f for all members at once, as a cluster needs its peers to get going.
func (s *Server) each(f func(*Member) error) {
	s.tb.Helper()
	errs := make(chan error)
	for _, m := range s.Members {
		go func() { errs <- f(m) }()
	}
	var all error
	for range s.Members {
		all = errors.Join(all, <-errs)
	}
	if all != nil {
		s.tb.Fatal(all)
	}
}

func (s *Server) close() {
	if s.client != nil {
		s.client.Close()
	}
	s.each(func(m *Member) error { m.Stop(); return nil })
}

// Restart starts the member if it is not running and returns when it serves.
func (m *Member) Restart() {
	m.tb.Helper()
	if err := m.start(); err != nil {
		m.tb.Fatal(err)
	}
}

// Stop ends the member, if it is running, and keeps its data.
func (m *Member) Stop() {
	if m.etcd == nil {
		return
	}
	m.streams.stop() // or Close waits for every watch until its request timeout
	m.etcd.Close()
	m.etcd = nil
}

const startTimeout = 20 * time.Second

func (m *Member) start() error {
	if m.etcd != nil {
		return nil
	}
	m.streams = newStreams()
	cfg := embed.NewConfig()
	cfg.Name = m.Name
	cfg.Dir = m.Dir
	cfg.ListenClientUrls = urls(m.ClientAddr)
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.ListenPeerUrls = urls(m.PeerAddr)
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.InitialCluster = m.cluster
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.GRPCAdditionalServerOptions = m.streams.serverOptions()
	for _, o := range m.opts {
		o(cfg)
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("etcdtest: start %s: %w", m.Name, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err = <-e.Err():
	case <-time.After(startTimeout):
		err = errors.New("not ready in time")
	}
	if err != nil {
		e.Close()
		return fmt.Errorf("etcdtest: start %s: %w", m.Name, err)
	}
	m.etcd = e
	return nil
}

// Etcd is the running server, nil when the member is stopped.
func (m *Member) Etcd() *embed.Etcd { return m.etcd }

func urls(addr string) []url.URL { return []url.URL{{Scheme: "http", Host: addr}} }
