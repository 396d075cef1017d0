// Package chaos proves with a running server that what was accepted happens, once, whatever is killed meanwhile.
//
// A load of calls and one-way calls runs against services whose effects can be counted afterwards, while a test kills
// the server and the endpoint without warning. Afterwards Check compares what clients were told, what the objects hold
// and what the endpoint observed:
//
//   - every accepted invocation ends, with the answer that its first caller got, however often it is asked again;
//   - an account holds exactly the accepted additions, and no two of them saw the same balance;
//   - a one-way call arrives at an object, which filters nothing, exactly once;
//   - a durable step may be executed again after a crash, but its result is observed with one value only.
//
// The checks are themselves tested with a fake that loses, doubles and forgets.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"

	"perdure/integration/harness"
)

// Ledger is what the endpoint saw, kept outside of it so that the endpoint can be killed as well.
type Ledger struct {
	mu       sync.Mutex                 // guards what follows
	executed map[string]int             // executions of a step, by invocation and step
	observed map[string]map[string]bool // results of a step that code after it saw
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{executed: map[string]int{}, observed: map[string]map[string]bool{}}
}

// execute notes an execution of a step and returns a result that no other execution has.
func (l *Ledger) execute(step string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.executed[step]++
	return fmt.Sprintf("%s#%d", step, l.executed[step])
}

// observe notes the result of a step as the code behind the step sees it.
func (l *Ledger) observe(step, result string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.observed[step] == nil {
		l.observed[step] = map[string]bool{}
	}
	l.observed[step][result] = true
}

// Repeated is how many steps were executed more than once. That is allowed; a run in which it never happens proves
// little.
func (l *Ledger) Repeated() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, c := range l.executed {
		if c > 1 {
			n++
		}
	}
	return n
}

// ambiguous are the steps whose result was observed with several values.
func (l *Ledger) ambiguous() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for step, results := range l.observed {
		if len(results) > 1 {
			out = append(out, fmt.Sprintf("%s: %d results", step, len(results)))
		}
	}
	return out
}

// Request is the input of all handlers: the operation's name, and the key it works on.
type Request struct {
	Op  string `json:"op"`
	Key string `json:"key,omitempty"`
}

// Answer is what Account/add and Transfer/move return: the balance after the addition, and the result of the step.
type Answer struct {
	Balance int    `json:"balance"`
	Drawn   string `json:"drawn"`
}

// step runs the durable step of an operation.
func step(ctx restate.Context, l *Ledger, op string) (string, error) {
	name := ctx.Request().ID + "/" + op
	v, err := restate.Run(ctx, func(restate.RunContext) (string, error) { return l.execute(name), nil }, restate.WithName("draw"))
	if err != nil {
		return "", err
	}
	l.observe(name, v)
	return v, nil
}

func definitions(l *Ledger) []restate.ServiceDefinition {
	retry := restate.WithInvocationRetryPolicy(restate.WithInitialRetryInterval(20*time.Millisecond), restate.WithMaxRetryInterval(500*time.Millisecond),
		restate.WithMaxRetryAttempts(10_000))
	account := restate.NewObject("Account", retry).
		Handler("add", restate.NewObjectHandler(func(ctx restate.ObjectContext, r Request) (Answer, error) {
			n, err := restate.Get[int](ctx, "balance")
			if err != nil {
				return Answer{}, err
			}
			v, serr := step(ctx, l, r.Op)
			if serr != nil {
				return Answer{}, serr
			}
			restate.Set(ctx, "balance", n+1)
			return Answer{n + 1, v}, nil
		})).
		Handler("get", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, _ restate.Void) (int, error) {
			n, err := restate.Get[int](ctx, "balance")
			if err != nil {
				return 0, err
			}
			return n, nil
		}))
	sink := restate.NewObject("Sink", retry).
		Handler("put", restate.NewObjectHandler(func(ctx restate.ObjectContext, r Request) (int, error) {
			list, err := restate.Get[[]string](ctx, "list")
			if err != nil {
				return 0, err
			}
			restate.Set(ctx, "list", append(list, r.Op))
			return len(list) + 1, nil
		})).
		Handler("list", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, _ restate.Void) ([]string, error) {
			list, err := restate.Get[[]string](ctx, "list")
			if err != nil {
				return nil, err
			}
			return list, nil
		}))
	// move adds to an account by a call and tells a sink twice by one-way calls, once of them later.
	transfer := restate.NewService("Transfer", retry).
		Handler("move", restate.NewServiceHandler(func(ctx restate.Context, r Request) (Answer, error) {
			if _, err := step(ctx, l, r.Op); err != nil {
				return Answer{}, err
			}
			restate.ObjectSend(ctx, "Sink", r.Key, "put").Send(Request{Op: r.Op + "/now"})
			a, err := restate.Object[Answer](ctx, "Account", r.Key, "add").Request(Request{Op: r.Op + "/call"})
			if err != nil {
				return Answer{}, err
			}
			if err := restate.Sleep(ctx, 20*time.Millisecond); err != nil {
				return Answer{}, err
			}
			restate.ObjectSend(ctx, "Sink", r.Key, "put").Send(Request{Op: r.Op + "/later"}, restate.WithDelay(50*time.Millisecond))
			return a, nil
		}))
	return []restate.ServiceDefinition{account, sink, transfer}
}

// Endpoint serves the services and can be cut off and started again on the same port.
type Endpoint struct {
	// URL is what to register.
	URL string

	handler http.Handler
	addr    string
	srv     *http.Server
	done    chan error
}

// StartEndpoint serves the services on a free loopback port.
func StartEndpoint(l *Ledger) (*Endpoint, error) {
	r := server.NewRestate().WithLogger(slog.DiscardHandler, false)
	for _, d := range definitions(l) {
		r.Bind(d)
	}
	h, err := r.Handler()
	if err != nil {
		return nil, fmt.Errorf("bind chaos services: %w", err)
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

// Restart serves again after Close. It may be called from the goroutine that closes only.
func (e *Endpoint) Restart() error {
	ln, err := net.Listen("tcp", e.addr)
	if err != nil {
		return fmt.Errorf("listen for chaos services: %w", err)
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

// pause waits for d or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
