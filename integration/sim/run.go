package sim

import (
	"fmt"
	"runtime/debug"
	"time"
)

// Result is what a run was.
type Result struct {
	Seed      uint64
	Config    string
	Hash      uint64 // of the trace: equal for equal seeds and builds
	Simulated time.Duration
	Events    uint64
	// Figures of the run.
	Acknowledged, Delivered, Reconfigurations, Faults, Invocations, Mismatches, Orders, Trims uint64
	// Failure is the broken promise, nil when there was none; Trace the last events before it.
	Failure *Violation
	Trace   string
}

// Run runs one seed.
func Run(o Options) (r Result) {
	var w *world
	defer func() {
		if p := recover(); p != nil {
			v, ok := p.(*Violation)
			if !ok {
				v = &Violation{Check: "panic", What: fmt.Sprintf("%v\n%s", p, debug.Stack())}
			}
			r.Failure = v
			if w != nil {
				r.Trace = w.tail(200)
			}
		}
		if w == nil {
			return
		}
		r.Hash, r.Simulated, r.Events = w.hash, w.now, w.ran
		r.Acknowledged, r.Delivered, r.Reconfigurations, r.Faults = w.acknowledged, w.delivered, w.reconfigurations, w.faultsDone
		r.Mismatches, r.Orders = w.mismatches, w.orders
		r.Trims = w.trims
		if w.core != nil {
			r.Invocations = w.core.finished()
		}
		defer func() {
			// A world that is broken may not close cleanly either; the first failure is the one to tell.
			if p := recover(); p != nil && r.Failure == nil {
				r.Failure = &Violation{Check: "panic", What: fmt.Sprintf("closing: %v\n%s", p, debug.Stack())}
			}
		}()
		w.close()
	}()
	r.Seed = o.Seed
	w = newWorld(o)
	r.Config = w.cfg.String()
	w.run()
	return r
}

// Shrink switches off one kind of fault after the other as long as the run still breaks the same promise, and
// returns the options that are left and their result.
func Shrink(o Options, first Result) (Options, Result) {
	best := first
	for f := Fault(1); f < faultEnd; f <<= 1 {
		if o.Without&f != 0 {
			continue
		}
		try := o
		try.Without |= f
		if r := Run(try); r.Failure != nil && r.Failure.Check == first.Failure.Check {
			o, best = try, r
		}
	}
	return o, best
}
