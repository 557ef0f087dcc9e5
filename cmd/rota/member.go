package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/config"
)

// startMember starts an etcd member in this process. It is ready when it has found the others, which may come later:
// Server.ReadyNotify tells. Stopped by Close.
func startMember(e config.Embedded, log *zap.Logger) (*embed.Etcd, error) {
	if err := os.MkdirAll(e.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd.embedded.dir: %w", err)
	}
	c := embed.NewConfig()
	c.Name, c.Dir = e.Name, e.Dir
	of := func(address string) url.URL { return url.URL{Scheme: e.Scheme(), Host: address} }
	c.ListenClientUrls = []url.URL{of(e.Client)}
	c.AdvertiseClientUrls = c.ListenClientUrls
	if len(e.Members) == 0 {
		c.ListenPeerUrls = []url.URL{of("127.0.0.1:0")} // nobody comes
		c.AdvertisePeerUrls = c.ListenPeerUrls
		c.InitialCluster = c.InitialClusterFromName(c.Name)
		c.TickMs, c.ElectionMs = 10, 100 // there is no network to wait for
	} else {
		c.ListenPeerUrls = []url.URL{of(e.Members[e.Name])}
		c.AdvertisePeerUrls = c.ListenPeerUrls
		var list []string
		for _, name := range slices.Sorted(maps.Keys(e.Members)) {
			u := of(e.Members[name])
			list = append(list, name+"="+u.String())
		}
		c.InitialCluster = strings.Join(list, ",")
		c.InitialClusterToken = "rota"
		c.ClusterState = cmp.Or(e.InitialClusterState, embed.ClusterStateFlagNew)
	}
	if e.Cert != "" {
		c.ClientTLSInfo = transport.TLSInfo{CertFile: e.Cert, KeyFile: e.Key, TrustedCAFile: e.CACert, ClientCertAuth: e.CACert != ""}
		c.PeerTLSInfo = c.ClientTLSInfo
	}
	// Registrations come and go: their history is of no use. What is there is small.
	c.AutoCompactionMode, c.AutoCompactionRetention = "periodic", "1h"
	c.QuotaBackendBytes = 2 << 30
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log.Named("member"))
	member, err := embed.StartEtcd(c)
	if err != nil && strings.Contains(err.Error(), "already been bootstrapped") { // etcd has no value for it
		return nil, fmt.Errorf("etcd.embedded: %w, and %s does not hold it: if its data is lost, run etcdctl member remove and member add on another member, "+
			"then start this one with initial_cluster_state: existing", err, e.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd.embedded: %w", err)
	}
	return member, nil
}
