// Command sim runs seeds through the simulator: for a time, for a number of simulated hours, a single one
// again, or all mutants. It exits with 1 when a promise was broken or a mutant survived.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"time"

	"perdure/integration/sim"
)

func main() {
	if !run() {
		os.Exit(1)
	}
}

func run() (ok bool) {
	var (
		world   = flag.String("world", "all", "what to simulate: log, core, pebble or all")
		seed    = flag.Uint64("seed", 0, "run this seed only, and shrink it when it fails")
		base    = flag.Uint64("base", uint64(time.Now().UnixNano()), "first seed")
		budget  = flag.Duration("for", time.Minute, "real time, of all worlds together; per mutant and base with -mutants")
		hours   = flag.Float64("hours", 0, "simulated hours, of all worlds together, instead of real time")
		length  = flag.Duration("length", 0, "simulated time per seed; 0: as long as the world's seeds usually are")
		workers = flag.Int("workers", 1, "seeds at a time")
		mutants = flag.Bool("mutants", false, "look for each mutant, twice; needs a build with -tags mutants")
		only    = flag.String("mutant", "", "look for this mutant only, or run -seed with it")
		track   = flag.Bool("track", false, "run the seeds of the track record")
	)
	profile := flag.String("cpuprofile", "", "write a profile of the processor time to this file")
	flag.Parse()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // a world is a few megabytes that live and much garbage
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		defer pprof.StopCPUProfile()
	}
	if *only != "" {
		if err := sim.Mutate(*only); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	switch {
	case *seed != 0:
		ok = sim.Replay(os.Stdout, sim.WorldOf(*world, *seed, *length))
	case *mutants:
		ok = sim.HuntMutants(os.Stdout, *only, *base, *budget, *workers)
	case *track:
		ok = sim.RunTrack(os.Stdout)
	default:
		ok = sim.Campaign(os.Stdout, *world, *base, *budget, *hours, *length, *workers)
	}
	return ok
}
