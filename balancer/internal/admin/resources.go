package admin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// resource is one method of a path: the table that requests are served by, and that the OpenAPI document is made from.
type resource struct {
	method, path, summary string
	query                 []param
	in, out               any   // zero values of what is sent and answered as JSON; nil is nothing
	fails                 []int // the statuses that it refuses with, beside those of all of them
	probe                 bool
	do                    http.HandlerFunc
}

type param struct{ name, text string }

// writes reports whether the resource changes anything, or takes a body.
func (r *resource) writes() bool { return r.method != http.MethodGet }

var forced = []param{
	{"force", `"true" writes it although requests would break`},
	{"limit", "the percentage of the requests of late from which on it is refused because they would break; 1 unless given"},
}

// failures are what statuses mean, whichever resource answers with them.
var failures = map[int]string{
	400: "the body or a parameter is not what it should be",
	401: "the token is missing or wrong",
	403: "a page of another origin has asked",
	404: "nothing of that name is known",
	409: "too many of the requests of late would break, or there is no registry to write to",
	412: "it is not any more what If-Match says",
	421: "the host is no name of the daemon",
	422: "the value is not valid",
	502: "the registry has not taken it",
	503: "the daemon is about to end",
}

// What resources refuse with that ask the control plane, look for something there, and write to the registry.
var (
	asks    = []int{503}
	finds   = []int{404, 503}
	puts    = []int{400, 409, 412, 422, 502, 503}
	patches = []int{400, 404, 409, 422, 502, 503}
	deletes = []int{400, 409, 412, 502, 503}
)

// resources are those of /api/v1.
func (a *API) resources() []resource {
	return []resource{
		{method: "GET", path: "/api/v1/status", summary: "How the daemon stands", out: Status{}, fails: asks, do: a.status},
		{method: "GET", path: "/api/v1/services", summary: "The services and their instances", out: []Service{}, fails: asks, do: a.services},
		{method: "GET", path: "/api/v1/services/{service}", summary: "One service", out: Service{}, fails: finds, do: a.services},
		{method: "POST", path: "/api/v1/services/{service}/release", summary: "Release the brake: give up the suspects of a service", out: Released{}, fails: asks, do: a.release},
		{method: "GET", path: "/api/v1/services/{service}/policy", summary: "The policy of a service in the registry", out: json.RawMessage{}, fails: finds, do: a.policy},
		{method: "PUT", path: "/api/v1/services/{service}/policy", summary: "Write it; If-Match heeded", query: forced, in: json.RawMessage{}, fails: puts, do: a.setPolicy},
		{method: "DELETE", path: "/api/v1/services/{service}/policy", summary: "Delete it; If-Match heeded", query: forced, fails: deletes, do: a.setPolicy},
		{method: "GET", path: "/api/v1/services/{service}/instances/{id}", summary: "One instance, with what is left of its lease", out: Instance{}, fails: finds, do: a.instance},
		{method: "PATCH", path: "/api/v1/services/{service}/instances/{id}", summary: "Drain an instance, or give it another weight, in the policy of its service", query: forced, in: Override{}, fails: patches, do: a.override},
		{method: "DELETE", path: "/api/v1/orphans", summary: "Give up the routes, policies and grants that the registry, another store than before, does not have", out: Dropped{}, fails: asks, do: a.dropOrphans},
		{method: "GET", path: "/api/v1/routes", summary: "The routes in effect, and those that can never match", out: Routes{}, do: a.routes},
		{method: "GET", path: "/api/v1/routes/{name}", summary: "A route in the registry", out: json.RawMessage{}, fails: finds, do: a.route},
		{method: "PUT", path: "/api/v1/routes/{name}", summary: "Write it; If-Match heeded", query: forced, in: json.RawMessage{}, fails: puts, do: a.setRoute},
		{method: "DELETE", path: "/api/v1/routes/{name}", summary: "Delete it; If-Match heeded", query: forced, fails: deletes, do: a.setRoute},
		{method: "GET", path: "/api/v1/why", summary: "Where a request would go, and why not elsewhere", out: Why{}, fails: []int{400, 404, 503}, do: a.why, query: []param{
			{"url", "of the request, with its host"}, {"method", "of the request; GET unless given"},
			{"header", "a field of it, as in X-Beta: 1; may be repeated"}, {"request_id", "of a request that was served, instead"},
		}},
		{method: "POST", path: "/api/v1/plan", summary: "What a change would do to the requests of late; it changes nothing", in: Draft{}, out: Plan{}, fails: []int{400, 422, 503}, do: a.plan},
		{method: "GET", path: "/api/v1/stats", summary: "Counters since the start, for whoever computes rates", out: Stats{}, fails: finds, do: a.stats, query: []param{
			{"service", "only this one, with its endpoints"},
		}},
		{method: "GET", path: "/api/v1/events", summary: "What has happened; as text/event-stream also what happens, resumed by Last-Event-ID", out: []Event{}, fails: []int{400}, do: a.events, query: []param{
			{"since", "the id of an event: only those after it; all, if it is of another life of the daemon"},
		}},
		{method: "GET", path: "/api/v1/config", summary: "The configuration in effect, secrets hidden", out: Config{}, do: a.config},
		{method: "GET", path: "/api/v1/loglevel", summary: "The level of the event log", out: Level{}, do: a.level},
		{method: "PUT", path: "/api/v1/loglevel", summary: "Change it until the next reload", in: Level{}, out: Level{}, fails: []int{400}, do: a.setLevel},
		{method: "GET", path: "/api/v1/openapi.json", summary: "This document", out: json.RawMessage{}, do: a.openapi},
		{method: "GET", path: "/metrics", summary: "Metrics in Prometheus' formats", do: a.metrics},
		{method: "GET", path: "/livez", summary: "200 while the daemon runs", probe: true, do: a.livez},
		{method: "GET", path: "/healthz", summary: "The same as /readyz, under the name that some look for", out: Readiness{}, probe: true, do: a.readyz},
		{method: "GET", path: "/ping", summary: "The same as /livez, likewise", probe: true, do: a.livez},
		{method: "GET", path: "/readyz", summary: "200 while it takes traffic, else 503 with the reasons", out: Readiness{}, probe: true, do: a.readyz},
	}
}

// OpenAPI returns the OpenAPI 3.1 document of the API.
func OpenAPI() []byte {
	schemas := map[string]any{}
	paths := map[string]map[string]any{}
	for _, r := range new(API).resources() {
		op := map[string]any{"summary": r.summary}
		var params []any
		for _, part := range strings.Split(r.path, "/") {
			if name, ok := strings.CutPrefix(part, "{"); ok {
				params = append(params, map[string]any{"name": strings.TrimSuffix(name, "}"), "in": "path", "required": true, "schema": text})
			}
		}
		for _, p := range r.query {
			params = append(params, map[string]any{"name": p.name, "in": "query", "description": p.text, "schema": text})
		}
		if params != nil {
			op["parameters"] = params
		}
		if r.in != nil {
			op["requestBody"] = map[string]any{"required": true, "content": contentOf(r.in, schemas)}
		}
		done := map[string]any{"description": "done"}
		status := "200"
		if r.out != nil {
			done["content"] = contentOf(r.out, schemas)
		} else if r.writes() {
			status = "204"
		}
		responses := map[string]any{status: done}
		if r.out != nil && !r.writes() {
			responses["304"] = map[string]any{"description": "it is what If-None-Match says"}
		}
		fails := append([]int{403, 421}, r.fails...)
		if r.probe {
			op["security"] = []any{}
		} else {
			fails = append(fails, 401)
		}
		for _, status := range fails {
			responses[strconv.Itoa(status)] = map[string]any{"$ref": "#/components/responses/" + strconv.Itoa(status)}
		}
		if r.probe && r.out != nil {
			responses["503"] = map[string]any{"description": "not ready", "content": done["content"]}
		}
		op["responses"] = responses
		if paths[r.path] == nil {
			paths[r.path] = map[string]any{}
		}
		paths[r.path][strings.ToLower(r.method)] = op
	}
	problem := map[string]any{"application/problem+json": map[string]any{"schema": schemaOf(reflect.TypeFor[Problem](), schemas)}}
	responses := map[string]any{}
	for status, text := range failures {
		responses[strconv.Itoa(status)] = map[string]any{"description": text, "content": problem}
	}
	out, err := json.MarshalIndent(map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{"title": "Rota admin API", "version": "1", "description": "Answers have an ETag; If-None-Match is heeded. " +
			"Requests have to name as their host localhost, the address that they come in on, or one of admin.hosts; pages of other origins get no answer."},
		"servers":  []any{map[string]any{"url": "http://127.0.0.1:9797"}},
		"security": []any{map[string]any{"token": []any{}}, map[string]any{}},
		"paths":    paths,
		"components": map[string]any{
			"schemas":         schemas,
			"responses":       responses,
			"securitySchemes": map[string]any{"token": map[string]any{"type": "http", "scheme": "bearer"}},
		},
	}, "", "  ")
	if err != nil {
		panic("admin: " + err.Error()) // maps, lists and strings
	}
	return append(out, '\n')
}

var text = map[string]any{"type": "string"}

func ref(name string) map[string]any {
	return map[string]any{"$ref": "#/components/schemas/" + name}
}

func contentOf(v any, schemas map[string]any) map[string]any {
	return map[string]any{"application/json": map[string]any{"schema": schemaOf(reflect.TypeOf(v), schemas)}}
}

// schemaOf is the schema of what encoding/json makes of a type. Structs are added to schemas, and referred to.
func schemaOf(t reflect.Type, schemas map[string]any) map[string]any {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[json.RawMessage]():
		return map[string]any{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem(), schemas)
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), schemas)}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem(), schemas)}
	case reflect.Struct:
		if schemas[t.Name()] == nil {
			s := map[string]any{"type": "object"}
			schemas[t.Name()] = s // before its fields, which may refer to it
			properties, required := map[string]any{}, []string{}
			for _, f := range reflect.VisibleFields(t) {
				name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
				if f.Anonymous || !f.IsExported() {
					continue
				}
				properties[name] = schemaOf(f.Type, schemas)
				if options == "" {
					required = append(required, name)
				}
			}
			slices.Sort(required)
			s["properties"] = properties
			if len(required) > 0 {
				s["required"] = required
			}
		}
		return ref(t.Name())
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return text
	case reflect.Float64:
		return map[string]any{"type": "number"}
	}
	return map[string]any{"type": "integer"}
}

func (a *API) metrics(w http.ResponseWriter, r *http.Request) { a.Metrics.Handler().ServeHTTP(w, r) }

func (a *API) openapi(w http.ResponseWriter, r *http.Request) {
	stored(w, r, OpenAPI(), nil, "")
}
