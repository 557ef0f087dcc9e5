package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"
)

// The verbs that change what instances get. They go through the policy of the service in etcd, so that every balancer heeds
// them and they outlive all of them; the daemon that is asked writes it.

func drainCommand() *cobra.Command {
	return overrideCommand("drain <service> <instance>", 2, "Send nothing new to an instance",
		"The instance keeps what it has, and gets nothing new from any balancer, in this life of its id and the next ones, until\n"+
			"rota undrain. It is not told, and goes on being registered.",
		func([]string) (any, error) { return map[string]any{"drain": true}, nil })
}

func undrainCommand() *cobra.Command {
	return overrideCommand("undrain <service> <instance>", 2, "Take rota drain back", "",
		func([]string) (any, error) { return map[string]any{"drain": false}, nil })
}

func weightCommand() *cobra.Command {
	return overrideCommand("weight <service> <instance> <0..10000|own>", 3, "Give an instance another share of the traffic",
		"100 is what instances have that do not say otherwise; 0 takes nothing new; own is what the instance says itself.",
		func(list []string) (any, error) {
			if list[2] == "own" {
				return map[string]any{"weight": nil}, nil
			}
			n, err := strconv.Atoi(list[2])
			if err != nil {
				return nil, usageError{fmt.Errorf("weight %q: write a number, or own", list[2])}
			}
			return map[string]any{"weight": n}, nil
		})
}

func overrideCommand(use string, n int, short, long string, body func(list []string) (any, error)) *cobra.Command {
	var l look
	var force bool
	cmd := l.flags(&cobra.Command{
		Use: use, Short: short, Long: long, Args: args(cobra.ExactArgs(n)), ValidArgsFunction: completeNames(2),
		RunE: func(cmd *cobra.Command, list []string) error {
			if l.etcdctl {
				return l.etcdctlLine(cmd.OutOrStdout(), "get", "/policies/"+list[0], false)
			}
			v, err := body(list)
			if err != nil {
				return err
			}
			text, err := json.Marshal(v)
			if err != nil {
				return err
			}
			path := "/api/v1/services/" + url.PathEscape(list[0]) + "/instances/" + url.PathEscape(list[1])
			if err := l.write(cmd, http.MethodPatch, path, text, force); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "done; see: rota instances get %s %s\n", list[0], list[1])
			return err
		},
	})
	cmd.Flags().BoolVar(&force, "force", false, "do it although requests would break")
	return cmd
}
