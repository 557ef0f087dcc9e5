package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/config"
)

// The verbs that change what instances get. They go through the policy of the service in etcd, so that every balancer heeds
// them and they outlive all of them; the daemon that is asked writes it.

func drainCommand() *cobra.Command {
	return overrideCommand("drain <service> <instance>", 2, "Send nothing new to an instance",
		"The instance keeps what it has, and gets nothing new from any balancer, in this life of its id and the next ones, until\n"+
			"rota undrain. It is not told, and goes on being registered.",
		func([]string) (override, error) {
			return override{`{"drain": true}`, func(o *config.Override) { o.Drain = true }}, nil
		})
}

func undrainCommand() *cobra.Command {
	return overrideCommand("undrain <service> <instance>", 2, "Take rota drain back", "",
		func([]string) (override, error) {
			return override{`{"drain": false}`, func(o *config.Override) { o.Drain = false }}, nil
		})
}

func weightCommand() *cobra.Command {
	return overrideCommand("weight <service> <instance> <0..10000|own>", 3, "Give an instance another share of the traffic",
		"100 is what instances have that do not say otherwise; 0 takes nothing new; own is what the instance says itself.",
		func(list []string) (override, error) {
			if list[2] == "own" {
				return override{`{"weight": null}`, func(o *config.Override) { o.Weight = nil }}, nil
			}
			n, err := strconv.Atoi(list[2])
			if err != nil {
				return override{}, usageError{fmt.Errorf("weight %q: write a number, or own", list[2])}
			}
			return override{fmt.Sprintf(`{"weight": %d}`, n), func(o *config.Override) { o.Weight = &n }}, nil
		})
}

// override is a change of what an operator says about an instance: as the daemon is told, and as it does it.
type override struct {
	body   string
	change func(*config.Override)
}

func overrideCommand(use string, n int, short, long string, parse func(list []string) (override, error)) *cobra.Command {
	var l look
	var o weighed
	return o.flags(l.flags(&cobra.Command{
		Use: use, Short: short, Long: long, Args: args(cobra.ExactArgs(n)), ValidArgsFunction: completeNames(2),
		RunE: func(cmd *cobra.Command, list []string) error {
			word, err := parse(list)
			if err != nil {
				return err
			}
			if l.etcdctl {
				value, err := l.overridden(cmd.Context(), list[0], list[1], word.change)
				if err != nil {
					return err
				}
				return l.etcdctlPut(cmd.OutOrStdout(), "/policies/"+list[0], value)
			}
			if err := o.write(cmd.Context(), &l, http.MethodPatch, instancePath(list[0], list[1]), []byte(word.body)); err != nil {
				return err
			}
			what := map[string]any{"change": cmd.Name(), "service": list[0], "instance": list[1], "override": json.RawMessage(word.body)}
			return l.done(cmd.OutOrStdout(), what, fmt.Sprintf("done; see: rota instances get %s %s\n", list[0], list[1]))
		},
	}))
}

// overridden is the policy of a service, as the daemon has it now, with another word about an instance; nil if nothing is left.
func (l *look) overridden(ctx context.Context, service, id string, change func(*config.Override)) ([]byte, error) {
	value, err := l.get(ctx, "/api/v1/services/"+url.PathEscape(service)+"/policy", nil)
	if err != nil && !isUnknown(err) {
		return nil, err
	}
	return config.EditPolicy(service, value, func(p *config.Service) { p.Override(id, change) })
}
