package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
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
		if got := (heap{live: c.live, scanned: c.scanned}).gcPercent(); got != c.want {
			t.Errorf("%s: %d %%, want %d", name, got, c.want)
		}
	}
}

func TestOnlyAnIdleNodeGivesMemoryBack(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		allocated, last, givenBack uint64
		want                       bool
	}{
		"busy":                    {5001 * mib, 5000 * mib, 0, false},
		"idle after work":         {5001*mib - 1, 5000 * mib, 4000 * mib, true},
		"idle for longer":         {5000 * mib, 5000 * mib, 4985 * mib, false},
		"idle since it began":     {10 * mib, 10 * mib, 0, false},
		"a trickle that piles up": {5000 * mib, 5000*mib - 1, 4984 * mib, true},
	} {
		if got := (heap{allocated: c.allocated}).idle(c.last, c.givenBack); got != c.want {
			t.Errorf("%s: gives back: %t", name, got)
		}
	}
}

func TestAnIdleNodeIsAsSmallAsItCanBe(t *testing.T) {
	held := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	resident := func() uint64 {
		metrics.Read(held)
		return held[0].Value.Uint64() + held[1].Value.Uint64()
	}
	waste(64 << 20)
	full := resident()
	defer paceGarbage()()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); resident()+48<<20 > full; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("held %d bytes at first, now %d", full, resident())
		}
	}
}

// waste leaves n bytes of garbage behind.
func waste(n int) {
	b := make([]byte, n)
	for i := range b {
		b[i] = 1
	}
	runtime.KeepAlive(b)
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
