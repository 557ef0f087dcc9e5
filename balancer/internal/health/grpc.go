package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/rota-lb/rota/balancer/pool"
)

// Settings of a client that asks one short question. Its buffers are small: a probe has a client of its own.
var grpcOptions = []grpc.DialOption{
	grpc.WithUserAgent(userAgent),
	grpc.WithNoProxy(),
	grpc.WithDisableRetry(),
	grpc.WithDisableServiceConfig(),
	grpc.WithIdleTimeout(0),
	grpc.WithReadBufferSize(1 << 10),
	grpc.WithWriteBufferSize(1 << 10),
	grpc.WithMaxHeaderListSize(maxHead),
	grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxBody)),
}

// askGRPC asks over a connection that has shaken hands if it is to, and reports as askHTTP does. The connection is closed by
// gRPC.
func (pl *plan) askGRPC(ctx context.Context, conn net.Conn, e *pool.Endpoint) (answered bool, _ error) {
	creds := insecure.NewCredentials()
	if c, ok := conn.(*tls.Conn); ok {
		if c.ConnectionState().NegotiatedProtocol != "h2" {
			return true, errors.New("TLS handshake: it does not speak HTTP/2")
		}
		creds = shaken{creds}
	}
	w := &witness{Conn: conn}
	var given atomic.Bool
	options := append(grpcOptions[:len(grpcOptions):len(grpcOptions)],
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority(pl.hostOf(e)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if given.Swap(true) {
				return nil, errors.New("the connection was lost")
			}
			return w, nil
		}))
	client, err := grpc.NewClient("passthrough:///"+e.Name, options...)
	if err != nil {
		return false, fmt.Errorf("health: %w", err)
	}
	defer client.Close()
	request := &grpc_health_v1.HealthCheckRequest{Service: pl.check.Path}
	answer, err := grpc_health_v1.NewHealthClient(client).Check(ctx, request)
	if err != nil {
		if lost := w.lost.Load(); lost != nil && status.Code(err) == codes.Unavailable && isRefusal(*lost) {
			return false, refused{err}
		}
		code := status.Code(err)
		return code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled, err
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return true, fmt.Errorf("it says %v", answer.GetStatus())
	}
	return true, nil
}

// shaken are credentials for a connection that speaks TLS already.
type shaken struct {
	credentials.TransportCredentials
}

func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (s shaken) Clone() credentials.TransportCredentials { return s }

// witness keeps the first error of a connection, which gRPC tells in words only.
type witness struct {
	net.Conn
	lost atomic.Pointer[error]
}

func (w *witness) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.saw(err)
	return n, err
}

func (w *witness) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.saw(err)
	return n, err
}

func (w *witness) saw(err error) {
	if err != nil {
		w.lost.CompareAndSwap(nil, &err)
	}
}
