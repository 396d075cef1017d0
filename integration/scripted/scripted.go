// Package scripted is a service endpoint that does exactly what a test tells it, frame by frame. It serves what no SDK
// ever sends: malformed and oversized frames, wrong content types, streams that end too early or never, and manifests
// that a server must refuse.
//
// The endpoint keeps no protocol state of its own: a script reads and writes raw frames. What the server sent at the
// start of an attempt (the Start message and the journal) is read for the script, because every script needs it.
package scripted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"perdure/integration/wire"
)

// ContentType is the content type of invocations in the protocol version that servers use today.
const ContentType = "application/vnd.restate.invocation.v6"

// ManifestType is the content type of the newest discovery manifest.
const ManifestType = "application/vnd.restate.endpointmanifest.v4+json"

// Script is the code of one handler. It runs once per attempt; the response ends when it returns.
type Script func(a *Attempt)

// Discovery is the answer to a discovery request. Zero values are: status 200, ManifestType.
type Discovery struct {
	Status      int
	ContentType string
	Body        string
	Header      http.Header
}

// Endpoint is a running endpoint.
type Endpoint struct {
	// URL is what to register.
	URL string

	srv  *http.Server
	done chan error

	mu        sync.Mutex
	discovery Discovery          // guarded by mu
	scripts   map[string]Script  // guarded by mu; by "service/handler"
	attempts  map[string]int     // guarded by mu; by invocation id
	requests  []*http.Request    // guarded by mu; discovery requests, bodies read
	changed   chan struct{}      // guarded by mu; closed and replaced when attempts change
	ctx       context.Context    // ends at Close
	cancel    context.CancelFunc // of ctx
}

// Start serves an endpoint on a free loopback port until Close: HTTP/1.1 and, unless http1 is set, h2c.
func Start(http1 bool) (*Endpoint, error) {
	ln, err := listen()
	if err != nil {
		return nil, fmt.Errorf("listen for scripted endpoint: %w", err)
	}
	e := &Endpoint{URL: "http://" + ln.Addr().String(), scripts: map[string]Script{}, attempts: map[string]int{},
		changed: make(chan struct{}), done: make(chan error, 1)}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	var protos http.Protocols
	protos.SetHTTP1(true)
	protos.SetUnencryptedHTTP2(!http1)
	e.srv = &http.Server{Handler: e, Protocols: &protos, ReadHeaderTimeout: time.Minute}
	go func() { e.done <- e.srv.Serve(ln) }()
	return e, nil
}

// addresses are those at which endpoints of this process have listened.
var addresses sync.Map

// listen listens at an address that no endpoint before had: a server may still know that one's deployment.
func listen() (net.Listener, error) {
	for {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		if _, known := addresses.LoadOrStore(ln.Addr().String(), true); !known {
			return ln, nil
		}
		defer ln.Close() // so that the next is another
	}
}

// Close cuts all streams and waits for the listener to end. It may be called more than once.
func (e *Endpoint) Close() error {
	e.cancel()
	err := e.srv.Close()
	served := <-e.done
	e.done <- served
	if errors.Is(served, http.ErrServerClosed) {
		served = nil
	}
	return errors.Join(err, served)
}

// Discover sets the answer to discovery requests.
func (e *Endpoint) Discover(d Discovery) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.discovery = d
}

// Handle sets the script of a handler. It does not change the manifest.
func (e *Endpoint) Handle(service, handler string, s Script) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.scripts[service+"/"+handler] = s
}

// Discoveries are the discovery requests received so far.
func (e *Endpoint) Discoveries() []*http.Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]*http.Request(nil), e.requests...)
}

// Attempts is how many attempts of an invocation have begun.
func (e *Endpoint) Attempts(invocation string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attempts[invocation]
}

// AwaitAttempts blocks until at least n attempts of an invocation have begun, or ctx is done.
func (e *Endpoint) AwaitAttempts(ctx context.Context, invocation string, n int) error {
	for {
		e.mu.Lock()
		have, ch := e.attempts[invocation], e.changed
		e.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("wait for attempt %d of %s, have %d: %w", n, invocation, have, context.Cause(ctx))
		}
	}
}

func (e *Endpoint) begun(invocation string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.attempts[invocation]++
	close(e.changed)
	e.changed = make(chan struct{})
	return e.attempts[invocation]
}

// ServeHTTP implements http.Handler. A deployment may be registered with any path before /discover and /invoke.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/discover") {
		e.discover(w, r)
		return
	}
	_, target, ok := strings.Cut(r.URL.Path, "/invoke/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	e.mu.Lock()
	s := e.scripts[target]
	e.mu.Unlock()
	if s == nil {
		http.NotFound(w, r)
		return
	}
	e.invoke(w, r, s)
}

func (e *Endpoint) discover(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	d := e.discovery
	e.requests = append(e.requests, r.Clone(context.Background()))
	e.mu.Unlock()
	for k, v := range d.Header {
		w.Header()[k] = v
	}
	if d.ContentType == "" {
		d.ContentType = ManifestType
	}
	w.Header().Set("Content-Type", d.ContentType)
	if d.Status == 0 {
		d.Status = http.StatusOK
	}
	w.WriteHeader(d.Status)
	io.WriteString(w, d.Body)
}

// Attempt is one attempt of one invocation, as the server sent it.
type Attempt struct {
	// Number counts the attempts of this invocation that reached the endpoint, from 1.
	Number int
	// Request is the HTTP request; its body is read by Next only.
	Request *http.Request
	// Start is the body of the Start message, Journal the entries that the server said to be known.
	Start   []byte
	Journal []wire.Frame
	// Done ends when the stream is cut by the server or the endpoint is closed.
	Done context.Context

	w       http.ResponseWriter
	started bool
}

func (e *Endpoint) invoke(w http.ResponseWriter, r *http.Request, s Script) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	a := &Attempt{Request: r, Done: ctx, w: w, Number: e.begun(r.Header.Get("x-restate-invocation-id"))}
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil && r.ProtoMajor == 1 {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := a.readStart(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s(a)
	if !a.started {
		a.Respond(http.StatusOK, a.accepted())
	}
}

// accepted is the content type that the server asked for: the protocol version it speaks in this attempt.
func (a *Attempt) accepted() string { return a.Request.Header.Get("Accept") }

func (a *Attempt) readStart() error {
	f, err := wire.ReadFrame(a.Request.Body)
	if err != nil {
		return fmt.Errorf("read start message: %w", err)
	}
	if f.Type != wire.Start {
		return fmt.Errorf("first message has type %#04x, not that of the start message", f.Type)
	}
	a.Start = f.Body
	known, _, _ := wire.Find(f.Body, 3)
	for i := range known {
		f, err := wire.ReadFrame(a.Request.Body)
		if err != nil {
			return fmt.Errorf("read entry %d of %d: %w", i, known, err)
		}
		a.Journal = append(a.Journal, f)
	}
	return nil
}

// Input is the content of the Input command.
func (a *Attempt) Input() []byte { return wire.Content(a.Journal[0].Body, 14) }

// Replayed reports whether the journal already has an entry of the given type.
func (a *Attempt) Replayed(typ uint16) bool {
	for _, f := range a.Journal {
		if f.Type == typ {
			return true
		}
	}
	return false
}

// Next reads the next frame from the server; io.EOF after the server has closed its half.
func (a *Attempt) Next() (wire.Frame, error) { return wire.ReadFrame(a.Request.Body) }

// Await reads frames until one has the given type. It returns nil when the stream ends first.
func (a *Attempt) Await(typ uint16) *wire.Frame {
	for {
		f, err := a.Next()
		if err != nil {
			return nil
		}
		if f.Type == typ {
			return &f
		}
	}
}

// Respond sends the response head. Write does it with status 200 and the accepted content type if it has not been done.
func (a *Attempt) Respond(status int, contentType string) {
	a.started = true
	if contentType != "" {
		a.w.Header().Set("Content-Type", contentType)
	} else {
		a.w.Header()["Content-Type"] = nil
	}
	a.w.WriteHeader(status)
	http.NewResponseController(a.w).Flush()
}

// Header is the response's header, to be changed before Respond.
func (a *Attempt) Header() http.Header { return a.w.Header() }

// Write sends raw bytes at once. Errors mean that the server has gone, which scripts need not care about.
func (a *Attempt) Write(b []byte) {
	if !a.started {
		a.Respond(http.StatusOK, a.accepted())
	}
	if _, err := a.w.Write(b); err == nil {
		http.NewResponseController(a.w).Flush()
	}
}

// Send sends frames in one write.
func (a *Attempt) Send(frames ...wire.Frame) {
	var b []byte
	for _, f := range frames {
		b = f.Append(b)
	}
	a.Write(b)
}

// Output is an Output command with a value, End the end message.
func Output(value string) wire.Frame {
	return wire.Frame{Type: wire.Output, Body: wire.AppendValue(nil, 14, []byte(value))}
}

// End is an End message.
func End() wire.Frame { return wire.Frame{Type: wire.End} }

// Fail is an Error message.
func Fail(code uint64, message string) wire.Frame {
	return wire.Frame{Type: wire.Error, Body: wire.AppendBytes(wire.AppendUint(nil, 1, code), 2, message)}
}

// Suspend is a Suspension message that waits for completions and for the cancel signal.
func Suspend(completions ...uint64) wire.Frame {
	var ids []byte
	for _, c := range completions {
		ids = appendVarint(ids, c)
	}
	b := wire.AppendBytes(nil, 1, ids)
	return wire.Frame{Type: wire.Suspension, Body: wire.AppendBytes(b, 2, []byte{1})}
}

func appendVarint(b []byte, v uint64) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

// Handler is a handler in a manifest; Extra adds or overrides fields by their JSON names.
type Handler struct {
	Name  string
	Type  string
	Extra map[string]any
}

// Service is a service in a manifest.
type Service struct {
	Name     string
	Type     string // SERVICE, VIRTUAL_OBJECT or WORKFLOW; "" is SERVICE
	Handlers []Handler
	Extra    map[string]any
}

// Manifest is a discovery manifest for protocol versions 5 to 7. Extra adds or overrides top-level fields.
func Manifest(mode string, extra map[string]any, services ...Service) string {
	m := map[string]any{"protocolMode": mode, "minProtocolVersion": 5, "maxProtocolVersion": 7}
	list := []any{}
	for _, s := range services {
		list = append(list, s.json())
	}
	m["services"] = list
	merge(m, extra)
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // only what json can encode is put in
	}
	return string(b)
}

func (s Service) json() map[string]any {
	if s.Type == "" {
		s.Type = "SERVICE"
	}
	handlers := []any{}
	for _, h := range s.Handlers {
		m := map[string]any{"name": h.Name}
		if h.Type != "" {
			m["ty"] = h.Type
		}
		merge(m, h.Extra)
		handlers = append(handlers, m)
	}
	m := map[string]any{"name": s.Name, "ty": s.Type, "handlers": handlers}
	merge(m, s.Extra)
	return m
}

func merge(into, from map[string]any) {
	for k, v := range from {
		if v == nil {
			delete(into, k)
		} else {
			into[k] = v
		}
	}
}
