package registryetcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rota-lb/rota/registry"
)

// ErrClosed says that the client was closed.
var ErrClosed = errors.New("etcd client is closed")

// Client is a [registry.Registry] over one etcd cluster. A process needs one; all its methods may be called
// concurrently.
type Client struct {
	opts Options
	keys registry.Keys
	etcd *clientv3.Client
	log  *zap.Logger

	// ctx ends with Close, after the registrations have left.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines that end with ctx

	link  link
	lease keeper
	stats counters

	mu     sync.Mutex // protects what follows
	closed bool
	regs   map[*registration]struct{} // those whose goroutine runs
}

var (
	_ registry.Registry  = (*Client)(nil)
	_ registry.Leases    = (*Client)(nil)
	_ registry.Balancers = (*Client)(nil)
	_ registry.Editor    = (*Client)(nil)
	_ registry.Heard     = (*Client)(nil)
)

// Connect returns a client for the etcd that o and the environment name; see [Options] and [FromEnv]. It does not
// wait for etcd, which may be away: [Client.Check] asks. The error wraps [registry.ErrInvalid] or is about a file that
// could not be read.
func Connect(o Options) (*Client, error) {
	return connect(o, os.Getenv)
}

func connect(o Options, getenv func(string) string) (*Client, error) {
	o, err := FromEnv(o, getenv)
	if err != nil {
		return nil, err
	}
	if o, err = o.complete(); err != nil {
		return nil, err
	}
	o.Endpoints, o.Foreign = slices.Clone(o.Endpoints), slices.Clone(o.Foreign)
	tlsConfig, err := o.tlsConfig()
	if err != nil {
		return nil, err
	}
	c := &Client{
		opts: o,
		keys: registry.Keys{Prefix: o.Prefix},
		log:  o.Logger,
		regs: make(map[*registration]struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.lease.init(c)

	cfg := clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  tlsConfig,
		Username:             o.Username,
		Password:             o.Password,
		DialTimeout:          o.DialTimeout,
		DialKeepAliveTime:    10 * time.Second, // the least that grpc sends
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(), // it logs every retry; what matters is said by us
		DialOptions: []grpc.DialOption{
			// grpc's own pauses grow to two minutes, which is how late the return of etcd would be noticed.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: grpcbackoff.Config{
					BaseDelay:  firstPause,
					Multiplier: 1.6,
					Jitter:     0.2,
					MaxDelay:   min(time.Second, o.TTL/4),
				},
				MinConnectTimeout: o.DialTimeout,
			}),
			grpc.WithChainUnaryInterceptor(c.link.unary),
			grpc.WithChainStreamInterceptor(c.link.stream),
		},
	}
	if c.etcd, err = clientv3.New(cfg); err != nil {
		c.cancel()
		return nil, fmt.Errorf("etcd: %w", err)
	}
	c.link.built.Store(true)
	return c, nil
}

// link sees every call below the etcd client.
type link struct {
	built atomic.Bool
	cause atomic.Pointer[string] // why the last call could not be delivered; nil once one was
}

// unary notes why calls fail: the etcd client reports only that time ran out. It also answers the request for a token
// that clientv3.New makes if there is a password, because New would else wait for etcd and fail without it. The answer
// is a token that no etcd takes, whereupon the client asks for another and repeats the call. An empty one will not do:
// with a client certificate etcd then takes its name for the user.
func (l *link) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if resp, ok := reply.(*pb.AuthenticateResponse); ok && !l.built.Load() {
		resp.Token = "none"
		return nil
	}
	err := invoke(ctx, method, req, reply, cc, opts...)
	l.note(err)
	return err
}

func (l *link) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	l.note(err)
	return s, err
}

func (l *link) note(err error) {
	if err == nil {
		l.cause.Store(nil)
		return
	}
	// grpc packs the error of the last dial into a longer text, quoted.
	if _, why, ok := strings.Cut(status.Convert(err).Message(), "connection error: desc = "); ok {
		if plain, err := strconv.Unquote(why); err == nil {
			why = plain
		}
		why = strings.TrimPrefix(why, "transport: ")
		l.cause.Store(&why)
	}
}

// explain says in one line what a failed call means for whoever runs etcd. errors.Is still finds err.
func (c *Client) explain(err error) error {
	at := strings.Join(c.opts.Endpoints, ", ")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		if len(c.opts.Foreign) > 0 {
			return fmt.Errorf("etcd at %s denies user %q access: %w; grant it read on %s, each with: etcdctl role grant-permission <role> --prefix=true read <prefix>",
				at, c.opts.Username, err, strings.Join(c.prefixes(registry.Scope{}), ", "))
		}
		return fmt.Errorf("etcd at %s denies user %q access: %w; grant a service: etcdctl role grant-permission <role> --prefix=true readwrite %s/services/<service>/; grant the daemon read on %[4]s/",
			at, c.opts.Username, err, c.opts.Prefix)
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return fmt.Errorf("etcd at %s refuses user %q: %w; see ROTA_ETCD_USERNAME and ROTA_ETCD_PASSWORD", at, c.opts.Username, err)
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return fmt.Errorf("etcd at %s asks for a user: %w; set ROTA_ETCD_USERNAME and ROTA_ETCD_PASSWORD", at, err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("etcd at %s takes no writes: %w; compact and defragment it, then: etcdctl alarm disarm", at, err)
	case unreachable(err):
		if why := c.link.cause.Load(); why != nil {
			err = unreachableError{err, *why}
			if strings.Contains(*why, "tls: ") {
				return fmt.Errorf("etcd at %s: %w; see ROTA_ETCD_CACERT, ROTA_ETCD_CERT and ROTA_ETCD_KEY", at, err)
			}
		}
		return fmt.Errorf("etcd unreachable at %s: %w; start it there, or name its address in ROTA_ETCD_ENDPOINTS", at, err)
	}
	return fmt.Errorf("etcd at %s: %w", at, err)
}

// unreachableError shows the cause instead of the error that says only that time ran out.
type unreachableError struct {
	error
	cause string
}

func (e unreachableError) Error() string { return e.cause }
func (e unreachableError) Unwrap() error { return e.error }

func unreachable(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errSilent) {
		return true
	}
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code() == codes.Unavailable
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// Check asks etcd whether it can be read below the prefix, and returns within the dial timeout plus three seconds.
// Its error says what is wrong and what to do. A service that may read its own keys only is told so.
func (c *Client) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.DialTimeout+3*time.Second)
	defer cancel()
	_, err := c.etcd.Get(ctx, c.keys.RangePrefix(registry.Scope{}), clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	return c.explain(err)
}

// LeaseLeft implements [registry.Leases]; etcd tells whole seconds.
func (c *Client) LeaseLeft(ctx context.Context, lease int64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, c.callTimeout())
	defer cancel()
	resp, err := c.etcd.TimeToLive(ctx, clientv3.LeaseID(lease))
	if err != nil {
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return 0, nil
		}
		return 0, c.explain(err)
	}
	return max(0, time.Duration(resp.TTL)*time.Second), nil
}

// Edit implements [registry.Editor].
func (c *Client) Edit(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	for {
		resp, err := c.etcd.Get(ctx, key)
		if err != nil {
			return c.explain(err)
		}
		var old []byte
		var rev int64
		if len(resp.Kvs) > 0 {
			old, rev = resp.Kvs[0].Value, resp.Kvs[0].ModRevision
		}
		value, err := change(old)
		if err != nil || value == nil && rev == 0 {
			return err
		}
		op := clientv3.OpPut(key, string(value))
		if value == nil {
			op = clientv3.OpDelete(key)
		}
		done, err := c.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).Then(op).Commit()
		if err != nil {
			return c.explain(err)
		}
		if done.Succeeded {
			return nil
		}
	}
}

// Etcd is the client below, for keys that are none of the registry's calls. Do not close it.
func (c *Client) Etcd() *clientv3.Client { return c.etcd }

// Prefix is what stands before every key, without a slash at the end.
func (c *Client) Prefix() string { return c.opts.Prefix }

// Endpoints are the endpoints in use.
func (c *Client) Endpoints() []string { return slices.Clone(c.opts.Endpoints) }

// closeTimeout bounds what Close does in etcd.
const closeTimeout = 2 * time.Second

// Close makes every registration leave, revokes the lease and closes the connections. If etcd is away it gives up
// after two seconds, returns the error, and the lease runs out by itself. Watches end with ErrClosed and are waited for,
// so it must not be called from apply. Closing twice is the same as closing once.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.wg.Wait()
		return nil
	}
	c.closed = true
	var regs []*registration
	for r := range c.regs {
		regs = append(regs, r)
	}
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	errs := make(chan error)
	for _, r := range regs {
		go func() { errs <- r.Leave(ctx) }()
	}
	var all error
	for range regs {
		if err := <-errs; err != nil {
			all = err // one of a kind is enough
		}
	}
	if err := c.lease.close(ctx); err != nil {
		all = err
	}
	c.cancel()
	c.wg.Wait()
	c.etcd.Close() // its error is that its context has ended
	return all
}

// callTimeout bounds one attempt at a call that is repeated when it fails.
func (c *Client) callTimeout() time.Duration {
	return max(time.Second, min(c.opts.TTL/2, 5*time.Second))
}

// retry is the pace of grants and puts.
func (c *Client) retry() backoff {
	return backoff{min: firstPause, max: c.opts.TTL / 4}
}

// goroutine runs f until it returns; Close waits for it. It returns false if the client is closed.
func (c *Client) goroutine(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}
