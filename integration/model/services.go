package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"

	"perdure/integration/harness"
)

// Endpoint serves the services of one variant and can be cut off and started again on the same port.
type Endpoint struct {
	// URL is what to register.
	URL string

	handler http.Handler
	addr    string
	srv     *http.Server
	done    chan error
}

// StartEndpoint serves a variant on a free loopback port.
func StartEndpoint(variant string, w *Witness) (*Endpoint, error) {
	r := server.NewRestate().WithLogger(slog.DiscardHandler, false).Bidirectional(variant != "Once")
	for _, d := range definitions(variant, w) {
		r.Bind(d)
	}
	h, err := r.Handler()
	if err != nil {
		return nil, fmt.Errorf("bind the model's services: %w", err)
	}
	ports, err := harness.FreePorts(1) // it must still be ours after Close
	if err != nil {
		return nil, err
	}
	e := &Endpoint{handler: h, addr: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	if err := e.Restart(); err != nil {
		return nil, err
	}
	e.URL = "http://" + e.addr
	return e, nil
}

// Restart serves again after Close. Only the goroutine that closes may call it.
func (e *Endpoint) Restart() error {
	ln, err := net.Listen("tcp", e.addr)
	if err != nil {
		return fmt.Errorf("listen for the model's services: %w", err)
	}
	var protos http.Protocols
	protos.SetHTTP1(true)
	protos.SetUnencryptedHTTP2(true)
	e.srv = &http.Server{Handler: e.handler, Protocols: &protos, ReadHeaderTimeout: 10 * time.Second,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1 << 16}}
	e.done = make(chan error, 1)
	go func(srv *http.Server, done chan<- error) { done <- srv.Serve(ln) }(e.srv, e.done)
	return nil
}

// Close cuts every stream and waits for the listener to end. It may be called more than once.
func (e *Endpoint) Close() error {
	err := e.srv.Close()
	served := <-e.done
	e.done <- served
	if errors.Is(served, http.ErrServerClosed) {
		served = nil
	}
	return errors.Join(err, served)
}

// definitions are the services of a variant: Bidi streams both ways, Once uses one request and one response for each
// attempt, Susp suspends at every wait, Lazy too and fetches state when it is asked for.
func definitions(variant string, w *Witness) []restate.ServiceDefinition {
	opts := []restate.ServiceDefinitionOption{restate.WithInvocationRetryPolicy(restate.WithInitialRetryInterval(10*time.Millisecond),
		restate.WithMaxRetryInterval(200*time.Millisecond), restate.WithMaxRetryAttempts(100_000))}
	switch variant {
	case "Susp":
		opts = append(opts, restate.WithInactivityTimeout(0))
	case "Lazy":
		opts = append(opts, restate.WithInactivityTimeout(0), restate.WithEnableLazyState(true))
	}
	return []restate.ServiceDefinition{
		restate.NewService(variant+plain, opts...).
			Handler(work, restate.NewServiceHandler(func(ctx restate.Context, in Input) (Trace, error) {
				return (&sdkHost{ctx: ctx, w: w}).handle(&in)
			})),
		restate.NewObject(variant+objects, opts...).
			Handler(work, restate.NewObjectHandler(func(ctx restate.ObjectContext, in Input) (Trace, error) {
				return (&sdkHost{ctx: ctx, shared: ctx, object: ctx, w: w}).handle(&in)
			})).
			Handler(look, restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, in Input) (Trace, error) {
				return (&sdkHost{ctx: ctx, shared: ctx, w: w}).handle(&in)
			})).
			Handler(dump, restate.NewObjectSharedHandler(dumpState)),
		restate.NewWorkflow(variant+flow, opts...).
			Handler(run, restate.NewWorkflowHandler(func(ctx restate.WorkflowContext, in Input) (Trace, error) {
				return (&sdkHost{ctx: ctx, shared: ctx, object: ctx, flow: ctx, w: w}).handle(&in)
			})).
			Handler(look, restate.NewWorkflowSharedHandler(func(ctx restate.WorkflowSharedContext, in Input) (Trace, error) {
				return (&sdkHost{ctx: ctx, shared: ctx, flow: ctx, w: w}).handle(&in)
			})).
			Handler(dump, restate.NewWorkflowSharedHandler(func(ctx restate.WorkflowSharedContext, _ restate.Void) (map[string]string, error) {
				return dumpState(ctx, restate.Void{})
			})),
	}
}

// dumpState is the whole state of an object.
func dumpState(ctx restate.ObjectSharedContext, _ restate.Void) (map[string]string, error) {
	ks, err := restate.Keys(ctx)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, k := range ks {
		v, err := restate.Get[string](ctx, k)
		if err != nil {
			return nil, err
		}
		m[k] = v
	}
	return m, nil
}

// sdkHost runs a body in a handler. The contexts that the handler's kind does not have are nil.
type sdkHost struct {
	ctx    restate.Context
	shared restate.ObjectSharedContext
	object restate.ObjectContext
	flow   restate.WorkflowSharedContext
	w      *Witness
}

func (h *sdkHost) handle(in *Input) (Trace, error) {
	h.w.began(in.Body.ID, h.ctx.Request().ID)
	trace, err := exec(h, in)
	var f *Failure
	if errors.As(err, &f) {
		h.w.ended(in.Body.ID, End{trace, f})
		return nil, restate.ToTerminalError(errors.New(f.Message), restate.WithErrorCode(restate.Code(f.Code)))
	}
	if err != nil {
		return nil, err
	}
	h.w.ended(in.Body.ID, End{Trace: trace})
	return trace, nil
}

// failed makes an error of the SDK one of ours. A nil TerminalError stays nil.
func failed(err restate.TerminalError) error {
	if err == nil {
		return nil
	}
	return failureOf(int(err.Code()), err.Error())
}

var _ host = (*sdkHost)(nil)

func (h *sdkHost) get(key string) (*string, error) {
	v, err := restate.Get[*string](h.shared, key)
	return v, failed(err)
}

func (h *sdkHost) set(key, v string) { restate.Set(h.object, key, v) }
func (h *sdkHost) clear(key string)  { restate.Clear(h.object, key) }
func (h *sdkHost) clearAll()         { restate.ClearAll(h.object) }

func (h *sdkHost) keys() ([]string, error) {
	ks, err := restate.Keys(h.shared)
	return ks, failed(err)
}

// sdkFuture is a future of the SDK.
type sdkFuture struct {
	f      restate.Future
	result func() (json.RawMessage, restate.TerminalError)
}

func (f sdkFuture) await() (json.RawMessage, error) {
	out, err := f.result()
	return out, failed(err)
}

// executed is what a step gives: its value, and which execution gave it.
type executed struct {
	Value string
	N     int
}

func (h *sdkHost) run(token string, op *Op) future {
	step := func(restate.RunContext) (executed, error) {
		n := h.w.executes(token)
		switch {
		case n <= op.N:
			return executed{}, fmt.Errorf("execution %d fails", n)
		case op.Code != 0:
			return executed{}, restate.ToTerminalError(errors.New(op.Value), restate.WithErrorCode(restate.Code(op.Code)))
		}
		return executed{op.Value, n}, nil
	}
	f := restate.RunAsync(h.ctx, step, restate.WithName("step"), restate.WithInitialRetryInterval(5*time.Millisecond), restate.WithMaxRetryInterval(20*time.Millisecond))
	return sdkFuture{f, func() (json.RawMessage, restate.TerminalError) {
		e, err := f.Result()
		if err != nil {
			h.w.saw(token+"#", err.Error())
			return nil, err
		}
		h.w.saw(token+"#", fmt.Sprintf("execution %d", e.N))
		return value(e.Value), nil
	}}
}

func (h *sdkHost) timer(d time.Duration) future {
	f := restate.After(h.ctx, d)
	return sdkFuture{f, func() (json.RawMessage, restate.TerminalError) { return nil, f.Done() }}
}

// sdkSent is a call or a one-way call.
type sdkSent struct {
	h  *sdkHost
	id func() string
}

func (s sdkSent) attach() future {
	f := restate.AttachInvocation[json.RawMessage](s.h.ctx, s.id())
	return sdkFuture{f, f.Response}
}

func (s sdkSent) cancel()                   { restate.CancelInvocation(s.h.ctx, s.id()) }
func (s sdkSent) signal(name, value string) { restate.ResolveSignal(s.h.ctx, s.id(), name, value) }

// sdkCall is a call.
type sdkCall struct {
	sdkFuture
	sdkSent
}

func (h *sdkHost) call(t *Target, in *Input, key string) future {
	var opts []restate.RequestOption
	if key != "" {
		opts = append(opts, restate.WithIdempotencyKey(key))
	}
	var f restate.ResponseFuture[json.RawMessage]
	switch t.Service {
	case plain:
		f = restate.Service[json.RawMessage](h.ctx, t.name(), t.Handler).RequestFuture(in, opts...)
	case objects:
		f = restate.Object[json.RawMessage](h.ctx, t.name(), t.Key, t.Handler).RequestFuture(in, opts...)
	default:
		f = restate.Workflow[json.RawMessage](h.ctx, t.name(), t.Key, t.Handler).RequestFuture(in, opts...)
	}
	return sdkCall{sdkFuture{f, f.Response}, sdkSent{h, f.GetInvocationId}}
}

func (h *sdkHost) send(t *Target, in *Input, key string, delay time.Duration) sent {
	var opts []restate.SendOption
	if key != "" {
		opts = append(opts, restate.WithIdempotencyKey(key))
	}
	if delay > 0 {
		opts = append(opts, restate.WithDelay(delay))
	}
	var c restate.SendClient[any]
	switch t.Service {
	case plain:
		c = restate.ServiceSend(h.ctx, t.name(), t.Handler)
	case objects:
		c = restate.ObjectSend(h.ctx, t.name(), t.Key, t.Handler)
	default:
		c = restate.WorkflowSend(h.ctx, t.name(), t.Key, t.Handler)
	}
	return sdkSent{h, c.Send(in, opts...).GetInvocationId}
}

func (h *sdkHost) awakeable() (string, future) {
	f := restate.Awakeable[json.RawMessage](h.ctx)
	return f.Id(), sdkFuture{f, f.Result}
}

func (h *sdkHost) complete(id, v string, failed bool) {
	if failed {
		restate.RejectAwakeable(h.ctx, id, errors.New(v))
		return
	}
	restate.ResolveAwakeable(h.ctx, id, v)
}

func (h *sdkHost) signal(name string) future {
	f := restate.Signal[json.RawMessage](h.ctx, name)
	return sdkFuture{f, f.Result}
}

func (h *sdkHost) promise(name string) future {
	p := restate.Promise[json.RawMessage](h.flow, name)
	return sdkFuture{p, p.Result}
}

func (h *sdkHost) peek(name string) (*string, error) {
	v, err := restate.Promise[*string](h.flow, name).Peek()
	return v, failed(err)
}

func (h *sdkHost) completePromise(name, v string, reject bool) error {
	p := restate.Promise[string](h.flow, name)
	if reject {
		return failed(p.Reject(errors.New(v)))
	}
	return failed(p.Resolve(v))
}

func (h *sdkHost) first(fs []future) (int, error) {
	all := make([]restate.Future, len(fs))
	for i, f := range fs {
		all[i] = sdkFutureOf(f).f
	}
	got, err := restate.WaitFirst(h.ctx, all...)
	if err != nil {
		return 0, failed(err)
	}
	for i, f := range all {
		if f == got {
			return i, nil
		}
	}
	return 0, fmt.Errorf("the SDK returned a future that it was not given")
}

func sdkFutureOf(f future) sdkFuture {
	if c, ok := f.(sdkCall); ok {
		return c.sdkFuture
	}
	return f.(sdkFuture)
}

func (h *sdkHost) crash(token string, times int) error {
	if n := h.w.crash(token); n <= times {
		return fmt.Errorf("attempt %d fails", n)
	}
	return nil
}

func (h *sdkHost) saw(token string, outcome json.RawMessage) { h.w.saw(token, string(outcome)) }
