package model

import (
	"flag"
	"math/rand/v2"
	"testing"
)

var (
	seed     = flag.Uint64("model.seed", 0, "seed of the programs (0: a new one)")
	programs = flag.Int("model.n", defaultPrograms, "how many programs TestPrograms runs; TestProgramsWithKills runs a third")
	only     = flag.Int("model.only", -1, "run this program only")
)

func theSeed(t *testing.T) uint64 {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d (repeat with -model.seed=%d)", s, s)
	return s
}

// TestReference runs programs in the reference: none gets stuck, and each has the same outcome again.
func TestReference(t *testing.T) {
	s := theSeed(t)
	for n := range *programs {
		want := outcome(t, s, n, NoFault)
		if d := Compare(want, outcome(t, s, n, NoFault), true); len(d) > 0 {
			t.Fatalf("program %d has two outcomes: %v", n, d)
		}
	}
}

func outcome(t *testing.T, seed uint64, n int, f Fault) *Outcome {
	t.Helper()
	o, err := Reference(Generate(seed, n), f)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return o
}

// TestFaults has each fault noticed within a few hundred programs.
func TestFaults(t *testing.T) {
	s := theSeed(t)
	for f := NoFault + 1; f < Faults; f++ {
		noticed := 0
		for n := range 250 {
			if len(Compare(outcome(t, s, n, NoFault), outcome(t, s, n, f), true)) > 0 {
				noticed++
			}
		}
		t.Logf("fault %d shows in %d of 250 programs", f, noticed)
		if noticed == 0 {
			t.Errorf("fault %d is not noticed", f)
		}
	}
}
