// Package ingress is the HTTP API that callers invoke handlers with: it turns requests into invocations, finds the partition
// that owns each by its key, and maps replies and errors back to HTTP. It keeps no state between requests.
//
// Every request to a partition has an id and every invocation one that is fixed before the first try, so a try whose outcome is
// unknown (the leader changed, a connection broke) is repeated and never executes twice.
package ingress

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/cluster"
	"perdure/control/schema"
	"perdure/invokers/tracing"
	"perdure/nodes/record/recordpb"
)

// Partitions reaches the leader of the partition that owns a key, wherever it is.
type Partitions interface {
	// Do returns when the request has been answered. The request must not be changed afterwards; the reply may be kept. An error
	// that has a method Safe() bool returning true says that the request has certainly had no effect; after any other error
	// the outcome is unknown.
	Do(ctx context.Context, key cluster.PartitionKey, req *recordpb.Request) (*recordpb.Reply, error)
}

// Schemas supplies the current snapshot of what is registered.
type Schemas interface {
	Current() *schema.Schema
}

// Config of the ingress.
type Config struct {
	// RequestSizeLimit is the largest body accepted, in bytes. Too low refuses legitimate calls with 413; too high lets a few
	// callers use up the memory. Must be positive.
	RequestSizeLimit int64
	// RequestMemory is how much the bodies of the requests in progress may take together, in bytes; who would need more is
	// answered 429. Bodies are held while calls wait, to be sent again if a leader changes. 0 means no limit: then a few
	// clients can take all memory. Too low refuses calls although they would fit.
	RequestMemory int64
	// ConcurrentRequests is how many requests may be in progress; more are answered 429. 0 means no limit. Waiting calls
	// count, so too low a limit refuses calls of a node that has nothing to do.
	ConcurrentRequests int
	// NoAutoIdempotency leaves calls of services and objects that have no idempotency key without one. Their results are then
	// kept for the journal retention only.
	NoAutoIdempotency bool
	// RetryMin and RetryMax bound the wait between tries to reach a partition's leader. Too low loads a cluster that elects
	// leaders, too high lengthens the pause that callers see.
	RetryMin, RetryMax time.Duration
	// ReadHeaderTimeout is how long a client may take to send its headers.
	ReadHeaderTimeout time.Duration
	// BodyTimeout is how long a client may go without sending any of the body, or without taking any of the answer. All of a
	// body of up to 64 KiB has to come within it.
	BodyTimeout time.Duration
	// IdleTimeout closes connections without requests.
	IdleTimeout time.Duration
	// MaxHeaderBytes bounds a request's headers; more is answered 431.
	MaxHeaderBytes int
	// MaxConcurrentStreams bounds the requests in progress on one HTTP/2 connection.
	MaxConcurrentStreams int
}

// DefaultConfig is what a server without configuration uses.
func DefaultConfig() Config {
	return Config{
		RequestSizeLimit: 32 << 20, RequestMemory: 1 << 30, RetryMin: 50 * time.Millisecond, RetryMax: time.Second,
		ReadHeaderTimeout: 10 * time.Second, BodyTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, MaxConcurrentStreams: 1000,
	}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case c.RequestSizeLimit <= 0 || c.RequestSizeLimit > math.MaxInt32:
		return fmt.Errorf("ingress: request size limit is %d bytes, must be 1 to %d", c.RequestSizeLimit, math.MaxInt32)
	case c.RequestMemory != 0 && c.RequestMemory < c.RequestSizeLimit:
		return fmt.Errorf("ingress: request memory is %d bytes, must be 0 or at least the request size limit of %d", c.RequestMemory, c.RequestSizeLimit)
	case c.ConcurrentRequests < 0:
		return fmt.Errorf("ingress: concurrent requests limit is %d, must not be negative", c.ConcurrentRequests)
	case c.RetryMin <= 0 || c.RetryMax < c.RetryMin:
		return fmt.Errorf("ingress: retry waits are %s to %s, must be positive and in order", c.RetryMin, c.RetryMax)
	case c.ReadHeaderTimeout <= 0 || c.BodyTimeout <= 0 || c.IdleTimeout <= 0:
		return errors.New("ingress: header, body and idle timeouts must be positive")
	case c.MaxHeaderBytes < 4<<10:
		return fmt.Errorf("ingress: header limit is %d bytes, must be at least 4096", c.MaxHeaderBytes)
	case c.MaxConcurrentStreams <= 0:
		return fmt.Errorf("ingress: HTTP/2 stream limit is %d, must be positive", c.MaxConcurrentStreams)
	}
	return nil
}

// Deps are what the ingress works with. Now and Rand may be nil: then the wall clock and the system's randomness are used.
type Deps struct {
	Partitions Partitions
	Schemas    Schemas
	Log        *slog.Logger
	Metrics    prometheus.Registerer
	// Tracer may be nil: then there are no spans, and invocations get the client's trace context as it is.
	Tracer *tracing.Tracer
	// Now is the time in the ids of invocations and for delays.
	Now func() time.Time
	// Rand fills b with random bytes; it must be safe for concurrent use.
	Rand func(b []byte)
}

// Ingress serves the API. It starts no goroutines; those of the HTTP server belong to whoever runs it.
type Ingress struct {
	cfg        Config
	partitions Partitions
	schemas    Schemas
	log        *slog.Logger
	metrics    *metrics
	tracer     *tracing.Tracer
	now        func() time.Time
	rand       func([]byte)
	echo       *echo.Echo

	inflight atomic.Int64
	bodies   atomic.Int64 // bytes that the bodies of requests in progress take
	// base is the parent of the contexts of all requests that come through Server; drain cancels it.
	base  context.Context
	drain context.CancelCauseFunc
}

// New makes an ingress. The error says what is wrong with the configuration.
func New(cfg Config, deps Deps) (*Ingress, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	i := &Ingress{
		cfg: cfg, partitions: deps.Partitions, schemas: deps.Schemas, log: deps.Log, tracer: deps.Tracer,
		now: deps.Now, rand: deps.Rand,
	}
	if i.now == nil {
		i.now = time.Now
	}
	if i.rand == nil {
		i.rand = func(b []byte) { _, _ = rand.Read(b) } // never fails
	}
	if i.log == nil {
		i.log = slog.New(slog.DiscardHandler)
	}
	i.metrics = newMetrics(deps.Metrics, &i.inflight, &i.bodies)
	i.base, i.drain = context.WithCancelCause(context.Background())
	i.echo = i.routes()
	return i, nil
}

// routes is one handler for all paths: what a path means depends on the services that are registered.
func (i *Ingress) routes() *echo.Echo {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		// Only methods that echo does not know get here.
		var he *echo.HTTPError
		if errors.As(err, &he) && (he.Code == http.StatusMethodNotAllowed || he.Code == http.StatusNotFound) {
			err = errMethod
		}
		cors(c.Response().Header(), c.Request())
		i.refuse(c.Response().Writer, nil, err)
	}
	e.Any("/*", func(c echo.Context) error {
		i.serve(c.Response().Writer, c.Request())
		return nil
	})
	return e
}

// Handler serves the API.
func (i *Ingress) Handler() http.Handler { return i.echo }

// Server is an HTTP/1.1 and HTTP/2 (also without TLS) server of the API with the limits of the configuration, not listening
// yet.
func (i *Ingress) Server() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           i.echo,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: i.cfg.MaxConcurrentStreams, WriteByteTimeout: i.cfg.BodyTimeout},
		ReadHeaderTimeout: i.cfg.ReadHeaderTimeout,
		ReadTimeout:       i.cfg.BodyTimeout, // request.body prolongs it, request.heard ends it
		IdleTimeout:       i.cfg.IdleTimeout,
		MaxHeaderBytes:    i.cfg.MaxHeaderBytes,
		ConnState:         i.metrics.connection,
		BaseContext:       func(net.Listener) context.Context { return i.base },
	}
}

// Drain answers all waiting requests of Server with 503, so that their callers come back through another node; the
// invocations go on. It is for the end of a graceful shutdown, between stopping to listen and closing connections. Idempotent.
func (i *Ingress) Drain() { i.drain(errDraining) }

func (i *Ingress) serve(w http.ResponseWriter, r *http.Request) {
	n := i.inflight.Add(1)
	defer i.inflight.Add(-1)
	if r.ContentLength > i.cfg.RequestSizeLimit {
		writeTooLarge(w)
		return
	}
	cors(w.Header(), r)
	if r.Method == http.MethodOptions {
		preflight(w, r)
		return
	}
	if i.cfg.ConcurrentRequests > 0 && n > int64(i.cfg.ConcurrentRequests) {
		i.refuse(w, nil, errOverloaded)
		return
	}
	path, query := splitURI(r)
	s := i.schemas.Current()
	rt, err := parsePath(r.Method, path, s)
	if err != nil {
		i.refuse(w, nil, err)
		return
	}
	q := &request{i: i, w: w, r: r, s: s, rt: rt, path: path, query: query}
	defer q.release()
	if err := q.serve(); err != nil {
		i.refuse(w, q, err)
	}
}

// refuse answers with an error; q is nil while the route is not known.
func (i *Ingress) refuse(w http.ResponseWriter, q *request, err error) {
	if q != nil && i.base.Err() != nil && q.r.Context().Err() != nil {
		err = errDraining
	}
	ref := refusalOf(err)
	kind := routeKind(0)
	if q != nil {
		kind = q.rt.kind
	}
	i.metrics.count(kind, ref.status)
	if q != nil && q.known {
		i.metrics.invoked(q.rt.service, kind, ref.status)
	}
	if ref.status == http.StatusTooManyRequests {
		w.Header()["Retry-After"] = retryAfter
	}
	writeRefusal(w, ref)
}

// splitURI is the request's path, still encoded, and its query, exactly as the client sent them.
func splitURI(r *http.Request) (path, query string) {
	uri := r.RequestURI
	if !strings.HasPrefix(uri, "/") { // absolute form, or a request that did not come over the wire
		uri = r.URL.EscapedPath()
		if r.URL.RawQuery != "" {
			return uri, r.URL.RawQuery
		}
		return uri, ""
	}
	path, query, _ = strings.Cut(uri, "?")
	return path, query
}

var (
	corsVary   = []string{"origin, access-control-request-method, access-control-request-headers"}
	corsTrue   = []string{"true"}
	retryAfter = []string{"1"}
)

// cors allows any page to call: the ingress has no cookies or other ambient credentials that one could abuse.
func cors(h http.Header, r *http.Request) {
	h["Vary"] = corsVary
	h["Access-Control-Allow-Credentials"] = corsTrue
	if o := r.Header["Origin"]; len(o) > 0 {
		h["Access-Control-Allow-Origin"] = o[:1:1]
	}
}

func preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if m := r.Header["Access-Control-Request-Method"]; len(m) > 0 {
		h["Access-Control-Allow-Methods"] = m[:1:1]
	}
	if m := r.Header["Access-Control-Request-Headers"]; len(m) > 0 {
		h["Access-Control-Allow-Headers"] = m[:1:1]
	}
	h["Content-Length"] = []string{"0"}
	w.WriteHeader(http.StatusOK)
}
