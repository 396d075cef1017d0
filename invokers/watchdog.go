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
// While invocations wait for a slot, silence for crowdedInactivity is enough to half-close. Otherwise invocations that wait for
// what they called, which waits for their slots, would all stand still for the inactivity timeout. The abort timeout does
// not begin earlier for that: a service that works is not to be broken off because others wait.
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
	limit time.Duration // of silence, in the current stage
	abort time.Duration
	broke bool
}

// crowdedInactivity is long enough for answers of services that are not waiting for anything else.
const crowdedInactivity = time.Second

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
	w.timer = time.AfterFunc(w.pauseLocked(0), w.fire)
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
		w.timer.Reset(w.pauseLocked(0))
		return
	}
	silent := time.Since(w.epoch) - time.Duration(w.last.Load())
	if w.stage == idleStage && (silent >= w.limit || silent >= crowdedInactivity && w.a.pool.slots.queued.Load() > 0) {
		w.halfCloseLocked(max(w.limit-silent, 0))
		return
	}
	if silent < w.limit {
		w.timer.Reset(w.pauseLocked(silent))
		return
	}
	w.broke = w.stage == abortStage
	w.stage = stopped
	w.a.send.cancelStream()
}

// pauseLocked is when to look again after so much silence.
func (w *watchdog) pauseLocked(silent time.Duration) time.Duration {
	if rest := w.limit - silent; w.stage != idleStage || rest < crowdedInactivity {
		return rest
	}
	return crowdedInactivity
}

// halfClose asks the service to suspend, without waiting for silence.
func (w *watchdog) halfClose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.timer == nil && w.stage == 0:
		w.stage = abortStage // before start
	case w.stage == idleStage:
		w.halfCloseLocked(0)
	}
}

// halfCloseLocked asks the service to suspend, earlier than its silence is a reason to.
func (w *watchdog) halfCloseLocked(early time.Duration) {
	w.stage, w.limit = abortStage, w.abort+early
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
