package loglet

import (
	"sync"
	"sync/atomic"

	"perdure/control/cluster"
)

// Tail is a watched tail: it only grows, and whoever subscribed is told. Safe for concurrent use.
type Tail struct {
	value atomic.Uint32
	subs  atomic.Pointer[[]*subscription] // immutable; replaced under mu
	mu    sync.Mutex
}

type subscription struct{ notify func() }

// NewTail returns a tail at 1, the tail of an empty loglet.
func NewTail() *Tail {
	t := &Tail{}
	t.value.Store(1)
	return t
}

// Load is the current tail: everything below it is committed.
func (t *Tail) Load() cluster.Offset { return cluster.Offset(t.value.Load()) }

// Advance raises the tail and tells the subscribers. A lower tail has no effect.
func (t *Tail) Advance(to cluster.Offset) {
	for {
		old := t.value.Load()
		if uint32(to) <= old {
			return
		}
		if t.value.CompareAndSwap(old, uint32(to)) {
			break
		}
	}
	if subs := t.subs.Load(); subs != nil {
		for _, s := range *subs {
			s.notify()
		}
	}
}

// Subscribe has notify called after each advance, until cancel. notify must not block; it may call
// cancel, and it may still run once while another goroutine cancels.
func (t *Tail) Subscribe(notify func()) (cancel func()) {
	s := &subscription{notify: notify}
	t.replace(func(subs []*subscription) []*subscription { return append(subs, s) })
	return func() {
		t.replace(func(subs []*subscription) []*subscription {
			kept := subs[:0]
			for _, o := range subs {
				if o != s {
					kept = append(kept, o)
				}
			}
			return kept
		})
	}
}

// replace installs a changed copy of the subscriptions.
func (t *Tail) replace(change func([]*subscription) []*subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var subs []*subscription
	if old := t.subs.Load(); old != nil {
		subs = append(subs, *old...)
	}
	subs = change(subs)
	t.subs.Store(&subs)
}
