// Package lambdaemu is a test tool: it plays AWS Lambda and STS on loopback, so that what calls functions can be tested
// against unmodified function packages. It is not Lambda, isolates nothing and is not meant to serve anybody.
//
// Above it speaks the Lambda Invoke API and STS AssumeRole as the AWS SDKs call them, with signatures (SigV4), policies
// and trust policies checked. Below it speaks the Lambda Runtime API to the function's own executable, the bootstrap of a
// provided.al2023 function, which it runs as processes: one call at a time in each, more processes for more calls, up to a
// concurrency limit, frozen (SIGSTOP) between calls. Versions, aliases, time limits, payload limits, crashes and failing
// starts behave as they do in Lambda; latency and faults can be injected.
//
// It needs Linux, for process groups and parent-death signals.
package lambdaemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits of Lambda for synchronous calls.
const (
	MaxRequest  = 6 << 20          // bytes of a payload that goes in
	MaxResponse = 6<<20 + 100      // bytes of a payload that comes out
	initTimeout = 20 * time.Second // Lambda gives 10 s; many at once on a small machine need more
	clockSkew   = 5 * time.Minute
)

// Config are the settings of an Emulator. The zero value works: a free port, no caller is known, nothing is logged.
type Config struct {
	// Address to listen on; 127.0.0.1:0 when empty. Only loopback addresses are accepted.
	Address string
	// Logger gets one line for each call and what functions write; nil discards both.
	Logger *slog.Logger
	// Observe is called at the end of each call of a known function, from the call's goroutine; nil: nobody looks.
	Observe func(Call)
	// SessionLifetime is how long the credentials of an assumed role are good when the caller asks for nothing else; 1 h.
	SessionLifetime time.Duration
	// Now is the wall clock for signatures and sessions; time.Now when nil.
	Now func() time.Time
}

// Emulator is a running emulator.
type Emulator struct {
	cfg Config
	ln  net.Listener
	srv *http.Server
	wg  sync.WaitGroup
	iam iam

	mu        sync.Mutex
	functions map[string]*function // by ARN without qualifier
	fault     func(Call) Fault
	closed    bool
}

// Start listens and serves until Close.
func Start(cfg Config) (*Emulator, error) {
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.SessionLifetime == 0 {
		cfg.SessionLifetime = time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ln, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for calls of Lambda: %w", err)
	}
	if !ln.Addr().(*net.TCPAddr).IP.IsLoopback() {
		ln.Close()
		return nil, fmt.Errorf("%s is no loopback address: this is a test tool that runs what it is told to", cfg.Address)
	}
	e := &Emulator{cfg: cfg, ln: ln, functions: map[string]*function{}}
	e.iam.init()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /2015-03-31/functions/{name}/invocations", e.serveInvoke)
	mux.HandleFunc("POST /{$}", e.serveSTS)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, apiError{404, "UnknownOperationException", "this emulator has Invoke and AssumeRole only", 0})
	})
	e.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	e.wg.Go(func() {
		if err := e.srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("serve calls of Lambda", "err", err)
		}
	})
	return e, nil
}

// URL is the endpoint for both services, for AWS_ENDPOINT_URL_LAMBDA and AWS_ENDPOINT_URL_STS.
func (e *Emulator) URL() string { return "http://" + e.ln.Addr().String() }

// Close ends all processes and connections and waits for them. It may be called more than once.
func (e *Emulator) Close() error {
	e.mu.Lock()
	e.closed = true
	fns := make([]*function, 0, len(e.functions))
	for _, f := range e.functions {
		fns = append(fns, f)
	}
	e.mu.Unlock()
	for _, f := range fns {
		f.close()
	}
	err := e.srv.Close()
	e.wg.Wait()
	return err
}

// Call is one call of a function.
type Call struct {
	Function, Version string
	RequestID         string
	// Path is the path of the event, if it is one of an HTTP request, as those for SDK endpoints are.
	Path string
	// Cold says that a process was started for the call.
	Cold bool
	// RequestBytes and ResponseBytes are the lengths of the payloads.
	RequestBytes, ResponseBytes int
	// Status is the HTTP status of the answer, 0 when none was given.
	Status int
	// FunctionError is the value of X-Amz-Function-Error.
	FunctionError string
	// Began and Took say when the call came and how long it took.
	Began time.Time
	Took  time.Duration
}

// Fault is what goes wrong with a call. The zero value is nothing.
type Fault struct {
	// Delay is waited before the function is called.
	Delay time.Duration
	// Throttle refuses the call with 429, RetryAfter going along unless it is 0.
	Throttle   bool
	RetryAfter time.Duration
	// Internal answers 500 ServiceException; the function does not run.
	Internal bool
	// DropBefore closes the connection and does not call the function.
	DropBefore bool
	// DropAfter lets the function run and closes the connection instead of answering.
	DropAfter bool
	// Crash kills the function's process while it works on the call.
	Crash bool
}

// SetFault has f decide for each call what goes wrong with it; nil ends that. f is called concurrently, with a Call of
// which only the fields that are known before are set.
func (e *Emulator) SetFault(f func(Call) Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fault = f
}

func (e *Emulator) faultOf(c Call) Fault {
	e.mu.Lock()
	f := e.fault
	e.mu.Unlock()
	if f == nil {
		return Fault{}
	}
	return f(c)
}

// apiError is an error of the API as the SDKs read it.
type apiError struct {
	status     int
	code       string
	message    string
	retryAfter time.Duration
}

func (e apiError) Error() string { return e.code + ": " + e.message }

func writeError(w http.ResponseWriter, e apiError) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Amzn-Errortype", e.code)
	w.Header().Set("X-Amzn-Requestid", newRequestID())
	if e.retryAfter > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int((e.retryAfter+time.Second-1)/time.Second)))
	}
	w.WriteHeader(e.status)
	kind := "User"
	if e.status >= 500 {
		kind = "Service"
	}
	body, err := json.Marshal(map[string]string{"Type": kind, "message": e.message})
	if err != nil {
		panic(err) // strings always marshal
	}
	w.Write(body) // an error means that the caller is gone
}

// drop closes the connection without an answer.
func drop() { panic(http.ErrAbortHandler) }

func random(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func newRequestID() string {
	s := random(16)
	return s[:8] + "-" + s[8:12] + "-4" + s[13:16] + "-a" + s[17:20] + "-" + s[20:]
}

// sleep waits, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
