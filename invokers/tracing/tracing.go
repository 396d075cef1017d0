// Package tracing makes the OpenTelemetry spans of invocations and exports them over OTLP.
//
// The spans of an invocation, each a child of the one before:
//
//	ingress Svc/{key}/handler             a request at the ingress, until its answer; child of the client's span
//	invocation-start Svc/{key}/handler    the moment when its first attempt began; child of the ingress span, or of the
//	                                      attempt that called
//	invocation-attempt Svc/{key}/handler  one attempt; the service gets it as the parent of its own spans
//	invocation-end Svc/{key}/handler      the moment when it ended, beside the attempts
//
// Who makes one span need not know those who make the others: they may be other nodes, years later. So the id of the start
// span follows from the invocation's id, and everything else from the trace context that the invocation carries. A new
// leader that begins the first attempt again makes the same start span again.
//
// Spans are observations. They are batched in bounded memory and dropped when the collector does not keep up; nothing
// waits for them. A nil *Tracer, and what it returns, makes none and costs nothing.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/zeebo/xxh3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"perdure/control/ident"
)

// Config says where spans go and who sends them.
type Config struct {
	// Endpoint is the URL of an OTLP collector that speaks gRPC: http, https, grpc or otlp+grpc, with host and port.
	// Only https encrypts.
	Endpoint string
	// Headers go with each export. They may be secrets.
	Headers map[string]string
	// Version is that of this server; Instance names the node, as cluster/node.
	Version, Instance string
}

// Target parses the endpoint.
func (c Config) target() (hostport string, secure bool, err error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return "", false, fmt.Errorf("parse the tracing endpoint: %w", err)
	}
	if u.Host == "" {
		return "", false, fmt.Errorf("tracing endpoint %q has no host: write it like http://localhost:4317", u.Redacted())
	}
	hostport = u.Host
	if u.Port() == "" {
		hostport += ":4317"
	}
	switch u.Scheme {
	case "http", "grpc", "otlp+grpc":
		return hostport, false, nil
	case "https":
		return hostport, true, nil
	}
	return "", false, fmt.Errorf("tracing endpoint %q: spans are exported over OTLP gRPC only; use http, https, grpc or otlp+grpc", u.Redacted())
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	_, _, err := c.target()
	return err
}

// Tracer makes the spans of a node. Any goroutine may use it.
type Tracer struct {
	processor sdktrace.SpanProcessor
	tracer    trace.Tracer
	exporter  *quiet // nil: the processor is the caller's
}

// New makes a tracer that exports to the endpoint. It connects in the background: a collector that is not there does not
// keep a server from starting. What goes wrong later is logged to log.
func New(cfg Config, log *slog.Logger) (*Tracer, error) {
	hostport, secure, err := cfg.target()
	if err != nil {
		return nil, err
	}
	opts := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(hostport), otlptracegrpc.WithHeaders(cfg.Headers), otlptracegrpc.WithTimeout(exportTimeout)}
	if !secure {
		opts = append(opts, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(context.Background(), opts...)
	if err != nil {
		return nil, fmt.Errorf("make the exporter of spans: %w", err)
	}
	q := &quiet{SpanExporter: exporter, log: log, done: make(chan struct{})}
	q.ctx, q.cancel = context.WithCancel(context.Background())
	t := With(cfg, sdktrace.NewBatchSpanProcessor(q, sdktrace.WithMaxQueueSize(maxQueued), sdktrace.WithBatchTimeout(time.Second)))
	t.exporter = q
	return t, nil
}

// maxQueued spans wait for their export at most; more are dropped.
const maxQueued = 8192

const exportTimeout = 10 * time.Second

// quiet logs failed exports instead of handing them to the process-wide error handler, and can be made to give up.
type quiet struct {
	sdktrace.SpanExporter
	log    *slog.Logger
	ctx    context.Context // parent of all exports, in fact: they end with it
	cancel context.CancelFunc
	done   chan struct{} // closed by Shutdown
}

// Shutdown is called once, when the last export is over.
func (q *quiet) Shutdown(ctx context.Context) error {
	defer close(q.done)
	return q.SpanExporter.Shutdown(ctx)
}

func (q *quiet) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(q.ctx, cancel)()
	if err := q.SpanExporter.ExportSpans(ctx, spans); err != nil && !errors.Is(err, context.Canceled) {
		q.log.Warn("spans could not be exported and are lost", "component", "tracing", "spans", len(spans), "err", err)
	}
	return nil
}

// With makes a tracer that gives its spans to a processor of the caller's.
func With(cfg Config, p sdktrace.SpanProcessor) *Tracer {
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(p),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())),
		sdktrace.WithIDGenerator(ids{}),
		sdktrace.WithResource(resource.NewSchemaless(
			// The name under which existing dashboards and queries look for the spans.
			attribute.String("service.name", "Restate"), attribute.String("service.namespace", "Restate"),
			attribute.String("service.instance.id", cfg.Instance), attribute.String("service.version", cfg.Version),
		)),
	)
	return &Tracer{processor: p, tracer: provider.Tracer("perdure", trace.WithInstrumentationVersion(cfg.Version))}
}

// Shutdown exports what is queued, as long as ctx allows, and ends.
func (t *Tracer) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	err := t.processor.Shutdown(ctx)
	if q := t.exporter; q != nil {
		q.cancel() // what is still being exported is given up
		<-q.done
	}
	if err != nil {
		return fmt.Errorf("export the last spans: %w", err)
	}
	return nil
}

// Invocation is what spans say of an invocation.
type Invocation struct {
	ID               ident.InvocationID
	Service, Handler string
	Key              string
	Keyed            bool
	// Parent is the trace context that it carries.
	Parent Context
}

// Context is a W3C trace context: the values of the headers traceparent and tracestate.
type Context struct{ Parent, State string }

// span reads a trace context; not valid if it is none.
func (c Context) span() trace.SpanContext {
	if c.Parent == "" {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": c.Parent, "tracestate": c.State})
	return trace.SpanContextFromContext(ctx)
}

// contextOf is the trace context in which a span is the parent.
func contextOf(sc trace.SpanContext) Context {
	flags := "00"
	if sc.IsSampled() {
		flags = "01"
	}
	return Context{Parent: "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + flags, State: sc.TraceState().String()}
}

// short is the target without its key.
func (i *Invocation) short() string {
	if i.Keyed {
		return i.Service + "/{key}/" + i.Handler
	}
	return i.Service + "/" + i.Handler
}

func (i *Invocation) target() string {
	if i.Keyed {
		return i.Service + "/" + i.Key + "/" + i.Handler
	}
	return i.Service + "/" + i.Handler
}

func (i *Invocation) attributes(more ...attribute.KeyValue) trace.SpanStartEventOption {
	return trace.WithAttributes(append([]attribute.KeyValue{
		attribute.String("rpc.service", i.Service), attribute.String("rpc.method", i.Handler),
		attribute.String("restate.invocation.id", i.ID.String()), attribute.String("restate.invocation.target", i.target()),
	}, more...)...)
}

// start begins a span of an invocation below a span.
func (t *Tracer) start(parent trace.SpanContext, id trace.SpanID, name string, i *Invocation, opts ...trace.SpanStartOption) trace.Span {
	ctx := context.WithValue(context.Background(), wantedKey{}, id)
	if parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	opts = append(opts, trace.WithSpanKind(trace.SpanKindInternal))
	_, s := t.tracer.Start(ctx, name+" "+i.short(), opts...)
	return s
}

// Ingress begins the span of a request for an invocation whose Parent is the client's trace context, or none. client is
// the client's address, as host:port.
func (t *Tracer) Ingress(i Invocation, client string) *Ingress {
	if t == nil {
		return nil
	}
	host, port := client, ""
	if at := strings.LastIndexByte(client, ':'); at >= 0 {
		host, port = strings.Trim(client[:at], "[]"), client[at+1:]
	}
	s := t.start(i.Parent.span(), trace.SpanID{}, "ingress", &i,
		i.attributes(attribute.String("client.socket.address", host), attribute.String("client.socket.port", port)))
	return &Ingress{s}
}

// Ingress is the span of a request. It belongs to one goroutine.
type Ingress struct{ span trace.Span }

// Context is what the invocation carries.
func (s *Ingress) Context() Context { return contextOf(s.span.SpanContext()) }

// End ends the span. It may be called on nil.
func (s *Ingress) End() {
	if s != nil {
		s.span.End()
	}
}

// startID is the id of the start span of an invocation.
func startID(id ident.InvocationID) (s trace.SpanID) {
	h := xxh3.HashSeed(id[:], 0x7370616e)
	for k := range s {
		s[k] = byte(h >> (8 * k))
	}
	if !s.IsValid() {
		s[0] = 1
	}
	return s
}

// Started tells that the first attempt of an invocation begins.
func (t *Tracer) Started(i Invocation) {
	if t == nil {
		return
	}
	parent := i.Parent.span()
	if !parent.IsValid() {
		return
	}
	t.start(parent, startID(i.ID), "invocation-start", &i, i.attributes()).End()
}

// Ended tells how an invocation ended.
func (t *Tracer) Ended(i Invocation, failed bool) {
	if t == nil {
		return
	}
	parent := i.Parent.span()
	if !parent.IsValid() {
		return
	}
	result := "success"
	if failed {
		result = "failure"
	}
	t.start(below(parent, i.ID), trace.SpanID{}, "invocation-end", &i, i.attributes(attribute.String("restate.invocation.result", result))).End()
}

// below is the context of the invocation's start span.
func below(parent trace.SpanContext, id ident.InvocationID) trace.SpanContext {
	return parent.WithSpanID(startID(id))
}

type wantedKey struct{}

// ids makes random ids, but for spans that want a certain one.
type ids struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	var t trace.TraceID
	fill(t[:])
	return t, ids{}.NewSpanID(ctx, t)
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if s, ok := ctx.Value(wantedKey{}).(trace.SpanID); ok && s.IsValid() {
		return s
	}
	var s trace.SpanID
	fill(s[:])
	return s
}
