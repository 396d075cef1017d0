package h2

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"perdure/invokers/transport"
)

// reader takes the frames of a connection apart. All fields belong to its goroutine.
type reader struct {
	c    *conn
	br   *bufio.Reader
	fr   *http2.Framer
	calm calm

	// notes are the streams that got something since the socket last ran dry. They are woken then, not at
	// every frame: header, body and end of a response mostly come together and should wake its reader once.
	notes []*stream

	hdec  *hpack.Decoder
	block headerBlock
}

// peerError is a fault of the peer that costs it the connection.
type peerError struct {
	code http2.ErrCode
	msg  string
}

func (e peerError) Error() string { return fmt.Sprintf("%s (%v)", e.msg, e.code) }

var errFlood = peerError{http2.ErrCodeEnhanceYourCalm, "peer floods the connection with frames that carry nothing"}

func newReader(c *conn) *reader {
	r := &reader{c: c, calm: newCalm(time.Now())}
	r.br = bufio.NewReaderSize(countingReader{c}, readBufferSize)
	r.fr = http2.NewFramer(nil, r.br)
	r.fr.SetReuseFrames()
	r.fr.SetMaxReadFrameSize(minMaxFrame)
	r.hdec = hpack.NewDecoder(tableSize, r.block.add)
	r.hdec.SetMaxStringLength(c.cfg.MaxHeaderBytes)
	r.block.limit = c.cfg.MaxHeaderBytes
	return r
}

// countingReader reads from the socket.
type countingReader struct{ c *conn }

func (r countingReader) Read(p []byte) (int, error) {
	n, err := r.c.nc.Read(p)
	if n > 0 {
		r.c.metrics.bytesReceived.Add(float64(n))
		r.c.heard.Store(int64(time.Since(r.c.born)))
	}
	return n, err
}

// readLoop runs until the connection has ended.
func (c *conn) readLoop() {
	r := c.rd
	err := r.greet()
	for err == nil {
		err = r.next()
	}
	r.wakeNoted()
	var fault peerError
	if errors.As(err, &fault) {
		c.goAway(transport.Protocol, fault.code, fault)
		return
	}
	var old http1Answer
	if errors.As(err, &old) {
		c.fail(transport.HTTP1Only, old)
		return
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("peer closed the connection")
	}
	c.fail(transport.Reset, err)
}

// http1Answer is the status line of a peer that does not know HTTP/2.
type http1Answer string

func (a http1Answer) Error() string {
	return fmt.Sprintf("HTTP/2 preface was answered with %q", string(a))
}

// greet expects the peer's preface: a SETTINGS frame.
func (r *reader) greet() error {
	head, err := r.br.Peek(frameHeaderLen)
	if bytes.HasPrefix(head, []byte("HTTP/1.")) {
		_, _ = r.br.Peek(40) // some more of the line, if it comes
		line, _ := r.br.Peek(min(r.br.Buffered(), 40))
		line, _, _ = bytes.Cut(line, []byte("\r"))
		return http1Answer(line)
	}
	if err != nil {
		return err
	}
	if http2.FrameType(head[3]) != http2.FrameSettings || head[4]&byte(http2.FlagSettingsAck) != 0 {
		return peerError{http2.ErrCodeProtocol, "peer does not begin with a SETTINGS frame: it speaks no HTTP/2 (if it speaks HTTP/1.1, register it with use_http_11)"}
	}
	if err := r.next(); err != nil {
		return err
	}
	close(r.c.ready)
	return nil
}

// next reads and handles one frame.
func (r *reader) next() error {
	if len(r.notes) > 0 && !r.frameBuffered() {
		r.wakeNoted()
	}
	f, err := r.fr.ReadFrame()
	if err == nil {
		return r.handle(f)
	}
	var se http2.StreamError
	var ce http2.ConnectionError
	switch {
	case errors.As(err, &se):
		return r.streamFault(se)
	case errors.As(err, &ce):
		return peerError{http2.ErrCode(ce), fmt.Sprintf("bad frame: %v", r.detail(err))}
	case errors.Is(err, http2.ErrFrameTooLarge):
		return peerError{http2.ErrCodeFrameSize, "frame is longer than allowed"}
	}
	return fmt.Errorf("read from the connection: %w", err)
}

func (r *reader) detail(err error) error {
	if d := r.fr.ErrorDetail(); d != nil {
		return d
	}
	return err
}

// frameBuffered reports whether the next frame is here in full.
func (r *reader) frameBuffered() bool {
	n := r.br.Buffered()
	if n < frameHeaderLen {
		return false
	}
	h, err := r.br.Peek(3)
	return err == nil && n >= frameHeaderLen+int(h[0])<<16+int(h[1])<<8+int(h[2])
}

func (r *reader) note(s *stream) {
	if !s.noted {
		s.noted = true
		r.notes = append(r.notes, s)
	}
}

func (r *reader) wakeNoted() {
	for i, s := range r.notes {
		s.noted = false
		s.signalReadable()
		r.notes[i] = nil
	}
	r.notes = r.notes[:0]
}

func (r *reader) handle(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return r.data(f)
	case *http2.HeadersFrame:
		r.block.begin(f.StreamID, f.StreamEnded())
		return r.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		return r.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.WindowUpdateFrame:
		return r.windowUpdate(f)
	case *http2.SettingsFrame:
		return r.settings(f)
	case *http2.PingFrame:
		return r.ping(f)
	case *http2.RSTStreamFrame:
		return r.reset(f)
	case *http2.GoAwayFrame:
		return r.goAway(f)
	case *http2.PushPromiseFrame:
		return peerError{http2.ErrCodeProtocol, "peer pushed although that is off"}
	}
	return r.idleFrame() // PRIORITY and unknown types are ignored
}

// idleFrame counts a frame that brings nothing.
func (r *reader) idleFrame() error {
	if r.calm.take(time.Now()) {
		return nil
	}
	// Exchanges that were cancelled have such frames too: what comes for them is late.
	r.c.mu.Lock()
	opened := r.c.mu.nextID / 2
	r.c.mu.Unlock()
	if !r.calm.opened(opened) {
		return errFlood
	}
	return nil
}

// lookup finds the stream of a frame. It is nil for a stream that is over, whose late frames are ignored.
func (c *conn) lookupLocked(id uint32) (*stream, error) {
	if s := c.mu.streams[id]; s != nil {
		return s, nil
	}
	if id%2 == 0 || id >= c.mu.nextID {
		return nil, peerError{http2.ErrCodeProtocol, fmt.Sprintf("frame for stream %d, which was never opened", id)}
	}
	return nil, nil
}

func (c *conn) lookup(id uint32) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lookupLocked(id)
}

func (r *reader) streamFault(se http2.StreamError) error {
	s, err := r.c.lookup(se.StreamID)
	if err != nil {
		return err
	}
	if s != nil {
		r.c.resetStream(s, se.Code, transport.Protocol, fmt.Errorf("bad frame: %w", r.detail(se)))
	}
	return r.idleFrame()
}

func (r *reader) data(f *http2.DataFrame) error {
	data, size, end := f.Data(), int64(f.Length), f.StreamEnded()
	if len(data) > 0 || end {
		r.calm.progress()
	} else if err := r.idleFrame(); err != nil {
		return err
	}
	s, err := r.c.receive(f.StreamID, size)
	if err != nil || s == nil {
		return err
	}
	if !s.hasHeader() {
		r.c.resetStream(s, http2.ErrCodeProtocol, transport.Protocol, errors.New("response body came before its header"))
		return nil
	}
	credit, err := s.deliver(data, size)
	if err != nil {
		r.c.resetStream(s, http2.ErrCodeFlowControl, transport.Protocol, err)
		return nil
	}
	s.giveBack(credit)
	r.note(s)
	if end {
		r.endOfBody(s)
	}
	return nil
}

// receive accounts for a DATA frame and finds its stream.
func (c *conn) receive(id uint32, size int64) (*stream, error) {
	c.mu.Lock()
	defer c.unlockAndFlush()
	if c.mu.recvWindow -= size; c.mu.recvWindow < 0 {
		return nil, peerError{http2.ErrCodeFlowControl, "peer sent more than the window of the connection"}
	}
	c.mu.unacked += size
	c.giveBackLocked()
	s, err := c.lookupLocked(id)
	if s != nil && s.remoteDone {
		return nil, peerError{http2.ErrCodeStreamClosed, fmt.Sprintf("DATA after the end of stream %d", id)}
	}
	return s, err
}

// hasHeader is for the reader's goroutine, which is the only one that sets it.
func (s *stream) hasHeader() bool { return s.recv.hasResp }

// endOfBody handles END_STREAM.
func (r *reader) endOfBody(s *stream) {
	c := r.c
	if s.length >= 0 && s.length != s.received {
		c.resetStream(s, http2.ErrCodeProtocol, transport.Protocol,
			fmt.Errorf("response body has %d bytes, its content-length says %d", s.received, s.length))
		return
	}
	c.mu.Lock()
	s.remoteDone = true
	s.endRecv() // with mu: who has seen the end and cancels must find the exchange complete
	finished := s.localDone && c.endStreamLocked(s, nil)
	c.mu.Unlock()
	if finished {
		s.finish(nil)
	}
}

func (r *reader) windowUpdate(f *http2.WindowUpdateFrame) error {
	c := r.c
	c.mu.Lock()
	if !c.returnedLocked(f.Increment) {
		c.mu.Unlock()
		if err := r.idleFrame(); err != nil {
			return err
		}
		c.mu.Lock()
	}
	defer c.unlockAndFlush()
	if f.StreamID == 0 {
		if c.mu.sendWindow += int64(f.Increment); c.mu.sendWindow > maxWindow {
			return peerError{http2.ErrCodeFlowControl, "peer opened the window of the connection beyond its maximum"}
		}
		c.unblockLocked()
		return nil
	}
	s, err := c.lookupLocked(f.StreamID)
	if s == nil {
		return err
	}
	if s.sendWindow += int64(f.Increment); s.sendWindow > maxWindow {
		return peerError{http2.ErrCodeFlowControl, "peer opened the window of a stream beyond its maximum"}
	}
	s.signalWritable()
	return nil
}

// returnedLocked reports whether an update of a window gives back what was sent: once for the stream and once for the
// connection. A peer that reads in small pieces sends very many of them, and they are paid for with what it read.
func (c *conn) returnedLocked(n uint32) bool {
	if c.mu.returned+int64(n) > 2*c.mu.sent {
		return false
	}
	c.mu.returned += int64(n)
	return true
}

func (r *reader) settings(f *http2.SettingsFrame) error {
	if err := r.idleFrame(); err != nil {
		return err
	}
	if f.IsAck() {
		return nil
	}
	c := r.c
	c.mu.Lock()
	for i := range f.NumSettings() {
		if err := c.applyLocked(f.Setting(i)); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	c.unblockLocked() // windows and frame size may have grown
	err := c.answerLocked(appendFrameHeader(nil, 0, http2.FrameSettings, http2.FlagSettingsAck, 0))
	c.unlockAndFlush()
	if err == nil {
		c.pool.serve() // the limit may have grown
	}
	return err
}

func (c *conn) applyLocked(st http2.Setting) error {
	var ce http2.ConnectionError
	if err := st.Valid(); errors.As(err, &ce) {
		return peerError{http2.ErrCode(ce), fmt.Sprintf("peer sent a setting out of range: %v", st)}
	}
	switch st.ID {
	case http2.SettingMaxConcurrentStreams:
		c.limit.Store(int32(min(st.Val, uint32(c.cfg.MaxStreamsPerConn))))
	case http2.SettingInitialWindowSize:
		delta := int64(st.Val) - c.mu.peerWindow
		c.mu.peerWindow = int64(st.Val)
		for _, s := range c.mu.streams {
			if s.sendWindow += delta; s.sendWindow > maxWindow {
				return peerError{http2.ErrCodeFlowControl, "peer opened the window of a stream beyond its maximum"}
			}
			s.signalWritable()
		}
	case http2.SettingMaxFrameSize:
		c.mu.maxFrame = int(min(st.Val, maxSendFrame))
	case http2.SettingMaxHeaderListSize:
		c.mu.maxHeader = int(min(st.Val, maxSendHeader))
	case http2.SettingHeaderTableSize:
		c.mu.henc.SetMaxDynamicTableSize(min(st.Val, tableSize))
	}
	return nil
}

// answerLocked queues the answer to a control frame. A peer that asks and does not read is cut off.
func (c *conn) answerLocked(frame []byte) error {
	if c.mu.control += len(frame); c.mu.control > maxControl {
		return peerError{http2.ErrCodeEnhanceYourCalm, "peer does not read the answers to its control frames"}
	}
	c.mu.out = append(c.mu.out, frame...)
	return nil
}

func (r *reader) ping(f *http2.PingFrame) error {
	if err := r.idleFrame(); err != nil || f.IsAck() {
		return err
	}
	answer := appendFrameHeader(nil, 8, http2.FramePing, http2.FlagPingAck, 0)
	r.c.mu.Lock()
	defer r.c.unlockAndFlush()
	return r.c.answerLocked(append(answer, f.Data[:]...))
}

func (r *reader) reset(f *http2.RSTStreamFrame) error {
	c := r.c
	c.mu.Lock()
	s, err := c.lookupLocked(f.StreamID)
	if s == nil {
		c.mu.Unlock()
		if err != nil {
			return err
		}
		return r.idleFrame()
	}
	failure := &transport.Error{Kind: resetKind(f.ErrCode), Endpoint: c.ep, Err: fmt.Errorf("service reset the stream: %v", f.ErrCode)}
	complete := s.remoteDone
	if complete {
		s.stopped = true
		failure.Err = errStopReading
	}
	finished := c.endStreamLocked(s, failure)
	c.mu.Unlock()
	switch {
	case !finished:
	case complete:
		s.finish(nil) // what it answered stands
	default:
		s.finish(failure)
	}
	return nil
}

func resetKind(code http2.ErrCode) transport.Kind {
	switch code {
	case http2.ErrCodeRefusedStream:
		return transport.NotProcessed
	case http2.ErrCodeHTTP11Required:
		return transport.HTTP1Only
	}
	return transport.Reset
}

func (r *reader) goAway(f *http2.GoAwayFrame) error {
	if err := r.idleFrame(); err != nil {
		return err
	}
	c := r.c
	kind := transport.NotProcessed
	if f.ErrCode == http2.ErrCodeHTTP11Required {
		kind = transport.HTTP1Only
	}
	failure := &transport.Error{Kind: kind, Endpoint: c.ep, Err: fmt.Errorf("peer is going away: %v %.100q", f.ErrCode, f.DebugData())}
	var lost []*stream
	c.mu.Lock()
	c.draining.Store(true)
	for id, s := range c.mu.streams {
		if id > f.LastStreamID {
			lost = append(lost, s)
		}
	}
	for _, s := range lost {
		c.endStreamLocked(s, failure)
	}
	c.mu.Unlock()
	c.pool.remove(c, failure)
	for _, s := range lost {
		s.finish(failure)
	}
	c.closeIfDrained()
	return nil
}

// headerBlock collects one header block: HEADERS and its CONTINUATION frames.
type headerBlock struct {
	id     uint32
	end    bool // END_STREAM
	limit  int  // on size
	raw    int  // bytes on the wire
	frames int
	size   int // as HTTP/2 counts it
	status int
	fields []transport.Field
	bad    error // why the response is malformed
}

func (b *headerBlock) begin(id uint32, end bool) {
	clear(b.fields)
	*b = headerBlock{id: id, end: end, limit: b.limit, fields: b.fields[:0]}
}

// add takes one decoded field.
func (b *headerBlock) add(f hpack.HeaderField) {
	if b.size += int(f.Size()); b.size > b.limit {
		b.bad = fmt.Errorf("response header is longer than %d bytes", b.limit)
		return
	}
	switch {
	case f.Name == ":status" && b.status == 0 && len(b.fields) == 0:
		n, err := strconv.Atoi(f.Value)
		if err != nil || len(f.Value) != 3 || n < 100 {
			b.bad = fmt.Errorf("response status %.20q is no number of three digits", f.Value)
		}
		b.status = n
	case !validName(f.Name) || !validValue(f.Value):
		b.bad = fmt.Errorf("response header field %.50q is malformed", f.Name)
	default:
		b.fields = append(b.fields, transport.Field{Name: f.Name, Value: f.Value})
	}
}

func validName(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return name != ""
}

func validValue(v string) bool {
	for i := 0; i < len(v); i++ {
		if c := v[i]; c == 0 || c == '\r' || c == '\n' {
			return false
		}
	}
	return true
}

// maxContinuations limits the frames of one header block; a block within the size limit needs a handful.
const maxContinuations = 64

// fragment takes a piece of the header block. Also the block of a stream that is over must be decoded, because the
// tables of the two sides go together.
func (r *reader) fragment(p []byte, last bool) error {
	b := &r.block
	b.raw += len(p)
	b.frames++
	if b.raw > 2*b.limit || b.frames > maxContinuations {
		return peerError{http2.ErrCodeEnhanceYourCalm, "header block does not end"}
	}
	if _, err := r.hdec.Write(p); err != nil {
		return peerError{http2.ErrCodeCompression, fmt.Sprintf("decode header block: %v", err)}
	}
	if !last {
		return nil
	}
	if err := r.hdec.Close(); err != nil {
		return peerError{http2.ErrCodeCompression, fmt.Sprintf("decode header block: %v", err)}
	}
	s, err := r.c.lookup(b.id)
	if err != nil {
		return err
	}
	if s == nil {
		return r.idleFrame()
	}
	return r.header(s)
}

// header handles a complete header block: an informational response, the response, or its trailers.
func (r *reader) header(s *stream) error {
	b := &r.block
	trailers := s.hasHeader()
	switch {
	case b.bad != nil:
	case trailers && (b.status != 0 || !b.end):
		b.bad = errors.New("response has a second header")
	case trailers:
		r.note(s)
		r.endOfBody(s)
		return nil
	case b.status == 0:
		b.bad = errors.New("response header has no status")
	case b.status < 200 && b.end:
		b.bad = errors.New("response ends with an informational status")
	case b.status < 200:
		return r.idleFrame()
	}
	if b.bad != nil {
		r.c.resetStream(s, http2.ErrCodeProtocol, transport.Protocol, b.bad)
		return nil
	}
	resp := transport.Response{Status: b.status, Version: transport.HTTP2, Header: append([]transport.Field(nil), b.fields...)}
	if v := resp.Get("content-length"); v != "" && b.status != 204 && b.status != 304 {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil {
			r.c.resetStream(s, http2.ErrCodeProtocol, transport.Protocol, fmt.Errorf("content-length %.30q is no number", v))
			return nil
		}
		s.length = int64(n)
	}
	r.calm.progress()
	s.setResponse(resp)
	r.note(s)
	if b.end {
		r.endOfBody(s)
	}
	return nil
}
