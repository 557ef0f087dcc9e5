package tracing

import (
	"context"
	"sync/atomic"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"
)

// complainEach is how often the log is told that spans cannot be sent.
const complainEach = time.Minute

// exporter sends batches of spans by another one. What that cannot send is counted and logged here; the SDK would write each error to
// standard error. Batches are sent one at a time.
type exporter struct {
	sdk.SpanExporter
	logger  *zap.Logger
	sending context.Context // ends when giveUp is called: then nothing is sent any more, or waited for
	giveUp  context.CancelFunc
	lost    atomic.Uint64 // spans
	// Of the batches: when the log was last told of one that could not be sent, and how many spans were lost since.
	complained time.Time
	untold     int
	failing    bool // the last one could not be sent
}

func newExporter(to sdk.SpanExporter, logger *zap.Logger) *exporter {
	e := &exporter{SpanExporter: to, logger: logger}
	e.sending, e.giveUp = context.WithCancel(context.Background())
	return e
}

// ExportSpans implements sdk.SpanExporter. It returns no error: it has dealt with it. Of a batch that the collector takes only a part
// of, all count as lost.
func (e *exporter) ExportSpans(ctx context.Context, list []sdk.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.sending, cancel)()
	err := e.SpanExporter.ExportSpans(ctx, list)
	if err == nil {
		if e.failing {
			e.failing = false
			e.logger.Info("spans are sent again")
		}
		return nil
	}
	e.failing = true
	e.lost.Add(uint64(len(list)))
	e.untold += len(list)
	if now := time.Now(); now.Sub(e.complained) >= complainEach {
		e.logger.Warn("spans could not be sent and are lost", zap.Error(err), zap.Int("spans", e.untold))
		e.complained, e.untold = now, 0
	}
	return nil
}
