// Package telemetry is the one place for the names and labels of metrics and for the access log.
//
// It imports nothing of this module: whoever has figures hands them over as a [Sample] when metrics are scraped, so that
// counting costs the data plane an atomic addition and nothing else.
package telemetry

import (
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// States are the values of the label "state". What membership calls ready is up here, as elsewhere.
var States = []string{"up", "starting", "draining", "suspect", "ejected", "down", "replaced"}

// family is what there is to say of a metric. Help ends up in the exposition, Use in the documentation.
type family struct {
	*prometheus.Desc
	Name, Kind, Help, Use string
	Labels                []string
}

const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
)

// families are all metrics of this package, in the order of the documentation.
var families []*family

func define(kind, name, help, use string, labels ...string) *family {
	f := &family{prometheus.NewDesc("rota_"+name, help, labels, nil), "rota_" + name, kind, help, use, labels}
	families = append(families, f)
	return f
}

var (
	httpRequests = define(counter, "http_requests_total", "Requests answered, by service, status, method and protocol.",
		"The rate and the errors as clients see them. What reached no service has service=\"_other\".", "service", "code", "method", "protocol")
	httpDuration = define(histogram, "http_request_duration_seconds", "Time from the first byte of a request to the last of its answer.",
		"Latency as clients see it; tunnels are not in it.", "service")
	httpInFlight = define(gauge, "http_requests_in_flight", "Requests being served.", "", "service")
	httpFailures = define(counter, "http_failures_total", "Exchanges that failed, by the reason in X-Rota-Reason.",
		"Why an answer is not the instance's: see the table of reasons in operations.md.", "service", "reason")
	httpBytes = define(counter, "http_bytes_total", "Bytes of requests (in) and answers (out), heads included.", "", "service", "direction")
	overhead  = define(histogram, "proxy_overhead_seconds", "What of a request's time was not waiting for the head of the instance's answer.",
		"Our own work, queueing, earlier attempts, and moving bodies at the client's pace.", "service")
	retries = define(counter, "retries_total", "Attempts after the first, by why, and what became of them: answered, failed, or no_budget when there was none.",
		"no_budget says that the service fails more than retries may mend.", "service", "reason", "outcome")

	upRequests  = define(counter, "upstream_requests_total", "Attempts on an upstream, by class of its answer; \"error\" is none.", "", "service", "upstream", "code")
	upDuration  = define(histogram, "upstream_duration_seconds", "Time from sending a request to the head of the answer.", "Which instance is slow.", "service", "upstream")
	upInFlight  = define(gauge, "upstream_in_flight", "Exchanges on an upstream.", "", "service", "upstream")
	upErrors    = define(counter, "upstream_errors_total", "Attempts without an answer, by reason.", "", "service", "upstream", "kind")
	upEjections = define(counter, "ejections_total", "Times an upstream was taken out of its pool, by reason: refused, failures_in_a_row, failure_rate, flapping.",
		"", "service", "upstream", "reason")
	upState = define(gauge, "upstream_state", "1 for the state an upstream is in.", "Count what is up: `sum by (service) (rota_upstream_state{state=\"up\"})`.",
		"service", "upstream", "state")
	upWeight = define(gauge, "upstream_weight", "The weight of an upstream: what an operator has given it, else what it asks for.", "", "service", "upstream")
	upInfo   = define(gauge, "upstream_info", "Always 1; the labels say what an upstream is.", "Join it to the others by service and upstream.",
		"service", "upstream", "id", "zone", "version")

	openConnections = define(gauge, "open_connections", "Open client connections.", "", "listener")
	accepted        = define(counter, "connections_accepted_total", "Client connections accepted.", "", "listener")
	refused         = define(counter, "connections_refused_total", "Client connections closed at once, for the listener's limits.", "", "listener")
	failed          = define(counter, "connections_failed_total", "Client connections that did not get as far as a request, by reason: proxy_header, tls, timeout, closed.",
		"The log of level debug says more.", "listener", "reason")
	tunnels        = define(gauge, "tunnels", "Open tunnels: WebSockets and other upgraded connections.", "")
	shedding       = define(gauge, "shedding", "1 while requests are refused for want of CPU or memory.", "")
	loopLag        = define(gauge, "loop_lag_seconds", "How long what is ready waits for its loop, at most.", "Rises when the CPU is not enough.")
	certificateEnd = define(gauge, "certificate_not_after_timestamp_seconds", "When a listener's certificate ends.", "", "file", "names")
	logDropped     = define(counter, "access_log_dropped_total", "Access log lines lost because the log was too slow, or full.", "")
	spansDropped   = define(counter, "spans_dropped_total", "Spans lost, by reason: slow when the collector was slower than the traffic, failed when they could not be sent.",
		"The log says why they could not be sent.", "reason")
	adminRefused = define(counter, "admin_refused_total", "Requests of the admin API that were refused, by reason: token, host, origin.",
		"Somebody tries, or Prometheus, the proxy before the API or a page is not set up right; the log names some.", "reason")

	regConnected   = define(gauge, "registry_connected", "1 while the registry is in reach.", "0 changes nothing for requests: the last table serves.")
	regSynced      = define(gauge, "registry_synced", "1 once a table was built from the registry.", "")
	regRevision    = define(gauge, "registry_revision", "Revision of the registry that the table shows.", "Compare balancers with one another.")
	regEvents      = define(counter, "registry_events_total", "Changes received from the registry.", "", "type")
	regRelists     = define(counter, "registry_relists_total", "Times the whole content of the registry was received, by reason: start, outage, store, gap.", "", "reason")
	regQuarantined = define(gauge, "registry_invalid_records", "Keys set aside because they cannot be read.", "rota status names them.")
	regInstances   = define(gauge, "registry_instances", "Instances registered.", "")
	regLastSync    = define(gauge, "registry_last_sync_timestamp_seconds", "When the registry was last heard of.", "")
	regLease       = define(gauge, "registry_lease_ttl_seconds", "How long the daemon's own lease runs without being kept alive.", "")
	regDoubted     = define(gauge, "upstreams_doubted", "Upstreams in no good condition: suspects, ejected, down, or not proven yet.", "")
	regBrakes      = define(gauge, "brakes_engaged", "Services that lost many of their records at once.", "")
	regPanics      = define(gauge, "panics_engaged", "Services so few of which are in a good condition that all of them get requests.", "")
	tables         = define(counter, "tables_published_total", "Tables made current.", "")

	configReloads = define(counter, "config_reloads_total", "Attempts to read the configuration anew, by result: ok or failed.", "", "result")
	configGood    = define(gauge, "config_last_reload_successful", "1 unless the last attempt failed; then the old configuration serves.", "")
	configLast    = define(gauge, "config_last_reload_success_timestamp_seconds", "When the configuration in effect was read.", "")

	eventToRoute = define(histogram, "registry_event_to_route_seconds", "Time from receiving a change of the registry to the table that shows it.", "")
	buildInfo    = define(gauge, "build_info", "Always 1; the labels say what runs.", "", "version", "goversion")
)

// Metrics serves metrics in Prometheus' formats. Use [NewMetrics].
type Metrics struct {
	registry     *prometheus.Registry
	source       func() Sample
	eventToRoute prometheus.Histogram

	mu       sync.Mutex
	departed map[[2]string]*departed // upstreams that were in the last scrape, by service and name
}

// departed is an upstream that was there at the last scrape, or a while ago.
type departed struct {
	Upstream
	gone time.Time // zero while it is there
}

const (
	// grace is how long an upstream that has gone is still shown, so that its last figures are seen.
	grace = 5 * time.Minute
	// mostDeparted bounds how many of them are.
	mostDeparted = 10_000
)

// NewMetrics makes metrics whose figures come from source, which is called at every scrape, perhaps concurrently.
func NewMetrics(version string, source func() Sample) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), source: source, departed: map[[2]string]*departed{}}
	m.eventToRoute = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: eventToRoute.Name, Help: eventToRoute.Help, NativeHistogramBucketFactor: 1.2, NativeHistogramMaxBucketNumber: 100,
		Buckets: []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, 1},
	})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: buildInfo.Name, Help: buildInfo.Help}, buildInfo.Labels)
	build.WithLabelValues(label(version), goVersion()).Set(1)
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

// Handler serves the metrics: as text, as OpenMetrics with exemplars, or as protobuf with native histograms. Of two series that
// look alike one is shown, which promhttp_metric_handler_errors_total counts: that is no reason to show nothing.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError, Registry: m.registry,
	})
}

// Describe implements prometheus.Collector: the set is not fixed.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// sink is where a scrape goes.
type sink chan<- prometheus.Metric

func (ch sink) gauge(f *family, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(f.Desc, prometheus.GaugeValue, v, bounded(labels)...)
}

func (ch sink) count(f *family, n uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(f.Desc, prometheus.CounterValue, float64(n), bounded(labels)...)
}

func (ch sink) histogram(f *family, h *Histogram, labels ...string) {
	if h.Buckets != nil {
		ch <- newHistogram(f, h, bounded(labels))
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	s, ch := m.source(), sink(to)
	for i := range s.Services {
		ch.service(&s.Services[i])
	}
	for _, u := range m.upstreams(s.Upstreams, time.Now()) {
		ch.upstream(&u)
	}
	for _, l := range s.Listeners {
		ch.gauge(openConnections, float64(l.Open), l.Address)
		ch.count(accepted, l.Accepted, l.Address)
		ch.count(refused, l.Refused, l.Address)
		for _, n := range l.Failed {
			ch.count(failed, n.N, l.Address, n.Name)
		}
	}
	ch.gauge(tunnels, float64(s.Tunnels))
	ch.gauge(shedding, truth(s.Shedding))
	ch.gauge(loopLag, s.Lag.Seconds())
	ch.count(logDropped, s.AccessLogDropped)
	ch.count(spansDropped, s.SpansSlow, "slow")
	ch.count(spansDropped, s.SpansFailed, "failed")
	for _, n := range s.AdminRefused {
		ch.count(adminRefused, n.N, n.Name)
	}
	for _, c := range s.Certificates {
		ch.gauge(certificateEnd, float64(c.NotAfter.Unix()), c.File, c.Names)
	}
	ch.count(configReloads, s.Config.Good, "ok")
	ch.count(configReloads, s.Config.Bad, "failed")
	ch.gauge(configGood, truth(!s.Config.Failed))
	if !s.Config.Last.IsZero() {
		ch.gauge(configLast, float64(s.Config.Last.UnixNano())/1e9)
	}
	if s.Registry != nil {
		ch.registry(s.Registry)
	}
}

func (ch sink) service(v *Service) {
	for _, c := range v.Requests {
		ch.count(httpRequests, c.N, v.Name, strconv.Itoa(c.Status), c.Method, c.Protocol)
	}
	for _, n := range v.Failures {
		ch.count(httpFailures, n.N, v.Name, n.Name)
	}
	for _, r := range v.Retries {
		ch.count(retries, r.N, v.Name, r.Reason, r.Outcome)
	}
	ch.gauge(httpInFlight, float64(v.InFlight), v.Name)
	ch.count(httpBytes, v.BytesIn, v.Name, "in")
	ch.count(httpBytes, v.BytesOut, v.Name, "out")
	ch.histogram(httpDuration, &v.Duration, v.Name)
	ch.histogram(overhead, &v.Overhead, v.Name)
}

func (ch sink) upstream(u *Upstream) {
	for class, n := range u.Classes {
		if n > 0 {
			ch.count(upRequests, n, u.Service, u.Upstream, className(class))
		}
	}
	for _, n := range u.Errors {
		ch.count(upErrors, n.N, u.Service, u.Upstream, n.Name)
	}
	for _, n := range u.Ejections {
		ch.count(upEjections, n.N, u.Service, u.Upstream, n.Name)
	}
	ch.gauge(upInFlight, float64(u.InFlight), u.Service, u.Upstream)
	ch.gauge(upWeight, float64(u.Weight), u.Service, u.Upstream)
	ch.gauge(upInfo, 1, u.Service, u.Upstream, u.ID, u.Zone, u.Version)
	ch.histogram(upDuration, &u.Duration, u.Service, u.Upstream)
	state := u.State
	if state == "ready" {
		state = "up"
	}
	for _, s := range States {
		ch.gauge(upState, truth(s == state), u.Service, u.Upstream, s)
	}
}

// upstreams are those that are there, and those that have gone a short while ago: with their last figures, in no state.
func (m *Metrics) upstreams(list []Upstream, now time.Time) []Upstream {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.departed {
		if d.gone.IsZero() {
			d.gone = now
		}
	}
	for _, u := range list {
		m.departed[[2]string{u.Service, u.Upstream}] = &departed{Upstream: u}
	}
	gone := 0
	for key, d := range m.departed {
		if d.gone.IsZero() {
			continue
		}
		if gone++; now.Sub(d.gone) > grace || gone > mostDeparted {
			delete(m.departed, key)
			continue
		}
		u := d.Upstream
		u.State, u.InFlight = "", 0
		list = append(list, u)
	}
	return list
}

func (ch sink) registry(r *Registry) {
	ch.gauge(regConnected, truth(r.Connected))
	ch.gauge(regSynced, truth(r.Synced))
	ch.gauge(regRevision, float64(r.Revision))
	ch.count(regEvents, r.Puts, "put")
	ch.count(regEvents, r.Deletes, "delete")
	for _, n := range r.Relists {
		ch.count(regRelists, n.N, n.Name)
	}
	ch.gauge(regQuarantined, float64(r.Quarantined))
	ch.gauge(regDoubted, float64(r.Doubted))
	ch.gauge(regBrakes, float64(r.Brakes))
	ch.gauge(regPanics, float64(r.Panics))
	ch.gauge(regInstances, float64(r.Instances))
	ch.count(tables, r.Tables)
	if !r.LastSync.IsZero() {
		ch.gauge(regLastSync, float64(r.LastSync.UnixNano())/1e9)
	}
	if r.LeaseTTL > 0 {
		ch.gauge(regLease, r.LeaseTTL.Seconds())
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

// mostLabel is how long a value of a label may be.
const mostLabel = 128

func bounded(labels []string) []string {
	for i, v := range labels {
		labels[i] = label(v)
	}
	return labels
}

// label makes a text fit to be the value of a label: valid UTF-8 of a bounded length.
func label(v string) string {
	if len(v) <= mostLabel && utf8.ValidString(v) {
		return v
	}
	v = strings.ToValidUTF8(v, "\uFFFD")
	if len(v) <= mostLabel {
		return v
	}
	end := mostLabel - len("…")
	for !utf8.RuneStart(v[end]) {
		end--
	}
	return v[:end] + "…"
}
