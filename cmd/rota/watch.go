package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/balancer"
)

// The verbs that watch follow the daemon's events. What these do not tell, such as another weight, is seen when something else has
// happened, or after a while; without the stream the daemon is asked more often.
const (
	seldomAgain = 10 * time.Second
	oftenAgain  = time.Second
)

// stream hands over the events after one, by its id, until the stream ends.
func (l *look) stream(ctx context.Context, since string, events chan<- balancer.Event) error {
	req, err := l.request(ctx, http.MethodGet, "/api/v1/events", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", since)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refused{resp.StatusCode, resp.Status, nil}
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue
		}
		var e balancer.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		select {
		case events <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return lines.Err()
}

// watch calls again at once, after events that heard says matter, and from time to time, until Ctrl-C or an error of again.
func (l *look) watch(ctx context.Context, heard func(balancer.Event) bool, again func(ctx context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	last := ""
	var before []balancer.Event
	if _, err := l.get(ctx, "/api/v1/events", &before); err != nil {
		return err
	}
	if n := len(before); n > 0 {
		last = before[n-1].ID
	}
	if err := again(ctx); err != nil {
		return err
	}
	events, ended := make(chan balancer.Event), make(chan error, 1)
	follow := func() { ended <- l.stream(ctx, last, events) }
	go follow()
	wait := seldomAgain
	timer := time.NewTimer(wait)
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			last, wait = e.ID, seldomAgain
			if heard(e) {
				timer.Reset(50 * time.Millisecond) // more of them may come
			}
			continue
		case <-ended:
			wait = oftenAgain
			timer.Reset(wait)
			time.AfterFunc(wait, follow)
			continue
		case <-timer.C:
		}
		if err := again(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		timer.Reset(wait)
	}
}

// instanceWatch prints a line for every change of an instance.
type instanceWatch struct {
	look    *look
	out     io.Writer
	service string // empty is all of them
	seen    map[string]balancer.Instance
}

// watchInstances prints a line for every instance that appears, changes or goes, until interrupted.
func watchInstances(cmd *cobra.Command, l *look, list []string) error {
	w := &instanceWatch{look: l, out: cmd.OutOrStdout(), service: strings.Join(list, ""), seen: map[string]balancer.Instance{}}
	if l.etcdctl {
		key := "/services/"
		if w.service != "" {
			key += w.service + "/"
		}
		return l.etcdctlLine(w.out, "watch", key, true)
	}
	return l.watch(cmd.Context(), w.heard, w.again)
}

func (w *instanceWatch) say(at time.Time, mark, key string, in balancer.Instance) {
	if w.look.output == "json" {
		json.NewEncoder(w.out).Encode(map[string]any{"change": mark, "instance": key, "now": in})
		return
	}
	fmt.Fprintf(w.out, "%s  %-8s %s  %s  %s  weight %d  %s\n", at.Local().Format("15:04:05.000"), mark, printable(key), printable(in.Address), in.State, in.Weight,
		printable(in.Reason))
}

// heard prints what an event tells, unless a look has shown it already.
func (w *instanceWatch) heard(e balancer.Event) bool {
	if w.service != "" && e.Service != "" && e.Service != w.service {
		return false
	}
	if e.Kind != "instance" {
		return e.Kind != "routes"
	}
	key := e.Service + "/" + e.Instance
	in, known := w.seen[key]
	mark := "changed"
	switch {
	case e.To == "gone" && !known, known && in.State == e.To:
		return true
	case e.To == "gone":
		mark = "gone"
		delete(w.seen, key)
	case !known:
		mark, in.Weight = "added", 100
	}
	in.ID, in.Address, in.State, in.Reason = e.Instance, e.Address, e.To, e.Text
	if e.Revision > 0 {
		in.Revision = e.Revision
	}
	if mark != "gone" {
		w.seen[key] = in
	}
	w.say(e.At, mark, key, in)
	return true
}

// again looks at all of them, and prints what no event has told.
func (w *instanceWatch) again(ctx context.Context) error {
	_, all, err := fetchServices(ctx, w.look, w.service)
	if isUnknown(err) {
		all, err = nil, nil
	}
	if err != nil {
		return err
	}
	now := map[string]balancer.Instance{}
	for _, s := range all {
		for _, in := range s.Instances {
			key := s.Name + "/" + in.ID
			now[key] = in
			if old, ok := w.seen[key]; !ok {
				w.say(time.Now(), "added", key, in)
			} else if old.State != in.State || old.Address != in.Address || old.Weight != in.Weight {
				w.say(time.Now(), "changed", key, in)
			}
		}
	}
	for key, in := range w.seen {
		if _, ok := now[key]; !ok {
			w.say(time.Now(), "gone", key, in)
		}
	}
	w.seen = now
	return nil
}

// watchRoutes prints changes of the routes in effect until Ctrl-C.
func watchRoutes(l *look) *cobra.Command {
	return l.flags(&cobra.Command{
		Use: "watch", Short: "Print changes of routes as they happen", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if l.etcdctl {
				return l.etcdctlLine(out, "watch", "/routes/", true)
			}
			var seen map[balancer.Route]bool
			return l.watch(cmd.Context(), func(e balancer.Event) bool { return e.Kind != "instance" }, func(ctx context.Context) error {
				var r balancer.Routes
				if _, err := l.get(ctx, "/api/v1/routes", &r); err != nil {
					return err
				}
				now := map[balancer.Route]bool{}
				for _, x := range r.Routes {
					if now[x] = true; !seen[x] {
						l.tellRoute(out, "added", x)
					}
				}
				for x := range seen {
					if !now[x] {
						l.tellRoute(out, "gone", x)
					}
				}
				seen = now
				return nil
			})
		},
	})
}

func (l *look) tellRoute(w io.Writer, mark string, r balancer.Route) {
	if l.output == "json" {
		json.NewEncoder(w).Encode(map[string]any{"change": mark, "route": r})
		return
	}
	fmt.Fprintf(w, "%s  %-8s %s (%s)  %s%s  %s\n", time.Now().Format("15:04:05.000"), mark, printable(r.Name), r.Source, printable(r.Host), printable(r.Path), r.Service)
}
