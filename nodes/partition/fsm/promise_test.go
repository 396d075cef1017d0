package fsm

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/keyspace"
)

// modelPromise is a promise of the model: its result, or who waits for it.
type modelPromise struct {
	result  string // "" for none
	waiting []*invocationpb.Sink
}

// Whoever awaits, peeks, completes and forgets promises: only the first result counts, everybody sees it, and who waits for it is
// handed out exactly once, with the result or with the end of the workflow; nothing is left of a promise that was forgotten.
func TestPromisesAreCompletedOnce(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	ps := &promises{s}
	objects := [3]keyspace.Object{{Partition: 1, Service: "W", Key: "k"}, {Partition: 1, Service: "W", Key: "kk"}, {Partition: 2, Service: "V"}}
	names := []string{"", "p", "pp", "q"}
	var model [3]map[string]*modelPromise
	for i := range model {
		model[i] = map[string]*modelPromise{}
	}
	for i := range 20000 {
		o, m := &objects[i%3], model[i%3]
		name := names[rng.IntN(len(names))]
		p := m[name]
		if p == nil {
			p = &modelPromise{}
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, step %d, promise %q: %s", seed, i, name, fmt.Sprintf(format, args...))
		}
		switch k := rng.IntN(200); {
		case k < 150: // somebody waits, perhaps again, perhaps a completion of another number or life
			id := idFor(service("A"), rng.IntN(30))
			sink := &invocationpb.Sink{Caller: id[:], CompletionId: rng.Uint32N(2), Life: 7 + rng.Uint64N(2)}
			res, err := ps.await(o, name, sink)
			if err != nil || string(res.GetSuccess()) != p.result {
				fail("awaiting it: %v, %v, want %q", res, err, p.result)
			}
			if p.result == "" {
				m[name] = p
				if !slices.ContainsFunc(p.waiting, func(old *invocationpb.Sink) bool { return sameSink(old, sink) }) {
					p.waiting = append(p.waiting, sink)
				}
			}
		case k < 193:
			if res, err := ps.peek(o, name); err != nil || string(res.GetSuccess()) != p.result {
				fail("peeking: %v, %v, want %q", res, err, p.result)
			}
		case k < 198:
			value := fmt.Sprint("value ", i)
			waited, ok, err := ps.complete(o, name, success([]byte(value)))
			if err != nil || ok != (p.result == "") {
				fail("completing it: %v, %v; its result is %q", ok, err, p.result)
			}
			if why := p.told(waited); why != "" {
				fail("completed: %s", why)
			}
			if ok {
				m[name] = &modelPromise{result: value}
			}
		default:
			var told []string
			err := ps.forget(o, func(name string, waited []*invocationpb.Sink) error {
				told = append(told, name)
				if m[name] == nil {
					fail("%q was forgotten, nobody knew it", name)
				} else if why := m[name].told(waited); why != "" {
					fail("%q was forgotten: %s", name, why)
				}
				return nil
			})
			var want []string
			for _, name := range slices.Sorted(maps.Keys(m)) {
				if m[name].result == "" {
					want = append(want, name)
				}
			}
			if err != nil || !slices.Equal(told, want) {
				fail("the workflow is gone: %v, who waits for %q was told, want %q", err, told, want)
			}
			clear(m)
		}
		promises, more := 0, 0 // rows
		for _, m := range model {
			promises += len(m)
			for _, p := range m {
				more += max(0, len(p.waiting)-sinksInRow)
			}
		}
		rows := map[byte]int{}
		for k := range txn.rows {
			rows[k[0]]++
		}
		if len(txn.rows) != promises+more || rows[keyspace.TagPromise] != promises || rows[keyspace.TagWaiting] != more {
			fail("%v rows by table, want %d promises and %d sinks", rows, promises, more)
		}
	}
}

// told says what is wrong with the sinks that were handed out: those in the promise's row come in the order of arrival.
func (p *modelPromise) told(got []*invocationpb.Sink) string {
	if len(got) != len(p.waiting) {
		return fmt.Sprintf("%d sinks were handed out, %d wait", len(got), len(p.waiting))
	}
	first := min(len(got), sinksInRow)
	order := func(a, b *invocationpb.Sink) int { return strings.Compare(a.String(), b.String()) }
	rest, want := slices.Clone(got[first:]), slices.Clone(p.waiting[first:])
	slices.SortFunc(rest, order)
	slices.SortFunc(want, order)
	if !slices.EqualFunc(append(got[:first:first], rest...), append(p.waiting[:first:first], want...), sameSink) {
		return fmt.Sprintf("%v were handed out, %v wait", got, p.waiting)
	}
	return ""
}
