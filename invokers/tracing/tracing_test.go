package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"perdure/control/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const client = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"

func invocation(n byte) Invocation {
	return Invocation{ID: ident.InvocationID{n, 23: n}, Service: "Counter", Handler: "add", Key: "k1", Keyed: true}
}

func recorded() (*Tracer, *tracetest.SpanRecorder) {
	r := tracetest.NewSpanRecorder()
	return With(Config{Version: "v1", Instance: "c/n"}, r), r
}

func attributes(s sdktrace.ReadOnlySpan) map[string]string {
	m := map[string]string{}
	for _, kv := range s.Attributes() {
		m[string(kv.Key)] = kv.Value.String()
	}
	return m
}

// TestSpansOfAnInvocation: each span is a child of the right one, although they are made by different parties that share
// nothing but what the invocation carries.
func TestSpansOfAnInvocation(t *testing.T) {
	in, r1 := recorded()
	i := invocation(1)
	i.Parent = Context{Parent: client, State: "a=b"}
	request := in.Ingress(i, "[::1]:4711")
	carried := request.Context()
	request.End()

	worker, r2 := recorded()
	i.Parent = carried
	worker.Started(i)
	a := worker.Attempt(i, Deployment{ID: "dp_1", Address: "http://h/", Protocol: 6})
	a.Command("Command/Run", "step")
	a.RunEnded(7)
	a.Suspended()
	a.Yielded()
	toService := a.Context()
	a.End()
	b := worker.Attempt(i, Deployment{ID: "dp_1", Protocol: 6})
	b.Failed("boom")
	b.End()

	end, r3 := recorded()
	end.Ended(i, true)

	ingress, started, attempt, failed, ended := r1.Ended()[0], r2.Ended()[0], r2.Ended()[1], r2.Ended()[2], r3.Ended()[0]
	for _, s := range []sdktrace.ReadOnlySpan{ingress, started, attempt, failed, ended} {
		if s.SpanContext().TraceID().String() != client[3:35] || !s.SpanContext().IsSampled() || s.SpanContext().TraceState().String() != "a=b" {
			t.Errorf("%s is in %v", s.Name(), s.SpanContext())
		}
		at := attributes(s)
		if at["rpc.service"] != "Counter" || at["rpc.method"] != "add" || at["restate.invocation.id"] != i.ID.String() || at["restate.invocation.target"] != "Counter/k1/add" {
			t.Errorf("%s has %v", s.Name(), at)
		}
		if v, _ := s.Resource().Set().Value("service.instance.id"); v.AsString() != "c/n" {
			t.Errorf("%s comes from %v", s.Name(), s.Resource())
		}
	}
	for _, c := range []struct {
		span   sdktrace.ReadOnlySpan
		name   string
		parent string
	}{
		{ingress, "ingress Counter/{key}/add", client[36:52]},
		{started, "invocation-start Counter/{key}/add", ingress.SpanContext().SpanID().String()},
		{attempt, "invocation-attempt Counter/{key}/add", started.SpanContext().SpanID().String()},
		{failed, "invocation-attempt Counter/{key}/add", started.SpanContext().SpanID().String()},
		{ended, "invocation-end Counter/{key}/add", started.SpanContext().SpanID().String()},
	} {
		if c.span.Name() != c.name || c.span.Parent().SpanID().String() != c.parent {
			t.Errorf("%q below %s, want %q below %s", c.span.Name(), c.span.Parent().SpanID(), c.name, c.parent)
		}
	}
	if at := attributes(ingress); at["client.socket.address"] != "::1" || at["client.socket.port"] != "4711" {
		t.Errorf("client: %v", at)
	}
	if at := attributes(attempt); at["restate.deployment.id"] != "dp_1" || at["restate.deployment.address"] != "http://h/" ||
		at["restate.deployment.service_protocol_version"] != "6" || at["rpc.system"] != "restate" {
		t.Errorf("attempt: %v", at)
	}
	var events []string
	for _, e := range attempt.Events() {
		var vals []string
		for _, kv := range e.Attributes {
			vals = append(vals, fmt.Sprintf("%s=%s", kv.Key, kv.Value.String()))
		}
		events = append(events, strings.TrimPrefix(e.Name, "restate.invocation.lifecycle.")+"("+strings.Join(vals, " ")+")")
	}
	want := "new_command(restate.journal.command.type=Command/Run restate.journal.command.name=step) run_ended(restate.journal.notification.id=7) suspended() yielded()"
	if got := strings.Join(events, " "); got != want {
		t.Errorf("events %s", got)
	}
	if attempt.Status().Code != codes.Unset || failed.Status().Code != codes.Error || failed.Status().Description != "transient failure" {
		t.Errorf("statuses %v, %v", attempt.Status(), failed.Status())
	}
	if r := attributes(ended)["restate.invocation.result"]; r != "failure" {
		t.Errorf("result %q", r)
	}
	if toService.Parent != "00-"+client[3:35]+"-"+attempt.SpanContext().SpanID().String()+"-01" || toService.State != "a=b" {
		t.Errorf("the service gets %+v", toService)
	}
}

// TestStartSpanIsTheSameForAll: a new leader that begins again makes no second one, and no two invocations share one.
func TestStartSpanIsTheSameForAll(t *testing.T) {
	one, again, two := invocation(1), invocation(1), invocation(2)
	if startID(one.ID) != startID(again.ID) || startID(one.ID) == startID(two.ID) || !startID(ident.InvocationID{}).IsValid() {
		t.Error("the ids of start spans do not follow from those of the invocations")
	}
}

// TestNotTraced: without a tracer, without a usable context, or unsampled, nothing is recorded.
func TestNotTraced(t *testing.T) {
	var none *Tracer
	i := invocation(1)
	none.Started(i)
	none.Ended(i, false)
	none.Ingress(i, "h:1").End()
	a := none.Attempt(i, Deployment{})
	a.Command("Command/Run", "")
	a.RunEnded(1)
	a.Suspended()
	a.Failed("x")
	a.End()
	if a.Context() != (Context{}) || none.Shutdown(t.Context()) != nil {
		t.Error("a tracer that is none does something")
	}
	for _, parent := range []string{"", "nonsense", "00-00000000000000000000000000000000-0123456789abcdef-01", strings.TrimSuffix(client, "1") + "0"} {
		tr, r := recorded()
		i.Parent.Parent = parent
		tr.Started(i)
		tr.Ended(i, false)
		b := tr.Attempt(i, Deployment{})
		b.Command("Command/Run", "")
		b.End()
		if n := len(r.Ended()); n != 0 {
			t.Errorf("%q: %d spans", parent, n)
		}
		if c := b.Context(); parent != "" && strings.HasSuffix(parent, "-00") && !strings.HasSuffix(c.Parent, "-00") {
			t.Errorf("the service of an unsampled invocation gets %+v", c)
		}
	}
}

// TestIngressBeginsTraces: a client without a trace gets a new one.
func TestIngressBeginsTraces(t *testing.T) {
	tr, r := recorded()
	a, b := tr.Ingress(invocation(1), "h:1"), tr.Ingress(invocation(2), "")
	a.End()
	b.End()
	if a.Context().Parent == b.Context().Parent || len(r.Ended()) != 2 || r.Ended()[0].Parent().IsValid() || !strings.HasSuffix(a.Context().Parent, "-01") {
		t.Errorf("%+v, %+v", a.Context(), b.Context())
	}
}

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://localhost:4317": "localhost:4317 false", "https://h": "h:4317 true", "grpc://h:1": "h:1 false", "otlp+grpc://h": "h:4317 false",
		"otlp+http://h:4318": "error", "h:4317": "error", "": "error", "http://": "error", "://": "error",
	} {
		hostport, secure, err := Config{Endpoint: endpoint}.target()
		got := fmt.Sprintf("%s %v", hostport, secure)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s (%v), want %s", endpoint, got, err, want)
		}
	}
}

// sink is a collector in memory.
type sink struct {
	collector.UnimplementedTraceServiceServer
	mu     sync.Mutex
	names  []string
	secret string
}

func (s *sink) Export(ctx context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		s.secret = strings.Join(md.Get("authorization"), ",")
	}
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, sp := range ss.Spans {
				s.names = append(s.names, sp.Name)
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// TestExport: spans get to a collector before Shutdown returns, with the configured headers.
func TestExport(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, srv := &sink{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, s)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	defer func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	tr, err := New(Config{Endpoint: "grpc://" + ln.Addr().String(), Headers: map[string]string{"authorization": "t"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tr.Ingress(invocation(1), "h:1").End()
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) != 1 || s.names[0] != "ingress Counter/{key}/add" || s.secret != "t" {
		t.Errorf("the collector got %q with %q", s.names, s.secret)
	}
}

// TestNoCollector: spans are lost, and that is all.
func TestNoCollector(t *testing.T) {
	tr, err := New(Config{Endpoint: "http://127.0.0.1:1"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tr.Ingress(invocation(1), "h:1").End()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tr.Shutdown(ctx); err == nil {
		t.Error("spans that nobody got were exported")
	}
}

func BenchmarkNotTraced(b *testing.B) {
	var t *Tracer
	i := invocation(1)
	for b.Loop() {
		t.Started(i)
		a := t.Attempt(i, Deployment{})
		a.Command("Command/Run", "")
		a.End()
	}
}
