package etcdtest

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// streams ends the streams of a server that is about to stop. etcd lets watches and keep-alives run until its request
// timeout of five seconds, which a test need not wait for.
type streams struct {
	ctx  context.Context
	stop context.CancelFunc
}

func newStreams() *streams {
	s := &streams{}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

func (s *streams) serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainStreamInterceptor(
		func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			ctx, cancel := context.WithCancel(ss.Context())
			defer cancel()
			defer context.AfterFunc(s.ctx, cancel)()
			err := handler(srv, stoppable{ss, ctx})
			if s.ctx.Err() != nil {
				return status.Error(codes.Unavailable, "etcdserver: server stopped")
			}
			return err
		})}
}

type stoppable struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stoppable) Context() context.Context { return s.ctx }
