package invokers

import (
	"sync"
	"sync/atomic"
	"time"
)

// watchdog limits how long an attempt may be silent. It has three stages: while both sides are open, silence
// for the inactivity timeout half-closes the request, which asks the service to suspend; after that, silence
// for the abort timeout breaks the exchange off; after the last message, the drain timeout does. Only whole
// frames count as life: an endless trickle of bytes is silence. While the log takes nothing, no frame is received, and
// that is not the service's silence.
//
// The timer is not moved with each frame. It looks when it fires, and sets itself again for the rest.
type watchdog struct {
	a    *attempt
	last atomic.Int64 // time of the last frame, ns since epoch
	deaf atomic.Bool  // the attempt proposes and does not read

	mu    sync.Mutex
	epoch time.Time
	timer *time.Timer
	stage stage
	limit time.Duration // of the current stage
	abort time.Duration
	broke bool
}

type stage uint8

const (
	idleStage stage = iota + 1 // both sides open
	abortStage
	drainStage
	stopped
)

// start begins to watch. half says that the request body is ended at once.
func (w *watchdog) start(inactivity, abort time.Duration, half bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.epoch, w.abort = time.Now(), abort
	asked := w.stage == abortStage // halfClose came first
	w.stage, w.limit = idleStage, inactivity
	if half || asked {
		w.stage, w.limit = abortStage, abort
	}
	w.timer = time.AfterFunc(w.limit, w.fire)
	if asked && !half {
		w.a.send.halfClose()
	}
}

// touch notes a frame in either direction.
func (w *watchdog) touch() { w.last.Store(int64(time.Since(w.epoch))) }

// proposes says that the attempt begins to propose, or that it reads again.
func (w *watchdog) proposes(on bool) {
	if !on {
		w.touch()
	}
	w.deaf.Store(on)
}

func (w *watchdog) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage == stopped {
		return
	}
	if w.deaf.Load() {
		w.timer.Reset(w.limit)
		return
	}
	if silent := time.Since(w.epoch) - time.Duration(w.last.Load()); silent < w.limit {
		w.timer.Reset(w.limit - silent)
		return
	}
	if w.stage == idleStage {
		w.halfCloseLocked()
		return
	}
	w.broke = w.stage == abortStage
	w.stage = stopped
	w.a.send.cancelStream()
}

// halfClose asks the service to suspend, without waiting for silence.
func (w *watchdog) halfClose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.timer == nil && w.stage == 0:
		w.stage = abortStage // before start
	case w.stage == idleStage:
		w.halfCloseLocked()
	}
}

func (w *watchdog) halfCloseLocked() {
	w.stage, w.limit = abortStage, w.abort
	w.last.Store(int64(time.Since(w.epoch)))
	w.timer.Reset(w.limit)
	w.a.send.halfClose()
}

// drain gives the end of the response a last time limit.
func (w *watchdog) drain(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage == stopped || w.timer == nil {
		return
	}
	w.stage, w.limit = drainStage, limit
	w.last.Store(int64(time.Since(w.epoch)))
	w.timer.Reset(limit)
}

// aborted reports whether the abort timeout broke the exchange off.
func (w *watchdog) aborted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broke
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stage = stopped
	if w.timer != nil {
		w.timer.Stop()
	}
}
