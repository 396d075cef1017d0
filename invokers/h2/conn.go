package h2

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"perdure/invokers/transport"
)

// Numbers of RFC 9113.
const (
	frameHeaderLen = 9
	initialWindow  = 65535
	maxWindow      = 1<<31 - 1
	minMaxFrame    = 16384
	maxStreamID    = 1<<31 - 1
	tableSize      = 4096
)

// Limits of our own.
const (
	maxSendFrame   = 64 << 10 // the longest frame that we send, when the peer allows more
	maxSendHeader  = 1 << 20  // the longest header of a request, likewise
	readBufferSize = 32 << 10
	maxControl     = 64 << 10 // answers to control frames that wait for the socket
	goAwayPatience = time.Second
	keepBuffer     = 64 << 10 // larger send buffers are dropped at the next tick of the writer
)

// conn is one HTTP/2 connection. Two goroutines belong to it: the reader takes frames apart and hands bytes to
// streams; the writer is the only one that writes to the socket, so that no caller ever blocks in a system
// call, and sends whatever has been queued meanwhile in one write.
type conn struct {
	cfg     *Config
	metrics *metrics
	pool    *pool
	ep      string // for messages
	nc      net.Conn
	// canceled is what calls on a cancelled exchange return; one for all, because every exchange ends with Cancel.
	canceled *transport.Error

	// limit is how many exchanges may use the connection at once: the smaller of the peer's
	// MAX_CONCURRENT_STREAMS and ours.
	limit atomic.Int32
	// inUse is how many do, idleSince is when it became 0, served that it ever was not. Guarded by pool.mu.
	inUse     int
	idleSince time.Time
	served    bool

	// draining is set (under mu) after GOAWAY, or when the ids are used up: no new streams.
	draining atomic.Bool

	ready chan struct{} // closed by the reader at the peer's first SETTINGS
	done  chan struct{} // closed when mu.err is set
	wake  chan struct{} // capacity 1: there is something to write

	born  time.Time
	heard atomic.Int64 // when the socket last gave something, in nanoseconds after born

	// buffered counts received and unread bytes of all streams. withheld is set while window of the
	// connection is not given back because of it.
	buffered atomic.Int64
	withheld atomic.Bool

	mu struct {
		sync.Mutex
		err *transport.Error // why the connection is over

		streams    map[uint32]*stream
		nextID     uint32
		sendWindow int64
		peerWindow int64 // INITIAL_WINDOW_SIZE of the peer
		sent       int64 // bytes of DATA that were queued in all
		returned   int64 // of them, twice: window that the peer gave back
		maxFrame   int   // what we may send in one frame
		maxHeader  int   // and in one header
		henc       *hpack.Encoder
		blocked    []*stream // writers that wait for window or room

		out     []byte // frames that wait for the writer
		batch   uint64 // counts how often the writer took out
		control int    // bytes in out that answer control frames
		handed  uint32 // the socket got nothing of streams from this id on
		quiet   bool   // the writer waits for wake

		recvWindow int64 // what the peer may still send
		unacked    int64 // received bytes that were not given back to it
	}

	rd *reader // owned by the reader's goroutine
}

func newConn(p *pool, nc net.Conn) *conn {
	c := &conn{
		cfg:     &p.client.cfg,
		metrics: p.client.metrics,
		pool:    p,
		ep:      p.key.String(),
		nc:      nc,
		ready:   make(chan struct{}),
		done:    make(chan struct{}),
		wake:    make(chan struct{}, 1),
		born:    time.Now(),
	}
	c.idleSince = c.born
	c.canceled = &transport.Error{Kind: transport.Canceled, Endpoint: c.ep, Err: errCanceled}
	c.limit.Store(int32(c.cfg.MaxStreamsPerConn))
	c.mu.streams = make(map[uint32]*stream)
	c.mu.nextID = 1
	c.mu.sendWindow = initialWindow
	c.mu.peerWindow = initialWindow
	c.mu.recvWindow = int64(c.cfg.ConnWindow)
	c.mu.maxFrame, c.mu.maxHeader = minMaxFrame, maxSendHeader
	c.mu.henc = hpack.NewEncoder(outWriter{c})
	c.mu.out = c.appendPreface(nil)
	c.rd = newReader(c)
	return c
}

// outWriter lets the header encoder append to the send buffer. conn.mu is held.
type outWriter struct{ c *conn }

func (w outWriter) Write(p []byte) (int, error) {
	w.c.mu.out = append(w.c.mu.out, p...)
	return len(p), nil
}

func (c *conn) appendPreface(b []byte) []byte {
	settings := [...]http2.Setting{
		{ID: http2.SettingEnablePush, Val: 0},
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.cfg.MaxHeaderBytes)},
	}
	b = append(b, http2.ClientPreface...)
	b = appendFrameHeader(b, 6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	if more := c.cfg.ConnWindow - initialWindow; more > 0 {
		b = appendUint32Frame(b, http2.FrameWindowUpdate, 0, uint32(more))
	}
	return b
}

func appendFrameHeader(b []byte, length int, typ http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(typ), byte(flags),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// appendUint32Frame appends a frame that holds one number: WINDOW_UPDATE or RST_STREAM.
func appendUint32Frame(b []byte, typ http2.FrameType, id, v uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHeader(b, 4, typ, 0, id), v)
}

// unlockAndFlush releases mu after a change and wakes the writer when it has something to do.
func (c *conn) unlockAndFlush() {
	wake := c.mu.quiet && len(c.mu.out) > 0
	if wake {
		c.mu.quiet = false
	}
	c.mu.Unlock()
	if wake {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// unblockLocked lets the streams that wait for window or room try again.
func (c *conn) unblockLocked() {
	for i, s := range c.mu.blocked {
		s.blocked = false
		s.signalWritable()
		c.mu.blocked[i] = nil
	}
	c.mu.blocked = c.mu.blocked[:0]
}

// fail ends the connection: its streams fail with kind, or with NotProcessed when the socket never got anything
// of them. Only the first call counts.
func (c *conn) fail(kind transport.Kind, cause error) {
	if c.end(kind, cause, nil) {
		_ = c.nc.Close() // the reader and the writer notice; there is nobody to tell
	}
}

// goAway ends the connection like fail, and tells the peer why before the socket closes.
func (c *conn) goAway(kind transport.Kind, code http2.ErrCode, cause error) {
	frame := appendFrameHeader(nil, 8, http2.FrameGoAway, 0, 0)
	frame = binary.BigEndian.AppendUint32(frame, 0) // the peer never opened a stream
	frame = binary.BigEndian.AppendUint32(frame, uint32(code))
	if c.end(kind, cause, frame) {
		_ = c.nc.SetDeadline(time.Now().Add(goAwayPatience)) // ends a write that is stuck
	}
}

// end marks the connection as over with last as what is still to be sent, and fails its streams.
func (c *conn) end(kind transport.Kind, cause error, last []byte) bool {
	c.mu.Lock()
	if c.mu.err != nil {
		c.mu.Unlock()
		return false
	}
	c.mu.err = &transport.Error{Kind: kind, Endpoint: c.ep, Err: cause}
	c.mu.out = append(c.mu.out[:0], last...)
	close(c.done)
	lost := make([]*stream, 0, len(c.mu.streams))
	errs := make([]*transport.Error, 0, len(c.mu.streams))
	for _, s := range c.mu.streams {
		lost, errs = append(lost, s), append(errs, c.lostLocked(s.id >= c.mu.handed))
	}
	for i, s := range lost {
		c.endStreamLocked(s, errs[i])
	}
	c.unblockLocked()
	reason := c.lostLocked(true)
	c.mu.Unlock()

	c.pool.remove(c, reason)
	for i, s := range lost {
		s.finish(errs[i])
	}
	c.metrics.connsClosed.WithLabelValues(closeReason(kind, cause)).Inc()
	return true
}

// closeReason is the label of a closed connection.
func closeReason(kind transport.Kind, cause error) string {
	switch cause {
	case errIdle:
		return "idle"
	case errDraining:
		return "going away"
	case errClosed:
		return "shutdown"
	}
	return kind.String()
}

// lostLocked is the error of a stream whose connection is over.
func (c *conn) lostLocked(unsent bool) *transport.Error {
	if unsent && c.mu.err.Kind != transport.HTTP1Only && c.mu.err.Kind != transport.Canceled {
		return &transport.Error{Kind: transport.NotProcessed, Endpoint: c.ep, Err: c.mu.err.Err}
	}
	return c.mu.err
}

// endStreamLocked takes a stream off the connection, with err for its writer (nil when both sides are complete).
// It reports whether that was still to do; then the caller calls finish after it has released mu.
func (c *conn) endStreamLocked(s *stream, err *transport.Error) bool {
	if s.ended {
		return false
	}
	s.ended = true
	if err != nil && s.sendErr == nil {
		s.sendErr = err
	}
	s.signalWritable()
	delete(c.mu.streams, s.id)
	return true
}

// resetStream ends one stream because of the peer's fault.
func (c *conn) resetStream(s *stream, code http2.ErrCode, kind transport.Kind, cause error) {
	err := &transport.Error{Kind: kind, Endpoint: c.ep, Err: cause}
	c.mu.Lock()
	if !c.endStreamLocked(s, err) {
		c.mu.Unlock()
		return
	}
	c.mu.out = appendUint32Frame(c.mu.out, http2.FrameRSTStream, s.id, uint32(code))
	c.unlockAndFlush()
	s.finish(err)
}

// consumed gives n received bytes back to the memory budget of the connection.
func (c *conn) consumed(n int) {
	if n == 0 {
		return
	}
	if c.buffered.Add(int64(-n)); !c.withheld.Load() {
		return
	}
	c.mu.Lock()
	c.giveBackLocked()
	c.unlockAndFlush()
}

// giveBackLocked opens the connection's window again, once a quarter of it was used, whether or not the bytes have
// been read: a stream that is not read must not hold up the others. Only when very much is unread, it waits.
func (c *conn) giveBackLocked() {
	if c.mu.unacked < int64(c.cfg.ConnWindow/4) || c.mu.err != nil {
		return
	}
	if c.buffered.Load() > int64(c.cfg.ConnBuffer) {
		c.withheld.Store(true)
		if c.buffered.Load() > int64(c.cfg.ConnBuffer) { // consumed may have looked before the Store
			return
		}
	}
	c.withheld.Store(false)
	c.mu.out = appendUint32Frame(c.mu.out, http2.FrameWindowUpdate, 0, uint32(c.mu.unacked))
	c.mu.recvWindow += c.mu.unacked
	c.mu.unacked = 0
}

// closeIfDrained closes a connection that takes no new streams once the last one has ended.
func (c *conn) closeIfDrained() {
	if !c.draining.Load() {
		return
	}
	c.mu.Lock()
	over := len(c.mu.streams) == 0
	c.mu.Unlock()
	if over {
		c.goAway(transport.NotProcessed, http2.ErrCodeNo, errDraining)
	}
}

// over says why the connection takes no more streams, if so.
func (c *conn) over() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.err != nil:
		return c.lostLocked(true)
	case c.draining.Load():
		return &transport.Error{Kind: transport.NotProcessed, Endpoint: c.ep, Err: errDraining}
	}
	return nil
}
