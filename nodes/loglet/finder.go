package loglet

import (
	"time"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// FinderConfig are the times of a Finder.
type FinderConfig struct {
	// AnswerTimeout is when a request without answer is repeated; default 500 ms. Later answers still count.
	AnswerTimeout time.Duration
	// RetryMin and RetryMax bound the pause before a failed request is repeated; default 20 ms, 1 s.
	RetryMin, RetryMax time.Duration
	// Patience is how long a sequencer may leave records uncommitted before it is taken for dead and
	// the loglet is sealed; default 5 s. It steers liveness only.
	Patience time.Duration
	// RepairBytes is how much is copied at a time; default 1 MiB.
	RepairBytes int
}

func (c FinderConfig) withDefaults() FinderConfig {
	if c.AnswerTimeout == 0 {
		c.AnswerTimeout = 500 * time.Millisecond
	}
	if c.RetryMin == 0 {
		c.RetryMin = 20 * time.Millisecond
	}
	if c.RetryMax == 0 {
		c.RetryMax = time.Second
	}
	if c.Patience == 0 {
		c.Patience = 5 * time.Second
	}
	if c.RepairBytes == 0 {
		c.RepairBytes = 1 << 20
	}
	return c
}

// FinderMode is what a Finder is for.
type FinderMode uint8

const (
	// FindTail finds a tail below which everything is committed. A seal that somebody began is
	// finished; otherwise the loglet stays open.
	FindTail FinderMode = iota
	// SealTail seals the loglet and finds its final tail.
	SealTail
)

type finderPhase uint8

const (
	asking    finderPhase = iota // info from all
	waiting                      // for stores under way to reach the highest tail
	sealing                      // seal all
	digesting                    // which node holds which of the uncommitted records
	reading                      // the next records to be copied
	storing                      // copies of them
	finished
)

// Finder finds the tail of a loglet by asking its servers, sealing and repairing it where needed.
// Any number of finders may work on one loglet at a time: what they copy is the same, and what they
// report never contradicts. It never gives up; who runs it decides when to stop. Not safe for
// concurrent use, no clock: now is any monotone time.
type Finder struct {
	params Params
	cfg    FinderConfig
	phase  finderPhase
	nodes  []peer
	global cluster.Offset // highest tail known to be committed
	trim   cluster.Offset
	gone   bool // the sequencer is known to be dead

	waitTail  cluster.Offset // what phase waiting waits for
	waitUntil time.Duration

	// repair of [start, target)
	start, target cluster.Offset
	run           []logserver.Record // records from start on, being copied
	restartAt     time.Duration      // begin again then; 0 when not planned
	short         int                // how often those that are sealed had less than what is committed

	result TailResult
}

// peer is a finder's picture of one log server.
type peer struct {
	known  bool // its state was heard
	sealed bool
	tail   cluster.Offset
	lost   bool // not authoritative: nothing it says counts

	busy     bool   // a request of the current phase is under way
	done     bool   // the current phase needs nothing more of it
	attempt  uint32 // counts phases: within one, an answer to any repetition of its request is good
	failures int
	retryAt  time.Duration
	deadline time.Duration

	digest   []logserver.Range
	digested bool
	unfit    bool // could not give the records it should have
}

// NewFinder returns a finder that has done nothing yet.
func NewFinder(p Params, mode FinderMode, cfg FinderConfig) *Finder {
	f := &Finder{params: p, cfg: cfg.withDefaults(), global: 1, nodes: make([]peer, p.Quorum.Size())}
	if mode == SealTail {
		f.phase = sealing
	}
	return f
}

// Know raises the tail that is known to be committed, e.g. by a local sequencer.
func (f *Finder) Know(global cluster.Offset) { f.global = max(f.global, global) }

// SequencerGone says that the sequencer's life has ended, so that it is not waited for.
func (f *Finder) SequencerGone() { f.gone = true }

// Done returns the result once there is one.
func (f *Finder) Done() (TailResult, bool) { return f.result, f.phase == finished }

// Start returns the first requests.
func (f *Finder) Start(now time.Duration) []Send { return f.pump(now) }

// Tick lets time pass.
func (f *Finder) Tick(now time.Duration) []Send {
	for i := range f.nodes {
		n := &f.nodes[i]
		if n.busy && now >= n.deadline {
			f.failed(now, n)
		}
	}
	if f.restartAt > 0 && now >= f.restartAt {
		f.restart()
	}
	f.evaluate(now)
	return f.pump(now)
}

// NextTick is when Tick is due.
func (f *Finder) NextTick() (time.Duration, bool) {
	at, ok := time.Duration(0), false
	consider := func(t time.Duration) {
		if t > 0 && (!ok || t < at) {
			at, ok = t, true
		}
	}
	for i := range f.nodes {
		if n := &f.nodes[i]; n.busy {
			consider(n.deadline)
		} else if !n.done && !n.lost {
			consider(n.retryAt)
		}
	}
	if f.phase == waiting {
		consider(f.waitUntil)
	}
	consider(f.restartAt)
	return at, ok && f.phase != finished
}

// Answer takes the end of a send.
func (f *Finder) Answer(now time.Duration, a *Answer) []Send {
	n := &f.nodes[a.Node]
	current := a.Attempt == n.attempt && !n.done
	state, ok := a.state()
	if !ok {
		if current && n.busy {
			f.failed(now, n)
			f.evaluate(now)
		}
		return f.pump(now)
	}
	f.learn(n, state)
	if current {
		n.busy = false
		f.took(now, n, a)
	}
	f.evaluate(now)
	return f.pump(now)
}

// learn keeps what any reply tells of a server.
func (f *Finder) learn(n *peer, s *logserver.StateReply) {
	if s.Status == logserver.StatusDataLoss && !mutant.Is(mutant.LossIgnored) {
		// It is no witness for what is not there; that it refuses appends is all it can promise.
		n.lost, n.known = true, false
		return
	}
	n.known = true
	n.sealed = n.sealed || s.Sealed
	n.tail = max(n.tail, s.LocalTail)
	f.global = max(f.global, s.KnownGlobalTail)
	f.trim = max(f.trim, s.TrimPoint)
}

// took handles the reply to the request that the server was asked in this phase.
func (f *Finder) took(now time.Duration, n *peer, a *Answer) {
	state, _ := a.state()
	if n.lost {
		n.done = true
		return
	}
	if state.Status != logserver.StatusOK {
		f.failed(now, n)
		if f.phase == reading {
			n.refuse()
		}
		return
	}
	n.done = true
	switch r := a.Reply.(type) {
	case *logserver.DigestReply:
		if f.phase == digesting {
			n.digest, n.digested = r.Exists, true
		}
	case *logserver.ReadReply:
		if f.phase == reading {
			f.tookRun(n, r)
		}
	case *logserver.StateReply:
		if f.phase == storing {
			n.digest = append(n.digest, logserver.Range{From: f.start, To: f.start + cluster.Offset(len(f.run))})
			n.digested = true
		}
	}
}

// tookRun keeps the records that are to be copied next.
func (f *Finder) tookRun(n *peer, r *logserver.ReadReply) {
	f.run = f.run[:0:0]
	for i := range r.Records {
		if r.Records[i].Offset != f.start+cluster.Offset(i) {
			break
		}
		f.run = append(f.run, r.Records[i].Record)
	}
	n.unfit = len(f.run) == 0
}

func (f *Finder) failed(now time.Duration, n *peer) {
	n.busy = false
	n.failures++
	n.retryAt = now + backoff(n.failures, f.cfg.RetryMin, f.cfg.RetryMax)
	if f.phase == reading && n.failures >= maxReadFailures {
		n.refuse()
	}
}

// refuse takes the server out as a source of records until the next beginning.
func (n *peer) refuse() { n.unfit, n.done, n.retryAt = true, true, 0 }

// maxReadFailures is after how many failed reads in a row another source of the records is tried.
const maxReadFailures = 3

// enter begins a phase: every server is asked anew, answers to older requests only inform. It goes on, so that a new
// beginning is not needed any more.
func (f *Finder) enter(p finderPhase) {
	f.phase, f.restartAt = p, 0
	for i := range f.nodes {
		n := &f.nodes[i]
		n.attempt++
		n.busy, n.done, n.failures, n.retryAt = false, n.lost, 0, 0
	}
}

// restart begins again with fresh answers.
func (f *Finder) restart() {
	for i := range f.nodes {
		n := &f.nodes[i]
		n.known, n.lost, n.unfit, n.digested, n.digest = false, false, false, false, nil
	}
	f.enter(asking)
}

// members is the set of servers for which has holds.
func (f *Finder) members(has func(n *peer) bool) cluster.Members {
	var m cluster.Members
	for i := range f.nodes {
		if has(&f.nodes[i]) {
			m.Add(i)
		}
	}
	return m
}

func (f *Finder) writeQuorum(has func(n *peer) bool) bool {
	return f.params.Quorum.WriteQuorum(f.members(has))
}

func (f *Finder) fMajority(has func(n *peer) bool) bool {
	return f.params.Quorum.FMajority(f.members(has)).Passed()
}

// evaluate decides with what is known now; it may go through several phases.
func (f *Finder) evaluate(now time.Duration) {
	for {
		before := f.phase
		switch f.phase {
		case asking, waiting:
			f.evaluateOpen(now)
		case sealing:
			f.evaluateSealed(now)
		case digesting:
			f.evaluateDigests(now)
		case reading:
			f.evaluateRead(now)
		case storing:
			f.evaluateStores()
		}
		if f.phase == before || f.phase == finished {
			return
		}
	}
}

func (f *Finder) evaluateOpen(now time.Duration) {
	if !f.fMajority(func(n *peer) bool { return n.known }) {
		if f.phase == waiting && now >= f.waitUntil { // a server turned out to have lost its records meanwhile
			f.waitUntil = now + f.cfg.Patience
		}
		return
	}
	if f.anySealed() {
		f.enter(sealing)
		return
	}
	top := cluster.Offset(1)
	for i := range f.nodes {
		if n := &f.nodes[i]; n.known {
			top = max(top, n.tail)
		}
	}
	if f.writeQuorum(func(n *peer) bool { return n.known && n.tail >= top }) || f.global >= top {
		f.finish(TailResult{Tail: max(top, f.global)})
		return
	}
	if f.phase == asking || f.waitTail != top {
		f.waitTail, f.waitUntil = top, now+f.cfg.Patience
		f.enter(waiting)
		return
	}
	if f.gone || now >= f.waitUntil {
		f.enter(sealing)
	}
}

func (f *Finder) anySealed() bool {
	for i := range f.nodes {
		if f.nodes[i].sealed {
			return true
		}
	}
	return false
}

func (f *Finder) evaluateSealed(now time.Duration) {
	if !f.fMajority(func(n *peer) bool { return n.known && n.sealed }) && !(mutant.Is(mutant.SealByOne) && f.anySealed()) {
		return
	}
	top := cluster.Offset(1)
	for i := range f.nodes {
		if n := &f.nodes[i]; n.known && n.sealed {
			top = max(top, n.tail)
		}
	}
	switch {
	case mutant.Is(mutant.TailIsKnown):
		f.finish(TailResult{Tail: f.global, Sealed: true})
	case mutant.Is(mutant.NoRepair) && top >= f.global:
		f.finish(TailResult{Tail: top, Sealed: true})
	case top < f.global:
		// A server that was not asked in this round knows more: take everybody's word anew. Not at once, and each time
		// later, because a server that has lost its records without noticing says the same again.
		if f.restartAt == 0 {
			f.short++
			f.plan(now + backoff(f.short, f.cfg.RetryMin, f.cfg.RetryMax))
		}
	case top == f.global, f.writeQuorum(func(n *peer) bool { return n.known && n.tail >= top }):
		f.finish(TailResult{Tail: top, Sealed: true})
	case f.writeQuorum(func(n *peer) bool { return n.known }):
		f.start, f.target = f.global, top
		f.enter(digesting)
	}
}

// evaluateDigests finds what of [start, target) needs copying. The highest offset that a write
// quorum holds proves that everything below it was committed, for no server would have taken it
// otherwise.
func (f *Finder) evaluateDigests(now time.Duration) {
	if !f.writeQuorum(func(n *peer) bool { return n.digested }) {
		return
	}
	f.start = max(f.start, f.global, f.trim+1)
	for o := f.target; o > f.start; o-- {
		if f.writeQuorum(func(n *peer) bool { return n.holds(o-1, o) }) {
			f.start = o
			break
		}
	}
	f.nextRun(now)
}

// holds reports whether the server's digest has all of [from, to).
func (n *peer) holds(from, to cluster.Offset) bool {
	return n.digested && n.runFrom(from) >= to
}

// runFrom returns the end of the unbroken run of records that begins at from.
func (n *peer) runFrom(from cluster.Offset) cluster.Offset {
	for grown := true; grown; {
		grown = false
		for _, r := range n.digest {
			if r.From <= from && from < r.To {
				from, grown = r.To, true
			}
		}
	}
	return from
}

// nextRun goes on to read the next records that need copying, or finishes.
func (f *Finder) nextRun(now time.Duration) {
	if f.start >= f.target {
		f.finish(TailResult{Tail: f.target, Sealed: true})
		return
	}
	if f.source() < 0 {
		if mutant.Is(mutant.RepairSkipsHole) {
			f.start++
			f.nextRun(now)
			return
		}
		// The oldest record may exist only on a server that does not answer: never skip it.
		f.plan(now + f.cfg.RetryMax)
		return
	}
	f.run = nil
	f.enter(reading)
}

// plan schedules a new beginning, unless there is one already.
func (f *Finder) plan(at time.Duration) {
	if f.restartAt == 0 {
		f.restartAt = at
	}
}

// source is the server with the longest run of records from start, -1 when none has any.
func (f *Finder) source() int {
	best, end := -1, f.start
	for i := range f.nodes {
		n := &f.nodes[i]
		if n.unfit || !n.digested {
			continue
		}
		if e := n.runFrom(f.start); e > end {
			best, end = i, e
		}
	}
	return best
}

func (f *Finder) evaluateRead(now time.Duration) {
	if len(f.run) > 0 {
		f.enter(storing)
		return
	}
	if f.source() < 0 {
		f.plan(now + f.cfg.RetryMax)
	}
}

func (f *Finder) evaluateStores() {
	end := f.start + cluster.Offset(len(f.run))
	if !f.writeQuorum(func(n *peer) bool { return n.holds(f.start, end) }) {
		return
	}
	f.start, f.run = end, nil
	f.global = max(f.global, end)
	if f.start >= f.target {
		f.finish(TailResult{Tail: f.target, Sealed: true})
		return
	}
	f.enter(reading)
}

func (f *Finder) finish(r TailResult) {
	r.TrimPoint = f.trim
	f.result, f.phase = r, finished
}

// pump returns the requests that the current phase still needs.
func (f *Finder) pump(now time.Duration) []Send {
	if f.phase == finished {
		return nil
	}
	var sends []Send
	source := -1
	if f.phase == reading {
		source = f.source()
	}
	for i := range f.nodes {
		n := &f.nodes[i]
		if n.busy || n.done || n.lost || now < n.retryAt || !f.params.Quorum.Readable().Has(i) {
			continue
		}
		n.retryAt = 0 // the pause is over: when nothing is asked now, no tick is due for it
		m := f.request(i, n, source)
		if m == nil {
			continue
		}
		n.busy, n.deadline = true, now+f.cfg.AnswerTimeout
		sends = append(sends, Send{Node: i, To: f.params.Quorum.Node(i), Msg: m, Attempt: n.attempt})
	}
	return sends
}

// request is what the current phase asks of a server, nil for nothing.
func (f *Finder) request(i int, n *peer, source int) transport.Message {
	h := logserver.Header{Loglet: f.params.ID, KnownGlobalTail: f.global}
	switch f.phase {
	case asking:
		return &logserver.InfoRequest{Header: h}
	case waiting:
		return &logserver.WaitTailRequest{Header: h, Tail: f.waitTail}
	case sealing:
		return &logserver.SealRequest{Header: h}
	case digesting:
		return &logserver.DigestRequest{Header: h, From: f.start, To: f.target}
	case reading:
		if i != source {
			return nil
		}
		return &logserver.ReadRequest{Header: h, From: f.start, To: f.target, MaxBytes: f.cfg.RepairBytes}
	case storing:
		if n.holds(f.start, f.start+cluster.Offset(len(f.run))) {
			return nil
		}
		// Everything below start is committed; saying so lets a server with an older tail take it.
		h.KnownGlobalTail = f.start
		return &logserver.StoreRequest{Header: h, Sequencer: f.params.Sequencer, First: f.start, Records: f.run, Repair: true}
	default:
		return nil
	}
}

// Finished reports whether there is a result.
func (f *Finder) Finished() bool { return f.phase == finished }

var (
	_ Machine = (*Finder)(nil)
	_ Machine = (*Trimmer)(nil)
)
