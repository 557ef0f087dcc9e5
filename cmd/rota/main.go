// Command rota is a load balancer that learns its upstreams from etcd.
//
// "rota serve" runs the daemon, "rota dev" runs it with etcd inside and three sample instances, "rota register" runs another
// program and keeps it registered, the other verbs look at a running daemon or check a configuration. Exit status: 0 ok,
// 1 configuration or start failure, 2 forced to stop, 3 exchanges still in flight at the end of the grace period, 64 wrong
// usage; that of register is the other program's.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/balancer"
)

// version is set by the linker for releases.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

// The exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitForced = 2
	exitDrain  = 3
	exitUsage  = 64
)

// errForced says that a second signal cut the draining short.
var errForced = errors.New("stopped before exchanges in flight were done")

// usageError is a wrong command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// statusError ends rota with a status that is another program's. A nil error inside has nothing to say.
type statusError struct {
	status int
	err    error
}

func (e statusError) Error() string { return fmt.Sprintf("status %d: %v", e.status, e.err) }
func (e statusError) Unwrap() error { return e.err }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run runs a command line and returns its exit status.
func run(args []string, stdout, stderr io.Writer) int {
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	defer flush(cmd)
	err := cmd.Execute()
	stderr = cmd.ErrOrStderr() // of a daemon, a queue
	var usage usageError
	var other statusError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &other):
		if other.err != nil {
			fmt.Fprintf(stderr, "rota: %v\n", other.err)
		}
		return other.status
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(stderr, "rota: %v\nSee 'rota --help'.\n", err)
		return exitUsage
	case errors.Is(err, errForced):
		fmt.Fprintf(stderr, "rota: %v\n", err)
		return exitForced
	case errors.Is(err, balancer.ErrDrainDeadline):
		fmt.Fprintf(stderr, "rota: %v\n", err)
		return exitDrain
	}
	fmt.Fprintf(stderr, "rota: %v\n", err)
	return exitFailed
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rota",
		Short: "A load balancer that learns its upstreams from etcd",
		Long: `Rota is a load balancer that learns its upstreams from etcd.

Services register themselves under a lease; rota watches the keys and routes to
them at once. Nothing is rendered and nothing is reloaded. To begin with: rota dev`,
		SilenceUsage: true, SilenceErrors: true,
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"run", "Run it:", []*cobra.Command{devCommand(), serveCommand(), registerCommand(), checkCommand(), configCommand(), importCommand()}},
		{"look", "See what a running daemon does, and why:", []*cobra.Command{
			statusCommand(), topCommand(), servicesCommand(), instancesCommand(), routesCommand(), whyCommand(), eventsCommand(),
		}},
		{"steer", "Change what it does:", []*cobra.Command{planCommand(), drainCommand(), undrainCommand(), weightCommand(), policiesCommand(), orphansCommand(), loglevelCommand()}},
		{"", "", []*cobra.Command{healthcheckCommand(), manCommand(), versionCommand()}},
	} {
		if g.id != "" {
			cmd.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		}
		for _, c := range g.commands {
			c.GroupID = g.id
			cmd.AddCommand(c)
		}
	}
	return cmd
}

// args wraps a check of arguments so that its error counts as wrong usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, list []string) error {
		if err := check(cmd, list); err != nil {
			return usageError{fmt.Errorf("%s: %w", cmd.CommandPath(), err)}
		}
		return nil
	}
}

// group is a command that only has subcommands.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, RunE: func(cmd *cobra.Command, list []string) error {
		if len(list) > 0 {
			return usageError{fmt.Errorf("unknown command %q for %q", list[0], cmd.CommandPath())}
		}
		return cmd.Help()
	}}
	cmd.AddCommand(sub...)
	return cmd
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{
					"version": versionText(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "rota %s %s %s/%s\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	return cmd
}
