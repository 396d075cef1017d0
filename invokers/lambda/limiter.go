package lambda

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"perdure/invokers/transport"
)

// limiter bounds the calls of one function that run at once. Lambda refuses calls above a concurrency that the account
// and the function's settings decide and that nobody tells; so the limit is found by trying, as TCP finds bandwidth. A
// refusal lowers it to what still runs, and once in a second by a tenth more. When calls succeed and the limit is
// what holds others back, it rises by one a second, then two, four, and so on until the next refusal. While no call ends it
// rises likewise, but every five seconds: calls may take minutes, and a refusal that is heard of late lowers it too far.
//
// It exists for the others: attempts of a throttled function end at once with Throttled and wait in the retry queue,
// instead of taking invoker slots. Only as many as may run wait here for a permit, so that none lies idle.
type limiter struct {
	mu       sync.Mutex
	max      int // the limit while nothing was refused
	limit    float64
	running  int
	waiters  []*permit
	cut      time.Time // when the limit fell by a tenth last
	moved    time.Time // when it was changed last
	step     float64   // by how much it rises next
	refusals int       // cuts without a success in between
}

type permit struct{ given chan struct{} }

const (
	movePause  = time.Second      // between two rises, or two cuts
	permitWait = 5 * time.Second  // the longest wait for a permit
	probePause = 5 * time.Second  // between two rises while no call succeeds
	retryBase  = time.Second      // how long a refused attempt should wait
	retryCap   = 30 * time.Second // at most, before jitter
	shrinkTo   = 0.9
)

var errBusy = errors.New("function runs as many calls as it seems to be allowed")

func newLimiter(max int) *limiter { return &limiter{max: max, limit: float64(max), step: 1} }

// setMax changes the limit while nothing was refused. What refusals taught is kept. Versions of a function share its
// limiter, so the cap of the version that is called last counts.
func (l *limiter) setMax(max int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if max == l.max {
		return
	}
	if l.limit == float64(l.max) {
		l.limit = float64(max)
	}
	l.limit = min(l.limit, float64(max))
	l.max = max
}

// acquire takes a permit. It fails with Throttled when the function is at its limit.
func (l *limiter) acquire(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return transport.ContextError(ctx, name)
	}
	l.mu.Lock()
	if now := time.Now(); l.running >= l.allowedLocked() && now.Sub(l.moved) >= probePause {
		l.riseLocked(now)
		l.giveLocked()
	}
	if len(l.waiters) == 0 && l.running < l.allowedLocked() {
		l.running++
		l.mu.Unlock()
		return nil
	}
	if len(l.waiters) >= l.allowedLocked() {
		defer l.mu.Unlock()
		return l.busyLocked(name)
	}
	p := &permit{given: make(chan struct{})}
	l.waiters = append(l.waiters, p)
	l.mu.Unlock()
	return l.wait(ctx, name, p)
}

func (l *limiter) wait(ctx context.Context, name string, p *permit) error {
	timer := time.NewTimer(permitWait)
	defer timer.Stop()
	select {
	case <-p.given:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiters, p)
	if i < 0 { // it was given meanwhile
		return nil
	}
	l.waiters = slices.Delete(l.waiters, i, i+1)
	if ctx.Err() != nil {
		return transport.ContextError(ctx, name)
	}
	return l.busyLocked(name)
}

func (l *limiter) allowedLocked() int { return max(1, int(l.limit)) }

func (l *limiter) busyLocked(name string) error {
	return &transport.Error{Kind: transport.Throttled, Endpoint: name, RetryAfter: l.retryAfterLocked(), Err: errBusy}
}

// retryAfterLocked spreads attempts out: half to one and a half of a base that doubles while refusals go on.
func (l *limiter) retryAfterLocked() time.Duration {
	d := min(retryCap, retryBase<<min(l.refusals, 10))
	return d/2 + rand.N(d)
}

// outcome is what a call says about the limit.
type outcome int

const (
	neutral   outcome = iota // canceled, or failed for another reason
	succeeded                // the function ran
	refused                  // for its concurrency or rate
)

// release gives a permit back. After a refusal it returns how long the attempt should wait.
func (l *limiter) release(now time.Time, o outcome) (retryAfter time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := len(l.waiters) > 0 || l.running >= l.allowedLocked()
	l.running--
	switch o {
	case succeeded:
		l.refusals = 0
		if wanted && now.Sub(l.moved) >= movePause {
			l.riseLocked(now)
		}
	case refused:
		l.moved, l.step = now, 1
		l.limit = max(1, min(l.limit, float64(l.running)))
		if now.Sub(l.cut) >= movePause {
			l.cut = now
			l.refusals++
			l.limit = max(1, l.limit*shrinkTo)
		}
		retryAfter = l.retryAfterLocked()
	}
	l.giveLocked()
	return retryAfter
}

func (l *limiter) riseLocked(now time.Time) {
	l.moved = now
	l.limit = min(float64(l.max), l.limit+l.step)
	l.step *= 2
}

// giveLocked gives the permits that are free to those who wait.
func (l *limiter) giveLocked() {
	for len(l.waiters) > 0 && l.running < l.allowedLocked() {
		close(l.waiters[0].given)
		l.waiters = slices.Delete(l.waiters, 0, 1)
		l.running++
	}
}

// idle reports that nobody uses the limiter and that it knows nothing worth keeping.
func (l *limiter) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running == 0 && len(l.waiters) == 0
}

// environments guesses which calls start a new execution environment, which the API does not tell: an environment runs
// one call at a time and is kept for some minutes after it.
type environments struct {
	mu   sync.Mutex
	free []time.Time // when each idle one was used last, oldest first
}

// keptFor is how long an environment is expected to stay.
const keptFor = 7 * time.Minute

// begin takes the most recently used environment and reports whether there was none.
func (e *environments) begin(now time.Time) (cold bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.free) > 0 && now.Sub(e.free[0]) > keptFor {
		e.free = slices.Delete(e.free, 0, 1)
	}
	if len(e.free) == 0 {
		return true
	}
	e.free = e.free[:len(e.free)-1]
	return false
}

// end gives an environment back that can be used again. One in which the function failed cannot.
func (e *environments) end(now time.Time, again bool) {
	if !again {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.free = append(e.free, now)
}
