// Package telemetry is the one place for the names and labels of metrics and for the access log.
//
// It imports nothing of this module: whoever has figures hands them over as a [Sample] when metrics are scraped, so that
// counting costs the data plane an atomic addition and nothing else.
package telemetry

import (
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Histogram is a histogram with Prometheus' meaning of bounds: upper ones, inclusive, in seconds. Buckets has one more
// element than Bounds and is not cumulative.
type Histogram struct {
	Bounds  []float64
	Buckets []uint64
	Sum     float64
}

// Count is a number of requests by method and status.
type Count struct {
	Method string
	Status int
	N      uint64
}

// Service are the figures of a service.
type Service struct {
	Name     string
	InFlight int
	Requests []Count
	Duration Histogram
}

// Upstream are the figures of an endpoint.
type Upstream struct {
	Service, Upstream, State string
	InFlight                 int
	// Classes are answers by class of status; index 0 counts attempts without an answer.
	Classes  [6]uint64
	Duration Histogram
}

// Registry are the figures of the control plane.
type Registry struct {
	Connected, Synced     bool
	Revision              int64
	Puts, Deletes, Resets uint64
	Quarantined           int64
	Doubted, Brakes       int64
	Panics                int64
	Instances             int64
	Tables                uint64
	LastSync              time.Time // zero when there was none
}

// Sample is everything at one moment.
type Sample struct {
	Services         []Service
	Upstreams        []Upstream
	Registry         *Registry // nil when there is none
	OpenConnections  int
	AccessLogDropped uint64
	Tunnels          int
	Shedding         bool
	Certificates     []Certificate
}

// Certificate is one that a listener shows.
type Certificate struct {
	File, Names string
	NotAfter    time.Time
}

// States are the values of the label "state".
var States = []string{"ready", "starting", "draining", "replaced"}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("rota_"+name, help, labels, nil)
}

var (
	httpRequests    = desc("http_requests_total", "Requests answered, by service, status and method.", "service", "code", "method")
	httpDuration    = desc("http_request_duration_seconds", "Time from the first byte of a request to the last of its answer.", "service")
	httpInFlight    = desc("http_requests_in_flight", "Requests being served.", "service")
	upRequests      = desc("upstream_requests_total", "Attempts on an upstream, by class of its answer; \"error\" is none.", "service", "upstream", "code")
	upDuration      = desc("upstream_duration_seconds", "Time from sending a request to the head of the answer.", "service", "upstream")
	upInFlight      = desc("upstream_in_flight", "Exchanges on an upstream.", "service", "upstream")
	upState         = desc("upstream_state", "1 for the state an upstream is in.", "service", "upstream", "state")
	openConnections = desc("open_connections", "Open client connections.")
	regConnected    = desc("registry_connected", "1 while the registry is in reach.")
	regSynced       = desc("registry_synced", "1 once a table was built from the registry.")
	regRevision     = desc("registry_revision", "Revision of the registry that the table shows.")
	regEvents       = desc("registry_events_total", "Changes received from the registry.", "type")
	regRelists      = desc("registry_resets_total", "Times the whole content of the registry was received.")
	regQuarantined  = desc("registry_quarantined", "Keys set aside because they cannot be read.")
	regDoubted      = desc("upstreams_doubted", "Upstreams in no good condition: suspects, ejected, down, or not proven yet.")
	regBrakes       = desc("brakes_engaged", "Services that lost many of their records at once.")
	regPanics       = desc("panics_engaged", "Services so few of which are in a good condition that all of them get requests.")
	regInstances    = desc("registry_instances", "Instances registered.")
	regLastSync     = desc("registry_last_sync_timestamp_seconds", "When the registry was last heard of.")
	tables          = desc("tables_published_total", "Tables made current.")
	tunnels         = desc("tunnels", "Open tunnels: WebSockets and other upgraded connections.")
	shedding        = desc("shedding", "1 while requests are refused for want of CPU or memory.")
	certificateEnd  = desc("certificate_not_after_timestamp_seconds", "When a listener's certificate ends.", "file", "names")
	logDropped      = desc("access_log_dropped_total", "Access log lines lost because the log was too slow.")
)

// Metrics serves metrics in Prometheus' formats. Use [NewMetrics].
type Metrics struct {
	registry     *prometheus.Registry
	source       func() Sample
	eventToRoute prometheus.Histogram
}

// NewMetrics makes metrics whose figures come from source, which is called at every scrape, perhaps concurrently.
func NewMetrics(version string, source func() Sample) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), source: source}
	m.eventToRoute = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "rota_registry_event_to_route_seconds",
		Help:    "Time from receiving a change of the registry to the table that shows it.",
		Buckets: []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, 1},
	})
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rota_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": goVersion()},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m, m.eventToRoute, build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func goVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.GoVersion
	}
	return "unknown"
}

// EventToRoute records how long a change waited for its table.
func (m *Metrics) EventToRoute(d time.Duration) { m.eventToRoute.Observe(d.Seconds()) }

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Describe implements prometheus.Collector: the set is not fixed.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.source()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, v := range s.Services {
		for _, c := range v.Requests {
			counter(httpRequests, c.N, v.Name, strconv.Itoa(c.Status), c.Method)
		}
		gauge(httpInFlight, float64(v.InFlight), v.Name)
		v.Duration.collect(ch, httpDuration, v.Name)
	}
	for _, u := range s.Upstreams {
		for class, n := range u.Classes {
			if n > 0 {
				counter(upRequests, n, u.Service, u.Upstream, className(class))
			}
		}
		gauge(upInFlight, float64(u.InFlight), u.Service, u.Upstream)
		u.Duration.collect(ch, upDuration, u.Service, u.Upstream)
		for _, state := range States {
			gauge(upState, truth(u.State == state), u.Service, u.Upstream, state)
		}
	}
	gauge(openConnections, float64(s.OpenConnections))
	counter(logDropped, s.AccessLogDropped)
	gauge(tunnels, float64(s.Tunnels))
	gauge(shedding, truth(s.Shedding))
	for _, c := range s.Certificates {
		gauge(certificateEnd, float64(c.NotAfter.Unix()), c.File, c.Names)
	}
	r := s.Registry
	if r == nil {
		return
	}
	gauge(regConnected, truth(r.Connected))
	gauge(regSynced, truth(r.Synced))
	gauge(regRevision, float64(r.Revision))
	counter(regEvents, r.Puts, "put")
	counter(regEvents, r.Deletes, "delete")
	counter(regRelists, r.Resets)
	gauge(regQuarantined, float64(r.Quarantined))
	gauge(regDoubted, float64(r.Doubted))
	gauge(regBrakes, float64(r.Brakes))
	gauge(regPanics, float64(r.Panics))
	gauge(regInstances, float64(r.Instances))
	counter(tables, r.Tables)
	if !r.LastSync.IsZero() {
		gauge(regLastSync, float64(r.LastSync.UnixNano())/1e9)
	}
}

func className(class int) string {
	if class == 0 {
		return "error"
	}
	return strconv.Itoa(class) + "xx"
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (h Histogram) collect(ch chan<- prometheus.Metric, d *prometheus.Desc, labels ...string) {
	if h.Buckets == nil {
		return
	}
	cumulative := make(map[float64]uint64, len(h.Bounds))
	var total uint64
	for i, n := range h.Buckets {
		total += n
		if i < len(h.Bounds) {
			cumulative[h.Bounds[i]] = total
		}
	}
	ch <- prometheus.MustNewConstHistogram(d, total, h.Sum, cumulative, labels...)
}
