package route

import "sync/atomic"

// Store is where control publishes tables and the data plane loads them. Load never blocks. The zero value holds an empty
// table.
type Store struct {
	current atomic.Pointer[generation]
}

type generation struct {
	table      *Table
	superseded chan struct{}
}

var empty = &Table{}

// Load returns the current table; never nil.
func (s *Store) Load() *Table {
	if g := s.current.Load(); g != nil {
		return g.table
	}
	return empty
}

// Publish makes a table current. Only one goroutine may publish.
func (s *Store) Publish(t *Table) {
	old := s.current.Swap(&generation{t, make(chan struct{})})
	if old != nil {
		close(old.superseded)
	}
}

// Next returns the current table and a channel that is closed when another one has been published. Before the first
// Publish the channel is nil and the table empty.
func (s *Store) Next() (*Table, <-chan struct{}) {
	if g := s.current.Load(); g != nil {
		return g.table, g.superseded
	}
	return empty, nil
}
