package grpcdiscover

import (
	"slices"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rota-lb/rota/balancer/pool"
)

// Name is that of the balancing policy in service configs. Importing this package registers it.
const Name = "rota"

func init() {
	balancer.Register(base.NewBalancerBuilder(Name, pickers{}, base.Config{HealthCheck: true}))
}

// pickers builds a picker for each set of connections that are ready.
type pickers struct{}

// Build implements [base.PickerBuilder].
func (pickers) Build(info base.PickerBuildInfo) balancer.Picker {
	conns := make(map[*pool.Endpoint]balancer.SubConn, len(info.ReadySCs))
	var of instance
	for conn, sc := range info.ReadySCs {
		if in, ok := sc.Address.Attributes.Value(instanceKey{}).(instance); ok {
			conns[in.endpoint], of = conn, in
		}
	}
	if len(conns) == 0 {
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	v := of.latest.Load()
	ready := slices.DeleteFunc(slices.Clone(v.Members), func(m pool.Member) bool { return conns[m.Endpoint] == nil })
	p, err := pool.New(v.Service, v.Policy, ready)
	if err != nil {
		return base.NewErrPicker(err)
	}
	return &picker{p, conns}
}

// picker chooses among connections that are ready.
type picker struct {
	pool  *pool.Pool
	conns map[*pool.Endpoint]balancer.SubConn
}

// Pick implements [balancer.Picker].
func (p *picker) Pick(balancer.PickInfo) (balancer.PickResult, error) {
	e := p.pool.Pick()
	if e == nil { // those connected are about to go
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	service := p.pool.Service
	e.Take()
	tally := service.Tally(0)
	tally.Take()
	begun := time.Now()
	return balancer.PickResult{SubConn: p.conns[e], Done: func(done balancer.DoneInfo) {
		tally.Release()
		e.Release()
		if code, ok := outcome(&done); ok {
			e.Stats().Record(code, time.Since(begun), nil)
		}
	}}, nil
}

// outcome is how a call ended, as an HTTP status; zero is without an answer. What was never begun, and what the caller gave
// up, is none.
func outcome(done *balancer.DoneInfo) (code int, ok bool) {
	switch c := status.Code(done.Err); c {
	case codes.OK:
		return 200, done.BytesReceived
	case codes.Canceled:
		return 0, false
	case codes.Unavailable:
		if !done.BytesReceived {
			return 0, true
		}
		return 503, true
	case codes.DeadlineExceeded:
		return 504, true
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return 500, true
	case codes.Unimplemented:
		return 501, true
	case codes.ResourceExhausted:
		return 429, true
	default: // it is the call that is wrong
		return 400, true
	}
}
