package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/balancer"
	"github.com/rota-lb/rota/config"
)

// errBreaks says that a plan would break requests.
var errBreaks = errors.New("this would break requests")

func planCommand() *cobra.Command {
	var l look
	var file, route, policy string
	cmd := l.flags(&cobra.Command{
		Use: "plan (-c file | --route name | --policy service) [value.json|-]", Short: "Show what a change would do, before making it",
		Long: "Ask the daemon what would be different with another configuration file, or with another value of a route or a policy in\n" +
			"etcd (without a value: if it were deleted). The daemon matches a sample of the requests of late again, against the table\n" +
			"that would be, and says which would go elsewhere. Nothing is changed. It exits with 1 when requests would break.\n\n" +
			"The daemon reads the file as a reload would: its environment (ROTA_…) and its flags stand above the file, as they do now, and\n" +
			"are no difference.",
		Example: "  rota plan -c new.yaml\n  rota plan --route cart cart.json\n  echo '{\"balance\": \"p2c\"}' | rota plan --policy cart -",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, list []string) error {
			if l.etcdctl {
				return noEtcdctl("the daemon works a plan out, from requests that it has seen")
			}
			d := balancer.Draft{Route: route, Service: policy}
			if count(file, route, policy) != 1 {
				return usageError{errors.New("give one of -c, --route and --policy")}
			}
			if file != "" {
				if len(list) > 0 {
					return usageError{errors.New("-c takes no value")}
				}
				text, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				d.Config = string(text)
			} else if len(list) > 0 {
				var err error
				if d.Value, err = readValue(cmd, list[0]); err != nil {
					return err
				}
			}
			body, err := json.Marshal(d)
			if err != nil {
				return fmt.Errorf("the value is no JSON: %w", err)
			}
			var p balancer.Plan
			answer, err := l.ask(cmd.Context(), http.MethodPost, "/api/v1/plan", body, &p)
			if err != nil && file != "" {
				if _, bad := config.Load(file, config.WithEnviron(nil)); bad != nil {
					return bad // the same, with the name of the file
				}
			}
			if err != nil {
				return err
			}
			if err := l.tell(cmd.OutOrStdout(), answer, func(w io.Writer) { showPlan(w, &p) }); err != nil {
				return err
			}
			if p.Broken > 0 {
				return fmt.Errorf("%w: %.1f %% of those of late", errBreaks, 100*p.Broken)
			}
			return nil
		},
	})
	cmd.Flags().StringVarP(&file, "config", "c", "", "a configuration `file`")
	cmd.Flags().StringVar(&route, "route", "", "`name` of a route in etcd")
	cmd.Flags().StringVar(&policy, "policy", "", "`service` whose policy it is")
	completeFlag(cmd, "route", completeRoutes("etcd"))
	completeFlag(cmd, "policy", completeNames(1))
	return cmd
}

func count(list ...string) (n int) {
	for _, v := range list {
		if v != "" {
			n++
		}
	}
	return n
}

// readValue reads a file, or with "-" the input.
func readValue(cmd *cobra.Command, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(filepath.Clean(file))
}

func showPlan(w io.Writer, p *balancer.Plan) {
	if len(p.Differences) == 0 {
		fmt.Fprintln(w, "nothing would be different")
	}
	for _, d := range p.Differences {
		note := ""
		if d.Restart {
			note = "  (needs a restart)"
		}
		switch {
		case d.Was == "":
			fmt.Fprintf(w, "+ %s: %s%s\n", printable(d.Path), printable(d.Is), note)
		case d.Is == "":
			fmt.Fprintf(w, "- %s: %s%s\n", printable(d.Path), printable(d.Was), note)
		default:
			fmt.Fprintf(w, "~ %s: %s > %s%s\n", printable(d.Path), printable(d.Was), printable(d.Is), note)
		}
	}
	for _, c := range p.Conflicts {
		fmt.Fprintf(w, "! route %s would never match: %s takes all of its requests\n", printable(c.Loser.Name), printable(c.Winner.Name))
	}
	for _, c := range p.Services {
		fmt.Fprintf(w, "! %s: %d instances would take requests, not %d\t%s\n", printable(c.Service), c.Is, c.Was, printable(c.Under))
	}
	fmt.Fprintf(w, "\n%d requests of late were matched again", p.Replayed)
	if p.Uncertain > 0 {
		fmt.Fprintf(w, "; for %d of them a route asks about header fields that are not kept", p.Uncertain)
	}
	fmt.Fprintln(w)
	for _, m := range p.Moves {
		fmt.Fprintf(w, "%5.1f %%\t%s > %s\t%s\t%s\n", 100*m.Share, printable(m.From), printable(m.To), printable(m.Example), printable(m.Under))
	}
	if p.Replayed > 0 && len(p.Moves) == 0 {
		fmt.Fprintln(w, "all of them would go where they go now")
	}
}

// weighed are the flags of what the daemon weighs against the requests of late before it writes.
type weighed struct {
	force bool
	limit float64
}

func (o *weighed) flags(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.BoolVar(&o.force, "force", false, "do it although requests would break")
	f.Float64Var(&o.limit, "limit", balancer.MostBroken, "the `percentage` of the requests of late from which on it is refused because they would break")
	return cmd
}

// write asks the daemon to write, which it refuses when too much would break.
func (o *weighed) write(ctx context.Context, l *look, method, path string, value []byte) error {
	_, err := l.ask(ctx, method, fmt.Sprintf("%s?force=%t&limit=%g", path, o.force, o.limit), value, nil)
	return err
}

// valueCommands are put and rm of a kind of value in etcd, each written by the daemon, which weighs it first.
func valueCommands(kind, arg, key string, path func(name string) string, names completion) []*cobra.Command {
	var put, rm look
	var putting, removing weighed
	return []*cobra.Command{
		putting.flags(put.flags(&cobra.Command{
			Use: "put <" + arg + "> <file|->", Short: "Write the " + kind + " to etcd", Args: args(cobra.ExactArgs(2)), ValidArgsFunction: names,
			Long: "Write a value, as JSON, to etcd. It is checked first, and refused when too many requests would break (see rota plan, and --limit),\nunless --force is given.",
			RunE: func(cmd *cobra.Command, list []string) error {
				value, err := readValue(cmd, list[1])
				if err != nil {
					return err
				}
				if put.etcdctl {
					return put.etcdctlPut(cmd.OutOrStdout(), key+list[0], bytes.TrimSpace(value))
				}
				if err := putting.write(cmd.Context(), &put, http.MethodPut, path(list[0]), value); err != nil {
					return err
				}
				return put.done(cmd.OutOrStdout(), map[string]any{"change": "put", kind: list[0]}, "")
			},
		})),
		removing.flags(rm.flags(&cobra.Command{
			Use: "rm <" + arg + ">", Short: "Delete the " + kind + " from etcd", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: names,
			RunE: func(cmd *cobra.Command, list []string) error {
				if rm.etcdctl {
					return rm.etcdctlLine(cmd.OutOrStdout(), "del", key+list[0], false)
				}
				if err := removing.write(cmd.Context(), &rm, http.MethodDelete, path(list[0]), nil); err != nil {
					return err
				}
				return rm.done(cmd.OutOrStdout(), map[string]any{"change": "rm", kind: list[0]}, "")
			},
		})),
	}
}

func policiesCommand() *cobra.Command {
	var get look
	path := func(service string) string { return "/api/v1/services/" + url.PathEscape(service) + "/policy" }
	return group("policies", "Read and write policies of services", append(valueCommands("policy", "service", "/policies/", path, completeNames(1)),
		get.flags(&cobra.Command{
			Use: "get <service>", Short: "Print the policy as it is in etcd", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNames(1),
			RunE: func(cmd *cobra.Command, list []string) error {
				if get.etcdctl {
					return get.etcdctlLine(cmd.OutOrStdout(), "get --print-value-only", "/policies/"+list[0], false)
				}
				body, err := get.get(cmd.Context(), path(list[0]), nil)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(append(body, '\n'))
				return err
			},
		}))...)
}

// routePath is where the admin API has the value of a route in etcd.
func routePath(name string) string {
	return "/api/v1/routes/" + url.PathEscape(strings.TrimSpace(name))
}

func routeValues() []*cobra.Command {
	return valueCommands("route", "name", "/routes/", routePath, completeRoutes("etcd"))
}
