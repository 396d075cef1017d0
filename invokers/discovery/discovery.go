// Package discovery asks a deployment what it serves. A discovery is one GET of /discover below the
// deployment's address, tried again on failures that may pass; its answer is a manifest.
//
// Whether the manifest may be registered beside what is registered already is decided by package schema;
// this package refuses what no server could serve.
package discovery

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"perdure/control/schema"
	"perdure/invokers/transport"
)

// Codes of errors as operators and the documentation know them.
const (
	CodeUnreachable   = "META0003" // cannot be reached, or answers with a bad status
	CodeVersion       = "META0012" // no common version of the service protocol
	CodeBadResponse   = "META0013" // the answer is not a manifest, or contradicts itself
	CodeHTTP1Only     = "META0014" // the endpoint speaks HTTP/1.1 only
	CodeBidiTransport = "META0015" // streams over a transport that cannot
)

// Error says why a discovery failed.
type Error struct {
	// Code is one of the codes above, or empty for an answer that cannot be decoded.
	Code    string
	Message string
	Err     error // the cause; may be nil
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

func failed(code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Signer makes the headers by which a service recognises its caller; *identity.Signer is one.
type Signer interface {
	Headers(dst []transport.Field, now time.Time, path string, subject *string) []transport.Field
}

// Config is what a Client needs. Transport is required.
type Config struct {
	Transport transport.Transport
	// Signer may be nil: requests are not signed then.
	Signer Signer
	// AdditionalHeaders go with each request unless the deployment has a header of the same name.
	AdditionalHeaders []transport.Field
	// Attempts is how often a discovery is tried; 5.
	Attempts int
	// FirstDelay is the pause before the second try; it doubles from then on, and up to 30 % are added by
	// chance; 100 ms.
	FirstDelay time.Duration
	// Timeout bounds one try; 30 s. Without it a silent endpoint would hang a registration.
	Timeout time.Duration
	// NoTryAfter is the time after which no further try is begun; 5 s. Whoever registers waits for the outcome, and an address
	// from which nothing comes back fails only after the timeout for connecting.
	NoTryAfter time.Duration
	// MaxManifest bounds the size of a manifest; 16 MiB.
	MaxManifest int
	// Now is the wall clock; time.Now when nil. Jitter is a number in [0, 1); random when nil.
	Now    func() time.Time
	Jitter func() float64
	Logger *slog.Logger // nil: nothing is logged
}

func (c *Config) setDefaults() {
	if c.Attempts == 0 {
		c.Attempts = 5
	}
	if c.FirstDelay == 0 {
		c.FirstDelay = 100 * time.Millisecond
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.NoTryAfter == 0 {
		c.NoTryAfter = 5 * time.Second
	}
	if c.MaxManifest == 0 {
		c.MaxManifest = 16 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Client discovers deployments. It is safe for concurrent use and has no goroutine.
type Client struct{ cfg Config }

// New makes a client.
func New(cfg Config) (*Client, error) {
	if cfg.Transport == nil {
		return nil, errors.New("make discovery client: the transport is missing")
	}
	cfg.setDefaults()
	return &Client{cfg: cfg}, nil
}

// The manifest versions that are understood, by their content types.
var contentTypes = [...]string{
	"application/vnd.restate.endpointmanifest.v1+json",
	"application/vnd.restate.endpointmanifest.v2+json",
	"application/vnd.restate.endpointmanifest.v3+json",
	"application/vnd.restate.endpointmanifest.v4+json",
}

const path = "/discover"

// Discover asks the deployment at address. headers are the deployment's own. The error is an *Error unless
// ctx ended.
func (c *Client) Discover(ctx context.Context, address schema.Address, headers map[string]string) (*schema.Discovered, error) {
	ep, err := endpointOf(address)
	if err != nil {
		return nil, failed(CodeUnreachable, "cannot call %s: %w", address, err)
	}
	delay, began := c.cfg.FirstDelay, time.Now()
	for n := 1; ; n++ {
		d, retryable, err := c.try(ctx, ep, headers)
		if err == nil {
			if err := check(d, ep); err != nil {
				return nil, err
			}
			return d, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("discover %s: %w", ep, context.Cause(ctx))
		}
		if !retryable || n >= c.cfg.Attempts || time.Since(began) > c.cfg.NoTryAfter {
			return nil, err
		}
		c.cfg.Logger.Debug("discovery failed, trying again", "endpoint", ep.String(), "attempt", n, "err", err)
		if err := wait(ctx, time.Duration(float64(delay)*(1+0.3*c.cfg.Jitter()))); err != nil {
			return nil, fmt.Errorf("discover %s: %w", ep, err)
		}
		delay *= 2
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func endpointOf(a schema.Address) (transport.Endpoint, error) {
	switch {
	case a.Lambda != nil:
		// Compression is what this discovery is to find out.
		return transport.LambdaFunction(a.Lambda.ARN, a.Lambda.AssumeRoleARN, false), nil
	case a.HTTP != nil:
		return transport.ParseURL(a.HTTP.URI, a.HTTP.UseHTTP11)
	}
	return transport.Endpoint{}, errors.New("the address is empty")
}

// try makes one request. retryable says whether another one may have more luck.
func (c *Client) try(ctx context.Context, ep transport.Endpoint, headers map[string]string) (d *schema.Discovered, retryable bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	s, err := c.cfg.Transport.Open(ctx, ep, transport.Request{Method: http.MethodGet, Path: path, Header: c.header(headers)})
	if err != nil {
		return nil, mayPass(err), callFailed(ep, err)
	}
	defer s.Cancel()
	if err := s.CloseWrite(); err != nil {
		return nil, mayPass(err), callFailed(ep, err)
	}
	resp, err := s.Response()
	if err != nil {
		return nil, mayPass(err), callFailed(ep, err)
	}
	body, err := readBody(s, c.cfg.MaxManifest)
	if err != nil {
		if errors.Is(err, errTooBig) {
			return nil, false, failed(CodeBadResponse, "the manifest of %s is bigger than %d bytes", ep, c.cfg.MaxManifest)
		}
		return nil, mayPass(err), callFailed(ep, err)
	}
	if resp.Status < 200 || resp.Status > 299 {
		return nil, retryableStatus(resp.Status), badStatus(ep, &resp, body)
	}
	d, err = decode(&resp, body)
	return d, false, err
}

func (c *Client) header(deployment map[string]string) []transport.Field {
	h := []transport.Field{{Name: "accept", Value: strings.Join(contentTypes[:], ", ")}}
	if c.cfg.Signer != nil {
		h = c.cfg.Signer.Headers(h, c.cfg.Now(), path, nil)
	}
	names := make([]string, 0, len(deployment))
	for n := range deployment {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, f := range c.cfg.AdditionalHeaders {
		if !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, f.Name) }) {
			h = append(h, f)
		}
	}
	for _, n := range names {
		h = append(h, transport.Field{Name: strings.ToLower(n), Value: deployment[n], NoIndex: true})
	}
	return h
}

func callFailed(ep transport.Endpoint, err error) *Error {
	if transport.KindOf(err) == transport.HTTP1Only {
		return failed(CodeHTTP1Only, "%s seems to speak HTTP/1.1 only; register it with use_http_11 (CLI: --use-http1.1): %w", ep, err)
	}
	var failure *transport.Error
	if errors.As(err, &failure) && failure.Endpoint == ep.String() { // then the error names it
		return failed(CodeUnreachable, "cannot call %w%s", err, hint(err))
	}
	return failed(CodeUnreachable, "cannot call %s: %w%s", ep, err, hint(err))
}

// hint says what whoever registers can do about a failure to call; empty when the error says it all.
func hint(err error) string {
	var (
		name  *net.DNSError
		plain tls.RecordHeaderError
		cert  *tls.CertificateVerificationError
	)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "; nothing listens there: is the service running, and is this its address as this server sees it? In a container, localhost is the container itself"
	case errors.As(err, &name):
		return "; is the name right, and known to the machine of this server?"
	case errors.As(err, &plain):
		return "; if the endpoint does not encrypt, register it with http instead of https"
	case errors.As(err, &cert):
		return "; the certificate must be valid for this name, and signed by an authority that this server's machine trusts"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrUnexpectedEOF):
		return "; if the endpoint speaks TLS, register it with https"
	}
	return ""
}

// mayPass reports whether an error of the transport can be gone at the next try.
func mayPass(err error) bool {
	switch transport.KindOf(err) {
	case transport.HTTP1Only, transport.AccessDenied, transport.NotFound, transport.TooLarge, transport.Canceled, transport.Protocol:
		return false
	}
	return true
}

func retryableStatus(status int) bool {
	switch status {
	case 408, 429, 500, 502, 503, 504:
		return true
	}
	return false
}

func badStatus(ep transport.Endpoint, r *transport.Response, body []byte) *Error {
	hint := ""
	switch {
	case r.Status == http.StatusNotFound:
		hint = "; check that the URL has the path under which the SDK's endpoint is mounted"
	case r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden:
		hint = "; if it wants credentials, give them as additional_headers (CLI: --extra-header)"
	case r.Status >= 300 && r.Status <= 399:
		hint = "; redirects are not followed"
		if to := r.Get("location"); to != "" {
			hint += ", register the URL that it redirects to (" + to + ")"
		}
	}
	const shown = 512
	text := strings.ToValidUTF8(string(body[:min(len(body), shown)]), "\ufffd")
	return failed(CodeUnreachable, "%s answered the discovery with status %d %s%s. Body: %s", ep, r.Status, http.StatusText(r.Status), hint, text)
}

var errTooBig = errors.New("the body is too big")

func readBody(s transport.Stream, limit int) ([]byte, error) {
	var b bytes.Buffer
	buf := make([]byte, 16<<10)
	for {
		n, err := s.Read(buf)
		if b.Len()+n > limit {
			return nil, errTooBig
		}
		b.Write(buf[:n])
		if err == io.EOF {
			return b.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func decode(r *transport.Response, body []byte) (*schema.Discovered, error) {
	ct := r.Get("content-type")
	if !slices.Contains(contentTypes[:], ct) {
		return nil, failed(CodeBadResponse, "received a bad response from the SDK: content type is %s, expected one of %s",
			strconv.Quote(ct), strings.Join(contentTypes[:], ", "))
	}
	m, err := schema.DecodeManifest(body)
	if err != nil {
		return nil, failed("", "received a response from the SDK that cannot be decoded: %w", err)
	}
	d := &schema.Discovered{Manifest: m, SDKVersion: r.Get("x-restate-server")}
	switch r.Version {
	case transport.HTTP11:
		d.HTTPVersion = schema.HTTP11
	case transport.HTTP2:
		d.HTTPVersion = schema.HTTP2
	}
	return d, nil
}

// check refuses what no server of this version could serve.
func check(d *schema.Discovered, ep transport.Endpoint) error {
	m := d.Manifest
	switch {
	case m.ProtocolMode == "":
		return failed(CodeBadResponse, "received a bad response from the SDK: missing protocol mode")
	case m.MinProtocolVersion > m.MaxProtocolVersion:
		return failed(CodeBadResponse, "received a bad response from the SDK: the lowest protocol version is %d, above the highest, %d",
			m.MinProtocolVersion, m.MaxProtocolVersion)
	case m.MinProtocolVersion > schema.MaxProtocol || m.MaxProtocolVersion < schema.MinProtocol:
		return failed(CodeVersion, "unsupported service protocol versions: [%d, %d]. This server supports [%d, %d]. Update the SDK, or the server, and register again",
			m.MinProtocolVersion, m.MaxProtocolVersion, schema.MinProtocol, schema.MaxProtocol)
	case m.ProtocolMode == "BIDI_STREAM" && ep.IsLambda():
		return failed(CodeBidiTransport, "the SDK offers bidirectional streams (BIDI_STREAM), which AWS Lambda cannot carry; set it up for request/response")
	}
	return nil
}
