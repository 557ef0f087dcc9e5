package http1

import (
	"net/netip"
	"testing"
)

const (
	sampleRequest  = "GET /cart/7?x=1 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n\r\n"
	sampleResponse = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\nContent-Type: application/octet-stream\r\nContent-Length: 1024\r\nLast-Modified: Mon, 23 Nov 2026 09:00:00 GMT\r\nConnection: keep-alive\r\nETag: \"6922d0f0-400\"\r\nAccept-Ranges: bytes\r\n\r\n"
)

func BenchmarkRequest(b *testing.B) {
	var r Request
	head := []byte(sampleRequest)
	out := make([]byte, 0, 4096)
	hop := Hop{Peer: netip.MustParseAddr("10.1.2.3"), Proto: "http", Via: "rota"}
	b.ReportAllocs()
	for b.Loop() {
		var s Scanner
		if n, err := r.Read(&s, head); n == 0 || err != nil {
			b.Fatal(err)
		}
		out = AppendRequest(out[:0], &r, &hop)
	}
}

func BenchmarkResponse(b *testing.B) {
	var r Response
	head := []byte(sampleResponse)
	out := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		var s Scanner
		if n, err := r.Read(&s, head, false); n == 0 || err != nil {
			b.Fatal(err)
		}
		out = AppendResponse(out[:0], &r, AsIs, 1, true, new(Edit))
	}
}
