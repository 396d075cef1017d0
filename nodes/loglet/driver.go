package loglet

import (
	"sync"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// Committer is told the end of one batch.
type Committer interface {
	// Committed gets the offset of the batch's last record, or the error. It is called exactly once
	// per accepted append, in the order of the appends, without locks held, on a goroutine of the
	// transport or the log store: it must not block, but may append. A success is never told from
	// within Append; a failure may be.
	Committed(last cluster.Offset, err error)
}

// Listener is told of commits before the tail moves.
type Listener func(first cluster.Offset, records []logserver.Record)

// Stored is told how long a log server took to answer a store, whatever the answer.
type Stored func(to cluster.NodeID, took time.Duration)

// Driver runs one Sequencer against the network. It has no goroutine: a step runs on the goroutine
// that brings the append, the answer or the tick. Sends are executed by one of them at a time, in
// order and without the lock, and so are commits, but those never by one that appends: its caller
// may hold locks that the told ones want. Safe for concurrent use.
type Driver struct {
	params   Params
	net      transport.Caller
	clock    Clock
	began    time.Time
	listener Listener
	stored   Stored
	tail     *Tail

	mu           sync.Mutex
	core         *Sequencer
	out          SequencerOutput // not executed yet
	spareSends   []Send          // emptied, for reuse
	spareCommits []Commit
	sending      bool  // somebody executes sends
	committing   bool  // somebody executes commits
	timer        Timer // pending tick, nil when none
	timerAt      time.Duration
	finished     bool // Close was called: no more timers
}

// NewDriver returns the sequencer of a loglet that nobody has appended to before. It must run on the
// life of the node that the parameters name. listener may be nil.
func NewDriver(p Params, cfg SequencerConfig, net transport.Caller, clock Clock, tail *Tail, listener Listener) *Driver {
	return &Driver{params: p, net: net, clock: clock, began: clock.Now(), listener: listener, tail: tail, core: NewSequencer(p, cfg)}
}

// Measure has stored told of every store. It must be called before the first append.
func (d *Driver) Measure(stored Stored) { d.stored = stored }

// Params are the loglet's parameters.
func (d *Driver) Params() Params { return d.params }

// Tail is the committed tail, for watching.
func (d *Driver) Tail() *Tail { return d.tail }

// Append gives records their offsets and stores them. c is told the end, unless an error is
// returned: then nothing was taken. The records belong to the loglet from here on.
func (d *Driver) Append(records []logserver.Record, c Committer) error {
	d.mu.Lock()
	err := d.core.Append(d.now(), records, c, &d.out)
	d.unlockAndExecute(false)
	return err
}

// Stop ends the sequencer: batches in flight are answered with reason as of unknown outcome, and
// nothing is acknowledged any more. It returns the committed tail, which is final for this
// sequencer. Idempotent.
func (d *Driver) Stop(reason error) cluster.Offset {
	d.mu.Lock()
	d.core.Stop(reason, &d.out)
	d.finished = true
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	tail := d.core.GlobalTail()
	d.unlockAndExecute(true)
	return tail
}

// Stopped is why nothing is taken any more, nil while appends are.
func (d *Driver) Stopped() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.core.Stopped()
}

// now is the time since the driver began, never 0.
func (d *Driver) now() time.Duration { return d.clock.Now().Sub(d.began) + 1 }

// answered takes the end of a send.
func (d *Driver) answered(a *Answer) {
	d.mu.Lock()
	d.core.Answer(d.now(), a, &d.out)
	d.unlockAndExecute(true)
}

func (d *Driver) tick() {
	d.mu.Lock()
	d.timer = nil
	d.core.Tick(d.now(), &d.out)
	d.unlockAndExecute(true)
}

// unlockAndExecute releases the lock after sends, and commits when they may be told, were executed.
// Those that somebody else is busy with are left to that one: they must stay in order. Sends go
// first, so that the disk is busy while the commits are told.
func (d *Driver) unlockAndExecute(tell bool) {
	for {
		switch {
		case len(d.out.Sends) > 0 && !d.sending:
			sends := d.out.Sends
			d.out.Sends, d.spareSends, d.sending = d.spareSends, nil, true
			d.mu.Unlock()
			for i := range sends {
				d.send(sends[i])
			}
			clear(sends)
			d.mu.Lock()
			d.spareSends, d.sending = sends[:0], false
		case tell && len(d.out.Commits) > 0 && !d.committing:
			commits := d.out.Commits
			d.out.Commits, d.spareCommits, d.committing = d.spareCommits, nil, true
			d.mu.Unlock()
			d.tell(commits)
			clear(commits)
			d.mu.Lock()
			d.spareCommits, d.committing = commits[:0], false
		default:
			d.arm()
			d.mu.Unlock()
			return
		}
	}
}

// tell fills the listener, moves the tail, then answers.
func (d *Driver) tell(commits []Commit) {
	tail := cluster.Offset(0)
	for i := range commits {
		c := &commits[i]
		if c.Err != nil {
			continue
		}
		if d.listener != nil {
			d.listener(c.First, c.Records)
		}
		tail = c.Last() + 1
	}
	d.tail.Advance(tail)
	for i := range commits {
		c := &commits[i]
		c.Token.(Committer).Committed(c.Last(), c.Err)
	}
}

func (d *Driver) send(s Send) {
	began := d.now()
	d.net.Call(s.To, s.Msg, func(r transport.Message, err error) {
		if d.stored != nil {
			d.stored(s.To, d.now()-began)
		}
		d.answered(&Answer{Send: s, Reply: r, Err: err})
	})
}

// arm keeps a timer pending for the next tick. It is left alone while it fires early enough, so that
// the hot path does not touch it.
func (d *Driver) arm() {
	at, ok := d.core.NextTick()
	if !ok || d.finished {
		return
	}
	if d.timer != nil {
		if d.timerAt <= at {
			return
		}
		d.timer.Stop()
	}
	d.timerAt = at
	d.timer = d.clock.AfterFunc(max(at-d.now(), 0), d.tick)
}
