package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/config"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// etcdFlags say where etcd is and who asks, by etcdctl's names. What they leave empty the file or the environment says.
type etcdFlags struct {
	endpoints          []string
	cacert, cert, key  string
	username, password string
	insecureSkipVerify bool
}

func (e *etcdFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&e.endpoints, "endpoints", nil, "`endpoints` of etcd (default 127.0.0.1:2379)")
	f.StringVar(&e.cacert, "cacert", "", "PEM `file` of the authorities that etcd's certificate is from")
	f.StringVar(&e.cert, "cert", "", "PEM `file` of the certificate to show to etcd")
	f.StringVar(&e.key, "key", "", "PEM `file` of its key")
	f.StringVar(&e.username, "user", "", "`name` at etcd, or name:password; a password file or ROTA_ETCD_PASSWORD shows it to nobody else")
	f.StringVar(&e.password, "password", "", "`password` at etcd")
	f.BoolVar(&e.insecureSkipVerify, "insecure-skip-tls-verify", false, "accept any certificate of etcd")
}

// user is the name and the password that were given.
func (e *etcdFlags) user() (name, password string) {
	name, inside, both := strings.Cut(e.username, ":")
	if both && e.password == "" {
		return name, inside
	}
	return name, e.password
}

// complete reports flags that need another one.
func (e *etcdFlags) complete() error {
	if (e.cert == "") != (e.key == "") {
		return usageError{errors.New("--cert and --key: give both")}
	}
	if name, password := e.user(); name == "" && password != "" {
		return usageError{errors.New("--password: whose? Give --user, too")}
	}
	return nil
}

// override puts what was given over a configuration. Fields that belong together are never mixed.
func (e *etcdFlags) override(c *config.Etcd) {
	if len(e.endpoints) > 0 {
		c.Endpoints, c.Disabled = e.endpoints, false
	}
	if e.cacert != "" {
		c.CACert = e.cacert
	}
	if e.cert != "" {
		c.Cert, c.Key = e.cert, e.key
	}
	if name, password := e.user(); name != "" {
		if password != "" || name != c.Username {
			c.Password, c.PasswordFile = password, ""
		}
		c.Username = name
	}
	c.InsecureSkipVerify = c.InsecureSkipVerify || e.insecureSkipVerify
}

// options are those of a client; the environment may say what is left out.
func (e *etcdFlags) options(o *registryetcd.Options) {
	o.Endpoints, o.CACert, o.Cert, o.Key, o.InsecureSkipVerify = e.endpoints, e.cacert, e.cert, e.key, e.insecureSkipVerify
	o.Username, o.Password = e.user()
}
