package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestGarbageIsInProportionToWhatACollectionCosts(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		live, scanned uint64
		want          int
	}{
		"nothing known":          {0, 0, 100},
		"small heap":             {20 * mib, 10 * mib, 100},
		"buffers without end":    {2048 * mib, 30 * mib, 20},
		"buffers":                {160 * mib, 30 * mib, 40},
		"pointers":               {200 * mib, 150 * mib, 75},
		"nothing but pointers":   {900 * mib, 900 * mib, 100},
		"more scanned than live": {100 * mib, 120 * mib, 100}, // stacks and globals are scanned as well
	} {
		if got := gcPercent(c.live, c.scanned); got != c.want {
			t.Errorf("%s: %d %%, want %d", name, got, c.want)
		}
	}
}

func TestThePaceOfTheCollectorIsRestored(t *testing.T) {
	runtime.GC()
	samples := heapSamples()
	metrics.Read(samples)
	for _, s := range samples {
		if s.Value.Kind() != metrics.KindUint64 || s.Value.Uint64() == 0 {
			t.Errorf("%s: kind %d: this Go does not tell it", s.Name, s.Value.Kind())
		}
	}
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	paceGarbage()()
	if got := debug.SetGCPercent(77); got != 77 {
		t.Errorf("%d %% afterwards, want 77", got)
	}
}
