package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"perdure/invokers/transport"
)

var (
	errCanceled    = errors.New("exchange was canceled")
	errStopReading = errors.New("service ended its response without reading the whole request")
	errClosedWrite = errors.New("write after CloseWrite")
	errDraining    = errors.New("connection takes no new streams")
	errIdle        = errors.New("connection was idle")
)

// stream is one exchange on an HTTP/2 connection. It holds a slot of the connection from the start; its id and its
// header block come into being with the first Write or CloseWrite, because ids and header tables must go
// out in the order of their making.
type stream struct {
	c     *conn
	ctx   context.Context
	ep    transport.Endpoint
	req   transport.Request
	began time.Time

	// Guarded by c.mu.
	id         uint32 // 0 until the request has begun
	sendWindow int64
	localDone  bool             // END_STREAM is queued
	remoteDone bool             // END_STREAM was received
	stopped    bool             // the response is complete and the peer does not want the rest of the request
	ended      bool             // off the connection
	blocked    bool             // in c.mu.blocked
	sendErr    *transport.Error // what Write returns
	writable   chan struct{}    // capacity 1, made when the writer first blocks
	lastBatch  uint64           // the batch and
	lastFrame  int              // the offset in c.mu.out of the newest frame that can carry END_STREAM

	// The reader's goroutine.
	noted    bool  // in reader.notes
	length   int64 // content-length of the response, -1 when not given
	received int64

	readable chan struct{} // capacity 1

	recv struct {
		sync.Mutex
		buf     recvBuffer
		resp    transport.Response
		hasResp bool
		err     error // io.EOF or *transport.Error, after buf is read
		window  int64 // what the peer may still send
		credit  int64 // read bytes that were not given back to it
	}
}

var _ transport.Stream = (*stream)(nil)

func newStream(ctx context.Context, c *conn, ep transport.Endpoint, req transport.Request) *stream {
	s := &stream{c: c, ctx: ctx, ep: ep, req: req, began: time.Now(), length: -1, readable: make(chan struct{}, 1)}
	s.recv.window = int64(c.cfg.StreamWindow)
	return s
}

// Write implements transport.Stream.
func (s *stream) Write(b []byte) error {
	c := s.c
	c.mu.Lock()
	if s.id == 0 {
		if err := s.beginLocked(false); err != nil {
			return err
		}
	}
	for {
		if s.sendErr != nil {
			err := s.sendErr
			c.unlockAndFlush()
			return err
		}
		if s.localDone {
			c.unlockAndFlush()
			return &transport.Error{Kind: transport.Protocol, Endpoint: c.ep, Err: errClosedWrite}
		}
		b = s.queueLocked(b)
		if len(b) == 0 {
			c.unlockAndFlush()
			return nil
		}
		wait := s.blockLocked()
		c.unlockAndFlush()
		select {
		case <-wait:
		case <-s.ctx.Done():
			s.abort(transport.ContextError(s.ctx, c.ep))
		}
		c.mu.Lock()
	}
}

// queueLocked appends as much of b as window and buffer allow and returns the rest.
func (s *stream) queueLocked(b []byte) []byte {
	c := s.c
	for len(b) > 0 {
		room := min(s.sendWindow, c.mu.sendWindow, int64(c.cfg.SendBuffer-len(c.mu.out)))
		if room <= 0 {
			break
		}
		n := min(len(b), int(room), c.mu.maxFrame)
		s.lastBatch, s.lastFrame = c.mu.batch, len(c.mu.out)
		c.mu.out = appendFrameHeader(c.mu.out, n, http2.FrameData, 0, s.id)
		c.mu.out = append(c.mu.out, b[:n]...)
		s.sendWindow -= int64(n)
		c.mu.sendWindow -= int64(n)
		c.mu.sent += int64(n)
		b = b[n:]
	}
	return b
}

func (s *stream) blockLocked() <-chan struct{} {
	if s.writable == nil {
		s.writable = make(chan struct{}, 1)
	}
	if !s.blocked {
		s.blocked = true
		s.c.mu.blocked = append(s.c.mu.blocked, s)
	}
	return s.writable
}

// signalWritable wakes the writer; c.mu is held.
func (s *stream) signalWritable() {
	if s.writable == nil {
		return
	}
	select {
	case s.writable <- struct{}{}:
	default:
	}
}

// CloseWrite implements transport.Stream.
func (s *stream) CloseWrite() error {
	c := s.c
	c.mu.Lock()
	if s.id == 0 {
		if err := s.beginLocked(true); err != nil {
			return err
		}
		c.unlockAndFlush()
		return nil
	}
	if s.localDone || s.stopped || s.sendErr != nil {
		err := s.sendErr
		done := s.localDone || s.stopped
		c.mu.Unlock()
		if done || err == nil {
			return nil
		}
		return err
	}
	s.localDone = true
	if s.lastBatch == c.mu.batch {
		c.mu.out[s.lastFrame+4] |= byte(http2.FlagDataEndStream) // the same bit in HEADERS
	} else {
		c.mu.out = appendFrameHeader(c.mu.out, 0, http2.FrameData, http2.FlagDataEndStream, s.id)
	}
	finished := s.remoteDone && c.endStreamLocked(s, nil)
	c.unlockAndFlush()
	if finished {
		s.finish(nil)
	}
	return nil
}

// beginLocked gives the stream its id and queues its header block. When it fails it has released c.mu.
func (s *stream) beginLocked(end bool) error {
	c := s.c
	var err *transport.Error
	switch {
	case s.sendErr != nil:
		err = s.sendErr
	case c.mu.err != nil:
		err = c.lostLocked(true)
	case c.draining.Load():
		err = &transport.Error{Kind: transport.NotProcessed, Endpoint: c.ep, Err: errDraining}
	default:
		if n := s.headerSize(); n > c.mu.maxHeader {
			err = &transport.Error{Kind: transport.Protocol, Endpoint: c.ep,
				Err: fmt.Errorf("the header of the request has %d bytes, more than the %d that the service takes: is the key of the object very long?", n, c.mu.maxHeader)}
		}
	}
	if err != nil {
		finished := c.endStreamLocked(s, err)
		c.mu.Unlock()
		if finished {
			s.finish(err)
		}
		return err
	}
	s.id = c.mu.nextID
	c.mu.nextID += 2
	if c.mu.nextID > maxStreamID {
		c.draining.Store(true)
	}
	c.mu.streams[s.id] = s
	s.sendWindow = c.mu.peerWindow
	s.localDone = end
	s.queueHeaderLocked(end)
	return nil
}

// headerSize is the size of the request's header as HTTP/2 counts it. A peer ends the whole connection, with all its
// exchanges, for a header that is too long.
func (s *stream) headerSize() int {
	const fieldOverhead = 32
	n := len(":method:scheme:authority:path") + 4*fieldOverhead +
		len(s.req.Method) + len(s.ep.Scheme) + len(s.ep.Authority) + len(s.ep.Target(s.req.Path))
	for i := range s.req.Header {
		n += len(s.req.Header[i].Name) + len(s.req.Header[i].Value) + fieldOverhead
	}
	return n
}

func (s *stream) queueHeaderLocked(end bool) {
	c := s.c
	start := len(c.mu.out)
	s.lastBatch, s.lastFrame = c.mu.batch, start
	flags := http2.FlagHeadersEndHeaders
	if end {
		flags |= http2.FlagHeadersEndStream
	}
	c.mu.out = appendFrameHeader(c.mu.out, 0, http2.FrameHeaders, flags, s.id)
	s.encodeLocked(":method", s.req.Method, false)
	s.encodeLocked(":scheme", s.ep.Scheme, false)
	authority := s.ep.Authority
	for i := range s.req.Header {
		if f := &s.req.Header[i]; f.Name == "host" {
			authority = f.Value
		}
	}
	s.encodeLocked(":authority", authority, false)
	s.encodeLocked(":path", s.ep.Target(s.req.Path), false)
	for i := range s.req.Header {
		if f := &s.req.Header[i]; f.Name != "host" {
			s.encodeLocked(f.Name, f.Value, f.NoIndex)
		}
	}
	s.req = transport.Request{} // it belongs to the caller again
	n := len(c.mu.out) - start - frameHeaderLen
	if n > c.mu.maxFrame {
		c.splitHeaderLocked(start, s.id)
		return
	}
	c.mu.out[start], c.mu.out[start+1], c.mu.out[start+2] = byte(n>>16), byte(n>>8), byte(n)
}

func (s *stream) encodeLocked(name, value string, noIndex bool) {
	// The encoder fails only if its writer does, and outWriter does not.
	_ = s.c.mu.henc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: noIndex})
}

// splitHeaderLocked cuts the HEADERS frame at start, which is too long for the peer, into CONTINUATION frames.
func (c *conn) splitHeaderLocked(start int, id uint32) {
	flags := http2.Flags(c.mu.out[start+4])
	block := append([]byte(nil), c.mu.out[start+frameHeaderLen:]...)
	out := appendFrameHeader(c.mu.out[:start], c.mu.maxFrame, http2.FrameHeaders, flags&^http2.FlagHeadersEndHeaders, id)
	out = append(out, block[:c.mu.maxFrame]...)
	for block = block[c.mu.maxFrame:]; len(block) > 0; {
		n := min(len(block), c.mu.maxFrame)
		var end http2.Flags
		if n == len(block) {
			end = http2.FlagContinuationEndHeaders
		}
		out = append(appendFrameHeader(out, n, http2.FrameContinuation, end, id), block[:n]...)
		block = block[n:]
	}
	c.mu.out = out
}

// Response implements transport.Stream.
func (s *stream) Response() (transport.Response, error) {
	for {
		s.recv.Lock()
		resp, ok, err := s.recv.resp, s.recv.hasResp, s.recv.err
		s.recv.Unlock()
		if ok {
			return resp, nil
		}
		if err != nil {
			return transport.Response{}, err
		}
		s.waitReadable()
	}
}

// Read implements transport.Stream.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.recv.Lock()
		if n := s.recv.buf.read(p); n > 0 {
			credit := s.takeCreditLocked(int64(n))
			s.recv.Unlock()
			s.giveBack(credit)
			s.c.consumed(n)
			return n, nil
		}
		err := s.recv.err
		s.recv.Unlock()
		if err != nil {
			return 0, err
		}
		s.waitReadable()
	}
}

func (s *stream) waitReadable() {
	select {
	case <-s.readable:
	case <-s.ctx.Done():
		s.abort(transport.ContextError(s.ctx, s.c.ep))
	}
}

// takeCreditLocked adds n consumed bytes and returns the window update that is due, or 0. s.recv is locked.
func (s *stream) takeCreditLocked(n int64) uint32 {
	s.recv.credit += n
	if s.recv.err != nil || s.recv.credit < int64(s.c.cfg.StreamWindow/4) {
		return 0
	}
	credit := s.recv.credit
	s.recv.window += credit
	s.recv.credit = 0
	return uint32(credit)
}

func (s *stream) giveBack(credit uint32) {
	if credit == 0 {
		return
	}
	c := s.c
	c.mu.Lock()
	if !s.ended && !s.remoteDone {
		c.mu.out = appendUint32Frame(c.mu.out, http2.FrameWindowUpdate, s.id, credit)
	}
	c.unlockAndFlush()
}

// Buffered implements transport.Stream.
func (s *stream) Buffered() int {
	s.recv.Lock()
	defer s.recv.Unlock()
	if s.recv.buf.n == 0 && s.recv.err != nil {
		return -1
	}
	return s.recv.buf.n
}

// Readable implements transport.Stream.
func (s *stream) Readable() <-chan struct{} { return s.readable }

func (s *stream) signalReadable() {
	select {
	case s.readable <- struct{}{}:
	default:
	}
}

// Cancel implements transport.Stream.
func (s *stream) Cancel() {
	s.abort(s.c.canceled)
	s.recv.Lock()
	dropped := s.recv.buf.drop()
	if s.recv.err == nil || s.recv.err == io.EOF && dropped > 0 {
		s.recv.err = s.c.canceled
	}
	s.recv.Unlock()
	s.c.consumed(dropped)
}

// abort ends the stream from this side, unless both directions are complete.
func (s *stream) abort(err *transport.Error) {
	c := s.c
	c.mu.Lock()
	if !c.endStreamLocked(s, err) {
		c.mu.Unlock()
		return
	}
	if s.id != 0 && c.mu.err == nil {
		c.mu.out = appendUint32Frame(c.mu.out, http2.FrameRSTStream, s.id, uint32(http2.ErrCodeCancel))
	}
	c.unlockAndFlush()
	s.finish(err)
}

// finish does what remains after endStreamLocked, without c.mu: it tells the reading side and frees the slot.
func (s *stream) finish(err *transport.Error) {
	if err != nil {
		s.failRecv(err)
		if err.Kind != transport.Canceled {
			s.c.metrics.failed(err.Kind)
		}
	}
	s.c.metrics.slotHeld.Observe(time.Since(s.began).Seconds())
	s.c.pool.release(s.c)
	s.c.closeIfDrained()
}

// failRecv lets the reading side end with err after what is buffered, unless its end has come already.
func (s *stream) failRecv(err *transport.Error) {
	s.recv.Lock()
	if s.recv.err == nil {
		s.recv.err = err
	}
	s.recv.Unlock()
	s.signalReadable()
}

// setResponse delivers the response header. The reader's goroutine calls it.
func (s *stream) setResponse(resp transport.Response) {
	s.recv.Lock()
	s.recv.resp, s.recv.hasResp = resp, true
	s.recv.Unlock()
}

// deliver takes the payload of one DATA frame of size bytes on the wire. It fails when the peer sent more than the
// window. The reader's goroutine calls it.
func (s *stream) deliver(data []byte, size int64) (credit uint32, err error) {
	s.recv.Lock()
	defer s.recv.Unlock()
	if s.recv.window -= size; s.recv.window < 0 {
		return 0, fmt.Errorf("peer sent %d bytes more than its window", -s.recv.window)
	}
	if s.recv.err != nil {
		return 0, nil // canceled meanwhile
	}
	s.c.buffered.Add(int64(len(data)))
	s.recv.buf.write(data)
	s.received += int64(len(data))
	return s.takeCreditLocked(size - int64(len(data))), nil
}

// endRecv delivers the end of the response body. The reader's goroutine calls it, c.mu is held.
func (s *stream) endRecv() {
	s.recv.Lock()
	defer s.recv.Unlock()
	if s.recv.err == nil {
		s.recv.err = io.EOF
	}
}
