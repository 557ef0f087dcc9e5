package config

import (
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
	Log        Log      `yaml:"log"`
}

// Etcd says where the registry is.
type Etcd struct {
	// Disabled means that there is no registry: serve only what the file says.
	Disabled  bool     `yaml:"disabled"`
	Endpoints []string `yaml:"endpoints"` // host:port or URL; default 127.0.0.1:2379
	Prefix    string   `yaml:"prefix"`    // default /rota
	Username  string   `yaml:"username"`
	Password  string   `yaml:"password"`
	// PasswordFile is read for the password; not together with Password.
	PasswordFile       string        `yaml:"password_file"`
	CACert             string        `yaml:"cacert"` // PEM file
	Cert               string        `yaml:"cert"`   // PEM file, with Key
	Key                string        `yaml:"key"`
	InsecureSkipVerify bool          `yaml:"insecure_skip_verify"`
	DialTimeout        time.Duration `yaml:"dial_timeout"` // default 2s
}

// Listener is a bound address.
type Listener struct {
	Address  string `yaml:"address"`  // host:port; an empty host is all addresses
	Protocol string `yaml:"protocol"` // http (default)
}

// Admin is where the admin API listens.
type Admin struct {
	Address string `yaml:"address"` // default 127.0.0.1:9797; "off" switches it off; must be loopback
}

// Log says what is logged and how.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Access string `yaml:"access"` // "stdout" (default), "off", or a file path; JSON lines
}

// Timeouts are the defaults of every route. Zero fields take the default named here.
type Timeouts struct {
	Connect      time.Duration `yaml:"connect"`       // 1s
	ResponseHead time.Duration `yaml:"response_head"` // 30s
	IdleBody     time.Duration `yaml:"idle_body"`     // 60s without progress, either direction
	RequestHead  time.Duration `yaml:"request_head"`  // 10s
	KeepAlive    time.Duration `yaml:"keep_alive"`    // 75s idle client connection
}

// Route sends matching requests to a service. The same schema, as JSON, is read from <prefix>/routes/<name>.
type Route struct {
	Name string `yaml:"name" json:"name,omitempty"`
	// Host is exact, "*.example.com" (one or more labels), or empty for any. Without port; matched case-insensitively.
	Host string `yaml:"host" json:"host,omitempty"`
	// Path is a prefix of whole segments ("/cart" matches /cart and /cart/7, not /cartoon), or exact when it
	// begins with "=" ("=/cart"). Empty means any.
	Path string `yaml:"path" json:"path,omitempty"`
	// Service is the name of the service that answers.
	Service string `yaml:"service" json:"service"`
	// StripPrefix removes the matched path prefix before forwarding.
	StripPrefix bool `yaml:"strip_prefix" json:"strip_prefix,omitempty"`
	// Priority overrides "most specific wins": higher first. Default 0.
	Priority int `yaml:"priority" json:"priority,omitempty"`
	// Timeout is the whole exchange's limit until the response head has come; zero means Timeouts.ResponseHead.
	Timeout time.Duration `yaml:"timeout" json:"timeout,omitempty"`
}

// Service is the policy of a service. The same schema, as JSON, is read from <prefix>/policies/<service>.
type Service struct {
	// Balance is the policy's name: see pool.Policies. Default least_request.
	Balance string `yaml:"balance" json:"balance,omitempty"`
	// Instances are static ones, beside those of the registry.
	Instances []StaticInstance `yaml:"instances" json:"instances,omitempty"`
}

// StaticInstance is an instance listed by hand.
type StaticInstance struct {
	Address string `yaml:"address" json:"address"`
	Weight  *int   `yaml:"weight" json:"weight,omitempty"` // 0–10000, default 100
}
