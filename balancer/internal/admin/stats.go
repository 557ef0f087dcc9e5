package admin

import (
	"net/http"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// Stats is the answer of /api/v1/stats: counters since the daemon started, for whoever computes rates from two of them. With
// ?service=name there are only those of that service, and of its endpoints.
type Stats struct {
	At time.Time `json:"at"`
	// Bounds are the upper bounds of the buckets, in seconds; the last bucket, which has none, holds what is longer.
	Bounds    []float64       `json:"bounds"`
	Total     ServiceStats    `json:"total"` // what reached no service included
	Services  []ServiceStats  `json:"services"`
	Endpoints []EndpointStats `json:"endpoints,omitempty"`
}

// ServiceStats are the counters of a service.
type ServiceStats struct {
	Name      string   `json:"name,omitempty"`
	InFlight  int      `json:"in_flight"`
	Requests  uint64   `json:"requests"`
	Errors    uint64   `json:"errors"` // answered with a status of 500 and more
	Buckets   []uint64 `json:"buckets"`
	Sum       float64  `json:"sum"` // seconds
	Instances int      `json:"instances"`
	Ready     int      `json:"ready"`
}

// EndpointStats are those of attempts on an endpoint; their time is that to the head of the answer.
type EndpointStats struct {
	Service  string   `json:"service"`
	ID       string   `json:"id"`
	Address  string   `json:"address"`
	InFlight int      `json:"in_flight"`
	Requests uint64   `json:"requests"`
	Errors   uint64   `json:"errors"` // no answer, or a status of 500 and more
	Buckets  []uint64 `json:"buckets"`
	Sum      float64  `json:"sum"`
}

// statsBounds are the bounds of every second fine bucket: a quantile read from them is off by a fifth at most.
var statsBounds = func() (list []float64) {
	for i := 0; i < pool.FineBuckets-1; i += 2 {
		list = append(list, pool.FineBound(i))
	}
	return list
}()

// buckets are those of [statsBounds]; none when nothing was counted.
func buckets(v *pool.HistogramView) []uint64 {
	if v.Count() == 0 {
		return []uint64{}
	}
	list := make([]uint64, len(statsBounds)+1)
	for i, n := range v.Fine {
		list[(i+1)/2] += n
	}
	return list
}

// add adds what a service has counted.
func (s *ServiceStats) add(v *pool.Service) {
	t := v.Totals()
	s.InFlight += v.InFlight()
	s.Requests += t.Requests
	s.Errors += t.Errors
	s.Sum += t.Durations.Sum.Seconds()
	list := buckets(&t.Durations)
	if len(s.Buckets) == 0 {
		s.Buckets = list
		return
	}
	for i, n := range list {
		s.Buckets[i] += n
	}
}

func (a *API) stats(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("service")
	list, err := a.Control.Services(r.Context(), name)
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	if name != "" && len(list) == 0 {
		problem(w, http.StatusNotFound, "no service "+name+" is known")
		return
	}
	out := Stats{At: time.Now(), Bounds: statsBounds, Services: make([]ServiceStats, 0, len(list))}
	if name == "" {
		out.Total.add(a.Unrouted)
	}
	for _, v := range list {
		s := ServiceStats{Name: v.Name, Instances: len(v.Instances)}
		s.add(v.Shared)
		out.Total.add(v.Shared)
		for _, in := range v.Instances {
			if in.Ready() {
				s.Ready++
			}
			if name == "" {
				continue
			}
			e := EndpointStats{Service: v.Name, ID: in.Record.ID, Address: in.Endpoint.Name, InFlight: in.Endpoint.InFlight(), Buckets: []uint64{}}
			if st := in.Endpoint.PeekStats(); st != nil {
				v := st.View()
				e.Requests, e.Errors = st.Outcomes()
				e.Buckets, e.Sum = buckets(&v.Durations), v.Durations.Sum.Seconds()
			}
			out.Endpoints = append(out.Endpoints, e)
		}
		out.Services = append(out.Services, s)
		out.Total.Instances += s.Instances
		out.Total.Ready += s.Ready
	}
	reply(w, r, http.StatusOK, out)
}
