package bifrost

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// Record is one entry of a log; see logserver.Record for its fields.
type Record = logserver.Record

// EntryKind tells what an Entry is.
type EntryKind uint8

// The kinds of entries.
const (
	// Data is a record.
	Data EntryKind = iota
	// TrimGap stands for positions that were trimmed: what they held is only in snapshots.
	TrimGap
	// FilteredGap stands for records that the reader's filter left out.
	FilteredGap
	// DataLossGap stands for positions that the operator declared lost.
	DataLossGap
)

func (k EntryKind) String() string {
	switch k {
	case Data:
		return "data"
	case TrimGap:
		return "trim gap"
	case FilteredGap:
		return "filtered gap"
	case DataLossGap:
		return "data loss gap"
	}
	return "unknown entry"
}

// Entry is what a reader delivers: a record, or a gap of positions that it will not deliver.
type Entry struct {
	Kind EntryKind
	// LSN is the entry's position, for a gap its first one.
	LSN cluster.LSN
	// To is the last position of a gap (inclusive); of a record its own.
	To     cluster.LSN
	Record Record
}

// ErrRead means that no log server could give the next record intact. The reader keeps trying.
var ErrRead = errors.New("log cannot be read")

// readBytes is how much a reader fetches at a time when the record cache does not have it.
const readBytes = 512 << 10

// Reader reads a log in order, across its segments, each position once: as a record or within a gap.
// It never delivers what is not committed. One goroutine uses TryNext and Wait; Close may come from
// any. While the local node sequences the log, records come from memory.
type Reader struct {
	log     *logState
	trigger chan struct{}     // 1-buffered: something may have changed
	keys    *cluster.KeyRange // nil: all records

	mu     sync.Mutex
	next   cluster.LSN // position to be delivered next
	run    []Record    // consecutive records from next on
	cached bool        // run is of the record cache
	gapTo  cluster.LSN // when not 0: [next, gapTo] is trimmed
	seg    segment     // the segment of next, as last looked up
	tail   *loglet.Tail
	unsub  func() // of tail
	fetch  fetchState
	closed bool
}

// fetchState is the reading from log servers.
type fetchState struct {
	id      uint64 // of the newest request; answers to older ones are dropped
	active  bool   // a request or a pause is under way
	timer   loglet.Timer
	attempt int   // servers tried for next
	err     error // why the last round failed; told once
	corrupt error // of this round
}

// Reader returns a reader that begins at from; LSN 0 is taken as the oldest. It must be closed.
func (b *Bifrost) Reader(log cluster.LogID, from cluster.LSN) *Reader {
	return b.reader(log, from, nil)
}

// FilteredReader is a Reader that leaves out the keyed records whose key is outside of keys; they
// show as filtered gaps, so that their positions still count as read.
func (b *Bifrost) FilteredReader(log cluster.LogID, from cluster.LSN, keys cluster.KeyRange) *Reader {
	return b.reader(log, from, &keys)
}

func (b *Bifrost) reader(log cluster.LogID, from cluster.LSN, keys *cluster.KeyRange) *Reader {
	r := &Reader{log: b.log(log), trigger: make(chan struct{}, 1), keys: keys, next: max(from, cluster.OldestLSN)}
	if !r.log.addReader(r) {
		r.closed = true
	}
	r.notify()
	return r
}

// Wait receives when TryNext may have something new. It is never closed. A signal may be spurious;
// after a TryNext without entry none is missed.
func (r *Reader) Wait() <-chan struct{} { return r.trigger }

// notify makes Wait receive.
func (r *Reader) notify() {
	select {
	case r.trigger <- struct{}{}:
	default:
	}
}

// TryNext returns the next entry if there is one now. An error wraps ErrRead and is told once per
// failed round over all log servers; or it is ErrClosed.
func (r *Reader) TryNext() (Entry, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.run) == 0 {
		if r.closed {
			return Entry{}, false, ErrClosed
		}
		if e, ok, err := r.refill(); ok || err != nil {
			return e, ok, err
		}
		if len(r.run) == 0 {
			return Entry{}, false, nil
		}
	}
	e := r.takeEntry()
	if len(r.run) == 0 && r.cached {
		r.log.consumed(r.seg.id, r.seg.offsetOf(r.next))
	}
	return e, true, nil
}

// takeEntry takes the next record off the run, or a gap for those that the filter leaves out.
func (r *Reader) takeEntry() Entry {
	first, skip := r.next, 0
	for r.keys != nil && skip < len(r.run) && r.run[skip].Keyed && !r.keys.Contains(cluster.PartitionKey(r.run[skip].Key)) {
		skip++
	}
	if skip > 0 {
		r.run = r.run[skip:]
		r.next += cluster.LSN(skip)
		return Entry{Kind: FilteredGap, LSN: first, To: r.next - 1}
	}
	e := Entry{Kind: Data, LSN: first, To: first, Record: r.run[0]}
	r.run = r.run[1:]
	r.next++
	return e
}

// Close ends the reader. Idempotent.
func (r *Reader) Close() {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.closed = true
	r.run = nil
	r.unwatch()
	if r.fetch.timer != nil {
		r.fetch.timer.Stop()
	}
	r.mu.Unlock()
	r.log.removeReader(r)
	r.notify()
}

func (r *Reader) unwatch() {
	if r.unsub != nil {
		r.unsub()
	}
	r.tail, r.unsub = nil, nil
}

// refill looks for what comes next: it returns a gap, or fills run, or neither.
func (r *Reader) refill() (Entry, bool, error) {
	if r.gapTo >= r.next {
		return r.gap(r.gapTo), true, nil
	}
	if err := r.fetch.err; err != nil {
		r.fetch.err = nil
		return Entry{}, false, err
	}
	if r.fetch.active {
		return Entry{}, false, nil
	}
	seg, gapTo, found := r.log.locate(r.next)
	switch {
	case gapTo >= r.next:
		return r.gap(gapTo), true, nil
	case !found:
		return Entry{}, false, nil // the log's chain tells when it continues
	}
	if seg.id != r.seg.id {
		r.unwatch()
		r.seg = seg
	}
	r.seg = seg
	tail := r.committed()
	if r.next >= tail {
		return Entry{}, false, nil
	}
	offset := seg.offsetOf(r.next)
	if run := r.log.b.cache.get(seg.id, offset); run != nil {
		r.log.b.metrics.cacheHits.Inc()
		r.run, r.cached = run[:min(uint64(len(run)), uint64(tail-r.next))], true
		r.log.b.metrics.read.Add(float64(len(r.run)))
		r.log.b.metrics.readFromCache.Add(float64(len(r.run)))
		return Entry{}, false, nil
	}
	r.log.b.metrics.cacheMisses.Inc()
	r.startFetch(tail)
	return Entry{}, false, nil
}

func (r *Reader) gap(to cluster.LSN) Entry {
	e := Entry{Kind: TrimGap, LSN: r.next, To: to}
	r.next, r.gapTo = to+1, 0
	return e
}

// committed is the tail up to which the segment may be read; an open segment is watched from then on.
func (r *Reader) committed() cluster.LSN {
	if r.seg.end != 0 {
		r.unwatch()
		return r.seg.end
	}
	if r.tail == nil {
		r.tail = r.log.openTail(r.seg)
		r.unsub = r.tail.Subscribe(r.notify)
	}
	return lsnOf(r.seg.base, r.tail.Load())
}

// startFetch asks the next log server for records from next on.
func (r *Reader) startFetch(tail cluster.LSN) {
	q := r.seg.quorum
	order := r.seg.order
	f := &r.fetch
	f.id++
	f.active = true
	server := order[f.attempt%len(order)]
	id, offset := f.id, r.seg.offsetOf(r.next)
	req := &logserver.ReadRequest{
		Header: logserver.Header{Loglet: r.seg.id, KnownGlobalTail: r.seg.offsetOf(tail)},
		From:   offset, To: r.seg.offsetOf(tail), MaxBytes: readBytes,
	}
	b := r.log.b
	if q.Node(server) != b.cfg.Self.ID {
		f.timer = b.cfg.Clock.AfterFunc(b.cfg.ReadTimeout, func() { r.fetched(id, offset, nil, errTimeout) })
	}
	// The answer must not find the lock taken: a local server may answer at once.
	b.run(func() {
		b.cfg.Net.Call(q.Node(server), req, func(m transport.Message, err error) {
			reply, _ := m.(*logserver.ReadReply)
			r.fetched(id, offset, reply, err)
		})
	})
}

var errTimeout = errors.New("log server did not answer in time")

// fetched takes the answer of a log server.
func (r *Reader) fetched(id uint64, offset cluster.Offset, reply *logserver.ReadReply, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &r.fetch
	if r.closed || !f.active || f.id != id {
		return
	}
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	f.active = false
	if err == nil && reply != nil && r.accept(offset, reply) {
		f.attempt, f.corrupt = 0, nil
		r.notify()
		return
	}
	if err == nil && reply != nil {
		switch reply.Status {
		case logserver.StatusError:
			f.corrupt = errors.New(reply.Reason)
		case logserver.StatusDataLoss:
			f.corrupt = errors.New("the log server has lost records of this segment")
		}
	}
	f.attempt++
	if f.attempt%len(r.seg.order) != 0 {
		r.notify() // the next server
		return
	}
	if f.corrupt != nil {
		f.err = fmt.Errorf("%w: record %d of log %d: %w", ErrRead, r.next, r.log.id, f.corrupt)
		f.corrupt = nil
	}
	r.pause()
}

// accept takes what a server has from offset on; false when it has nothing there.
func (r *Reader) accept(offset cluster.Offset, reply *logserver.ReadReply) bool {
	if reply.TrimmedTo >= offset {
		r.gapTo = r.seg.lsnOf(reply.TrimmedTo)
		if r.seg.end != 0 {
			r.gapTo = min(r.gapTo, r.seg.end-1)
		}
		return true
	}
	if reply.Status != logserver.StatusOK {
		return false
	}
	var run []Record
	for i := range reply.Records {
		if reply.Records[i].Offset != offset+cluster.Offset(i) {
			break
		}
		run = append(run, reply.Records[i].Record)
	}
	r.run, r.cached = run, false
	r.log.b.metrics.read.Add(float64(len(run)))
	return len(run) > 0
}

// pause waits a while after all servers were tried in vain.
func (r *Reader) pause() {
	f := &r.fetch
	f.active = true
	f.id++
	id := f.id
	rounds := f.attempt / len(r.seg.order)
	d := min(time.Duration(rounds)*20*time.Millisecond, time.Second)
	f.timer = r.log.b.cfg.Clock.AfterFunc(d, func() {
		r.mu.Lock()
		if f.id == id {
			f.active, f.timer = false, nil
		}
		r.mu.Unlock()
		r.notify()
	})
	r.notify()
}
