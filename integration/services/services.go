// Package services is a set of durable services written with the published Go SDK, made to be driven by tests.
//
// They cover what user code can ask of a server: state, durable steps, timers, calls, one-way calls, awakeables,
// signals, promises, cancellation, retries, private handlers. The directory ts holds the same set written with the
// TypeScript SDK; service names, handler names, inputs and outputs are the same, so a test runs unchanged on both.
//
// Every service name starts with Options.Prefix, so that several variants (bidirectional, request/response, lazy state,
// always suspending) can be registered with one server side by side.
//
// What only the endpoint can see (how often a step really ran, who entered a handler and when) is kept in Memory. It
// is process memory on purpose: nothing in it is durable, so a test can tell a replay from a re-execution. The Probe
// service reads it and opens gates, which also works for an endpoint in another process.
package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"
)

// Options chooses a variant of the services. The zero value is: no prefix, bidirectional, eager state, the server's
// own timeouts.
type Options struct {
	// Prefix starts every service name.
	Prefix string
	// RequestResponse announces the request/response mode instead of bidirectional streams.
	RequestResponse bool
	// HTTP1 serves HTTP/1.1 only (no h2c), so that the deployment must be registered with use_http_11.
	HTTP1 bool
	// LazyState asks the server not to send state with the start of an attempt.
	LazyState bool
	// Suspend sets an inactivity timeout of 0, so that every wait becomes a suspension.
	Suspend bool
	// Memory is shared by variants in one process. Nil makes a new one.
	Memory *Memory
	// Log receives the SDK's log. Nil discards it.
	Log slog.Handler
}

// Names are the names without prefix of the services that the sets of all languages have, in the order in which they are bound.
var Names = []string{"Greeter", "Failing", "Counter", "Runner", "Sleeper", "Caller", "Awaiter", "Signaler", "Blocker", "Fifo",
	"Flow", "Private", "Half", "Brief", "BriefFlow", "Probe", "Extras"}

// set is one variant being put together.
type set struct {
	o   Options
	mem memory
}

func (s *set) name(n string) string { return s.o.Prefix + n }

// options are those of every service of the variant, plus extra.
func (s *set) options(extra ...restate.ServiceDefinitionOption) []restate.ServiceDefinitionOption {
	opts := []restate.ServiceDefinitionOption{}
	if s.o.Suspend {
		opts = append(opts, restate.WithInactivityTimeout(0))
	}
	if s.o.LazyState {
		opts = append(opts, restate.WithEnableLazyState(true))
	}
	return append(opts, extra...)
}

// fastRetries keeps tests of failing handlers short. It never pauses within a test's patience.
func fastRetries() restate.ServiceDefinitionOption {
	return restate.WithInvocationRetryPolicy(restate.WithInitialRetryInterval(20*time.Millisecond),
		restate.WithMaxRetryInterval(200*time.Millisecond), restate.WithRetryIntervalFactor(2), restate.WithMaxRetryAttempts(1000))
}

// Handler is the endpoint of one variant.
func Handler(o Options) (http.Handler, error) {
	if o.Memory == nil {
		o.Memory = NewMemory()
	}
	h, err := endpoint(o, o.Memory).Handler()
	if err != nil {
		return nil, fmt.Errorf("bind services: %w", err)
	}
	return h, nil
}

// endpoint binds the services of one variant.
func endpoint(o Options, mem memory) *server.Restate {
	if o.Log == nil {
		o.Log = slog.DiscardHandler
	}
	s := &set{o: o, mem: mem}
	r := server.NewRestate().WithLogger(o.Log, false).Bidirectional(!o.RequestResponse)
	for _, d := range []restate.ServiceDefinition{s.greeter(), s.failing(), s.counter(), s.runner(), s.sleeper(), s.caller(), s.awaiter(),
		s.signaler(), s.blocker(), s.fifo(), s.flow(), s.private(), s.half(), s.brief(), s.briefFlow(), s.probe(), s.extras(),
		s.golang(), restate.Reflect(reflected{s.name("Reflected")}, s.options()...)} {
		r.Bind(d)
	}
	return r
}

// Server is a running endpoint.
type Server struct {
	// URL is what to register.
	URL string
	// Memory is what the endpoint saw.
	Memory *Memory

	http *http.Server
	done chan error
}

// Start serves a variant at addr ("127.0.0.1:0" picks a port) until Close.
func Start(addr string, o Options) (*Server, error) {
	if o.Memory == nil {
		o.Memory = NewMemory()
	}
	h, err := Handler(o)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for services: %w", err)
	}
	s := &Server{URL: "http://" + ln.Addr().String(), Memory: o.Memory, done: make(chan error, 1)}
	var protos http.Protocols
	protos.SetHTTP1(true)
	protos.SetUnencryptedHTTP2(!o.HTTP1)
	s.http = &http.Server{Handler: h, Protocols: &protos, ReadHeaderTimeout: time.Minute,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1 << 16, MaxReceiveBufferPerConnection: 16 << 20, MaxReceiveBufferPerStream: 4 << 20}}
	go func() { s.done <- s.http.Serve(ln) }()
	return s, nil
}

// Wait blocks until the server has ended and returns why, or nil after Close.
func (s *Server) Wait() error {
	err := <-s.done
	s.done <- err
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close cuts all connections and waits for the listener to end. It may be called more than once.
func (s *Server) Close() error {
	s.Memory.Release()
	err := s.http.Close()
	return errors.Join(err, s.Wait())
}

// Shutdown lets open attempts end until ctx is done, then behaves like Close.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.Close())
	}
	return s.Close()
}
