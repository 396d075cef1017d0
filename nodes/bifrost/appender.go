package bifrost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
)

// Errors of an Appender.
var (
	// ErrFull means that the memory budget is used up; nothing was taken. See WaitCapacity.
	ErrFull = errors.New("appender holds as many bytes as it may, wait for capacity")
	// ErrClosed means that the appender, reader or the whole Bifrost was closed.
	ErrClosed = errors.New("log handle is closed")
	// ErrNotWritten means that the records are certainly not in the log: appending them again is safe.
	ErrNotWritten = errors.New("records were not written")
	// ErrUnknownOutcome means that the records may or may not be in the log: only a reader of the log
	// can tell, and appending them again may duplicate them.
	ErrUnknownOutcome = loglet.ErrUnknownOutcome
)

// AppenderOptions of one Appender; the zero value takes the defaults.
type AppenderOptions struct {
	// MaxBytes bounds the records that are queued or under way; default 64 MiB. While less than half of it
	// is used an append may go whatever its size.
	MaxBytes int
	// MaxBatchRecords and MaxBatchBytes bound one batch; default 1024 and 1 MiB. One append is never
	// split.
	MaxBatchRecords, MaxBatchBytes int
	// Window bounds the batches under way; default 4. With 1 the disk idles between two batches of a
	// log, with many the batches get small.
	Window int
}

func (o AppenderOptions) withDefaults() AppenderOptions {
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	if o.MaxBatchRecords == 0 {
		o.MaxBatchRecords = 1024
	}
	if o.MaxBatchBytes == 0 {
		o.MaxBatchBytes = 1 << 20
	}
	if o.Window == 0 {
		o.Window = 4
	}
	return o
}

// Appender is the single writer of a log on behalf of its partition's leader. What is appended while
// earlier batches are on their way to the disk goes into the next batch together. The order of the
// calls is the order in the log; when the log has to continue in another segment, everything that
// was under way is appended there again, in order, so that records may appear twice but are never
// lost or swapped. It makes its own node the log's sequencer at once ("extend preferred"). Safe for
// concurrent use.
type Appender struct {
	log  *logState
	opts AppenderOptions
	ctx  context.Context // ends with Close
	stop context.CancelCauseFunc
	wg   sync.WaitGroup // the recovery goroutine, and answers being given

	mu       sync.Mutex
	queue    []appendItem   // not under way
	inFlight []*appendBatch // under way, in order
	failed   []appendItem   // were under way when their segment ended; they come before queue
	bytes    int            // of all of them
	driver   *loglet.Driver // nil while there is none that takes appends
	base     cluster.LSN    // of the driver's segment
	pumping  bool           // one goroutine at a time hands batches to the driver
	full     bool           // the sequencer takes no more until a commit
	again    loglet.Timer   // ends full when the commit is that of a former appender; nil when not pending
	recovers bool           // the recovery goroutine runs
	closed   bool
	capacity chan struct{} // closed when bytes went down; nil when nobody waits
}

// appendItem is one call of Append.
type appendItem struct {
	records   []Record
	done      func(cluster.LSN, error)
	bytes     int
	attempted bool // it was given to a sequencer once
}

// appendBatch is what was given to a sequencer as one batch.
type appendBatch struct {
	a     *Appender
	items []appendItem
	base  cluster.LSN
	began time.Time
	ended bool // committed, failed or answered by Close
}

// Appender returns a writer of the log. It must be closed.
func (b *Bifrost) Appender(log cluster.LogID, opts AppenderOptions) *Appender {
	ctx, stop := context.WithCancelCause(b.ctx)
	a := &Appender{log: b.log(log), opts: opts.withDefaults(), ctx: ctx, stop: stop}
	if !b.adopt(a) {
		a.Close()
	}
	return a
}

// Append queues records, which belong to the log from here on. done is called exactly once unless an
// error is returned: with the LSN of the last record when all are committed, or with an error that
// wraps ErrNotWritten or ErrUnknownOutcome. done must not block; it may append. Append does not wait:
// it returns ErrFull when the memory budget is used up, ErrClosed after Close.
func (a *Appender) Append(records []Record, done func(last cluster.LSN, err error)) error {
	if len(records) == 0 {
		return errors.New("append of no records")
	}
	item := appendItem{records: records, done: done}
	for i := range records {
		item.bytes += records[i].Size()
	}
	a.mu.Lock()
	switch {
	case a.closed:
		a.mu.Unlock()
		return ErrClosed
	case !a.hasCapacityLocked() && a.bytes+item.bytes > a.opts.MaxBytes:
		a.mu.Unlock()
		return ErrFull
	}
	a.bytes += item.bytes
	a.queue = append(a.queue, item)
	a.log.b.metrics.enqueued.Add(float64(len(records)))
	a.log.b.metrics.enqueuedBytes.Add(float64(item.bytes))
	a.unlockAndPump()
	return nil
}

// hasCapacityLocked reports whether an append of any size is taken. It is what WaitCapacity waits for: an append that
// were refused all the same would be tried again at once, and big ones never got their turn while small ones come.
func (a *Appender) hasCapacityLocked() bool { return a.bytes == 0 || a.bytes < a.opts.MaxBytes/2 }

// WaitCapacity waits until an append of any size is taken, unless others are faster, or ctx ends.
func (a *Appender) WaitCapacity(ctx context.Context) error {
	for {
		a.mu.Lock()
		switch {
		case a.closed:
			a.mu.Unlock()
			return ErrClosed
		case a.hasCapacityLocked():
			a.mu.Unlock()
			return nil
		}
		if a.capacity == nil {
			a.capacity = make(chan struct{})
		}
		wait := a.capacity
		a.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return fmt.Errorf("wait for append capacity: %w", context.Cause(ctx))
		}
	}
}

// Close answers every append that has no answer yet, with ErrNotWritten or ErrUnknownOutcome, and
// waits until all answers are given and the appender's goroutine has ended. It must not be called
// from an answer. Idempotent.
func (a *Appender) Close() {
	a.mu.Lock()
	var items []appendItem
	if !a.closed {
		a.closed = true
		for _, b := range a.inFlight {
			b.ended = true
			items = append(items, b.items...)
		}
		items = append(items, a.failed...)
		items = append(items, a.queue...)
		a.inFlight, a.failed, a.queue = nil, nil, nil
		a.freeLocked(a.bytes)
		if a.again != nil {
			a.again.Stop()
		}
	}
	a.mu.Unlock()
	a.stop(ErrClosed)
	for i := range items {
		reason := ErrNotWritten
		if items[i].attempted {
			reason = ErrUnknownOutcome
		}
		items[i].done(0, fmt.Errorf("%w: %w", reason, ErrClosed))
	}
	a.wg.Wait()
	a.log.b.disown(a)
}

// freeLocked returns bytes to the budget.
func (a *Appender) freeLocked(bytes int) {
	a.bytes -= bytes
	if a.capacity != nil {
		close(a.capacity)
		a.capacity = nil
	}
}

// unlockAndPump gives the driver as many batches as it may have, then releases the lock. The driver
// is called without the lock, by one goroutine at a time so that batches stay in order.
func (a *Appender) unlockAndPump() {
	if a.pumping {
		a.mu.Unlock()
		return
	}
	a.pumping = true
	for {
		b := a.nextBatchLocked()
		if b == nil {
			break
		}
		driver := a.driver
		a.mu.Unlock()
		err := driver.Append(b.records(), b)
		a.mu.Lock()
		if err != nil {
			a.refusedLocked(b, driver, err)
		}
	}
	a.pumping = false
	a.recoverLocked()
	a.mu.Unlock()
}

// nextBatchLocked takes the next batch off the queue, nil when there is none to be sent now.
func (a *Appender) nextBatchLocked() *appendBatch {
	if a.closed || a.driver == nil || a.full || len(a.queue) == 0 || len(a.inFlight) >= a.opts.Window {
		return nil
	}
	n, records, bytes := 0, 0, 0
	for n < len(a.queue) {
		item := &a.queue[n]
		if n > 0 && (records+len(item.records) > a.opts.MaxBatchRecords || bytes+item.bytes > a.opts.MaxBatchBytes) {
			break
		}
		item.attempted = true
		records += len(item.records)
		bytes += item.bytes
		n++
	}
	b := &appendBatch{a: a, base: a.base, began: a.log.b.cfg.Clock.Now()}
	if n == len(a.queue) {
		b.items, a.queue = a.queue, nil
	} else {
		b.items, a.queue = a.queue[:n:n], a.queue[n:]
	}
	a.inFlight = append(a.inFlight, b)
	return b
}

// records are the batch's records in one slice.
func (b *appendBatch) records() []logserver.Record {
	if len(b.items) == 1 {
		return b.items[0].records
	}
	n := 0
	for i := range b.items {
		n += len(b.items[i].records)
	}
	all := make([]logserver.Record, 0, n)
	for i := range b.items {
		all = append(all, b.items[i].records...)
	}
	return all
}

// refusedLocked puts a batch that the driver did not take back to the front of the queue.
func (a *Appender) refusedLocked(b *appendBatch, driver *loglet.Driver, err error) {
	if b.ended {
		return
	}
	b.ended = true
	a.inFlight = a.inFlight[:len(a.inFlight)-1] // only the pumping goroutine adds to it
	a.queue = append(b.items, a.queue...)
	if errors.Is(err, loglet.ErrFull) {
		a.full = true
		if len(a.inFlight) == 0 { // full of what a former appender left under way: its commits are not told here
			a.again = a.log.b.cfg.Clock.AfterFunc(fullPause, a.tryAgain)
		}
		return
	}
	if a.driver == driver {
		a.driver = nil
	}
}

// fullPause is how long an appender waits for the commits of another one.
const fullPause = 5 * time.Millisecond

func (a *Appender) tryAgain() {
	a.mu.Lock()
	a.full, a.again = false, nil
	a.unlockAndPump()
}

// Committed implements loglet.Committer.
func (b *appendBatch) Committed(last cluster.Offset, err error) {
	a := b.a
	a.mu.Lock()
	if b.ended {
		a.mu.Unlock()
		return
	}
	b.ended = true
	a.inFlight[0] = nil
	a.inFlight = a.inFlight[1:]
	a.full = false
	if err != nil {
		a.driver = nil
		a.failed = append(a.failed, b.items...)
		a.unlockAndPump()
		return
	}
	a.log.b.metrics.appendSeconds.Observe(a.log.b.cfg.Clock.Now().Sub(b.began).Seconds())
	bytes := 0
	for i := range b.items {
		bytes += b.items[i].bytes
	}
	a.freeLocked(bytes)
	a.wg.Add(1) // Close waits until the answers are given
	defer a.wg.Done()
	a.unlockAndPump()
	b.answer(lsnOf(b.base, last))
}

// answer tells each append of a committed batch its last LSN.
func (b *appendBatch) answer(last cluster.LSN) {
	after := cluster.LSN(0)
	for i := range b.items {
		after += cluster.LSN(len(b.items[i].records))
	}
	next := last + 1 - after
	for i := range b.items {
		next += cluster.LSN(len(b.items[i].records))
		b.items[i].done(next-1, nil)
	}
}

// recoverLocked starts the recovery goroutine when the log must continue in another segment and
// everything under way has come back.
func (a *Appender) recoverLocked() {
	if a.closed || a.driver != nil || a.recovers || len(a.inFlight) > 0 || len(a.failed)+len(a.queue) == 0 {
		return
	}
	a.queue = append(a.failed, a.queue...)
	a.failed = nil
	a.recovers = true
	a.wg.Go(a.recover)
}

// recover makes the log writable by this node, however long it takes, and goes on appending.
func (a *Appender) recover() {
	logger := a.log.b.cfg.Logger.With("log", uint32(a.log.id))
	for n := 1; ; n++ {
		driver, base, err := a.log.writable(a.ctx)
		if err == nil {
			if n > 1 {
				logger.Info("log is writable again", "attempts", n)
			}
			a.mu.Lock()
			a.driver, a.base, a.recovers, a.full = driver, base, false, false
			a.unlockAndPump()
			return
		}
		if a.ctx.Err() != nil || errors.Is(err, ErrClosed) {
			return // Close answers what is left
		}
		if n&(n-1) == 0 { // less and less often
			logger.Warn("making the log writable failed, it is tried again", "attempts", n, "err", err)
		}
		a.log.b.pause(a.ctx, min(time.Duration(n)*50*time.Millisecond, time.Second))
	}
}
