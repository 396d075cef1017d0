package logserver

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"perdure/control/cluster"
	"perdure/nodes/transport"
)

// Store is what a log server needs of its durable store.
type Store interface {
	// Enqueue takes a write without waiting. Writes become durable in the order of the calls, and
	// their owners are told in that order, never from within Enqueue. The store keeps w and its
	// records until then. An error means that neither w nor a later write is taken.
	Enqueue(w *Write) error
	// Backlogged reports whether so much waits for the disk, or so little room is on it, that new records should be refused.
	Backlogged() bool
	// Load reads what is remembered of a loglet; an unknown loglet is empty, not an error.
	Load(id cluster.LogletID) (Meta, error)
	// Read returns the records in [from, to) in order until maxBytes are passed, at least one when
	// there is one, and the offset up to which it looked. Holes are skipped.
	Read(id cluster.LogletID, from, to cluster.Offset, maxBytes int) ([]Found, cluster.Offset, error)
	// Digest returns the ranges of existing records in [from, to).
	Digest(id cluster.LogletID, from, to cluster.Offset) ([]Range, error)
}

// Config of a Server.
type Config struct {
	// Store is required.
	Store Store
	// Logger is required.
	Logger *slog.Logger
	// Readers bounds the concurrent reads of the store; 0 means 4. Too low delays replay of many
	// partitions at once, too high lets them crowd out the writer.
	Readers int
	// OnDataLoss is told once for each loglet whose durable records were lost. May be nil.
	OnDataLoss func(cluster.LogletID)
}

// maxReadBytes bounds one read answer whatever the request says.
const maxReadBytes = 4 << 20

// maxIdleLoglets is how many loglets stay in memory before sealed or unused idle ones are dropped.
const maxIdleLoglets = 4096

// Server serves the loglets of one store. Its Handle method is the transport handler of service
// transport.LogServer. Safe for concurrent use.
//
// It has no goroutine per loglet: a request steps the loglet's state under its lock on the calling
// goroutine; replies leave from the goroutine that made them possible (mostly the store's syncer).
// Only reads of the store run on goroutines of their own, at most Config.Readers at a time.
type Server struct {
	cfg     Config
	readers chan struct{}
	wg      sync.WaitGroup

	mu      sync.RWMutex
	loglets map[cluster.LogletID]*entry
	drops   int // how often loglets were dropped
	closed  bool
}

// entry is a loglet and the lock of its state.
type entry struct {
	id     cluster.LogletID
	server *Server

	mu      sync.Mutex
	core    *Loglet
	dropped bool // no longer in the map: look it up again
}

// ErrClosed is returned for requests after Close.
var ErrClosed = errors.New("log server is closed")

// New returns a server on a store. It starts nothing; Close waits for reads under way.
func New(cfg Config) *Server {
	if cfg.Readers <= 0 {
		cfg.Readers = 4
	}
	return &Server{cfg: cfg, readers: make(chan struct{}, cfg.Readers), loglets: map[cluster.LogletID]*entry{}}
}

// Close refuses further requests and waits for reads of the store under way. The store stays open.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
}

// outputs are reused between steps.
var outputs = sync.Pool{New: func() any { return new(Output) }}

// Handle answers one request. It returns without waiting for the disk, except that the first
// request for a loglet reads its few rows of metadata.
func (s *Server) Handle(from cluster.GenNodeID, m transport.Message, reply transport.ReplyFunc) {
	switch r := m.(type) {
	case *StoreRequest:
		s.store(from, r, reply)
	case *SealRequest:
		s.step(r.Loglet, reply, func(l *Loglet, out *Output) { l.Seal(reply, r, out) })
	case *InfoRequest:
		s.step(r.Loglet, reply, func(l *Loglet, out *Output) { l.Info(reply, r, out) })
	case *WaitTailRequest:
		s.step(r.Loglet, reply, func(l *Loglet, out *Output) { l.WaitTail(reply, r, out) })
	case *TrimRequest:
		s.step(r.Loglet, reply, func(l *Loglet, out *Output) { l.Trim(reply, r, out) })
	case *ReadRequest:
		s.background(reply, func() { s.read(r, reply) })
	case *DigestRequest:
		s.background(reply, func() { s.digest(r, reply) })
	default:
		reply(nil, fmt.Errorf("log server does not know message %T", m))
	}
}

// store is the hot path: step without closure.
func (s *Server) store(from cluster.GenNodeID, r *StoreRequest, reply transport.ReplyFunc) {
	e, err := s.acquire(r.Loglet)
	if err != nil {
		reply(nil, err)
		return
	}
	out := outputs.Get().(*Output)
	if s.cfg.Store.Backlogged() {
		out.Replies = append(out.Replies, Reply{Token: reply, State: e.core.State(StatusOverloaded)})
	} else {
		e.core.Store(reply, from, r, out)
	}
	e.finish(out)
}

func (s *Server) step(id cluster.LogletID, reply transport.ReplyFunc, f func(*Loglet, *Output)) {
	e, err := s.acquire(id)
	if err != nil {
		reply(nil, err)
		return
	}
	out := outputs.Get().(*Output)
	f(e.core, out)
	e.finish(out)
}

// finish enqueues the writes, releases the entry's lock, and sends the replies. Writes are enqueued
// under the lock because their order is the loglet's order; Enqueue does not wait.
func (e *entry) finish(out *Output) {
	for i, w := range out.Writes {
		w.Owner = e
		if err := e.server.cfg.Store.Enqueue(w); err != nil {
			clear(out.Writes[i:])
			e.core.Failed(out)
			break
		}
	}
	e.mu.Unlock()
	for i := range out.Replies {
		r := &out.Replies[i]
		state := r.State
		r.Token.(transport.ReplyFunc)(&state, nil)
	}
	out.Reset()
	outputs.Put(out)
}

// WriteDone implements WriteOwner.
func (e *entry) WriteDone(_ *Write, err error) {
	out := outputs.Get().(*Output)
	e.mu.Lock()
	switch {
	case err != nil:
		e.core.Failed(out)
	case !e.core.disabled:
		e.core.Durable(out)
	}
	e.finish(out)
}

// acquire returns the loglet's entry with its lock held.
func (s *Server) acquire(id cluster.LogletID) (*entry, error) {
	for {
		e, err := s.lookup(id)
		if err != nil {
			return nil, err
		}
		if e == nil {
			continue
		}
		e.mu.Lock()
		if !e.dropped {
			return e, nil
		}
		e.mu.Unlock()
	}
}

// lookup returns the loaded entry of a loglet, nil to look again.
func (s *Server) lookup(id cluster.LogletID) (*entry, error) {
	s.mu.RLock()
	e, closed, drops := s.loglets[id], s.closed, s.drops
	if e == nil && !closed {
		s.wg.Add(1) // Close waits, so that the store is not closed under the load
	}
	s.mu.RUnlock()
	switch {
	case closed:
		return nil, ErrClosed
	case e != nil:
		return e, nil
	}
	defer s.wg.Done()
	return s.load(id, drops)
}

// load reads a loglet's metadata and makes its entry, or returns nil when it is to be looked up again. Of two loads
// that race one makes the entry. What it has read is stale when the other's entry was made, changed and dropped in
// between; drops, as it was before the reading, tells.
func (s *Server) load(id cluster.LogletID, drops int) (*entry, error) {
	m, err := s.cfg.Store.Load(id)
	if err != nil {
		return nil, fmt.Errorf("load loglet %s: %w", id, err)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if e := s.loglets[id]; e != nil || s.drops != drops {
		s.mu.Unlock()
		return e, nil
	}
	if len(s.loglets) >= maxIdleLoglets {
		s.dropIdleLocked()
	}
	e := &entry{id: id, server: s, core: NewLoglet(id, m)}
	s.loglets[id] = e
	s.mu.Unlock()
	if m.DataLoss {
		s.cfg.Logger.Error("loglet lost durable records, it is not served", "loglet", id.String(), "tail", uint32(m.LocalTail))
		if s.cfg.OnDataLoss != nil {
			s.cfg.OnDataLoss(id)
		}
	}
	return e, nil
}

// dropIdleLocked forgets up to a quarter of the loglets: sealed ones, and ones that somebody asked for
// but that do not exist, without anything under way. Their whole state is in the store.
func (s *Server) dropIdleLocked() {
	n := 0
	for id, e := range s.loglets {
		if n >= maxIdleLoglets/4 {
			return
		}
		e.mu.Lock()
		e.dropped = e.core.Idle() && (e.core.Sealed() || e.core.Unused())
		dropped := e.dropped
		e.mu.Unlock()
		if dropped {
			delete(s.loglets, id)
			s.drops++
			n++
		}
	}
}

// background runs a read of the store on its own goroutine, bounded by Config.Readers.
func (s *Server) background(reply transport.ReplyFunc, f func()) {
	s.mu.RLock()
	closed := s.closed
	if !closed {
		s.wg.Go(func() {
			s.readers <- struct{}{}
			defer func() { <-s.readers }()
			f()
		})
	}
	s.mu.RUnlock()
	if closed {
		reply(nil, ErrClosed)
	}
}

// readable clips a range under the loglet's lock.
func (s *Server) readable(h Header, from, to cluster.Offset) (Range, StateReply, error) {
	e, err := s.acquire(h.Loglet)
	if err != nil {
		return Range{}, StateReply{}, err
	}
	out := outputs.Get().(*Output)
	rng, state := e.core.Readable(h, from, to, out)
	e.finish(out)
	return rng, state, nil
}

func (s *Server) read(r *ReadRequest, reply transport.ReplyFunc) {
	rng, state, err := s.readable(r.Header, r.From, r.To)
	if err != nil {
		reply(nil, err)
		return
	}
	res := &ReadReply{StateReply: state, Next: rng.From}
	if state.Status != StatusOK || rng.From >= rng.To {
		res.setTrimmed(r.From, state.TrimPoint)
		reply(res, nil)
		return
	}
	found, next, err := s.cfg.Store.Read(r.Loglet, rng.From, rng.To, min(max(r.MaxBytes, 1), maxReadBytes))
	if err != nil {
		s.cfg.Logger.Error("reading records failed", "loglet", r.Loglet.String(), "from", uint32(rng.From), "err", err)
		res.Status, res.Reason = StatusError, err.Error()
		reply(res, nil)
		return
	}
	// A trim may have overtaken the read: what it deleted must show as trimmed, not as a hole.
	_, state, err = s.readable(r.Header, r.From, r.To)
	if err != nil {
		reply(nil, err)
		return
	}
	res.StateReply, res.Next = state, next
	res.setTrimmed(r.From, state.TrimPoint)
	for len(found) > 0 && found[0].Offset <= res.TrimmedTo {
		found = found[1:]
	}
	res.Records = found
	reply(res, nil)
}

func (r *ReadReply) setTrimmed(from, trim cluster.Offset) {
	if from <= trim {
		r.TrimmedTo = trim
		r.Next = max(r.Next, trim+1)
	}
}

func (s *Server) digest(r *DigestRequest, reply transport.ReplyFunc) {
	rng, state, err := s.readable(r.Header, r.From, r.To)
	if err != nil {
		reply(nil, err)
		return
	}
	res := &DigestReply{StateReply: state}
	if state.Status == StatusOK && rng.From < rng.To {
		if res.Exists, err = s.cfg.Store.Digest(r.Loglet, rng.From, rng.To); err != nil {
			res.Status, res.Reason = StatusError, err.Error()
		}
	}
	reply(res, nil)
}
