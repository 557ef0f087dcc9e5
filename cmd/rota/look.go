package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/balancer"
	"github.com/rota-lb/rota/registry"
)

// defaultAdmin is where a daemon's admin API is unless told otherwise.
const defaultAdmin = "127.0.0.1:9797"

// look is what the verbs that ask a running daemon have in common.
type look struct {
	admin   string
	token   string // file
	output  string
	etcdctl bool
	prefix  string
}

func (l *look) flags(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&l.admin, "admin", orEnv("ROTA_ADMIN_ADDRESS", defaultAdmin), "`address` of the daemon's admin API")
	f.StringVar(&l.token, "token-file", "", "`file` with the token of the admin API (or ROTA_ADMIN_TOKEN)")
	f.StringVarP(&l.output, "output", "o", "table", "\"table\" or \"json\"")
	f.BoolVar(&l.etcdctl, "etcdctl", false, "print the equivalent etcdctl line instead")
	f.StringVar(&l.prefix, "prefix", orEnv("ROTA_ETCD_PREFIX", registry.DefaultPrefix), "`prefix` of the keys, for --etcdctl")
	return cmd
}

func orEnv(name, value string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return value
}

// get fetches a resource of the admin API.
func (l *look) get(ctx context.Context, path string, v any) ([]byte, error) {
	return l.ask(ctx, http.MethodGet, path, nil, v)
}

// request makes a request of the admin API, with a body if there is one.
func (l *look) request(ctx context.Context, method, path string, body []byte) (*http.Request, error) {
	var sent io.Reader // a nil slice would be a body
	if body != nil {
		sent = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+l.admin+path, sent)
	if err != nil {
		return nil, usageError{fmt.Errorf("--admin %q: %w", l.admin, err)}
	}
	token := os.Getenv("ROTA_ADMIN_TOKEN")
	if l.token != "" {
		text, err := os.ReadFile(l.token)
		if err != nil {
			return nil, fmt.Errorf("--token-file: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req, nil
}

// ask does a request of the admin API, with a body if there is one, and reads the answer into v unless that is nil.
func (l *look) ask(ctx context.Context, method, path string, body []byte, v any) ([]byte, error) {
	if l.output != "table" && l.output != "json" {
		return nil, usageError{fmt.Errorf("--output %q: use table or json", l.output)}
	}
	client := retryablehttp.NewClient()
	client.Logger = nil
	client.RetryMax, client.RetryWaitMin, client.RetryWaitMax = 2, 50*time.Millisecond, 200*time.Millisecond
	client.HTTPClient.Timeout = 5 * time.Second
	client.ErrorHandler = retryablehttp.PassthroughErrorHandler
	req, err := l.request(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	again, err := retryablehttp.FromRequest(req)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(again)
	if err != nil {
		return nil, fmt.Errorf("no daemon answers at %s: is it running? --admin or ROTA_ADMIN_ADDRESS names another address (%w)", l.admin, innermost(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		var p struct{ Detail string }
		if json.Unmarshal(answer, &p) != nil || p.Detail == "" {
			p.Detail = resp.Status
		}
		return nil, refused{resp.StatusCode, p.Detail, answer}
	}
	if v == nil {
		return answer, nil
	}
	return answer, json.Unmarshal(answer, v)
}

// refused is an answer of the daemon that says what was wrong.
type refused struct {
	status int
	detail string
	answer []byte
}

func (r refused) Error() string { return r.detail }

// isUnknown reports whether the daemon does not know what it was asked about.
func isUnknown(err error) bool {
	var r refused
	return errors.As(err, &r) && r.status == http.StatusNotFound
}

func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// show prints what was fetched: as it came, or as a table.
func (l *look) show(w io.Writer, body []byte, table func(w io.Writer)) error {
	if l.output == "json" {
		_, err := w.Write(body)
		return err
	}
	return screenOf(w).table(w, table)
}

// tell is show for what is read line by line: long lines are not cut.
func (l *look) tell(w io.Writer, body []byte, text func(w io.Writer)) error {
	if l.output == "json" {
		return l.show(w, body, nil)
	}
	s := screenOf(w)
	s.columns = 0
	return s.table(w, text)
}

// print is show for a text that is written as it is.
func (l *look) print(w io.Writer, body []byte, text string) error {
	if l.output == "json" {
		return l.show(w, body, nil)
	}
	_, err := io.WriteString(w, text)
	return err
}

// done prints what was done where the daemon has no words for it.
func (l *look) done(w io.Writer, what map[string]any, text string) error {
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return l.print(w, append(body, '\n'), text)
}

// etcdctlLine prints the line that looks at the same thing in etcd.
func (l *look) etcdctlLine(w io.Writer, verb, key string, prefix bool) error {
	if prefix {
		verb += " --prefix"
	}
	_, err := fmt.Fprintf(w, "etcdctl %s %s\n", verb, shellWord(l.prefix+key))
	return err
}

// etcdctlPut prints the line that writes a value; that which deletes the key when the value is nil.
func (l *look) etcdctlPut(w io.Writer, key string, value []byte) error {
	if value == nil {
		return l.etcdctlLine(w, "del", key, false)
	}
	_, err := fmt.Fprintf(w, "etcdctl put %s %s\n", shellWord(l.prefix+key), shellWord(string(value)))
	return err
}

// noEtcdctl is what --etcdctl gets where etcd holds nothing of what was asked for.
func noEtcdctl(why string) error {
	return usageError{fmt.Errorf("--etcdctl: there is no such line: %s", why)}
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// shellWord writes a text as one word of a POSIX shell.
func shellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func statusCommand() *cobra.Command {
	var l look
	return l.flags(&cobra.Command{
		Use: "status", Short: "Show how a running daemon is", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.etcdctl {
				return l.etcdctlLine(cmd.OutOrStdout(), "get --keys-only", "/", true)
			}
			var s balancer.Status
			body, err := l.get(cmd.Context(), "/api/v1/status", &s)
			if err != nil {
				return err
			}
			return l.tell(cmd.OutOrStdout(), body, func(w io.Writer) { statusTable(w, &s) })
		},
	})
}

func statusTable(w io.Writer, s *balancer.Status) {
	state := "ready"
	switch {
	case !s.Ready:
		state = "not ready: " + strings.Join(s.Reasons, "; ")
	case len(s.Reasons) > 0:
		state = "degraded: " + strings.Join(s.Reasons, "; ")
	}
	fmt.Fprintf(w, "state\t%s\n", state)
	fmt.Fprintf(w, "version\t%s, up %s, engine %s\n", s.Version, time.Since(s.Started).Round(time.Second), s.Engine)
	fmt.Fprintf(w, "listening\t%s\n", strings.Join(s.Listeners, " "))
	fmt.Fprintf(w, "clients\t%s open, %d of them busy\n", some(s.Connections, "connection"), s.Serving)
	if r := s.Registry; r != nil {
		link := "connected"
		if !r.Connected {
			link = "out of reach: " + printable(r.Error)
		}
		if s.Snapshot {
			link += "; serving the snapshot"
		}
		if r.Member != "" {
			link += ", member " + printable(r.Member)
		}
		fmt.Fprintf(w, "etcd\t%s, revision %d, keys under %s/\n", link, r.Revision, printable(r.Prefix))
	}
	fmt.Fprintf(w, "table\t%s, %s, %s; generation %d\n", some(s.Services, "service"), some(s.Instances, "instance"), some(s.Routes, "route"), s.Generation)
	if s.Conflicts > 0 {
		fmt.Fprintf(w, "conflicts\t%s of no use, for another takes all requests first: rota routes ls\n", some(s.Conflicts, "route"))
	}
	for _, b := range s.Brakes {
		if b.Service == "" {
			fmt.Fprintf(w, "brake\tall services: %d of %d records were lost within seconds, %s ago; who answers serves on\n",
				b.Lost, b.Of, time.Since(b.Since).Round(time.Second))
			continue
		}
		fmt.Fprintf(w, "brake\t%s: %d of %d records were lost within seconds, %s ago; who answers serves on. If they are to go: rota services release %s\n",
			printable(b.Service), b.Lost, b.Of, time.Since(b.Since).Round(time.Second), printable(b.Service))
	}
	for _, key := range s.Orphans {
		fmt.Fprintf(w, "orphan\t%s: in use, though etcd, another store than before, does not have it. Write it anew, or: rota orphans drop\n", printable(key))
	}
	for _, d := range s.Denied {
		fmt.Fprintf(w, "denied\t%s claims %s%s, which no grant covers\n", printable(d.Service), printable(d.Host), printable(d.Path))
	}
	for _, name := range s.Panics {
		fmt.Fprintf(w, "panic\t%s: so few are in a good condition that all get requests\n", printable(name))
	}
	if s.Doubted > 0 {
		fmt.Fprintf(w, "in doubt\t%s suspected, ejected, down or not proven yet: rota instances ls\n", some(s.Doubted, "instance"))
	}
	for _, q := range s.Quarantined {
		fmt.Fprintf(w, "set aside\t%s: %s\n", printable(q.Key), printable(q.Reason))
	}
}

// some writes how many there are of something.
func some(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func servicesCommand() *cobra.Command {
	var ls, get, watch, release look
	return group("services", "Look at services",
		ls.flags(&cobra.Command{
			Use: "ls", Short: "List services", Args: args(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error {
				if ls.etcdctl {
					return ls.etcdctlLine(cmd.OutOrStdout(), "get --keys-only", "/services/", true)
				}
				var list []balancer.Service
				body, err := ls.get(cmd.Context(), "/api/v1/services", &list)
				if err != nil {
					return err
				}
				return ls.show(cmd.OutOrStdout(), body, func(w io.Writer) {
					fmt.Fprintln(w, "SERVICE\tELIGIBLE\tINSTANCES\tIN FLIGHT\tPOLICY")
					for _, s := range list {
						fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", s.Name, s.Eligible, len(s.Instances), s.InFlight, s.Policy)
					}
				})
			},
		}),
		get.flags(&cobra.Command{
			Use: "get <service>", Short: "Show one service with its instances", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNames(1),
			RunE: func(cmd *cobra.Command, list []string) error { return showInstances(cmd, &get, list[0]) },
		}),
		watch.flags(&cobra.Command{
			Use: "watch [service]", Short: "Print changes of instances as they happen", Args: args(cobra.MaximumNArgs(1)), ValidArgsFunction: completeNames(1),
			RunE: func(cmd *cobra.Command, list []string) error { return watchInstances(cmd, &watch, list) },
		}),
		release.flags(&cobra.Command{
			Use: "release <service>", Short: "Give up the suspects of a service, and release its brake", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNames(1),
			Long: "An instance whose record was lost serves on while it answers, for ten minutes at most. This makes those of a service\n" +
				"go at once: for when you know that they are not to serve. Those that register again come back.",
			RunE: func(cmd *cobra.Command, list []string) error {
				if release.etcdctl {
					return noEtcdctl("suspects are what this daemon knows and etcd has lost")
				}
				var r balancer.Released
				body, err := release.ask(cmd.Context(), http.MethodPost, "/api/v1/services/"+url.PathEscape(list[0])+"/release", nil, &r)
				if err != nil {
					return err
				}
				return release.show(cmd.OutOrStdout(), body, func(w io.Writer) { fmt.Fprintf(w, "given up: %s\n", some(r.Gone, "suspect")) })
			},
		}),
	)
}

// orphansCommand is about what an earlier store was told, and the present one does not have.
func orphansCommand() *cobra.Command {
	var ls, drop look
	return group("orphans", "Look at routes, policies and grants that etcd does not have any more",
		ls.flags(&cobra.Command{
			Use: "ls", Short: "List their keys", Args: args(cobra.NoArgs),
			Long: "When etcd was wiped, or restored from a backup, what it does not have of routes, policies and grants stays in use as it was.\n" +
				"Writing such a key anew makes it good.",
			RunE: func(cmd *cobra.Command, _ []string) error {
				if ls.etcdctl {
					return noEtcdctl("etcd does not have them")
				}
				var s balancer.Status
				if _, err := ls.get(cmd.Context(), "/api/v1/status", &s); err != nil {
					return err
				}
				body, err := json.Marshal(append([]string{}, s.Orphans...))
				if err != nil {
					return err
				}
				return ls.tell(cmd.OutOrStdout(), append(body, '\n'), func(w io.Writer) {
					for _, key := range s.Orphans {
						fmt.Fprintln(w, printable(key))
					}
				})
			},
		}),
		drop.flags(&cobra.Command{
			Use: "drop", Short: "Give them up", Args: args(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error {
				if drop.etcdctl {
					return noEtcdctl("etcd does not have them")
				}
				var d balancer.Dropped
				body, err := drop.ask(cmd.Context(), http.MethodDelete, "/api/v1/orphans", nil, &d)
				if err != nil {
					return err
				}
				return drop.show(cmd.OutOrStdout(), body, func(w io.Writer) { fmt.Fprintln(w, "given up: "+some(len(d.Keys), "key")) })
			},
		}),
	)
}

func instancesCommand() *cobra.Command {
	var ls, get, watch look
	return group("instances", "Look at instances",
		ls.flags(&cobra.Command{
			Use: "ls [service]", Short: "List instances", Args: args(cobra.MaximumNArgs(1)), ValidArgsFunction: completeNames(1),
			RunE: func(cmd *cobra.Command, list []string) error {
				return showInstances(cmd, &ls, strings.Join(list, ""))
			},
		}),
		get.flags(&cobra.Command{
			Use: "get <service> <id>", Short: "Show one instance", Args: args(cobra.ExactArgs(2)), ValidArgsFunction: completeNames(2),
			RunE: func(cmd *cobra.Command, list []string) error { return showInstance(cmd, &get, list[0], list[1]) },
		}),
		watch.flags(&cobra.Command{
			Use: "watch [service]", Short: "Print changes of instances as they happen", Args: args(cobra.MaximumNArgs(1)), ValidArgsFunction: completeNames(1),
			RunE: func(cmd *cobra.Command, list []string) error { return watchInstances(cmd, &watch, list) },
		}),
	)
}

// fetchServices returns all services, or one.
func fetchServices(ctx context.Context, l *look, service string) ([]byte, []balancer.Service, error) {
	if service == "" {
		var list []balancer.Service
		body, err := l.get(ctx, "/api/v1/services", &list)
		return body, list, err
	}
	var one balancer.Service
	body, err := l.get(ctx, "/api/v1/services/"+url.PathEscape(service), &one)
	return body, []balancer.Service{one}, err
}

func showInstances(cmd *cobra.Command, l *look, service string) error {
	if l.etcdctl {
		key := "/services/"
		if service != "" {
			key += service + "/"
		}
		return l.etcdctlLine(cmd.OutOrStdout(), "get", key, true)
	}
	body, list, err := fetchServices(cmd.Context(), l, service)
	if err != nil {
		return err
	}
	return l.show(cmd.OutOrStdout(), body, func(w io.Writer) {
		fmt.Fprintln(w, "SERVICE\tINSTANCE\tADDRESS\tSTATE\tWEIGHT\tIN FLIGHT\tWHY")
		for _, s := range list {
			for _, in := range s.Instances {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", s.Name, in.ID, in.Address, in.State, in.Weight, in.InFlight, printable(in.Reason))
			}
		}
	})
}

func showInstance(cmd *cobra.Command, l *look, service, id string) error {
	if l.etcdctl {
		return l.etcdctlLine(cmd.OutOrStdout(), "get", "/services/"+service+"/"+id, false)
	}
	var in balancer.Instance
	body, err := l.get(cmd.Context(), instancePath(service, id), &in)
	if err != nil {
		return err
	}
	return l.tell(cmd.OutOrStdout(), body, func(w io.Writer) { instanceTable(w, service, &in) })
}

// instancePath is where the admin API has an instance.
func instancePath(service, id string) string {
	return "/api/v1/services/" + url.PathEscape(service) + "/instances/" + url.PathEscape(id)
}

func instanceTable(w io.Writer, service string, in *balancer.Instance) {
	fmt.Fprintf(w, "instance\t%s/%s\naddress\t%s\nstate\t%s: %s\n", service, in.ID, in.Address, in.State, printable(in.Reason))
	if !in.Since.IsZero() {
		fmt.Fprintf(w, "since\t%s\n", moment(in.Since))
	}
	if !in.Until.IsZero() {
		fmt.Fprintf(w, "until\t%s\n", moment(in.Until))
	}
	if c := in.Check; c != nil {
		outcome := "passed"
		if !c.OK {
			outcome = "failed: " + printable(c.Text)
		}
		fmt.Fprintf(w, "last check\t%s; after %s, at %s\n", outcome, short(c.Seconds), moment(c.At))
	}
	fmt.Fprintf(w, "weight\t%d\n", in.Weight)
	if r := in.Ramp; r != nil {
		fmt.Fprintf(w, "slow start\tweight %d by now, all of it at %s\n", r.Weight, moment(r.Until))
	}
	fmt.Fprintf(w, "in flight\t%d\n", in.InFlight)
	if in.Static {
		fmt.Fprintln(w, "source\tconfiguration file")
		return
	}
	lease := "no lease"
	if in.Lease != "" {
		lease = "lease " + in.Lease
	}
	if in.LeaseLeft != nil {
		lease += fmt.Sprintf(", which runs for another %.0fs", *in.LeaseLeft)
	}
	fmt.Fprintf(w, "key\t%s at revision %d, %s\n", in.Key, in.Revision, lease)
	for _, k := range slices.Sorted(maps.Keys(in.Metadata)) {
		fmt.Fprintf(w, "%s\t%s\n", printable(k), printable(in.Metadata[k]))
	}
}

// moment writes a time, and how far away it is.
func moment(t time.Time) string {
	text := t.Local().Format(time.DateTime)
	if left := time.Until(t); left > 0 {
		return fmt.Sprintf("%s, in %s", text, left.Round(time.Second))
	}
	return fmt.Sprintf("%s, %s ago", text, time.Since(t).Round(time.Second))
}

func routesCommand() *cobra.Command {
	var l look
	var watch look
	return group("routes", "Look at routes, and write those in etcd", append(routeValues(), getRoute(), watchRoutes(&watch), l.flags(&cobra.Command{
		Use: "ls", Short: "List routes by precedence, and those that never match", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.etcdctl {
				return l.etcdctlLine(cmd.OutOrStdout(), "get", "/routes/", true)
			}
			var r balancer.Routes
			body, err := l.get(cmd.Context(), "/api/v1/routes", &r)
			if err != nil {
				return err
			}
			return l.show(cmd.OutOrStdout(), body, func(w io.Writer) {
				fmt.Fprintln(w, "ROUTE\tSOURCE\tHOST\tPATH\tSERVICE\tPRIORITY\tNOTE")
				for _, x := range r.Routes {
					routeRow(w, x, "")
				}
				for _, c := range r.Conflicts {
					routeRow(w, c.Loser, shadowed(c))
				}
			})
		},
	}))...)
}

func routeRow(w io.Writer, r balancer.Route, note string) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", printable(r.Name), r.Source, orAny(r.Host), orAny(r.Path), r.Service, r.Priority, note)
}

func orAny(s string) string {
	if s == "" {
		return "*"
	}
	return printable(s)
}

// shadowed says why a route never matches.
func shadowed(c balancer.Conflict) string {
	return "never matches: " + printable(c.Winner.Name) + " (" + c.Winner.Source + ") is older"
}

// shownRoute is a route as the daemon has it, why it never matches, and its value in etcd.
type shownRoute struct {
	balancer.Route
	Note  string          `json:"note,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

func getRoute() *cobra.Command {
	var l look
	var only bool
	cmd := l.flags(&cobra.Command{
		Use: "get <name>", Short: "Show a route, wherever it is from, and its value in etcd", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeRoutes(""),
		Long: "Show a route of the file, of etcd or of a claim as the daemon has it; of one in etcd its value, too. File and etcd may each have\n" +
			"one of the same name. With --value, the value in etcd alone, as rota routes put takes it.",
		RunE: func(cmd *cobra.Command, list []string) error {
			out := cmd.OutOrStdout()
			if l.etcdctl {
				return l.etcdctlLine(out, "get --print-value-only", "/routes/"+list[0], false)
			}
			value, err := l.get(cmd.Context(), routePath(list[0]), nil)
			if err != nil && (only || !isUnknown(err)) {
				return err
			}
			if only {
				_, err = out.Write(append(value, '\n'))
				return err
			}
			found, err := l.named(cmd.Context(), list[0], value)
			if err != nil {
				return err
			}
			body, err := json.MarshalIndent(found, "", "  ")
			if err != nil {
				return err
			}
			return l.tell(out, append(body, '\n'), func(w io.Writer) {
				for i := range found {
					routeTable(w, &found[i])
				}
			})
		},
	})
	cmd.Flags().BoolVar(&only, "value", false, "print only its value in etcd")
	return cmd
}

// named lists the routes of a name. The value is that of the one in etcd.
func (l *look) named(ctx context.Context, name string, value []byte) (list []shownRoute, err error) {
	var all balancer.Routes
	if _, err := l.get(ctx, "/api/v1/routes", &all); err != nil {
		return nil, err
	}
	add := func(r balancer.Route, note string) {
		if r.Name != name {
			return
		}
		list = append(list, shownRoute{Route: r, Note: note})
		if r.Source == "etcd" {
			list[len(list)-1].Value = value
		}
	}
	for _, r := range all.Routes {
		add(r, "")
	}
	for _, c := range all.Conflicts {
		add(c.Loser, shadowed(c))
	}
	if len(list) > 0 {
		return list, nil
	}
	var s balancer.Status
	if _, err := l.get(ctx, "/api/v1/status", &s); err != nil {
		return nil, err
	}
	for _, q := range s.Quarantined {
		if s.Registry != nil && q.Key == s.Registry.Prefix+"/routes/"+name {
			return nil, fmt.Errorf("route %s is set aside: %s; rota routes get %s --value prints it", name, printable(q.Reason), name)
		}
	}
	return nil, fmt.Errorf("no route %s is known", name)
}

func routeTable(w io.Writer, r *shownRoute) {
	fmt.Fprintf(w, "route\t%s (%s)%s\n", printable(r.Name), r.Source, atRevision(r.Revision))
	fmt.Fprintf(w, "host\t%s\npath\t%s\nservice\t%s\npriority\t%d\n", orAny(r.Host), orAny(r.Path), r.Service, r.Priority)
	if r.Strip {
		fmt.Fprintln(w, "prefix\tstripped")
	}
	if r.Timeout != "" {
		fmt.Fprintf(w, "timeout\t%s\n", r.Timeout)
	}
	if r.Note != "" {
		fmt.Fprintf(w, "note\t%s\n", r.Note)
	}
	if r.Value != nil {
		var line bytes.Buffer
		json.Compact(&line, r.Value)
		fmt.Fprintf(w, "value\t%s\n", printable(line.String()))
	}
}

// printable keeps text from a registry record from steering the terminal, or from looking like other text: control characters,
// and those that have no width or change the direction, become dots.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '·'
		}
		return r
	}, s)
}
