package tracing

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestSampler(t *testing.T) {
	for name, c := range map[string]struct {
		sampler, arg  string
		root, yes, no float64 // shares without a parent, with one that is sampled, and with one that is not
		wrong         string
	}{
		"default":     {"", "", 1, 1, 0, ""},
		"on":          {"always_on", "", 1, 1, 1, ""},
		"off":         {"always_off", "", 0, 0, 0, ""},
		"ratio":       {"traceidratio", "0.25", 0.25, 0.25, 0.25, ""},
		"parent":      {"parentbased_traceidratio", "0.25", 0.25, 1, 0, ""},
		"parent off":  {"parentbased_always_off", "", 0, 1, 0, ""},
		"all of them": {"traceidratio", "1", 1, 1, 1, ""},
		"none":        {"traceidratio", "0", 0, 0, 0, ""},
		"nonsense":    {"sometimes", "", 0, 0, 0, "OTEL_TRACES_SAMPLER=sometimes"},
		"no ratio":    {"traceidratio", "2", 0, 0, 0, "OTEL_TRACES_SAMPLER_ARG=2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_SAMPLER", c.sampler)
			t.Setenv("OTEL_TRACES_SAMPLER_ARG", c.arg)
			s, err := samplerFromEnv()
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			share := func(parent, sampled bool) float64 {
				const n = 20000
				r, hits := rand.New(rand.NewPCG(1, 2)), 0
				for range n {
					var id [16]byte
					for i := range id {
						id[i] = byte(r.Uint32())
					}
					if s.sample(&id, parent, sampled) {
						hits++
					}
				}
				return float64(hits) / n
			}
			for what, got := range map[string][2]float64{"root": {share(false, false), c.root}, "yes": {share(true, true), c.yes}, "no": {share(true, false), c.no}} {
				if got[0] < got[1]-0.02 || got[0] > got[1]+0.02 {
					t.Errorf("%s: %g, want %g", what, got[0], got[1])
				}
			}
		})
	}
}

func TestSwitchedOff(t *testing.T) {
	for name, env := range map[string][2]string{
		"nothing named": {"OTEL_SERVICE_NAME", "x"}, "none": {"OTEL_TRACES_EXPORTER", "none"}, "disabled": {"OTEL_SDK_DISABLED", "true"},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "nothing named" {
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			}
			t.Setenv(env[0], env[1])
			on, err := New(t.Context(), "test")
			if on != nil || err != nil {
				t.Errorf("%v %v", on, err)
			}
			on.Run(context.Background())
			if on.Dropped() != 0 {
				t.Error("something was dropped")
			}
		})
	}
	for name, env := range map[string][2]string{"exporter": {"OTEL_TRACES_EXPORTER", "zipkin"}, "protocol": {"OTEL_EXPORTER_OTLP_PROTOCOL", "smoke"}} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv(env[0], env[1])
			if _, err := New(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), env[0]+"="+env[1]) {
				t.Errorf("%v", err)
			}
		})
	}
}
