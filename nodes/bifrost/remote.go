package bifrost

import (
	"context"
	"errors"
	"fmt"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/transport"
)

// tailWait is how long a sequencer keeps a tail request that it has nothing new for.
const tailWait = 10 * time.Second

// answerTail answers a request for the tail of a loglet that this node sequences.
func (b *Bifrost) answerTail(r *loglet.TailRequest, reply transport.ReplyFunc) {
	b.mu.Lock()
	l := b.logs[r.Loglet.LogID()]
	b.mu.Unlock()
	if l == nil {
		reply(&loglet.TailReply{Gone: true}, nil)
		return
	}
	d, _ := l.active()
	if d == nil || d.Params().ID != r.Loglet {
		reply(&loglet.TailReply{Gone: true}, nil)
		return
	}
	p := &tailPoll{tail: d.Tail(), after: r.After, reply: reply, moved: make(chan struct{}, 1)}
	if d.Tail().Load() > r.After || !b.run(func() { p.wait(b) }) {
		reply(&loglet.TailReply{Tail: d.Tail().Load()}, nil)
	}
}

// tailPoll is a tail request that waits.
type tailPoll struct {
	tail  *loglet.Tail
	after cluster.Offset
	reply transport.ReplyFunc
	moved chan struct{}
}

// wait answers once the tail has moved or enough time has passed.
func (p *tailPoll) wait(b *Bifrost) {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	timer := b.cfg.Clock.AfterFunc(tailWait, cancel)
	defer timer.Stop()
	unsub := p.tail.Subscribe(func() {
		select {
		case p.moved <- struct{}{}:
		default:
		}
	})
	defer unsub()
	for p.tail.Load() <= p.after {
		select {
		case <-p.moved:
			continue
		case <-ctx.Done():
		}
		break
	}
	p.reply(&loglet.TailReply{Tail: p.tail.Load()}, nil)
}

// askTail asks a segment's sequencer for a tail above after.
func (b *Bifrost) askTail(ctx context.Context, seg segment, after cluster.Offset, timeout time.Duration) (*loglet.TailReply, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := b.cfg.Clock.AfterFunc(timeout, func() { cancel(errTimeout) })
	defer timer.Stop()
	type result struct {
		reply *loglet.TailReply
		err   error
	}
	done := make(chan result, 1)
	b.cfg.Net.Call(seg.sequencer.ID, &loglet.TailRequest{Loglet: seg.id, After: after}, func(m transport.Message, err error) {
		r, ok := m.(*loglet.TailReply)
		if err == nil && !ok {
			err = fmt.Errorf("sequencer answered with message %T", m)
		}
		done <- result{r, err}
	})
	select {
	case r := <-done:
		return r.reply, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("ask sequencer %s: %w", seg.sequencer, context.Cause(ctx))
	}
}

// follow keeps the tail of an open segment that another node, or an earlier life of this one,
// sequences. It ends with ctx: when the chain has moved on or nobody reads any more.
func (l *logState) follow(ctx context.Context, seg segment, tail *loglet.Tail) {
	for ctx.Err() == nil {
		gone := seg.sequencer.ID == l.b.cfg.Self.ID
		if !gone {
			r, err := l.b.askTail(ctx, seg, tail.Load(), tailWait+l.b.cfg.ReadTimeout)
			if err == nil && !r.Gone {
				tail.Advance(r.Tail)
				continue
			}
			gone = err == nil
		}
		if err := l.followServers(ctx, seg, tail, gone); err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			l.b.cfg.Logger.Warn("finding the tail of an open segment failed", "loglet", seg.id.String(), "err", err)
		}
		l.b.pause(ctx, l.b.cfg.TailPoll)
	}
}

// followServers raises the tail to what the log servers tell.
func (l *logState) followServers(ctx context.Context, seg segment, tail *loglet.Tail, gone bool) error {
	f := loglet.NewFinder(seg.params(), loglet.FindTail, l.b.cfg.Finder)
	f.Know(tail.Load())
	if gone {
		f.SequencerGone()
	}
	if err := l.drive(ctx, &seg, "follow tail of", f); err != nil {
		return err
	}
	res, _ := f.Done()
	if res.Sealed {
		return l.endInChain(ctx, seg, res.Tail)
	}
	tail.Advance(res.Tail)
	return nil
}

// endInChain writes the end of a segment that was found sealed into the chain, if nobody else has. The tail
// that was found is not for readers: with other servers somebody may have found a lower one, and then the
// successor begins there.
func (l *logState) endInChain(ctx context.Context, seg segment, tail cluster.Offset) error {
	c, err := l.reload(ctx)
	if err != nil || c.IsZero() || c.Last().Loglet != seg.id {
		return err
	}
	return l.sealChain(ctx, c, seg.lsnOf(tail))
}
