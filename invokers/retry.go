package invokers

import (
	"time"

	"perdure/control/schema"
	"perdure/invokers/protocol/protocolpb"
)

// verdict is what becomes of an invocation whose attempt failed.
type verdict uint8

const (
	retry verdict = iota + 1
	pause
	kill
)

// decision is the outcome of a failed attempt.
type decision struct {
	verdict verdict
	delay   time.Duration // of retry
	counted bool          // the retry is one of those that the policy allows
}

// decide applies the rules for a failed attempt in their order: an operator's wish, the service's wish, a
// delay that replaces the policy, the policy, and what the policy says at its end. used is the number of
// retries that the policy has counted; jitter is a random number in [0, 1).
func decide(p *schema.RetryPolicy, used uint64, f *failure, pauseRequested bool, jitter float64) decision {
	switch {
	case pauseRequested, f.mustPause, f.behavior == protocolpb.ErrorBehavior_PAUSE:
		return decision{verdict: pause}
	case f.behavior == protocolpb.ErrorBehavior_FAIL:
		return decision{verdict: kill}
	case f.delay != nil:
		return decision{verdict: retry, delay: max(*f.delay, minDelay)}
	case p.MaxAttempts == 0 || used+1 < p.MaxAttempts:
		return decision{verdict: retry, delay: backoff(p, used, jitter), counted: true}
	case p.OnMaxAttempts == schema.Kill:
		return decision{verdict: kill}
	}
	return decision{verdict: pause}
}

// minDelay is the shortest delay that a service may ask for. Such a retry is not counted by the policy: with a shorter one
// a service that always fails would keep a core busy.
const minDelay = 10 * time.Millisecond

// backoff is the delay of the (n+1)th retry: initial interval, multiplied n times, bounded, and up to 30 %
// longer by chance so that invocations that failed together do not come back together.
func backoff(p *schema.RetryPolicy, n uint64, jitter float64) time.Duration {
	limit := float64(p.MaxInterval)
	if p.MaxInterval <= 0 {
		limit = float64(maxDelay)
	}
	d := float64(p.InitialInterval)
	for i := uint64(0); i < n && d < limit && p.Factor > 1 && d > 0; i++ {
		d *= p.Factor
	}
	return time.Duration(min(d, limit) * (1 + 0.3*jitter))
}

// tracker follows the proposals of one invocation on their way through the log. An attempt must not start
// from a journal that lacks what an earlier attempt put on its way: the service would run again from an
// older point and its commands would then stand behind those of the earlier attempt.
type tracker struct {
	proposed, applied uint64 // sequence numbers
}

// next takes the sequence number of a proposal.
func (t *tracker) next() uint64 { t.proposed++; return t.proposed }

// undo gives the last sequence number back: its proposal never reached the log.
func (t *tracker) undo() { t.proposed-- }

// observe notes that a proposal was applied. Proposals of one invocation are applied in their order.
func (t *tracker) observe(sequence uint64) { t.applied = max(t.applied, sequence) }

// settled reports whether everything that was proposed was applied.
func (t *tracker) settled() bool { return t.applied >= t.proposed }
