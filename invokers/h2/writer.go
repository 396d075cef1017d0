package h2

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"golang.org/x/net/http2"

	"perdure/invokers/transport"
)

// writer sends what streams and the reader have queued, and keeps the connection alive. All fields belong to its
// goroutine.
type writer struct {
	c     *conn
	spare []byte // swapped with conn.mu.out

	timer *time.Timer
	asked time.Time // when the PING was sent that waits for an answer
}

// writeLoop runs until the connection has ended and its last frames are out.
func (c *conn) writeLoop() {
	w := &writer{c: c}
	w.timer = time.NewTimer(w.interval())
	defer w.timer.Stop()
	defer c.pool.client.disown(c)
	for {
		batch, over := w.next()
		if len(batch) > 0 {
			w.send(batch, over)
		}
		if over {
			_ = c.nc.Close() // c.mu.err says why; there is nobody to tell more
			return
		}
		w.spare = batch
	}
}

// next waits for frames to send. over says that these are the last ones.
func (w *writer) next() (batch []byte, over bool) {
	c := w.c
	for {
		c.mu.Lock()
		if len(c.mu.out) > 0 || c.mu.err != nil {
			batch, over = w.takeLocked(), c.mu.err != nil
			c.mu.Unlock()
			return batch, over
		}
		c.mu.quiet = true
		c.mu.Unlock()
		w.wait()
	}
}

func (w *writer) wait() {
	select {
	case <-w.c.wake:
		// Let the goroutines that are about to queue frames do so first: one system call costs as much
		// as several exchanges.
		runtime.Gosched()
	case <-w.timer.C:
		w.tick()
	case <-w.c.done:
	}
}

func (w *writer) takeLocked() []byte {
	c := w.c
	batch := c.mu.out
	c.mu.out = w.spare[:0]
	w.spare = nil
	c.mu.batch++
	c.mu.control = 0
	c.mu.quiet = false
	c.mu.handed = c.mu.nextID
	c.unblockLocked()
	return batch
}

func (w *writer) send(batch []byte, last bool) {
	patience := w.c.cfg.KeepAliveTimeout
	if last {
		patience = goAwayPatience
	}
	_ = w.c.nc.SetWriteDeadline(time.Now().Add(patience)) // fails only on a closed connection, as Write will
	n, err := w.c.nc.Write(batch)
	w.c.metrics.bytesSent.Add(float64(n))
	w.c.metrics.writes.Inc()
	if err != nil {
		w.failed(err)
	}
}

// failed ends the connection after a write that failed. The peer may have told why it hung up, and which exchanges it
// has not processed, so the reader has a moment to find that first.
func (w *writer) failed(err error) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		moment := time.NewTimer(goAwayPatience)
		defer moment.Stop()
		select {
		case <-w.c.done:
		case <-moment.C:
		}
	}
	w.c.fail(transport.Reset, fmt.Errorf("write to the connection: %w", err))
}

// interval is how long the connection may be silent.
func (w *writer) interval() time.Duration {
	return w.c.cfg.KeepAliveInterval + rand.N(w.c.cfg.KeepAliveInterval/5+1)
}

// shrink gives large buffers back; after a burst they are not needed for long.
func (w *writer) shrink() {
	if cap(w.spare) > keepBuffer {
		w.spare = nil
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if len(w.c.mu.out) == 0 && cap(w.c.mu.out) > keepBuffer {
		w.c.mu.out = nil
	}
}

// tick asks a silent connection for a sign of life, and closes one that is dead or that nobody uses.
func (w *writer) tick() {
	w.shrink()
	c, now := w.c, time.Now()
	heard := c.born.Add(time.Duration(c.heard.Load()))
	silent := now.Sub(heard)
	asked := w.asked
	w.asked = time.Time{}
	switch interval := w.interval(); {
	case !asked.IsZero() && heard.Before(asked):
		c.fail(transport.Timeout, fmt.Errorf("no answer to a ping within %v", c.cfg.KeepAliveTimeout))
	case c.pool.retire(c, now.Add(-c.cfg.IdleTimeout)):
		c.goAway(transport.NotProcessed, http2.ErrCodeNo, errIdle)
	case silent < c.cfg.KeepAliveInterval:
		w.timer.Reset(interval - silent)
	default:
		w.asked = now
		w.timer.Reset(c.cfg.KeepAliveTimeout)
		c.mu.Lock()
		c.mu.out = append(appendFrameHeader(c.mu.out, 8, http2.FramePing, 0, 0), make([]byte, 8)...)
		c.mu.Unlock()
	}
}
