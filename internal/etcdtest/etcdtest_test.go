package etcdtest

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestRestartKeepsDataAndAddress(t *testing.T) {
	t.Parallel()
	s := Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := s.Client().Put(ctx, "/k", "v"); err != nil {
		t.Fatal(err)
	}
	watch := s.Client().Watch(ctx, "/k") // must not delay Stop
	start := time.Now()
	s.Stop()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Stop took %s", took)
	}
	s.Restart()
	resp, err := s.Client().Get(ctx, "/k")
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "v" {
		t.Errorf("after a restart /k is %v", resp.Kvs)
	}
	if _, err := s.Client().Put(ctx, "/k", "w"); err != nil {
		t.Fatal(err)
	}
	for seen := ""; seen != "w"; {
		w, ok := <-watch
		if !ok {
			t.Fatal("the watch ended")
		}
		for _, ev := range w.Events {
			seen = string(ev.Kv.Value)
		}
	}
	s.Stop()
	s.Wipe()
	s.Restart()
	if resp, err = s.Client().Get(ctx, "/k"); err != nil || len(resp.Kvs) != 0 {
		t.Errorf("after a wipe: %v, %v", resp, err)
	}
}

func TestClusterSurvivesLeader(t *testing.T) {
	t.Parallel()
	s := StartCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := s.Client().Put(ctx, "/k", "v"); err != nil {
		t.Fatal(err)
	}
	old := s.Leader()
	old.Stop()
	if s.Leader() == old {
		t.Fatal("the stopped member leads")
	}
	if _, err := s.Client().Get(ctx, "/k"); err != nil {
		t.Fatal(err)
	}
	old.Restart()
}

func TestRelay(t *testing.T) {
	t.Parallel()
	s := Start(t)
	r := NewRelay(t, s.Members[0].ClientAddr)
	c := NewClient(t, clientv3.Config{Endpoints: []string{r.Addr()}})
	get := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		_, err := c.Get(ctx, "/k")
		return err
	}
	if err := get(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	r.Pause()
	if get(100*time.Millisecond) == nil {
		t.Error("a paused relay let a request through")
	}
	r.Resume()
	if err := get(10 * time.Second); err != nil {
		t.Errorf("after Resume: %v", err)
	}
	r.Refuse()
	if get(100*time.Millisecond) == nil {
		t.Error("a refusing relay let a request through")
	}
	r.Accept()
	if err := get(10 * time.Second); err != nil {
		t.Errorf("after Accept: %v", err)
	}
	r.Cut()
	if err := get(10 * time.Second); err != nil {
		t.Errorf("after Cut: %v", err)
	}
}
