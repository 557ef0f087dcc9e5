// Package config is what the operator writes: types, defaults, strict loading, validation.
//
// The order is defaults < file < ROTA_SECTION_KEY environment < flags; ETCDCTL_* stands below ROTA_ETCD_*.
// Loading is strict: an unknown key, a wrong type, a value out of range is an [Error] with file, line, column, the
// offending line and, where one is near, the name that was meant. All problems of a file are reported at once.
//
// What may change while the daemon runs is [Dynamic]; what needs a restart is [Static]. A [Config] is read-only once
// loaded. Routes and policies kept in etcd have the same schema as in the file and are read by [ParseRoute] and
// [ParsePolicy].
package config
