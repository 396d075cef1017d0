// Package logserver holds the acceptance rules of a log server: which records of a loglet (one
// segment of a log) it takes, when it may say that it has them, and what it refuses for ever.
//
// Loglet is the step machine of one loglet on one server: requests and "write is durable" events
// go in, replies and writes come out; it has no clock, lock, goroutine or disk. Server is the thin
// shell around many of them. The invariant both keep (L1):
//
//	for every offset o with knownGlobalTail ≤ o < localTail the server has record o, durably.
//
// Everything that finds and repairs tails rests on it. Deciding what is committed is not the log
// server's business: package loglet does it.
package logserver

import (
	"math"

	"perdure/control/cluster"
	"perdure/control/mutant"
)

// MaxOffset bounds the offsets of a loglet; before it is reached the log continues in a new segment.
const MaxOffset cluster.Offset = math.MaxInt32

// Token names who waits for a reply. It is opaque to Loglet and comes back in Reply.
type Token any

// Reply is the answer to the request that came with the token.
type Reply struct {
	Token Token
	State StateReply
}

// WriteKind tells what a Write does.
type WriteKind uint8

// The kinds of writes.
const (
	// WriteRecords stores Records from First on, and Sequencer when it is set.
	WriteRecords WriteKind = iota
	// WriteSeal stores the seal flag and the known global tail.
	WriteSeal
	// WriteTrim stores the trim point and deletes the records up to it.
	WriteTrim
)

// Write is one ordered, durable change of a loglet. Its owner learns of its end by WriteDone.
type Write struct {
	Loglet cluster.LogletID
	Kind   WriteKind
	// First and Records are the records of WriteRecords.
	First   cluster.Offset
	Records []Record
	// Sequencer is set in the first WriteRecords of a loglet.
	Sequencer cluster.GenNodeID
	// TrimPoint is the last offset to be deleted by WriteTrim.
	TrimPoint cluster.Offset
	// GlobalTail is the known global tail to remember; 0 leaves it.
	GlobalTail cluster.Offset
	// Owner is told the end.
	Owner WriteOwner
}

// Next is the offset after the last record of the write.
func (w *Write) Next() cluster.Offset { return w.First + cluster.Offset(len(w.Records)) }

// Size is the write's share of queue budgets, in bytes.
func (w *Write) Size() int {
	n := 64
	for i := range w.Records {
		n += w.Records[i].Size()
	}
	return n
}

// WriteOwner is told the end of writes, in the order in which they were enqueued.
type WriteOwner interface {
	// WriteDone says that w is durable, or that it and all later ones failed.
	WriteDone(w *Write, err error)
}

// Meta is what a server remembers of a loglet across restarts.
type Meta struct {
	Sequencer  cluster.GenNodeID
	LocalTail  cluster.Offset // first offset without durable record, at least 1
	GlobalTail cluster.Offset // highest known committed tail that was written down, at least 1
	TrimPoint  cluster.Offset
	Sealed     bool
	// DataLoss says that the store once held durable records above LocalTail.
	DataLoss bool
}

// Output collects what a step wants done. Writes must be enqueued in their order.
type Output struct {
	Replies []Reply
	Writes  []*Write
}

// Reset empties o for reuse.
func (o *Output) Reset() {
	clear(o.Replies)
	clear(o.Writes)
	o.Replies, o.Writes = o.Replies[:0], o.Writes[:0]
}

// pendingWrite is a write that is not durable yet.
type pendingWrite struct {
	write *Write
	token Token
}

// parked is a request that waits: a duplicate store for durability up to tail, a normal store or
// another seal for the end of the seal (tail 0), or a tail wait.
type parked struct {
	token Token
	tail  cluster.Offset
	kind  parkedKind
}

type parkedKind uint8

const (
	parkedDuplicate parkedKind = iota // ok when durable or committed up to tail
	parkedStore                       // sealed when the seal is durable
	parkedSeal                        // ok when the seal is durable
	parkedTail                        // ok when any tail reaches tail, or on seal
)

// Loglet is the state of one loglet on one log server. Not safe for concurrent use.
type Loglet struct {
	id        cluster.LogletID
	sequencer cluster.GenNodeID
	staging   cluster.Offset // accepted, perhaps not durable
	local     cluster.Offset // durable
	global    cluster.Offset // known committed
	noted     cluster.Offset // the highest global tail that goes to the disk with a write
	trim      cluster.Offset
	sealing   bool // a seal was enqueued
	sealed    bool // the seal is durable
	disabled  bool
	dataLoss  bool

	pending []pendingWrite // FIFO: writes end in the order of their enqueueing
	parked  []parked
}

// NewLoglet continues a loglet from what the store remembers.
func NewLoglet(id cluster.LogletID, m Meta) *Loglet {
	l := &Loglet{id: id, sequencer: m.Sequencer, trim: m.TrimPoint, sealed: m.Sealed, sealing: m.Sealed, dataLoss: m.DataLoss && !mutant.Is(mutant.LossIgnored)}
	l.local = max(m.LocalTail, m.TrimPoint+1, 1)
	l.staging = l.local
	l.global = max(m.GlobalTail, m.TrimPoint+1, 1)
	l.noted = l.global
	return l
}

// State is the loglet's state with the given status.
func (l *Loglet) State(s Status) StateReply {
	return StateReply{Status: s, LocalTail: l.local, KnownGlobalTail: l.global, TrimPoint: l.trim, Sealed: l.sealed}
}

// Idle reports whether nothing is under way.
func (l *Loglet) Idle() bool { return len(l.pending) == 0 && len(l.parked) == 0 }

// Unused reports whether nobody has ever stored anything here.
func (l *Loglet) Unused() bool {
	return l.sequencer.IsZero() && l.local == 1 && !l.sealing && !l.dataLoss
}

// Sealed reports whether the seal is durable.
func (l *Loglet) Sealed() bool { return l.sealed }

// TrimPoint is the last deleted offset, 0 when none.
func (l *Loglet) TrimPoint() cluster.Offset { return l.trim }

// Store takes records. from is the node that sent the request.
func (l *Loglet) Store(tok Token, from cluster.GenNodeID, r *StoreRequest, out *Output) {
	l.observe(r.KnownGlobalTail, out)
	if s, refused := l.refuse(from, r); refused {
		l.reply(tok, s, out)
		return
	}
	next := r.Next()
	switch {
	case !r.Repair && next <= l.local, r.Repair && next <= l.trim+1:
		l.reply(tok, StatusOK, out)
	case !r.Repair && next <= l.staging:
		l.park(tok, parkedDuplicate, next, out)
	case l.sealing && !l.sealed && r.Repair:
		l.reply(tok, StatusSealing, out)
	case l.sealing && !l.sealed && !mutant.Is(mutant.StoresIgnoreSeal):
		l.park(tok, parkedStore, 0, out)
	default:
		l.accept(tok, r, out)
	}
}

// refuse applies the rules that do not depend on what is under way.
func (l *Loglet) refuse(from cluster.GenNodeID, r *StoreRequest) (Status, bool) {
	switch {
	case r.First == 0 || len(r.Records) == 0 || uint64(r.First)+uint64(len(r.Records)) > uint64(MaxOffset):
		return StatusMalformed, true
	case l.dataLoss:
		return StatusDataLoss, true
	case !r.Repair && l.sealed && !mutant.Is(mutant.StoresIgnoreSeal):
		return StatusSealed, true
	case l.disabled:
		return StatusDisabled, true
	case !l.sequencer.IsZero() && l.sequencer != r.Sequencer:
		return StatusSequencerMismatch, true
	}
	nextOK := max(l.staging, l.global)
	switch {
	case r.First > nextOK && !mutant.Is(mutant.HolesAccepted):
		return StatusOutOfBounds, true
	case r.First < nextOK && !r.Repair && from != r.Sequencer:
		return StatusSequencerMismatch, true // nobody else may fill behind
	}
	return StatusOK, false
}

// noteEvery is by how many offsets the known global tail that is on disk may lag. After a restart of all servers it is where
// repair has to begin to look, so that it must not be as long as the loglet.
const noteEvery = 1024

func (l *Loglet) accept(tok Token, r *StoreRequest, out *Output) {
	w := &Write{Loglet: l.id, Kind: WriteRecords, First: r.First, Records: r.Records}
	if l.sequencer.IsZero() {
		l.sequencer = r.Sequencer
		w.Sequencer = r.Sequencer
	}
	if r.First > l.staging || l.global >= l.noted+noteEvery { // what makes a hole harmless must survive with it
		w.GlobalTail = l.global
		l.noted = l.global
	}
	l.staging = max(l.staging, r.Next())
	if mutant.Is(mutant.AckBeforeSync) {
		l.local = l.staging
		l.reply(tok, StatusOK, out)
		tok = nil
	}
	l.enqueue(tok, w, out)
}

// Seal ends the acceptance of appends once the seal is durable.
func (l *Loglet) Seal(tok Token, r *SealRequest, out *Output) {
	l.observe(r.KnownGlobalTail, out)
	switch {
	case l.dataLoss:
		l.reply(tok, StatusDataLoss, out)
	case l.sealed:
		l.reply(tok, StatusOK, out)
	case l.disabled:
		l.reply(tok, StatusDisabled, out)
	case l.sealing:
		l.park(tok, parkedSeal, 0, out)
	case mutant.Is(mutant.SealNotDurable):
		l.sealing, l.sealed = true, true
		l.reply(tok, StatusOK, out)
	default:
		l.sealing = true
		l.enqueue(tok, &Write{Loglet: l.id, Kind: WriteSeal, GlobalTail: l.global}, out)
	}
}

// Info answers with the loglet's state.
func (l *Loglet) Info(tok Token, r *InfoRequest, out *Output) {
	l.observe(r.KnownGlobalTail, out)
	l.reply(tok, l.readStatus(), out)
}

// WaitTail answers once one of the tails has reached the asked one, or the loglet is sealed.
func (l *Loglet) WaitTail(tok Token, r *WaitTailRequest, out *Output) {
	l.observe(r.KnownGlobalTail, out)
	switch {
	case l.dataLoss || l.sealed || max(l.local, l.global) >= r.Tail:
		l.reply(tok, l.readStatus(), out)
	case l.disabled: // nothing here makes it come
		l.reply(tok, StatusDisabled, out)
	default:
		l.park(tok, parkedTail, r.Tail, out)
	}
}

// Trim deletes a prefix. The point is clipped below the local tail, so that the tail itself is
// never forgotten; a point at or above every known tail is refused.
func (l *Loglet) Trim(tok Token, r *TrimRequest, out *Output) {
	l.observe(r.KnownGlobalTail, out)
	switch {
	case l.dataLoss:
		l.reply(tok, StatusDataLoss, out)
		return
	case l.disabled:
		l.reply(tok, StatusDisabled, out)
		return
	case r.UpTo >= max(l.global, l.local):
		l.reply(tok, StatusOutOfBounds, out)
		return
	}
	point := min(r.UpTo, l.local-1)
	if mutant.Is(mutant.TrimUncommitted) {
		point = r.UpTo
	}
	if point <= l.trim {
		l.reply(tok, StatusOK, out)
		return
	}
	l.trim = point // readers see the gap at once; the durable point may lag and only shows less trimmed
	l.enqueue(tok, &Write{Loglet: l.id, Kind: WriteTrim, TrimPoint: point, GlobalTail: l.global}, out)
}

// Readable clips a range to what may be read: above the trim point and durable.
func (l *Loglet) Readable(h Header, from, to cluster.Offset, out *Output) (Range, StateReply) {
	l.observe(h.KnownGlobalTail, out)
	r := Range{From: max(from, l.trim+1), To: min(to, l.local)}
	r.To = max(r.To, r.From)
	return r, l.State(l.readStatus())
}

// readStatus is the status of an answer that changes nothing.
func (l *Loglet) readStatus() Status {
	if l.dataLoss {
		return StatusDataLoss
	}
	return StatusOK
}

// Durable says that the oldest write under way is durable.
func (l *Loglet) Durable(out *Output) {
	p := l.pop()
	switch p.write.Kind {
	case WriteRecords:
		l.local = max(l.local, p.write.Next())
	case WriteSeal:
		l.sealed = true
	}
	if p.token != nil {
		l.reply(p.token, StatusOK, out)
	}
	l.wake(out)
}

// Failed says that the store has failed: no write under way or to come becomes durable.
func (l *Loglet) Failed(out *Output) {
	l.disabled = true
	for len(l.pending) > 0 {
		if p := l.pop(); p.token != nil {
			l.reply(p.token, StatusDisabled, out)
		}
	}
	l.staging = l.local
	parked := l.parked
	l.parked = nil
	for _, p := range parked {
		l.reply(p.token, StatusDisabled, out)
	}
}

// observe raises the known global tail, and answers who waited for it.
func (l *Loglet) observe(global cluster.Offset, out *Output) {
	if global <= l.global {
		return
	}
	l.global = global
	l.wake(out)
}

// wake answers the parked requests whose condition holds now.
func (l *Loglet) wake(out *Output) {
	if len(l.parked) == 0 {
		return
	}
	kept := l.parked[:0]
	for _, p := range l.parked {
		s, ready := l.outcome(p)
		if !ready {
			kept = append(kept, p)
			continue
		}
		l.reply(p.token, s, out)
	}
	clear(l.parked[len(kept):])
	l.parked = kept
}

func (l *Loglet) outcome(p parked) (Status, bool) {
	switch p.kind {
	case parkedDuplicate:
		return StatusOK, l.local >= p.tail || l.global >= p.tail
	case parkedStore:
		return StatusSealed, l.sealed
	case parkedSeal:
		return StatusOK, l.sealed
	default:
		return StatusOK, l.sealed || max(l.local, l.global) >= p.tail
	}
}

// maxParked bounds the requests of a loglet that wait. Who asks again and again, because it gave up on the former answers,
// is told to come back later.
const maxParked = 4096

func (l *Loglet) park(tok Token, k parkedKind, tail cluster.Offset, out *Output) {
	if len(l.parked) >= maxParked {
		l.reply(tok, StatusOverloaded, out)
		return
	}
	l.parked = append(l.parked, parked{token: tok, kind: k, tail: tail})
}

func (l *Loglet) enqueue(tok Token, w *Write, out *Output) {
	l.pending = append(l.pending, pendingWrite{write: w, token: tok})
	out.Writes = append(out.Writes, w)
}

func (l *Loglet) pop() pendingWrite {
	p := l.pending[0]
	l.pending[0] = pendingWrite{}
	l.pending = l.pending[1:]
	return p
}

func (l *Loglet) reply(tok Token, s Status, out *Output) {
	out.Replies = append(out.Replies, Reply{Token: tok, State: l.State(s)})
}
