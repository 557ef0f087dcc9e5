package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rota-lb/rota/config"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man <directory>", Short: "Write the manual pages, one for each command and one for rota.yaml", Args: args(cobra.ExactArgs(1)),
		Example: "  rota man /usr/share/man/man1",
		RunE: func(cmd *cobra.Command, list []string) error {
			if err := os.MkdirAll(list[0], 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(list[0], "rota.yaml.5"), []byte(configPage()), 0o644); err != nil {
				return err
			}
			return manual(cmd.Root(), list[0])
		},
	}
}

// manual writes the page of a command and of those below it.
func manual(cmd *cobra.Command, dir string) error {
	if cmd.Hidden || cmd.Name() == "help" || strings.HasPrefix(cmd.CommandPath(), "rota completion ") {
		return nil
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	if err := os.WriteFile(filepath.Join(dir, name+".1"), []byte(page(cmd, name)), 0o644); err != nil {
		return err
	}
	for _, sub := range cmd.Commands() {
		if err := manual(sub, dir); err != nil {
			return err
		}
	}
	return nil
}

// page is a manual page in the language of man(7).
func page(cmd *cobra.Command, name string) string {
	var b strings.Builder
	line := func(format string, list ...any) { fmt.Fprintf(&b, format+"\n", list...) }
	line(".TH %s 1 \"\" \"rota %s\" \"Rota\"", strings.ToUpper(troff(name)), troff(versionText()))
	line(".SH NAME\n%s \\- %s", troff(name), troff(cmd.Short))
	line(".SH SYNOPSIS\n.B %s", troff(cmd.UseLine()))
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	line(".SH DESCRIPTION\n.nf\n%s\n.fi", troff(text))
	flags := func(title string, set *pflag.FlagSet) {
		if !set.HasAvailableFlags() {
			return
		}
		line(".SH %s", title)
		set.VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			kind, usage := pflag.UnquoteUsage(f)
			option := "\\-\\-" + troff(f.Name)
			if f.Shorthand != "" {
				option = "\\-" + f.Shorthand + ", " + option
			}
			if kind != "" {
				option += " \\fI" + troff(kind) + "\\fR"
			}
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" {
				usage += " (default " + f.DefValue + ")"
			}
			line(".TP\n\\fB%s\\fR\n%s", option, troff(usage))
		})
	}
	flags("OPTIONS", cmd.LocalFlags())
	if cmd.Example != "" {
		line(".SH EXAMPLES\n.nf\n%s\n.fi", troff(cmd.Example))
	}
	if !cmd.HasParent() {
		line(".SH EXIT STATUS\n0 done, 1 wrong configuration or no start, 2 forced to stop, 3 exchanges were still in flight at the end of the grace period, 64 wrong usage.")
		line(".SH FILES\n.TP\n\\&./rota.yaml, $XDG_CONFIG_HOME/rota/rota.yaml, /etc/rota/rota.yaml\nThe configuration: the first of them that is there.")
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, strings.ReplaceAll(cmd.Parent().CommandPath(), " ", "-"))
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			also = append(also, strings.ReplaceAll(sub.CommandPath(), " ", "-"))
		}
	}
	if len(also) > 0 {
		line(".SH SEE ALSO")
		for i, name := range also {
			end := ","
			if i == len(also)-1 {
				end = ""
			}
			line(".BR %s (1)%s", troff(name), end)
		}
	}
	return b.String()
}

// configPage is the manual page of the configuration file: the example has every key with its meaning and default.
func configPage() string {
	return ".TH ROTA.YAML 5 \"\" \"rota " + troff(versionText()) + "\" \"Rota\"\n" +
		".SH NAME\nrota.yaml \\- configuration of the load balancer rota\n" +
		".SH DESCRIPTION\nThe file that\n.BR rota\\-serve (1)\nreads, in YAML. A setting stands in this order: defaults, the file, variables named ROTA_SECTION_KEY, flags.\n" +
		"What stands under routes, services, auto_routes, timeouts, retries, limits, trusted_proxies, request_id and log takes effect at SIGHUP; the rest needs a restart.\n" +
		".B rota check\nsays what is wrong in a file, with line, column and remedy.\n" +
		".SH EVERY KEY\n.nf\n" + troff(string(config.Example())) + "\n.fi\n" +
		".SH SEE ALSO\n.BR rota\\-serve (1),\n.BR rota\\-check (1)\n"
}

// troff writes text so that it stands for itself.
func troff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "–", `\(en`, "“", `\(lq`, "”", `\(rq`, "'", `\(aq`, "`", `\(ga`).Replace(text)
	for _, c := range []string{".", `\(aq`} { // at the beginning of a line they are commands
		text = strings.ReplaceAll(text, "\n"+c, "\n\\&"+c)
		if strings.HasPrefix(text, c) {
			text = `\&` + text
		}
	}
	return strings.TrimRight(text, "\n")
}
