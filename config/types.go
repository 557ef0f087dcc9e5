package config

import (
	"maps"
	"strings"
	"time"
)

// Config is a whole configuration file. Read-only once loaded.
type Config struct {
	Static  `yaml:",inline"`
	Dynamic `yaml:",inline"`
}

// Static is what needs a restart to change.
type Static struct {
	Etcd      Etcd       `yaml:"etcd"`
	Listeners []Listener `yaml:"listeners"`
	Admin     Admin      `yaml:"admin"`
	Snapshot  Snapshot   `yaml:"snapshot"`
	// InstanceNetworks lists the networks ("10.0.0.0/8") and addresses that registered instances may be at; empty is
	// anywhere. Link-local addresses, and those of this daemon's own listeners, are never dialled.
	InstanceNetworks []string `yaml:"instance_networks"`
	// Engine is "loops" (epoll, Linux only) or "goroutines"; empty is the first where it runs, else the second.
	Engine string `yaml:"engine"`
	// Loops is the number of event loops; zero means one per CPU.
	Loops int `yaml:"loops"`
	// DrainDelay is how long the daemon keeps accepting after SIGTERM made it not ready, so that whoever stands in
	// front notices. Default 0s.
	DrainDelay time.Duration `yaml:"drain_delay"`
	// Grace is how long exchanges in flight may take to finish after that; then exit code 3. Default 30s.
	Grace time.Duration `yaml:"grace"`
}

// Dynamic is what a reload (SIGHUP) may change.
type Dynamic struct {
	Routes []Route `yaml:"routes"`
	// Services holds policies by service name.
	Services map[string]Service `yaml:"services"`
	// AutoRoutes adds for every registered service the host <service>.localhost and the path /<service>/, stripped.
	AutoRoutes bool     `yaml:"auto_routes"`
	Timeouts   Timeouts `yaml:"timeouts"`
	Retries    Retries  `yaml:"retries"`
	Limits     Limits   `yaml:"limits"`
	// TrustedProxies lists the networks ("10.0.0.0/8") and addresses whose X-Forwarded-For, -Proto and -Host are
	// believed; from elsewhere they are replaced. "unix" stands for the peers of unix sockets.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// RequestID is the header that carries the id of a request: a client's is kept if it is sane, else one is made.
	// Default X-Request-Id; "off" leaves requests alone.
	RequestID string `yaml:"request_id"`
	Log       Log    `yaml:"log"`
}

// Etcd says where the registry is.
type Etcd struct {
	// Disabled means that there is no registry: serve only what the file says.
	Disabled  bool     `yaml:"disabled"`
	Endpoints []string `yaml:"endpoints"` // host:port or URL; default 127.0.0.1:2379
	Prefix    string   `yaml:"prefix"`    // default /rota
	Username  string   `yaml:"username"`
	Password  string   `yaml:"password" secret:"true"`
	// PasswordFile is read for the password; not together with Password.
	PasswordFile       string        `yaml:"password_file"`
	CACert             string        `yaml:"cacert"` // PEM file
	Cert               string        `yaml:"cert"`   // PEM file, with Key
	Key                string        `yaml:"key"`
	InsecureSkipVerify bool          `yaml:"insecure_skip_verify"`
	DialTimeout        time.Duration `yaml:"dial_timeout"` // default 2s
	// Embedded is an etcd member in this process; without Dir there is none.
	Embedded Embedded `yaml:"embedded"`
	// Foreign lists prefixes at which other products keep instances. Nothing is ever written there.
	Foreign []Foreign `yaml:"foreign"`
}

// Embedded is an etcd member in this process, alone or one of three or five. Services reach it as any other etcd.
type Embedded struct {
	Dir    string `yaml:"dir"`    // of its data; it is made
	Name   string `yaml:"name"`   // of this member; default rota
	Client string `yaml:"client"` // host:port that clients come to; default 127.0.0.1:2379. Beyond loopback it needs CACert and Cert
	// Members are all members by name, each with the host:port at which the others reach it; this one listens there. Empty is this
	// one alone.
	Members map[string]string `yaml:"members"`
	// InitialClusterState is new (default), or existing for a member that joins others who serve already. Once Dir has a member in it, it
	// means nothing.
	InitialClusterState string `yaml:"initial_cluster_state"`
	// Cert and Key are PEM files for clients and members alike, CACert that which theirs have to be signed by; without it
	// nobody is asked for one.
	CACert string `yaml:"cacert"`
	Cert   string `yaml:"cert"`
	Key    string `yaml:"key"`
}

// Scheme is how the member is spoken to.
func (e *Embedded) Scheme() string {
	if e.Cert != "" {
		return "https"
	}
	return "http"
}

// Foreign is a prefix at which another product keeps instances; docs/registration.md says how they are read.
type Foreign struct {
	Prefix string `yaml:"prefix"` // may begin without a slash, as theirs do
	Format string `yaml:"format"` // auto (default), or a name of [codec.Formats]
	// Service is the one that every key <prefix>/<id> belongs to; empty means <prefix>/<service>/<id>.
	Service string `yaml:"service"`
	// Protocol is what the instances speak, if it is not what the format says.
	Protocol string `yaml:"protocol"`
}

// Snapshot is the last good content of the registry, kept for a start while etcd is away.
type Snapshot struct {
	Path string `yaml:"path"` // of the file; its directory is made; empty is none
}

// Listener is a bound address.
type Listener struct {
	// Address is host:port, where an empty host is all addresses; unix:/path; or systemd:name for a socket that systemd
	// passes under that name (FileDescriptorName=).
	Address  string `yaml:"address"`
	Protocol string `yaml:"protocol"` // http (default), https
	// TLS is required with https.
	TLS TLS `yaml:"tls"`
	// ProxyProtocol lists the networks ("10.0.0.0/8") and addresses whose connections must begin with a PROXY protocol
	// header, version 1 or 2. On a unix socket "unix" stands for every peer. Connections from elsewhere have none.
	ProxyProtocol []string `yaml:"proxy_protocol"`
	// MaxConnections bounds the open connections of this listener, and those of one client address (an IPv6 client is
	// its /64); further ones are closed. Zero is no bound.
	MaxConnections          int `yaml:"max_connections"`
	MaxConnectionsPerClient int `yaml:"max_connections_per_client"`
	// Mode are the permissions of a unix socket, octal; default 0660.
	Mode string `yaml:"mode"`
}

// TLS says how a listener does TLS. The files are watched: a changed pair is used for new connections, a bad one is not.
type TLS struct {
	// Certificates are chosen by the names in them; the first is for clients that ask for none of them.
	Certificates []Certificate `yaml:"certificates"`
	MinVersion   string        `yaml:"min_version"` // "1.2" (default), "1.3"
	// ClientCA is a PEM file of authorities whose client certificates are accepted; empty asks for none.
	ClientCA   string `yaml:"client_ca"`
	ClientAuth string `yaml:"client_auth"` // with client_ca: required (default), optional
}

// Certificate is a chain with its key, as PEM files.
type Certificate struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Admin is where the admin API listens.
type Admin struct {
	Address string `yaml:"address"` // default 127.0.0.1:9797; "off" switches it off; beyond loopback it needs a token
	// Token is what requests must show (Authorization: Bearer …), but for /livez and /readyz; TokenFile is read for it.
	Token     string `yaml:"token" secret:"true"`
	TokenFile string `yaml:"token_file"`
	// Tokens are further ones, each by the name of who has it: that is who the record says has changed something.
	Tokens map[string]AdminToken `yaml:"tokens"`
	// Hosts are the names and addresses, without port, that requests may name as their host beside loopback ones and the address that
	// they come in on.
	Hosts []string `yaml:"hosts"`
}

// AdminToken is a token, or the file that it is read from.
type AdminToken struct {
	Token     string `yaml:"token" secret:"true"`
	TokenFile string `yaml:"token_file"`
}

// Log says what is logged and how.
type Log struct {
	Level string `yaml:"level"` // debug, info (default), warn, error
	// Access is where the access log goes: "stdout" (default), "stderr", "off", or a file path, reopened on SIGUSR1. Unlike the rest
	// of Log, a reload does not change it.
	Access string `yaml:"access"`
	// Format is that of the access log: "json" (default), "common", "combined", or a template with variables as nginx calls them.
	Format string `yaml:"format"`
	// Filter takes lines; what it does not take is logged only as a Sample.
	Filter LogFilter `yaml:"filter"`
	// Sample is the share of lines that are logged although no filter takes them: "1%". Default everything, or with a filter
	// nothing. Failures are always logged.
	Sample string `yaml:"sample"`
	// Redact are names of query parameters and header fields whose values are written down nowhere, beside the usual ones: token, key,
	// password ….
	Redact []string `yaml:"redact"`
}

// LogFilter takes lines of the access log: those that any of it is true of.
type LogFilter struct {
	Status      []string      `yaml:"status"`       // "404", "400-499", "5xx"
	MinDuration time.Duration `yaml:"min_duration"` // took so long or longer
	Retried     bool          `yaml:"retried"`      // more than one attempt
	Failed      bool          `yaml:"failed"`       // a status of 500 and more
}

// Timeouts are the defaults of every route. Zero fields take the default named here.
type Timeouts struct {
	Connect      time.Duration `yaml:"connect"`       // 1s
	ResponseHead time.Duration `yaml:"response_head"` // 30s
	IdleBody     time.Duration `yaml:"idle_body"`     // 60s without progress, either direction
	RequestHead  time.Duration `yaml:"request_head"`  // 10s
	KeepAlive    time.Duration `yaml:"keep_alive"`    // 75s idle client connection
	Handshake    time.Duration `yaml:"handshake"`     // 10s for TLS and PROXY protocol together
	Tunnel       time.Duration `yaml:"tunnel"`        // 1h without a byte in either direction of an upgraded connection
	// Request limits a whole exchange, from its head to the last byte of the answer. Zero is no limit.
	Request time.Duration `yaml:"request"`
}

// Retries say when a failed attempt is made again on another instance: when the request was provably not sent, or may be
// repeated, and nothing of an answer has come.
type Retries struct {
	// Attempts is how often a request is tried in all, 1 to 5. Default 3; 1 is never again.
	Attempts int `yaml:"attempts" json:"attempts,omitempty"`
	// Budget is how many retries there may be per hundred requests of a service, beside a few. Default 20.
	Budget int `yaml:"budget" json:"budget,omitempty"`
	// Buffer is the longest request body that is kept to be sent again. Default 16KiB, at most 1MiB.
	Buffer Size `yaml:"buffer" json:"buffer,omitempty"`
}

// Limits protect the daemon and what is behind it.
type Limits struct {
	// Body is the longest request body; zero is no limit. A longer one is answered by 413.
	Body Size `yaml:"body"`
	// MinRate is how many bytes a second a client has to send, or take, of a body on average, once that has taken
	// timeouts.idle_body; slower ones are cut. The time that is spent waiting for the instance does not count: its answers may
	// be as slow as they like. Default 500; "off" is no least rate.
	MinRate string `yaml:"min_rate"`
	// Memory is what the process may use before it sheds load: from 85 % on idle connections are closed early, from 90 % on the busiest
	// clients are answered by 503, from 95 % on everybody. Default: the limit of the control group, or of GOMEMLIMIT, if there is one.
	Memory Size `yaml:"memory"`
	// Shed is how long requests may wait for the CPU, for half a second on end, before some are answered by 503, those of the busiest
	// clients first. Default 500ms; "off" never sheds.
	Shed string `yaml:"shed"`
}

// Size is a number of bytes: 1048576, "1MiB", "16KiB", "2GiB", "10MB".
type Size int64

// Route sends matching requests to a service, or answers them with a redirect. The same schema, as JSON, is read from
// <prefix>/routes/<name>.
type Route struct {
	Name string `yaml:"name" json:"name,omitempty"`
	// Host is exact, "*.example.com" (one or more labels), or empty for any. Without port; matched case-insensitively.
	Host string `yaml:"host" json:"host,omitempty"`
	// Path is a prefix of whole segments ("/cart" matches /cart and /cart/7, not /cartoon), exact when it begins with "="
	// ("=/cart"), or an RE2 regular expression for the whole path when it begins with "~" ("~/users/[0-9]+").
	// Empty means any.
	Path string `yaml:"path" json:"path,omitempty"`
	// Scheme is how the client came, http or https; empty is either. Behind a trusted proxy it is what that says.
	Scheme string `yaml:"scheme" json:"scheme,omitempty"`
	// EncodedSlashes lets this route take paths with %2F or %5C although it looks at more than the whole path; they go on as they came.
	// Without it such a request is answered by 400.
	EncodedSlashes bool `yaml:"encoded_slashes" json:"encoded_slashes,omitempty"`
	// Methods are those that match; empty is any.
	Methods []string `yaml:"methods" json:"methods,omitempty"`
	// Headers and Query hold, by name, what the value must be: itself, "~" and a regular expression for the whole value,
	// or "*" for any value as long as there is one. All must hold.
	Headers map[string]string `yaml:"headers" json:"headers,omitempty"`
	Query   map[string]string `yaml:"query" json:"query,omitempty"`
	// Priority overrides "most specific wins": higher first. Default 0.
	Priority int `yaml:"priority" json:"priority,omitempty"`

	// Service is the name of the service that answers. One of service, split and redirect is required.
	Service string `yaml:"service" json:"service,omitempty"`
	// Split spreads the requests over services, or over versions of them, by weight.
	Split []Share `yaml:"split" json:"split,omitempty"`
	// Redirect answers instead.
	Redirect Redirect `yaml:"redirect" json:"redirect,omitzero"`

	// StripPrefix removes the matched path prefix before forwarding; ReplacePrefix puts another in its place.
	StripPrefix   bool   `yaml:"strip_prefix" json:"strip_prefix,omitempty"`
	ReplacePrefix string `yaml:"replace_prefix" json:"replace_prefix,omitempty"`
	// RequestHeaders are changed on the way to the service, ResponseHeaders on the way back.
	RequestHeaders  HeaderEdit `yaml:"request_headers" json:"request_headers,omitzero"`
	ResponseHeaders HeaderEdit `yaml:"response_headers" json:"response_headers,omitzero"`
	// Mirror sends copies to another service and forgets its answers.
	Mirror Mirror `yaml:"mirror" json:"mirror,omitzero"`

	// Timeout limits the time until the head of an answer has come, over all attempts; zero is no limit but those of
	// timeouts.
	Timeout time.Duration `yaml:"timeout" json:"timeout,omitempty"`
	// Timeouts replace those of the file for this route; request_head, keep_alive and handshake, which pass before a
	// route is known, cannot be among them.
	Timeouts Timeouts `yaml:"timeouts" json:"timeouts,omitzero"`
	// Retries replace those of the file for this route.
	Retries Retries `yaml:"retries" json:"retries,omitzero"`
	// RateLimit bounds the requests of each client.
	RateLimit RateLimit `yaml:"rate_limit" json:"rate_limit,omitzero"`
	// MaxBody replaces limits.body for this route.
	MaxBody Size `yaml:"max_body" json:"max_body,omitempty"`
	// Upgrades are the protocols, beside websocket, that a connection may be upgraded to. "none" forbids websocket too.
	Upgrades []string `yaml:"upgrades" json:"upgrades,omitempty"`
}

// Grant is what the instances of a service may claim. It is read from <prefix>/grants/<service>.
type Grant struct {
	Claims []GrantedClaim `yaml:"claims" json:"claims"`
}

// GrantedClaim covers the claims of a host and below a path.
type GrantedClaim struct {
	// Host is exact, or "*.example.com", which covers every name below it and the wildcard itself; empty covers any host, and
	// claims that name none.
	Host string `yaml:"host" json:"host,omitempty"`
	// Path is a prefix of whole segments; empty covers any.
	Path string `yaml:"path" json:"path,omitempty"`
}

// Covers reports whether a claim of a host and a path is granted.
func (g Grant) Covers(host, path string) bool {
	for _, c := range g.Claims {
		if c.covers(strings.ToLower(host), strings.TrimRight(path, "/")) {
			return true
		}
	}
	return false
}

func (c GrantedClaim) covers(host, path string) bool {
	mine, below := strings.ToLower(c.Host), strings.TrimRight(c.Path, "/")
	if suffix, wild := strings.CutPrefix(mine, "*"); wild {
		if !strings.HasSuffix(host, suffix) || len(host) == len(suffix) {
			return false
		}
	} else if mine != "" && host != mine {
		return false
	}
	return path == below || strings.HasPrefix(path, below+"/")
}

// Share is a part of a split.
type Share struct {
	Service string `yaml:"service" json:"service"`
	// Version and Metadata choose among the instances of the service those that registered the same; empty is all.
	Version  string            `yaml:"version" json:"version,omitempty"`
	Metadata map[string]string `yaml:"metadata" json:"metadata,omitempty"`
	// Weight is relative to the other shares, 0 to 10000.
	Weight int `yaml:"weight" json:"weight"`
}

// Redirect is an answer that sends the client elsewhere.
type Redirect struct {
	// To is the address, in which {scheme}, {host}, {port}, {path}, {query} (with its "?") and {uri} (path and query)
	// stand for those of the request, and {1} … {9} for the groups of the path's regular expression.
	To     string `yaml:"to" json:"to,omitempty"`
	Status int    `yaml:"status" json:"status,omitempty"` // 301, 302, 303, 307, 308 (default)
}

// HeaderEdit changes header fields: those removed first, then those set, which replace what was there.
type HeaderEdit struct {
	Set    map[string]string `yaml:"set" json:"set,omitempty"`
	Remove []string          `yaml:"remove" json:"remove,omitempty"`
}

// Mirror names a service that gets copies of requests whose bodies are short enough to be kept (retries.buffer).
type Mirror struct {
	Service string `yaml:"service" json:"service,omitempty"`
	Percent int    `yaml:"percent" json:"percent,omitempty"` // 1 to 100, default 100
}

// RateLimit is a token bucket for each client. Zero Rate is no limit.
type RateLimit struct {
	Rate  string `yaml:"rate" json:"rate,omitempty"`   // "100/s", "30/m", "1000/h"
	Burst int    `yaml:"burst" json:"burst,omitempty"` // default: the requests of one second, at least 1
	Key   string `yaml:"key" json:"key,omitempty"`     // client (default: its address) or header:Name
}

// Service is the policy of a service. The same schema, as JSON, is read from <prefix>/policies/<service>.
type Service struct {
	// Balance is the policy's name: see pool.Policies. Default least_request.
	Balance string `yaml:"balance" json:"balance,omitempty"`
	// MaxConcurrent bounds the exchanges in flight on one instance; further ones wait, the last come first, at most Queue
	// of them and for at most QueueTimeout. Zero is no bound. Defaults 128 and 1s.
	MaxConcurrent int           `yaml:"max_concurrent" json:"max_concurrent,omitempty"`
	Queue         int           `yaml:"queue" json:"queue,omitempty"`
	QueueTimeout  time.Duration `yaml:"queue_timeout" json:"queue_timeout,omitempty"`
	// IdleTimeout is when instances close idle connections, for those that do not register it.
	IdleTimeout time.Duration `yaml:"idle_timeout" json:"idle_timeout,omitempty"`
	// Protocol is what instances speak that do not register it: http (default) or https.
	Protocol string `yaml:"protocol" json:"protocol,omitempty"`
	// TLS is how to speak to those that speak https.
	TLS UpstreamTLS `yaml:"tls" json:"tls,omitzero"`
	// SendProxyProtocol begins connections with a PROXY protocol header: v1 or v2; empty is none. Such connections are
	// kept for the same client only.
	SendProxyProtocol string `yaml:"send_proxy_protocol" json:"send_proxy_protocol,omitempty"`
	// Check is how instances are checked that do not say it themselves; what they cannot say counts for all of them that have
	// a check. Without it instances are checked that ask for it, and those in doubt.
	Check *Check `yaml:"check" json:"check,omitempty"`
	// SlowStart is how long an instance that comes, or comes back, takes to get its whole share, from a tenth on. Default
	// 10s; "off" is at once. It is never done when all of a pool would do it.
	SlowStart string `yaml:"slow_start" json:"slow_start,omitempty"`
	// Panic is the percentage of the instances, of those that want to serve, below which so few are in a good condition that
	// all get requests. Default 50; -1 is never.
	Panic int `yaml:"panic" json:"panic,omitempty"`
	// Ejection is when an instance is left alone for a while.
	Ejection Ejection `yaml:"ejection" json:"ejection,omitzero"`
	// Overrides are an operator's words about instances, by id: they count before what the instance says itself.
	Overrides map[string]Override `yaml:"overrides" json:"overrides,omitempty"`
	// Instances are static ones, beside those of the registry.
	Instances []StaticInstance `yaml:"instances" json:"instances,omitempty"`
}

// Override is an operator's word about an instance, for every life of its id.
type Override struct {
	// Drain takes it out: nothing new is sent there.
	Drain bool `yaml:"drain" json:"drain,omitempty"`
	// Weight replaces its own, 0 to 10000.
	Weight *int `yaml:"weight" json:"weight,omitempty"`
}

// Override changes the word about an instance, and returns what it is then. One that says nothing any more is taken away. The map is
// replaced, not changed.
func (s *Service) Override(id string, change func(*Override)) Override {
	said := s.Overrides[id]
	change(&said)
	if s.Overrides = maps.Clone(s.Overrides); s.Overrides == nil {
		s.Overrides = map[string]Override{}
	}
	if s.Overrides[id] = said; said == (Override{}) {
		delete(s.Overrides, id)
	}
	if len(s.Overrides) == 0 {
		s.Overrides = nil
	}
	return said
}

// Check says how instances are checked.
type Check struct {
	Type     string        `yaml:"type" json:"type,omitempty"`         // http (default), tcp, grpc
	Path     string        `yaml:"path" json:"path,omitempty"`         // of http; default /
	Interval time.Duration `yaml:"interval" json:"interval,omitempty"` // 5s
	Timeout  time.Duration `yaml:"timeout" json:"timeout,omitempty"`   // 1s
	// Rise is how many checks in a row must pass until an instance that was down is back, Fall how many must fail until it
	// is down. Defaults 2 and 3. One that has just registered comes with its first pass.
	Rise int `yaml:"rise" json:"rise,omitempty"`
	Fall int `yaml:"fall" json:"fall,omitempty"`
	// Host is the Host of http and the authority of grpc; default the instance's address.
	Host string `yaml:"host" json:"host,omitempty"`
	// Headers are further fields of http.
	Headers map[string]string `yaml:"headers" json:"headers,omitempty"`
	// Status lists what passes http: "204", "200-299". Default 200-399. No redirect is followed.
	Status []string `yaml:"status" json:"status,omitempty"`
	// Body is a text that the first 64 KiB of an answer must hold.
	Body string `yaml:"body" json:"body,omitempty"`
}

// Ejection is when an instance is left alone for a while: after failures in a row, or when it fails much more often than
// the others. At most half of a service is ejected at a time. One that refuses a connection is ejected at once, until it
// answers a probe.
type Ejection struct {
	// Failures is how many in a row eject: statuses of 500 and more, and no answer. Default 5; -1 is never.
	Failures int `yaml:"failures" json:"failures,omitempty"`
	// Time is how long the first ejection lasts, default 1s; the next ones in short succession last as much longer, up to
	// MaxTime, default 5m.
	Time    time.Duration `yaml:"time" json:"time,omitempty"`
	MaxTime time.Duration `yaml:"max_time" json:"max_time,omitempty"`
}

// UpstreamTLS says how the certificates of instances are verified. Files are PEM.
type UpstreamTLS struct {
	CA         string `yaml:"ca" json:"ca,omitempty"`                   // default: those of the system
	ServerName string `yaml:"server_name" json:"server_name,omitempty"` // default: the service's name
	Cert       string `yaml:"cert" json:"cert,omitempty"`               // shown to instances that ask
	Key        string `yaml:"key" json:"key,omitempty"`
	// InsecureSkipVerify takes any certificate.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify" json:"insecure_skip_verify,omitempty"`
}

// StaticInstance is an instance listed by hand.
type StaticInstance struct {
	Address string `yaml:"address" json:"address"`         // host:port or unix:/path
	Weight  *int   `yaml:"weight" json:"weight,omitempty"` // 0–10000, default 100
}
