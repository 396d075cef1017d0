package invokers

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/ident"
	"perdure/invokers/tracing"
	"perdure/invokers/transport"
)

// Config holds the node's limits for invocations.
type Config struct {
	// ConcurrencyLimit is the number of attempts that may be open at a time on this node; 1000. Too low,
	// and invocations queue while services idle; too high, and they are overrun.
	ConcurrencyLimit int
	// MessageSizeLimit is the length from which on a received frame fails its attempt; 32 MiB.
	MessageSizeLimit uint32
	// MessageSizeWarning is the length from which on a received frame is logged; 10 MiB.
	MessageSizeWarning uint32
	// MemoryLimit bounds the bytes that all attempts buffer: journals being replayed, frames being received,
	// notifications waiting to be sent; 1.5 GiB. Attempts over it are put back and tried again later.
	MemoryLimit int64
	// InvocationMemoryLimit bounds what one attempt may have waiting to be sent; 32 MiB.
	InvocationMemoryLimit int64
	// EagerStateLimit is how many bytes of state go with the start of an attempt; 32 MiB, 0 = none.
	EagerStateLimit int
	// MaxFutureDepth bounds the nesting of an awaited future; 1000. A deeper one pauses the invocation.
	MaxFutureDepth int
	// AdditionalHeaders go with each request unless a deployment has a header of the same name, in this
	// order. Values may be secrets. By default x-restate-cluster-name.
	AdditionalHeaders []transport.Field
	// AnnounceV7 lets new invocations use version 7 of the service protocol when their deployment speaks it.
	AnnounceV7 bool
	// DrainTimeout is how long the end of a response is waited for after its last message; 5 s.
	DrainTimeout time.Duration
	// YieldDelay is how long an attempt that found no memory waits before it is tried again; 1 s.
	YieldDelay time.Duration
}

// DefaultConfig is the configuration of a cluster of that name.
func DefaultConfig(clusterName string) Config {
	return Config{
		ConcurrencyLimit:      1000,
		MessageSizeLimit:      32 << 20,
		MessageSizeWarning:    10 << 20,
		MemoryLimit:           3 << 29,
		InvocationMemoryLimit: 32 << 20,
		EagerStateLimit:       32 << 20,
		MaxFutureDepth:        1000,
		AdditionalHeaders:     []transport.Field{{Name: "x-restate-cluster-name", Value: clusterName}},
		DrainTimeout:          5 * time.Second,
		YieldDelay:            time.Second,
	}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case c.ConcurrencyLimit < 1:
		return errors.New("concurrent-invocations-limit must be at least 1")
	case c.MessageSizeLimit < 1024:
		return fmt.Errorf("message-size-limit is %d bytes, must be at least 1 KiB", c.MessageSizeLimit)
	case c.MessageSizeLimit > math.MaxInt32:
		return fmt.Errorf("message-size-limit is %d bytes, must be below 2 GiB", c.MessageSizeLimit)
	case c.MemoryLimit < int64(c.MessageSizeLimit):
		return fmt.Errorf("memory-limit is %d bytes, must hold at least one message of message-size-limit (%d bytes)", c.MemoryLimit, c.MessageSizeLimit)
	case c.InvocationMemoryLimit < 32<<10:
		return fmt.Errorf("per-invocation-memory-limit is %d bytes, must be at least 32 KiB", c.InvocationMemoryLimit)
	case c.EagerStateLimit < 0:
		return errors.New("eager-state-size-limit must not be negative")
	case c.MaxFutureDepth < 1 || c.MaxFutureDepth > 1000:
		return fmt.Errorf("max-awaited-future-depth is %d, must be 1 to 1000", c.MaxFutureDepth)
	case c.DrainTimeout <= 0 || c.YieldDelay <= 0:
		return errors.New("drain timeout and yield delay must be positive")
	}
	return nil
}

// maxVersion is the highest protocol version that new invocations are pinned to.
func (c *Config) maxVersion() uint32 {
	if c.AnnounceV7 {
		return 7
	}
	return 6
}

// Signer makes the headers by which a service recognises its caller; *identity.Signer is one.
type Signer interface {
	// Headers are appended to dst. path is that of the request without the deployment's own prefix, subject
	// the object or workflow key, nil for targets without one.
	Headers(dst []transport.Field, now time.Time, path string, subject *string) []transport.Field
}

// Deps is what a Pool needs of its surroundings. Schema and Transport are required.
type Deps struct {
	Schema    SchemaSource
	Transport transport.Transport
	// Signer may be nil: requests are not signed then.
	Signer Signer
	// Logger may be nil: nothing is logged then.
	Logger *slog.Logger
	// Tracer may be nil: then there are no spans, and services get no trace context.
	Tracer *tracing.Tracer
	// Metrics may be nil: metrics are then not collected by anybody.
	Metrics prometheus.Registerer
	// Now is the wall clock; time.Now when nil.
	Now func() time.Time
	// NewID makes the random part of a callee's id; ULIDs of Now and random bits when nil.
	NewID func(now time.Time) ident.Random
	// Jitter returns a number in [0, 1), of which retry delays depend; random when nil.
	Jitter func() float64
}

func (d *Deps) setDefaults() error {
	if d.Schema == nil || d.Transport == nil {
		return errors.New("open invoker pool: schema source and transport are required")
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.NewID == nil {
		d.NewID = randomID
	}
	if d.Jitter == nil {
		d.Jitter = rand.Float64
	}
	return nil
}

// randomID is an id of the present time. The bits come from the runtime's generator (ChaCha8, seeded by the
// system): they need not be secret, only distinct.
func randomID(now time.Time) (r ident.Random) {
	u := ulid.ULID(r.ULID)
	_ = u.SetTime(uint64(now.UnixMilli())) // fails in the year 10889
	hi, lo := rand.Uint32(), rand.Uint64()
	u[6], u[7] = byte(hi>>8), byte(hi)
	for i := range 8 {
		u[8+i] = byte(lo >> (8 * i))
	}
	r.ULID = u
	r.Bucket = rand.Uint64N(ident.Buckets)
	return r
}
