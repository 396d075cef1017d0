package transport

import (
	"context"
	"errors"
	"strings"
	"time"
)

// Kind says how an exchange failed. Callers decide by kind; the text is for people.
type Kind uint8

const (
	// Connect: no connection could be made (name, refused, TLS, denied address, connect timeout). Nothing
	// was sent.
	Connect Kind = iota + 1
	// NotProcessed: the peer, or this side, guarantees that the service did not see the request (GOAWAY,
	// REFUSED_STREAM, lost before it was sent). Trying again at once is safe.
	NotProcessed
	// Reset: the peer ended the exchange early, or the connection was lost. The service may have seen it.
	Reset
	// Protocol: the peer broke the rules of its protocol, or exceeded a limit of ours.
	Protocol
	// Timeout: the deadline of the exchange's ctx passed, or the peer no longer answers pings.
	Timeout
	// HTTP1Only: the peer answered an HTTP/2 connection in HTTP/1.x. Register it with use_http_11.
	HTTP1Only
	// Canceled: Cancel was called, the exchange's ctx was cancelled, or the transport was closed.
	Canceled

	// Throttled: the service takes no more exchanges at once, or the Lambda API refused the call for its rate or concurrency.
	// Nothing ran.
	Throttled

	// The kinds below come from Lambda only.

	// AccessDenied: the credentials, or the role, may not call the function. Nothing ran.
	AccessDenied
	// NotFound: there is no such function, version or alias. Nothing ran.
	NotFound
	// TooLarge: the payload is over the limit of the API. Trying again does not help until it shrinks.
	TooLarge
	// FunctionFailed: the function ran, or tried to, and ended with an error of its runtime (an exception
	// outside of the SDK, out of memory, its own timeout, a failed initialisation).
	FunctionFailed
)

var kindNames = [...]string{
	Connect: "connect failed", NotProcessed: "not processed", Reset: "connection reset", Protocol: "protocol error",
	Timeout: "timed out", HTTP1Only: "peer speaks HTTP/1.1 only", Canceled: "canceled", Throttled: "throttled",
	AccessDenied: "access denied", NotFound: "not found", TooLarge: "too large", FunctionFailed: "function error",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return "unknown failure"
}

// Error is the failure of an exchange.
type Error struct {
	Kind     Kind
	Endpoint string // Endpoint.String of the peer
	// RetryAfter is how long the peer asked to wait, 0 if it did not.
	RetryAfter time.Duration
	Err        error // the cause; never nil
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Endpoint != "" {
		b.WriteString(e.Endpoint)
		b.WriteString(": ")
	}
	b.WriteString(e.Kind.String())
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// NotSeen reports whether it is certain that the service's code did not run for this exchange.
func (e *Error) NotSeen() bool {
	switch e.Kind {
	case Connect, NotProcessed, HTTP1Only, Throttled, AccessDenied, NotFound, TooLarge:
		return true
	}
	return false
}

// KindOf returns the kind of the *Error in err's chain, or 0.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

// ContextError wraps the reason why ctx ended: Timeout for its deadline, Canceled otherwise.
func ContextError(ctx context.Context, endpoint string) *Error {
	kind := Canceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = Timeout
	}
	return &Error{Kind: kind, Endpoint: endpoint, Err: context.Cause(ctx)}
}
