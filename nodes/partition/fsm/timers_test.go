package fsm

import (
	"math/rand/v2"
	"testing"

	"perdure/nodes/partition/store/keyspace"
)

// Whatever is set, taken back and proposed, also by a clock that is set back: a timer fires once, not before its time and not when it
// was taken back, and one that was proposed too early is announced again.
func TestTimersFireOnceWhenDue(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	ts := &timers{s}
	model := map[keyspace.TimerKey]bool{}
	var known []keyspace.TimerKey // also those that are gone
	for i := range 10000 {
		s.now += rng.Uint64N(7) - 2
		s.out.Reset()
		before := s.dropped
		k := keyspace.TimerKey{
			FireAtMs: s.now + rng.Uint64N(20), Kind: []keyspace.TimerKind{keyspace.TimerSleep, keyspace.TimerInvoke}[rng.IntN(2)],
			ID: idFor(service("A"), rng.IntN(3)), CompletionID: rng.Uint32N(3),
		}
		if n := rng.IntN(20); len(known) > 0 && n < 18 {
			k = known[len(known)-1-rng.IntN(min(len(known), 16))]
			k.CompletionID += uint32(n / 17) // perhaps one that was never set
		}
		want := Kind(0) // of the only action
		var err error
		switch n := rng.IntN(10); {
		case n < 4:
			err = ts.set(k)
			model[k], known, want = true, append(known, k), ActTimer
		case n < 6 && model[k]:
			err = ts.takeBack(k)
			delete(model, k)
			want = ActTimerDeleted
		default:
			due := model[k] && s.now >= k.FireAtMs
			if model[k] && !due {
				want = ActTimer
			}
			var fired bool
			if fired, err = ts.fire(k); fired != due || s.dropped > before == due {
				t.Fatalf("seed %d, step %d: timer %+v fired at %d: %v, want %v; %d were dropped", seed, i, k, s.now, fired, due, s.dropped-before)
			}
			if due {
				delete(model, k)
			}
		}
		if err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, i, err)
		}
		if as := s.out.List; len(as) > 1 || (len(as) == 1) != (want != 0) || len(as) == 1 && (as[0].Kind != want || as[0].Timer != k) {
			t.Fatalf("seed %d, step %d: %+v, want %q for %+v", seed, i, as, want, k)
		}
		if _, ok := txn.rows[string(keyspace.AppendTimer(nil, &k))]; ok != model[k] || len(txn.rows) != len(model) {
			t.Fatalf("seed %d, step %d: %+v has a row: %v, want %v; %d rows, want %d", seed, i, k, ok, model[k], len(txn.rows), len(model))
		}
	}
}
