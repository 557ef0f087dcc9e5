package registry

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
)

// LoadHeader is the response header in which an instance says how many requests it has in flight, as a decimal number.
// A balancer knows only those that it sent there itself; with the header it knows those of others, too. It believes
// the instance, and does not pass the header on.
const LoadHeader = "Rota-Load"

// Load counts the requests in flight in one instance and has its responses report them. The zero Load is ready; it must
// not be copied. All methods may be called concurrently.
type Load struct{ inFlight atomic.Int64 }

// InFlight is the number of requests that are now in handlers behind [Load.Middleware].
func (l *Load) InFlight() int { return int(l.inFlight.Load()) }

// Middleware counts a request from when it reaches next until next returns, and sets [LoadHeader] on the response as its
// head is written: the requests then in flight in the whole instance, this one included. What the handler has set there
// itself is replaced. Informational responses (1xx) carry no load; neither does a hijacked connection, whose bytes are
// the handler's own, but it counts for as long as the handler stays.
//
// The ResponseWriter that next gets does what the one before it can: it flushes, hijacks, copies from files without
// copying through memory, and [http.ResponseController] reaches through it.
func (l *Load) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.inFlight.Add(1)
		defer l.inFlight.Add(-1)
		lw := &loadWriter{ResponseWriter: w, load: l}
		next.ServeHTTP(lw, r)
		lw.report() // for a handler that wrote nothing: the server writes the head after this
	})
}

// loadWriter sets the header just before the head is written.
type loadWriter struct {
	http.ResponseWriter
	load     *Load
	reported bool // or not to be
}

func (w *loadWriter) report() {
	if !w.reported {
		w.reported = true
		w.Header()[LoadHeader] = []string{strconv.Itoa(w.load.InFlight())}
	}
}

// WriteHeader implements [http.ResponseWriter].
func (w *loadWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.report()
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *loadWriter) Write(b []byte) (int, error) {
	w.report()
	return w.ResponseWriter.Write(b)
}

// WriteString implements [io.StringWriter].
func (w *loadWriter) WriteString(s string) (int, error) {
	w.report()
	return io.WriteString(w.ResponseWriter, s)
}

// ReadFrom implements [io.ReaderFrom]: the server sends files by sendfile(2) where it can.
func (w *loadWriter) ReadFrom(r io.Reader) (int64, error) {
	w.report()
	return io.Copy(w.ResponseWriter, r)
}

// Flush implements [http.Flusher].
func (w *loadWriter) Flush() { _ = w.FlushError() }

// FlushError is what [http.ResponseController] looks for.
func (w *loadWriter) FlushError() error {
	w.report()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack implements [http.Hijacker].
func (w *loadWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.reported = true
	}
	return conn, rw, err
}

// Unwrap is what [http.ResponseController] looks for.
func (w *loadWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
