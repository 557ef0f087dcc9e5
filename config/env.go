package config

import (
	"fmt"
	"reflect"
	"strings"
)

// setting is a value that a variable may override: a scalar or a list of strings outside lists and maps.
type setting struct {
	path  string // etcd.dial_timeout
	name  string // ROTA_ETCD_DIAL_TIMEOUT
	index []int
}

// settings lists what the environment may override, from the types.
func settings() []setting {
	var out []setting
	var walk func(t reflect.Type, path string, index []int)
	walk = func(t reflect.Type, path string, index []int) {
		for _, f := range fieldsOf(t) {
			p, at := join(path, f.key), append(index[:len(index):len(index)], f.index...)
			switch f.typ.Kind() {
			case reflect.Struct:
				walk(f.typ, p, at)
			case reflect.Map:
			case reflect.Slice:
				if f.typ.Elem().Kind() == reflect.String {
					out = append(out, setting{p, variable(p), at})
				}
			default:
				out = append(out, setting{p, variable(p), at})
			}
		}
	}
	walk(reflect.TypeFor[Config](), "", nil)
	return out
}

func variable(path string) string {
	return "ROTA_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// Variables lists the environment variables that [Load] reads, ours first, in the order of the file.
func Variables() []string {
	var out []string
	for _, s := range settings() {
		out = append(out, s.name)
	}
	for _, e := range etcdctl {
		out = append(out, e.name)
	}
	return out
}

// etcdctl are etcdctl's own variables and the settings they stand for. ETCDCTL_USER may hold "name:password".
var etcdctl = []struct{ name, path string }{
	{"ETCDCTL_ENDPOINTS", "etcd.endpoints"},
	{"ETCDCTL_USER", "etcd.username"},
	{"ETCDCTL_PASSWORD", "etcd.password"},
	{"ETCDCTL_CACERT", "etcd.cacert"},
	{"ETCDCTL_CERT", "etcd.cert"},
	{"ETCDCTL_KEY", "etcd.key"},
	{"ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "etcd.insecure_skip_verify"},
	{"ETCDCTL_DIAL_TIMEOUT", "etcd.dial_timeout"},
}

// environment is the set variables that are not empty: an empty one counts as unset.
func environment(environ []string) map[string]string {
	out := make(map[string]string)
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok && value != "" {
			out[name] = value
		}
	}
	return out
}

// applyEtcdctl sets what etcdctl's variables say. It comes before the file, which is the more specific.
func (s *source) applyEtcdctl(c *Config, env map[string]string) {
	byPath := map[string]setting{}
	for _, st := range settings() {
		byPath[st.path] = st
	}
	for _, e := range etcdctl {
		value, ok := env[e.name]
		if !ok {
			continue
		}
		if e.name == "ETCDCTL_USER" {
			if user, password, both := strings.Cut(value, ":"); both {
				value = user
				c.Etcd.Password = password
				s.env["etcd.password"] = e.name
			}
		}
		s.setFromEnv(c, byPath[e.path], e.name, value)
	}
}

// applyEnvironment sets what the ROTA_ variables say. It comes after the file.
func (s *source) applyEnvironment(c *Config, env map[string]string) {
	// A password in any form replaces one given another way further down.
	switch {
	case env["ROTA_ETCD_PASSWORD"] != "":
		c.Etcd.PasswordFile = ""
	case env["ROTA_ETCD_PASSWORD_FILE"] != "":
		c.Etcd.Password = ""
	}
	known := map[string]bool{}
	var names []string
	for _, st := range settings() {
		known[st.name] = true
		names = append(names, st.name)
		if value, ok := env[st.name]; ok {
			s.setFromEnv(c, st, st.name, value)
		}
	}
	// Other variables may begin with ROTA_ for good reasons: a container platform names them after its services.
	// One letter off is a slip of the pen, though.
	for name := range env {
		if !strings.HasPrefix(name, "ROTA_") || known[name] {
			continue
		}
		for _, meant := range names {
			if len(name) <= len(meant)+1 && distance(name, meant) == 1 {
				s.record(&Error{File: name, Message: "unknown variable", Hint: fmt.Sprintf("did you mean %s?", meant)})
				break
			}
		}
	}
}

func (s *source) setFromEnv(c *Config, st setting, name, value string) {
	s.env[st.path] = name
	v := reflect.ValueOf(c).Elem().FieldByIndex(st.index)
	if v.Kind() == reflect.Slice {
		var list []string
		for item := range strings.SplitSeq(value, ",") {
			if item = strings.TrimSpace(item); item != "" {
				s.env[fmt.Sprintf("%s[%d]", st.path, len(list))] = name
				list = append(list, item)
			}
		}
		v.Set(reflect.ValueOf(list))
		return
	}
	if message, hint := setScalar(v, value, true); message != "" {
		s.failed[st.path] = true
		s.record(&Error{File: name, Message: message, Hint: hint})
	}
}
