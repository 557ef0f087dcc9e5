// Package etcdtest runs real etcd servers inside a test, and breaks the network to them.
//
// [Start] runs one member, [StartCluster] several; both keep their ports and their data over Stop and Restart, tick
// ten times faster than etcd's defaults, do not sync their disks and stay silent. [NewRelay] puts a TCP relay before
// an address that can be paused, cut and closed, which is how tests make a link hang or break.
//
// Everything listens on 127.0.0.1 only. Test code alone may import this package: it links the etcd server.
package etcdtest
