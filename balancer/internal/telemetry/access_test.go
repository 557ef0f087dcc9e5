package telemetry

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func line() *Access {
	return &Access{
		Start: time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC), Client: netip.MustParseAddrPort("192.0.2.7:4711"), Method: []byte("GET"),
		Host: []byte("shop.example.com"), URI: []byte("/cart/7"), Query: []byte("?a=1"), UserAgent: []byte(`curl/8 "x"`), Referer: []byte("http://a/?token=s3cret"),
		ID: []byte("id-1"), Minor: 1, Route: "cart", Service: "cart", Upstream: "10.0.0.1:80", Status: 200, UpstreamStatus: 200, Attempts: 1,
		Size: 1234, BodySize: 1000, BytesRead: 99, BodyRead: 9, Duration: 12345 * time.Microsecond, UpstreamLatency: 10 * time.Millisecond, TableRevision: 42,
	}
}

// logged is what a log writes of lines.
func logged(t *testing.T, o AccessOptions, lines ...*Access) string {
	t.Helper()
	var out bytes.Buffer
	if o.Sample == 0 && len(o.Filter.Status) == 0 && o.Filter.MinDuration == 0 && !o.Filter.Retried && !o.Filter.Failed {
		o.Sample = 1
	}
	a, err := NewAccessLog(&out, 1, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		a.Log(0, is(l))
	}
	a.flush()
	return out.String()
}

func TestFormats(t *testing.T) {
	for format, want := range map[string]string{
		"common":   `192.0.2.7 - - [02/Jan/2026:03:04:05 +0000] "GET /cart/7?a=1 HTTP/1.1" 200 1000`,
		"combined": `192.0.2.7 - - [02/Jan/2026:03:04:05 +0000] "GET /cart/7?a=1 HTTP/1.1" 200 1000 "http://a/?token=REDACTED" "curl/8 \x22x\x22"`,
		"$request_method ${uri}[$args] $$1 $request_time $upstream_addr $upstream_response_time $service/$route $reason $bytes_sent $msec $scheme": `GET /cart/7[a=1] $1 0.012 10.0.0.1:80 0.010 cart/cart - 1234 1767323045.690 http`,
	} {
		if got := logged(t, AccessOptions{Format: format}, line()); got != want+"\n" {
			t.Errorf("%s:\n%s, want\n%s", format, got, want)
		}
	}
	var v struct {
		Ts      float64
		Request map[string]any
		Size    int
		Status  int
		Flag    string
		TraceID string  `json:"trace_id"`
		Up      float64 `json:"upstream_duration"`
		Over    float64 `json:"overhead"`
	}
	l := line()
	l.Flag, l.Reason, l.Trace = "UH", "no_healthy_upstream", "abc"
	text := logged(t, AccessOptions{}, l)
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if v.Ts != 1767323045.690345 || v.Request["uri"] != "/cart/7?a=1" || v.Request["client_ip"] != "192.0.2.7" || v.Request["user_agent"] != `curl/8 "x"` ||
		v.Size != 1000 || v.Flag != "UH" || v.Up != 0.01 || v.Over != 0.002345 || v.TraceID != "abc" || strings.Contains(text, "s3cret") {
		t.Errorf("json: %s", text)
	}
	// The fields that Caddy has are as Caddy writes them.
	l = line()
	l.Peer, l.Client = netip.MustParseAddrPort("10.0.0.9:50000"), netip.AddrPortFrom(l.Client.Addr(), 0)
	l.TLS, l.TLSVersion, l.TLSCipher, l.TLSResumed = true, tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256, true
	const caddy = `{"level":"info","ts":1767323045.690345,"logger":"http.log.access","msg":"handled request","request":{` +
		`"remote_ip":"10.0.0.9","remote_port":"50000","client_ip":"192.0.2.7","proto":"HTTP/1.1","method":"GET","host":"shop.example.com","uri":"/cart/7?a=1",` +
		`"user_agent":"curl/8 \"x\"","referer":"http://a/?token=REDACTED","tls":{"resumed":true,"version":772,"cipher_suite":4865}},` +
		`"bytes_read":9,"duration":0.012345,"size":1000,"status":200,`
	if text := logged(t, AccessOptions{}, l); !strings.HasPrefix(text, caddy) {
		t.Errorf("json: %s, want %s", text, caddy)
	}
	for _, bad := range []string{"jsn", "$stats", "${status", "plain", "$status\n"} {
		if err := CheckFormat(bad); err == nil {
			t.Errorf("%q is a format", bad)
		}
	}
	// Every variable alone, of an empty line as well.
	for _, name := range Variables() {
		if got := logged(t, AccessOptions{Format: "$" + name}, line(), &Access{}); strings.Count(got, "\n") != 2 || strings.HasPrefix(got, "\n") || strings.Contains(got, "\n\n") {
			t.Errorf("$%s: %q", name, got)
		}
	}
}

// Every variable, of a line in full and of one of which next to nothing is known.
func TestVariables(t *testing.T) {
	l := line()
	l.Query, l.Reason, l.Flag, l.Trace = nil, "no_route", "NR", "4bf9"
	all := map[string][2]string{
		"args": {"-", "-"}, "attempts": {"1", "0"}, "body_bytes_sent": {"1000", "0"}, "bytes_sent": {"1234", "0"}, "flag": {"NR", "-"},
		"host": {"shop.example.com", "-"}, "http_referer": {"http://a/?token=REDACTED", "-"}, "http_user_agent": {`curl/8 \x22x\x22`, "-"},
		"msec": {"1767323045.690", ""}, "reason": {"no_route", "-"}, "remote_addr": {"192.0.2.7", "-"}, "remote_port": {"4711", "0"},
		"remote_user": {"-", "-"}, "request": {"GET /cart/7 HTTP/1.1", "-"}, "request_id": {"id-1", "-"}, "request_length": {"99", "0"},
		"request_method": {"GET", "-"}, "request_time": {"0.012", "0.000"}, "request_uri": {"/cart/7", "-"}, "route": {"cart", "-"},
		"scheme": {"http", "http"}, "server_protocol": {"HTTP/1.1", "HTTP/1.0"}, "service": {"cart", "-"}, "status": {"200", "0"},
		"table_revision": {"42", "0"}, "time_iso8601": {"2026-01-02T03:04:05Z", "0001-01-01T00:00:00Z"},
		"time_local": {"02/Jan/2026:03:04:05 +0000", "01/Jan/0001:00:00:00 +0000"}, "trace_id": {"4bf9", "-"},
		"upstream_addr": {"10.0.0.1:80", "-"}, "upstream_response_time": {"0.010", "-"}, "upstream_status": {"200", "-"}, "uri": {"/cart/7", "-"},
	}
	for _, name := range Variables() {
		want, ok := all[name]
		if !ok {
			t.Errorf("$%s is not tested", name)
		}
		for i, l := range []*Access{l, {}} {
			if got := logged(t, AccessOptions{Format: "<$" + name + ">${" + name + "}x"}, l); got != "<"+want[i]+">"+want[i]+"x\n" && (name != "msec" || i == 0) {
				t.Errorf("$%s: %s, want %s", name, got, want[i])
			}
		}
	}
}

func TestFilter(t *testing.T) {
	ok, missing, slow, retried, failed := line(), line(), line(), line(), line()
	missing.Status, slow.Duration, retried.Attempts = 404, time.Second, 2
	failed.Status, failed.Reason = 400, "bad_request"
	for name, c := range map[string]struct {
		o    AccessOptions
		want int
	}{
		"everything": {AccessOptions{Sample: 1}, 5},
		"status":     {AccessOptions{Filter: Filter{Status: [][2]int{{404, 404}, {500, 599}}}}, 2},
		"slow":       {AccessOptions{Filter: Filter{MinDuration: time.Second}}, 2},
		"retried":    {AccessOptions{Filter: Filter{Retried: true}}, 2},
		"failed":     {AccessOptions{Filter: Filter{Failed: true}}, 1},
		"any":        {AccessOptions{Filter: Filter{Retried: true, MinDuration: time.Second}}, 3},
		"next to no": {AccessOptions{Sample: 1e-18}, 1},
	} {
		if got := strings.Count(logged(t, c.o, ok, missing, slow, retried, failed), "\n"); got != c.want {
			t.Errorf("%s: %d lines", name, got)
		}
	}
	many := make([]*Access, 4000)
	for i := range many {
		many[i] = ok
	}
	if n := strings.Count(logged(t, AccessOptions{Sample: 0.25}, many...), "\n"); n < 800 || n > 1200 { // 7 standard deviations
		t.Errorf("a quarter of 4000 are %d", n)
	}
}

// Characters that are not to be seen are told, and those of other scripts stay.
func TestInvisible(t *testing.T) {
	l := line()
	l.UserAgent = []byte("é😀\u061c\u200b\u202e\u2066\ufeff\u0085\U000e0041\x1b\xff")
	text := logged(t, AccessOptions{}, l)
	if want := `"user_agent":"é😀\u061C\u200B\u202E\u2066\uFEFF\u0085\uDB40\uDC41\u001B\uFFFD"`; !strings.Contains(text, want) {
		t.Errorf("no %s in %s", want, text)
	}
	var v struct{ Request struct{ User_Agent string } }
	if err := json.Unmarshal([]byte(text), &v); err != nil || v.Request.User_Agent != strings.ToValidUTF8(string(l.UserAgent), "\ufffd") {
		t.Errorf("%v: it comes back as %q", err, v.Request.User_Agent)
	}
}

// A template that would break lines, or says nothing of a request, is none.
func TestBadTemplates(t *testing.T) {
	for _, format := range []string{"$status\n$uri", "\r$uri", "nothing", "$$", "$nope", "$", "${uri"} {
		if CheckFormat(format) == nil {
			t.Errorf("%q was taken", format)
		}
	}
}

func TestRedact(t *testing.T) {
	for query, want := range map[string]string{
		"": "", "?a=1&b=2": "?a=1&b=2", "?token=x": "?token=REDACTED", "?a=1&Access_Token=x&b=2": "?a=1&Access_Token=REDACTED&b=2",
		"?api_key=x&sig=y&monkey=z": "?api_key=REDACTED&sig=REDACTED&monkey=z", "?password": "?password", "?q=token": "?q=token",
		"?authx=a=b&x=1": "?authx=a=b&x=1", "?auth=a=b&x=1": "?auth=REDACTED&x=1", "?tok%65n=x": "?tok%65n=REDACTED", "?key=": "?key=",
		"?x-key=1&keys=2": "?x-key=REDACTED&keys=2", "?a=1;token=x;y&b=2": "?a=1;token=REDACTED&b=2", "?token=a;b=2": "?token=REDACTED",
		"https://a/b?code=1": "https://a/b?code=REDACTED", "/code=1": "/code=1",
	} {
		if got := string(new(Redactor).Query([]byte(query))); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	var own Redactor
	own.Set([]string{"mine", "Card-Number"})
	l := line()
	l.Query, l.Referer = []byte("?mine=1&token=2&miner=3&old_card-number=4"), []byte("http://a/?mine=1")
	if got := logged(t, AccessOptions{Format: "$args $http_referer", Redact: &own}, l); got != "mine=REDACTED&token=REDACTED&miner=3&old_card-number=REDACTED http://a/?mine=REDACTED\n" {
		t.Errorf("names of one's own: %s", got)
	}
	for name, want := range map[string]bool{"Authorization": true, "cookie": true, "X-Mine": true, "x-card-number": true, "X-Api-Key": true, "Accept": false} {
		if own.Secret([]byte(name)) != want {
			t.Errorf("%s is a secret: %v", name, !want)
		}
	}
	if own.Set(nil); own.Secret([]byte("mine")) || !own.Secret([]byte("token")) {
		t.Error("the usual names are not what is left")
	}
}

// A log that is asked for something else writes what came before as it was asked to. Lines that are not wanted leave nothing behind.
func TestSet(t *testing.T) {
	var out bytes.Buffer
	a, err := NewAccessLog(&out, 1, AccessOptions{Format: "$uri before", Sample: 1})
	if err != nil {
		t.Fatal(err)
	}
	says := func(uri string, status int) { a.Log(0, func(l *Access) { l.URI, l.Status = []byte(uri), status }) }
	says("/1", 200)
	if err := a.Set(AccessOptions{Format: "$uri $status after", Filter: Filter{Status: [][2]int{{404, 404}}}}); err != nil {
		t.Fatal(err)
	}
	for range together {
		says("/longer", 200)
	}
	says("/2", 404)
	says("/3", 200)
	says("/4", 404)
	if a.flush(); out.String() != "/1 before\n/2 404 after\n/4 404 after\n" {
		t.Errorf("%q", out.String())
	}
}

// A log that is slower than the traffic loses lines and says how many; nobody waits for it.
func TestDropped(t *testing.T) {
	var out bytes.Buffer
	a, err := NewAccessLog(&out, 1, AccessOptions{Sample: 1})
	if err != nil {
		t.Fatal(err)
	}
	length := len(logged(t, AccessOptions{}, line()))
	room := shardBytes + together*length
	n := room/length + 100
	for range n { // nobody writes
		a.Log(0, is(line()))
	}
	lost := int(a.Dropped())
	if lost < 100 {
		t.Errorf("%d dropped", lost)
	}
	for range 2 {
		a.flush()
		if kept := bytes.Count(out.Bytes(), []byte("\n")); kept != n-lost || out.Len() < shardBytes || out.Len() > room {
			t.Errorf("%d lines of %d bytes, and %d lost, of %d", kept, out.Len(), lost, n)
		}
	}
	if a.Log(0, is(line())); int(a.Dropped()) != lost {
		t.Error("there is no room again")
	}
	var none *AccessLog
	none.Log(0, is(line()))
	if none.Dropped() != 0 || none.Reopen() != nil || none.Run(t.Context()) != nil {
		t.Error("no log does something")
	}
}

// disk takes so many bytes and no more until there is room again.
type disk struct {
	bytes.Buffer
	room int
}

func (d *disk) Write(b []byte) (int, error) {
	n := min(len(b), d.room)
	d.room -= n
	d.Buffer.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// What a full disk does not take is counted, and half a line does not spoil the next one.
func TestFullDisk(t *testing.T) {
	out := &disk{room: 10}
	a, err := NewAccessLog(out, 1, AccessOptions{Sample: 1, Format: "$status"})
	if err != nil {
		t.Fatal(err)
	}
	log := func(n int, lost uint64) {
		t.Helper()
		for range n {
			a.Log(0, is(line()))
		}
		if a.flush(); a.Dropped() != lost {
			t.Errorf("%d lost, want %d", a.Dropped(), lost)
		}
	}
	log(4, 2) // 200, 200, 20
	log(3, 5)
	out.room = 5 // the end of that line and one more
	log(2, 6)
	out.room = 100
	log(2, 6)
	if got := out.String(); got != "200\n200\n20\n200\n200\n200\n" {
		t.Errorf("wrote %q", got)
	}
}

// A file that was moved away is begun anew, and no line is lost.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAccessLog(f, 2, AccessOptions{Sample: 1, Format: "$request_id"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.Run(ctx) })
	const n = 2000
	for i := range n {
		l := line()
		l.ID = fmt.Append(nil, i)
		a.Log(i, is(l))
		if i == n/2 {
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			if err := a.Reopen(); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	wg.Wait()
	seen := map[string]bool{}
	for _, name := range []string{path, path + ".1"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range strings.Fields(string(text)) {
			seen[id] = true
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d lines", len(seen), n)
	}
}

var ncsa = regexp.MustCompile(`^\S+ - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "([^"\\]|\\x[0-9A-F]{2})*" \d{1,4} -?\d+ "([^"\\]|\\x[0-9A-F]{2})*" "([^"\\]|\\x[0-9A-F]{2})*"$`)

// Whatever a request holds, a line of the log is one line that its readers can read.
func FuzzLine(f *testing.F) {
	f.Add("GET", "/a", "?b", "curl", "ref", "host", 200)
	f.Add("GET", "/\" 200 1\n127.0.0.1 - -", "?\x00\xff\u202e", "a\\\"", "\u2028", "h\r\n", 404)
	f.Fuzz(func(t *testing.T, method, uri, query, agent, referer, host string, status int) {
		l := line()
		l.Method, l.URI, l.Query, l.UserAgent, l.Referer, l.Host = []byte(method), []byte(uri), []byte(query), []byte(agent), []byte(referer), []byte(host)
		l.Status = min(max(status, 0), 9999)
		text := strings.TrimSuffix(logged(t, AccessOptions{Format: "combined"}, l), "\n")
		if !ncsa.MatchString(text) {
			t.Errorf("combined: %q", text)
		}
		text = strings.TrimSuffix(logged(t, AccessOptions{}, l), "\n")
		var v map[string]any
		if err := json.Unmarshal([]byte(text), &v); err != nil || strings.ContainsAny(text, "\n\r\x00\u202e\u2028") {
			t.Errorf("json: %v %q", err, text)
		}
	})
}

// Neither a loop nor the writer makes garbage by the line, but for one that hides something.
func TestAllocations(t *testing.T) {
	for _, format := range []string{"json", "combined"} {
		a, l := benchmarked(t, format), line()
		l.Query, l.Referer = []byte("?page=2&sort=price&filter=shoes&lang=en"), nil
		turn := func() {
			for range 100 {
				a.Log(0, is(l))
			}
			a.flush()
		}
		turn()
		turn() // both batches have grown
		if n := testing.AllocsPerRun(10, turn); n > 1 {
			t.Errorf("%s: %v allocations for 100 lines", format, n)
		}
	}
}

// is fills in a line as another one is.
func is(line *Access) func(*Access) { return func(l *Access) { *l = *line } }

func benchmarked(t testing.TB, format string) *AccessLog {
	a, err := NewAccessLog(io.Discard, 1, AccessOptions{Format: format, Sample: 1})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What a line costs, on the loop and in the writer together.
func BenchmarkLine(b *testing.B) {
	for _, c := range []struct{ format, query, referer string }{
		{"json", "", ""}, {"json", "?page=2&sort=price&filter=shoes&token=abc&lang=en", "http://a/?token=s3cret"}, {"combined", "", ""},
	} {
		b.Run(c.format+c.query, func(b *testing.B) {
			a, l := benchmarked(b, c.format), line()
			l.Query, l.Referer = []byte(c.query), []byte(c.referer)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if a.Log(0, is(l)); i%1000 == 999 {
					a.flush()
				}
			}
		})
	}
}

func TestSeconds(t *testing.T) {
	for _, c := range []struct {
		d      time.Duration
		digits int
		want   string
	}{
		{0, 3, "0.000"}, {time.Nanosecond, 9, "0.000000001"}, {1500 * time.Microsecond, 3, "0.002"}, {1499 * time.Microsecond, 3, "0.001"},
		{999999600 * time.Nanosecond, 6, "1.000000"}, {12345678901 * time.Microsecond, 6, "12345.678901"}, {time.Hour, 1, "3600.0"},
		{-1500 * time.Microsecond, 6, "-0.001500"}, {1767323045690123456, 3, "1767323045.690"},
	} {
		if got := string(appendSeconds(nil, c.d, c.digits)); got != c.want {
			t.Errorf("%d with %d digits is %q, want %q", c.d, c.digits, got, c.want)
		}
	}
}

func TestInts(t *testing.T) {
	for _, n := range []int64{0, 9, 10, 99, 100, 1024, 65535, 99999999, 100000000, 999999999, 1000000000, math.MaxInt64, -1, math.MinInt64} {
		if got, want := string(appendInt([]byte("x"), n)), fmt.Sprint("x", n); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
