package fsm

import (
	"perdure/control/mutant"
	"perdure/nodes/partition/store/keyspace"
)

// timers are what the leader has to propose at their time. A timer that was set fires once, not before its time, unless it is taken back.
type timers struct{ *step }

func (ts *timers) set(t keyspace.TimerKey) error {
	ts.out.add(ActTimer).Timer = t
	ts.key = keyspace.AppendTimer(ts.key[:0], &t)
	return ts.txn.Set(ts.key, nil)
}

// takeBack removes a timer that has not fired.
func (ts *timers) takeBack(t keyspace.TimerKey) error {
	ts.out.add(ActTimerDeleted).Timer = t
	ts.key = keyspace.AppendTimer(ts.key[:0], &t)
	return ts.txn.Delete(ts.key)
}

// fire reports whether a timer that was proposed is there and due, and removes it. Otherwise the proposal is dropped.
func (ts *timers) fire(t keyspace.TimerKey) (bool, error) {
	ts.key = keyspace.AppendTimer(ts.key[:0], &t)
	_, ok, err := ts.txn.Get(ts.key)
	if err != nil {
		return false, err
	}
	if !ok {
		ts.dropped++
		return false, nil
	}
	if ts.now < t.FireAtMs && !mutant.Is(mutant.TimerEarly) {
		ts.dropped++
		ts.out.add(ActTimer).Timer = t // the clock was set back while it was proposed: it has to be proposed again
		return false, nil
	}
	return true, ts.txn.Delete(ts.key)
}
