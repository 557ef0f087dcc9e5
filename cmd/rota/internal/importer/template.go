package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/rota-lb/rota/registry/codec"
)

// template runs a template of confd with confd's own functions, except that what a range over keys would write for each
// instance is a mark that stands for all of them, now and later. What comes out is read as nginx's.
func (c Confd) template(w *work) (*Result, error) {
	data, err := os.ReadFile(c.Template)
	if err != nil {
		return nil, err
	}
	e := &engine{Confd: c, work: w, marks: map[string]string{}}
	text, err := e.run(string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; import the nginx.conf that confd has made of it, with rota import nginx", c.Template, err)
	}
	w.follow = e.follow
	r := &reader{notebook: &w.notebook, base: filepath.Dir(c.Template)}
	tree, err := r.text(c.Template, text)
	var syntax *SyntaxError
	if errors.As(err, &syntax) {
		syntax.Line = e.line(syntax.Line)
		return nil, fmt.Errorf("%w (in what the template makes of the keys)", syntax)
	}
	if err != nil {
		return nil, err
	}
	e.place(tree)
	w.header = "Made from " + filepath.Base(c.Template) + " and the keys below " + c.Prefix + ". Read what was not carried over before it is used."
	w.nginx(tree)
	return w.result()
}

// engine evaluates a template.
type engine struct {
	Confd
	work  *work
	marks map[string]string // by text: the directory whose keys it stands for
	lines []int             // of the template, by line of the output
}

const (
	markPrefix = "rota-keys-"
	linePrefix = "#rota-line-"
)

var (
	markText   = regexp.MustCompile(`^` + markPrefix + `[0-9]+`)
	lineNumber = regexp.MustCompile(` ?` + linePrefix + `([0-9]+)`)
)

// run evaluates; each line that survives remembers where it stood.
func (e *engine) run(text string) (string, error) {
	var b strings.Builder
	inside := false
	for i, line := range strings.Split(text, "\n") {
		b.WriteString(line)
		if opened := strings.LastIndex(line, "{{"); opened >= 0 || inside {
			inside = strings.LastIndex(line, "}}") < opened || opened < 0 && !strings.Contains(line, "}}")
		}
		if last := strings.TrimRight(line, " \t\r"); !inside && last != "" && strings.ContainsAny(last[len(last)-1:], ";{}") && !strings.HasSuffix(last, "-}}") {
			fmt.Fprintf(&b, " %s%d", linePrefix, i+1)
		}
		b.WriteByte('\n')
	}
	t, err := template.New(filepath.Base(e.Template)).Funcs(e.functions()).Parse(b.String())
	if err != nil {
		return "", errors.New(lineNumber.ReplaceAllString(err.Error(), ""))
	}
	var out bytes.Buffer
	if err := t.Execute(&limited{&out}, nil); err != nil {
		return "", err
	}
	last := 1
	var result strings.Builder
	for line := range strings.SplitSeq(out.String(), "\n") {
		if m := lineNumber.FindStringSubmatch(line); m != nil {
			last, _ = strconv.Atoi(m[1])
		}
		e.lines = append(e.lines, last)
		result.WriteString(lineNumber.ReplaceAllString(line, "") + "\n")
	}
	return result.String(), nil
}

// limited refuses to write without end.
type limited struct{ *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxFile {
		return 0, errors.New("the template makes too much")
	}
	return l.Buffer.Write(p)
}

// line is the line of the template that a line of the output is from.
func (e *engine) line(n int) int {
	if n >= 1 && n <= len(e.lines) {
		return e.lines[n-1]
	}
	return n
}

// place gives directives the lines they have in the template.
func (e *engine) place(list []*directive) {
	for _, d := range list {
		if d.file == e.Template {
			d.line = e.line(d.line)
		}
		e.place(d.block)
	}
}

// note says what a template did that is done once only.
func (e *engine) note(remedy, format string, args ...any) {
	e.work.add(Note{e.Template, 1, fmt.Sprintf(format, args...), remedy})
}

// follow tells which keys an address stands for.
func (e *engine) follow(address string) (string, bool) {
	dir, ok := e.marks[markText.FindString(address)]
	return dir, ok
}

// mark makes what stands for the keys of a directory: the value, or, if they are JSON, an object whose members are marks.
func (e *engine) mark(dir string) string {
	for m, d := range e.marks {
		if d == dir {
			return m
		}
	}
	m := markPrefix + strconv.Itoa(len(e.marks)+1)
	e.marks[m] = dir
	return m
}

// pair is what gets returns, as in confd.
type pair struct{ Key, Value string }

// under returns the keys that a pattern of confd means.
func (e *engine) under(pattern string) (list []pair) {
	for _, k := range e.Keys {
		if ok, _ := path.Match(pattern, k.Name); ok {
			list = append(list, pair{k.Name, k.Value})
		}
	}
	return list
}

// gets returns one pair that stands for all keys of a directory, where these are instances, else what is there now.
func (e *engine) gets(pattern string) []pair {
	list := e.under(pattern)
	dir, all := strings.CutSuffix(pattern, "/*")
	f := codec.Foreign{Prefix: dir, Service: "a"}
	if !all || strings.ContainsAny(dir, "*?[") || f.Validate() != nil {
		e.note("write it by hand where it matters", "keys like %s: read once; changes are not followed", pattern)
		return list
	}
	readable := false
	for _, p := range list {
		if _, err := f.Decode(p.Key, []byte(p.Value)); err == nil {
			readable = true
		} else {
			e.note("write host:port, with an IP address, or a record as in docs/registration.md", "key %s: %v: it will be set aside", p.Key, err)
		}
	}
	if len(list) > 0 && !readable {
		e.note("let the services register as in docs/registration.md", "keys like %s: no value is one that Rota can follow; what is there now is taken", pattern)
		return list
	}
	return []pair{{dir + "/" + e.mark(dir), e.mark(dir)}}
}

// members stands for a value that is a JSON object.
func (e *engine) members(text string) (map[string]any, error) {
	dir, ok := e.marks[text]
	if !ok {
		m := map[string]any{}
		return m, json.Unmarshal([]byte(text), &m)
	}
	m := map[string]any{}
	for _, p := range e.under(dir + "/*") {
		one := map[string]any{}
		if json.Unmarshal([]byte(p.Value), &one) == nil {
			for name := range one {
				m[name] = text
			}
		}
	}
	return m, nil
}

// functions are those of confd.
func (e *engine) functions() template.FuncMap {
	get := func(key string) (pair, error) {
		for _, k := range e.Keys {
			if k.Name == key {
				e.note("change it in the configuration from now on", "key %s: %q is taken as it is now", key, clip(k.Value))
				return pair{key, k.Value}, nil
			}
		}
		return pair{}, fmt.Errorf("key %s is not there; give it with --keys or another --prefix", key)
	}
	names := func(dir string, directories bool) (list []string) {
		for _, k := range e.Keys {
			rest, ok := strings.CutPrefix(k.Name, strings.TrimRight(dir, "/")+"/")
			name, _, below := strings.Cut(rest, "/")
			if ok && below == directories && !slices.Contains(list, name) {
				list = append(list, name)
			}
		}
		e.note("for a name that comes later put a route with etcdctl under /rota/routes/<name>", "names below %s: those of now have routes, names that come later do not", dir)
		slices.Sort(list)
		return list
	}
	return template.FuncMap{
		"exists": func(key string) bool { return slices.ContainsFunc(e.Keys, func(k Key) bool { return k.Name == key }) },
		"get":    get,
		"gets":   e.gets,
		"getv": func(key string, otherwise ...string) (string, error) {
			p, err := get(key)
			if err != nil && len(otherwise) > 0 {
				return otherwise[0], nil
			}
			return p.Value, err
		},
		"getvs": func(pattern string) (list []string) {
			for _, p := range e.gets(pattern) {
				list = append(list, p.Value)
			}
			return list
		},
		"ls": func(dir string) []string { return names(dir, false) }, "lsdir": func(dir string) []string { return names(dir, true) },
		"json": e.members,
		"jsonArray": func(text string) (list []any, err error) {
			return list, json.Unmarshal([]byte(text), &list)
		},
		"base": path.Base, "dir": path.Dir, "split": strings.Split, "join": strings.Join, "datetime": time.Now,
		"toUpper": strings.ToUpper, "toLower": strings.ToLower, "contains": strings.Contains, "replace": strings.Replace, "trimSuffix": strings.TrimSuffix,
		"getenv": func(name string, otherwise ...string) string {
			if v := os.Getenv(name); v != "" || len(otherwise) == 0 {
				return v
			}
			return otherwise[0]
		},
		"map": func(values ...any) (map[string]any, error) {
			m := map[string]any{}
			for i := 0; i+1 < len(values); i += 2 {
				name, ok := values[i].(string)
				if !ok {
					return nil, errors.New("map: names are texts")
				}
				m[name] = values[i+1]
			}
			return m, nil
		},
		"reverse": func(list any) (any, error) {
			switch l := list.(type) {
			case []string:
				l = slices.Clone(l)
				slices.Reverse(l)
				return l, nil
			case []pair:
				l = slices.Clone(l)
				slices.Reverse(l)
				return l, nil
			}
			return nil, errors.New("reverse: not a list")
		},
		"sortByLength": func(list []string) []string {
			return slices.SortedStableFunc(slices.Values(list), func(a, b string) int { return len(a) - len(b) })
		},
		"sortKVByLength": func(list []pair) []pair {
			return slices.SortedStableFunc(slices.Values(list), func(a, b pair) int { return len(a.Key) - len(b.Key) })
		},
		"mapKeys": func(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) },
		"add":     func(a, b int) int { return a + b }, "sub": func(a, b int) int { return a - b }, "mul": func(a, b int) int { return a * b },
		"div": func(a, b int) (int, error) {
			if b == 0 {
				return 0, errors.New("division by zero")
			}
			return a / b, nil
		},
		"mod": func(a, b int) (int, error) {
			if b == 0 {
				return 0, errors.New("division by zero")
			}
			return a % b, nil
		},
		"seq": func(first, last int) (list []int, err error) {
			if last-first > maxKeys {
				return nil, errors.New("seq: too long")
			}
			for i := first; i <= last; i++ {
				list = append(list, i)
			}
			return list, nil
		},
		"atoi": strconv.Atoi, "parseBool": strconv.ParseBool,
		"lookupIP": net.LookupHost, "lookupIPV4": net.LookupHost, "lookupIPV6": net.LookupHost,
		"fileExists": func(name string) bool { _, err := os.Stat(name); return err == nil },
	}
}
