package partition

import (
	"context"
	"fmt"
	"sync"

	"perdure/control/ident"
	"perdure/invokers"
	"perdure/nodes/partition/doctor"
	"perdure/nodes/partition/store"
)

// Inspect captures one moment of the partition for the doctor: its rows and what the invoker has. Between two batches the
// loop has told the invoker all that the rows say, so both fit. Peer and Services are for the caller to fill in. It must call
// close when it is done, soon. ErrNotLeader if the partition is not led here.
func (p *Processor) Inspect(ctx context.Context) (v *doctor.View, close func(), err error) {
	l := p.leader.Load()
	if l == nil {
		return nil, nil, ErrNotLeader
	}
	i := &inspection{done: make(chan struct{})}
	l.mail.ask(i)
	select {
	case <-i.done:
	case <-l.over:
		i.abandon()
		return nil, nil, ErrNotLeader
	case <-ctx.Done():
		i.abandon()
		return nil, nil, context.Cause(ctx)
	}
	if i.err != nil {
		return nil, nil, fmt.Errorf("inspect partition %d: %w", p.cfg.Partition, i.err)
	}
	return i.view, i.close, nil
}

// inspection is a request to the leader's loop.
type inspection struct {
	done chan struct{} // closed when the fields below are set
	view *doctor.View
	snap *store.Snapshot
	err  error

	mu        sync.Mutex
	abandoned bool // nobody waits any more
}

func (i *inspection) close() {
	if i.snap != nil {
		_ = i.snap.Close() // it was read only
	}
}

// abandon closes what the loop has captured, or will not capture any more.
func (i *inspection) abandon() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.abandoned = true
	i.close()
}

// capture is the loop's part.
func (i *inspection) capture(l *leader) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.abandoned {
		return
	}
	defer close(i.done)
	if i.snap, i.err = l.p.store.Snapshot(); i.err != nil {
		return
	}
	i.view = &doctor.View{Partition: l.p.cfg.Partition, Rows: i.snap, Attempts: map[ident.InvocationID]invokers.Status{}, Now: l.p.cfg.Now()}
	l.invoker.Status(func(s invokers.Status) bool {
		i.view.Attempts[s.ID] = s
		return true
	})
}
