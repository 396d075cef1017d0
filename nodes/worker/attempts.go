package worker

import (
	"perdure/control/ident"
	"perdure/invokers"
)

// Attempt is what the invoker of an invocation's partition has of it; see partition.Processor.Attempt.
func (w *Worker) Attempt(id ident.InvocationID) (invokers.Status, bool) {
	if p := w.slots[w.cfg.Table.Lookup(id.PartitionKey())].proc.Load(); p != nil {
		return p.Attempt(id)
	}
	return invokers.Status{}, false
}

// Attempts calls fn for each invocation that the invokers of this node have, until fn returns false.
func (w *Worker) Attempts(fn func(invokers.Status) bool) {
	more := true
	for i := range w.slots {
		if p := w.slots[i].proc.Load(); p != nil && more {
			p.Attempts(func(s invokers.Status) bool {
				more = fn(s)
				return more
			})
		}
	}
}
