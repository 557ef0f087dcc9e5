package registrytest

import (
	"errors"
	"strconv"
	"sync"

	"github.com/rota-lb/rota/registry"
)

func testEdit(s *suite) {
	e := s.client().(registry.Editor)
	key := s.h.Keys.Policy(s.service())
	w := s.watch(s.client(), registry.Scope{})
	add := func(old []byte) ([]byte, error) {
		n, _ := strconv.Atoi(string(old)) // none is 0
		return strconv.AppendInt(nil, int64(n+1), 10), nil
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := e.Edit(s.limit(), key, add); err != nil {
				s.Error(err)
			}
		})
	}
	wg.Wait()
	w.Wait(s.T, "every edit", func(view map[string]registry.Change) bool {
		return string(view[key].Value) == "8" && view[key].Lease == 0
	})
	no := errors.New("no")
	s.mustBe(e.Edit(s.limit(), key, func([]byte) ([]byte, error) { return nil, no }), no)
	s.must(e.Edit(s.limit(), key, func(old []byte) ([]byte, error) { return nil, nil }))
	s.gone(w, key)
	s.must(e.Edit(s.limit(), key, func(old []byte) ([]byte, error) { return nil, nil }))
}
