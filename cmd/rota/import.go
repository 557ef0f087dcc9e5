package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/cmd/rota/internal/importer"
	"github.com/rota-lb/rota/config"
)

// written is where an import goes.
type written struct {
	file  string
	force bool
}

func (o *written) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.file, "output", "o", "", "`file` to write (default standard output)")
	cmd.Flags().BoolVar(&o.force, "force", false, "write over a file that is there")
}

// write writes what was imported, and says on stderr what was not.
func (o *written) write(cmd *cobra.Command, r *importer.Result) error {
	for _, n := range r.Notes {
		fmt.Fprintln(cmd.ErrOrStderr(), printable(n.String()))
	}
	if o.file == "" || o.file == "-" {
		_, err := cmd.OutOrStdout().Write(r.YAML)
		return err
	}
	how := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if o.force {
		how = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(o.file, how, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already; name another file, or add --force", o.file)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(r.YAML)
	return errors.Join(err, f.Close())
}

func importCommand() *cobra.Command {
	return group("import", "Make a configuration of one for nginx, or of keys for confd", importNginxCommand(), importConfdCommand())
}

func importNginxCommand() *cobra.Command {
	var o written
	cmd := &cobra.Command{
		Use:   "nginx FILE",
		Short: "Make a configuration of nginx's",
		Long: `Make a rota.yaml of an nginx.conf, or of a part of one that stands inside of http.

What is not carried over, or not exactly, is said on standard error with file, line
and remedy. What was closed (allow, deny, auth_basic, …) is not opened: such routes
answer 503 until you decide. docs/from-nginx-confd.md has the table.`,
		Example: `  rota import nginx /etc/nginx/nginx.conf -o rota.yaml && rota check rota.yaml`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, list []string) error {
			r, err := importer.Nginx(list[0])
			if err != nil {
				return err
			}
			return o.write(cmd, r)
		},
	}
	o.flags(cmd)
	return cmd
}

func importConfdCommand() *cobra.Command {
	var o written
	var c importer.Confd
	var where etcdFlags
	var dump string
	cmd := &cobra.Command{
		Use:   "confd",
		Short: "Make a configuration of the keys and the template of confd",
		Long: `Make a rota.yaml of the keys that confd reads, and of the template it fills.

The daemon then follows the very same keys; those who write them need no change. Keys
are read from etcd (as with "rota serve", variables ROTA_ETCD_* and ETCDCTL_* count
below the flags), or from a file that "etcdctl get --prefix /" has made, with or without
-w json. What is not carried over is said on standard error.`,
		Example: `  rota import confd --endpoints 10.0.0.1:2379 --prefix /services -o rota.yaml
  etcdctl get --prefix / -w json > keys.json
  rota import confd --keys keys.json --prefix /services --template nginx.tmpl`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if dump != "" {
				data, err := os.ReadFile(dump)
				if err != nil {
					return err
				}
				c.Source = dump
				if c.Keys, err = importer.ReadKeys(dump, data); err != nil {
					return err
				}
			} else if err = fetchKeys(cmd, &c, &where); err != nil {
				return err
			}
			r, err := c.Import()
			if err != nil {
				return err
			}
			return o.write(cmd, r)
		},
	}
	f := cmd.Flags()
	where.flags(cmd)
	f.StringVar(&c.Prefix, "prefix", "/services", "`prefix` of the keys")
	f.StringVar(&c.Template, "template", "", "`file` of a template that makes an nginx.conf")
	f.StringVar(&dump, "keys", "", "`file` with the keys, in place of etcd")
	o.flags(cmd)
	return cmd
}

// fetchKeys reads the keys from etcd. With a template all of them, as that may name any.
func fetchKeys(cmd *cobra.Command, c *importer.Confd, where *etcdFlags) error {
	if err := where.complete(); err != nil {
		return err
	}
	cfg, err := config.Load(os.DevNull) // the environment only
	if err != nil {
		return err
	}
	where.override(&cfg.Etcd)
	c.Endpoints, c.Source = cfg.Etcd.Endpoints, "etcd"
	client, err := etcdClient(cfg.Etcd)
	if err != nil {
		return err
	}
	defer client.Close()
	prefix := c.Prefix
	if c.Template != "" {
		prefix = ""
	}
	c.Keys, err = importer.FetchKeys(cmd.Context(), client, prefix)
	return err
}

// etcdClient makes a plain client of etcd, for keys that are none of Rota's.
func etcdClient(c config.Etcd) (*clientv3.Client, error) {
	password, err := c.ReadPassword()
	if err != nil {
		return nil, err
	}
	cfg := clientv3.Config{
		Endpoints: c.Endpoints, DialTimeout: c.DialTimeout, Username: c.Username, Password: password, Logger: zap.NewNop(),
	}
	if c.CACert != "" || c.Cert != "" || c.InsecureSkipVerify {
		cfg.TLS = &tls.Config{InsecureSkipVerify: c.InsecureSkipVerify}
	}
	if c.CACert != "" {
		pem, err := os.ReadFile(c.CACert)
		if err != nil {
			return nil, err
		}
		cfg.TLS.RootCAs = x509.NewCertPool()
		if !cfg.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate; name the authority of etcd as PEM", c.CACert)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("etcd: certificate: %w", err)
		}
		cfg.TLS.Certificates = []tls.Certificate{pair}
	}
	return clientv3.New(cfg)
}
