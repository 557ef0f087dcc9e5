package main

import (
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
				var c struct{ YAML string }
				if _, err := l.get(cmd.Context(), "/api/v1/config", &c); err != nil {
					return err
				}
				_, err := fmt.Fprint(cmd.OutOrStdout(), c.YAML)
				return err
			}
			c, err := config.Load(strings.Join(list, ""))
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(c.YAML())
			return err
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
			var r struct {
				Status  string
				Reasons []string
			}
			if _, err := l.get(cmd.Context(), "/readyz", &r); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSuffix(r.Status+": "+strings.Join(r.Reasons, "; "), ": "))
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
			if _, err := l.ask(cmd.Context(), method, "/api/v1/loglevel", body, &v); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), v.Level)
			return nil
		},
	})
}

// completeNames completes up to n arguments with what the daemon knows: a service, then an instance of it.
func completeNames(n int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, have []string, _ string) (names []string, _ cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		l := look{output: "table", admin: defaultAdmin}
		if f := cmd.Flags().Lookup("admin"); f != nil {
			l.admin = f.Value.String()
		}
		if f := cmd.Flags().Lookup("token-file"); f != nil {
			l.token = f.Value.String()
		}
		if len(have) >= n {
			return nil, none
		}
		var list []balancer.Service
		if _, err := l.get(cmd.Context(), "/api/v1/services", &list); err != nil {
			return nil, none
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
		return names, none
	}
}
