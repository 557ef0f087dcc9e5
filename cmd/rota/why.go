package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/balancer"
)

func whyCommand() *cobra.Command {
	var l look
	var headers []string
	var all bool
	var id string
	cmd := l.flags(&cobra.Command{
		Use: "why [method] <url>", Short: "Explain where a request would go, and why not elsewhere", Args: args(cobra.MaximumNArgs(2)),
		Long: "Ask a running daemon what it would do with a request, without sending one: which route matches and why the others\n" +
			"do not, which instances are chosen among, and what speaks against the rest. With --request-id, what became of a request\n" +
			"that was served, too: the daemon remembers for a while those that went wrong or were slow, and a sample of the others.",
		Example: "  rota why http://shop.example.com/cart/7\n  rota why POST http://shop.example.com/cart -H 'X-Beta: 1'\n  rota why --request-id 0193a1b2c3d4",
		RunE: func(cmd *cobra.Command, list []string) error {
			if l.etcdctl {
				return noEtcdctl("the daemon explains; what it knows from etcd is shown by rota status --etcdctl")
			}
			if (len(list) > 0) == (id != "") {
				return usageError{errors.New("give a URL, or --request-id")}
			}
			q := url.Values{"header": headers}
			if id != "" {
				q.Set("request_id", id)
			} else {
				q.Set("url", list[len(list)-1])
			}
			if len(list) == 2 {
				q.Set("method", list[0])
			}
			var w balancer.Why
			body, err := l.get(cmd.Context(), "/api/v1/why?"+q.Encode(), &w)
			if err != nil {
				return err
			}
			return l.tell(cmd.OutOrStdout(), body, func(out io.Writer) { explain(out, &w, all) })
		},
	})
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "`name: value` of a field of the request; may be repeated")
	cmd.Flags().StringVar(&id, "request-id", "", "`id` of a request that was served (X-Request-Id)")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list the routes that do not match, the first two hundred at most")
	return cmd
}

// atRevision names the revision of a key; nothing where there is none.
func atRevision(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", revision %d", n)
}

// mostLosers is how many routes are listed unless all are asked for.
const mostLosers = 5

func explain(w io.Writer, why *balancer.Why, all bool) {
	fmt.Fprintf(w, "request\t%s %s://%s%s%s\n", printable(why.Method), printable(why.Scheme), printable(why.Host), printable(why.Path), printable(why.Query))
	if x := why.Exchange; x != nil {
		answer := fmt.Sprintf("%d after %s", x.Status, short(x.Duration))
		if x.Reason != "" {
			answer += ": " + x.Reason
		}
		fmt.Fprintf(w, "was answered\t%s, at %s\n", answer, x.At.Local().Format("2006-01-02 15:04:05.000"))
		if x.Attempts > 0 {
			last := "no answer"
			if x.UpstreamStatus != 0 {
				last = fmt.Sprintf("%d after %s", x.UpstreamStatus, short(x.UpstreamTook))
			}
			fmt.Fprintf(w, "attempts\t%d, the last on %s: %s\n", x.Attempts, printable(x.Upstream), last)
		}
		fmt.Fprintf(w, "by\troute %s of the table of revision %d\n", printable(x.Route), x.Revision)
		fmt.Fprintf(w, "\nnow\t\n")
		if why.Uncertain {
			fmt.Fprintf(w, "uncertain\ta route asks about a header field or a query parameter whose value is not remembered\n")
		}
	}
	switch r := why.Route; {
	case r == nil:
		fmt.Fprintf(w, "route\tnone: 404 no_route\n")
	case why.Redirect:
		fmt.Fprintf(w, "route\t%s (%s): a redirect\n", printable(r.Name), r.Source)
	default:
		fmt.Fprintf(w, "route\t%s (%s)%s\n", printable(r.Name), r.Source, atRevision(r.Revision))
	}
	for i, loser := range why.Losers {
		if i == mostLosers && !all {
			fmt.Fprintf(w, "\tand %d more: --all\n", len(why.Losers)-i+why.Unlisted)
			break
		}
		fmt.Fprintf(w, "\tnot %s: %s\n", printable(loser.Route.Name), printable(loser.Why))
	}
	if all && why.Unlisted > 0 {
		fmt.Fprintf(w, "\tand %d more, which the daemon does not list\n", why.Unlisted)
	}
	if why.Service != "" {
		fmt.Fprintf(w, "service\t%s, %s%s\n", printable(why.Service), why.Policy, atRevision(why.PolicyRevision))
	}
	for _, c := range why.Candidates {
		text := fmt.Sprintf("%s %s: %s, %s%s", printable(c.ID), printable(c.Address), c.State, printable(c.Reason), atRevision(c.Revision))
		if !c.Since.IsZero() {
			text += fmt.Sprintf(", for %s", time.Since(c.Since).Round(time.Second))
		}
		if !c.Until.IsZero() {
			text += fmt.Sprintf(", for another %s", time.Until(c.Until).Round(time.Second))
		}
		mark := "no"
		if c.Chosen {
			mark = "yes"
			text += fmt.Sprintf("; weight %d, load %d", c.Share, c.Load)
			if c.Share != c.Weight {
				text += fmt.Sprintf(" (of %d: slow start)", c.Weight)
			}
			if c.Latency > 0 {
				text += ", answers in " + time.Duration(c.Latency*float64(time.Second)).Round(10*time.Microsecond).String()
			}
		}
		fmt.Fprintf(w, "  %s\t%s\n", mark, text)
	}
	switch {
	case why.Reason != "":
		fmt.Fprintf(w, "answer\tnone of an instance: %s\n", strings.TrimSpace(why.Reason))
	case why.Service != "":
		fmt.Fprintf(w, "answer\tof one of those marked yes\n")
	}
	fmt.Fprintf(w, "table\tgeneration %d, revision %d\n", why.Generation, why.Revision)
}

func eventsCommand() *cobra.Command {
	var l look
	return l.flags(&cobra.Command{
		Use: "events", Short: "Show what has happened lately: who came, left, was lost or ejected", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.etcdctl {
				return noEtcdctl("events are what the daemon has seen; rota instances watch --etcdctl follows the keys")
			}
			var list []balancer.Event
			body, err := l.get(cmd.Context(), "/api/v1/events", &list)
			if err != nil {
				return err
			}
			return l.show(cmd.OutOrStdout(), body, func(w io.Writer) {
				fmt.Fprintln(w, "TIME\tWHAT\tWHO\tSTATE\tWHY")
				for _, e := range list {
					who, state := e.Service, e.To
					if e.Instance != "" {
						who += "/" + e.Instance
					}
					if e.From != "" {
						state = e.From + " > " + e.To
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.At.Local().Format("15:04:05.000"), e.Kind, printable(who), state, printable(e.Text))
				}
			})
		},
	})
}
