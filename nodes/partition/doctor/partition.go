package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"perdure/control/ident"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// MaxProblems bounds the findings of a Summary that are kept; the others are only counted.
const MaxProblems = 100

// MaxContended bounds the holders of a Summary.
const MaxContended = 1000

// Summary is what is found about a partition.
type Summary struct {
	// Statuses and Reasons count invocations by status, and those that have not ended by what they wait for (each reason
	// once).
	Statuses map[storepb.Invocation_Status]int
	Reasons  map[Reason]int
	// Problems are findings with a problem, at most MaxProblems of Total.
	Problems []Finding
	Total    int
	// Contended hold a lock that others wait for, at most MaxContended: where a deadlock would have to be.
	Contended []ident.InvocationID
}

// Summary examines all invocations of the partition, and its locks and queues. It reads every status row: some tens of
// microseconds for each.
func (v *View) Summary() (*Summary, error) {
	s := &Summary{Statuses: map[storepb.Invocation_Status]int{}, Reasons: map[Reason]int{}}
	prefix := []byte{keyspace.TagInvocation}
	err := v.Rows.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		id, err := keyspace.InvocationOf(key)
		if err != nil {
			return false, err
		}
		inv := new(storepb.Invocation)
		if err := inv.UnmarshalVT(value); err != nil {
			return false, fmt.Errorf("%w: status row of %s: %w", keyspace.ErrCorrupt, id, err)
		}
		f, err := v.examine(id, inv)
		if err != nil {
			return false, err
		}
		s.add(f)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return s, v.locks(s)
}

func (s *Summary) add(f *Finding) {
	s.Statuses[f.Status]++
	if f.Status != storepb.Invocation_COMPLETED {
		for i, w := range f.Waits {
			if !seenReason(f.Waits[:i], w.Reason) {
				s.Reasons[w.Reason]++
			}
		}
	}
	if f.Problem == "" {
		return
	}
	s.Total++
	if len(s.Problems) < MaxProblems {
		s.Problems = append(s.Problems, *f)
	}
}

func seenReason(ws []Wait, r Reason) bool {
	for _, w := range ws {
		if w.Reason == r {
			return true
		}
	}
	return false
}

// locks checks that each lock has a living holder and as many waiters as it says, and each queue a lock.
func (v *View) locks(s *Summary) error {
	queues, err := v.queues()
	if err != nil {
		return err
	}
	prefix := []byte{keyspace.TagLock}
	err = v.Rows.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, value []byte) (bool, error) {
		o, _, err := keyspace.ObjectOf(key)
		if err != nil {
			return false, err
		}
		var l storepb.Lock
		if err := l.UnmarshalVT(value); err != nil {
			return false, fmt.Errorf("%w: lock of %s/%s: %w", keyspace.ErrCorrupt, o.Service, o.Key, err)
		}
		n := queues[o]
		delete(queues, o)
		return true, v.lock(s, &o, &l, n)
	})
	if err != nil {
		return err
	}
	for _, o := range slices.SortedFunc(maps.Keys(queues), compareObjects) {
		s.object(&o, ident.InvocationID{}, fmt.Sprintf("%d wait for the lock of %s/%s, which nobody holds", queues[o], o.Service, o.Key))
	}
	return nil
}

func compareObjects(a, b keyspace.Object) int {
	return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Key, b.Key))
}

func (v *View) lock(s *Summary, o *keyspace.Object, l *storepb.Lock, queued int) error {
	holder, err := ident.InvocationIDFromBytes(l.Holder)
	if err != nil {
		s.object(o, holder, fmt.Sprintf("the holder of the lock of %s/%s has no valid id", o.Service, o.Key))
		return nil
	}
	problem, err := v.holder(holder, o)
	if problem == "" && int(l.Queued) != queued {
		problem = fmt.Sprintf("the lock of %s/%s says that %d wait for it, but %d do", o.Service, o.Key, l.Queued, queued)
	}
	switch {
	case problem != "":
		s.object(o, holder, problem)
	case queued > 0 && len(s.Contended) < MaxContended:
		s.Contended = append(s.Contended, holder)
	}
	return err
}

// object notes a problem of an object, whose invocations may all look well.
func (s *Summary) object(o *keyspace.Object, holder ident.InvocationID, problem string) {
	s.Total++
	if len(s.Problems) < MaxProblems {
		s.Problems = append(s.Problems, Finding{ID: holder, Target: o.Service + "/" + o.Key, Problem: problem})
	}
}

// queues counts those that wait, by object.
func (v *View) queues() (map[keyspace.Object]int, error) {
	n := map[keyspace.Object]int{}
	prefix := []byte{keyspace.TagInbox}
	err := v.Rows.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(key, _ []byte) (bool, error) {
		o, _, err := keyspace.InboxOf(key)
		n[o]++
		return err == nil, err
	})
	return n, err
}

// maxChain bounds how far a chain of invocations that wait for each other is followed.
const maxChain = 64

// Chain follows what an invocation waits for, as long as it is one other invocation, and returns those passed on the way,
// the first included. A chain that comes back to an invocation is a deadlock: then cycle is where it comes back to, the
// last of the chain waits for it, and none of them can go on. lookup finds out about an invocation of any partition,
// nil if it cannot be told.
func Chain(first *Finding, lookup func(ident.InvocationID) (*Finding, error)) (chain []*Finding, cycle ident.InvocationID, err error) {
	seen := map[ident.InvocationID]bool{}
	for f := first; f != nil && len(chain) < maxChain; {
		chain, seen[f.ID] = append(chain, f), true
		next, ok := f.only()
		if !ok {
			break
		}
		if seen[next] {
			return chain, next, nil
		}
		if f, err = lookup(next); err != nil {
			return chain, cycle, err
		}
	}
	return chain, cycle, nil
}

// only is the one invocation that has to end for f to go on.
func (f *Finding) only() (ident.InvocationID, bool) {
	if len(f.Waits) != 1 || f.Waits[0].On.IsZero() {
		return ident.InvocationID{}, false
	}
	return f.Waits[0].On, true
}
