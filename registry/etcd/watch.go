package registryetcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/rota-lb/rota/registry"
)

// Why a watch cannot go on from where it was.
var (
	errSilent = errors.New("no sign of life")
	errStore  = errors.New("the store is another one, or went back in time")
	errOrder  = errors.New("a change came after a later one")
	errAudit  = errors.New("what was delivered is not what etcd holds")
)

// canceledError says that etcd ended the watch.
type canceledError struct{ reason string }

func (e canceledError) Error() string { return "etcd ended the watch: " + e.reason }

// defaultResumeWithin is how long a broken connection may take to come back without anybody being told.
const defaultResumeWithin = 2 * time.Second

// watch is one call of Watch. One goroutine runs it and calls apply.
type watch struct {
	c        *Client
	log      *zap.Logger
	prefixes []string // ours and foreign ones, in their order
	service  string   // the only one the reader wants; empty is all
	apply    func(registry.Update)

	store uint64 // cluster id
	term  uint64 // the latest raft term seen; a store has none that is lower later
	rev   int64  // what was delivered is the store's content as of this revision
	// seen holds the revision at which each key was last delivered, by the hash of the key. Sixteen bytes for a key
	// are what the audit costs; that two keys of a fleet share a hash of 64 bits will not happen.
	seen  map[uint64]int64
	seed  maphash.Seed
	last  landmark
	merge *merger // of the present stream; nil with one prefix

	ok        bool // in touch, as far as the reader was told
	told      string
	toldAt    time.Time
	lostAt    time.Time
	nextAudit time.Time
}

// landmark is the record that was written last, of those that were delivered and are there. A store that does not have it as of the
// revision we have reached has another history, whatever else it says of itself. Without a key there is none.
type landmark struct {
	key   []byte
	mod   int64
	value uint64 // its hash
}

// Watch implements [registry.Registry].
func (c *Client) Watch(ctx context.Context, scope registry.Scope, apply func(registry.Update)) error {
	if err := scope.Validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watch{
		c:        c,
		prefixes: c.prefixes(scope),
		service:  scope.Service,
		apply:    apply,
		seed:     maphash.MakeSeed(),
	}
	w.log = c.log.With(zap.Strings("prefixes", w.prefixes))
	done := make(chan struct{})
	if !c.goroutine(func() { <-done }) { // Close waits for us
		return ErrClosed
	}
	defer close(done)
	defer context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })()
	w.run(ctx)
	if cause := context.Cause(ctx); errors.Is(cause, ErrClosed) {
		return cause
	}
	return ctx.Err()
}

func (w *watch) run(ctx context.Context) {
	s := &w.c.stats
	s.watches.Add(1)
	defer s.watches.Add(-1)
	defer w.setOK(false)

	reason := RelistStart // empty: go on from w.rev
	retry := backoff{min: firstPause, max: time.Second}
	var broke time.Time // since when no connection lasted; zero: it does
	for sleep(ctx, retry.next()) {
		if reason != "" {
			if err := w.reset(ctx, reason); err != nil {
				w.lost(ctx, err)
				continue
			}
			reason, broke = "", time.Time{}
		}
		var until time.Time
		if !broke.IsZero() {
			until = broke.Add(w.c.opts.resumeWithin)
		}
		began := time.Now()
		err := w.follow(ctx, until, func() {
			if !broke.IsZero() {
				s.resumes.Add(1)
				broke = time.Time{}
			}
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Second {
			retry.reset()
		}
		if reason = relistReason(err); reason == RelistLost {
			if broke.IsZero() {
				broke = time.Now()
			}
			if time.Since(broke) < w.c.opts.resumeWithin {
				reason = ""
				continue
			}
		}
		switch reason {
		case RelistLost, RelistSilent, RelistCanceled:
			w.lost(ctx, err)
		default:
			w.log.Warn("listing again", zap.String("reason", reason), zap.Int64("revision", w.rev), zap.Error(err))
		}
	}
}

func relistReason(err error) string {
	var canceled canceledError
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return RelistCompacted
	case errors.Is(err, errSilent):
		return RelistSilent
	case errors.Is(err, errStore):
		return RelistStore
	case errors.Is(err, errOrder):
		return RelistOrder
	case errors.Is(err, errAudit):
		return RelistAudit
	case errors.As(err, &canceled):
		return RelistCanceled
	}
	return RelistLost
}

// lost tells the reader that etcd is out of touch, once for every reason.
func (w *watch) lost(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	const repeatAfter = 10 * time.Second
	err = w.c.explain(err)
	first := w.ok || w.told == ""
	if !first && (w.told == err.Error() || time.Since(w.toldAt) < repeatAfter) {
		return
	}
	if first {
		w.lostAt = time.Now()
	}
	w.setOK(false)
	w.told, w.toldAt = err.Error(), time.Now()
	w.log.Warn("out of touch, going on with what is known", zap.Int64("revision", w.rev), zap.Error(err))
	w.apply(registry.Update{Revision: w.rev, StoreID: w.store, Err: err})
}

func (w *watch) setOK(ok bool) {
	if w.ok != ok {
		w.ok = ok
		if ok {
			w.c.stats.connected.Add(1)
		} else {
			w.c.stats.connected.Add(-1)
		}
	}
}

// reset lists everything and delivers it.
func (w *watch) reset(ctx context.Context, reason string) error {
	var changes []registry.Change
	var seen map[uint64]int64
	var last *mvccpb.KeyValue
	again := func() {
		changes, last = make([]registry.Change, 0, len(w.seen)), nil
		seen = make(map[uint64]int64, len(w.seen))
	}
	header, err := w.c.list(ctx, w.prefixes, false, again, func(kv *mvccpb.KeyValue) {
		if ch := w.c.change(kv); w.concerns(&ch) {
			changes = append(changes, ch)
		}
		seen[w.hash(kv.Key)] = kv.ModRevision
		if last == nil || kv.ModRevision > last.ModRevision {
			last = kv
		}
	})
	if err != nil {
		return err
	}
	elsewhere, err := w.elsewhere(ctx, header, reason)
	if err != nil {
		return err
	}
	fields := []zap.Field{
		zap.String("reason", reason), zap.Int("keys", len(changes)), zap.Int64("revision", header.Revision),
	}
	if !w.ok && w.told != "" {
		fields = append(fields, zap.Duration("away", time.Since(w.lostAt)))
	}
	w.log.Info("listed", fields...)
	w.store, w.term, w.rev, w.seen, w.last = header.ClusterId, header.RaftTerm, header.Revision, seen, landmark{}
	if last != nil {
		w.remember(last)
	}
	w.told = ""
	w.setOK(true)
	w.scheduleAudit(w.c.opts.AuditEvery)
	w.c.stats.relisted(reason)
	w.c.stats.member.Store(header.MemberId)
	w.c.stats.revision.Store(w.rev)
	w.apply(registry.Update{Reset: true, Revision: w.rev, StoreID: w.store, Elsewhere: elsewhere, Changes: changes})
	return nil
}

func (w *watch) hash(key []byte) uint64 { return maphash.Bytes(w.seed, key) }

func (w *watch) remember(kv *mvccpb.KeyValue) {
	w.last.key = append(w.last.key[:0], kv.Key...)
	w.last.mod, w.last.value = kv.ModRevision, w.hash(kv.Value)
}

// elsewhere reports whether a list comes from another store than before, or an older state of it, that looks like what came after:
// it has the same id, and was restored and is by now further than the one we knew, or was so from the start.
func (w *watch) elsewhere(ctx context.Context, list *pb.ResponseHeader, reason string) (bool, error) {
	switch {
	case w.store != list.ClusterId || list.Revision < w.rev: // then everybody sees it
		return false, nil
	case list.RaftTerm < w.term || reason == RelistStore:
		return true, nil
	}
	_, same, err := w.landmark(ctx)
	return !same && err == nil, err
}

// landmark looks for the landmark, and asks a quorum by that what the store says of itself, which is nil if the landmark is not to
// be had: because there is none, or etcd has compacted the revision we have reached.
func (w *watch) landmark(ctx context.Context) (header *pb.ResponseHeader, same bool, err error) {
	if len(w.last.key) == 0 {
		return nil, true, nil
	}
	resp, err := w.c.page(ctx, string(w.last.key), []clientv3.OpOption{clientv3.WithRev(max(w.rev, w.last.mod))}) // of a response that broke off, w.rev is from before
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return nil, true, nil
	case errors.Is(err, rpctypes.ErrFutureRev):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	same = len(resp.Kvs) == 1 && resp.Kvs[0].ModRevision == w.last.mod && w.hash(resp.Kvs[0].Value) == w.last.value
	return resp.Header, same, nil
}

// follow watches from the next revision on and delivers what it hears. until, if not zero, says when a broken
// connection must be back. live is called when etcd has taken the watch. It returns why the watch ended.
func (w *watch) follow(ctx context.Context, until time.Time, live func()) (err error) {
	outer := ctx
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	resumed := !until.IsZero()
	if !resumed {
		until = time.Now().Add(w.c.callTimeout())
	}
	tooLate := time.AfterFunc(time.Until(until), cancel)
	defer func() {
		if tooLate.Stop(); ctx.Err() != nil && outer.Err() == nil {
			err = context.DeadlineExceeded // and not canceled, as it seemed from inside
		}
	}()

	stream, err := pb.NewWatchClient(w.c.etcd.ActiveConnection()).Watch(ctx, grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return err
	}
	for _, prefix := range w.prefixes {
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key:            []byte(prefix),
			RangeEnd:       []byte(clientv3.GetPrefixRangeEnd(prefix)),
			StartRevision:  w.rev + 1,
			ProgressNotify: true,
			Fragment:       true, // bounds the size of a message; whole revisions are put together again below
		}}})
		if err != nil && !errors.Is(err, io.EOF) { // then Recv says why the stream has ended
			return err
		}
	}
	w.merge = nil
	if len(w.prefixes) > 1 {
		w.merge = &merger{}
	}
	var early []*pb.WatchResponse // of a watch that is created, while another is not
	for created := 0; created < len(w.prefixes); {
		resp, err := stream.Recv()
		if err == nil {
			err = w.ended(resp)
		}
		switch {
		case err != nil:
			return err
		case resp.Created:
			created++
		case created == 0:
			return canceledError{"it began without being created"}
		default:
			early = append(early, resp)
		}
	}
	if err := w.confirm(ctx); err != nil { // also after a list: the store may have been replaced before it took the watch
		return err
	}
	if !tooLate.Stop() {
		return context.DeadlineExceeded
	}
	if resumed {
		w.scheduleAudit(min(w.c.opts.AuditEvery, 10*time.Second))
	}
	live()
	return w.listen(ctx, stream, early)
}

// ended returns why a response ends the watch, or nil.
func (w *watch) ended(resp *pb.WatchResponse) error {
	switch {
	case resp.CompactRevision != 0:
		return rpctypes.ErrCompacted
	case resp.Canceled:
		if resp.CancelReason == rpctypes.ErrCompacted.Error() {
			return rpctypes.ErrCompacted
		}
		return canceledError{resp.CancelReason}
	}
	return nil
}

// confirm asks a quorum whether the store is still the one that was listed.
func (w *watch) confirm(ctx context.Context) error {
	h, same, err := w.landmark(ctx)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%w: it does not have what it had at revision %d", errStore, w.rev)
	}
	if h == nil {
		resp, err := w.c.page(ctx, w.prefixes[0], []clientv3.OpOption{clientv3.WithCountOnly(), clientv3.WithLimit(1)})
		if err != nil {
			return err
		}
		h = resp.Header
	}
	if h.ClusterId != w.store || h.Revision < w.rev || h.RaftTerm < w.term {
		return fmt.Errorf("%w: cluster %x at revision %d in term %d, was %x at %d in %d",
			errStore, h.ClusterId, h.Revision, h.RaftTerm, w.store, w.rev, w.term)
	}
	w.term = h.RaftTerm
	return nil
}

// idle reports whether a quorum says that nothing at all was written since the last update. etcd does not answer a
// watch that asks for a sign of life before there was a write, so silence then means nothing, and nothing was missed.
func (w *watch) idle(ctx context.Context) bool {
	resp, err := w.c.page(ctx, w.prefixes[0], nil)
	return err == nil && resp.Header.ClusterId == w.store && resp.Header.Revision == w.rev
}

// heard is what a stream said last: a response or its end.
type heard struct {
	resp *pb.WatchResponse
	err  error
}

// listen delivers what the stream says, and has said already, until it ends.
func (w *watch) listen(ctx context.Context, stream pb.Watch_WatchClient, early []*pb.WatchResponse) error {
	hear := make(chan heard)
	go func() {
		for {
			resp, err := stream.Recv()
			select {
			case hear <- heard{resp, err}:
				if err != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	ask := func() { // if it fails, the stream has ended, and Recv says why
		_ = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	}

	progress := time.NewTicker(w.c.opts.ProgressEvery)
	defer progress.Stop()
	silence := time.NewTimer(w.c.opts.Silence)
	defer silence.Stop()
	auditDue := time.NewTimer(w.untilAudit())
	defer auditDue.Stop()
	var audit *audit // the one that runs, or waits for us to reach its revision
	var audited <-chan struct{}
	var parts []*mvccpb.Event        // of a response in fragments
	again := time.NewTimer(askAgain) // for the merger
	defer again.Stop()

	for _, resp := range early {
		if err := w.handle(ctx, resp, &parts, nil); err != nil {
			return err
		}
	}
	for {
		if w.merge.ask() {
			ask()
			again.Reset(askAgain)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case h := <-hear:
			if h.err != nil {
				return h.err
			}
			if err := w.ended(h.resp); err != nil {
				return err
			}
			if err := w.handle(ctx, h.resp, &parts, audit); err != nil {
				return err
			}
			silence.Reset(w.c.opts.Silence) // only now: apply may have taken its time
		case <-progress.C:
			ask()
		case <-again.C:
			w.merge.forget()
		case <-silence.C:
			if !w.idle(ctx) {
				return fmt.Errorf("%w for %s", errSilent, w.c.opts.Silence)
			}
			w.deliver(w.rev, nil)
			silence.Reset(w.c.opts.Silence)
		case <-auditDue.C:
			audit = w.startAudit(ctx)
			audited = audit.done
		case <-audited:
			audited = nil
			ask() // the answer tells us that we are up to date
		}
		if audit != nil && audited == nil && audit.finished(w.rev) {
			if err := w.judge(audit); err != nil {
				return err
			}
			audit = nil
			auditDue.Reset(w.untilAudit())
		}
	}
}

// handle takes one response that does not end the watch.
func (w *watch) handle(ctx context.Context, resp *pb.WatchResponse, parts *[]*mvccpb.Event, a *audit) error {
	h := resp.Header
	if h.ClusterId != w.store {
		return fmt.Errorf("%w: cluster %x, was %x", errStore, h.ClusterId, w.store)
	}
	w.term = max(w.term, h.RaftTerm)
	w.c.stats.member.Store(h.MemberId)
	if len(resp.Events) == 0 && !resp.Fragment && len(*parts) == 0 {
		if h.Revision < w.rev { // a member that lags behind the one we listed from, or a proxy to another store
			return w.confirm(ctx)
		}
		if w.merge.ofOne(resp) {
			return nil
		}
		return w.events(w.merge.takeTo(h.Revision), h.Revision, a)
	}
	*parts = append(*parts, resp.Events...)
	if resp.Fragment {
		return nil
	}
	events := *parts
	*parts = nil
	if w.merge != nil {
		w.merge.held = append(w.merge.held, events...)
		return nil
	}
	return w.events(events, 0, a)
}

// events delivers the changes of one or more whole revisions, or none and that nothing else happened up to a revision.
func (w *watch) events(events []*mvccpb.Event, upTo int64, a *audit) error {
	var changes []registry.Change
	rev := w.rev
	changes = slices.Grow(changes, len(events))
	for _, ev := range events {
		key, mod, deleted := w.hash(ev.Kv.Key), ev.Kv.ModRevision, ev.Type == mvccpb.Event_DELETE
		if mod <= w.rev {
			// Said twice is harmless, said too late is not.
			if last, ok := w.seen[key]; ok && last >= mod || !ok && deleted {
				continue
			}
			return fmt.Errorf("%w: revision %d after %d", errOrder, mod, w.rev)
		}
		if mod < rev {
			return fmt.Errorf("%w: revision %d after %d", errOrder, mod, rev)
		}
		rev = mod
		if a != nil {
			a.touched[key] = struct{}{}
		}
		var ch registry.Change
		if deleted {
			delete(w.seen, key)
			if bytes.Equal(ev.Kv.Key, w.last.key) {
				w.last = landmark{}
			}
			ch = w.c.deletion(ev.Kv)
			w.c.stats.deletes.Add(1)
		} else {
			w.seen[key] = mod
			w.remember(ev.Kv)
			ch = w.c.change(ev.Kv)
			w.c.stats.puts.Add(1)
		}
		if w.concerns(&ch) {
			changes = append(changes, ch)
		}
	}
	if rev = max(rev, upTo); rev > w.rev || len(events) == 0 {
		w.deliver(rev, changes)
	}
	return nil
}

func (w *watch) deliver(rev int64, changes []registry.Change) {
	w.rev = rev
	w.c.stats.revision.Store(rev)
	w.apply(registry.Update{Revision: rev, StoreID: w.store, Changes: changes})
}
