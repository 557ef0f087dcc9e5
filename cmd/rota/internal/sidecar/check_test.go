package sidecar

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/registry"
)

func TestQuestions(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
		case "/moved":
			http.Redirect(w, r, "/broken", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
		io.WriteString(w, r.Proto)
	})
	plain := httptest.NewServer(handler)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(handler)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	h2c := httptest.NewUnstartedServer(handler)
	h2c.Config.Protocols = new(http.Protocols)
	h2c.Config.Protocols.SetUnencryptedHTTP2(true)
	h2c.Start()
	defer h2c.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()

	at := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	for _, tc := range []struct {
		check Check
		want  string // in the error; empty: it passes
	}{
		{Check{Address: at(plain)}, ""},
		{Check{Address: at(plain), Path: "/ok"}, ""},
		{Check{Address: at(plain), Path: "/ok?deep=1"}, ""},
		{Check{Address: at(plain), Path: "/moved"}, ""},
		{Check{Address: at(plain), Path: "/broken"}, "/broken answers 500"},
		{Check{Address: at(plain), Path: "/slow", Timeout: 20 * time.Millisecond}, "deadline"},
		{Check{Address: at(secure), Path: "/ok", Protocol: registry.HTTPS}, ""},
		{Check{Address: at(secure), Path: "/ok", Protocol: registry.H2}, ""},
		{Check{Address: at(h2c), Path: "/ok", Protocol: registry.H2C}, ""},
		{Check{Address: gone.Addr().String()}, "refused"},
		{Check{Address: gone.Addr().String(), Path: "/ok"}, "refused"},
		{Check{Address: gone.Addr().String(), Off: true}, ""},
	} {
		err := tc.check.withDefaults().question()(t.Context())
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%+v: %v, want %q", tc.check, err, tc.want)
		}
	}
}

// Verdicts change after as many answers in a row as they should, and the first pass counts at once.
func TestVerdicts(t *testing.T) {
	const script = "--+" + "--+" + "---" + "+-++" + "-" // '+' passes
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n := int(asked.Add(1)); n <= len(script) && script[n-1] == '-' {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	check := Check{Address: server.Listener.Addr().String(), Path: "/", Interval: time.Millisecond}
	verdicts := check.watch(t.Context(), zap.NewNop())
	for _, want := range []struct {
		passes bool
		after  int64
	}{{true, 3}, {false, 9}, {true, 13}} {
		select {
		case err := <-verdicts:
			if n := asked.Load(); (err == nil) != want.passes || n < want.after { // it asks on when the verdict was taken
				t.Errorf("after %d answers: %v, want %+v", n, err, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no verdict: want %+v", want)
		}
	}
}

// What stands in the way of a registration is said, with the remedy.
func TestAdvice(t *testing.T) {
	check := Check{Address: "127.0.0.1:1"}
	if err := check.advise(check.connect(t.Context())); strings.Contains(err.Error(), "--address") {
		t.Errorf("advice where there is none: %v", err)
	}
	var d net.Dialer
	_, refused := d.DialContext(t.Context(), "tcp", "127.0.0.1:1")
	check.Address = "192.0.2.1:1"
	if err := check.advise(refused); !strings.Contains(err.Error(), "0.0.0.0") || !strings.Contains(err.Error(), "--address 127.0.0.1") {
		t.Errorf("no remedy: %v", err)
	}
}
