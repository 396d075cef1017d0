package partition

import (
	"context"
	"time"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/bifrost"
	"perdure/nodes/record/recordpb"
)

// EntryReader delivers the entries of a log in order; *bifrost.Reader is it in production.
type EntryReader interface {
	// TryNext returns the next entry if there is one now.
	TryNext() (bifrost.Entry, bool, error)
	// Wait receives when TryNext may have something new.
	Wait() <-chan struct{}
	Close()
}

// LogAppender is the ordered writer of a log; *bifrost.Appender is it in production.
type LogAppender interface {
	appender
	// WaitCapacity waits until an append is likely to be taken, or ctx ends.
	WaitCapacity(ctx context.Context) error
}

// Stepper runs a processor one step at a time on the caller's goroutine: what RunLeader does, without its
// waiting. It is for simulations that own time, log and network. One goroutine uses it and the processor.
type Stepper struct {
	p    *Processor
	prop *proposer
	l    *leader // nil while following
	over bool
}

// Steps announces the claim in the log. The reader begins behind the applied LSN. trim cuts the log; it and
// flushes run within Step.
func (p *Processor) Steps(c Claim, r EntryReader, a LogAppender, trim func(ctx context.Context, upTo cluster.LSN) error) (*Stepper, error) {
	p.reader, p.appender, p.trimLog = r, a, trim
	p.aside = func(f func()) { f() }
	prop, err := p.announce(c)
	if err != nil {
		return nil, err
	}
	return &Stepper{p: p, prop: prop}, nil
}

// Step does what can be done now. n is the number of records applied: with n > 0 there may be more. over
// says that the leader has ended, with the error or because another one was announced. Otherwise wake is
// when to come again without a further event; zero: never.
func (s *Stepper) Step(ctx context.Context) (n int, wake time.Time, over bool, err error) {
	if s.over {
		return 0, wake, true, nil
	}
	select {
	case err := <-s.p.failed:
		s.end(err)
		return 0, wake, true, err
	default:
	}
	if s.l == nil {
		n, err = s.follow()
	} else {
		n, s.over, wake, err = s.l.step(ctx)
	}
	if err != nil || s.over {
		s.end(err)
		return n, wake, true, err
	}
	return n, wake, false, nil
}

// follow applies up to the own announcement, then leads.
func (s *Stepper) follow() (n int, err error) {
	n, reached, mine, err := s.p.followStep(s.prop.epoch)
	if err != nil {
		return n, err
	}
	if mutant.Is(mutant.ActsBeforeFence) && !reached {
		reached, mine = true, true
	}
	if !reached {
		return n, nil
	}
	if !mine {
		s.over = true
		return n, nil
	}
	s.l, err = s.p.newLeader(s.prop)
	return max(n, 1), err
}

func (s *Stepper) end(err error) {
	s.over = true
	if s.l != nil {
		s.l.end(err)
		s.l = nil
	}
	s.prop.close()
}

// Close ends the leader. Idempotent.
func (s *Stepper) Close() {
	if !s.over {
		s.end(errStopped)
	}
}

// Leading reports whether the announcement was read back and no later one was.
func (s *Stepper) Leading() bool { return s.l != nil }

// Submit proposes what a request asks for; the answer is in the Pending once its record was applied. An
// error means that nothing was proposed.
func (s *Stepper) Submit(req *recordpb.Request) (*Pending, error) {
	if s.l == nil {
		return nil, ErrNotLeader
	}
	cmd, err := command(req)
	if err != nil {
		return nil, err
	}
	w, again, err := s.l.waiters.register(requestID(req.Id))
	if err != nil {
		return nil, err
	}
	if !again {
		if err := s.l.prop.propose(cmd); err != nil {
			s.l.waiters.forget(requestID(req.Id), w)
			return nil, err
		}
	}
	return &Pending{w}, nil
}

// Pending is a request that waits for its answer.
type Pending struct{ w *waiter }

// Poll returns the answer if it is there; lost says that there will be none, and that the outcome is unknown.
func (p *Pending) Poll() (r *recordpb.Reply, lost bool) {
	select {
	case r, ok := <-p.w.reply:
		return r, !ok
	default:
		return nil, false
	}
}
