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

// settle looks at a future after one of its leaves was resolved and returns what is still missing. done
// says that the invocation has to run again. f is not changed.
//
// The future is kept without its resolved parts, so that each notification is looked at once. That is
// sound because a child that decides its node resolves the node at that very step. Leaves that are
// known together must be settled one after the other, in the order of the journal: which child of a race
// was first decides what the race passes on.
func settle(f *invocationpb.Future, l leaf, v verdict) (rest *invocationpb.Future, done bool) {
	s := settler{leaf: l, verdict: v}
	rest, got := s.node(f)
	return rest, got != isPending || s.wake
}

type settler struct {
	leaf    leaf
	verdict verdict
	wake    bool // the SDK has to look: a node depends on an undetermined child
}

func (s *settler) look(c *children, l leaf) (resolved bool) {
	if l != s.leaf {
		return c.add(isPending)
	}
	return c.add(s.verdict)
}

// leaves calls fn for each leaf of a future, until it returns an error.
func leaves(f *invocationpb.Future, fn func(leaf) error) error {
	for _, n := range f.GetCompletions() {
		if err := fn(leaf{kind: leafCompletion, number: n}); err != nil {
			return err
		}
	}
	for _, n := range f.GetSignals() {
		if err := fn(leaf{kind: leafSignal, number: n}); err != nil {
			return err
		}
	}
	for _, n := range f.GetNamedSignals() {
		if err := fn(leaf{kind: leafNamed, name: n}); err != nil {
			return err
		}
	}
	for _, n := range f.GetNested() {
		if err := leaves(n, fn); err != nil {
			return err
		}
	}
	return nil
}

// node settles the children of a node and leaves out the resolved ones.
func (s *settler) node(f *invocationpb.Future) (*invocationpb.Future, verdict) {
	rest := &invocationpb.Future{Combinator: f.GetCombinator()}
	var c children
	for _, n := range f.GetCompletions() {
		if !s.look(&c, leaf{kind: leafCompletion, number: n}) {
			rest.Completions = append(rest.Completions, n)
		}
	}
	for _, n := range f.GetSignals() {
		if !s.look(&c, leaf{kind: leafSignal, number: n}) {
			rest.Signals = append(rest.Signals, n)
		}
	}
	for _, n := range f.GetNamedSignals() {
		if !s.look(&c, leaf{kind: leafNamed, name: n}) {
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
