// Package admin is the REST API for operators and deployment tools: registering deployments, inspecting and changing services,
// ending, pausing and restarting invocations. Paths, bodies and codes are those of the published interface, versions 2 to 4.
//
// The API keeps no state: the schema is changed through the registry, invocations through the partition that owns them. It is
// meant for a listener of its own; who may bind it where is decided by whoever runs it, who may call it by a bearer token.
package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/ident"
	"perdure/control/schema"
)

// Versions of the admin API that are served under /v2 to /v4. Without prefix the highest is meant.
const (
	minVersion = 2
	maxVersion = 4
)

// Registry holds the schema; *registry.Registry is one.
type Registry interface {
	// Current is the newest snapshot that this node knows.
	Current() *schema.Schema
	// Update changes the schema by compare-and-set; f may be called several times.
	Update(ctx context.Context, f func(*schema.Schema) (*schema.Change, error)) (*schema.Change, error)
}

// Discoverer asks a deployment what it serves.
type Discoverer interface {
	// Discover calls the deployment with the given headers. When the deployment is at fault the error is a *DiscoveryError. Which
	// network addresses may be called is guarded when the connection is made.
	Discover(ctx context.Context, addr schema.Address, headers map[string]string) (*schema.Discovered, error)
}

// DiscoveryError says why a deployment could not be discovered.
type DiscoveryError struct {
	// Code is the published code (META0003); may be empty.
	Code    string
	Message string
}

func (e *DiscoveryError) Error() string { return e.Message }

// Invocations acts on invocations at the leaders of their partitions. An error means that the leader could not be reached or
// that the outcome is unknown; everything that the leader decided is an Outcome.
type Invocations interface {
	// Cancel asks an invocation to end itself: Done, Accepted, NotFound or AlreadyCompleted.
	Cancel(ctx context.Context, id ident.InvocationID) (Outcome, error)
	// Kill ends it at once: Done, Accepted, NotFound or AlreadyCompleted.
	Kill(ctx context.Context, id ident.InvocationID) (Outcome, error)
	// Purge forgets a completed invocation, or only its journal: Done, NotFound or NotCompleted.
	Purge(ctx context.Context, id ident.InvocationID, journalOnly bool) (Outcome, error)
	// Pause stops attempts: Done, Accepted, NotFound or NotRunning.
	Pause(ctx context.Context, id ident.InvocationID) (Outcome, error)
	// Resume lets it run again; pin, when not nil, moves it to another deployment: Done, NotFound, AlreadyCompleted, NotStarted
	// or DeploymentFixed.
	Resume(ctx context.Context, id ident.InvocationID, pin *Pin) (Outcome, error)
	// RestartAsNew starts a copy with the new id (of the same partition key) and the journal up to and including entry from: Done,
	// NotFound, StillRunning, NotStarted, InputGone, Unsupported or BadRange. It must be safe to repeat with the same new id.
	RestartAsNew(ctx context.Context, id, newID ident.InvocationID, from uint32, pin *Pin) (Outcome, error)
	// Describe says what is known of an invocation: Done or NotFound.
	Describe(ctx context.Context, id ident.InvocationID) (Description, Outcome, error)
	// PatchState replaces the state of an object or workflow. It is carried out later, and dropped when the version does not fit.
	PatchState(ctx context.Context, p StatePatch) error
	// Pinned is 0 when no invocation that has not completed is pinned to a deployment, or about to be.
	Pinned(ctx context.Context, dp ident.DeploymentID) (int, error)
}

// Outcome is what the leader of a partition decided about a request.
type Outcome uint8

// Outcomes.
const (
	Done     Outcome = iota + 1
	Accepted         // will happen
	NotFound
	AlreadyCompleted
	NotCompleted
	StillRunning
	NotRunning
	NotStarted
	DeploymentFixed // running, or not pinned yet: the deployment cannot be changed
	InputGone
	Unsupported
	BadRange
)

// Pin is a deployment that an invocation is to go on at, and the protocol version to speak with it.
type Pin struct {
	Deployment ident.DeploymentID
	Protocol   uint32
}

// Description is what is known of an invocation. Deployment and Protocol are zero while it is not pinned.
type Description struct {
	Service    string
	Deployment ident.DeploymentID
	Protocol   uint32
}

// StatePatch replaces the state of a key.
type StatePatch struct {
	Service, Key string
	// Version is the version that the state must have; nil means any.
	Version *string
	State   map[string][]byte
}

// Cluster says how the cluster is.
type Cluster interface {
	Health(ctx context.Context) (Health, error)
}

// Health is what GET /cluster-health shows.
type Health struct {
	ClusterName string
	// Members are the nodes that hold the metadata; nil when there is no metadata cluster.
	Members []uint32
}

// Config of the admin API.
type Config struct {
	// Token that requests must carry as bearer token; empty means that nobody needs one.
	Token string
	// Hosts are the names by which clients may call the server, besides IP addresses; nil means any. A server on loopback
	// without a token should take localhost only: else a web page whose name is made to resolve to 127.0.0.1 can call it.
	Hosts []string
	// ConcurrentRequests is how many requests may be in progress; more are answered 429. 0 means no limit.
	ConcurrentRequests int
	// BodyLimit is the largest request body, in bytes. Too low refuses large changes of state. Must be positive.
	BodyLimit int64
	// RoutingHeaders are the headers by which deployments at one URL differ.
	RoutingHeaders []string
	// InterfaceVersion is the version of the published interface that clients may rely on (semantic, at least 1.5.0: older ones
	// make clients fall back to slow queries).
	InterfaceVersion string
	// ServerVersion is the version of this server, for the Server header; may be empty.
	ServerVersion string
	// IngressURL is where callers reach the ingress; shown to clients and in OpenAPI documents.
	IngressURL string
	// Features are shown by GET /version, beside those that the published interface names.
	Features map[string]bool
	// MaxProtocol is the highest service protocol version that invocations use.
	MaxProtocol uint32
	// Timeout bounds the time that a change waits for metadata and partitions.
	Timeout time.Duration
}

// DefaultConfig is what a server without configuration uses.
func DefaultConfig() Config {
	return Config{
		BodyLimit: 32 << 20, InterfaceVersion: "1.7.12", IngressURL: "http://127.0.0.1:8080/", MaxProtocol: 6, Timeout: time.Minute,
	}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case c.ConcurrentRequests < 0:
		return fmt.Errorf("admin: concurrent requests limit is %d, must not be negative", c.ConcurrentRequests)
	case c.BodyLimit <= 0:
		return fmt.Errorf("admin: body limit is %d bytes, must be positive", c.BodyLimit)
	case c.InterfaceVersion == "":
		return errors.New("admin: interface version is missing")
	case c.MaxProtocol < schema.MinProtocol || c.MaxProtocol > schema.MaxProtocol:
		return fmt.Errorf("admin: highest protocol version is %d, must be %d to %d", c.MaxProtocol, schema.MinProtocol, schema.MaxProtocol)
	case c.Timeout <= 0:
		return errors.New("admin: timeout must be positive")
	}
	return nil
}

// Deps are what the API works with. Now and Rand may be nil: then the wall clock and the system's randomness are used.
type Deps struct {
	Registry    Registry
	Discoverer  Discoverer
	Invocations Invocations
	// Inspector shows invocations to operators.
	Inspector Inspector
	Cluster   Cluster
	// Doctor may be nil: then its paths are not served.
	Doctor  Doctor
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Now     func() time.Time
	// Rand fills b with random bytes; it must be safe for concurrent use.
	Rand func(b []byte)
}

// Admin serves the API. It starts no goroutines that outlive a request.
type Admin struct {
	cfg      Config
	deps     Deps
	token    [sha256.Size]byte
	handler  http.Handler
	requests *prometheus.CounterVec
	zstd     zstdOnce

	inflight atomic.Int64
	checkups atomic.Int64 // under way
}

// New makes the API. The error says what is wrong with the configuration.
func New(cfg Config, deps Deps) (*Admin, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Rand == nil {
		deps.Rand = func(b []byte) { _, _ = rand.Read(b) } // never fails
	}
	if !strings.HasSuffix(cfg.IngressURL, "/") {
		cfg.IngressURL += "/"
	}
	a := &Admin{cfg: cfg, deps: deps, token: sha256.Sum256([]byte(cfg.Token))}
	a.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "perdure_admin_requests_total", Help: "Requests that were answered, by method and HTTP status.",
	}, []string{"method", "status"})
	if deps.Metrics != nil {
		deps.Metrics.MustRegister(a.requests)
	}
	// Browsers must not be made to call the API from other pages: it needs no token on loopback.
	a.handler = http.NewCrossOriginProtection().Handler(a.guard(a.echo()))
	return a, nil
}

// Handler serves the API.
func (a *Admin) Handler() http.Handler { return a.handler }

// Server is an HTTP/1.1 and HTTP/2 (also without TLS) server of the API, not listening yet.
func (a *Admin) Server() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: a.handler, Protocols: protocols,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		// Generous, since a read that times out ends a request that is still worked on: body, work, answer.
		ReadTimeout: 2 * a.cfg.Timeout, WriteTimeout: 3*a.cfg.Timeout + time.Minute,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 250},
	}
}

// guard does what holds for all paths, before routing.
func (a *Admin) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.cfg.ServerVersion != "" {
			w.Header().Set("Server", "perdure/"+a.cfg.ServerVersion)
		}
		n := a.inflight.Add(1)
		defer a.inflight.Add(-1)
		if a.cfg.ConcurrentRequests > 0 && n > int64(a.cfg.ConcurrentRequests) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		if !a.knownHost(r.Host) {
			a.respond(w, r, http.StatusForbidden, errorBody{Message: "this server does not answer to the host name in the request; call it by address or as localhost"})
			return
		}
		if !a.authorized(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			a.respond(w, r, http.StatusUnauthorized, errorBody{Message: "this server wants the admin token as Authorization: Bearer <token>"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, a.cfg.BodyLimit)
		next.ServeHTTP(w, r)
	})
}

// knownHost reports whether clients may call the server by this name.
func (a *Admin) knownHost(hostport string) bool {
	if a.cfg.Hosts == nil {
		return true
	}
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return slices.ContainsFunc(a.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// authorized checks the token in constant time. Whether the server lives may be asked by anybody.
func (a *Admin) authorized(r *http.Request) bool {
	if a.cfg.Token == "" {
		return true
	}
	switch r.URL.Path {
	case "/health", "/v2/health", "/v3/health", "/v4/health":
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], a.token[:]) == 1
}

// call is one request on its way through the API.
type call struct {
	a       *Admin
	w       http.ResponseWriter
	r       *http.Request
	c       echo.Context
	version int
}

// param is a parameter of the path.
func (c *call) param(name string) string { return c.c.Param(name) }

// ctx ends with the request, or when it took too long.
func (c *call) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.r.Context(), c.a.cfg.Timeout)
}

type handlerFunc func(*call) error

const versionKey = "version"

func (a *Admin) echo() *echo.Echo {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.Pre(a.stripVersion)
	e.HTTPErrorHandler = a.handleError
	for _, r := range a.routes() {
		h := a.wrap(r.handler)
		e.Add(r.method, r.path, h)
		if r.method == http.MethodGet {
			e.Add(http.MethodHead, r.path, h)
		}
	}
	return e
}

// stripVersion takes /v2 to /v4 off the path and notes it.
func (a *Admin) stripVersion(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		c.Set(versionKey, maxVersion)
		u := c.Request().URL
		first, rest, more := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		if len(first) != 2 || first[0] != 'v' || !more {
			return next(c)
		}
		switch v := int(first[1] - '0'); {
		case v == 1:
			return textError(http.StatusBadRequest, fmt.Sprintf("Unsupported Admin API version V1. This server supports versions between V%d and V%d.", minVersion, maxVersion))
		case v >= minVersion && v <= maxVersion:
			c.Set(versionKey, v)
			u.Path = "/" + rest
			u.RawPath = strings.TrimPrefix(u.RawPath, "/"+first)
		}
		return next(c)
	}
}

func (a *Admin) wrap(h handlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		v, _ := c.Get(versionKey).(int)
		return h(&call{a: a, w: c.Response(), r: c.Request(), c: c, version: v})
	}
}

// ulid is a new ULID: time in ms and random bits.
func (a *Admin) ulid() (id [16]byte) {
	ms := uint64(a.deps.Now().UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	a.deps.Rand(id[6:])
	return id
}
