package partition

import (
	"perdure/control/ident"
	"perdure/invokers"
)

// attempts is what an invoker can tell of its invocations; *invokers.Partition can. It may be asked by any goroutine.
type attempts interface {
	StatusOf(id ident.InvocationID) (invokers.Status, bool)
	Status(fn func(invokers.Status) bool)
}

var _ attempts = (*invokers.Partition)(nil)

// Attempt is what the invoker has of an invocation; false when it has nothing, or the partition is not led here.
func (p *Processor) Attempt(id ident.InvocationID) (invokers.Status, bool) {
	if l := p.leader.Load(); l != nil {
		if a, ok := l.invoker.(attempts); ok {
			return a.StatusOf(id)
		}
	}
	return invokers.Status{}, false
}

// Attempts calls fn for each invocation that the invoker has, until fn returns false.
func (p *Processor) Attempts(fn func(invokers.Status) bool) {
	if l := p.leader.Load(); l != nil {
		if a, ok := l.invoker.(attempts); ok {
			a.Status(fn)
		}
	}
}
