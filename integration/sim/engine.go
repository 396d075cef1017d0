// Package sim runs whole clusters in one goroutine, from a seed: the product's log servers, sequencers, finders, chains,
// epoch claims, processors and stores, under faults of network, disks, processes, clocks and metadata, with clients and
// services that keep account. It checks after each step what was promised, and in the end that everything that was
// accepted has happened, once. The same seed is the same run.
//
// DESIGN.md says which parts are the product's and which stand in for goroutines, lists the checks, and keeps the
// record of what was found.
package sim

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"time"
)

// stream names one of the random generators of a run. Each part of the world draws from its own, so that
// switching off one kind of fault leaves the choices of the others alone as long as possible.
type stream uint8

const (
	configuration stream = iota
	workload
	network
	disks
	nemesis
	streams
)

// engine is virtual time: a heap of events, run one after the other on the caller's goroutine.
type engine struct {
	now    time.Duration
	events []event
	slots  []slotted // what the events do
	free   []int32   // slots without event
	count  uint64    // events ever scheduled; ties of time run in this order
	ran    uint64
	mark   time.Duration // when ran was markAt
	markAt uint64
	rng    [streams]*rand.Rand
	hash   uint64
	last   [512]line
	lines  int
}

// event is an entry of the heap. It has no pointers, so that moving it costs the garbage collector nothing.
type event struct {
	at   time.Duration
	seq  uint64
	slot int32
}

// slotted is what an event does: n is the node whose life does it, nil if it belongs to the world.
type slotted struct {
	task
	n    *node
	life int
}

// task is something to be done later. What is scheduled most often has types of its own, because a closure is an
// allocation; function is for all else.
type task interface{ run() }

type function func()

func (f function) run() { f() }

// line is one entry of the trace. It is formatted only when somebody wants to read it.
type line struct {
	at      time.Duration
	what    string
	a, b, c uint64
}

func newEngine(seed uint64) *engine {
	e := &engine{hash: 14695981039346656037}
	for i := range e.rng {
		e.rng[i] = rand.New(rand.NewPCG(seed, uint64(i)))
	}
	return e
}

// after schedules f.
func (e *engine) after(d time.Duration, f func()) { e.schedule(d, nil, 0, function(f)) }

// schedule has t run after d: by the life of n, if n is given.
func (e *engine) schedule(d time.Duration, n *node, life int, t task) {
	var slot int32
	if last := len(e.free) - 1; last >= 0 {
		slot = e.free[last]
		e.free = e.free[:last]
	} else {
		slot = int32(len(e.slots))
		e.slots = append(e.slots, slotted{})
	}
	e.slots[slot] = slotted{t, n, life}
	e.count++
	ev := event{e.now + max(d, 0), e.count, slot}
	e.events = append(e.events, ev)
	i := len(e.events) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !ev.before(&e.events[p]) {
			break
		}
		e.events[i] = e.events[p]
		i = p
	}
	e.events[i] = ev
}

func (a *event) before(b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// pop takes the earliest event out of the heap.
func (e *engine) pop() event {
	first, n := e.events[0], len(e.events)-1
	last := e.events[n]
	e.events = e.events[:n]
	i := 0
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && e.events[c+1].before(&e.events[c]) {
			c++
		}
		if !e.events[c].before(&last) {
			break
		}
		e.events[i] = e.events[c]
		i = c
	}
	if n > 0 {
		e.events[i] = last
	}
	return first
}

// step runs the earliest event, at the latest one at until; false when there is none.
func (e *engine) step(until time.Duration) bool {
	if len(e.events) == 0 || e.events[0].at > until {
		return false
	}
	ev := e.pop()
	todo := e.slots[ev.slot]
	e.slots[ev.slot] = slotted{}
	e.free = append(e.free, ev.slot)
	e.now = ev.at
	e.ran++
	if e.now-e.mark >= time.Second {
		e.mark, e.markAt = e.now, e.ran
	} else if e.ran-e.markAt > maxPerSecond+e.ran%16 {
		violated("busy loop", "more than %d events in one simulated second; now %s", maxPerSecond, nameOf(todo.task))
	}
	if todo.n != nil {
		todo.n.run(todo.life, todo.task)
	} else {
		todo.run()
	}
	return true
}

// nameOf names a task for people.
func nameOf(t task) string {
	if f, ok := t.(function); ok {
		return runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
	}
	return fmt.Sprintf("%T", t)
}

// maxPerSecond bounds the events of a simulated second: more are a loop that does nothing.
const maxPerSecond = 1_000_000

// trace notes what happened; it is part of the hash by which two runs are compared.
func (e *engine) trace(what string, a, b, c uint64) {
	h := e.hash
	for i := range len(what) {
		h = (h ^ uint64(what[i])) * 1099511628211
	}
	for _, v := range [...]uint64{uint64(e.now), a, b, c} {
		h = (h ^ v) * 1099511628211
		h ^= h >> 29
	}
	e.hash = h
	e.last[e.lines%len(e.last)] = line{e.now, what, a, b, c}
	e.lines++
}

// tail is the end of the trace, for people.
func (e *engine) tail(n int) string {
	var b strings.Builder
	for i := max(0, e.lines-min(n, len(e.last))); i < e.lines; i++ {
		l := e.last[i%len(e.last)]
		fmt.Fprintf(&b, "  %14s  %-28s %d %d %d\n", l.at, l.what, l.a, l.b, l.c)
	}
	return b.String()
}

// Violation is a broken promise. The simulation panics with it, and Run recovers it.
type Violation struct {
	Check string // which promise
	What  string
}

func (v *Violation) Error() string { return v.Check + ": " + v.What }

// violated ends the run.
func violated(check, format string, args ...any) {
	panic(&Violation{check, fmt.Sprintf(format, args...)})
}

// chance is true with probability p.
func (e *engine) chance(s stream, p float64) bool { return p > 0 && e.rng[s].Float64() < p }

// between draws a duration from [lo, hi).
func (e *engine) between(s stream, lo, hi time.Duration) time.Duration {
	return lo + time.Duration(e.rng[s].Int64N(int64(hi-lo)))
}

// exponential draws a duration with a mean, for events that come independently.
func (e *engine) exponential(s stream, mean time.Duration) time.Duration {
	return min(time.Duration(e.rng[s].ExpFloat64()*float64(mean)), 20*mean)
}
