package lambda

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	api "github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/klauspost/compress/zstd"

	"perdure/invokers/transport"
)

// stream is one exchange. It holds a permit of its function until the call has ended.
type stream struct {
	c   *Client
	ctx context.Context // of the opener
	fn  *function
	ep  transport.Endpoint
	req transport.Request

	callCtx  context.Context // ends with Cancel and with the call
	cancel   context.CancelCauseFunc
	readable chan struct{} // capacity 1

	raw    []byte // the request so far; the writer's goroutine
	called bool   // CloseWrite was called; the writer's goroutine

	mu        sync.Mutex
	permitted bool // the permit is still held
	resp      transport.Response
	hasResp   bool
	body      []byte        // of the response, what is ready to be read
	unzip     *zstd.Decoder // source of more body, or nil
	unzipped  int64
	err       error // io.EOF or *transport.Error, after body
}

var _ transport.Stream = (*stream)(nil)

func newStream(ctx context.Context, c *Client, fn *function, ep transport.Endpoint, req transport.Request) *stream {
	s := &stream{c: c, ctx: ctx, fn: fn, ep: ep, req: req, permitted: true, readable: make(chan struct{}, 1)}
	s.callCtx, s.cancel = context.WithCancelCause(ctx)
	return s
}

// Write implements transport.Stream. Nothing is sent before CloseWrite.
func (s *stream) Write(b []byte) error {
	if err := s.failure(); err != nil {
		return err
	}
	if s.called {
		return s.error(transport.Protocol, errClosedWrite)
	}
	size := len(s.raw) + len(b)
	limit := s.c.cfg.MaxRequest
	if !s.ep.Zstd {
		limit = min(limit, base64.StdEncoding.DecodedLen(s.c.cfg.MaxPayload))
	}
	if size > limit {
		err := s.c.tooLarge(s.ep, base64.StdEncoding.EncodedLen(size), false)
		s.end(err)
		s.release(neutral)
		return err
	}
	s.raw = append(s.raw, b...)
	return nil
}

// CloseWrite implements transport.Stream: it makes the call.
func (s *stream) CloseWrite() error {
	if err := s.failure(); err != nil {
		return err
	}
	if s.called {
		return nil
	}
	s.called = true
	payload, err := s.c.encode(s.ep, s.req, s.raw)
	s.raw = nil
	if err != nil {
		s.end(err)
		s.release(neutral)
		return err
	}
	if !s.c.spawn(func(ctx context.Context) { s.run(ctx, payload) }) {
		s.end(s.error(transport.Canceled, errClosed))
		s.release(neutral)
	}
	return nil
}

// failure is the error of the exchange, if it has one.
func (s *stream) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && s.err != io.EOF {
		return s.err
	}
	return nil
}

func (s *stream) error(kind transport.Kind, err error) *transport.Error {
	return &transport.Error{Kind: kind, Endpoint: s.ep.Function, Err: err}
}

// run makes the call and takes its answer.
func (s *stream) run(life context.Context, payload []byte) {
	stop := context.AfterFunc(life, func() { s.cancel(errClosed) })
	defer stop()
	ctx, cancel := context.WithTimeout(s.callCtx, s.c.cfg.CallTimeout)
	defer cancel()
	m := s.c.metrics
	m.sent.Add(float64(len(payload)))
	m.running.Inc()
	begin := time.Now()
	cold := s.fn.envs.begin(begin)
	out, err := s.c.clients.get(s.fn.arn.Region, s.ep.Role).Invoke(ctx, &api.InvokeInput{FunctionName: aws.String(s.ep.Function), Payload: payload})
	now := time.Now()
	m.running.Dec()
	ran := err == nil
	// The environment comes first, for the call that gets the permit; the permit before the answer can be read, whose
	// reader may Cancel and so give it back as if nothing was learnt.
	s.fn.envs.end(now, ran && out.FunctionError == nil || !ran && !cold)
	if ran {
		s.releaseAt(now, succeeded)
	}
	failure := s.take(out, err)
	if ran {
		m.ran(s.fn.label, now.Sub(begin), cold)
	}
	s.settle(now, failure)
}

// take turns the result of the call into the response, or into the failure that it returns.
func (s *stream) take(out *api.InvokeOutput, err error) *transport.Error {
	switch {
	case err != nil && s.c.ctx.Err() != nil: // a refresh of credentials ends with the client, maybe before callCtx does
		return s.error(transport.Canceled, errClosed)
	case err != nil && s.ctx.Err() == nil && s.callCtx.Err() != nil:
		return s.error(transport.Canceled, errCanceled)
	case err != nil:
		return classify(s.ctx, s.fn.arn, s.ep.Role, err)
	}
	s.c.metrics.received.Add(float64(len(out.Payload)))
	if out.FunctionError != nil {
		return functionError(s.fn.arn, out.Payload)
	}
	resp, body, zipped, err := decodeAnswer(out.Payload)
	if err != nil {
		return s.error(transport.Protocol, err)
	}
	return s.serve(resp, body, zipped)
}

// serve makes the response readable.
func (s *stream) serve(resp transport.Response, body []byte, zipped bool) *transport.Error {
	var unzip *zstd.Decoder
	if zipped {
		var err error
		if unzip, err = newDecoder(body); err != nil {
			return s.error(transport.Protocol, fmt.Errorf("decompress the response: %w", err))
		}
		body = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil { // canceled meanwhile
		if unzip != nil {
			unzip.Close()
		}
		return nil
	}
	s.resp, s.hasResp = resp, true
	s.body, s.unzip = body, unzip
	if unzip == nil {
		s.err = io.EOF
	}
	return nil
}

// settle ends the call: it tells the limiter and the reader.
func (s *stream) settle(now time.Time, failure *transport.Error) {
	o, label := neutral, "ok"
	if failure != nil && failure.Kind == transport.Throttled {
		o = refused
		s.c.metrics.throttles.WithLabelValues(s.fn.label, "api").Inc()
	}
	if wait := s.releaseAt(now, o); failure != nil && failure.Kind == transport.Throttled && failure.RetryAfter == 0 {
		failure.RetryAfter = wait
	}
	if failure != nil {
		label = failure.Kind.String()
		s.end(failure)
	}
	s.c.metrics.invokes.WithLabelValues(s.fn.label, label).Inc()
	s.cancel(nil)
	s.signal()
}

func (s *stream) release(o outcome) { s.releaseAt(time.Now(), o) }

// releaseAt gives the permit back, once.
func (s *stream) releaseAt(now time.Time, o outcome) time.Duration {
	s.mu.Lock()
	held := s.permitted
	s.permitted = false
	s.mu.Unlock()
	if !held {
		return 0
	}
	return s.fn.limiter.release(now, o)
}

// end gives the exchange its failure; the first result counts.
func (s *stream) end(err error) {
	s.mu.Lock()
	if s.err == nil && !s.hasResp {
		s.err = err
	}
	s.mu.Unlock()
	s.signal()
}

func (s *stream) signal() {
	select {
	case s.readable <- struct{}{}:
	default:
	}
}

// Response implements transport.Stream.
func (s *stream) Response() (transport.Response, error) {
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
		s.wait()
	}
}

// Read implements transport.Stream.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.mu.Lock()
		s.fillLocked()
		n := copy(p, s.body)
		s.body = s.body[n:]
		err := s.err
		s.mu.Unlock()
		switch {
		case n > 0:
			return n, nil
		case err != nil:
			return 0, err
		}
		s.wait()
	}
}

// wait blocks until something has changed, or ends the exchange with its context.
func (s *stream) wait() {
	select {
	case <-s.readable:
	case <-s.ctx.Done():
		s.end(transport.ContextError(s.ctx, s.ep.Function))
		s.stop()
	}
}

// unzipStep is how much is decompressed at once.
const unzipStep = 64 << 10

// fillLocked decompresses some more when nothing is ready.
func (s *stream) fillLocked() {
	if len(s.body) > 0 || s.unzip == nil {
		return
	}
	buf := make([]byte, unzipStep)
	n, err := 0, error(nil)
	for n < len(buf) && err == nil {
		var m int
		m, err = s.unzip.Read(buf[n:])
		n += m
	}
	s.body = buf[:n]
	s.unzipped += int64(n)
	switch {
	case err == io.EOF:
		s.err = io.EOF
	case err != nil:
		s.err = s.error(transport.Protocol, fmt.Errorf("decompress the response: %w", err))
	case s.unzipped > s.c.cfg.MaxResponse:
		s.body = nil
		s.err = s.error(transport.Protocol, fmt.Errorf("response is longer than %d bytes when decompressed", s.c.cfg.MaxResponse))
	default:
		return
	}
	s.unzip.Close()
	s.unzip = nil
}

// Buffered implements transport.Stream.
func (s *stream) Buffered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fillLocked()
	if len(s.body) == 0 && s.err != nil {
		return -1
	}
	return len(s.body)
}

// Readable implements transport.Stream.
func (s *stream) Readable() <-chan struct{} { return s.readable }

// Cancel implements transport.Stream. A function that runs goes on to its end; its answer is dropped.
func (s *stream) Cancel() {
	s.mu.Lock()
	unread := len(s.body) > 0 || s.unzip != nil
	if s.unzip != nil {
		s.unzip.Close()
		s.unzip = nil
	}
	s.body = nil
	if s.err == nil || s.err == io.EOF && unread {
		s.err = s.error(transport.Canceled, errCanceled)
	}
	s.mu.Unlock()
	s.stop()
	s.signal()
}

// stop ends the call and gives the permit back.
func (s *stream) stop() {
	s.cancel(errCanceled)
	s.release(neutral)
}
