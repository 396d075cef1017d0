// Package transport is the contract between the invoker and the ways to reach user code: HTTP/2, HTTP/1.1
// and AWS Lambda. It holds plain data (Endpoint, Request, Response), the two interfaces (Transport, Stream)
// and the typed error that tells whether a failed exchange may have been seen by the service.
//
// One exchange is one HTTP request with its response: one discovery, or one attempt of an invocation. A
// transport knows nothing of journals or frames; it moves bytes, keeps connections and says precisely how an
// exchange failed. Package transporttest holds the conformance suite that every implementation passes.
package transport

import (
	"context"
	"strings"
)

// Transport opens exchanges. Implementations are safe for concurrent use. Their Close (not part of the
// interface: the owner has the concrete type) fails the streams that are still open and waits for their
// goroutines.
type Transport interface {
	// Open prepares an exchange with ep. It may connect, and it waits while the endpoint has no free
	// stream; both are bounded by ctx and by the transport's own timeouts.
	//
	// Nothing is on the wire when Open returns: the request line and the headers leave together with the
	// first bytes of the body, at the first Write or CloseWrite. So an exchange without a body needs a
	// CloseWrite before a response can come. req.Header must not be changed until then.
	//
	// ctx is the exchange's for its whole life: when it ends, calls that block on the stream return a
	// Canceled (or Timeout) error. The transport watches ctx only in blocking calls, so the opener calls
	// Cancel when it is done with the stream, on every path, also after a complete response.
	//
	// The error is always an *Error.
	Open(ctx context.Context, ep Endpoint, req Request) (Stream, error)
}

// Stream is one open exchange.
//
// Write and CloseWrite belong to one goroutine (the writer), Response, Read and Buffered to one goroutine (the
// reader), or to several that take turns; the two may be the same or different ones. Cancel and Readable may be
// called from any goroutine.
// A goroutine that is both should know that Write blocks while the peer takes nothing: a service that itself
// waits for its response to be read would then wait for ever (the exchange's ctx ends that).
//
// All errors except io.EOF are *Error. Once a side has failed it keeps failing with the same error.
type Stream interface {
	// Write sends b as the next bytes of the request body and flushes them: they leave without waiting for
	// further calls. b is copied; it may be reused at once. Write blocks while flow control or the
	// transport's bounded send queue has no room. It returns nil only when all of b was taken.
	//
	// If the service has ended its response without reading the whole request, Write may return an error
	// of kind Reset while Response and Read still deliver the response.
	Write(b []byte) error

	// CloseWrite ends the request body (END_STREAM, the last chunk, or the actual call for a
	// request/response transport). Idempotent. Write must not be called afterwards.
	CloseWrite() error

	// Response blocks until the final response header (1xx are skipped) or the failure of the exchange.
	// Later calls return the same result.
	Response() (Response, error)

	// Read reads the response body; it waits for the response header first. It returns at least one byte
	// or an error, io.EOF at the regular end of the body. Bytes received before a failure are delivered
	// before the error is. Reading is what opens the flow-control window again: an exchange that is not
	// read holds back its service, but no other exchange.
	Read(p []byte) (int, error)

	// Buffered returns how many bytes Read would deliver without blocking, so that a reader can take all
	// that is there in one go. It returns -1 when nothing is left and Read would return io.EOF or the error
	// at once. When Buffered is not 0, Response does not block either.
	Buffered() int

	// Readable returns a channel of capacity one that receives a value after the response header, body
	// bytes, the end of the body or a failure have arrived. Arrivals coalesce, a value may also be
	// spurious, and a blocking Response or Read consumes it; so wait like this:
	//
	//	for s.Buffered() == 0 {
	//		select {
	//		case <-s.Readable():
	//		case <-others:
	//		}
	//	}
	//
	// The channel is never closed. A Cancel and, for a reader that waits only here, the end of the
	// exchange's ctx need their own case (Cancel does send a value).
	Readable() <-chan struct{}

	// Cancel abandons the exchange: it resets the stream, or drops the HTTP/1.1 connection, unless both
	// directions are complete. Blocked calls return a Canceled error; bytes that were not read are gone.
	// It does not block, is idempotent, and must be called at the end of every exchange.
	Cancel()
}

// Field is one header field.
type Field struct {
	Name  string // lower case
	Value string
	// NoIndex marks a value that will not be sent again on the same connection (an invocation id, a
	// token) or that must not be kept in compression state (a secret). HTTP/2 then sends it as a literal
	// that enters no header table. It is only an optimisation and a precaution, never required.
	NoIndex bool
}

// Request is what an exchange asks for.
type Request struct {
	Method string
	// Path is the path below the endpoint's prefix, with its leading slash, without query:
	// "/discover" or "/invoke/Greeter/greet". It is sent as it is, not escaped.
	Path string
	// Header holds the header fields in the order in which they are sent. Names are lower case; there is
	// no content-length, transfer-encoding or connection field, and nothing is added by HTTP
	// transports (no user agent, no accept-encoding). A field host is sent in place of the endpoint's authority.
	Header []Field
}

// Versions of Response.Version.
const (
	HTTP2  = "HTTP/2.0"
	HTTP11 = "HTTP/1.1"
)

// Response is the final response header.
type Response struct {
	Status int // 200..999; redirects are not followed
	// Version is the HTTP version spoken, HTTP2 or HTTP11; empty for Lambda.
	Version string
	Header  []Field // as received; use Get, the case of the names differs between transports
}

// Get returns the value of the first field of that name, ignoring case, or "".
func (r Response) Get(name string) string {
	for i := range r.Header {
		if strings.EqualFold(r.Header[i].Name, name) {
			return r.Header[i].Value
		}
	}
	return ""
}
