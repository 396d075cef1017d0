package invokers

import (
	"sync"

	"perdure/control/ident"
	"perdure/invokers/protocol"
	"perdure/invokers/transport"
)

// sender is the writing side of an attempt. At most one goroutine writes at a time: the attempt's own for a
// short replay, otherwise one that lives as long as there is something to write. So an attempt that only
// reads has no second goroutine, and one that is blocked by the flow control of its service still reads.
type sender struct {
	a *attempt

	mu     sync.Mutex
	stream transport.Stream // nil before the exchange is open
	called bool             // off: stream must be cancelled
	// loaded: known is set. Before that, notifications are kept in early: the journal that is being read
	// may hold them already.
	loaded bool
	known  uint32 // notifications with a lower entry index were in the replayed journal
	early  []earlyNotification

	out     []outgoing
	spare   []outgoing
	writing bool // a goroutine is writing
	half    bool // the request body is to be ended behind what is in out; nothing more may enter
	ended   bool // it was ended
	yielded bool // for lack of memory

	waitAcks []commandAck
	runAcks  map[uint32]struct{} // completion ids of run proposals that are answered with an acknowledgement
	lease    lease               // of the replay, of early and of out
	queued   int64               // bytes in early, later in out
}

type earlyNotification struct {
	index uint32
	entry Entry
}

// outgoing is one frame to send: an entry, or an acknowledgement.
type outgoing struct {
	entry Entry // Raw nil for acknowledgements
	ack   uint32
}

// commandAck is an acknowledgement that waits until its proposal was applied.
type commandAck struct {
	sequence uint64
	index    uint32
}

// begin sends the replay and opens the way for notifications. half ends the request body behind it.
func (s *sender) begin(st transport.Stream, r *replay, half bool) {
	s.mu.Lock()
	s.stream, s.writing, s.half = st, true, s.half || half
	s.loaded, s.known = true, uint32(len(r.journal.Entries))
	s.yielded = s.yielded && !s.half // nobody wants what was not kept
	if s.called || s.yielded {
		st.Cancel()
	}
	early := s.early
	s.lease.shrink(s.queued)
	s.early, s.queued = nil, 0
	for _, e := range early {
		s.forwardLocked(e.index, e.entry)
	}
	s.mu.Unlock()
	if r.size > inlineReplay {
		s.spawn(r)
		return
	}
	if r.writeTo(s) != nil {
		s.stop()
		return
	}
	s.mu.Lock()
	if len(s.out) > 0 {
		s.mu.Unlock()
		s.spawn(nil)
		return
	}
	s.mu.Unlock()
	s.loop(nil)
}

// inlineReplay is the size up to which the attempt's own goroutine sends the replay. It fits into the
// smallest usual flow-control window, so that it does not block as long as the service does anything at all.
const inlineReplay = 64<<10 - 1

func (s *sender) spawn(r *replay) {
	s.a.p.wg.Add(1)
	go func() {
		defer s.a.p.wg.Done()
		s.loop(r)
	}()
}

// stop ends the writing side after an error: the reading side finds out what it means.
func (s *sender) stop() {
	s.mu.Lock()
	s.writing, s.half, s.ended = false, true, true
	s.out = nil
	s.mu.Unlock()
	s.a.idle.halfClose()
}

// loop writes until there is nothing left to write.
func (s *sender) loop(r *replay) {
	if r != nil && r.writeTo(s) != nil {
		s.stop()
		return
	}
	var buf []byte
	for {
		s.mu.Lock()
		batch, n := s.out, s.queued
		if len(batch) == 0 {
			end := s.half && !s.ended
			s.ended = s.ended || end
			s.writing = end
			s.mu.Unlock()
			if !end {
				return
			}
			_ = s.stream.CloseWrite() // the reading side finds the same error
			s.mu.Lock()
			s.writing = false
			s.mu.Unlock()
			return
		}
		s.out, s.queued, s.spare = s.spare[:0], 0, nil
		s.mu.Unlock()
		var err error
		if buf, err = s.writeBatch(buf, batch); err != nil {
			s.stop()
			return
		}
		clear(batch)
		s.mu.Lock()
		s.spare = batch[:0]
		s.lease.shrink(n)
		s.mu.Unlock()
	}
}

// writeBatch writes frames, small ones together.
func (s *sender) writeBatch(buf []byte, batch []outgoing) ([]byte, error) {
	buf = buf[:0]
	for i := range batch {
		buf = batch[i].appendTo(buf)
		if len(buf) < writeChunk && i < len(batch)-1 {
			continue
		}
		if err := s.write(buf); err != nil {
			return buf, err
		}
		buf = buf[:0]
	}
	return buf, nil
}

func (o *outgoing) appendTo(b []byte) []byte {
	switch o.entry.Type {
	case protocol.TypeCommandAck:
		return protocol.AppendCommandAck(b, o.ack)
	case protocol.TypeProposeRunCompletionAck:
		return protocol.AppendRunAck(b, o.ack)
	}
	return protocol.AppendFrame(b, o.entry.Type, o.entry.Raw)
}

func (s *sender) write(b []byte) error {
	err := s.stream.Write(b)
	s.a.pool.metrics.sent.Add(float64(len(b)))
	s.a.idle.touch()
	return err
}

// notify forwards a notification, or keeps it until it is known whether the replay has it.
func (s *sender) notify(index uint32, e Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.loaded {
		if n := size(&e); !s.yielded && len(s.early) < maxEarly && s.reserveLocked(n) {
			s.early = append(s.early, earlyNotification{index, e})
		} else {
			s.yielded = true
		}
		return
	}
	s.forwardLocked(index, e)
	s.kickLocked()
}

// maxEarly bounds the notifications that are kept while an exchange is being opened. With more, or without memory for them,
// the attempt is put back; all of them are in the journal.
const maxEarly = 4096

func (s *sender) forwardLocked(index uint32, e Entry) {
	if index < s.known || s.half {
		return
	}
	if e.Type == protocol.TypeRunCompletion && len(s.runAcks) > 0 {
		id := protocol.IdentifyNotification(e.Raw).Number
		if _, ok := s.runAcks[id]; ok {
			delete(s.runAcks, id)
			s.enqueueLocked(outgoing{entry: Entry{Type: protocol.TypeProposeRunCompletionAck}, ack: id})
			return
		}
	}
	s.enqueueLocked(outgoing{entry: e})
}

// enqueueLocked puts a frame into the queue. If there is no memory for it the attempt is put back: the
// notification is in the journal, so nothing is lost.
func (s *sender) enqueueLocked(o outgoing) {
	if !s.reserveLocked(size(&o.entry)) {
		s.yielded, s.half = true, true
		if s.stream != nil {
			s.stream.Cancel()
		}
		return
	}
	s.out = append(s.out, o)
}

// size is what a waiting frame takes.
func size(e *Entry) int64 {
	const overhead = 64
	return int64(len(e.Raw) + overhead)
}

// reserveLocked reserves memory for a frame that waits. One is always allowed.
func (s *sender) reserveLocked(n int64) bool {
	if s.queued+n > max(s.a.pool.cfg.InvocationMemoryLimit, n) || !s.lease.grow(n) {
		return false
	}
	s.queued += n
	return true
}

// reserve reserves memory for the journal and its replay.
func (s *sender) reserve(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease.grow(n)
}

func (s *sender) kickLocked() {
	if s.writing || s.stream == nil || s.ended || len(s.out) == 0 && !s.half {
		return
	}
	s.writing = true
	s.spawn(nil)
}

// expect remembers acknowledgements that are due when a proposal was applied.
func (s *sender) expect(sequence uint64, commands []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range commands {
		s.waitAcks = append(s.waitAcks, commandAck{sequence, c})
	}
}

// acknowledge sends the acknowledgements that are due.
func (s *sender) acknowledge(sequence uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.waitAcks) && s.waitAcks[n].sequence <= sequence {
		if !s.half {
			s.enqueueLocked(outgoing{entry: Entry{Type: protocol.TypeCommandAck}, ack: s.waitAcks[n].index})
		}
		n++
	}
	if n > 0 {
		s.waitAcks = append(s.waitAcks[:0], s.waitAcks[n:]...)
		s.kickLocked()
	}
}

// ackRun says that the completion of a run is to be answered with an acknowledgement.
func (s *sender) ackRun(completionID uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runAcks == nil {
		s.runAcks = make(map[uint32]struct{})
	}
	s.runAcks[completionID] = struct{}{}
}

// halfClose ends the request body behind what is queued.
func (s *sender) halfClose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.half = true
	s.kickLocked()
}

// close ends the request body now; what is queued is of no use any more. It is called by the attempt's own
// goroutine and writes by itself if nobody else does.
func (s *sender) close() {
	s.mu.Lock()
	s.half = true
	s.lease.shrink(s.queued)
	s.out, s.queued = nil, 0
	if s.writing || s.ended {
		s.mu.Unlock()
		return
	}
	s.writing, s.ended = true, true
	s.mu.Unlock()
	_ = s.stream.CloseWrite() // the service has said its last word; whether it hears ours does not matter
	s.mu.Lock()
	s.writing = false
	s.mu.Unlock()
}

// cancelStream resets the exchange, now or as soon as it is open.
func (s *sender) cancelStream() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.called = true
	if s.stream != nil {
		s.stream.Cancel()
	}
}

// yields reports whether the attempt was put back for lack of memory.
func (s *sender) yields() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.yielded
}

// release gives the memory back, and nothing more is kept. A goroutine that still writes has nothing to write: the stream is
// cancelled.
func (s *sender) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded, s.half, s.ended = true, true, true
	s.out, s.early, s.queued = nil, nil, 0
	s.lease.release()
}

// replay is what an attempt begins with: Start and the journal.
type replay struct {
	journal *Journal
	start   protocol.Start
	size    int64 // bytes to reserve: of the frames, and of what was read for them
	// reserved are those of them that were reserved when the journal was read.
	reserved int64
	kept     bool // the transport keeps them until the answer has come
}

// writeChunk is the size of the pieces in which bigger replays are written.
const writeChunk = 64 << 10

// prepare makes the replay of an attempt whose journal was read.
func (r *replay) prepare(a *attempt) {
	j := a.journal
	*r = replay{journal: j, reserved: r.reserved, start: protocol.Start{
		ID: j.ID, DebugID: a.printableID, KnownEntries: uint32(len(j.Entries)),
		Key: j.Target.GetKey(), RandomSeed: ident.RandomSeed(j.ID), PartialState: true,
	}}
	if keyed(j.Target) && !a.options.LazyState && a.pool.cfg.EagerStateLimit > 0 {
		r.start.PartialState = j.PartialState
		r.start.StateLen = len(j.State)
		r.start.State = func(i int) (k, v []byte) { return j.State[i].Key, j.State[i].Value }
	}
	a.p.mu.Lock()
	r.start.RetryCount = a.inv.storedRetries
	a.p.mu.Unlock()
	if now := uint64(a.pool.deps.Now().UnixMilli()); now > j.ModifiedAtMs {
		r.start.SinceLastEntryMs = now - j.ModifiedAtMs
	}
	if a.version >= 7 {
		r.start.IdempotencyKey = j.IdempotencyKey
		if j.LimitKey != "" {
			r.start.LimitKey = &j.LimitKey
		}
		if scope := j.Target.GetScope(); scope != "" {
			r.start.Scope = &scope
		}
	}
	r.size = 256 + int64(len(r.start.Key))
	for i := range j.Entries {
		r.size += int64(len(j.Entries[i].Raw)) + protocol.HeaderLen
	}
	limit := int64(a.endpoint.address.MaxBody())
	for i := range r.start.StateLen {
		n := int64(protocol.StateSize(j.State[i].Key, j.State[i].Value))
		if limit > 0 && r.size+n > limit { // the service asks for the rest when it needs it
			r.start.StateLen, r.start.PartialState = i, true
			break
		}
		r.size += n
	}
	if r.kept = a.endpoint.address.IsLambda(); r.kept {
		r.size += r.size / 3 // it sends base64
	}
	r.size = max(r.size, r.reserved)
}

// writeTo writes the replay and lets go of the journal.
func (r *replay) writeTo(s *sender) error {
	err := r.write(s)
	r.journal, r.start = nil, protocol.Start{}
	if !r.kept {
		s.mu.Lock()
		s.lease.shrink(r.size)
		s.mu.Unlock()
	}
	return err
}

// write writes a short replay in one piece, a long one in chunks, in which only small entries are copied.
func (r *replay) write(s *sender) error {
	pooled := replayBuffers.Get().(*[]byte)
	defer replayBuffers.Put(pooled)
	buf := protocol.AppendStart((*pooled)[:0], &r.start)
	for i := range r.journal.Entries {
		e := &r.journal.Entries[i]
		if len(e.Raw) >= writeChunk {
			buf = protocol.AppendHeader(buf, e.Type, 0, len(e.Raw))
			if err := s.write(buf); err != nil {
				return err
			}
			buf = buf[:0]
			if err := s.write(e.Raw); err != nil {
				return err
			}
			continue
		}
		buf = protocol.AppendFrame(buf, e.Type, e.Raw)
		if len(buf) >= writeChunk {
			if err := s.write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	if cap(buf) <= 4*writeChunk {
		*pooled = buf[:0]
	}
	if len(buf) == 0 {
		return nil
	}
	return s.write(buf)
}

var replayBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}
