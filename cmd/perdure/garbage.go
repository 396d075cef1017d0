package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The static binary has Pebble's write buffers and block caches on Go's heap, a hundred megabytes and more that live long
// and hold no pointers. By Go's default as much garbage again may pile up before it is collected, and a node that has
// nothing to do keeps it: nothing is allocated, so nothing is collected. paceGarbage allows garbage in proportion to what a
// collection costs instead, to the memory that it has to look through, and gives memory back when the node falls idle.

const (
	minGarbage     = 64 << 20 // bytes that may always pile up between two collections
	minGCPercent   = 20
	maxGCPercent   = 100 // Go's default
	gcPaceInterval = time.Second

	idleAllocation = 1 << 20  // a node that allocates fewer bytes than this in an interval is idle
	idleGarbage    = 16 << 20 // bytes that an idle node may have allocated since it gave memory back
)

// heap is what the runtime tells about it, in bytes.
type heap struct {
	live      uint64 // what was reachable at the last collection
	scanned   uint64 // what of it can hold pointers, and stacks and globals
	allocated uint64 // since the process began
}

// heapSamples are read into a heap by readHeap.
func heapSamples() []metrics.Sample {
	return []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/total:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
}

func readHeap(s []metrics.Sample) heap {
	metrics.Read(s)
	return heap{live: s[0].Value.Uint64(), scanned: s[1].Value.Uint64(), allocated: s[2].Value.Uint64()}
}

// gcPercent is how much the heap may grow beyond what lives, in percent.
func (h heap) gcPercent() int {
	if h.live == 0 {
		return maxGCPercent
	}
	return int(min(max(100*max(minGarbage, h.scanned)/h.live, minGCPercent), maxGCPercent))
}

// idle says whether the node did next to nothing since the interval began at last, and enough to leave garbage behind since
// it gave memory back. Both are counts of bytes allocated since the process began.
func (h heap) idle(last, givenBack uint64) bool {
	return h.allocated-last < idleAllocation && h.allocated-givenBack >= idleGarbage
}

// paceGarbage sets the collector's percentage again and again, and returns memory to the system, until stop is called, which
// waits for its end and restores what was set before.
func paceGarbage() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(gcPaceInterval)
		defer tick.Stop()
		samples := heapSamples()
		last, givenBack := readHeap(samples).allocated, uint64(0)
		now := maxGCPercent
		before := debug.SetGCPercent(now)
		defer func() { debug.SetGCPercent(before) }()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			h := readHeap(samples)
			if h.idle(last, givenBack) {
				runtime.GC() // the first of two: buffers in pools live until the second
				debug.FreeOSMemory()
				h = readHeap(samples)
				givenBack = h.allocated
			}
			last = h.allocated
			// Setting it stops the world for a moment, so small changes are not worth it.
			if p := h.gcPercent(); p < now*9/10 || p > now*11/10 {
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
