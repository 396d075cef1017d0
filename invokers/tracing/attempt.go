package tracing

import (
	"crypto/rand"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Deployment is where an attempt goes.
type Deployment struct {
	ID, Address string
	Protocol    uint32 // version of the service protocol
}

// Attempt begins the span of an attempt; nil when the invocation carries no trace context.
func (t *Tracer) Attempt(i Invocation, d Deployment) *Attempt {
	if t == nil {
		return nil
	}
	parent := i.Parent.span()
	if !parent.IsValid() {
		return nil
	}
	return &Attempt{t.start(below(parent, i.ID), trace.SpanID{}, "invocation-attempt", &i, i.attributes(
		attribute.String("rpc.system", "restate"), attribute.String("restate.deployment.id", d.ID), attribute.String("restate.deployment.address", d.Address),
		attribute.Int64("restate.deployment.service_protocol_version", int64(d.Protocol)),
	))}
}

// Attempt is the span of an attempt. Its methods may be called on nil, and by any goroutine.
type Attempt struct{ span trace.Span }

// Context is what the service, and invocations that it calls, have as their parent; empty on nil.
func (a *Attempt) Context() Context {
	if a == nil {
		return Context{}
	}
	return contextOf(a.span.SpanContext())
}

func (a *Attempt) event(name string, attrs ...attribute.KeyValue) {
	if a != nil {
		a.span.AddEvent("restate.invocation.lifecycle."+name, trace.WithAttributes(attrs...))
	}
}

// Command tells that the service sent a command, such as Command/Run with its name, which may be empty.
func (a *Attempt) Command(typ, name string) {
	if a == nil {
		return
	}
	a.event("new_command", attribute.String("restate.journal.command.type", typ), attribute.String("restate.journal.command.name", name))
}

// RunEnded tells that the run with this completion id has a result.
func (a *Attempt) RunEnded(completion uint32) {
	if a == nil {
		return
	}
	a.event("run_ended", attribute.Int64("restate.journal.notification.id", int64(completion)))
}

// Suspended tells that the service waits for something.
func (a *Attempt) Suspended() { a.event("suspended") }

// Yielded tells that the attempt was put back.
func (a *Attempt) Yielded() { a.event("yielded") }

// Failed tells that the attempt failed; reason is for people.
func (a *Attempt) Failed(reason string) {
	if a == nil {
		return
	}
	a.span.AddEvent("exception", trace.WithAttributes(attribute.String("exception.message", reason)))
	a.span.SetStatus(codes.Error, "transient failure")
}

// End ends the span.
func (a *Attempt) End() {
	if a != nil {
		a.span.End()
	}
}

// fill fills b with random bytes, not all zero.
func fill(b []byte) {
	_, _ = rand.Read(b) // never fails
	for _, c := range b {
		if c != 0 {
			return
		}
	}
	b[0] = 1
}
