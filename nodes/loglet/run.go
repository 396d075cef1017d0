package loglet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"perdure/nodes/transport"
)

// Clock is where the shells take the time from.
type Clock interface {
	Now() time.Time
	// AfterFunc runs f on a goroutine of its own after d, unless the timer is stopped before.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is a pending AfterFunc.
type Timer interface{ Stop() bool }

// SystemClock is the clock of the operating system.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() time.Time { return time.Now() }

// AfterFunc implements Clock.
func (SystemClock) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }

// Machine is a step machine that sends requests until it has finished.
type Machine interface {
	Start(now time.Duration) []Send
	Answer(now time.Duration, a *Answer) []Send
	Tick(now time.Duration) []Send
	// NextTick is when Tick is due; ok is false when only an answer can help.
	NextTick() (at time.Duration, ok bool)
	Finished() bool
}

// inbox collects the answers for a running machine.
type inbox struct {
	mu      sync.Mutex
	answers []*Answer
	wake    chan struct{}
}

func (b *inbox) put(a *Answer) {
	b.mu.Lock()
	b.answers = append(b.answers, a)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) take() []*Answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.answers
	b.answers = nil
	return a
}

// Run runs a machine on the calling goroutine until it has finished or ctx ends.
func Run(ctx context.Context, net transport.Caller, clock Clock, m Machine) error {
	began := clock.Now()
	now := func() time.Duration { return clock.Now().Sub(began) + 1 } // never 0, which means "not set"
	box := &inbox{wake: make(chan struct{}, 1)}
	ticks := make(chan struct{}, 1)
	send := func(sends []Send) {
		for _, s := range sends {
			net.Call(s.To, s.Msg, func(r transport.Message, err error) { box.put(&Answer{Send: s, Reply: r, Err: err}) })
		}
	}
	send(m.Start(now()))
	for !m.Finished() {
		stop := arm(clock, m, now(), ticks)
		select {
		case <-ctx.Done():
			stop()
			return fmt.Errorf("wait for log servers: %w", context.Cause(ctx))
		case <-box.wake:
			for _, a := range box.take() {
				send(m.Answer(now(), a))
			}
		case <-ticks:
			send(m.Tick(now()))
		}
		stop()
	}
	return nil
}

// arm makes ticks receive when the machine's next tick is due.
func arm(clock Clock, m Machine, now time.Duration, ticks chan struct{}) (stop func()) {
	at, ok := m.NextTick()
	if !ok {
		return func() {}
	}
	t := clock.AfterFunc(max(at-now, 0), func() {
		select {
		case ticks <- struct{}{}:
		default:
		}
	})
	return func() { t.Stop() }
}
