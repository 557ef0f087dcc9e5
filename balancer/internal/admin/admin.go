// Package admin is the admin API: health, metrics, and what the control plane knows, as JSON.
//
// It answers only requests that name this daemon as their host and do not come from a page elsewhere; beyond loopback, it asks for a
// token. Errors are problem documents (RFC 9457).
package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/admin/dashboard"
	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/internal/telemetry"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
)

// API serves the admin API. All fields are required.
type API struct {
	Control *control.Controller
	Metrics *telemetry.Metrics
	Version string
	Started time.Time
	// Tokens are what requests must show, but for /livez, /readyz and the page; none asks for none.
	Tokens Tokens
	// Hosts are names that requests may have as their host, beside those of loopback and the address that they come in on.
	Hosts []string
	// Refused counts the requests that were refused, by reason; Logger gets some of them.
	Refused *pool.Counts[string]
	Logger  *zap.Logger
	// Ready reports whether the daemon takes traffic, and if not, or not fully, why.
	Ready func() (ready bool, reasons []string)
	// Connections is the number of open client connections and of those being served.
	Connections func() (open, serving int)
	// Request reads a request as the proxy would, from its method, URL and header fields. The error says what is wrong.
	Request func(method, url string, header http.Header) (*route.Request, error)
	// Ended is closed when the daemon stops: streams end.
	Ended <-chan struct{}
	// Config is the configuration in effect, as YAML without secrets, and the file it came from; empty is none.
	Config func() (path string, yaml []byte)
	// ReadConfig reads the text of a configuration file as a reload would.
	ReadConfig func(text []byte) (*config.Config, error)
	// Static is what of it only a restart changes.
	Static *config.Static
	// LogLevel is that of the event log.
	LogLevel *zap.AtomicLevel
	// Journal has the exchanges of late.
	Journal *journal.Journal
	// Unrouted counts the requests that reached no service.
	Unrouted *pool.Service
	// Engine and Listeners say what the daemon runs on.
	Engine    string
	Listeners []string
}

// Status is the answer of /api/v1/status.
type Status struct {
	Version     string        `json:"version"`
	Started     time.Time     `json:"started"`
	Ready       bool          `json:"ready"`
	Reasons     []string      `json:"reasons,omitempty"`
	Engine      string        `json:"engine"`
	Listeners   []string      `json:"listeners"`
	Connections int           `json:"connections"`
	Serving     int           `json:"serving"`
	Registry    *Registry     `json:"registry,omitempty"`
	Generation  uint64        `json:"table_generation"`
	Services    int           `json:"services"`
	Instances   int           `json:"instances"`
	Routes      int           `json:"routes"`
	Conflicts   int           `json:"route_conflicts"`
	Quarantined []Quarantined `json:"quarantined,omitempty"`
	// Snapshot says that what is served is from the snapshot file: the registry has not been there yet.
	Snapshot bool `json:"snapshot,omitempty"`
	// Doubted is how many endpoints are in no good condition: suspects, ejected, down, or not proven yet.
	Doubted int     `json:"doubted"`
	Brakes  []Brake `json:"brakes,omitempty"`
	// Orphans are the keys of routes, policies and grants that are in use though the registry does not have them: it is another
	// store than the one that they were written to.
	Orphans []string `json:"orphans,omitempty"`
	// Denied are claims of instances that no grant covers.
	Denied []Denied `json:"denied,omitempty"`
	// Panics are services so few of which are in a good condition that all of them get requests.
	Panics []string `json:"panics,omitempty"`
}

// Brake says that so many records of a service were lost at once that its instances serve on while they answer.
type Brake struct {
	Service string    `json:"service"` // empty is all services together
	Since   time.Time `json:"since"`
	Lost    int       `json:"lost"`
	Of      int       `json:"of"`
}

// Registry is how the daemon stands with the registry.
type Registry struct {
	Connected bool      `json:"connected"`
	Error     string    `json:"error,omitempty"`
	Revision  int64     `json:"revision"`
	StoreID   uint64    `json:"store_id"`
	Member    string    `json:"member,omitempty"` // that is listened to
	LastSync  time.Time `json:"last_sync,omitzero"`
	Prefix    string    `json:"prefix"` // of its keys
}

// Quarantined is a key that was set aside.
type Quarantined struct {
	Key      string `json:"key"`
	Reason   string `json:"reason"`
	Revision int64  `json:"revision"`
	Serving  bool   `json:"last_good_value_in_use"`
	Value    string `json:"value,omitempty"`
}

// Denied is a claim that no grant covers.
type Denied struct {
	Service string `json:"service"`
	Host    string `json:"host,omitempty"`
	Path    string `json:"path,omitempty"`
}

// Dropped is the answer of DELETE /api/v1/orphans.
type Dropped struct {
	Keys []string `json:"keys"`
}

// Released is the answer of /api/v1/services/{service}/release.
type Released struct {
	Gone int `json:"gone"` // suspects that were given up
}

// Service is one service of /api/v1/services.
type Service struct {
	Name      string     `json:"name"`
	Policy    string     `json:"policy"`
	Eligible  int        `json:"eligible"`
	InFlight  int        `json:"in_flight"`
	Instances []Instance `json:"instances"`
}

// Instance is one instance of a service.
type Instance struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	State   string `json:"state"`
	// Since is when it came to that state, if that is known.
	Since     time.Time         `json:"since,omitzero"`
	Reason    string            `json:"reason"`
	Weight    int               `json:"weight"`     // the operator's word, else its own
	OwnWeight int               `json:"own_weight"` // what its record says
	InFlight  int               `json:"in_flight"`
	Zone      string            `json:"zone,omitempty"`
	Version   string            `json:"version,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	// Extra are the fields of its record that this version does not know.
	Extra       map[string]json.RawMessage `json:"extra,omitempty"`
	Key         string                     `json:"key,omitempty"`
	Static      bool                       `json:"static,omitempty"`
	Revision    int64                      `json:"revision,omitempty"`
	Lease       string                     `json:"lease,omitempty"`
	Incarnation string                     `json:"incarnation,omitempty"`
	// Until is when its state ends by itself.
	Until time.Time `json:"until,omitzero"`
	// Latency is the mean time to the head of its answers, in seconds, since the daemon runs; zero when there were none.
	Latency float64 `json:"latency,omitempty"`
	// Check is the outcome of the last probe.
	Check *Check `json:"check,omitempty"`
	// Override is what an operator has said about it.
	Override *Word `json:"override,omitempty"`
	// Ramp is its slow start, while it is in one.
	Ramp *Ramp `json:"ramp,omitempty"`
	// LeaseLeft is how many seconds its lease runs if nobody keeps it alive. It is only asked for of a single instance.
	LeaseLeft *float64 `json:"lease_left,omitempty"`
}

// Word is an operator's word about an instance.
type Word struct {
	Drain  bool `json:"drain,omitempty"`
	Weight *int `json:"weight,omitempty"` // instead of its own
}

// Ramp is the slow start of an instance.
type Ramp struct {
	Weight int       `json:"weight"` // that it has by now
	Until  time.Time `json:"until"`
}

// Check is the outcome of a probe.
type Check struct {
	At      time.Time `json:"at"`
	OK      bool      `json:"ok"`
	Text    string    `json:"text,omitempty"` // what went wrong
	Seconds float64   `json:"seconds"`
}

// Routes is the answer of /api/v1/routes.
type Routes struct {
	Routes    []Route    `json:"routes"`
	Conflicts []Conflict `json:"conflicts,omitempty"`
}

// Route is one route.
type Route struct {
	Name     string `json:"name"`
	Source   string `json:"source"`
	Host     string `json:"host,omitempty"`
	Path     string `json:"path,omitempty"`
	Service  string `json:"service"`
	Strip    bool   `json:"strip_prefix,omitempty"`
	Priority int    `json:"priority,omitempty"`
	Timeout  string `json:"timeout,omitempty"`
	// Revision is that of its key in the registry, or of the grant that covers it; zero when it is from the file.
	Revision int64 `json:"revision,omitempty"`
}

// Conflict is a route that never matches because another takes all its requests.
type Conflict struct {
	Winner Route `json:"winner"`
	Loser  Route `json:"loser"`
}

// Handler returns the API.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	open := map[string]bool{"/": true} // to anybody: they say nothing
	for _, r := range a.resources() {
		if r.writes() {
			r.do = bounded(r.do)
		}
		open[r.path] = r.probe
		mux.HandleFunc(r.method+" "+r.path, r.do)
	}
	mux.HandleFunc("GET /{$}", dashboard.Page)
	mux.HandleFunc("GET /assets/{file}", dashboard.Asset)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		problem(w, http.StatusNotFound, "no such resource; /api/v1/openapi.json lists them")
	})
	return a.admit(func(path string) bool { return open[path] || strings.HasPrefix(path, "/assets/") }, mux)
}

// bounded bounds what is read of a body.
func bounded(do http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
		do(w, r)
	}
}

func (a *API) livez(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) }

// Readiness is the answer of /readyz.
type Readiness struct {
	Status  string   `json:"status"` // ready, degraded, not ready
	Reasons []string `json:"reasons"`
}

func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	ready, reasons := a.Ready()
	status, word := http.StatusOK, "ready"
	switch {
	case !ready:
		status, word = http.StatusServiceUnavailable, "not ready"
	case len(reasons) > 0:
		word = "degraded"
	}
	reply(w, r, status, Readiness{word, reasons})
}

func (a *API) status(w http.ResponseWriter, r *http.Request) {
	c, err := a.Control.Status(r.Context())
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	ready, reasons := a.Ready()
	open, serving := a.Connections()
	s := Status{
		Version: a.Version, Started: a.Started, Ready: ready, Reasons: reasons, Engine: a.Engine, Listeners: a.Listeners,
		Connections: open, Serving: serving, Generation: c.Generation, Services: c.Services, Instances: c.Instances,
		Routes: c.Routes, Conflicts: c.Conflicts, Doubted: c.Doubted, Snapshot: c.Snapshot, Panics: c.Panics, Orphans: c.Orphans,
	}
	for _, b := range c.Brakes {
		s.Brakes = append(s.Brakes, Brake(b))
	}
	if c.Registry {
		s.Registry = &Registry{c.Connected, c.LinkError, c.Revision, c.StoreID, c.Member, c.LastSync, a.Control.Prefix}
	}
	for _, d := range c.Denied {
		s.Denied = append(s.Denied, Denied(d))
	}
	for _, q := range c.Quarantined {
		s.Quarantined = append(s.Quarantined, Quarantined{q.Key, q.Reason, q.Revision, q.Serving, string(q.Value)})
	}
	reply(w, r, http.StatusOK, s)
}

func (a *API) services(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("service")
	list, weights, err := a.instances(r.Context(), name)
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	out := make([]Service, 0, len(list))
	for _, s := range list {
		v := Service{Name: s.Name, Policy: s.Policy, Eligible: s.Eligible, InFlight: s.Shared.InFlight(), Instances: []Instance{}}
		for _, in := range s.Instances {
			v.Instances = append(v.Instances, instance(in, weights[in.Endpoint]))
		}
		out = append(out, v)
	}
	switch {
	case name == "":
		reply(w, r, http.StatusOK, out)
	case len(out) == 0:
		problem(w, http.StatusNotFound, "no service "+name+" is known")
	default:
		reply(w, r, http.StatusOK, out[0])
	}
}

// instances are the services with their instances, and what weights they have that are not their own.
func (a *API) instances(ctx context.Context, service string) ([]control.Service, map[*pool.Endpoint]control.Weight, error) {
	list, err := a.Control.Services(ctx, service)
	if err != nil {
		return nil, nil, err
	}
	weights, err := a.Control.Weights(ctx, service)
	return list, weights, err
}

// release gives the suspects of a service up.
func (a *API) release(w http.ResponseWriter, r *http.Request) {
	gone, err := a.Control.ReleaseBrake(r.Context(), by(r), r.PathValue("service"))
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	reply(w, r, http.StatusOK, Released{gone})
}

// dropOrphans gives up what the registry does not have.
func (a *API) dropOrphans(w http.ResponseWriter, r *http.Request) {
	keys, err := a.Control.GiveUpOrphans(r.Context(), by(r))
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	reply(w, r, http.StatusOK, Dropped{append([]string{}, keys...)})
}

func instance(in control.Instance, weight control.Weight) Instance {
	own := in.Record.EffectiveWeight()
	v := Instance{
		ID: in.Record.ID, Address: in.Record.Address, State: string(in.Verdict.State), Reason: in.Verdict.Reason,
		Weight: weight.Of(own), OwnWeight: own, InFlight: in.Endpoint.InFlight(), Zone: in.Record.Zone,
		Version: in.Record.Version, Metadata: in.Record.Metadata, Extra: in.Record.Extra, Key: in.Key, Static: in.Static,
		Revision: in.ModRevision, Incarnation: in.Record.Incarnation, Since: in.Since, Until: in.Until,
	}
	if st := in.Endpoint.PeekStats(); st != nil {
		d := st.View().Durations
		if n := d.Count(); n > 0 {
			v.Latency = d.Sum.Seconds() / float64(n)
		}
	}
	if r := in.Probed; r != nil {
		v.Check = &Check{At: r.At, OK: r.Err == nil, Seconds: r.Took.Seconds()}
		if r.Err != nil {
			v.Check.Text = r.Err.Error()
		}
	}
	if weight.Override != (config.Override{}) {
		v.Override = (*Word)(&weight.Override)
	}
	if weight.Now > 0 && weight.Now < v.Weight { // not where all are new
		v.Ramp = &Ramp{weight.Now, weight.Until}
	}
	if in.Lease != 0 {
		v.Lease = leaseText(in.Lease)
	}
	return v
}

// instance answers with one instance, and asks for its lease.
func (a *API) instance(w http.ResponseWriter, r *http.Request) {
	service, id := r.PathValue("service"), r.PathValue("id")
	list, weights, err := a.instances(r.Context(), service)
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	for _, s := range list {
		for _, in := range s.Instances {
			if in.Record.ID != id {
				continue
			}
			v := instance(in, weights[in.Endpoint])
			if left, err := a.Control.LeaseLeft(r.Context(), in.Lease); err == nil {
				seconds := left.Seconds()
				v.LeaseLeft = &seconds
			}
			reply(w, r, http.StatusOK, v)
			return
		}
	}
	problem(w, http.StatusNotFound, "no instance "+service+"/"+id+" is known")
}

// Config is the answer of /api/v1/config.
type Config struct {
	Path string `json:"path,omitempty"` // of the file; empty when there is none
	YAML string `json:"yaml"`           // what is in effect, defaults included, secrets hidden
}

func (a *API) config(w http.ResponseWriter, r *http.Request) {
	path, text := a.Config()
	reply(w, r, http.StatusOK, Config{path, string(text)})
}

// leaseText writes a lease as etcdctl does.
func leaseText(id int64) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[15-i] = digits[uint64(id)>>(4*i)&15]
	}
	return string(b[:])
}

func (a *API) routes(w http.ResponseWriter, r *http.Request) {
	out := Routes{Routes: []Route{}}
	if rt := a.Control.Router(); rt != nil {
		for _, x := range rt.Routes {
			out.Routes = append(out.Routes, asRoute(x))
		}
		for _, c := range rt.Conflicts {
			out.Conflicts = append(out.Conflicts, Conflict{asRoute(c.Winner), asRoute(c.Loser)})
		}
	}
	reply(w, r, http.StatusOK, out)
}

func asRoute(r *route.Route) Route {
	v := Route{
		Name: r.Name, Source: r.Source.String(), Host: r.Host, Path: r.Path, Service: r.Service,
		Strip: r.Strip, Priority: r.Priority, Revision: r.Revision,
	}
	if r.Exact {
		v.Path = "=" + r.Path
	}
	if r.Timeout > 0 {
		v.Timeout = r.Timeout.String()
	}
	return v
}

func reply(w http.ResponseWriter, r *http.Request, status int, v any) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetIndent("", "  ")
	enc.Encode(v)
	w.Header().Set("Content-Type", "application/json")
	tag := etag(body.Bytes())
	w.Header().Set("ETag", tag)
	if status == http.StatusOK && r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.WriteHeader(status)
	w.Write(body.Bytes())
}

// etag is the entity tag of a representation.
func etag(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + hex.EncodeToString(sum[:12]) + `"`
}

// Problem is what is answered when something has gone wrong (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(Problem{"about:blank", http.StatusText(status), status, detail})
}
