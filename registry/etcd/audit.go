package registryetcd

import (
	"context"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
)

// audit lists all keys anew, beside the watch, and compares their revisions with those delivered.
type audit struct {
	// touched are the hashes of the keys that were delivered since the audit began. Nothing can be said of them, as
	// they may have changed after the list.
	touched map[uint64]struct{}

	done chan struct{} // closed when what follows may be read
	rev  int64         // of the list
	keys map[uint64]int64
	err  error
}

func (w *watch) startAudit(ctx context.Context) *audit {
	a := &audit{touched: make(map[uint64]struct{}), done: make(chan struct{})}
	size := len(w.seen)
	go func() {
		defer close(a.done)
		again := func() { a.keys = make(map[uint64]int64, size) }
		header, err := w.c.list(ctx, w.prefixes, true, again, func(kv *mvccpb.KeyValue) {
			a.keys[w.hash(kv.Key)] = kv.ModRevision
		})
		if err != nil {
			a.err = err
			return
		}
		a.rev = header.Revision
	}()
	return a
}

// finished says whether an audit whose list is done can be judged by a watch that has reached rev.
func (a *audit) finished(rev int64) bool { return a.err != nil || rev >= a.rev }

// judge compares, and returns errAudit if there is a difference.
func (w *watch) judge(a *audit) error {
	if a.err != nil {
		w.scheduleAudit(min(w.c.opts.AuditEvery, 10*time.Second))
		return nil
	}
	w.c.stats.audits.Add(1)
	w.scheduleAudit(w.c.opts.AuditEvery)
	missed, wrong, extra := 0, 0, 0
	for key, mod := range a.keys {
		if _, ok := a.touched[key]; ok {
			continue
		}
		switch last, ok := w.seen[key]; {
		case !ok:
			missed++
		case last != mod:
			wrong++
		}
	}
	for key := range w.seen {
		if _, ok := a.keys[key]; ok {
			continue
		}
		if _, ok := a.touched[key]; !ok {
			extra++
		}
	}
	if missed+wrong+extra == 0 {
		return nil
	}
	w.log.Warn("audit found a difference", zap.Int("missed", missed), zap.Int("wrong", wrong), zap.Int("extra", extra),
		zap.Int64("revision", a.rev))
	return errAudit
}

// scheduleAudit sets the next audit to about d from now, or earlier if one was due by then.
func (w *watch) scheduleAudit(d time.Duration) {
	if d < 0 {
		w.nextAudit = time.Time{}
		return
	}
	w.nextAudit = time.Now().Add(jitter(d))
}

func (w *watch) untilAudit() time.Duration {
	if w.nextAudit.IsZero() {
		return math.MaxInt64
	}
	return time.Until(w.nextAudit)
}
