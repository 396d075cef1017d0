package fsm

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

func node(k invocationpb.Future_Combinator, completions ...uint32) *invocationpb.Future {
	return &invocationpb.Future{Combinator: k, Completions: completions}
}

func with(f *invocationpb.Future, nested ...*invocationpb.Future) *invocationpb.Future {
	f.Nested = nested
	return f
}

const (
	unknown   = invocationpb.Future_UNKNOWN
	race      = invocationpb.Future_FIRST_COMPLETED
	allDone   = invocationpb.Future_ALL_COMPLETED
	anyOK     = invocationpb.Future_FIRST_SUCCEEDED_OR_ALL_FAILED
	allOK     = invocationpb.Future_ALL_SUCCEEDED_OR_FIRST_FAILED
	stillWait = 0
)

func TestFutureResolution(t *testing.T) {
	cases := []struct {
		name string
		f    *invocationpb.Future
		// steps are completions: positive succeeds, negative fails. at is the step after which it resolves.
		steps []int
		at    int
	}{
		{"flat", node(unknown, 1, 2), []int{3, 2}, 2},
		{"race", node(race, 1, 2), []int{-2}, 1},
		{"allSettled", node(allDone, 1, 2), []int{-2, 1}, 2},
		{"any: success", node(anyOK, 1, 2, 3), []int{-2, 1}, 2},
		{"any: all fail", node(anyOK, 1, 2), []int{-2, -1}, 2},
		{"all: failure", node(allOK, 1, 2, 3), []int{1, -2}, 2},
		{"all: all succeed", node(allOK, 1, 2), []int{1, 2}, 2},
		{"all: some missing", node(allOK, 1, 2), []int{1}, stillWait},
		{"race of alls", with(node(race), node(allOK, 1, 2), node(allOK, 3, 4)), []int{1, 3, 4}, 3},
		{"all of races", with(node(allOK), node(race, 1, 2), node(race, 3, 4)), []int{2, 1, 3}, 3},
		{"all of races, one fails", with(node(allOK), node(race, 1, 2), node(race, 3, 4)), []int{-2}, 1},
		{"any of alls", with(node(anyOK), node(allOK, 1, 2), node(allOK, 3)), []int{-1, 3}, 2},
		{"any of alls fails", with(node(anyOK), node(allOK, 1, 2), node(allOK, 3)), []int{-1, -3}, 2},
		{"all with an undetermined child", with(node(allOK, 9), node(unknown, 1, 2)), []int{1}, 1},
		{"any with an undetermined child, deep", with(node(allDone, 8), with(node(anyOK, 9), node(unknown, 1))), []int{1}, 1},
		{"allSettled with an undetermined child", with(node(allDone, 9), node(unknown, 1)), []int{1, 9}, 2},
		{"unknown combinator", node(99, 1, 2), []int{2}, 1},
		{"foreign", node(race, 1), []int{7}, stillWait},
		{"the same leaf twice", with(node(allDone, 1), node(race, 1)), []int{1}, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := c.f
			for i, s := range c.steps {
				rest, done := settle(f, leaf{kind: leafCompletion, number: uint32(max(s, -s))}, verdictOf(s < 0))
				if done != (i+1 == c.at) {
					t.Fatalf("after %v: resolved %v", c.steps[:i+1], done)
				}
				if done {
					return
				}
				f = rest
			}
		})
	}
}

// referee resolves a future by the rules of the protocol, looking at all leaves each time. The order of
// the leaves decides races.
type referee struct {
	at   map[uint32]int // step at which a leaf was resolved
	fail map[uint32]bool
	wake bool
}

// resolve says at which step the future is resolved as of step now (0: not yet) and with what.
func (r *referee) resolve(f *invocationpb.Future, now int) (at int, v verdict) {
	for step := 1; step <= now; step++ {
		var ok, bad, unsure, missing int
		var first verdict
		count := func(s int, v verdict) {
			if s == 0 || s > step {
				missing++
				return
			}
			if s == step && first == isPending {
				first = v
			}
			switch v {
			case isSuccess:
				ok++
			case isFailure:
				bad++
			default:
				unsure++
			}
		}
		for _, c := range f.Completions {
			count(r.at[c], verdictOf(r.fail[c]))
		}
		for _, n := range f.Nested {
			count(r.resolve(n, step))
		}
		switch f.Combinator {
		case allDone:
			if missing == 0 {
				return step, isSuccess
			}
		case race:
			if first != isPending {
				return step, first
			}
		case anyOK, allOK:
			one, all := ok, bad
			oneV, allV := isSuccess, isFailure
			if f.Combinator == allOK {
				one, all, oneV, allV = bad, ok, isFailure, isSuccess
			}
			switch {
			case one > 0:
				return step, oneV
			case unsure > 0:
				r.wake = true
				return step, isUnsure
			case missing == 0 && all > 0:
				return step, allV
			}
		default:
			if first != isPending {
				return step, isUnsure
			}
		}
	}
	return 0, isPending
}

// Settling step by step must resolve a future at the step at which the rules do.
func TestSettlingFollowsTheRules(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var build func(depth int, next *uint32) *invocationpb.Future
	build = func(depth int, next *uint32) *invocationpb.Future {
		f := node(invocationpb.Future_Combinator(rng.IntN(5)))
		for range 1 + rng.IntN(3) {
			if depth > 0 && rng.IntN(2) == 0 {
				f.Nested = append(f.Nested, build(depth-1, next))
			} else {
				*next++
				f.Completions = append(f.Completions, *next)
			}
		}
		return f
	}
	for range 2000 {
		var n uint32
		f := build(3, &n)
		ref := &referee{at: map[uint32]int{}, fail: map[uint32]bool{}}
		rest := f
		for step, i := range rng.Perm(int(n)) {
			id := uint32(i + 1)
			ref.at[id], ref.fail[id] = step+1, rng.IntN(2) == 0
			at, _ := ref.resolve(f, step+1)
			r, done := settle(rest, leaf{kind: leafCompletion, number: id}, verdictOf(ref.fail[id]))
			if done != (at > 0 || ref.wake) {
				t.Fatalf("seed %d: %v with steps %v, failures %v: settled %v, the rules say %d (look: %v)", seed, f, ref.at, ref.fail, done, at, ref.wake)
			}
			if rest = r; done {
				break
			}
		}
	}
}

func TestSuspensionResumesOnWhatItAwaits(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.effects(id, pinned(6), callTo(service("B"), 1, 1, 2), callTo(service("B"), 2, 3, 4))
	life := w.row(id).Life
	as := w.effects(id, suspended(&invocationpb.Future{Completions: []uint32{2, 4}, Signals: []uint32{1}}))
	w.one(as, ActApplied)
	w.wantStatus(id, storepb.Invocation_SUSPENDED)
	as = w.apply(signalTo(id, 17))
	w.none(as, ActInvoke) // not listed: stored only
	w.none(as, ActNotify)
	w.wantStatus(id, storepb.Invocation_SUSPENDED)
	as = w.apply(response(id, life, 4, success(nil)))
	w.none(as, ActNotify)
	a := w.one(as, ActInvoke)
	if a.Incarnation != uint64(w.lsn) || a.Fresh != nil || a.Service != "A" || a.Deployment != ident.DeploymentID([]byte("deployment-00001")) {
		t.Fatalf("%+v", a)
	}
	w.wantStatus(id, storepb.Invocation_INVOKED)
	w.wantNotified(w.apply(response(id, life, 2, success(nil))), protocol.TypeCallCompletion, "08022a00")
}

func signalTo(id ident.InvocationID, index uint32) *recordpb.Command {
	return &recordpb.Command{Kind: &recordpb.Command_Signal{Signal: &recordpb.Signal{InvocationId: id[:], Id: &recordpb.Signal_Index{Index: index}, Result: void()}}}
}

// The completion was stored before the suspension, and the attempt had not seen it.
func TestSuspensionOnSomethingAlreadyThereRunsAgainAtOnce(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	inc := w.row(id).Incarnation
	w.effects(id, sleepUntil(1, w.now+5))
	w.now += 5
	w.apply(fire(keyspace.TimerKey{FireAtMs: w.now, Kind: keyspace.TimerSleep, ID: id, CompletionID: 1}))
	as := w.effectsOf(id, inc, suspended(node(unknown, 1)), output("after a suspension nothing counts"))
	if len(as) != 2 || as[0].Kind != ActApplied || as[1].Kind != ActInvoke || as[1].Incarnation == inc {
		t.Fatalf("actions %+v, want applied and then invoke with a new incarnation", as)
	}
	if n := len(w.journal(id)); n != 3 {
		t.Fatalf("journal of %d entries", n)
	}
}

// SDKs list the cancel signal in each suspension, also after they have been cancelled once. The signal that
// all attempts of the incarnation have seen must not wake it up over and over.
func TestSuspensionAfterACancelDoesNotSpin(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	awaiting := &invocationpb.Future{Completions: []uint32{1}, Signals: []uint32{1}}
	w.effects(id, sleepUntil(1, w.now+1000), suspended(awaiting))
	w.one(w.apply(cancel(id)), ActInvoke)
	if as := w.effects(id, suspended(awaiting)); len(ofKind(as, ActInvoke)) != 0 {
		t.Fatal("runs again for a cancel that its attempts have seen")
	}
	w.wantStatus(id, storepb.Invocation_SUSPENDED)
	w.one(w.apply(cancel(id)), ActInvoke) // the next one wakes it up
	// A cancel that arrives while the attempt is about to suspend is not lost.
	inc := w.row(id).Incarnation
	w.one(w.apply(cancel(id)), ActNotify)
	w.one(w.effectsOf(id, inc, suspended(awaiting)), ActInvoke)
}

func TestCancelDoesNotWakeWhatDoesNotListIt(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.effects(id, sleepUntil(1, w.now+1000), suspended(node(unknown, 1)))
	as := w.apply(cancel(id))
	w.wantReply(as, recordpb.Reply_ACCEPTED)
	w.none(as, ActInvoke)
	w.wantStatus(id, storepb.Invocation_SUSPENDED)
}

func TestSuspensionOnNothingPauses(t *testing.T) {
	for _, f := range []*invocationpb.Future{nil, {}, with(node(race), node(race))} {
		w := newWorld(t)
		id := w.started(request(service("A"), 1))
		w.effects(id, suspended(f))
		w.wantStatus(id, storepb.Invocation_PAUSED)
	}
}

func TestTreeSuspensionKeepsWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	id := w.started(request(service("A"), 1))
	w.effects(id, pinned(7), callTo(service("B"), 1, 1, 2), callTo(service("B"), 2, 3, 4), callTo(service("B"), 3, 5, 6))
	life := w.row(id).Life
	w.apply(response(id, life, 2, success(nil)))
	w.effects(id, suspended(with(node(race), node(allOK, 2, 4, 6), &invocationpb.Future{Signals: []uint32{1}, Combinator: race})))
	if f := w.row(id).Awaiting; len(f.Nested) != 2 || fmt.Sprint(f.Nested[0].Completions) != "[4 6]" {
		t.Fatalf("awaiting %v", f)
	}
	w.none(w.apply(response(id, life, 6, success(nil))), ActInvoke)
	w.one(w.apply(response(id, life, 4, failure(1, "x"))), ActInvoke)
	if n := w.count(keyspace.TagEvent); n != 1 {
		t.Fatalf("%d events, want that of the suspension", n)
	}
}
