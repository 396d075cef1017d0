package loglet

import (
	"fmt"
	"time"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/logserver"
)

// SequencerConfig are the limits of a Sequencer.
type SequencerConfig struct {
	// MaxInFlight bounds the records that are not committed yet; one batch may always go. Default
	// 4096. Too low costs throughput, too high makes resends long.
	MaxInFlight int
	// Window bounds the stores under way to one server; default 8.
	Window int
	// StoreTimeout is when a store without answer is sent again; default 2 s.
	StoreTimeout time.Duration
	// StallTimeout is after how long without a commit the sequencer gives up, so that the log can be
	// moved to other servers; default 15 s. Too low, and a slow disk causes reconfigurations. Servers
	// that say that they are overloaded are waited for.
	StallTimeout time.Duration
	// RetryMin and RetryMax bound the pause before a failed store is sent again; default 10 ms, 1 s.
	RetryMin, RetryMax time.Duration
}

func (c SequencerConfig) withDefaults() SequencerConfig {
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 4096
	}
	if c.Window == 0 {
		c.Window = 8
	}
	if c.StoreTimeout == 0 {
		c.StoreTimeout = 2 * time.Second
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = 15 * time.Second
	}
	if c.RetryMin == 0 {
		c.RetryMin = 10 * time.Millisecond
	}
	if c.RetryMax == 0 {
		c.RetryMax = time.Second
	}
	return c
}

// Commit is the end of one batch.
type Commit struct {
	Token   any
	First   cluster.Offset
	Records []logserver.Record
	// Err is nil when the batch is committed; otherwise it wraps ErrUnknownOutcome and the reason.
	Err error
}

// Last is the offset of the batch's last record.
func (c *Commit) Last() cluster.Offset { return c.First + cluster.Offset(len(c.Records)) - 1 }

// SequencerOutput is what a step wants done, in order: sends to one server must keep their order.
type SequencerOutput struct {
	Sends   []Send
	Commits []Commit
}

// Reset empties o for reuse.
func (o *SequencerOutput) Reset() {
	clear(o.Sends)
	clear(o.Commits)
	o.Sends, o.Commits = o.Sends[:0], o.Commits[:0]
}

// Sequencer orders the appends of a loglet and tracks which of them are committed. It begins with
// an empty loglet and is used by one life of one node only. Not safe for concurrent use; no clock:
// now is any monotone time.
//
// Batches are sent to all servers at once, several under way per server. A server takes a batch
// only when it holds all before it, or knows them to be committed, and its reply carries its durable
// tail; so one reply acknowledges everything below that tail, and commits happen in order.
type Sequencer struct {
	params Params
	cfg    SequencerConfig

	next    cluster.Offset // of the next record
	global  cluster.Offset // everything below is committed
	batches []batch        // not committed, in order
	head    uint64         // number of batches[0]; batches are numbered from 0
	records int            // in batches
	servers []server
	stopped error         // why nothing is taken any more
	moved   time.Duration // last commit, or the first append after an empty time, or when servers were found overloaded
}

type batch struct {
	first   cluster.Offset
	records []logserver.Record
	token   any
}

func (b *batch) next() cluster.Offset { return b.first + cluster.Offset(len(b.records)) }

// server is the sequencer's picture of one log server.
type server struct {
	tail     cluster.Offset // durable there, as last heard
	cursor   uint64         // number of the next batch to send
	inFlight int
	attempt  uint32        // stores of older attempts do not count as in flight
	failures int           // in a row
	retryAt  time.Duration // no sends before; 0 when healthy
	deadline time.Duration // of the stores in flight; moves with each answer
	sealed   bool
	busyAt   time.Duration // it has last said that it is overloaded
	refuses  bool          // for ever: other sequencer, disk failed, data lost, not to be written to
}

// NewSequencer returns the sequencer of a fresh loglet.
func NewSequencer(p Params, cfg SequencerConfig) *Sequencer {
	s := &Sequencer{params: p, cfg: cfg.withDefaults(), next: 1, global: 1}
	s.servers = make([]server, p.Quorum.Size())
	for i := range s.servers {
		s.servers[i].tail = 1
		s.servers[i].refuses = !p.Quorum.Writable().Has(i)
	}
	return s
}

// GlobalTail is the first offset that is not committed.
func (s *Sequencer) GlobalTail() cluster.Offset { return s.global }

// Stopped is the reason why no append is taken any more, nil while they are.
func (s *Sequencer) Stopped() error { return s.stopped }

// InFlight is the number of batches that are not committed.
func (s *Sequencer) InFlight() int { return len(s.batches) }

// Append gives records their offsets and sends them. The token comes back in the Commit. An error
// means that nothing was taken.
func (s *Sequencer) Append(now time.Duration, records []logserver.Record, token any, out *SequencerOutput) error {
	switch {
	case s.stopped != nil:
		return s.stopped
	case len(records) == 0:
		return fmt.Errorf("append of no records")
	case s.records > 0 && s.records+len(records) > s.cfg.MaxInFlight:
		return ErrFull
	case uint64(s.next)+uint64(len(records)) > uint64(logserver.MaxOffset):
		// All offsets are used: the log has to continue in another segment, once what is under way
		// has ended in this one.
		if len(s.batches) > 0 {
			return ErrFull
		}
		s.Stop(ErrUnavailable, out)
		return s.stopped
	}
	if len(s.batches) == 0 {
		s.moved = now
	}
	s.batches = append(s.batches, batch{first: s.next, records: records, token: token})
	s.records += len(records)
	s.next += cluster.Offset(len(records))
	s.pump(now, out)
	return nil
}

// Answer takes the end of a send.
func (s *Sequencer) Answer(now time.Duration, a *Answer, out *SequencerOutput) {
	sv := &s.servers[a.Node]
	current := a.Attempt == sv.attempt
	if current && sv.inFlight > 0 {
		sv.inFlight--
	}
	state, ok := a.state()
	if !ok {
		if current {
			s.failed(now, sv)
		}
		s.pump(now, out)
		return
	}
	switch state.Status {
	case logserver.StatusOK:
		if !state.Sealed || mutant.Is(mutant.StoresIgnoreSeal) {
			// A sealed server's tail proves nothing here: repair may have moved it beyond the tail
			// at which the loglet was found sealed, and nothing there may be acknowledged.
			sv.tail = max(sv.tail, state.LocalTail)
		}
		if current {
			sv.failures, sv.retryAt, sv.deadline = 0, 0, now+s.cfg.StoreTimeout
		}
	case logserver.StatusSealed:
		sv.sealed = true
		if mutant.Is(mutant.SealedTailAck) {
			sv.tail = max(sv.tail, state.LocalTail)
		}
	case logserver.StatusSequencerMismatch, logserver.StatusDisabled, logserver.StatusDataLoss, logserver.StatusMalformed:
		sv.refuses = true
	default: // out of bounds, overloaded: a store before was lost or refused; begin again at the first
		if state.Status == logserver.StatusOverloaded {
			sv.busyAt = now
		}
		if current {
			s.failed(now, sv)
		}
	}
	s.commit(now, out)
	s.checkAlive(out)
	s.pump(now, out)
}

// failed makes the server's stores start over after a pause.
func (s *Sequencer) failed(now time.Duration, sv *server) {
	sv.attempt++
	sv.inFlight = 0
	sv.failures++
	sv.cursor = 0
	sv.retryAt = now + backoff(sv.failures, s.cfg.RetryMin, s.cfg.RetryMax)
}

// Tick lets time pass: stores without answer are sent again.
func (s *Sequencer) Tick(now time.Duration, out *SequencerOutput) {
	for i := range s.servers {
		sv := &s.servers[i]
		if sv.inFlight > 0 && now >= sv.deadline {
			s.failed(now, sv)
		}
	}
	switch {
	case len(s.batches) == 0 || now < s.moved+s.cfg.StallTimeout:
	case s.overloaded():
		s.moved = now
	default:
		s.Stop(ErrUnavailable, out)
	}
	s.pump(now, out)
}

// overloaded reports whether the oldest batch waits only for servers that have said so since the last commit. Another
// segment would not help.
func (s *Sequencer) overloaded() bool {
	var answer cluster.Members
	for i := range s.servers {
		if sv := &s.servers[i]; sv.busyAt > s.moved || sv.tail >= s.batches[0].next() {
			answer.Add(i)
		}
	}
	return s.params.Quorum.WriteQuorum(answer)
}

// NextTick is when Tick is due; ok is false when nothing is in flight.
func (s *Sequencer) NextTick() (at time.Duration, ok bool) {
	if len(s.batches) == 0 || s.stopped != nil {
		return 0, false
	}
	at, ok = s.moved+s.cfg.StallTimeout, true
	for i := range s.servers {
		sv := &s.servers[i]
		var t time.Duration
		switch {
		case sv.sealed || sv.refuses:
			continue
		case sv.inFlight > 0:
			t = sv.deadline
		case sv.retryAt > 0:
			t = sv.retryAt
		default:
			continue
		}
		at = min(at, t)
	}
	return at, ok
}

// Stop ends the sequencer: no batch is acknowledged any more, those in flight end with reason and
// ErrUnknownOutcome. Idempotent.
func (s *Sequencer) Stop(reason error, out *SequencerOutput) {
	if s.stopped != nil {
		return
	}
	s.stopped = reason
	for i := range s.batches {
		b := &s.batches[i]
		out.Commits = append(out.Commits, Commit{Token: b.token, First: b.first, Records: b.records,
			Err: fmt.Errorf("%w: %w", ErrUnknownOutcome, reason)})
	}
	s.head += uint64(len(s.batches))
	s.batches, s.records = nil, 0
}

// commit moves the global tail over all batches that a write quorum holds.
func (s *Sequencer) commit(now time.Duration, out *SequencerOutput) {
	n := 0
	for n < len(s.batches) {
		b := &s.batches[n]
		var has cluster.Members
		for i := range s.servers {
			if s.servers[i].tail >= b.next() {
				has.Add(i)
			}
		}
		if !s.params.Quorum.WriteQuorum(has) && !(mutant.Is(mutant.CommitByOne) && !has.Empty()) {
			break
		}
		s.global = b.next()
		s.records -= len(b.records)
		out.Commits = append(out.Commits, Commit{Token: b.token, First: b.first, Records: b.records})
		n++
	}
	if n == 0 {
		return
	}
	s.moved = now
	s.head += uint64(n)
	rest := copy(s.batches, s.batches[n:])
	clear(s.batches[rest:])
	s.batches = s.batches[:rest]
}

// checkAlive stops the sequencer when no batch can be committed any more.
func (s *Sequencer) checkAlive(out *SequencerOutput) {
	if s.stopped != nil {
		return
	}
	var sealed, able cluster.Members
	for i := range s.servers {
		if sv := &s.servers[i]; sv.sealed {
			sealed.Add(i)
		} else if !sv.refuses {
			able.Add(i)
		}
	}
	switch {
	case s.params.Quorum.FMajority(sealed).Passed():
		s.Stop(ErrSealed, out)
	case !s.params.Quorum.WriteQuorum(able):
		s.Stop(ErrUnavailable, out)
	}
}

// pump sends to every server what it may get now.
func (s *Sequencer) pump(now time.Duration, out *SequencerOutput) {
	if s.stopped != nil {
		return
	}
	end := s.head + uint64(len(s.batches))
	for i := range s.servers {
		sv := &s.servers[i]
		if sv.sealed || sv.refuses || now < sv.retryAt {
			continue
		}
		sv.retryAt = 0 // the pause is over: a tick that finds nothing to send must not be due again
		sv.cursor = max(sv.cursor, s.head)
		for sv.cursor < end && sv.inFlight < s.cfg.Window {
			b := &s.batches[sv.cursor-s.head]
			sv.cursor++
			if b.next() <= sv.tail {
				continue // it has them already
			}
			if sv.inFlight == 0 {
				sv.deadline = now + s.cfg.StoreTimeout
			}
			sv.inFlight++
			out.Sends = append(out.Sends, Send{Node: i, To: s.params.Quorum.Node(i), Attempt: sv.attempt, Msg: s.storeRequest(b)})
		}
	}
}

func (s *Sequencer) storeRequest(b *batch) *logserver.StoreRequest {
	return &logserver.StoreRequest{
		Header:    logserver.Header{Loglet: s.params.ID, KnownGlobalTail: s.global},
		Sequencer: s.params.Sequencer,
		First:     b.first,
		Records:   b.records,
	}
}
