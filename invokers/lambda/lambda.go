// Package lambda is the transport to AWS Lambda functions: one synchronous Invoke is one exchange. The request is
// collected and sent as the payload of the call, a JSON event with the whole stream of frames in base64, and the
// payload that comes back is served as the response. There is no streaming: the service sees the request when it is
// complete, and the reader gets the response when the function has returned.
//
// The package keeps clients and credentials for each region and role, tells the failures of the API apart, and holds
// back the calls of a function that the API throttles. Retries are left to the invoker.
package lambda

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"perdure/invokers/transport"
)

// Config are the settings of a Client. Start from DefaultConfig.
type Config struct {
	// AWS is the configuration of the AWS SDK: credentials, the process's own region, and endpoints (as
	// AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_LAMBDA and AWS_ENDPOINT_URL_STS give them). Its owner loads it.
	AWS aws.Config
	// ExternalID is sent when a role is assumed; "" for none. The trust policies of roles should demand it.
	ExternalID string
	// SessionName begins the name of role sessions; the Unix time in seconds follows. Default "restate", which
	// trust policies written for the protocol's original server may ask for.
	SessionName string
	// SessionTags are attached to role sessions. The trust policy must then allow sts:TagSession. Default none.
	SessionTags map[string]string
	// AllowLatest permits functions with the qualifier $LATEST. Such a function changes under the invocations
	// that run on it; it is meant for development.
	AllowLatest bool

	// CompressAbove is the length of a request from which it is compressed, when the function understands
	// that. Default 4 MiB: smaller ones fit the limit of the API without.
	CompressAbove int
	// MaxPayload is the limit of the API for the payload of a call. Default 6 MiB.
	MaxPayload int
	// MaxRequest bounds a request before compression, which is collected in memory. Default 64 MiB.
	MaxRequest int
	// MaxResponse bounds a response after decompression. Default 256 MiB; it is decompressed as it is read, so
	// this is about time, not memory.
	MaxResponse int64
	// CallTimeout ends a call. Default 15.5 min, because a function may run for 15.
	CallTimeout time.Duration
	// MaxConcurrency caps the calls of one function at once. Default 1000, the limit of a new account.
	MaxConcurrency int
}

// DefaultConfig returns the defaults above, with the AWS configuration.
func DefaultConfig(cfg aws.Config) Config {
	return Config{
		AWS:            cfg,
		SessionName:    "restate",
		CompressAbove:  4 << 20,
		MaxPayload:     transport.LambdaPayload,
		MaxRequest:     64 << 20,
		MaxResponse:    256 << 20,
		CallTimeout:    15*time.Minute + 30*time.Second,
		MaxConcurrency: 1000,
	}
}

// Validate says which setting makes no sense.
func (c Config) Validate() error {
	switch {
	case c.SessionName == "" || len(c.SessionName) > 48:
		return errors.New("lambda: session name must have 1 to 48 characters")
	case c.MaxPayload <= 0 || c.CompressAbove < 0 || c.MaxRequest <= 0 || c.MaxResponse <= 0:
		return errors.New("lambda: sizes must be positive")
	case c.CallTimeout <= 0:
		return errors.New("lambda: call timeout must be positive")
	case c.MaxConcurrency <= 0:
		return errors.New("lambda: concurrency must be positive")
	}
	return nil
}

var (
	errClosed        = errors.New("transport is closed")
	errCanceled      = errors.New("exchange was canceled")
	errNoCredentials = errors.New("none are configured: give the server a role or keys that may call Lambda")
	errClosedWrite   = errors.New("write after CloseWrite")
	errLatest        = errors.New("$LATEST is not allowed: it changes with every deploy, under the invocations that run on it; publish a version, or allow it with worker.invoker.lambda-allow-latest")
)

// Client opens exchanges with Lambda functions. It is safe for concurrent use.
type Client struct {
	cfg     Config
	metrics *metrics
	clients *clients
	zip     *zstd.Encoder

	ctx    context.Context // the client's life
	cancel context.CancelFunc
	wg     sync.WaitGroup // calls and refreshes of credentials

	mu        sync.Mutex
	closed    bool
	functions map[string]*function // by ARN
	limiters  map[string]*limiter  // by ARN without qualifier
}

var _ transport.Transport = (*Client)(nil)

// function is what is known of one version of a function.
type function struct {
	arn     ARN
	label   string // of metrics
	limiter *limiter
	envs    environments
}

// New returns a client; it calls nothing before it is asked to. reg may be nil.
func New(cfg Config, reg prometheus.Registerer) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("register metrics of the Lambda transport: %w", err)
	}
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("make the encoder of requests: %w", err)
	}
	c := &Client{cfg: cfg, metrics: m, zip: zip, functions: make(map[string]*function), limiters: make(map[string]*limiter)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.clients = newClients(c)
	return c, nil
}

// Open implements transport.Transport. It waits shortly while the function is at its limit, and fails with Throttled
// when others wait already.
func (c *Client) Open(ctx context.Context, ep transport.Endpoint, req transport.Request) (transport.Stream, error) {
	fn, err := c.function(ep.Function)
	if err != nil {
		return nil, err
	}
	fn.limiter.setMax(c.maxConcurrency(ep))
	if err := fn.limiter.acquire(ctx, ep.Function); err != nil {
		if transport.KindOf(err) == transport.Throttled {
			c.metrics.throttles.WithLabelValues(fn.label, "limiter").Inc()
		}
		return nil, err
	}
	return newStream(ctx, c, fn, ep, req), nil
}

// maxConcurrency is the cap of a deployment, below that of the client.
func (c *Client) maxConcurrency(ep transport.Endpoint) int {
	if ep.Concurrency > 0 {
		return min(ep.Concurrency, c.cfg.MaxConcurrency)
	}
	return c.cfg.MaxConcurrency
}

// function finds what is known of a function.
func (c *Client) function(arn string) (*function, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &transport.Error{Kind: transport.Canceled, Endpoint: arn, Err: errClosed}
	}
	if fn := c.functions[arn]; fn != nil {
		return fn, nil
	}
	a, err := ParseARN(arn)
	if err == nil && a.Qualifier == "$LATEST" && !c.cfg.AllowLatest {
		err = errLatest
	}
	if err != nil {
		return nil, &transport.Error{Kind: transport.NotFound, Endpoint: arn, Err: err}
	}
	c.tidyLocked()
	l := c.limiters[a.unqualified()]
	if l == nil {
		l = newLimiter(c.cfg.MaxConcurrency)
		c.limiters[a.unqualified()] = l
	}
	fn := &function{arn: a, label: a.Name, limiter: l}
	c.functions[arn] = fn
	return fn, nil
}

// maxFunctions bounds what is remembered: every deploy makes a new version.
const maxFunctions = 4096

// tidyLocked forgets functions that nothing runs on, when there are very many.
func (c *Client) tidyLocked() {
	if len(c.functions) < maxFunctions {
		return
	}
	for arn, fn := range c.functions {
		if fn.limiter.idle() {
			delete(c.functions, arn)
			delete(c.limiters, fn.arn.unqualified())
		}
	}
}

// spawn runs f as a goroutine that Close waits for, unless the client is closed. Its ctx ends with the client.
func (c *Client) spawn(f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(func() { f(c.ctx) })
	return true
}

// Close fails the running exchanges with Canceled and waits for their goroutines. Idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.cancel() // nobody is refused by spawn who does not see the end
	c.mu.Unlock()
	c.wg.Wait()
	c.clients.close()
	if err := c.zip.Close(); err != nil {
		return fmt.Errorf("close the encoder of requests: %w", err)
	}
	return nil
}

// encode makes the payload of a call.
func (c *Client) encode(ep transport.Endpoint, req transport.Request, raw []byte) ([]byte, error) {
	var extra []transport.Field
	zipped := false
	if ep.Zstd && req.Path != "/discover" {
		extra = append(extra, transport.Field{Name: "accept-encoding", Value: "zstd"})
		if len(raw) >= c.cfg.CompressAbove {
			extra = append(extra, transport.Field{Name: "content-encoding", Value: "zstd"})
			raw, zipped = c.zip.EncodeAll(raw, nil), true
		}
	}
	payload := appendEvent(nil, req, extra, raw)
	if len(payload) > c.cfg.MaxPayload {
		return nil, c.tooLarge(ep, len(payload), zipped)
	}
	return slices.Clip(payload), nil
}

// tooLarge tells what to do about a request that does not fit.
func (c *Client) tooLarge(ep transport.Endpoint, size int, zipped bool) *transport.Error {
	advice := "use lazy state, so that state is not sent along, and keep what steps return small"
	if !ep.Zstd && !zipped {
		advice += "; an SDK version that accepts zstd would also help"
	}
	return &transport.Error{Kind: transport.TooLarge, Endpoint: ep.Function,
		Err: fmt.Errorf("journal and state make a payload of %d bytes, Lambda takes %d: %s", size, c.cfg.MaxPayload, advice)}
}
