package proxy

// key is a Sec-WebSocket-Key, accept what proves that it was understood (RFC 6455 §1.3).
const (
	key    = "dGhlIHNhbXBsZSBub25jZQ=="
	accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)
