package sim

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/mutant"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A few seeds of each world in every test run; make sim runs them by the thousand.
func TestSimulation(t *testing.T) {
	for world, length := range map[string]time.Duration{"log": 2 * time.Minute, "core": 40 * time.Second, "pebble": 20 * time.Second} {
		t.Run(world, func(t *testing.T) {
			base := rand.Uint64N(1 << 40)
			acknowledged, faults := uint64(0), uint64(0)
			for seed := base; seed < base+6 || (acknowledged == 0 || faults == 0) && seed < base+100; seed++ { // a seed may have no faults
				r := Run(WorldOf(world, seed, length))
				if r.Failure != nil {
					t.Fatalf("seed %d (%s): %v\n%s", seed, r.Config, r.Failure, r.Trace)
				}
				acknowledged += r.Acknowledged
				faults += r.Faults
			}
			t.Logf("seeds from %d: %d acknowledged, %d faults", base, acknowledged, faults)
			if acknowledged == 0 || faults == 0 {
				t.Errorf("seeds from %d: the simulation did nothing: %d acknowledged, %d faults", base, acknowledged, faults)
			}
		})
	}
}

// The same seed is the same run, or no failure could be replayed.
func TestReplay(t *testing.T) {
	for _, world := range []string{"log", "core", "pebble"} {
		for range 2 {
			o := WorldOf(world, rand.Uint64N(1<<40), 30*time.Second)
			a, b := Run(o), Run(o)
			if a.Hash != b.Hash || a.Events != b.Events {
				t.Errorf("world %s seed %d: traces %016x and %016x, %d and %d events", world, o.Seed, a.Hash, b.Hash, a.Events, b.Events)
			}
		}
	}
}

// A different seed is a different run, or the hash would say nothing.
func TestTracesDiffer(t *testing.T) {
	if a, b := Run(WorldOf("log", 1, time.Minute)), Run(WorldOf("log", 2, time.Minute)); a.Hash == b.Hash {
		t.Errorf("seeds 1 and 2 have the same trace %016x", a.Hash)
	}
}

// A broken promise ends the run with its name, its seed and the last events, and is shrunk to the faults it needs.
func TestFailuresAreToldAndShrunk(t *testing.T) {
	o := WorldOf("log", 5, time.Minute)
	o.broken = func(w *world) {
		w.after(20*time.Second, func() {
			if w.cfg.has(Crash) {
				violated("test", "a promise that does not hold with crashes")
			}
		})
	}
	for !draw(newEngine(o.Seed), o).faults.with(Crash) {
		o.Seed++
	}
	r := Run(o)
	if r.Failure == nil || r.Failure.Check != "test" || r.Seed != o.Seed || !strings.Contains(r.Trace, "start") {
		t.Fatalf("failure %v, seed %d, trace %q", r.Failure, r.Seed, r.Trace)
	}
	small, again := Shrink(o, r)
	if small.Without.with(Crash) || small.Without|Crash != AllFaults || again.Failure == nil {
		t.Errorf("shrunk to without %v; the failure needs crashes and nothing else", small.Without)
	}
	var out bytes.Buffer
	report(&out, o, r)
	if !strings.Contains(out.String(), "shrunk") || !strings.Contains(out.String(), "a promise that does not hold") {
		t.Errorf("the report says %q", out.String())
	}
}

// The failure of an invocation that gives up can be lost with its leader, and what it calls then has to run: only what an
// operator has terminated takes along what it called.
func TestWhatGivesUpTakesNothingAlong(t *testing.T) {
	id := func(n byte) (id ident.InvocationID) { id[0] = n; return id }
	op := newOperators(nil)
	op.gaveUp[id(1)] = true
	op.know(id(1), id(2))
	if !op.mayFail(id(1)) || op.mayFail(id(2)) {
		t.Errorf("who gave up may fail: %v, its callee: %v", op.mayFail(id(1)), op.mayFail(id(2)))
	}
	op.terminate(id(1))
	op.know(id(1), id(3))
	if !op.mayFail(id(2)) || !op.mayFail(id(3)) {
		t.Errorf("callees of who was terminated may fail: %v and %v", op.mayFail(id(2)), op.mayFail(id(3)))
	}
}

// Events run in the order of their times, and those of one time in the order in which they were scheduled.
func TestEventsRunInOrder(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	e := newEngine(1)
	type planned struct {
		at     time.Duration
		number int
	}
	var plan, ran []planned
	var add func()
	add = func() {
		d := time.Duration(rng.IntN(20))
		p := planned{e.now + d, len(plan)}
		plan = append(plan, p)
		e.after(d, func() {
			ran = append(ran, p)
			if e.now != p.at {
				t.Errorf("seed %d: event %d of %d runs at %d", seed, p.number, p.at, e.now)
			}
			for range rng.IntN(3) {
				if len(plan) < 5000 {
					add()
				}
			}
		})
	}
	for range 100 {
		add()
	}
	for e.step(1 << 40) {
	}
	slices.SortFunc(plan, func(a, b planned) int { return cmp.Or(cmp.Compare(a.at, b.at), a.number-b.number) })
	if !slices.Equal(plan, ran) {
		t.Errorf("seed %d: %d events were planned and %d ran, not in order or not all", seed, len(plan), len(ran))
	}
	if len(e.free) != len(e.slots) {
		t.Errorf("seed %d: %d of %d slots are free in the end", seed, len(e.free), len(e.slots))
	}
}

// An answer reaches only the life of a process that asked, however far the answer has come when that ends.
func TestAnswersAreForTheLifeThatAsked(t *testing.T) {
	for name, ask := range map[string]func(w *world, asker *node, answered func()){
		"another node": func(w *world, asker *node, answered func()) {
			asker.Call(2, &logserver.InfoRequest{}, func(transport.Message, error) { answered() })
		},
		"the metadata": func(w *world, asker *node, answered func()) {
			w.meta.get(asker, "key", func([]byte, uint64, error) { answered() })
		},
	} {
		for _, paused := range []bool{false, true} {
			for steps := range 3 { // the request arrives, the answer arrives
				w := newWorld(WorldOf("log", 1, 0))
				w.quiet = true
				begin := func(n *node) { // without what a process does on its own
					n.life++
					n.up, n.paused, n.stalled, n.loglets = true, false, nil, map[cluster.LogletID]*logserver.Loglet{}
				}
				for _, n := range w.nodes {
					begin(n)
				}
				asker, answered, over := w.nodes[0], false, false
				ask(w, asker, func() {
					if answered = true; over {
						t.Errorf("%s, paused %v: after %d events the process began its next life, which got the answer", name, paused, steps)
					}
				})
				if paused {
					asker.pause()
				}
				for range steps {
					w.step(time.Hour)
				}
				over = true
				asker.stop()
				begin(asker)
				for w.step(time.Hour) {
				}
				if want := steps == 2 && !paused; answered != want {
					t.Errorf("%s, paused %v: after %d events answered: %v", name, paused, steps, answered)
				}
			}
		}
	}
}

func TestMutantsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for k := mutant.None; k < mutant.Kinds; k++ {
		if name := k.String(); name == "" || name == "unknown mutant" || seen[name] {
			t.Errorf("mutant %d has the name %q", k, name)
		} else {
			seen[name] = true
		}
	}
	if !mutant.Compiled && mutant.Is(mutant.AckBeforeSync) {
		t.Error("a build without mutants has one")
	}
}
