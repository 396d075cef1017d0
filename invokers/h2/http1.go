package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"perdure/invokers/transport"
)

// http1 serves the endpoints that speak only HTTP/1.1. It stands on net/http: these exchanges are few, and the
// rules of HTTP/1.1 are many.
type http1 struct {
	client *Client
	rt     *http.Transport
}

func newHTTP1(c *Client) *http1 {
	h := &http1{client: c}
	h.rt = &http.Transport{
		DialContext:            h.dial,
		DialTLSContext:         h.dialTLS,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    c.cfg.MaxStreamsPerConn,
		MaxConnsPerHost:        c.cfg.MaxStreamsPerConn * c.cfg.MaxConnsPerEndpoint,
		IdleConnTimeout:        c.cfg.IdleTimeout,
		MaxResponseHeaderBytes: int64(c.cfg.MaxHeaderBytes),
		WriteBufferSize:        readBufferSize,
		ReadBufferSize:         minMaxFrame,
		Protocols:              new(http.Protocols),
	}
	h.rt.Protocols.SetHTTP1(true)
	return h
}

func (h *http1) dial(ctx context.Context, _, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, h.client.cfg.ConnectTimeout)
	defer cancel()
	nc, err := h.client.dialer.tcp(ctx, "http", address)
	if err != nil {
		return nil, dialError{err}
	}
	return nc, nil
}

func (h *http1) dialTLS(ctx context.Context, _, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, h.client.cfg.ConnectTimeout)
	defer cancel()
	nc, err := h.client.dialer.tcp(ctx, "https", address)
	if err != nil {
		return nil, dialError{err}
	}
	tc, err := h.client.dialer.secure(ctx, nc, address, "http/1.1")
	if err != nil {
		return nil, dialError{err}
	}
	return tc, nil
}

// dialError marks a failure before anything was sent.
type dialError struct{ err error }

func (e dialError) Error() string { return e.err.Error() }
func (e dialError) Unwrap() error { return e.err }

// open prepares an exchange; the request starts with the first Write or CloseWrite.
func (h *http1) open(ctx context.Context, ep transport.Endpoint, req transport.Request) (transport.Stream, error) {
	s := &stream1{h: h, opener: ctx, name: ep.String(), readable: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	ctx, s.cancel = context.WithCancel(ctx)
	trace := &httptrace.ClientTrace{WroteHeaders: func() { s.sent.Store(true) }}
	s.req = newRequest(ep, req).WithContext(httptrace.WithClientTrace(ctx, trace))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopClosing = context.AfterFunc(h.client.ctx, func() { s.abort(errClosed) }) // may run at once
	return s, nil
}

func newRequest(ep transport.Endpoint, req transport.Request) *http.Request {
	header, host := http.Header{"User-Agent": {""}}, ep.Authority // send no User-Agent
	for _, f := range req.Header {
		if f.Name == "host" {
			host = f.Value
			continue
		}
		header[f.Name] = append(header[f.Name], f.Value)
	}
	return &http.Request{
		Method:     req.Method,
		URL:        &url.URL{Scheme: ep.Scheme, Host: ep.Authority, Opaque: ep.Prefix + req.Path, RawQuery: ep.Query},
		Host:       host,
		Header:     header,
		Proto:      transport.HTTP11,
		ProtoMajor: 1,
		ProtoMinor: 1,
	}
}

// stream1 is one exchange over HTTP/1.1. Its pump goroutine sends the request, waits for the response and moves the
// body into a bounded buffer.
type stream1 struct {
	h        *http1
	opener   context.Context
	cancel   context.CancelFunc // ends the request
	name     string             // of the endpoint, for messages
	req      *http.Request
	sent     atomic.Bool   // the header was given to a connection
	readable chan struct{} // capacity 1
	room     chan struct{} // capacity 1: bytes were taken from buf

	body *io.PipeWriter // nil without a body; the writer's goroutine

	mu          sync.Mutex
	stopClosing func() bool // takes back the end by Client.Close
	began       bool
	pipe        *io.PipeReader // the other end of body
	buf         recvBuffer
	resp        transport.Response
	hasResp     bool
	err         error // io.EOF or *transport.Error, after buf
}

var _ transport.Stream = (*stream1)(nil)

// Write implements transport.Stream.
func (s *stream1) Write(b []byte) error {
	if err := s.begin(true); err != nil {
		return err
	}
	if s.body == nil {
		return s.error(transport.Protocol, errClosedWrite)
	}
	if _, err := s.body.Write(b); err != nil {
		return s.writeError(err)
	}
	return nil
}

// CloseWrite implements transport.Stream.
func (s *stream1) CloseWrite() error {
	if err := s.begin(false); err != nil {
		return err
	}
	if s.body == nil {
		return nil
	}
	return s.body.Close() // always nil
}

// begin starts the request once.
func (s *stream1) begin(withBody bool) error {
	s.mu.Lock()
	if s.began || s.err != nil {
		err := s.err
		if s.began {
			err = nil
		}
		s.mu.Unlock()
		return err
	}
	s.began = true
	s.req.Body = http.NoBody
	if withBody {
		s.pipe, s.body = io.Pipe()
		s.req.Body = s.pipe
		s.req.ContentLength = -1
	}
	s.mu.Unlock()
	if !s.h.client.spawn(s.pump) {
		s.abort(errClosed)
	}
	return nil
}

// writeError says why the request body is no longer taken.
func (s *stream1) writeError(err error) error {
	s.mu.Lock()
	failure, ok := s.err.(*transport.Error)
	s.mu.Unlock()
	switch {
	case ok:
		return failure
	case s.opener.Err() != nil:
		return transport.ContextError(s.opener, s.name)
	case errors.Is(err, io.ErrClosedPipe):
		err = errStopReading
	}
	return s.error(transport.Reset, err)
}

// pump runs the exchange.
func (s *stream1) pump() {
	resp, err := s.h.rt.RoundTrip(s.req)
	if err != nil {
		s.end(s.classify(err))
		return
	}
	if resp.StatusCode < 200 {
		s.end(s.error(transport.Protocol, fmt.Errorf("response has status %d", resp.StatusCode)))
		_ = resp.Body.Close() // the exchange is over
		return
	}
	s.mu.Lock()
	s.resp, s.hasResp = convert(resp), true
	s.mu.Unlock()
	s.signalReadable()
	err = s.copyBody(resp.Body)
	_ = resp.Body.Close() // drops the connection unless it was read to its end
	if err != io.EOF {
		err = s.classify(err)
	}
	s.end(err)
}

// copyBody moves the body into the buffer until it ends, waiting while too much is unread.
func (s *stream1) copyBody(body io.Reader) error {
	b := make([]byte, minMaxFrame)
	for {
		n, err := body.Read(b)
		s.mu.Lock()
		s.buf.write(b[:n])
		full := s.buf.n >= s.h.client.cfg.StreamWindow
		s.mu.Unlock()
		if n > 0 {
			s.signalReadable()
		}
		if err != nil {
			return err
		}
		for full {
			select {
			case <-s.room:
			case <-s.req.Context().Done():
				return s.req.Context().Err()
			}
			s.mu.Lock()
			full = s.buf.n >= s.h.client.cfg.StreamWindow
			s.mu.Unlock()
		}
	}
}

func convert(resp *http.Response) transport.Response {
	out := transport.Response{Status: resp.StatusCode, Version: transport.HTTP11}
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		for _, v := range resp.Header[name] {
			out.Header = append(out.Header, transport.Field{Name: name, Value: v})
		}
	}
	return out
}

// classify gives an error of net/http its kind.
func (s *stream1) classify(err error) *transport.Error {
	var dial dialError
	switch {
	case s.opener.Err() != nil:
		return transport.ContextError(s.opener, s.name)
	case errors.Is(err, context.Canceled):
		return s.error(transport.Canceled, errCanceled)
	case errors.As(err, &dial):
		return s.error(transport.Connect, dial)
	case !s.sent.Load():
		return s.error(transport.NotProcessed, err)
	}
	return s.error(transport.Reset, err)
}

func (s *stream1) error(kind transport.Kind, err error) *transport.Error {
	return &transport.Error{Kind: kind, Endpoint: s.name, Err: err}
}

// end gives the exchange its result; the first one counts. Any but [io.EOF] also stops the request, only afterwards, so
// that it cannot fail the exchange with what the stop looks like from inside.
func (s *stream1) end(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	pipe, stopClosing := s.pipe, s.stopClosing
	s.mu.Unlock()
	stopClosing()
	if failure, ok := err.(*transport.Error); ok {
		s.cancel()
		if pipe != nil {
			pipe.CloseWithError(failure)
		}
		if first && failure.Kind != transport.Canceled {
			s.h.client.metrics.failed(failure.Kind)
		}
	}
	s.signalReadable()
}

// Response implements transport.Stream.
func (s *stream1) Response() (transport.Response, error) {
	for {
		s.mu.Lock()
		resp, ok, err := s.resp, s.hasResp, s.err
		s.mu.Unlock()
		switch {
		case ok:
			return resp, nil
		case err != nil:
			return transport.Response{}, err
		}
		s.waitReadable()
	}
}

// Read implements transport.Stream.
func (s *stream1) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.mu.Lock()
		n := s.buf.read(p)
		err := s.err
		s.mu.Unlock()
		if n > 0 {
			signal(s.room)
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		s.waitReadable()
	}
}

func (s *stream1) waitReadable() {
	select {
	case <-s.readable:
	case <-s.opener.Done():
		s.end(transport.ContextError(s.opener, s.name))
	}
}

// Buffered implements transport.Stream.
func (s *stream1) Buffered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf.n == 0 && s.err != nil {
		return -1
	}
	return s.buf.n
}

// Readable implements transport.Stream.
func (s *stream1) Readable() <-chan struct{} { return s.readable }

func (s *stream1) signalReadable() { signal(s.readable) }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Cancel implements transport.Stream.
func (s *stream1) Cancel() {
	s.abort(errCanceled)
	s.mu.Lock()
	if s.buf.drop() > 0 && s.err == io.EOF {
		s.err = s.error(transport.Canceled, errCanceled)
	}
	s.mu.Unlock()
}

func (s *stream1) abort(reason error) {
	s.end(s.error(transport.Canceled, reason))
}
