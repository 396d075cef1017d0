package partition

import (
	"bytes"
	"cmp"
	"container/heap"
	"slices"

	"perdure/nodes/partition/store"
)

// timerQueue is the leader's view of the timers in the store: a heap of the next ones, bounded in
// number. Timers beyond the horizon stay in the store only and are loaded when the heap runs empty, so
// a million sleeping invocations cost a bounded amount of memory here.
//
// A timer leaves the queue when it is proposed, and the store when it is applied. Firing one that is
// already gone has no effect, so the queue need not know of deleted timers.
type timerQueue struct {
	limit int // timers kept in memory, more or less
	heap  timerHeap
	// all says that every timer of the store that was not proposed is in the heap. Otherwise exactly
	// those up to horizon are.
	all     bool
	horizon store.TimerKey
	load    func(after store.TimerKey, limit int) ([]store.TimerKey, error)
}

func newTimerQueue(limit int, load func(store.TimerKey, int) ([]store.TimerKey, error)) *timerQueue {
	return &timerQueue{limit: limit, load: load}
}

// add takes a timer that was just written to the store.
func (q *timerQueue) add(k store.TimerKey) {
	if !q.all && compareTimers(k, q.horizon) > 0 {
		return
	}
	heap.Push(&q.heap, k)
	if len(q.heap) >= 2*q.limit {
		slices.SortFunc(q.heap, compareTimers) // a sorted slice is a heap
		q.heap = slices.Clip(q.heap[:q.limit])
		q.all, q.horizon = false, q.heap[q.limit-1]
	}
}

// next is the earliest timer; ok is false when the store has none.
func (q *timerQueue) next() (k store.TimerKey, ok bool, err error) {
	if len(q.heap) == 0 && !q.all {
		ks, err := q.load(q.horizon, q.limit)
		if err != nil {
			return k, false, err
		}
		q.heap = append(q.heap, ks...)
		if len(ks) > 0 {
			q.horizon = ks[len(ks)-1]
		}
		q.all = len(ks) < q.limit
	}
	if len(q.heap) == 0 {
		return k, false, nil
	}
	return q.heap[0], true, nil
}

// pop takes the timer that next returned.
func (q *timerQueue) pop() { heap.Pop(&q.heap) }

func compareTimers(a, b store.TimerKey) int {
	return cmp.Or(
		cmp.Compare(a.FireAtMs, b.FireAtMs),
		cmp.Compare(a.Kind, b.Kind),
		bytes.Compare(a.ID[:], b.ID[:]),
		cmp.Compare(a.CompletionID, b.CompletionID),
	)
}

type timerHeap []store.TimerKey

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return compareTimers(h[i], h[j]) < 0 }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(store.TimerKey)) }
func (h *timerHeap) Pop() any {
	old := *h
	k := old[len(old)-1]
	*h = old[:len(old)-1]
	return k
}
