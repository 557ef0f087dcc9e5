package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// Schema returns a JSON Schema of the configuration file, for editors. It is made from the types; [Parse] checks more
// than a schema can say.
func Schema() []byte {
	root := schemaOf(reflect.TypeFor[Config](), "", reflect.ValueOf(*Default()))
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Rota configuration"
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic("config: " + err.Error()) // the schema is made of maps and strings
	}
	return append(out, '\n')
}

// constraints are what the types do not say, by path without indices and names. "required" is about a list's items.
var constraints = map[string]map[string]any{
	"engine":                       {"enum": engines},
	"loops":                        {"minimum": 0, "maximum": maxLoops},
	"log.level":                    {"enum": levels},
	"admin.tokens":                 {"propertyNames": map[string]any{"pattern": adminName.String()}},
	"etcd.prefix":                  {"pattern": prefixPath.String()},
	"etcd.foreign":                 {"required": []string{"prefix"}},
	"etcd.foreign.format":          {"enum": codec.Formats(), "default": string(codec.Auto)},
	"etcd.foreign.service":         {"pattern": serviceName.String()},
	"etcd.foreign.protocol":        {"enum": registered},
	"listeners.protocol":           {"enum": protocols},
	"listeners.mode":               {"pattern": "^0?[0-7]{1,3}$", "default": "0660"},
	"listeners.tls.certificates":   {"required": []string{"cert", "key"}},
	"listeners.tls.min_version":    {"enum": tlsVersions, "default": "1.2"},
	"listeners.tls.client_auth":    {"enum": clientAuths, "default": "required"},
	"retries.attempts":             {"minimum": 1, "maximum": maxAttempts},
	"retries.budget":               {"minimum": 1, "maximum": 100},
	"routes":                       {"required": []string{"name"}},
	"routes.name":                  {"pattern": routeName.String()},
	"routes.path":                  {"pattern": "^(=?/.*|~.*)?$"},
	"routes.split":                 {"required": []string{"service", "weight"}},
	"routes.split.service":         {"pattern": serviceName.String()},
	"routes.split.weight":          {"minimum": 0, "maximum": maxShareWeight},
	"routes.redirect.status":       {"enum": statuses, "default": 308},
	"routes.mirror.service":        {"pattern": serviceName.String()},
	"routes.mirror.percent":        {"minimum": 1, "maximum": 100, "default": 100},
	"routes.retries.attempts":      {"minimum": 1, "maximum": maxAttempts},
	"routes.retries.budget":        {"minimum": 1, "maximum": 100},
	"routes.rate_limit.rate":       {"pattern": "^[0-9]+/[smh]$"},
	"routes.rate_limit.key":        {"pattern": "^(client|header:.+)$", "default": "client"},
	"routes.service":               {"pattern": serviceName.String()},
	"services":                     {"propertyNames": map[string]any{"pattern": serviceName.String()}},
	"services.balance":             {"enum": pool.Policies(), "default": pool.DefaultPolicy},
	"services.protocol":            {"enum": protocols},
	"services.send_proxy_protocol": {"enum": proxyProtocols},
	"services.check.type":          {"enum": checkTypes, "default": "http"},
	"services.panic":               {"minimum": -1, "maximum": 100, "default": 50},
	"services.slow_start":          {"default": "10s"},
	"services.instances":           {"required": []string{"address"}},
	"services.instances.weight":    {"minimum": 0, "maximum": registry.MaxWeight, "default": registry.DefaultWeight},
	"listeners":                    {"required": []string{"address"}},

	"etcd.embedded.initial_cluster_state": {"enum": clusterStates, "default": "new"},
}

// schemaOf describes t; def holds the defaults, or is invalid inside lists and maps.
func schemaOf(t reflect.Type, path string, def reflect.Value) map[string]any {
	out := map[string]any{}
	switch {
	case t == durationType:
		out["type"], out["pattern"] = "string", `^(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+$`
		if def.IsValid() {
			out["default"] = shortDuration(time.Duration(def.Int()))
		}
	case t == sizeType:
		out["type"], out["pattern"] = []string{"integer", "string"}, sizeText.String()
		if def.IsValid() && def.Int() > 0 {
			out["default"] = def.Int()
		}
	case t.Kind() == reflect.Pointer:
		out = schemaOf(t.Elem(), path, reflect.Value{})
	case t.Kind() == reflect.Struct:
		out["type"], out["additionalProperties"] = "object", false
		properties := map[string]any{}
		for _, f := range fieldsOf(t) {
			var d reflect.Value
			if def.IsValid() {
				d = def.FieldByIndex(f.index)
			}
			property := schemaOf(f.typ, join(path, f.key), d)
			for key, value := range constraints[join(path, f.key)] {
				if key == "required" {
					property["items"].(map[string]any)[key] = value
					continue
				}
				property[key] = value
			}
			properties[f.key] = property
		}
		out["properties"] = properties
	case t.Kind() == reflect.Map:
		out["type"], out["additionalProperties"] = "object", schemaOf(t.Elem(), path, reflect.Value{})
	case t.Kind() == reflect.Slice:
		out["type"], out["items"] = "array", schemaOf(t.Elem(), path, reflect.Value{})
		if def.IsValid() && def.Len() > 0 && t.Elem().Kind() == reflect.String {
			out["default"] = def.Interface()
		}
	case t.Kind() == reflect.Bool:
		out["type"] = "boolean"
		if def.IsValid() {
			out["default"] = def.Bool()
		}
	case t.Kind() == reflect.Int:
		out["type"] = "integer"
		if def.IsValid() {
			out["default"] = def.Int()
		}
	case t.Kind() == reflect.String:
		out["type"] = "string"
		if def.IsValid() && def.String() != "" {
			out["default"] = def.String()
		}
	default:
		panic(fmt.Sprintf("config: no schema for %s", t))
	}
	return out
}

// shortDuration is 1m0s written 1m.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
