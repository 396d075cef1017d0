package partition

import (
	"time"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/record/recordpb"
)

// shuffle delivers the outbox of a led partition to the partitions that its messages are for. It is a
// step structure owned by the leader's loop; the only things outside are send and the acknowledgements
// that come back through acked.
//
// A receiver drops every message whose index is not above the last one it applied of this outbox, so
// a message overtaken by a later one is lost for ever. Two rules prevent it: towards one destination
// messages are sent in index order, and after a failed batch nothing is sent until every batch in
// flight has been answered; then sending starts again at the oldest message that was not acknowledged.
// And a leader takes a batch only if it took the one before: until the news of a failure has come here, the
// next batch may go to a successor of the leader that failed. See Origin.
//
// A destination that is not there, or slow, must not use up the memory that the others need. A lane holds at most a
// quarter of it, and nothing while it is broken; the rest is left in the store and is read again when its turn comes.
type shuffle struct {
	dest func(cluster.PartitionKey) cluster.PartitionID
	// from is where the messages come from; the rest of it is a lane's.
	from Origin
	// send appends messages, in order, to the log of the destination's leader. It must not block. Unless it
	// returns an error, the batch is answered once through acked, in the order of the sends.
	send func(d cluster.PartitionID, b batch) error
	// load reads messages from the store, from an index (inclusive) on: at most limit, and no more once bytes are
	// reached, but at least one if there is one. more says that there are more.
	load func(from uint64, limit, bytes int) (ms []outMessage, more bool, err error)

	limit      int // messages kept in memory
	limitBytes int // of them, more or less
	held       int // messages in memory now
	heldBytes  int
	next       uint64
	// behind says that the store has messages from next on that were not looked at.
	behind bool
	left   int // lanes that have left messages in the store
	lanes  map[cluster.PartitionID]*lane
	dests  []cluster.PartitionID // keys of lanes, in the order in which they came up

	// Delivered messages: everything below base is, and of those from base on the ones set in done.
	base uint64
	done []bool
}

type outMessage struct {
	index uint64
	cmd   *recordpb.Command // with the partition key of its destination
	bytes int               // about what cmd takes
}

// lane is the way to one destination.
type lane struct {
	queue []outMessage // not acknowledged, in index order
	bytes int          // of them
	sent  int          // of queue: in flight
	// left says that messages from index from on and below shuffle.next, if they are for this lane, are in the store only.
	left     bool
	from     uint64
	inFlight int // batches in flight
	broken   bool
	retryAt  time.Time
	backoff  time.Duration

	conversation, batch uint64 // of the next batch; see Origin
}

// batch is what is sent at once: messages first to last (inclusive indexes are ascending, not dense).
type batch struct {
	from     Origin
	messages []outMessage
}

const (
	shuffleBatch      = 128
	shuffleBatchBytes = 1 << 20 // one message may be bigger
	shuffleMinBackoff = 10 * time.Millisecond
	shuffleMaxBackoff = time.Second
)

// newShuffle starts at the head of the outbox: the oldest index that was not truncated.
func newShuffle(from Origin, head uint64, limit, limitBytes int, dest func(cluster.PartitionKey) cluster.PartitionID) *shuffle {
	return &shuffle{dest: dest, from: from, limit: limit, limitBytes: limitBytes, next: head, base: head, behind: true, lanes: map[cluster.PartitionID]*lane{}}
}

// add takes a message that was just written to the outbox and sends what can be sent.
func (s *shuffle) add(m outMessage, now time.Time) {
	if s.behind || m.index != s.next || s.full() {
		s.behind = true
		return
	}
	s.put(m)
	d := s.dest(clusterKey(m.cmd))
	s.pump(d, s.lanes[d], now)
}

func (s *shuffle) full() bool { return s.held >= s.limit || s.heldBytes >= s.limitBytes }

// crowded says that a lane holds its share.
func (s *shuffle) crowded(l *lane) bool {
	const shares = 4
	return len(l.queue) >= max(s.limit/shares, 1) || l.bytes >= max(s.limitBytes/shares, 1)
}

// put looks at the next message: its lane keeps it, or leaves it in the store.
func (s *shuffle) put(m outMessage) {
	s.next = m.index + 1
	d := s.dest(clusterKey(m.cmd))
	l := s.lanes[d]
	if l == nil {
		l = &lane{}
		s.lanes[d] = l
		s.dests = append(s.dests, d)
	}
	switch {
	case l.left:
	case l.broken || s.crowded(l):
		s.leave(l, m.index)
	default:
		s.keep(l, m)
	}
}

func (s *shuffle) keep(l *lane, m outMessage) {
	s.held++
	s.heldBytes += m.bytes
	l.bytes += m.bytes
	l.queue = append(l.queue, m)
}

// leave notes that a lane's messages are in the store from an index on.
func (s *shuffle) leave(l *lane, from uint64) {
	if !l.left {
		s.left++
	}
	l.left, l.from = true, from
}

// drop forgets the first n messages of a lane.
func (s *shuffle) drop(l *lane, n int) {
	for _, m := range l.queue[:n] {
		s.heldBytes -= m.bytes
		l.bytes -= m.bytes
	}
	clear(l.queue[:n])
	l.queue = l.queue[n:]
	s.held -= n
}

// ready reports whether a lane can take up messages that it left in the store.
func (s *shuffle) ready(l *lane, now time.Time) bool {
	return l.left && !s.full() && !s.crowded(l) && (!l.broken || l.inFlight == 0 && !now.Before(l.retryAt))
}

// due reports whether messages that were not looked at can be.
func (s *shuffle) due() bool { return s.behind && !s.full() }

// loadAtOnce is how many messages are looked at in one go: what a leader's loop does meanwhile is nothing else.
const loadAtOnce = 1024

// takeUp looks for messages that a lane left in the store.
func (s *shuffle) takeUp(d cluster.PartitionID, l *lane) error {
	ms, more, err := s.load(l.from, loadAtOnce, s.limitBytes-s.heldBytes)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if m.index >= s.next {
			more = false
			break
		}
		if s.dest(clusterKey(m.cmd)) == d {
			if s.crowded(l) || s.full() {
				l.from = m.index
				return nil
			}
			s.keep(l, m)
		}
		l.from = m.index + 1
	}
	if !more || l.from >= s.next {
		l.left = false
		s.left--
	}
	return nil
}

// refill loads messages that did not fit before, some of them, and retries broken lanes that are due.
func (s *shuffle) refill(now time.Time) error {
	for _, d := range s.dests {
		if l := s.lanes[d]; s.ready(l, now) {
			if err := s.takeUp(d, l); err != nil {
				return err
			}
		}
	}
	if s.due() {
		ms, more, err := s.load(s.next, min(s.limit-s.held, loadAtOnce), s.limitBytes-s.heldBytes)
		if err != nil {
			return err
		}
		for _, m := range ms {
			s.put(m)
		}
		s.behind = more
	}
	for _, d := range s.dests {
		s.pump(d, s.lanes[d], now)
	}
	return nil
}

// pump sends what a lane has.
func (s *shuffle) pump(d cluster.PartitionID, l *lane, now time.Time) {
	if l.broken {
		if l.inFlight > 0 || now.Before(l.retryAt) {
			return
		}
		l.broken = false
	}
	for l.sent < len(l.queue) {
		if l.inFlight == 0 { // nothing is unanswered: whoever leads there now may begin with this one
			l.conversation, l.batch = l.conversation+1, 0
		}
		b := batch{from: s.from, messages: nextBatch(l.queue[l.sent:])}
		b.from.Conversation, b.from.Batch = l.conversation, l.batch
		if err := s.send(d, b); err != nil {
			s.breakLane(l, now)
			return
		}
		l.sent += len(b.messages)
		l.batch++
		l.inFlight++
	}
}

// nextBatch is the part of a queue that goes into one batch.
func nextBatch(queue []outMessage) []outMessage {
	n, bytes := 0, 0
	for n < min(len(queue), shuffleBatch) && (n == 0 || bytes+queue[n].bytes <= shuffleBatchBytes) {
		bytes += queue[n].bytes
		n++
	}
	return queue[:n]
}

// breakLane stops sending to a destination for a while. All that was not acknowledged is read from the store then.
func (s *shuffle) breakLane(l *lane, now time.Time) {
	l.backoff = min(max(2*l.backoff, shuffleMinBackoff), shuffleMaxBackoff)
	l.broken, l.retryAt = true, now.Add(l.backoff)
	from := l.queue[0].index
	if mutant.Is(mutant.ShuffleNoRewind) {
		from = l.queue[max(l.sent, 1)-1].index + 1
	}
	s.drop(l, len(l.queue))
	l.queue, l.sent = nil, 0
	s.leave(l, from)
}

// acked takes the answer to the oldest batch in flight to d.
func (s *shuffle) acked(d cluster.PartitionID, n int, err error, now time.Time) {
	l := s.lanes[d]
	l.inFlight--
	switch {
	case l.broken: // an answer behind a failed batch: everything in flight is sent again
	case err != nil:
		s.breakLane(l, now)
	default:
		for _, m := range l.queue[:n] {
			s.deliver(m.index)
		}
		s.drop(l, n)
		l.sent -= n
		l.backoff = 0
	}
	s.pump(d, l, now)
}

func (s *shuffle) deliver(index uint64) {
	i := int(index - s.base)
	for len(s.done) <= i {
		s.done = append(s.done, false)
	}
	s.done[i] = true
	n := 0
	for n < len(s.done) && s.done[n] {
		n++
	}
	s.done = s.done[n:]
	s.base += uint64(n)
}

// delivered is the highest index up to which every message was delivered; 0 when none was.
func (s *shuffle) delivered() uint64 {
	if mutant.Is(mutant.OutboxEarly) {
		return s.next - 1
	}
	return s.base - 1
}

// pending reports whether refill may have something to do, now or at wake.
func (s *shuffle) pending() bool { return s.behind || s.left > 0 }

// wake is when refill has something to do again without a further event; zero: never.
func (s *shuffle) wake(now time.Time) (t time.Time) {
	if s.due() {
		return now
	}
	for _, l := range s.lanes {
		switch {
		case s.ready(l, now):
			return now
		case l.broken && l.inFlight == 0 && now.Before(l.retryAt) && (t.IsZero() || l.retryAt.Before(t)):
			t = l.retryAt
		}
	}
	return t
}

func clusterKey(c *recordpb.Command) cluster.PartitionKey {
	return cluster.PartitionKey(c.PartitionKey)
}
