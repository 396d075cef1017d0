package main

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The static binary has Pebble's write buffers and block caches on Go's heap, a hundred megabytes and more that live long
// and hold no pointers. By Go's default as much garbage again may pile up before it is collected. paceGarbage allows
// garbage in proportion to what a collection costs instead: to the memory that it has to look through.

const (
	minGarbage     = 64 << 20 // bytes that may always pile up between two collections
	minGCPercent   = 20
	maxGCPercent   = 100 // Go's default
	gcPaceInterval = time.Second
)

// gcPercent is how much the heap may grow beyond what lives, in percent. live and scanned are in bytes, as of the last
// collection: what was reachable, and what of it can hold pointers.
func gcPercent(live, scanned uint64) int {
	if live == 0 {
		return maxGCPercent
	}
	return int(min(max(100*max(minGarbage, scanned)/live, minGCPercent), maxGCPercent))
}

// heapSamples reads live and scanned, in this order.
func heapSamples() []metrics.Sample {
	return []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/total:bytes"}}
}

// paceGarbage sets the collector's percentage again and again until stop is called, which waits for its end and restores
// what was set before.
func paceGarbage() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(gcPaceInterval)
		defer tick.Stop()
		samples := heapSamples()
		now := maxGCPercent
		before := debug.SetGCPercent(now)
		defer func() { debug.SetGCPercent(before) }()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			metrics.Read(samples)
			// Setting it stops the world for a moment, so small changes are not worth it.
			if p := gcPercent(samples[0].Value.Uint64(), samples[1].Value.Uint64()); p < now*9/10 || p > now*11/10 {
				debug.SetGCPercent(p)
				now = p
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
