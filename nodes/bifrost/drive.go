package bifrost

import (
	"context"
	"fmt"
	"sync"
	"time"

	"perdure/nodes/loglet"
)

// slowAfter is when the operator is told that the log servers of a segment keep somebody waiting; again after twice the
// time, and so on.
const slowAfter = 10 * time.Second

// drive runs a machine on a segment's log servers. Without enough of them it does not end before ctx, and the log can not be
// written, or read to its end: the operator is told.
func (l *logState) drive(ctx context.Context, seg *segment, what string, m loglet.Machine) error {
	w := &slowWarning{log: l, seg: seg, what: what}
	w.start()
	err := loglet.Run(ctx, l.b.cfg.Net, l.b.cfg.Clock, m)
	if waited := w.stop(); waited > 0 && err == nil {
		l.b.cfg.Logger.Info("log servers have answered", "loglet", seg.id.String(), "doing", what)
	}
	if err != nil {
		return fmt.Errorf("%s loglet %s: %w", what, seg.id, err)
	}
	return nil
}

// slowWarning is the timer of one drive.
type slowWarning struct {
	log  *logState
	seg  *segment
	what string

	mu     sync.Mutex
	timer  loglet.Timer  // nil when stopped
	waited time.Duration // as told to the operator
}

func (w *slowWarning) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armLocked(slowAfter)
}

// armLocked tells the operator when it has taken d in all.
func (w *slowWarning) armLocked(d time.Duration) {
	w.timer = w.log.b.cfg.Clock.AfterFunc(d-w.waited, func() { w.fire(d) })
}

func (w *slowWarning) fire(waited time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		return
	}
	w.waited = waited
	w.armLocked(2 * waited)
	nodes := make([]string, w.seg.quorum.Size())
	for i := range nodes {
		nodes[i] = w.seg.quorum.Node(i).String()
	}
	w.log.b.cfg.Logger.Warn("waiting for log servers; the log is stuck until enough of them answer",
		"loglet", w.seg.id.String(), "doing", w.what, "node_set", nodes, "waited", waited)
}

// stop ends the warnings and returns for how long the operator knows of the wait.
func (w *slowWarning) stop() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.timer = nil
	return w.waited
}
