package h2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"perdure/invokers/transport"
)

// poolKey names what connections are shared for.
type poolKey struct{ scheme, authority string }

func (k poolKey) String() string { return k.scheme + "://" + k.authority }

// pool holds the connections to one authority. An exchange takes a slot of the first connection that has one, so
// that few connections carry the load (their writes coalesce better); when all are full, the exchange waits for the
// first slot that becomes free, while another connection is made.
type pool struct {
	client *Client
	key    poolKey

	mu      sync.Mutex
	conns   []*conn // that take new streams
	dialing int
	perConn int       // slots to expect of a new connection
	waiters []*waiter // in order of arrival
	closed  bool      // by Client.Close
	dead    bool      // no longer in Client.pools
}

// waiter is an Open that waits; ch gets exactly one result unless the waiter leaves.
type waiter struct{ ch chan slot }

// slot is the right to one stream, or why there is none.
type slot struct {
	conn *conn
	err  error
}

var (
	errClosed = errors.New("transport is closed")
	// errNoHTTP2 says that ALPN chose HTTP/1.1.
	errNoHTTP2 = errors.New("peer chose HTTP/1.1")
	// errGone tells the caller to look the pool up again.
	errGone = errors.New("pool is gone")
)

// acquire takes a slot. ctx bounds the wait.
func (p *pool) acquire(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return nil, &transport.Error{Kind: transport.Canceled, Endpoint: p.key.String(), Err: errClosed}
	case p.dead:
		p.mu.Unlock()
		return nil, errGone
	}
	if c := p.freeLocked(); c != nil { // then nobody waits
		p.mu.Unlock()
		return c, nil
	}
	w := &waiter{ch: make(chan slot, 1)}
	p.waiters = append(p.waiters, w)
	p.dialLocked()
	p.mu.Unlock()
	return p.wait(ctx, w)
}

func (p *pool) wait(ctx context.Context, w *waiter) (*conn, error) {
	p.client.metrics.waiting.Inc()
	defer p.client.metrics.waiting.Dec()
	begin := time.Now()
	defer func() { p.client.metrics.slotAwaited.Observe(time.Since(begin).Seconds()) }()
	patience := time.NewTimer(p.client.cfg.StreamTimeout)
	defer patience.Stop()
	select {
	case got := <-w.ch:
		return got.conn, got.err
	case <-ctx.Done():
	case <-patience.C:
	}
	p.mu.Lock()
	i := slices.Index(p.waiters, w)
	if i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
	}
	conns := len(p.conns)
	p.mu.Unlock()
	if i < 0 { // answered meanwhile
		got := <-w.ch
		if ctx.Err() == nil {
			return got.conn, got.err
		}
		if got.conn != nil {
			p.release(got.conn)
		}
	}
	if ctx.Err() != nil {
		return nil, transport.ContextError(ctx, p.key.String())
	}
	return nil, &transport.Error{Kind: transport.Throttled, Endpoint: p.key.String(), RetryAfter: throttledFor,
		Err: fmt.Errorf("no stream became free on %d connections within %v: let the service take more exchanges at once, or run more of it", conns, p.client.cfg.StreamTimeout)}
}

// throttledFor is when an exchange that found no stream should be tried again.
const throttledFor = 5 * time.Second

// freeLocked takes a slot of the first connection that has one.
func (p *pool) freeLocked() *conn {
	for _, c := range p.conns {
		if c.inUse < int(c.limit.Load()) && !c.draining.Load() {
			c.inUse++
			c.served = true
			p.client.metrics.streamsOpen.Inc()
			p.client.metrics.slotsTaken.Inc()
			return c
		}
	}
	return nil
}

// dialLocked starts a connection when those on their way cannot serve all waiters.
func (p *pool) dialLocked() {
	if len(p.waiters) <= p.dialing*p.perConn || len(p.conns)+p.dialing >= p.client.cfg.MaxConnsPerEndpoint {
		return
	}
	for _, c := range p.conns {
		if c.limit.Load() == 0 {
			return // the peer wants no streams now; one more connection would not change that
		}
	}
	p.dialing++
	p.client.wg.Go(p.dial)
}

// dial makes one connection and puts it to use.
func (p *pool) dial() {
	ctx, cancel := context.WithTimeout(p.client.ctx, p.client.cfg.ConnectTimeout)
	defer cancel()
	c, err := p.connect(ctx)

	p.mu.Lock()
	p.dialing--
	if err == nil {
		p.perConn = max(1, int(c.limit.Load()))
		if err := c.over(); err != nil {
			p.refuseLocked(err)
		} else {
			p.conns = append(p.conns, c)
		}
	} else {
		p.client.metrics.connsFailed.Inc()
		p.refuseLocked(err)
	}
	p.serveLocked()
	p.mu.Unlock()
	p.client.forget(p)
}

// connect makes a connection that has exchanged SETTINGS.
func (p *pool) connect(ctx context.Context) (*conn, error) {
	address := transport.Endpoint{Scheme: p.key.scheme, Authority: p.key.authority}.Address()
	nc, proto, err := p.client.dialer.connect(ctx, p.key.scheme, address)
	switch {
	case err != nil:
		return nil, p.connectError(ctx, err)
	case p.key.scheme == "https" && proto != "h2":
		return nil, closeWith(nc, errNoHTTP2)
	}
	c := newConn(p, nc)
	if !p.client.adopt(c) {
		return nil, p.connectError(ctx, closeWith(nc, errClosed))
	}
	p.client.wg.Go(c.readLoop)
	p.client.wg.Go(c.writeLoop)
	select {
	case <-c.ready:
	case <-c.done:
	case <-ctx.Done():
	}
	select {
	case <-c.ready: // whatever came with it or after it
		return c, nil
	default:
		c.fail(transport.Timeout, errors.New("peer did not answer the HTTP/2 preface")) // unless it has ended
	}
	c.mu.Lock()
	failure := c.mu.err
	c.mu.Unlock()
	if failure.Kind == transport.HTTP1Only {
		return nil, failure
	}
	return nil, p.connectError(ctx, failure.Err)
}

// connectError tells apart why a connect attempt ended.
func (p *pool) connectError(ctx context.Context, err error) error {
	kind := transport.Connect
	switch {
	case p.client.ctx.Err() != nil:
		kind, err = transport.Canceled, errClosed
	case ctx.Err() != nil:
		err = fmt.Errorf("not connected within %v: %w", p.client.cfg.ConnectTimeout, err)
	}
	return &transport.Error{Kind: kind, Endpoint: p.key.String(), Err: err}
}

// refuseLocked fails the waiters that the failed connection would have served.
func (p *pool) refuseLocked(err error) {
	n := min(len(p.waiters), max(1, p.perConn))
	for _, w := range p.waiters[:n] {
		w.ch <- slot{err: err}
	}
	p.waiters = slices.Delete(p.waiters, 0, n)
}

// serveLocked gives free slots to waiters, in order, and dials when some remain.
func (p *pool) serveLocked() {
	n := 0
	for ; n < len(p.waiters); n++ {
		c := p.freeLocked()
		if c == nil {
			break
		}
		p.waiters[n].ch <- slot{conn: c}
	}
	p.waiters = slices.Delete(p.waiters, 0, n)
	if len(p.waiters) > 0 && !p.closed {
		p.dialLocked()
	}
}

// serve is serveLocked for those who changed a limit.
func (p *pool) serve() {
	p.mu.Lock()
	p.serveLocked()
	p.mu.Unlock()
}

// release gives a slot back.
func (p *pool) release(c *conn) {
	p.client.metrics.streamsOpen.Dec()
	p.client.metrics.slotsReleased.Inc()
	p.mu.Lock()
	if c.inUse--; c.inUse == 0 {
		c.idleSince = time.Now()
	}
	if len(p.waiters) > 0 {
		p.serveLocked()
	}
	p.mu.Unlock()
}

// retire removes a connection that has not been in use since the given time.
func (p *pool) retire(c *conn, since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.inUse > 0 || c.idleSince.After(since) {
		return false
	}
	p.removeLocked(c)
	return true
}

// remove takes a connection out that takes no more streams, for the given reason. When it never took any, then
// those who wait have it for their answer: the next connection would fare no better.
func (p *pool) remove(c *conn, reason error) {
	p.mu.Lock()
	if p.removeLocked(c) && !c.served {
		p.refuseLocked(reason)
	}
	p.serveLocked() // the others need another connection
	p.mu.Unlock()
	p.client.forget(p)
}

func (p *pool) removeLocked(c *conn) bool {
	i := slices.Index(p.conns, c)
	if i >= 0 {
		p.conns = slices.Delete(p.conns, i, i+1)
	}
	return i >= 0
}

// idleLocked reports that nothing refers to the pool.
func (p *pool) idleLocked() bool {
	return len(p.conns) == 0 && p.dialing == 0 && len(p.waiters) == 0
}

// close fails the waiters, now and later.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for _, w := range p.waiters {
		w.ch <- slot{err: &transport.Error{Kind: transport.Canceled, Endpoint: p.key.String(), Err: errClosed}}
	}
	p.waiters = nil
	p.mu.Unlock()
}

// http1Memory remembers which https authorities chose HTTP/1.1, for a while: they may learn.
type http1Memory struct {
	mu    sync.Mutex
	until map[poolKey]time.Time
}

const http1MemoryFor = 5 * time.Minute

func (m *http1Memory) has(k poolKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.until[k]
	if ok && time.Now().After(until) {
		delete(m.until, k)
		return false
	}
	return ok
}

func (m *http1Memory) add(k poolKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until == nil {
		m.until = make(map[poolKey]time.Time)
	}
	m.until[k] = time.Now().Add(http1MemoryFor)
}
