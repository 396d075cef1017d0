package h2

import (
	"fmt"
	"math/rand/v2"
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

	timer  *time.Timer
	asked  bool      // a PING waits for its answer
	last   time.Time // of the last tick
	opened uint64    // conn.opened at the last tick
	unused time.Duration
}

// writeLoop runs until the connection has ended and its last frames are out.
func (c *conn) writeLoop() {
	w := &writer{c: c, last: time.Now()}
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
		if cap(c.mu.out) > keepBuffer {
			c.mu.out = nil
		}
		c.mu.Unlock()
		if cap(w.spare) > keepBuffer {
			w.spare = nil
		}
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
		w.c.fail(transport.Reset, fmt.Errorf("write to the connection: %w", err))
	}
}

// interval is the time to the next look at a connection that seems well.
func (w *writer) interval() time.Duration {
	d := min(w.c.cfg.KeepAliveInterval, w.c.cfg.IdleTimeout)
	return d + rand.N(d/5+1)
}

// tick asks a silent connection for a sign of life, and closes one that is dead or that nobody uses.
func (w *writer) tick() {
	now := time.Now()
	elapsed := now.Sub(w.last)
	w.last = now
	heard := w.c.heard.Swap(false)
	switch {
	case w.asked && !heard:
		w.c.fail(transport.Timeout, fmt.Errorf("no answer to a ping within %v", w.c.cfg.KeepAliveTimeout))
	case w.retire(elapsed):
		w.c.goAway(transport.NotProcessed, http2.ErrCodeNo, errIdle)
	case heard:
		w.asked = false
		w.timer.Reset(w.interval())
	default:
		w.asked = true
		w.timer.Reset(w.c.cfg.KeepAliveTimeout)
		w.c.mu.Lock()
		w.c.mu.out = append(appendFrameHeader(w.c.mu.out, 8, http2.FramePing, 0, 0), make([]byte, 8)...)
		w.c.mu.Unlock()
	}
}

// retire takes the connection out of its pool when nobody used it for the idle timeout.
func (w *writer) retire(elapsed time.Duration) bool {
	opened, busy := w.c.pool.use(w.c)
	if busy || opened != w.opened {
		w.opened, w.unused = opened, 0
		return false
	}
	w.unused += elapsed
	return w.unused >= w.c.cfg.IdleTimeout && w.c.pool.retire(w.c)
}
