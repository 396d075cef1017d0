package bifrost

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
)

// logState is what the node knows of one log: the newest chain, the sequencer when it is here, who
// reads. Lock order: Reader.mu before logState.mu; drivers and readers are told without it.
type logState struct {
	b         *Bifrost
	id        cluster.LogID
	watchOnce sync.Once
	unwatch   func() // of the chain; set by watchOnce

	// changing is held (by a send) while the chain is being changed by this node: one change at a time.
	changing chan struct{}

	mu       sync.Mutex
	chain    chain.Chain
	version  uint64
	segments []segment
	driver   *loglet.Driver // of the last segment, if this life of the node sequences it
	open     map[cluster.LogletID]*openSegment
	readers  map[*Reader]struct{}
	closed   bool
}

// openSegment is the watched tail of a segment that was the last one when somebody needed its tail.
// It is found by the segment's id because for a moment two segments may count as the last one: the
// readers of a segment and its sequencer must share one tail whoever comes first.
type openSegment struct {
	tail *loglet.Tail
	stop context.CancelFunc // ends the goroutine that follows a remote sequencer; nil when there is none
}

func newLogState(b *Bifrost, id cluster.LogID) *logState {
	return &logState{b: b, id: id, changing: make(chan struct{}, 1), open: map[cluster.LogletID]*openSegment{}, readers: map[*Reader]struct{}{}}
}

func (l *logState) watch() {
	l.unwatch = l.b.cfg.Chains.Watch(l.id, func(c chain.Chain, version uint64) { l.install(c, version, nil) })
}

// close ends the log's readers, sequencer and watches.
func (l *logState) close() {
	l.watchOnce.Do(func() { l.unwatch = func() {} })
	l.unwatch()
	l.mu.Lock()
	l.closed = true
	driver := l.driver
	readers := l.readersLocked()
	l.stopFollowingLocked()
	l.mu.Unlock()
	if driver != nil {
		driver.Stop(ErrClosed)
	}
	for _, r := range readers {
		r.Close()
	}
}

func (l *logState) readersLocked() []*Reader {
	readers := make([]*Reader, 0, len(l.readers))
	for r := range l.readers {
		readers = append(readers, r)
	}
	return readers
}

func (l *logState) addReader(r *Reader) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.readers[r] = struct{}{}
	return true
}

func (l *logState) removeReader(r *Reader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.readers, r)
	if len(l.readers) == 0 {
		l.stopFollowingLocked()
	}
}

// stopFollowingLocked ends the following of remote sequencers; the next reader begins it again.
func (l *logState) stopFollowingLocked() {
	for id, o := range l.open {
		if o.stop != nil {
			o.stop()
			delete(l.open, id)
		}
	}
}

// closeTailsLocked forgets the tails of segments that are not the last one any more.
func (l *logState) closeTailsLocked(last cluster.LogletID) {
	for id, o := range l.open {
		if id >= last {
			continue
		}
		if o.stop != nil {
			o.stop()
		}
		delete(l.open, id)
	}
}

// consumed says that a reader has passed everything of a loglet below next. The cache forgets it when
// nobody else reads the log here.
func (l *logState) consumed(id cluster.LogletID, next cluster.Offset) {
	l.mu.Lock()
	only := len(l.readers) <= 1
	l.mu.Unlock()
	if only {
		l.b.cache.release(id, next)
	}
}

// install takes a newer chain; driver is the sequencer of its last segment when that was just made here.
func (l *logState) install(c chain.Chain, version uint64, driver *loglet.Driver) {
	segments := l.b.segmentsOf(c)
	l.mu.Lock()
	if l.closed || (version <= l.version && driver == nil) {
		l.mu.Unlock()
		if driver != nil {
			driver.Stop(ErrClosed)
		}
		return
	}
	old := l.driver
	if version > l.version {
		l.chain, l.version, l.segments = c, version, segments
	}
	last := l.segments[len(l.segments)-1].id
	switch {
	case driver != nil && driver.Params().ID == last:
		l.driver = driver
	case driver != nil: // superseded before it could begin
		old, l.driver = driver, nil
	case old == nil || old.Params().ID != last:
		l.driver = nil
	}
	if old == l.driver {
		old = nil
	}
	l.closeTailsLocked(last)
	readers := l.readersLocked()
	l.mu.Unlock()
	if old != nil {
		old.Stop(loglet.ErrSealed)
	}
	for _, r := range readers {
		r.notify()
	}
}

func (b *Bifrost) segmentsOf(c chain.Chain) []segment {
	segments := make([]segment, c.Len())
	for i := range segments {
		end, closed := c.Tail(i)
		segments[i] = b.segmentOf(c.Segment(i), end, !closed)
	}
	return segments
}

// locate finds the segment of an LSN, or the gap that it lies in. found is false when the chain does
// not reach that far yet.
func (l *logState) locate(next cluster.LSN) (seg segment, gapTo cluster.LSN, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.chain.IsZero() {
		return segment{}, 0, false
	}
	f := l.chain.FindSegment(next)
	switch f.Place {
	case chain.Trimmed:
		return segment{}, f.Segment.Base - 1, false
	case chain.InSegment:
		return l.segments[f.Position], 0, true
	default:
		return segment{}, 0, false
	}
}

// openTail is the watched tail of the open segment.
func (l *logState) openTail(seg segment) *loglet.Tail {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.openTailLocked(seg.id)
	if o.stop == nil && seg.sequencer != l.b.cfg.Self && !l.closed {
		ctx, stop := context.WithCancel(l.b.ctx)
		if l.b.run(func() { l.follow(ctx, seg, o.tail) }) {
			o.stop = stop
		} else {
			stop()
		}
	}
	return o.tail
}

func (l *logState) openTailLocked(id cluster.LogletID) *openSegment {
	o := l.open[id]
	if o == nil {
		o = &openSegment{tail: loglet.NewTail()}
		l.open[id] = o
	}
	return o
}

// active is the sequencer of the last segment, nil when it is not here or takes nothing any more.
func (l *logState) active() (*loglet.Driver, cluster.LSN) {
	l.mu.Lock()
	driver := l.driver
	var base cluster.LSN
	if driver != nil {
		base = l.segments[len(l.segments)-1].base
	}
	l.mu.Unlock()
	if driver == nil || driver.Stopped() != nil {
		return nil, 0
	}
	return driver, base
}

// lock makes this goroutine the only one of the node that changes the chain, until unlock.
func (l *logState) lock(ctx context.Context) error {
	select {
	case l.changing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another change of log %d: %w", l.id, context.Cause(ctx))
	}
}

func (l *logState) unlock() { <-l.changing }

// writable returns a sequencer on this node, extending the log when there is none.
func (l *logState) writable(ctx context.Context) (*loglet.Driver, cluster.LSN, error) {
	if err := l.lock(ctx); err != nil {
		return nil, 0, err
	}
	defer l.unlock()
	for n := 0; ; n++ {
		if d, base := l.active(); d != nil {
			return d, base, nil
		}
		if n > 0 { // somebody else extends the log as well: give them a moment
			l.b.pause(ctx, min(time.Duration(n-1)*20*time.Millisecond, time.Second))
		}
		if err := l.extend(ctx); err != nil {
			return nil, 0, err
		}
	}
}

// ensure creates the log if it does not exist.
func (l *logState) ensure(ctx context.Context) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	c, err := l.current(ctx)
	if err != nil || !c.IsZero() {
		return err
	}
	return l.extend(ctx)
}

func (l *logState) sealAndExtend(ctx context.Context) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	c, err := l.current(ctx)
	if err != nil {
		return err
	}
	for before := c; ; {
		if err := l.extend(ctx); err != nil {
			return err
		}
		c, err := l.current(ctx)
		if err != nil || before.IsZero() || c.LastIndex() > before.LastIndex() {
			return err
		}
	}
}

// current is the known chain; it is loaded when none is known.
func (l *logState) current(ctx context.Context) (chain.Chain, error) {
	l.mu.Lock()
	c := l.chain
	l.mu.Unlock()
	if !c.IsZero() {
		return c, nil
	}
	return l.reload(ctx)
}

// reload loads the newest chain; the zero chain when the log does not exist.
func (l *logState) reload(ctx context.Context) (chain.Chain, error) {
	c, version, err := l.b.cfg.Chains.Get(ctx, l.id)
	if err != nil {
		return chain.Chain{}, fmt.Errorf("load chain of log %d: %w", l.id, err)
	}
	if version > 0 {
		l.install(c, version, nil)
	}
	return c, nil
}

// extend tries once to put a segment of this node at the end of the log. Losing against somebody
// else is no error: the newer chain is known afterwards. The caller holds the change lock.
func (l *logState) extend(ctx context.Context) error {
	if l.b.refusesWrites() {
		return ErrClosed
	}
	old, err := l.current(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	version := l.version
	if version > 0 {
		old = l.chain
	}
	l.mu.Unlock()
	next, err := l.successor(ctx, old)
	if err != nil {
		return err
	}
	version, won, err := l.swap(ctx, next, version)
	if err != nil || !won {
		return err
	}
	l.b.metrics.reconfigurations.Inc()
	l.begin(next, version)
	return nil
}

// successor is the chain with a new segment of this node.
func (l *logState) successor(ctx context.Context, old chain.Chain) (chain.Chain, error) {
	if old.IsZero() {
		p, err := l.place(nil)
		if err != nil {
			return old, err
		}
		return chain.New(l.id, p)
	}
	base, err := l.sealedTail(ctx, old)
	if err != nil {
		return old, err
	}
	p, err := l.place(old.Last().NodeSet)
	if err != nil {
		return old, err
	}
	return old.Extend(old.LastIndex(), base, p)
}

func (l *logState) place(previous []cluster.NodeID) (chain.Params, error) {
	r, nodes, err := l.b.cfg.Place(l.id, previous)
	if err != nil {
		return chain.Params{}, fmt.Errorf("choose nodes for log %d: %w", l.id, err)
	}
	return chain.Params{Sequencer: l.b.cfg.Self, Replication: r, NodeSet: nodes}, nil
}

// sealedTail seals the last segment and returns its final tail, which is committed.
func (l *logState) sealedTail(ctx context.Context, c chain.Chain) (cluster.LSN, error) {
	if s, sealed := c.Sealed(); sealed {
		return s.Tail, nil
	}
	seg := l.b.segmentOf(c.Last(), 0, true)
	f := loglet.NewFinder(seg.params(), loglet.SealTail, l.b.cfg.Finder)
	l.mu.Lock()
	driver := l.driver
	l.mu.Unlock()
	if driver != nil && driver.Params().ID == seg.id {
		f.Know(driver.Stop(loglet.ErrSealed))
	}
	if err := l.drive(ctx, &seg, "seal", f); err != nil {
		return 0, err
	}
	res, _ := f.Done()
	return seg.lsnOf(res.Tail), nil
}

// swap stores a chain. won is false when somebody else was faster. An unknown outcome is cleared up by
// looking: no other can have made the same segment, because its sequencer is this life of the node.
func (l *logState) swap(ctx context.Context, next chain.Chain, version uint64) (newVersion uint64, won bool, err error) {
	newVersion, err = l.b.cfg.Chains.CompareAndSwap(ctx, l.id, next, version)
	switch {
	case err == nil:
		return newVersion, true, nil
	case errors.Is(err, ErrConflict):
		_, err = l.reload(ctx)
		return 0, false, err
	case !errors.Is(err, ErrCASUnknown):
		return 0, false, fmt.Errorf("change chain of log %d: %w", l.id, err)
	}
	c, v, err := l.b.cfg.Chains.Get(ctx, l.id)
	if err != nil {
		return 0, false, fmt.Errorf("look whether the chain of log %d was changed: %w", l.id, err)
	}
	if v > version && !c.IsZero() && sameSegment(c.Last(), next.Last()) {
		return v, true, nil
	}
	if v > 0 {
		l.install(c, v, nil)
	}
	return 0, false, nil
}

func sameSegment(a, b chain.Segment) bool {
	return a.Loglet == b.Loglet && a.Base == b.Base && a.Sequencer == b.Sequencer && slices.Equal(a.NodeSet, b.NodeSet)
}

// begin starts the sequencer of the chain's last segment, which this node has just made.
func (l *logState) begin(c chain.Chain, version uint64) {
	seg := l.b.segmentOf(c.Last(), 0, true)
	l.mu.Lock()
	tail := l.openTailLocked(seg.id).tail
	l.mu.Unlock()
	listener := func(first cluster.Offset, records []logserver.Record) { l.b.committed(seg.id, first, records) }
	d := loglet.NewDriver(seg.params(), l.b.cfg.Sequencer, l.b.cfg.Net, l.b.cfg.Clock, tail, listener)
	d.Measure(l.b.metrics.stored(c.Last().NodeSet))
	l.install(c, version, d)
}

// committed keeps committed records for the local readers, before they learn of the new tail.
func (b *Bifrost) committed(id cluster.LogletID, first cluster.Offset, records []logserver.Record) {
	b.cache.put(id, first, records)
	b.metrics.committed(records)
}

// sealOwn ends and seals the segment that this node sequences, if there is one.
func (l *logState) sealOwn(ctx context.Context) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	d, _ := l.active()
	l.mu.Lock()
	c := l.chain
	l.mu.Unlock()
	if d == nil || c.Last().Loglet != d.Params().ID { // somebody else has continued the log
		return nil
	}
	_, err := l.sealedTail(ctx, c)
	return err
}

// findTail returns a committed tail of the log. A segment that turns out to be sealed gets its end
// written into the chain before that end is told, because a successor may be about to appear.
func (l *logState) findTail(ctx context.Context) (cluster.LSN, bool, error) {
	for {
		c, err := l.reload(ctx)
		if err != nil {
			return 0, false, err
		}
		if c.IsZero() {
			return 0, false, fmt.Errorf("find tail of log %d: %w", l.id, ErrNoLog)
		}
		if s, sealed := c.Sealed(); sealed {
			return s.Tail, true, nil
		}
		seg := l.b.segmentOf(c.Last(), 0, true)
		res, err := l.findLogletTail(ctx, seg)
		if err != nil {
			return 0, false, err
		}
		tail := seg.lsnOf(res.Tail)
		if !res.Sealed {
			return tail, false, nil
		}
		if err := l.sealChain(ctx, c, tail); err != nil {
			return 0, false, err
		}
	}
}

// findLogletTail asks the segment's sequencer, or its log servers when it does not answer.
func (l *logState) findLogletTail(ctx context.Context, seg segment) (loglet.TailResult, error) {
	if d, _ := l.active(); d != nil && d.Params().ID == seg.id {
		return loglet.TailResult{Tail: d.Tail().Load()}, nil
	}
	gone := seg.sequencer.ID == l.b.cfg.Self.ID
	if !gone {
		r, err := l.b.askTail(ctx, seg, 0, l.b.cfg.ReadTimeout)
		if err == nil && !r.Gone {
			return loglet.TailResult{Tail: r.Tail}, nil
		}
		gone = err == nil && r.Gone
	}
	f := loglet.NewFinder(seg.params(), loglet.FindTail, l.b.cfg.Finder)
	if gone {
		f.SequencerGone()
	}
	if err := l.drive(ctx, &seg, "find tail of", f); err != nil {
		return loglet.TailResult{}, err
	}
	res, _ := f.Done()
	return res, nil
}

// sealChain writes the end of the sealed last segment into the chain.
func (l *logState) sealChain(ctx context.Context, c chain.Chain, tail cluster.LSN) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	l.mu.Lock()
	version, known := l.version, l.chain
	l.mu.Unlock()
	if _, sealed := known.Sealed(); sealed || known.LastIndex() != c.LastIndex() {
		return nil // somebody else has, perhaps at another tail: the caller looks again
	}
	next, err := known.Seal(c.LastIndex(), chain.Seal{Tail: tail, By: l.b.cfg.Self, AtMillis: l.b.cfg.Clock.Now().UnixMilli()})
	if err != nil {
		return err
	}
	newVersion, err := l.b.cfg.Chains.CompareAndSwap(ctx, l.id, next, version)
	switch {
	case err == nil:
		l.install(next, newVersion, nil)
		return nil
	case errors.Is(err, ErrConflict), errors.Is(err, ErrCASUnknown):
		return nil // the caller looks again
	default:
		return fmt.Errorf("seal chain of log %d: %w", l.id, err)
	}
}

// trim deletes up to upTo in every segment, then drops the segments that have become empty.
func (l *logState) trim(ctx context.Context, upTo cluster.LSN) error {
	tail, _, err := l.findTail(ctx)
	if err != nil {
		return err
	}
	upTo = min(upTo, tail-1)
	c, err := l.current(ctx)
	if err != nil {
		return err
	}
	for i := range c.Len() {
		end, closed := c.Tail(i)
		if !closed {
			end = tail
		}
		seg := l.b.segmentOf(c.Segment(i), end, false)
		if seg.base > upTo || end <= seg.base {
			break
		}
		last := min(upTo, end-1)
		t := loglet.NewTrimmer(seg.params(), seg.offsetOf(last), seg.offsetOf(end), l.b.cfg.Finder)
		if err := l.drive(ctx, &seg, "trim", t); err != nil {
			return err
		}
		l.b.cache.release(seg.id, seg.offsetOf(last+1))
	}
	return l.trimChain(ctx, upTo)
}

// trimChain drops leading segments that are trimmed wholly.
func (l *logState) trimChain(ctx context.Context, upTo cluster.LSN) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	for {
		l.mu.Lock()
		c, version := l.chain, l.version
		l.mu.Unlock()
		next, dropped := c.TrimPrefix(upTo)
		if len(dropped) == 0 {
			return nil
		}
		newVersion, err := l.b.cfg.Chains.CompareAndSwap(ctx, l.id, next, version)
		switch {
		case err == nil:
			l.install(next, newVersion, nil)
			return nil
		case !errors.Is(err, ErrConflict) && !errors.Is(err, ErrCASUnknown):
			return fmt.Errorf("trim chain of log %d: %w", l.id, err)
		}
		if _, err := l.reload(ctx); err != nil {
			return err
		}
	}
}

// trimPoint asks the oldest segment's log servers.
func (l *logState) trimPoint(ctx context.Context) (cluster.LSN, error) {
	c, err := l.reload(ctx)
	if err != nil {
		return 0, err
	}
	if c.IsZero() {
		return 0, fmt.Errorf("find trim point of log %d: %w", l.id, ErrNoLog)
	}
	end, closed := c.Tail(0)
	seg := l.b.segmentOf(c.First(), end, !closed)
	f := loglet.NewFinder(seg.params(), loglet.FindTail, l.b.cfg.Finder)
	if d, _ := l.active(); d != nil && d.Params().ID == seg.id {
		f.Know(d.Tail().Load())
	}
	if err := l.drive(ctx, &seg, "find trim point of", f); err != nil {
		return 0, err
	}
	res, _ := f.Done()
	return max(c.TrimPoint(), seg.lsnOf(res.TrimPoint)), nil
}
