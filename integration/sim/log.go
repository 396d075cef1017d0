package sim

import (
	"errors"
	"time"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/control/metadata"
	"perdure/nodes/bifrost"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// logHandle is what a node knows of one log. The chain, the drivers with their sequencers, finders and
// trimmers are the product's; what waits between them in goroutines there is a callback here.
type logHandle struct {
	n       *node
	id      cluster.LogID
	chain   chain.Chain
	version uint64

	driver *loglet.Driver // of the last segment, when this life sequences it
	base   cluster.LSN
	tails  map[cluster.LogletID]cluster.Offset // known committed tails of open segments
	cache  map[cluster.LogletID][]logserver.Record
	asking map[cluster.LogletID]bool // a tail is being looked for

	changing bool // this node changes the chain
	waiting  []func()
	readers  []*reader
	writer   *writer
}

func newLogHandle(n *node, id cluster.LogID) *logHandle {
	h := &logHandle{n: n, id: id, tails: map[cluster.LogletID]cluster.Offset{},
		cache: map[cluster.LogletID][]logserver.Record{}, asking: map[cluster.LogletID]bool{}}
	h.poll()
	return h
}

// poll is what a watch of the metadata does after it has missed something.
func (h *logHandle) poll() {
	h.reload(func(error) {})
	h.n.after(h.n.w.between(network, 10*time.Second, 20*time.Second), h.poll)
}

// reload reads the chain.
func (h *logHandle) reload(done func(error)) {
	h.n.w.meta.get(h.n, metadata.LogKey(h.id), func(v []byte, version uint64, err error) {
		if err == nil && version > 0 {
			h.install(h.n.w.chainOf(v), version)
		}
		done(err)
	})
}

// install takes a newer chain.
func (h *logHandle) install(c chain.Chain, version uint64) {
	if version <= h.version {
		return
	}
	h.chain, h.version = c, version
	if h.driver != nil && h.driver.Params().ID != c.Last().Loglet {
		d := h.driver
		h.driver = nil
		d.Stop(loglet.ErrSealed)
	}
	for id := range h.tails {
		if id < c.First().Loglet {
			delete(h.tails, id)
			delete(h.cache, id)
		}
	}
	h.wake()
}

func (h *logHandle) wake() {
	for _, r := range h.readers {
		r.wake()
	}
}

func (h *logHandle) params(s chain.Segment) loglet.Params {
	return loglet.Params{ID: s.Loglet, Sequencer: s.Sequencer, Quorum: h.n.w.quorum(s)}
}

// exclusively runs f while nobody else of this node changes the chain; f calls the function that it gets
// when it is done.
func (h *logHandle) exclusively(f func(release func())) {
	if h.changing {
		h.waiting = append(h.waiting, func() { h.exclusively(f) })
		return
	}
	h.changing = true
	f(func() {
		h.changing = false
		if len(h.waiting) > 0 {
			next := h.waiting[0]
			h.waiting = h.waiting[1:]
			next()
		}
	})
}

// writable makes this life the sequencer of the log, if it is not; done gets the error of one try.
func (h *logHandle) writable(force bool, done func(error)) {
	h.exclusively(func(release func()) {
		end := func(err error) { release(); done(err) }
		if h.driver != nil && h.driver.Stopped() == nil && !force {
			end(nil)
			return
		}
		h.reload(func(err error) {
			if err != nil {
				end(err)
				return
			}
			h.extend(end)
		})
	})
}

// extend puts a segment of this life at the end of the chain: seal, find the tail, compare and set.
func (h *logHandle) extend(done func(error)) {
	old, version := h.chain, h.version
	if old.IsZero() {
		next, err := chain.New(h.id, h.place())
		if err != nil {
			violated("chain", "a new chain is refused: %v", err)
		}
		h.swap(next, version, done)
		return
	}
	h.sealedTail(old, func(base cluster.LSN) {
		next, err := old.Extend(old.LastIndex(), base, h.place())
		if err != nil {
			violated("chain", "log %d can not be extended at its sealed tail %d: %v", h.id, base, err)
		}
		h.swap(next, version, done)
	})
}

// sealedTail seals the last segment and finds its tail.
func (h *logHandle) sealedTail(c chain.Chain, done func(cluster.LSN)) {
	if s, sealed := c.Sealed(); sealed {
		done(s.Tail)
		return
	}
	seg := c.Last()
	f := loglet.NewFinder(h.params(seg), loglet.SealTail, loglet.FinderConfig{})
	if d := h.driver; d != nil && d.Params().ID == seg.Loglet {
		f.Know(d.Stop(loglet.ErrSealed))
	}
	began := h.n.w.oracle.atLeast(seg.Loglet)
	h.n.machine(f, func() {
		res, _ := f.Done()
		h.n.w.oracle.found(seg, res, began)
		done(seg.LSN(res.Tail))
	})
}

func (h *logHandle) place() chain.Params {
	nodes, r := h.n.w.nodeSet(h.n.id)
	return chain.Params{Sequencer: h.n.self(), Replication: r, NodeSet: nodes}
}

var errLostRace = errors.New("somebody else has changed the chain")

// swap stores a chain and begins its last segment. An unknown outcome is cleared up by reading.
func (h *logHandle) swap(next chain.Chain, version uint64, done func(error)) {
	value, err := next.Encode()
	if err != nil {
		violated("chain", "encode: %v", err)
	}
	h.n.w.meta.swap(h.n, metadata.LogKey(h.id), value, version, func(v uint64, err error) {
		switch {
		case err == nil:
			h.begin(next, v)
			done(nil)
		case errors.Is(err, errMetadataUnknown):
			h.n.w.meta.get(h.n, metadata.LogKey(h.id), func(value []byte, v uint64, err error) {
				if err != nil {
					done(err)
					return
				}
				if c := h.n.w.chainOf(value); v > version && !c.IsZero() && c.Last().Loglet == next.Last().Loglet && c.Last().Sequencer == h.n.self() {
					h.begin(c, v)
					done(nil)
					return
				} else if v > 0 {
					h.install(c, v)
				}
				done(errLostRace)
			})
		case errors.Is(err, errConflict):
			h.reload(func(error) { done(errLostRace) })
		default:
			done(err)
		}
	})
}

// begin starts the sequencer of a segment that this life has put into the chain.
func (h *logHandle) begin(c chain.Chain, version uint64) {
	seg := c.Last()
	h.n.w.reconfigurations++
	h.n.w.trace("segment", uint64(h.id), uint64(seg.Index()), uint64(seg.Base))
	tail := loglet.NewTail()
	d := loglet.NewDriver(h.params(seg), loglet.SequencerConfig{Window: h.n.w.cfg.window, MaxInFlight: 64}, h.n, h.n, tail,
		func(first cluster.Offset, records []logserver.Record) {
			h.n.w.oracle.committed(h.n, seg, first, records)
			h.cache[seg.Loglet] = append(h.cache[seg.Loglet], records...)
		})
	if version > h.version {
		h.install(c, version)
	} else if h.chain.Last().Loglet != seg.Loglet {
		return // superseded before it could begin
	}
	h.driver, h.base = d, seg.Base
	tail.Subscribe(h.wake)
}

// machine runs a step machine of the product until it has finished.
func (n *node) machine(m loglet.Machine, done func()) {
	r := &running{n: n, m: m, done: done}
	r.execute(m.Start(n.w.now + 1))
}

// running is a step machine that a process runs.
type running struct {
	n     *node
	m     loglet.Machine
	done  func()
	over  bool
	armed time.Duration // when the next tick is due, 0: not planned
}

func (r *running) execute(sends []loglet.Send) {
	if r.over {
		return
	}
	if r.m.Finished() {
		r.over = true
		r.done()
		return
	}
	for _, s := range sends {
		r.n.Call(s.To, s.Msg, func(m transport.Message, err error) {
			if !r.over {
				r.execute(r.m.Answer(r.n.w.now+1, &loglet.Answer{Send: s, Reply: m, Err: err}))
			}
		})
	}
	if at, ok := r.m.NextTick(); ok && (r.armed == 0 || at < r.armed) {
		r.armed = at
		r.n.schedule(max(at-r.n.w.now, 0), &ticking{r, at})
	}
}

// ticking is the tick of a step machine that was planned for a time, unless an earlier one was planned since.
type ticking struct {
	r  *running
	at time.Duration
}

func (t *ticking) run() {
	if r := t.r; !r.over && r.armed == t.at {
		r.armed = 0
		r.execute(r.m.Tick(r.n.w.now + 1))
	}
}

// answerTail answers for the sequencers of this life.
func (n *node) answerTail(r *loglet.TailRequest, to replier) {
	h := n.logs[r.Loglet.LogID()]
	if d := h.driver; d != nil && d.Params().ID == r.Loglet && d.Stopped() == nil {
		to.reply(&loglet.TailReply{Tail: d.Tail().Load()}, nil)
		return
	}
	to.reply(&loglet.TailReply{Gone: true}, nil)
}

// follow looks for the tail of an open segment that another life sequences.
func (h *logHandle) follow(seg chain.Segment) {
	if h.asking[seg.Loglet] {
		return
	}
	h.asking[seg.Loglet] = true
	f := &following{h: h, seg: seg}
	if seg.Sequencer.ID == h.n.id {
		if h.driver != nil && h.driver.Params().ID == seg.Loglet {
			f.again(time.Second)
			return
		}
		f.find(true)
		return
	}
	h.n.Call(seg.Sequencer.ID, &loglet.TailRequest{Loglet: seg.Loglet}, f.told)
	h.n.schedule(time.Second, (*tailTimeout)(f))
}

// following is the search for the tail of an open segment: its sequencer is asked, or its servers when there is none.
type following struct {
	h        *logHandle
	seg      chain.Segment
	answered bool
}

// run is the end of the pause after a search.
func (f *following) run() {
	f.h.asking[f.seg.Loglet] = false
	f.h.wake()
}

func (f *following) again(d time.Duration) { f.h.n.schedule(d, f) }

// told is the sequencer's answer.
func (f *following) told(m transport.Message, err error) {
	if f.answered {
		return
	}
	f.answered = true
	r, _ := m.(*loglet.TailReply)
	switch {
	case err != nil:
		f.find(false)
	case r.Gone:
		f.find(true)
	default:
		w := f.h.n.w
		w.oracle.told(f.seg.Loglet, r.Tail)
		f.h.learn(f.seg.Loglet, r.Tail)
		f.again(w.between(workload, 300*time.Millisecond, 2*time.Second))
	}
}

// tailTimeout is a sequencer that has not answered in time.
type tailTimeout following

func (t *tailTimeout) run() {
	if !t.answered {
		t.answered = true
		(*following)(t).find(false)
	}
}

// find asks the servers.
func (f *following) find(gone bool) {
	h, seg, w := f.h, f.seg, f.h.n.w
	m := loglet.NewFinder(h.params(seg), loglet.FindTail, loglet.FinderConfig{})
	if gone {
		m.SequencerGone()
	}
	began := w.oracle.atLeast(seg.Loglet)
	h.n.machine(m, func() {
		res, _ := m.Done()
		w.oracle.found(seg, res, began)
		if res.Sealed {
			// Only the chain says where the segment ends: another finder may have found a lower tail,
			// with other servers, and the successor begins there.
			h.sealChain(seg, res.Tail)
		} else {
			h.learn(seg.Loglet, res.Tail)
		}
		f.again(w.between(workload, time.Second, 3*time.Second))
	})
}

func (h *logHandle) learn(id cluster.LogletID, tail cluster.Offset) {
	if tail > h.tails[id] {
		h.tails[id] = tail
		h.wake()
	}
}

// sealChain writes the end of the last segment into the chain.
func (h *logHandle) sealChain(seg chain.Segment, tail cluster.Offset) {
	h.exclusively(func(release func()) {
		if _, sealed := h.chain.Sealed(); sealed || h.chain.Last().Loglet != seg.Loglet {
			release()
			return
		}
		next, err := h.chain.Seal(seg.Index(), chain.Seal{Tail: seg.LSN(tail), By: h.n.self()})
		if err != nil {
			violated("chain", "log %d can not be sealed at its sealed tail: %v", h.id, err)
		}
		value, err := next.Encode()
		if err != nil {
			violated("chain", "encode: %v", err)
		}
		h.n.w.meta.swap(h.n, metadata.LogKey(h.id), value, h.version, func(v uint64, err error) {
			if err == nil {
				h.install(next, v)
				release()
				return
			}
			h.reload(func(error) { release() })
		})
	})
}

// trim deletes up to upTo in every segment, then drops the segments that are empty.
func (h *logHandle) trim(upTo cluster.LSN) {
	if h.chain.IsZero() {
		return
	}
	last := h.chain.Last()
	upTo = min(upTo, last.LSN(h.known(last))-1)
	pending := 0
	for i := range h.chain.Len() {
		seg := h.chain.Segment(i)
		end, closed := h.chain.Tail(i)
		if !closed {
			end = seg.LSN(max(h.known(seg), 1))
		}
		if seg.Base > upTo || end <= seg.Base {
			break
		}
		last := min(upTo, end-1)
		h.n.w.oracle.trimming(seg, seg.Offset(last))
		t := loglet.NewTrimmer(h.params(seg), seg.Offset(last), seg.Offset(end), loglet.FinderConfig{})
		pending++
		h.n.machine(t, func() {
			if pending--; pending == 0 {
				h.trimChain(upTo)
			}
		})
	}
}

// known is the committed tail of an open segment as far as this node knows.
func (h *logHandle) known(seg chain.Segment) cluster.Offset {
	if h.driver != nil && h.driver.Params().ID == seg.Loglet {
		return h.driver.Tail().Load()
	}
	return max(h.tails[seg.Loglet], 1)
}

func (h *logHandle) trimChain(upTo cluster.LSN) {
	h.exclusively(func(release func()) {
		next, dropped := h.chain.TrimPrefix(upTo)
		if len(dropped) == 0 {
			release()
			return
		}
		value, err := next.Encode()
		if err != nil {
			violated("chain", "encode: %v", err)
		}
		h.n.w.meta.swap(h.n, metadata.LogKey(h.id), value, h.version, func(v uint64, err error) {
			if err == nil {
				h.install(next, v)
				release()
				return
			}
			h.reload(func(error) { release() })
		})
	})
}

// writer is the ordered writer of a log, with the rules of the product's appender: what was under way when a
// segment ended is appended to the next one first, in order.
type writer struct {
	h          *logHandle
	queue      []item
	failed     []item
	inFlight   []*batch
	driver     *loglet.Driver
	base       cluster.LSN
	recovering bool
	pumping    bool
	full       bool
	closed     bool
	tries      int
}

type item struct {
	records   []logserver.Record
	attempted bool
	done      func(cluster.LSN, error)
}

type batch struct {
	w     *writer
	items []item
	base  cluster.LSN
	ended bool
}

// errClosed ends what a closed writer has not got an answer for.
var errClosed = errors.New("writer is closed")

func (wr *writer) append(records []logserver.Record, done func(cluster.LSN, error)) {
	wr.queue = append(wr.queue, item{records: records, done: done})
	wr.pump()
}

func (wr *writer) pump() {
	if wr.pumping || wr.closed {
		return
	}
	wr.pumping = true
	for wr.driver != nil && !wr.full && len(wr.queue) > 0 && len(wr.inFlight) < 4 && !wr.closed {
		n := min(len(wr.queue), 8)
		b := &batch{w: wr, items: wr.queue[:n:n], base: wr.base}
		wr.queue = wr.queue[n:]
		var records []logserver.Record
		for i := range b.items {
			b.items[i].attempted = true
			records = append(records, b.items[i].records...)
		}
		wr.inFlight = append(wr.inFlight, b)
		d := wr.driver
		if err := d.Append(records, b); err != nil && !b.ended {
			b.ended = true
			wr.inFlight = wr.inFlight[:len(wr.inFlight)-1]
			wr.queue = append(b.items, wr.queue...)
			if errors.Is(err, loglet.ErrFull) {
				wr.full = len(wr.inFlight) > 0
			} else if wr.driver == d {
				wr.driver = nil
			}
		}
	}
	wr.pumping = false
	if wr.driver == nil && !wr.recovering && len(wr.inFlight) == 0 && len(wr.failed)+len(wr.queue) > 0 && !wr.closed {
		wr.queue = append(wr.failed, wr.queue...)
		wr.failed = nil
		wr.recovering = true
		wr.recover()
	}
}

func (wr *writer) recover() {
	wr.h.writable(false, func(err error) {
		if wr.closed {
			return
		}
		if err == nil && wr.h.driver != nil {
			wr.driver, wr.base, wr.recovering, wr.full, wr.tries = wr.h.driver, wr.h.base, false, false, 0
			wr.pump()
			return
		}
		wr.tries++
		wr.h.n.after(min(time.Duration(wr.tries)*50*time.Millisecond, time.Second), wr.recover)
	})
}

// Committed implements loglet.Committer.
func (b *batch) Committed(last cluster.Offset, err error) {
	if b.ended {
		return
	}
	b.ended = true
	wr := b.w
	wr.inFlight = wr.inFlight[1:]
	wr.full = false
	if err != nil {
		wr.driver = nil
		wr.failed = append(wr.failed, b.items...)
		wr.pump()
		return
	}
	wr.pump()
	next := b.base + cluster.LSN(last)
	for i := len(b.items) - 1; i >= 0; i-- {
		next -= cluster.LSN(len(b.items[i].records))
	}
	for i := range b.items {
		next += cluster.LSN(len(b.items[i].records))
		b.items[i].done(next-1, nil)
	}
}

// close answers everything that has no answer.
func (wr *writer) close() {
	if wr.closed {
		return
	}
	wr.closed = true
	var items []item
	for _, b := range wr.inFlight {
		b.ended = true
		items = append(items, b.items...)
	}
	items = append(append(items, wr.failed...), wr.queue...)
	wr.inFlight, wr.failed, wr.queue = nil, nil, nil
	for i := range items {
		err := bifrost.ErrNotWritten
		if items[i].attempted {
			err = bifrost.ErrUnknownOutcome
		}
		items[i].done(0, err)
	}
}

// reader reads a log in order, with the rules of the product's reader: below a segment's recorded end, or
// below the committed tail of the open one.
type reader struct {
	h        *logHandle
	next     cluster.LSN
	run      []logserver.Record // the next entries, from this life's own memory
	found    []logserver.Found  // or from a server
	gapTo    cluster.LSN
	fetching uint64 // number of the request under way, 0: none
	fetches  uint64
	attempt  int
	ready    func() // told when there may be something new; it must not read at once
	closed   bool
}

func (h *logHandle) reader(from cluster.LSN, ready func()) *reader {
	r := &reader{h: h, next: max(from, cluster.OldestLSN), ready: ready}
	h.readers = append(h.readers, r)
	return r
}

func (r *reader) close() {
	r.closed = true
	for i, o := range r.h.readers {
		if o == r {
			r.h.readers = append(r.h.readers[:i:i], r.h.readers[i+1:]...)
			return
		}
	}
}

func (r *reader) wake() {
	if !r.closed {
		r.ready()
	}
}

// tryNext returns the next entry if there is one now.
func (r *reader) tryNext() (bifrost.Entry, bool) {
	if r.closed {
		return bifrost.Entry{}, false
	}
	if len(r.run) == 0 && len(r.found) == 0 {
		if e, ok := r.refill(); ok {
			return e, true
		}
	}
	e := bifrost.Entry{Kind: bifrost.Data, LSN: r.next, To: r.next}
	switch {
	case len(r.run) > 0:
		e.Record = r.run[0]
		r.run = r.run[1:]
	case len(r.found) > 0:
		e.Record = r.found[0].Record
		r.found = r.found[1:]
	default:
		return bifrost.Entry{}, false
	}
	r.next++
	return e, true
}

func (r *reader) gap(to cluster.LSN) bifrost.Entry {
	e := bifrost.Entry{Kind: bifrost.TrimGap, LSN: r.next, To: to}
	r.next, r.gapTo = to+1, 0
	return e
}

func (r *reader) refill() (bifrost.Entry, bool) {
	h := r.h
	if r.gapTo >= r.next {
		return r.gap(r.gapTo), true
	}
	if r.fetching != 0 || h.chain.IsZero() {
		return bifrost.Entry{}, false
	}
	f := h.chain.FindSegment(r.next)
	seg, end := f.Segment, f.Tail
	switch f.Place {
	case chain.Trimmed:
		return r.gap(seg.Base - 1), true
	case chain.BeyondTail:
		return bifrost.Entry{}, false
	}
	if end == cluster.MaxLSN {
		end = seg.LSN(h.known(seg))
		if r.next >= end {
			h.follow(seg)
			return bifrost.Entry{}, false
		}
	}
	if run := h.cached(seg, r.next); len(run) > 0 {
		r.run = run[:min(uint64(len(run)), uint64(end-r.next))]
		return bifrost.Entry{}, false
	}
	r.fetch(seg, end)
	return bifrost.Entry{}, false
}

// cached are the records from lsn on that this life has committed.
func (h *logHandle) cached(seg chain.Segment, lsn cluster.LSN) []logserver.Record {
	c := h.cache[seg.Loglet]
	if at := int(lsn - seg.Base); at < len(c) {
		return c[at:]
	}
	return nil
}

func (r *reader) fetch(seg chain.Segment, end cluster.LSN) {
	h := r.h
	r.fetches++
	r.fetching = r.fetches
	n := len(seg.NodeSet)
	own := 0
	for i, s := range seg.NodeSet {
		if s == h.n.id {
			own = i
		}
	}
	to := seg.NodeSet[(own+r.attempt)%n]
	f := &fetching{r: r, id: r.fetching, seg: seg, end: end}
	h.n.Call(to, &logserver.ReadRequest{Header: logserver.Header{Loglet: seg.Loglet, KnownGlobalTail: seg.Offset(end)},
		From: seg.Offset(r.next), To: seg.Offset(end), MaxBytes: 16 << 10}, f.answered)
	h.n.schedule(time.Second, f)
}

// fetching is a request of a reader for what comes next.
type fetching struct {
	r   *reader
	id  uint64
	seg chain.Segment
	end cluster.LSN
}

func (f *fetching) answered(m transport.Message, err error) {
	r := f.r
	if r.fetching != f.id || r.closed {
		return
	}
	reply, _ := m.(*logserver.ReadReply)
	if err != nil || reply == nil || !r.accept(f.seg, f.end, reply) {
		f.run()
		return
	}
	r.fetching, r.attempt = 0, 0
	r.ready()
}

// run is the failure of the request, or the end of the time that it has: the next server is asked.
func (f *fetching) run() {
	r := f.r
	if r.fetching != f.id || r.closed {
		return
	}
	r.attempt++
	n := len(f.seg.NodeSet)
	if r.attempt%n != 0 {
		r.fetching = 0
		r.ready()
		return
	}
	r.h.n.after(min(time.Duration(r.attempt/n)*20*time.Millisecond, time.Second), func() {
		if r.fetching == f.id {
			r.fetching = 0
			r.wake()
		}
	})
}

// accept takes what a server has from next on; false when it has nothing there.
func (r *reader) accept(seg chain.Segment, end cluster.LSN, reply *logserver.ReadReply) bool {
	offset := seg.Offset(r.next)
	if reply.TrimmedTo >= offset {
		r.gapTo = min(seg.LSN(reply.TrimmedTo), end-1)
		return true
	}
	if reply.Status != logserver.StatusOK {
		return false
	}
	n := 0
	for n < len(reply.Records) && reply.Records[n].Offset == offset+cluster.Offset(n) {
		n++
	}
	r.found = reply.Records[:n]
	return n > 0
}
