package lambdaemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Function is what is set about a function. It has no code before Publish.
type Function struct {
	// ARN without qualifier: arn:aws:lambda:<region>:<account>:function:<name>.
	ARN string
	// Timeout of a call; 3 s when 0, as in Lambda.
	Timeout time.Duration
	// Concurrency is how many calls may run at once, all versions together; 10 when 0. Each may take a process.
	Concurrency int
	// Env are further environment variables, KEY=value.
	Env []string
	// NoFreeze lets processes go on between calls, which Lambda does not.
	NoFreeze bool
}

// Stats are counts of a function, all versions together.
type Stats struct {
	Calls      int // that reached a process
	ColdStarts int
	Throttles  int // refused for the concurrency limit
	Failures   int // with X-Amz-Function-Error
	Running    int // now
	Peak       int // most that ran at once
}

type function struct {
	Function
	e    *Emulator
	name string

	mu       sync.Mutex
	versions []*version // number 1 is the first
	aliases  map[string]int
	limit    int           // of Concurrency
	timeout  time.Duration // of a call
	stats    Stats
	envs     map[*environment]bool // all processes
	closed   bool
	wg       sync.WaitGroup // the ends of processes
}

// version is published code. Its idle processes are kept for the next calls, the last used first.
type version struct {
	f         *function
	number    int
	bootstrap string
	idle      []*environment // guarded by f.mu
}

// splitARN splits a function ARN off its qualifier.
func splitARN(s string) (arn, name, qualifier string, err error) {
	p := strings.Split(s, ":")
	if len(p) < 7 || len(p) > 8 || p[0] != "arn" || p[2] != "lambda" || p[5] != "function" || p[3] == "" || p[6] == "" {
		return "", "", "", fmt.Errorf("%q is no function ARN", s)
	}
	if len(p) == 8 {
		qualifier = p[7]
	}
	return strings.Join(p[:7], ":"), p[6], qualifier, nil
}

// CreateFunction makes a function.
func (e *Emulator) CreateFunction(f Function) error {
	arn, name, qualifier, err := splitARN(f.ARN)
	if err != nil || qualifier != "" {
		return fmt.Errorf("create function: %q is no function ARN without qualifier", f.ARN)
	}
	if f.Timeout == 0 {
		f.Timeout = 3 * time.Second
	}
	if f.Concurrency == 0 {
		f.Concurrency = 10
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.functions[arn] != nil || e.closed {
		return fmt.Errorf("create function: %s exists, or the emulator is closed", arn)
	}
	e.functions[arn] = &function{Function: f, e: e, name: name, aliases: map[string]int{}, limit: f.Concurrency, timeout: f.Timeout, envs: map[*environment]bool{}}
	return nil
}

func (e *Emulator) function(arn string) (*function, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.functions[arn]
	if f == nil {
		return nil, fmt.Errorf("function %s does not exist", arn)
	}
	return f, nil
}

// Publish makes the executable the function's next version and returns the version's qualified ARN.
func (e *Emulator) Publish(arn, bootstrap string) (string, error) {
	f, err := e.function(arn)
	if err != nil {
		return "", fmt.Errorf("publish version: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v := &version{f: f, number: len(f.versions) + 1, bootstrap: bootstrap}
	f.versions = append(f.versions, v)
	return arn + ":" + strconv.Itoa(v.number), nil
}

// SetAlias points an alias at a version and returns the alias's ARN.
func (e *Emulator) SetAlias(arn, alias string, version int) (string, error) {
	f, err := e.function(arn)
	if err != nil {
		return "", fmt.Errorf("set alias: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if version < 1 || version > len(f.versions) {
		return "", fmt.Errorf("set alias: %s has no version %d", arn, version)
	}
	f.aliases[alias] = version
	return arn + ":" + alias, nil
}

// SetConcurrency changes how many calls of a function may run at once.
func (e *Emulator) SetConcurrency(arn string, n int) error {
	f, err := e.function(arn)
	if err != nil {
		return fmt.Errorf("set concurrency: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limit = n
	return nil
}

// SetTimeout changes the limit of a function's calls, for those that begin afterwards.
func (e *Emulator) SetTimeout(arn string, d time.Duration) error {
	f, err := e.function(arn)
	if err != nil {
		return fmt.Errorf("set timeout: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timeout = d
	return nil
}

// Stats are the counts of a function; zero for one that does not exist.
func (e *Emulator) Stats(arn string) Stats {
	f, err := e.function(arn)
	if err != nil {
		return Stats{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Recycle ends the idle processes of a function, as Lambda does after some minutes, so that the next calls start cold. It
// returns how many it ended.
func (e *Emulator) Recycle(arn string) int {
	f, err := e.function(arn)
	if err != nil {
		return 0
	}
	f.mu.Lock()
	var ended []*environment
	for _, v := range f.versions {
		ended = append(ended, v.idle...)
		v.idle = nil
	}
	f.mu.Unlock()
	for _, env := range ended {
		env.end()
	}
	return len(ended)
}

// Pids are the processes of a function that live now.
func (e *Emulator) Pids(arn string) []int {
	f, err := e.function(arn)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var pids []int
	for env := range f.envs {
		pids = append(pids, env.cmd.Process.Pid)
	}
	slices.Sort(pids)
	return pids
}

func (f *function) close() {
	f.mu.Lock()
	f.closed = true
	envs := make([]*environment, 0, len(f.envs))
	for env := range f.envs {
		envs = append(envs, env)
	}
	f.mu.Unlock()
	for _, env := range envs {
		env.end()
	}
	f.wg.Wait()
}

// resolve finds the version of a qualifier.
func (f *function) resolve(qualifier string) *version {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.aliases[qualifier]
	if !ok {
		n, _ = strconv.Atoi(qualifier) // 0 is no version
	}
	if qualifier == "" || qualifier == "$LATEST" {
		n = len(f.versions)
	}
	if n < 1 || n > len(f.versions) {
		return nil
	}
	return f.versions[n-1]
}

var errClosing = errors.New("the emulator is closing")

// take gives an environment for a call of v, a fresh one when none is idle, and the call's time limit, or reports that the limit
// of calls is reached.
func (v *version) take() (env *environment, cold bool, timeout time.Duration, ok bool, err error) {
	f := v.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, false, 0, true, errClosing
	}
	if f.stats.Running >= f.limit {
		f.stats.Throttles++
		return nil, false, 0, false, nil
	}
	if n := len(v.idle); n > 0 {
		env, v.idle = v.idle[n-1], v.idle[:n-1]
	} else if env, err = start(v); err != nil {
		return nil, true, 0, true, err
	} else {
		f.envs[env] = true
		f.stats.ColdStarts++
		cold = true
	}
	f.stats.Calls++
	f.stats.Running++
	f.stats.Peak = max(f.stats.Peak, f.stats.Running)
	return env, cold, f.timeout, true, nil
}

// give takes an environment back after a call; one that failed is ended.
func (v *version) give(env *environment, good, failed bool) {
	f := v.f
	f.mu.Lock()
	f.stats.Running--
	if failed {
		f.stats.Failures++
	}
	good = good && !f.closed
	if good {
		v.idle = append(v.idle, env)
	}
	f.mu.Unlock()
	if !good {
		env.end()
	}
}

// gone forgets an environment whose process has ended.
func (v *version) gone(env *environment) {
	f := v.f
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.envs, env)
	v.idle = slices.DeleteFunc(v.idle, func(e *environment) bool { return e == env })
}

func (e *Emulator) serveInvoke(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxRequest+1))
	if err != nil {
		drop()
	}
	f, v, qualified, fail := e.admit(r, body)
	if fail != nil {
		e.cfg.Logger.Info("call refused", "function", qualified, "err", fail.Error())
		writeError(w, *fail)
		return
	}
	if r.Header.Get("X-Amz-Invocation-Type") == "DryRun" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	c := Call{Function: f.ARN, Version: strconv.Itoa(v.number), RequestID: newRequestID(), RequestBytes: len(body), Began: began}
	var event struct{ Path string }
	if json.Unmarshal(body, &event) == nil { // else it is no event of an HTTP request, and has no path
		c.Path = event.Path
	}
	answered := false
	defer func() { // also when the connection is dropped
		c.Took = time.Since(began)
		if !answered {
			c.Status = 0
		}
		e.cfg.Logger.Info("call", "function", qualified, "version", c.Version, "path", c.Path, "cold", c.Cold, "in", c.RequestBytes, "out", c.ResponseBytes,
			"status", c.Status, "function_error", c.FunctionError, "took", c.Took.Round(time.Millisecond))
		if e.cfg.Observe != nil {
			e.cfg.Observe(c)
		}
	}()
	e.call(w, r, v, body, &c)
	answered = true
}

// admit checks a request up to the point where the function could run.
func (e *Emulator) admit(r *http.Request, body []byte) (f *function, v *version, qualified string, fail *apiError) {
	qualified = r.PathValue("name")
	if len(body) > MaxRequest {
		return nil, nil, qualified, &apiError{413, "RequestTooLargeException", fmt.Sprintf("Request must be smaller than %d bytes for the InvokeFunction operation", MaxRequest), 0}
	}
	id, sig, fail := e.authenticate(r, body, "lambda")
	if fail != nil {
		return nil, nil, qualified, fail
	}
	arn, _, qualifier, err := splitARN(qualified)
	if err != nil {
		return nil, nil, qualified, &apiError{400, "ValidationException", err.Error(), 0}
	}
	if q := r.URL.Query().Get("Qualifier"); q != "" {
		if qualifier != "" && q != qualifier {
			return nil, nil, qualified, &apiError{400, "InvalidParameterValueException", "The derived qualifier from the function name does not match the specified qualifier.", 0}
		}
		qualifier, qualified = q, arn+":"+q
	}
	if region := strings.Split(arn, ":")[3]; region != sig.region {
		return nil, nil, qualified, invalidSignature("Credential should be scoped to a valid region, not '%s'.", sig.region)
	}
	if !id.may(id.invoke, qualified) {
		return nil, nil, qualified, &apiError{403, "AccessDeniedException", fmt.Sprintf("User: %s is not authorized to perform: lambda:InvokeFunction on resource: %s because no identity-based policy allows the lambda:InvokeFunction action", id.arn, qualified), 0}
	}
	if f, err = e.function(arn); err == nil {
		v = f.resolve(qualifier)
	}
	if v == nil {
		return nil, nil, qualified, &apiError{404, "ResourceNotFoundException", "Function not found: " + qualified, 0}
	}
	switch t := r.Header.Get("X-Amz-Invocation-Type"); t {
	case "", "RequestResponse", "DryRun":
		return f, v, qualified, nil
	default:
		return nil, nil, qualified, &apiError{400, "InvalidParameterValueException", "this emulator has no invocation type " + t, 0}
	}
}

// call runs an admitted call, faults included, and answers.
func (e *Emulator) call(w http.ResponseWriter, r *http.Request, v *version, body []byte, c *Call) {
	fault := e.faultOf(*c)
	if !sleep(r.Context(), fault.Delay) {
		drop()
	}
	c.Status = http.StatusOK
	refuse := func(err apiError) {
		c.Status = err.status
		writeError(w, err)
	}
	throttled := apiError{429, "TooManyRequestsException", "Rate Exceeded.", fault.RetryAfter}
	switch {
	case fault.Throttle:
		refuse(throttled)
		return
	case fault.Internal:
		refuse(apiError{500, "ServiceException", "An error occurred and the request cannot be processed.", 0})
		return
	case fault.DropBefore:
		drop()
	}
	env, cold, timeout, ok, err := v.take()
	c.Cold = cold
	switch {
	case err != nil:
		refuse(apiError{502, "InvalidRuntimeException", err.Error(), 0})
		return
	case !ok:
		refuse(throttled)
		return
	}
	ev := &event{id: c.RequestID, arn: v.f.ARN + ":" + c.Version, payload: body, timeout: timeout, result: make(chan result, 1)}
	res, good := env.run(ev, cold, fault.Crash)
	v.give(env, good, res.err != "")
	c.ResponseBytes, c.FunctionError = len(res.payload), res.err
	if fault.DropAfter {
		drop()
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Amzn-Requestid", c.RequestID)
	h.Set("X-Amz-Executed-Version", c.Version)
	if res.err != "" {
		h.Set("X-Amz-Function-Error", res.err)
	}
	w.Write(res.payload) // an error means that the caller is gone
}
