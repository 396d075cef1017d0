// Package h2 is the HTTP transport to service endpoints: HTTP/2 in clear text and over TLS on a lean client of its
// own, and HTTP/1.1 on net/http for those that ask for it.
//
// The client is written for many short exchanges and many long idle ones. It is built on the frame reader and
// the header compression of golang.org/x/net; connections, streams, flow control and pooling are its own,
// because one exchange through net/http costs several times what the rest of an invocation does.
// DESIGN.md beside this file tells the threads, the invariants and the measurements.
//
// What it leaves to others: the meaning of bodies, timers on silence (an exchange that trickles is ended by its
// reader, not here), retries.
package h2

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"

	"perdure/invokers/transport"
)

// Client opens exchanges with HTTP endpoints. It is safe for concurrent use.
type Client struct {
	cfg     Config
	metrics *metrics
	dialer  dialer
	http1   *http1
	olds    http1Memory

	ctx    context.Context // the client's life
	cancel context.CancelFunc
	wg     sync.WaitGroup // dials, readers and writers

	mu     sync.RWMutex
	pools  map[poolKey]*pool
	conns  map[*conn]struct{} // whose writer runs
	closed bool
}

var _ transport.Transport = (*Client)(nil)

// New returns a client; it connects when asked to. reg may be nil.
func New(cfg Config, reg prometheus.Registerer) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("register metrics of the HTTP transport: %w", err)
	}
	c := &Client{cfg: cfg, metrics: m, dialer: newDialer(cfg), pools: make(map[poolKey]*pool), conns: make(map[*conn]struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.http1 = newHTTP1(c)
	return c, nil
}

// Open implements transport.Transport.
func (c *Client) Open(ctx context.Context, ep transport.Endpoint, req transport.Request) (transport.Stream, error) {
	if err := check(ep, req); err != nil {
		return nil, err
	}
	s, err := c.open(ctx, ep, req)
	if err != nil {
		c.metrics.failed(transport.KindOf(err))
		return nil, err
	}
	c.metrics.streamsOpened.Inc()
	return s, nil
}

func (c *Client) open(ctx context.Context, ep transport.Endpoint, req transport.Request) (transport.Stream, error) {
	key := poolKey{ep.Scheme, ep.Authority}
	if ep.UseHTTP11 || ep.Scheme == "https" && c.olds.has(key) {
		return c.http1.open(ctx, ep, req)
	}
	for {
		p, err := c.pool(key)
		if err != nil {
			return nil, err
		}
		conn, err := p.acquire(ctx)
		switch {
		case err == nil:
			return newStream(ctx, conn, ep, req), nil
		case errors.Is(err, errGone):
			continue
		case errors.Is(err, errNoHTTP2):
			c.olds.add(key)
			return c.http1.open(ctx, ep, req)
		}
		return nil, err
	}
}

// check refuses what must not reach the wire.
func check(ep transport.Endpoint, req transport.Request) error {
	bad := func(msg string) error {
		return &transport.Error{Kind: transport.Protocol, Endpoint: ep.String(), Err: errors.New(msg)}
	}
	switch {
	case ep.Scheme != "http" && ep.Scheme != "https":
		return bad("no HTTP endpoint")
	case !validValue(ep.Authority) || !validValue(ep.Prefix) || !validValue(ep.Query) || !validValue(req.Path):
		return bad("address holds a line break")
	}
	for i := range req.Header {
		if f := &req.Header[i]; !validName(f.Name) || !validValue(f.Value) {
			return bad(fmt.Sprintf("request header %q is malformed: fix the additional headers of the deployment", f.Name))
		}
	}
	return nil
}

func (c *Client) pool(key poolKey) (*pool, error) {
	c.mu.RLock()
	p := c.pools[key]
	c.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &transport.Error{Kind: transport.Canceled, Endpoint: key.String(), Err: errClosed}
	}
	if p = c.pools[key]; p == nil {
		p = &pool{client: c, key: key, perConn: c.cfg.MaxStreamsPerConn}
		c.pools[key] = p
	}
	return p, nil
}

// forget drops a pool that nothing refers to.
func (c *Client) forget(p *pool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idleLocked() && !p.dead {
		p.dead = true
		delete(c.pools, p.key)
	}
}

// adopt registers a connection for Close. It fails when that came first.
func (c *Client) adopt(conn *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.conns[conn] = struct{}{}
	c.metrics.connsOpened.Inc()
	return true
}

func (c *Client) disown(conn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// Close fails all exchanges with Canceled, says good-bye to the peers and waits for the goroutines. Idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	pools := make([]*pool, 0, len(c.pools))
	for _, p := range c.pools {
		pools = append(pools, p)
	}
	conns := slices.Collect(maps.Keys(c.conns))
	c.mu.Unlock()
	c.cancel()
	for _, p := range pools {
		p.close()
	}
	for _, conn := range conns {
		conn.goAway(transport.Canceled, http2.ErrCodeNo, errClosed)
	}
	c.wg.Wait()
	c.http1.rt.CloseIdleConnections()
	return nil
}

// spawn runs f as a goroutine that Close waits for, unless the client is closed.
func (c *Client) spawn(f func()) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}
