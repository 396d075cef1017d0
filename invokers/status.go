package invokers

import (
	"net/http"
	"strconv"
	"time"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
)

// Status is what introspection shows of an invocation that its leader's invoker knows.
type Status struct {
	ID          ident.InvocationID
	Incarnation uint64
	// InFlight: an attempt is open. Queued: the invocation waits for a concurrency slot.
	InFlight, Queued bool
	// RetryCount counts the attempts that were started; 1 during the first.
	RetryCount uint64
	// LastStart and NextRetry are zero when there is none.
	LastStart, NextRetry time.Time
	// LastDeployment is where the last attempt went, zero before the first; LastServer what answered it.
	LastDeployment ident.DeploymentID
	LastServer     string
	// LastFailure is nil if no attempt failed in this incarnation.
	LastFailure *invocationpb.Effect_AttemptFailed
	// AwaitingOn is what the service said last that it waits for (V7); nil when it did not, or when
	// something of it arrived.
	AwaitingOn *invocationpb.Future
}

// FailureText is the failure as introspection shows it: [code reason] message, and the stack trace.
func (s *Status) FailureText() string {
	f := s.LastFailure
	if f == nil {
		return ""
	}
	text := "[" + strconv.FormatUint(uint64(f.GetCode()), 10)
	switch reason := http.StatusText(int(f.GetCode())); {
	case f.GetCode() == http.StatusInternalServerError:
		text += " Internal"
	case reason != "":
		text += " " + reason
	}
	text += "] " + f.GetMessage()
	if f.GetStacktrace() != "" {
		text += "\n" + f.GetStacktrace()
	}
	return text
}

// Status calls fn for each invocation of the partition, in no order, until fn returns false. fn runs without
// a lock: what it sees is the state when Status was called.
func (p *Partition) Status(fn func(Status) bool) {
	p.mu.Lock()
	all := make([]Status, 0, len(p.mu.invocations))
	for _, inv := range p.mu.invocations {
		all = append(all, inv.statusLocked())
	}
	p.mu.Unlock()
	for _, s := range all {
		if !fn(s) {
			return
		}
	}
}

// StatusOf is the state of one invocation; false if the invoker does not know it.
func (p *Partition) StatusOf(id ident.InvocationID) (Status, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	inv := p.mu.invocations[id]
	if inv == nil {
		return Status{}, false
	}
	return inv.statusLocked(), true
}

func (inv *invocation) statusLocked() Status {
	s := Status{
		ID: inv.id, Incarnation: inv.incarnation, InFlight: inv.phase == running, Queued: inv.phase == queued,
		RetryCount: inv.starts, LastStart: inv.lastStart, NextRetry: inv.nextRetry,
		LastDeployment: inv.deployment, LastServer: inv.server, AwaitingOn: inv.awaiting,
	}
	if inv.lastFailure != nil {
		s.LastFailure = inv.lastFailure.event()
	}
	return s
}
