package http1

// Response is a parsed response head.
type Response struct {
	Status int
	Reason []byte
	fields

	Minor   int   // 0 or 1
	Length  int64 // of the body; zero when there is none, -1 when chunked or until close
	Chunked bool
	// UntilClose says that the body ends with the connection.
	UntilClose bool
	// KeepAlive says that the upstream connection can be used again after the body.
	KeepAlive bool
	// Upgrade is the protocol, as the upstream writes it, that a 101 switches to; empty when it names none or several.
	Upgrade []byte
	// Load is how many requests the instance says it has in flight, this one included; zero is unknown. Not passed on.
	Load int
	// HasLength says that there was a Content-Length; for HEAD and 304 it is kept though there is no body.
	HasLength bool

	names  bool
	length []byte
}

// maxLoad is the highest load that is believed.
const maxLoad = 1 << 20

// Read reads the head of the answer to a request as [Request.Read] does; head tells that the request was HEAD. All errors have status
// 502, but for those about lines and lengths.
func (r *Response) Read(s *Scanner, b []byte, head bool) (int, *Error) {
	return s.read(b, func(b []byte) (int, *Error) { return r.parse(b, head) })
}

// Parse reads a head that is complete.
func (r *Response) Parse(b []byte, head bool) *Error {
	_, err := r.parse(b, head)
	return err
}

// parse reads the head at the beginning of b, if it is there.
func (r *Response) parse(b []byte, head bool) (int, *Error) {
	all := r.all[:0]
	*r = Response{}
	r.all = all
	eol := indexByte(b, '\n')
	if eol < 1 || b[eol-1] != '\r' {
		return 0, ErrResponseHead
	}
	line := b[:eol-1]
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || line[7] != '0' && line[7] != '1' {
		return 0, ErrResponseHead
	}
	r.Minor = int(line[7] - '0')
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return 0, ErrResponseHead
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || r.Status > 599 {
		return 0, ErrResponseHead
	}
	if len(line) > 12 {
		if line[12] != ' ' || textLen(line[13:]) < len(line)-13 {
			return 0, ErrResponseHead
		}
		r.Reason = line[13:]
	}
	n, err := r.fields.parse(b, eol+1)
	if err != nil {
		return 0, ErrResponseHead
	}
	if n == 0 {
		return 0, nil
	}
	return n, r.framing(head)
}

func (r *Response) framing(head bool) *Error {
	lengths, tes, upgrades, listed := 0, 0, 0, 0
	closing, keep := false, false
	for i := range r.all {
		switch r.all[i].kind {
		case kindContentLength:
			n, ok := parseLength(r.value(i))
			if !ok {
				return ErrResponseFrame
			}
			r.Length, r.length = n, r.value(i)
			for len(r.length) > 1 && r.length[0] == '0' {
				r.length = r.length[1:]
			}
			lengths++
		case kindTransferEncoding:
			if !EqualFold(r.value(i), "chunked") || r.Minor == 0 {
				return ErrResponseFrame
			}
			tes++
		case kindUpgrade:
			r.Upgrade = r.value(i)
			upgrades++
		case kindLoad:
			if n, ok := parseLength(r.value(i)); ok {
				r.Load = int(min(n, maxLoad))
			}
		case kindConnection:
			c, k, names, err := connection(r.value(i), &listed)
			if err != nil {
				return ErrResponseHead
			}
			closing, keep, r.names = closing || c, keep || k, r.names || names
		}
	}
	if r.Status == 101 && lengths+tes > 0 {
		return ErrResponseFrame
	}
	if upgrades != 1 || !r.named(upgradeName) {
		r.Upgrade = nil
	}
	if lengths > 1 || tes > 1 || lengths+tes > 1 {
		return ErrResponseFrame
	}
	r.KeepAlive = !closing && (r.Minor == 1 || keep)
	r.HasLength = lengths == 1
	switch {
	case r.Status < 200 || r.Status == 204:
		r.Length, r.HasLength = 0, false
	case head || r.Status == 304:
		r.Length = 0
	case tes == 1:
		r.Chunked, r.Length = true, -1
	case lengths == 0:
		r.UntilClose, r.Length, r.KeepAlive = true, -1, false
	}
	return nil
}
