package sim

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"perdure/control/mutant"
)

// worlds are the kinds of runs, with their shares of the real time and of the simulated hours of a campaign
// over all of them.
var worlds = []struct {
	name        string
	time, hours float64
}{{"log", 0.3, 0.9}, {"core", 0.55, 0.08}, {"pebble", 0.15, 0.02}}

// WorldOf are the options of a seed in a world. length 0 takes the usual one.
func WorldOf(world string, seed uint64, length time.Duration) Options {
	o := Options{Seed: seed, Length: length, Core: world == "core", Pebble: world == "pebble"}
	if o.Length == 0 {
		o.Length = map[string]time.Duration{"log": 20 * time.Minute, "core": 5 * time.Minute, "pebble": 2 * time.Minute}[world]
	}
	return o
}

// sum is what the runs of a campaign come to.
type sum struct {
	mu        sync.Mutex
	seeds     int
	simulated time.Duration
	Result
	failed []Result
}

func (s *sum) add(r Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seeds++
	s.simulated += r.Simulated
	s.Events += r.Events
	s.Acknowledged += r.Acknowledged
	s.Delivered += r.Delivered
	s.Reconfigurations += r.Reconfigurations
	s.Faults += r.Faults
	s.Invocations += r.Invocations
	s.Mismatches += r.Mismatches
	s.Orders += r.Orders
	s.Trims += r.Trims
	if r.Failure != nil {
		s.failed = append(s.failed, r)
	}
}

// Campaign runs seeds of one world, or of all, for a real time or until so many hours are simulated. It
// prints its figures, and every failure shrunk; it returns whether there was none.
func Campaign(out io.Writer, world string, base uint64, budget time.Duration, hours float64, length time.Duration, workers int) bool {
	if world == "all" {
		ok := true
		for _, w := range worlds {
			ok = Campaign(out, w.name, base, time.Duration(w.time*float64(budget)), w.hours*hours, length, workers) && ok
		}
		return ok
	}
	fmt.Fprintf(out, "== world %s, seeds from %d\n", world, base)
	used := cpuTime()
	s := runSeeds(world, base, length, workers, func(s *sum, began time.Time) bool {
		if hours > 0 {
			return s.simulated.Hours() >= hours || len(s.failed) > 0
		}
		return time.Since(began) >= budget || len(s.failed) > 0
	})
	used = cpuTime() - used
	for _, r := range s.failed {
		report(out, WorldOf(world, r.Seed, length), r)
	}
	perMinute := s.simulated.Hours() / used.Minutes()
	fmt.Fprintf(out, "world %s: %d seeds, %.1f simulated hours, %.1f hours a minute of processor time, %d events, %d acknowledged appends, %d delivered, %d invocations, %d operators' orders, %d journal mismatches, %d segments, %d trims, %d faults, %d failures\n",
		world, s.seeds, s.simulated.Hours(), perMinute, s.Events, s.Acknowledged, s.Delivered, s.Invocations, s.Orders, s.Mismatches, s.Reconfigurations, s.Trims, s.Faults, len(s.failed))
	return len(s.failed) == 0
}

// cpuTime is the processor time that the process has used: on a busy machine the measure of what a core does.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // it can not fail for the own process
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// runSeeds runs seeds until enough says so.
func runSeeds(world string, base uint64, length time.Duration, workers int, enough func(*sum, time.Time) bool) *sum {
	s := &sum{}
	began := time.Now()
	var next sync.Mutex
	seed := base
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				next.Lock()
				s.mu.Lock()
				over := enough(s, began)
				s.mu.Unlock()
				mine := seed
				seed++
				next.Unlock()
				if over {
					return
				}
				s.add(Run(WorldOf(world, mine, length)))
			}
		})
	}
	wg.Wait()
	return s
}

func report(out io.Writer, o Options, r Result) {
	fmt.Fprintf(out, "FAILED seed %d: %v\n  %s\n", r.Seed, r.Failure, r.Config)
	small, shrunk := Shrink(o, r)
	fmt.Fprintf(out, "shrunk by switching off %v:\n  %s\n%slast: %v at %v\n", small.Without, shrunk.Config, shrunk.Trace, shrunk.Failure, shrunk.Simulated)
}

// Replay runs one seed twice, compares the hashes of the traces, and prints what happened.
func Replay(out io.Writer, o Options) bool {
	a, b := Run(o), Run(o)
	if a.Hash != b.Hash {
		fmt.Fprintf(out, "seed %d is not deterministic: trace %016x and %016x\n", o.Seed, a.Hash, b.Hash)
		return false
	}
	if a.Failure != nil {
		report(out, o, a)
		return false
	}
	fmt.Fprintf(out, "seed %d: trace %016x, %v simulated, %d events, %d acknowledged, %d delivered, %d invocations, %d operators' orders, %d journal mismatches, %d segments, %d trims, %d faults\n  %s\n",
		o.Seed, a.Hash, a.Simulated, a.Events, a.Acknowledged, a.Delivered, a.Invocations, a.Orders, a.Mismatches, a.Reconfigurations, a.Trims, a.Faults, a.Config)
	return true
}

// Mutate switches a mutant on by its name.
func Mutate(name string) error {
	if !mutant.Compiled {
		return errors.New("this build has no mutants: build with -tags mutants")
	}
	for k := mutant.None; k < mutant.Kinds; k++ {
		if k.String() == name {
			mutant.Set(k)
			return nil
		}
	}
	return fmt.Errorf("there is no mutant %q", name)
}

// HuntMutants looks for each mutant with seeds from two bases, each time for at most the budget; it returns
// whether all were found both times, by a promise that was broken and not by a crash of the simulator.
func HuntMutants(out io.Writer, only string, base uint64, budget time.Duration, workers int) bool {
	if !mutant.Compiled {
		fmt.Fprintln(out, "this build has no mutants: build with -tags mutants")
		return false
	}
	defer mutant.Set(mutant.None)
	var survivors []string
	for k := mutant.None + 1; k < mutant.Kinds; k++ {
		if only != "" && k.String() != only {
			continue
		}
		mutant.Set(k)
		for _, b := range []uint64{base, base + 1<<40} {
			began := time.Now()
			s := runSeeds(mutantWorld(k), b, 0, workers, func(s *sum, began time.Time) bool {
				return len(s.failed) > 0 || time.Since(began) >= budget
			})
			verdict := "SURVIVED"
			if len(s.failed) > 0 {
				r := s.failed[0]
				verdict = fmt.Sprintf("caught by %q, seed %d: %s", r.Failure.Check, r.Seed, firstLine(r.Failure.What))
			} else {
				survivors = append(survivors, k.String())
			}
			fmt.Fprintf(out, "%-20s %6.1fs %6.1f simulated hours  %s\n", k, time.Since(began).Seconds(), s.simulated.Hours(), verdict)
		}
	}
	if len(survivors) > 0 {
		fmt.Fprintf(out, "SURVIVORS: %s\n", strings.Join(slices.Compact(survivors), ", "))
	}
	return len(survivors) == 0
}

// mutantWorld is where a mutant is to be found: those of the log in the fast world of logs alone, unless they are in the
// store.
func mutantWorld(k mutant.Kind) string {
	switch {
	case k == mutant.SealLossIgnored || k == mutant.TrimForgotten:
		return "pebble"
	case k <= mutant.TrimUncommitted:
		return "log"
	}
	return "core"
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
