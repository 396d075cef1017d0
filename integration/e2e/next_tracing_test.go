package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"perdure/integration/scripted"
	"perdure/integration/services"
)

// spans is an OpenTelemetry collector that keeps what it gets.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu   sync.Mutex
	list []*tracepb.Span // guarded by mu
}

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			s.list = append(s.list, ss.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// of are the spans of a trace, by their names; several of one name in the order of their beginnings is not promised.
func (s *spans) of(trace string) map[string][]*tracepb.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := map[string][]*tracepb.Span{}
	for _, sp := range s.list {
		if hex.EncodeToString(sp.TraceId) == trace {
			m[sp.Name] = append(m[sp.Name], sp)
		}
	}
	return m
}

func startCollector(t *testing.T) (*spans, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, srv := &spans{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, s)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, "http://" + ln.Addr().String()
}

func attribute(sp *tracepb.Span, key string) string {
	for _, kv := range sp.Attributes {
		if kv.Key == key {
			if s := kv.Value.GetStringValue(); s != "" {
				return s
			}
			return fmt.Sprint(kv.Value.GetIntValue())
		}
	}
	return ""
}

// TestNextTracing: a call with its callee, a retry and a suspension gives the spans that a trace needs, each below the
// right one, and the service gets the context of its attempt.
func TestNextTracing(t *testing.T) {
	t.Parallel()
	got, url := startCollector(t)
	_, e := ownServer(t, map[string]string{"TRACING_ENDPOINT": url})
	svc := name(t, "Traced")
	endpoint := startScripted(t, false)
	endpoint.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Handlers: []scripted.Handler{{Name: "h"}}, Extra: quick})})
	parents := make(chan string, 2)
	endpoint.Handle(svc, "h", func(a *scripted.Attempt) {
		parents <- a.Request.Header.Get("traceparent")
		if a.Number == 1 {
			a.Send(scripted.Fail(500, "once"))
			return
		}
		a.Send(done("x")...)
	})
	if _, err := e.register(map[string]any{"uri": endpoint.URL}); err != nil {
		t.Fatal(err)
	}
	const clientSpan = "00f067aa0ba902b7"
	trace := "4bf92f3577b34da6a3ce929d0e0e4736"
	header := map[string]string{"Traceparent": "00-" + trace + "-" + clientSpan + "-01"}

	// A retried call.
	a := e.in(t, request{path: "/" + svc + "/h", header: header})
	check(t, a, want{status: 200, text: "x"})
	id := a.header.Get("x-restate-id")
	// A call with a callee: an object, whose key stays out of the name.
	trace2 := "5bf92f3577b34da6a3ce929d0e0e4736"
	key := fresh(t)
	body := toJSON(t, services.Target{Service: "OwnCounter", Key: key, Handler: "add", Input: []byte("3")})
	check(t, e.in(t, request{path: e.path("Caller", "call"), body: body, header: map[string]string{"Traceparent": "00-" + trace2 + "-" + clientSpan + "-01"}}), want{status: 200})
	// A failed one, and a killed one.
	trace3 := "6bf92f3577b34da6a3ce929d0e0e4736"
	token := fresh(t)
	killed := decode[sent](t, e.in(t, request{path: e.path("Blocker", fresh(t), "hold") + "/send", body: toJSON(t, token), header: map[string]string{"Traceparent": "00-" + trace3 + "-" + clientSpan + "-01"}}), 202).InvocationID
	e.awaitLines(t, token, 1)
	check(t, e.end(t, killed, "kill"), want{status: 200})

	// Spans come in batches, an attempt's perhaps after that of the invocation's end.
	var one, two, three map[string][]*tracepb.Span
	var caller *tracepb.Span // the attempt that called is the callee's parent; there may be others, behind a suspension
	poll(t, "all spans", func() error {
		one, two, three = got.of(trace), got.of(trace2), got.of(trace3)
		caller = nil
		for _, started := range two["invocation-start OwnCounter/{key}/add"] {
			for _, at := range two["invocation-attempt OwnCaller/call"] {
				if string(at.SpanId) == string(started.ParentSpanId) {
					caller = at
				}
			}
		}
		if len(one) < 4 || len(one["invocation-attempt "+svc+"/h"]) < 2 || len(two) < 7 || caller == nil || len(three) < 4 {
			return fmt.Errorf("spans %v, %v, %v, attempt that called %v", names(one), names(two), names(three), caller)
		}
		return nil
	})
	single := func(m map[string][]*tracepb.Span, name string) *tracepb.Span {
		t.Helper()
		if len(m[name]) != 1 {
			t.Fatalf("%d spans %q among %v", len(m[name]), name, names(m))
		}
		return m[name][0]
	}
	below := func(child, parent *tracepb.Span) {
		t.Helper()
		if string(child.ParentSpanId) != string(parent.SpanId) {
			t.Errorf("%s is not below %s", child.Name, parent.Name)
		}
	}
	ingress, start, end := single(one, "ingress "+svc+"/h"), single(one, "invocation-start "+svc+"/h"), single(one, "invocation-end "+svc+"/h")
	equal(t, "parent of the ingress span", hex.EncodeToString(ingress.ParentSpanId), clientSpan)
	below(start, ingress)
	below(end, start)
	equal(t, "result", attribute(end, "restate.invocation.result"), "success")
	attempts := one["invocation-attempt "+svc+"/h"]
	equal(t, "attempts", len(attempts), 2)
	sent := []string{<-parents, <-parents}
	failed := 0
	for _, at := range attempts {
		below(at, start)
		equal(t, "id", attribute(at, "restate.invocation.id"), id)
		equal(t, "target", attribute(at, "restate.invocation.target"), svc+"/h")
		equal(t, "address", strings.TrimSuffix(attribute(at, "restate.deployment.address"), "/"), endpoint.URL)
		if at.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			failed++
			equal(t, "status", at.Status.Message, "transient failure")
		}
		parent := "00-" + trace + "-" + hex.EncodeToString(at.SpanId) + "-01"
		if sent[0] != parent && sent[1] != parent {
			t.Errorf("the service got %q, not %s", sent, parent)
		}
	}
	equal(t, "failed attempts", failed, 1)

	single(two, "invocation-start OwnCounter/{key}/add")
	var events []string
	for _, ev := range caller.Events {
		events = append(events, strings.TrimPrefix(ev.Name, "restate.invocation.lifecycle."))
	}
	if !strings.HasPrefix(strings.Join(events, " "), "new_command") {
		t.Errorf("events of the caller's attempt: %q", events)
	}
	callee := single(two, "invocation-end OwnCounter/{key}/add")
	equal(t, "callee", attribute(callee, "restate.invocation.target"), "OwnCounter/"+key+"/add")
	equal(t, "result of the killed one", attribute(single(three, "invocation-end OwnBlocker/{key}/hold"), "restate.invocation.result"), "failure")

	// Without a client's trace there is a new one.
	check(t, e.in(t, request{path: e.path("Greeter", "greet"), body: `"Ada"`}), want{status: 200})
	poll(t, "a trace of its own", func() error {
		got.mu.Lock()
		defer got.mu.Unlock()
		for _, sp := range got.list {
			if sp.Name == "ingress OwnGreeter/greet" && len(sp.ParentSpanId) == 0 {
				return nil
			}
		}
		return fmt.Errorf("%d spans", len(got.list))
	})
}

func names(m map[string][]*tracepb.Span) []string {
	var out []string
	for n, s := range m {
		out = append(out, fmt.Sprintf("%s ×%d", n, len(s)))
	}
	return out
}
