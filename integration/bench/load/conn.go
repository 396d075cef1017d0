// Package load drives an HTTP ingress in a closed or an open loop.
package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Op is one request to the ingress.
type Op struct {
	Path   string
	Body   []byte
	Idem   string // idempotency key, if any
	Seq    uint64
	Worker int
}

// Client sends requests over one connection (HTTP/1.1) or over a shared pool
// (h2c). It is used by one goroutine at a time.
type Client interface {
	Do(op *Op, timeout time.Duration) (status int, body []byte, err error)
	Close()
}

// --- HTTP/1.1 with keep-alive, by hand: net/http's client would cost the
// load generator more CPU than some servers need to answer.

type h1 struct {
	addr string
	c    net.Conn
	r    *bufio.Reader
	out  []byte
	body []byte
}

// NewH1 returns a client with one keep-alive connection to addr (host:port).
func NewH1(addr string) Client { return &h1{addr: addr} }

func (h *h1) Close() {
	if h.c != nil {
		h.c.Close()
		h.c = nil
	}
}

func (h *h1) dial(timeout time.Duration) error {
	c, err := net.DialTimeout("tcp", h.addr, timeout)
	if err != nil {
		return err
	}
	h.c = c
	if h.r == nil {
		h.r = bufio.NewReaderSize(c, 16<<10)
	} else {
		h.r.Reset(c)
	}
	return nil
}

func (h *h1) Do(op *Op, timeout time.Duration) (int, []byte, error) {
	if h.c == nil {
		if err := h.dial(timeout); err != nil {
			return 0, nil, err
		}
	}
	o := h.out[:0]
	o = append(o, "POST "...)
	o = append(o, op.Path...)
	o = append(o, " HTTP/1.1\r\nhost: bench\r\ncontent-type: application/octet-stream\r\n"...)
	if op.Idem != "" {
		o = append(o, "idempotency-key: "...)
		o = append(o, op.Idem...)
		o = append(o, "\r\n"...)
	}
	o = append(o, "content-length: "...)
	o = strconv.AppendInt(o, int64(len(op.Body)), 10)
	o = append(o, "\r\n\r\n"...)
	o = append(o, op.Body...)
	h.out = o
	h.c.SetDeadline(time.Now().Add(timeout))
	if _, err := h.c.Write(o); err != nil {
		h.Close()
		return 0, nil, err
	}
	st, b, keep, err := h.read()
	if err != nil || !keep {
		h.Close()
	}
	return st, b, err
}

var errHTTP = errors.New("malformed HTTP response")

func (h *h1) read() (status int, body []byte, keep bool, err error) {
	for {
		line, err := h.r.ReadSlice('\n')
		if err != nil {
			return 0, nil, false, err
		}
		if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
			return 0, nil, false, errHTTP
		}
		status, err = strconv.Atoi(string(line[9:12]))
		if err != nil {
			return 0, nil, false, errHTTP
		}
		keep = line[7] == '1'
		length, chunked := -1, false
		for {
			line, err = h.r.ReadSlice('\n')
			if err != nil {
				return 0, nil, false, err
			}
			line = bytes.TrimRight(line, "\r\n")
			if len(line) == 0 {
				break
			}
			k, v, _ := bytes.Cut(line, []byte(":"))
			v = bytes.TrimSpace(v)
			switch {
			case len(k) == 14 && bytes.EqualFold(k, []byte("content-length")):
				length, err = strconv.Atoi(string(v))
				if err != nil {
					return 0, nil, false, errHTTP
				}
			case len(k) == 17 && bytes.EqualFold(k, []byte("transfer-encoding")):
				chunked = bytes.EqualFold(v, []byte("chunked"))
			case len(k) == 10 && bytes.EqualFold(k, []byte("connection")):
				keep = !bytes.EqualFold(v, []byte("close"))
			}
		}
		if status/100 == 1 {
			continue
		}
		b := h.body[:0]
		switch {
		case status == 204 || status == 304:
		case chunked:
			for {
				line, err := h.r.ReadSlice('\n')
				if err != nil {
					return 0, nil, false, err
				}
				s, _, _ := strings.Cut(string(bytes.TrimSpace(line)), ";")
				n, err := strconv.ParseUint(s, 16, 31)
				if err != nil {
					return 0, nil, false, errHTTP
				}
				at := len(b)
				b = append(b, make([]byte, n)...)
				if _, err := io.ReadFull(h.r, b[at:]); err != nil {
					return 0, nil, false, err
				}
				if n > 0 {
					if _, err := h.r.Discard(2); err != nil {
						return 0, nil, false, err
					}
					continue
				}
				for { // trailers
					line, err := h.r.ReadSlice('\n')
					if err != nil {
						return 0, nil, false, err
					}
					if len(bytes.TrimRight(line, "\r\n")) == 0 {
						break
					}
				}
				break
			}
		case length >= 0:
			if cap(b) < length {
				b = make([]byte, length)
			} else {
				b = b[:length]
			}
			if _, err := io.ReadFull(h.r, b); err != nil {
				return 0, nil, false, err
			}
		default:
			var buf bytes.Buffer
			if _, err := buf.ReadFrom(h.r); err != nil {
				return 0, nil, false, err
			}
			b = append(b, buf.Bytes()...)
			keep = false
		}
		h.body = b
		return status, b, keep, nil
	}
}

// --- h2c

type h2 struct {
	base string
	hc   *http.Client
	buf  bytes.Buffer
}

// H2Pool shares h2c connections between its clients.
type H2Pool struct{ tr *http.Transport }

// NewH2Pool makes an h2c transport.
func NewH2Pool() *H2Pool {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &H2Pool{tr: &http.Transport{Protocols: &p, DisableCompression: true, MaxIdleConnsPerHost: 64,
		DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext}}
}

// Client returns a client for addr over the pool.
func (p *H2Pool) Client(addr string) Client {
	return &h2{base: "http://" + addr, hc: &http.Client{Transport: p.tr}}
}

func (h *h2) Close() {}

func (h *h2) Do(op *Op, timeout time.Duration) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", h.base+op.Path, bytes.NewReader(op.Body))
	if err != nil {
		return 0, nil, err
	}
	req.Header["Content-Type"] = []string{"application/octet-stream"}
	if op.Idem != "" {
		req.Header["Idempotency-Key"] = []string{op.Idem}
	}
	resp, err := h.hc.Do(req)
	if err != nil {
		return 0, nil, err
	}
	h.buf.Reset()
	_, err = h.buf.ReadFrom(resp.Body)
	resp.Body.Close()
	if err != nil {
		return 0, nil, fmt.Errorf("body: %w", err)
	}
	return resp.StatusCode, h.buf.Bytes(), nil
}
