package fsm

import (
	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/keyspace"
)

// leaf is a completion or signal that can be awaited.
type leaf struct {
	kind   leafKind
	number uint32
	name   string
}

type leafKind uint8

const (
	leafCompletion leafKind = iota + 1
	leafSignal
	leafNamed
)

func (l *leaf) appendKey(dst []byte, id *ident.InvocationID) []byte {
	switch l.kind {
	case leafCompletion:
		return keyspace.AppendCompletion(dst, id, l.number)
	case leafSignal:
		return keyspace.AppendSignal(dst, id, l.number)
	}
	return keyspace.AppendNamedSignal(dst, id, l.name)
}

// verdict is what is known of a future.
type verdict uint8

const (
	isPending verdict = iota
	isSuccess         // void, a value, or anything else that is no failure
	isFailure
	isUnsure // resolved, but only the SDK can say with what
)

func verdictOf(failed bool) verdict {
	if failed {
		return isFailure
	}
	return isSuccess
}

// settle looks at a future with what is known of its leaves and returns what is still missing. done says
// that the invocation has to run again. f is not changed.
//
// The future is kept without its resolved parts, so that each notification is looked at once. That is
// sound because a resolved child that decides its node resolves the node at the same moment.
func settle(f *invocationpb.Future, know func(leaf) (verdict, error)) (rest *invocationpb.Future, done bool, err error) {
	s := settler{know: know}
	rest, v := s.node(f)
	return rest, v != isPending || s.wake, s.err
}

type settler struct {
	know func(leaf) (verdict, error)
	wake bool // the SDK has to look: a node depends on an undetermined child
	err  error
}

// node settles the children of a node and leaves out the resolved ones.
func (s *settler) node(f *invocationpb.Future) (*invocationpb.Future, verdict) {
	rest := &invocationpb.Future{Combinator: f.GetCombinator()}
	var c children
	for _, n := range f.GetCompletions() {
		if !s.leaf(&c, leaf{kind: leafCompletion, number: n}) {
			rest.Completions = append(rest.Completions, n)
		}
	}
	for _, n := range f.GetSignals() {
		if !s.leaf(&c, leaf{kind: leafSignal, number: n}) {
			rest.Signals = append(rest.Signals, n)
		}
	}
	for _, n := range f.GetNamedSignals() {
		if !s.leaf(&c, leaf{kind: leafNamed, name: n}) {
			rest.NamedSignals = append(rest.NamedSignals, n)
		}
	}
	for _, n := range f.GetNested() {
		if r, v := s.node(n); !c.add(v) {
			rest.Nested = append(rest.Nested, r)
		}
	}
	v, wake := c.verdict(f.GetCombinator())
	s.wake = s.wake || wake
	return rest, v
}

// leaf adds a leaf to the children of its node and reports whether it is resolved.
func (s *settler) leaf(c *children, l leaf) bool {
	v, err := s.know(l)
	if err != nil && s.err == nil {
		s.err = err
	}
	return c.add(v)
}

// children sums up the children of a node.
type children struct {
	missing int
	first   verdict // of the first resolved one
	any     [isUnsure + 1]bool
}

func (c *children) add(v verdict) (resolved bool) {
	if v == isPending {
		c.missing++
		return false
	}
	if c.first == isPending {
		c.first = v
	}
	c.any[v] = true
	return true
}

// verdict is that of a node with these children. wake says that it depends on an undetermined child.
func (c *children) verdict(k invocationpb.Future_Combinator) (v verdict, wake bool) {
	switch k {
	case invocationpb.Future_ALL_COMPLETED:
		if c.missing == 0 {
			return isSuccess, false
		}
		return isPending, false
	case invocationpb.Future_FIRST_SUCCEEDED_OR_ALL_FAILED:
		return c.decide(isSuccess, isFailure)
	case invocationpb.Future_ALL_SUCCEEDED_OR_FIRST_FAILED:
		return c.decide(isFailure, isSuccess)
	case invocationpb.Future_FIRST_COMPLETED:
		return c.first, false
	}
	if c.first != isPending {
		return isUnsure, false
	}
	return isPending, false
}

// decide is for the combinators that one child of one kind decides, and otherwise all of the other kind.
func (c *children) decide(one, all verdict) (v verdict, wake bool) {
	switch {
	case c.any[one]:
		return one, false
	case c.any[isUnsure]:
		return isUnsure, true
	case c.missing == 0:
		return all, false
	}
	return isPending, false
}
