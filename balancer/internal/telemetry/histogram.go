package telemetry

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// schema is that of [Histogram.Fine]: buckets grow by 2^(1/4).
const schema = 2

// both is a histogram with classic buckets and, for who asks for protobuf, native ones.
type both struct {
	prometheus.Metric // with the native buckets, or if there are none, with the classic ones
	classic           []*dto.Bucket
}

// newHistogram makes a metric of what was counted. The two kinds of buckets were read one after the other: in the end both have
// as many as the native ones.
func newHistogram(f *family, h *Histogram, labels []string) prometheus.Metric {
	var classic, total uint64
	for _, n := range h.Buckets {
		classic += n
	}
	if h.Fine == nil {
		cumulative := make(map[float64]uint64, len(h.Bounds))
		for i, bound := range h.Bounds {
			total += h.Buckets[i]
			cumulative[bound] = total
		}
		return prometheus.MustNewConstHistogram(f.Desc, classic, h.Sum, cumulative, labels...)
	}
	fine := make(map[int]int64, len(h.Fine))
	for i, n := range h.Fine {
		total += n
		if i > 0 && n > 0 {
			fine[i+h.FineOffset] = int64(n)
		}
	}
	// What is in the first bucket may be as short as it likes: that is what the bucket around zero means.
	zero := math.Exp2(float64(h.FineOffset) / (1 << schema))
	native := prometheus.MustNewConstNativeHistogram(f.Desc, total, h.Sum, fine, nil, h.Fine[0], schema, zero, time.Time{}, labels...)
	out := &both{Metric: native}
	var seen uint64
	for i, bound := range h.Bounds {
		seen = min(seen+h.Buckets[i], total)
		upTo := seen
		out.classic = append(out.classic, &dto.Bucket{CumulativeCount: &upTo, UpperBound: &bound})
	}
	if len(h.Exemplars) > 0 { // one may be longer than all bounds
		inf := math.Inf(1)
		out.classic = append(out.classic, &dto.Bucket{CumulativeCount: &total, UpperBound: &inf})
	}
	for i := range h.Exemplars {
		x := &h.Exemplars[i]
		for _, b := range out.classic {
			if x.Value <= *b.UpperBound {
				b.Exemplar = exemplar(x)
				break
			}
		}
	}
	return out
}

// Write implements prometheus.Metric.
func (b *both) Write(m *dto.Metric) error {
	if err := b.Metric.Write(m); err != nil {
		return err
	}
	m.Histogram.Bucket = b.classic
	m.Histogram.CreatedTimestamp = nil // nobody has noted it
	return nil
}

func exemplar(x *Exemplar) *dto.Exemplar {
	out := &dto.Exemplar{Value: &x.Value, Timestamp: timestamppb.New(x.At)}
	for _, l := range [][2]string{{"trace_id", x.Trace}, {"request_id", x.Request}} {
		if l[1] != "" {
			name, value := l[0], label(l[1])
			out.Label = append(out.Label, &dto.LabelPair{Name: &name, Value: &value})
		}
	}
	return out
}
