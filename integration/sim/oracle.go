package sim

import (
	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/nodes/bifrost"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
)

// oracle knows everything and compares what happens with what was promised about the log. The names of the
// checks are those of the table in DESIGN.md.
type oracle struct {
	w       *world
	loglets map[cluster.LogletID]*seen
	logs    []seenLog
}

// seen is what is known of one loglet.
type seen struct {
	content   []uint64 // by offset-1, 0 unknown
	committed cluster.Offset
	sealedAt  cluster.Offset // lowest sealed tail that anybody was told, 0 none
	trim      cluster.Offset // highest that a trim was asked for
	quorum    *cluster.Quorum
	sealed    map[cluster.NodeID]bool           // whose seal was seen
	trimmed   map[cluster.NodeID]cluster.Offset // who has trimmed up to where, durably
	checked   cluster.Offset                    // copies are counted up to here
	told      cluster.Offset                    // highest tail that anybody was told
}

// seenLog is what is known of one log.
type seenLog struct {
	content []uint64 // by LSN, what was acknowledged or delivered first
	tail    cluster.LSN
	trim    cluster.LSN
	version uint64
	chain   chain.Chain
}

func newOracle(w *world) *oracle {
	return &oracle{w: w, loglets: map[cluster.LogletID]*seen{}, logs: make([]seenLog, w.cfg.logs)}
}

func (o *oracle) of(id cluster.LogletID) *seen {
	s := o.loglets[id]
	if s == nil {
		s = &seen{committed: 1, checked: 1, sealed: map[cluster.NodeID]bool{}, trimmed: map[cluster.NodeID]cluster.Offset{}}
		o.loglets[id] = s
	}
	return s
}

func (s *seen) is(at cluster.Offset, content uint64) (old uint64, ok bool) {
	for int(at) > len(s.content) {
		s.content = append(s.content, 0)
	}
	old = s.content[at-1]
	if old == 0 {
		s.content[at-1] = content
		return content, true
	}
	return old, old == content
}

// stored: a server is about to have records durably.
func (o *oracle) stored(n *node, w *logserver.Write) {
	if w.Kind != logserver.WriteRecords {
		return
	}
	s := o.of(w.Loglet)
	for i := range w.Records {
		at := w.First + cluster.Offset(i)
		if old, ok := s.is(at, contentOf(&w.Records[i])); !ok {
			violated("one content per position", "loglet %s offset %d is %x and node %s stores %x", w.Loglet, at, old, n.id, contentOf(&w.Records[i]))
		}
	}
}

// durable: a loglet was told that a write is durable.
func (o *oracle) durable(n *node, l *logserver.Loglet, w *logserver.Write) {
	st := l.State(logserver.StatusOK)
	first := st.KnownGlobalTail
	if w.Kind == logserver.WriteRecords {
		first = max(first, w.First)
	}
	o.complete(n, w.Loglet, first, st.LocalTail)
	if w.Kind == logserver.WriteSeal {
		o.of(w.Loglet).sealed[n.id] = true
	}
	if w.Kind == logserver.WriteTrim {
		o.trimmed(n, w, st)
	}
}

// trimmed: a server has deleted a prefix.
func (o *oracle) trimmed(n *node, w *logserver.Write, st logserver.StateReply) {
	s := o.of(w.Loglet)
	if st.TrimPoint >= st.LocalTail {
		violated("trim", "node %s trimmed loglet %s to %d, its tail is %d", n.id, w.Loglet, st.TrimPoint, st.LocalTail)
	}
	if w.TrimPoint > s.trim || w.TrimPoint <= s.trimmed[n.id] {
		violated("trim", "node %s trims loglet %s from %d to %d, asked was for %d", n.id, w.Loglet, s.trimmed[n.id], w.TrimPoint, s.trim)
	}
	s.trimmed[n.id] = w.TrimPoint
}

// complete is L1: between the tail that a server knows to be committed and its own it has everything.
func (o *oracle) complete(n *node, id cluster.LogletID, from, to cluster.Offset) {
	for at := from; at < to; at++ {
		if !n.store.has(id, at) {
			violated("L1", "node %s lacks offset %d of loglet %s below its tail %d", n.id, at, id, to)
		}
	}
}

// loaded: a server has read what it remembers of a loglet.
func (o *oracle) loaded(n *node, id cluster.LogletID, l *logserver.Loglet) {
	m := n.store.load(id)
	if m.DataLoss {
		if n.id != o.w.cfg.victim || !o.w.victimLost {
			violated("loss", "node %s has lost nothing and says that it has lost records of loglet %s", n.id, id)
		}
		out := &logserver.Output{}
		l.Info(nil, &logserver.InfoRequest{}, out)
		if st := out.Replies[0].State.Status; st != logserver.StatusDataLoss {
			violated("loss", "node %s has lost records of loglet %s and answers for it with status %v", n.id, id, st)
		}
		return
	}
	st := l.State(logserver.StatusOK)
	o.complete(n, id, st.KnownGlobalTail, st.LocalTail)
	if o.of(id).sealed[n.id] && !st.Sealed {
		violated("seal", "node %s has forgotten that loglet %s is sealed", n.id, id)
	}
	if was := o.of(id).trimmed[n.id]; st.TrimPoint < was && !(n.id == o.w.cfg.victim && o.w.victimLost) {
		violated("trim", "node %s had trimmed loglet %s to %d and comes back with %d", n.id, id, was, st.TrimPoint)
	}
}

func (s *seen) quorumOf(o *oracle, seg chain.Segment) *cluster.Quorum {
	if s.quorum == nil {
		s.quorum = cluster.NewQuorum(seg.NodeSet, seg.Replication, healthy{o.w})
	}
	return s.quorum
}

// healthy is the membership as if no disk had been lost.
type healthy struct{ w *world }

func (h healthy) Storage(id cluster.NodeID) (cluster.StorageState, cluster.Location) {
	return cluster.StorageReadWrite, h.w.cfg.location(id)
}

// copies is whether a write quorum has a record; a disk that lost something counts as having had it.
func (o *oracle) copies(seg chain.Segment, s *seen, at cluster.Offset) bool {
	q := s.quorumOf(o, seg)
	var has cluster.Members
	for i, id := range seg.NodeSet {
		n := o.w.holder(id)
		if n.store.has(seg.Loglet, at) || at <= n.store.load(seg.Loglet).TrimPoint || id == o.w.cfg.victim && o.w.victimLost {
			has.Add(i)
		}
	}
	return q.WriteQuorum(has)
}

// committed: a sequencer acknowledges records.
func (o *oracle) committed(n *node, seg chain.Segment, first cluster.Offset, records []logserver.Record) {
	s := o.of(seg.Loglet)
	next := first + cluster.Offset(len(records))
	if s.sealedAt != 0 && next > s.sealedAt {
		violated("seal", "loglet %s: offset %d is acknowledged after it was found sealed at %d", seg.Loglet, next-1, s.sealedAt)
	}
	if first != s.committed {
		violated("order", "loglet %s: offset %d is acknowledged after %d", seg.Loglet, first, s.committed-1)
	}
	for i := range records {
		at := first + cluster.Offset(i)
		if !o.copies(seg, s, at) {
			violated("durable acknowledgements", "loglet %s: offset %d is acknowledged without a write quorum of durable copies", seg.Loglet, at)
		}
		if old, ok := s.is(at, contentOf(&records[i])); !ok {
			violated("one content per position", "loglet %s offset %d is %x and is acknowledged as %x", seg.Loglet, at, old, contentOf(&records[i]))
		}
		o.known(seg.Loglet.LogID(), seg.LSN(at), &records[i], "acknowledged")
	}
	s.committed = next
	o.w.acknowledged += uint64(len(records))
	l := &o.logs[seg.Loglet.LogID()]
	l.tail = max(l.tail, seg.LSN(next))
}

// known: a position of a log has a content.
func (o *oracle) known(log cluster.LogID, lsn cluster.LSN, r *logserver.Record, how string) {
	l := &o.logs[log]
	for int(lsn) >= len(l.content) {
		l.content = append(l.content, 0)
	}
	c := contentOf(r)
	switch l.content[lsn] {
	case 0:
		l.content[lsn] = c
	case c:
	default:
		violated("one content per position", "log %d position %d is %x and is %s as %x", log, lsn, l.content[lsn], how, c)
	}
}

// atLeast is the least tail that a finder which begins now may find: what was acknowledged, and what was told before.
func (o *oracle) atLeast(id cluster.LogletID) cluster.Offset {
	s := o.of(id)
	return max(s.committed, s.told)
}

// told: a sequencer has told its tail.
func (o *oracle) told(id cluster.LogletID, tail cluster.Offset) {
	if s := o.of(id); tail > s.committed {
		violated("tail", "loglet %s: the sequencer tells tail %d, acknowledged is %d", id, tail, s.committed)
	}
}

// found: a finder has found a tail; before is what atLeast was when it began.
func (o *oracle) found(seg chain.Segment, res loglet.TailResult, before cluster.Offset) {
	s := o.of(seg.Loglet)
	o.w.trace("found", uint64(seg.Loglet), uint64(res.Tail), uint64(b2i(res.Sealed)))
	if res.Tail < before {
		violated("durable acknowledgements", "loglet %s: tail %d was found, but %d was acknowledged or told before", seg.Loglet, res.Tail, before-1)
	}
	s.told = max(s.told, res.Tail)
	if res.Sealed {
		if res.Tail < s.committed {
			violated("durable acknowledgements", "loglet %s ends at %d, but %d is acknowledged", seg.Loglet, res.Tail, s.committed-1)
		}
		if s.sealedAt == 0 || res.Tail < s.sealedAt {
			s.sealedAt = res.Tail
		}
	}
	for at := max(s.checked, s.trim+1); at < res.Tail; at++ {
		if !o.copies(seg, s, at) {
			violated("repair", "loglet %s: tail %d was found, but offset %d is not on a write quorum", seg.Loglet, res.Tail, at)
		}
		s.checked = at + 1
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// trimming: somebody asks for a trim.
func (o *oracle) trimming(seg chain.Segment, upTo cluster.Offset) {
	s := o.of(seg.Loglet)
	s.trim = max(s.trim, upTo)
	l := &o.logs[seg.Loglet.LogID()]
	l.trim = max(l.trim, seg.LSN(upTo))
}

// chained: the chain of a log was changed in the metadata.
func (o *oracle) chained(log cluster.LogID, c chain.Chain, version uint64) {
	l := &o.logs[log]
	if err := c.Validate(); err != nil {
		violated("chain", "log %d has a chain that is not valid: %v", log, err)
	}
	if version != l.version+1 {
		violated("versions", "chain of log %d has version %d after %d", log, version, l.version)
	}
	for i := range c.Len() {
		tail, closed := c.Tail(i)
		seg := c.Segment(i)
		if !closed {
			continue
		}
		s := o.of(seg.Loglet)
		end := seg.Offset(tail)
		if end < s.committed {
			violated("durable acknowledgements", "loglet %s is ended at %d in the chain, but %d is acknowledged", seg.Loglet, end, s.committed-1)
		}
		if s.sealedAt == 0 || end < s.sealedAt {
			s.sealedAt = end
		}
		if old, ok := l.chain.FindLoglet(seg.Index()); ok {
			if was, closed := l.chain.Tail(old); closed && was != tail {
				violated("chain", "loglet %s ended at %d in the chain and now at %d", seg.Loglet, was, tail)
			}
		}
	}
	if last := c.Last(); !l.chain.IsZero() && last.Index() < l.chain.LastIndex() {
		violated("chain", "log %d goes back from segment %d to %d", log, l.chain.LastIndex(), last.Index())
	}
	for i := 0; i < l.chain.Len() && l.chain.Segment(i).Index() < c.First().Index(); i++ {
		if tail, closed := l.chain.Tail(i); (!closed || tail-1 > l.trim) && !l.replaced(i, c) {
			violated("chain", "log %d loses segment %d with tail %d, it is trimmed to %d", log, l.chain.Segment(i).Index(), tail, l.trim)
		}
	}
	l.chain, l.version = c, version
}

// replaced reports whether an empty segment has made room for its successor.
func (l *seenLog) replaced(i int, c chain.Chain) bool {
	return i+1 == l.chain.Len() && c.First().Base == l.chain.Segment(i).Base
}

// delivered: a reader has passed an entry. expect is the position that it has to be at.
func (o *oracle) delivered(log cluster.LogID, e *bifrost.Entry, expect cluster.LSN) {
	l := &o.logs[log]
	if e.LSN != expect || e.To < e.LSN {
		violated("readers", "log %d: a reader is at %d and gets %d to %d", log, expect, e.LSN, e.To)
	}
	if e.Kind == bifrost.TrimGap {
		if e.To > l.trim {
			violated("trim", "log %d: a reader gets a trim gap to %d, trimmed is %d", log, e.To, l.trim)
		}
		return
	}
	if e.LSN >= l.tail {
		// It was not acknowledged; then it must be committed by a repair or by a sequencer that died.
		f := l.chain.FindSegment(e.LSN)
		at := f.Segment.Offset(e.LSN)
		if s := o.of(f.Segment.Loglet); f.Place != chain.InSegment || at > s.trim && !o.copies(f.Segment, s, at) {
			violated("readers", "log %d: position %d is delivered but not committed", log, e.LSN)
		}
		l.tail = e.LSN + 1
	}
	o.known(log, e.LSN, &e.Record, "delivered")
}
