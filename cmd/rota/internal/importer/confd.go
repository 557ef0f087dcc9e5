package importer

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry/codec"
)

// Confd is an import of the keys that confd reads.
type Confd struct {
	// Keys are those there are now. They say what the instances are; the daemon will follow them where they are.
	Keys []Key
	// Prefix is what they are below, such as /services.
	Prefix string
	// Endpoints are those of etcd, for the configuration.
	Endpoints []string
	// Source names where the keys are from, for notes and comments.
	Source string
	// Template is the file of a template that makes an nginx.conf; empty for none.
	Template string
}

// maxKeys bounds what is read for an import.
const maxKeys = 100_000

// FetchKeys reads the keys below a prefix.
func FetchKeys(ctx context.Context, client *clientv3.Client, prefix string) ([]Key, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	prefix = strings.TrimRight(prefix, "/") + "/"
	answer, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(maxKeys+1))
	if err != nil {
		return nil, fmt.Errorf("etcd: %w; see that --endpoints are right, or give a dump with --keys", err)
	}
	if len(answer.Kvs) > maxKeys {
		return nil, fmt.Errorf("more than %d keys below %s; choose a longer --prefix", maxKeys, prefix)
	}
	var keys []Key
	for _, kv := range answer.Kvs {
		keys = append(keys, Key{string(kv.Key), string(kv.Value)})
	}
	return keys, nil
}

// Import makes the configuration: with a template of what that says, else a route for each service found below the prefix.
func (c Confd) Import() (*Result, error) {
	c.Prefix = strings.TrimRight(c.Prefix, "/")
	if !codec.IsPrefix(c.Prefix) {
		return nil, fmt.Errorf("prefix %q is not one that Rota can follow; write it like /services", c.Prefix)
	}
	slices.SortFunc(c.Keys, func(a, b Key) int { return strings.Compare(a.Name, b.Name) })
	w := newWork(filepath.Dir(cmp.Or(c.Template, ".")))
	w.endpoints = c.Endpoints
	if c.Template != "" {
		return c.template(w)
	}
	w.header = "Made from the keys below " + c.Prefix + ". The routes are a guess: the keys do not say which requests go where."
	w.body, w.timeouts.ResponseHead = 0, 0
	if err := c.services(w); err != nil {
		return nil, err
	}
	w.listener(":8080", "Rota's default; the keys do not say")
	return w.result()
}

// group is the instances of one directory.
type group struct {
	dir, name string
	shape     int // of keys, see below
	keys      []Key
}

// The shapes of keys below the prefix.
const (
	alone  = iota // <prefix>/<id>
	usual         // <prefix>/<name>/<id>
	nested        // <prefix>/<name>/upstream/<id>
)

// directories are names under which a product keeps its instances, one level below its own.
var directories = []string{"upstream", "upstreams", "servers", "server", "backends", "backend", "nodes", "instances", "hosts", "endpoints"}

// domains are names of keys that say which host a product has.
var domains = []string{"domain", "host", "hostname", "server_name", "servername", "subdomain", "vhost"}

// services finds the services, follows their keys, and makes a route for each.
func (c Confd) services(w *work) error {
	groups, other := c.groups(w)
	if len(groups) == 0 {
		return fmt.Errorf("below %s/ are no keys whose values are instances, such as %s/web/1 with 10.0.0.7:8080; choose another --prefix", c.Prefix, c.Prefix)
	}
	host := map[string]string{} // by directory
	for _, k := range other {
		if slices.Contains(domains, strings.ToLower(path.Base(k.Name))) {
			if _, err := config.ParseRoute("a", asJSON(config.Route{Host: k.Value, Service: "a"})); err == nil && strings.Contains(k.Value, ".") {
				host[path.Dir(k.Name)] = k.Value
				continue
			}
		}
		w.add(Note{c.Source, 0, fmt.Sprintf("key %s: %q is not an instance; left out", k.Name, clip(k.Value)), "if a template made something of it, give it with --template"})
	}
	// One prefix for all where all keys look alike: services that come later are seen too.
	together := !slices.ContainsFunc(groups, func(g group) bool { return g.shape != usual })
	if together {
		w.foreign = append(w.foreign, config.Foreign{Prefix: c.Prefix})
	}
	for _, g := range groups {
		if !together {
			w.foreign = append(w.foreign, config.Foreign{Prefix: g.dir, Service: g.name})
		}
		r := config.Route{Name: g.name, Service: g.name}
		if r.Host = host[strings.TrimSuffix(g.dir, "/"+path.Base(g.dir))]; r.Host == "" {
			r.Host = host[g.dir]
		}
		if r.Host == "" {
			r.Path, r.StripPrefix = "/"+g.name, true
		}
		w.routes = append(w.routes, route{Route: r, from: fmt.Sprintf("%s/*, %d now", g.dir, len(g.keys))})
	}
	w.add(Note{c.Source, 0, "the routes are a guess: a host where a key names one, else /<service>/", "edit them, or give the template with --template"})
	if together {
		w.add(Note{c.Source, 0, fmt.Sprintf("services that come later below %s are followed, but have no route", c.Prefix), "put one with etcdctl under /rota/routes/<name>, or set auto_routes: true"})
	}
	return nil
}

// groups sorts keys into services; what is not an instance is returned apart.
func (c Confd) groups(w *work) (groups []group, other []Key) {
	for _, k := range c.Keys {
		rest, ok := strings.CutPrefix(k.Name, c.Prefix+"/")
		if !ok {
			continue
		}
		seg := strings.Split(rest, "/")
		g := group{dir: path.Dir(k.Name)}
		switch {
		case len(seg) == 1:
			g.shape, g.name = alone, path.Base(c.Prefix)
		case len(seg) == 2:
			g.shape, g.name = usual, seg[0]
			if slices.Contains(directories, seg[0]) && !c.several() { // the prefix is that of one product
				g.shape, g.name = nested, path.Base(c.Prefix)
			}
		case len(seg) == 3 && slices.Contains(directories, seg[1]):
			g.shape, g.name = nested, seg[0]
		default:
			other = append(other, k)
			continue
		}
		written := g.name
		g.name = strings.ReplaceAll(strings.ToLower(written), "_", "-")
		f := codec.Foreign{Prefix: g.dir, Service: g.name}
		if f.Validate() != nil {
			other = append(other, k)
			continue
		}
		in, err := f.Decode(k.Name, []byte(k.Value))
		if host, _, _ := net.SplitHostPort(in.Address); err == nil && net.ParseIP(host) == nil {
			w.add(Note{c.Source, 0, fmt.Sprintf("key %s: %s is a name, and names are not resolved: it will be set aside", k.Name, clip(in.Address)), "write its IP address"})
		}
		if err != nil {
			if !looksLikeInstance(k.Value) {
				other = append(other, k)
				continue
			}
			w.add(Note{c.Source, 0, fmt.Sprintf("key %s: %v: it will be set aside", k.Name, err), "write host:port, with an IP address, or a record as in docs/registration.md"})
			continue
		}
		i := slices.IndexFunc(groups, func(o group) bool { return o.dir == g.dir })
		if i < 0 {
			if j := slices.IndexFunc(groups, func(o group) bool { return o.name == g.name }); j >= 0 {
				w.add(Note{c.Source, 0, fmt.Sprintf("%s and %s are both service %s", groups[j].dir, g.dir, g.name), "name the service of one of them in etcd.foreign"})
				continue
			}
			i, groups = len(groups), append(groups, g)
		}
		groups[i].keys = append(groups[i].keys, k)
	}
	return groups, other
}

// several reports whether the keys below the prefix are those of services, and not of one only.
func (c Confd) several() bool {
	return slices.ContainsFunc(c.Keys, func(k Key) bool {
		seg := strings.Split(strings.TrimPrefix(k.Name, c.Prefix+"/"), "/")
		return len(seg) == 2 && !slices.Contains(directories, seg[0])
	})
}

var mentionsPort = regexp.MustCompile(`(?i)"port"\s*:|"(host|ip|addr(ess)?)"\s*:`)

// looksLikeInstance reports whether a value that cannot be read was meant for one.
func looksLikeInstance(value string) bool {
	if _, port, err := net.SplitHostPort(value); err == nil && port != "" && !strings.ContainsAny(value, " \t") {
		return true
	}
	return mentionsPort.MatchString(value)
}
