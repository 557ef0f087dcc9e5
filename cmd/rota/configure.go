package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/balancer"
	"github.com/rota-lb/rota/config"
)

func configCommand() *cobra.Command {
	var l look
	var daemon, force bool
	show := l.flags(&cobra.Command{
		Use: "print [file]", Short: "Print the configuration as it counts: defaults and environment included, secrets hidden",
		Long: "Print the configuration that rota serve would use, with defaults and the environment applied, and secrets hidden. With\n" +
			"--daemon it is that of the running daemon.",
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, list []string) error {
			if l.etcdctl {
				return noEtcdctl("the configuration is a file; routes and policies in etcd are shown by rota routes ls --etcdctl")
			}
			if daemon {
				var c balancer.Config
				body, err := l.get(cmd.Context(), "/api/v1/config", &c)
				if err != nil {
					return err
				}
				return l.print(cmd.OutOrStdout(), body, c.YAML)
			}
			file := strings.Join(list, "")
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			if file == "" {
				file = config.Find()
			}
			body, err := json.Marshal(balancer.Config{Path: file, YAML: string(c.YAML())})
			if err != nil {
				return err
			}
			return l.print(cmd.OutOrStdout(), append(body, '\n'), string(c.YAML()))
		},
	})
	show.Flags().BoolVar(&daemon, "daemon", false, "ask the running daemon")
	start := &cobra.Command{
		Use: "init [file]", Short: "Write a commented configuration file to begin with", Args: args(cobra.MaximumNArgs(1)),
		Long: "Write a configuration file that has every key, with comments: to rota.yaml, another file, or with \"-\" to the output.",
		RunE: func(cmd *cobra.Command, list []string) error {
			file := "rota.yaml"
			if len(list) > 0 {
				file = list[0]
			}
			if file == "-" {
				_, err := cmd.OutOrStdout().Write(config.Example())
				return err
			}
			flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
			if force {
				flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
			}
			f, err := os.OpenFile(file, flags, 0o640)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s is there already: --force writes over it", file)
			}
			if err != nil {
				return err
			}
			_, err = f.Write(config.Example())
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is written. Next: edit it, rota check %s, rota serve -c %s\n", file, file, file)
			return nil
		},
	}
	start.Flags().BoolVar(&force, "force", false, "write over a file that is there")
	return group("config", "Look at configurations, and begin one", show, start, &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of the configuration file, for editors", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Schema())
			return err
		},
	})
}

func healthcheckCommand() *cobra.Command {
	var l look
	return l.flags(&cobra.Command{
		Use: "healthcheck", Short: "Exit with 0 when the daemon takes traffic, else with 1", Args: args(cobra.NoArgs),
		Long: "Ask the daemon whether it takes traffic (GET /readyz), for HEALTHCHECK of containers and for scripts. It needs no token.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.etcdctl {
				return noEtcdctl("it is the daemon that takes traffic; for etcd itself: etcdctl endpoint health")
			}
			body, err := l.get(cmd.Context(), "/readyz", nil)
			var no refused
			if errors.As(err, &no) {
				body = no.answer
			}
			var r balancer.Readiness
			if bad := json.Unmarshal(body, &r); bad != nil { // no daemon, or another answer than that of readiness
				return cmp.Or(err, bad)
			}
			text := strings.TrimSuffix(r.Status+": "+strings.Join(r.Reasons, "; "), ": ")
			if bad := l.print(cmd.OutOrStdout(), body, text+"\n"); bad != nil {
				return bad
			}
			if err != nil {
				return errors.New("the daemon takes no traffic")
			}
			return nil
		},
	})
}

func loglevelCommand() *cobra.Command {
	var l look
	return l.flags(&cobra.Command{
		Use: "loglevel [debug|info|warn|error]", Short: "Show or change the level of the daemon's log, until it reads its configuration anew",
		Args: args(cobra.MaximumNArgs(1)), ValidArgs: []string{"debug", "info", "warn", "error"},
		RunE: func(cmd *cobra.Command, list []string) error {
			if l.etcdctl {
				return noEtcdctl("the level of a daemon's log is in its memory alone")
			}
			method, body := http.MethodGet, []byte(nil)
			if len(list) > 0 {
				method, body = http.MethodPut, fmt.Appendf(nil, `{"level": %q}`, list[0])
			}
			var v struct{ Level string }
			answer, err := l.ask(cmd.Context(), method, "/api/v1/loglevel", body, &v)
			if err != nil {
				return err
			}
			return l.print(cmd.OutOrStdout(), answer, v.Level+"\n")
		},
	})
}

// completion finds what an argument or a flag may be.
type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete completes up to n arguments with what find gets from the daemon, given those that are there already.
func complete(n int, find func(ctx context.Context, l *look, have []string) []string) completion {
	return func(cmd *cobra.Command, have []string, _ string) (names []string, _ cobra.ShellCompDirective) {
		l := look{output: "table", admin: defaultAdmin}
		if f := cmd.Flags().Lookup("admin"); f != nil {
			l.admin = f.Value.String()
		}
		if f := cmd.Flags().Lookup("token-file"); f != nil {
			l.token = f.Value.String()
		}
		if len(have) < n {
			names = find(cmd.Context(), &l, have)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes the value of a flag as names would a first argument.
func completeFlag(cmd *cobra.Command, flag string, names completion) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		return names(cmd, nil, begun)
	})
	if err != nil {
		panic("rota: " + err.Error()) // there is no such flag
	}
}

// completeNames completes up to n arguments: a service, then an instance of it.
func completeNames(n int) completion {
	return complete(n, func(ctx context.Context, l *look, have []string) (names []string) {
		var list []balancer.Service
		if _, err := l.get(ctx, "/api/v1/services", &list); err != nil {
			return nil
		}
		for _, s := range list {
			if len(have) == 0 {
				names = append(names, s.Name+fmt.Sprintf("\t%d of %d can take requests", s.Eligible, len(s.Instances)))
				continue
			}
			for _, in := range s.Instances {
				if s.Name == have[0] {
					names = append(names, in.ID+"\t"+printable(in.Address+" "+in.State))
				}
			}
		}
		return names
	})
}

// completeRoutes completes the name of a route, those that never match included. An empty source is any.
func completeRoutes(source string) completion {
	return complete(1, func(ctx context.Context, l *look, _ []string) (names []string) {
		var r balancer.Routes
		if _, err := l.get(ctx, "/api/v1/routes", &r); err != nil {
			return nil
		}
		for _, c := range r.Conflicts {
			r.Routes = append(r.Routes, c.Loser)
		}
		for _, x := range r.Routes {
			if source == "" || x.Source == source {
				names = append(names, x.Name+"\t"+x.Source+" "+printable(x.Host+x.Path))
			}
		}
		return names
	})
}
