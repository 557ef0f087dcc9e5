package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/config"
)

func checkCommand() *cobra.Command {
	var probe bool
	cmd := &cobra.Command{
		Use: "check [file]", Aliases: []string{"validate"}, Short: "Check a configuration file",
		Long: `Check a configuration file and print every problem with its line, column and remedy.
Without a file the one that "rota serve" would use is checked. With --probe, what it names
is tried as well: whether etcd can be read, and certificates, keys and secrets loaded.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, list []string) error {
			file := strings.Join(list, "")
			if file == "" {
				if file = config.Find(); file == "" {
					return errors.New("no configuration file: name one, or put rota.yaml here")
				}
			}
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s: ok\n", file)
			if !probe {
				return nil
			}
			return tryOut(cmd.Context(), out, c)
		},
	}
	cmd.Flags().BoolVar(&probe, "probe", false, "try what it names: etcd, certificates, keys, secrets")
	return cmd
}

// tryOut tries what a configuration names, and says how it went. The error holds all that went wrong.
func tryOut(ctx context.Context, out io.Writer, c *config.Config) error {
	var problems []error
	tell := func(what, how string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", what, err))
			return
		}
		fmt.Fprintf(out, "%s: %s\n", what, how)
	}
	pair := func(what, cert, key string) {
		if cert != "" {
			how, err := tryPair(cert, key)
			tell(what, how, err)
		}
	}
	authorities := func(what, file string) {
		if file != "" {
			tell(what, file+" can be read", tryAuthorities(file))
		}
	}
	for i, l := range c.Listeners {
		at := fmt.Sprintf("listeners[%d].tls", i)
		for k, p := range l.TLS.Certificates {
			pair(fmt.Sprintf("%s.certificates[%d]", at, k), p.Cert, p.Key)
		}
		authorities(at+".client_ca", l.TLS.ClientCA)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		t := c.Services[name].TLS
		pair("services."+name+".tls", t.Cert, t.Key)
		authorities("services."+name+".tls.ca", t.CA)
	}
	if tokens, err := c.Admin.ReadTokens(); err != nil || len(tokens) > 0 {
		tell("admin", fmt.Sprintf("%d tokens can be read", len(tokens)), err)
	}
	switch e := c.Etcd.Embedded; {
	case e.Dir != "":
		pair("etcd.embedded", e.Cert, e.Key)
		authorities("etcd.embedded.cacert", e.CACert)
		fmt.Fprintln(out, "etcd: begins with the daemon, in "+e.Dir)
	case !c.Etcd.Disabled:
		pair("etcd.cert", c.Etcd.Cert, c.Etcd.Key)
		authorities("etcd.cacert", c.Etcd.CACert)
		client, err := connect(c.Etcd, zap.NewNop())
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			err = client.Check(ctx)
			cancel()
			client.Close()
		}
		tell("etcd", strings.Join(c.Etcd.Endpoints, ", ")+" can be read", err)
	}
	return errors.Join(problems...)
}

// tryPair loads a certificate with its key, and says for whom and until when it is.
func tryPair(cert, key string) (string, error) {
	p, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return "", err
	}
	names := p.Leaf.DNSNames
	for _, ip := range p.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	until := p.Leaf.NotAfter.Format(time.DateOnly)
	if time.Now().After(p.Leaf.NotAfter) {
		return "", fmt.Errorf("%s has expired on %s: put a new one there", cert, until)
	}
	return fmt.Sprintf("%s is for %s, until %s", cert, printable(strings.Join(names, ", ")), until), nil
}

// tryAuthorities reads a file of certificates to trust.
func tryAuthorities(file string) error {
	pem, err := os.ReadFile(file)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		err = fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return err
}
