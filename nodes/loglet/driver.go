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
	// transport or the log store: it must not block, but may append.
	Committed(last cluster.Offset, err error)
}

// Listener is told of commits before the tail moves.
type Listener func(first cluster.Offset, records []logserver.Record)

// Driver runs one Sequencer against the network. It has no goroutine: a step runs on the goroutine
// that brings the append, the answer or the tick; what the step wants done is executed by one of
// them at a time, in order and without the lock. Safe for concurrent use.
type Driver struct {
	params   Params
	net      transport.Caller
	clock    Clock
	began    time.Time
	listener Listener
	tail     *Tail

	mu       sync.Mutex
	core     *Sequencer
	out      SequencerOutput // not executed yet
	spare    SequencerOutput
	busy     bool  // somebody executes outputs
	timer    Timer // pending tick, nil when none
	timerAt  time.Duration
	finished bool // Close was called: no more timers
}

// NewDriver returns the sequencer of a loglet that nobody has appended to before. It must run on the
// life of the node that the parameters name. listener may be nil.
func NewDriver(p Params, cfg SequencerConfig, net transport.Caller, clock Clock, tail *Tail, listener Listener) *Driver {
	return &Driver{params: p, net: net, clock: clock, began: clock.Now(), listener: listener, tail: tail, core: NewSequencer(p, cfg)}
}

// Params are the loglet's parameters.
func (d *Driver) Params() Params { return d.params }

// Tail is the committed tail, for watching.
func (d *Driver) Tail() *Tail { return d.tail }

// Append gives records their offsets and stores them. c is told the end, unless an error is
// returned: then nothing was taken. The records belong to the loglet from here on.
func (d *Driver) Append(records []logserver.Record, c Committer) error {
	d.mu.Lock()
	err := d.core.Append(d.now(), records, c, &d.out)
	d.unlockAndExecute()
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
	d.unlockAndExecute()
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
	d.unlockAndExecute()
}

func (d *Driver) tick() {
	d.mu.Lock()
	d.timer = nil
	d.core.Tick(d.now(), &d.out)
	d.unlockAndExecute()
}

// unlockAndExecute releases the lock and executes outputs until there are none. When somebody else
// does so already, it leaves them to that one: outputs must be executed in order.
func (d *Driver) unlockAndExecute() {
	if d.busy {
		d.mu.Unlock()
		return
	}
	d.busy = true
	for len(d.out.Sends) > 0 || len(d.out.Commits) > 0 {
		out := d.out
		d.out = d.spare
		d.spare = SequencerOutput{}
		d.mu.Unlock()
		d.execute(&out)
		out.Reset()
		d.mu.Lock()
		d.spare = out
	}
	d.busy = false
	d.arm()
	d.mu.Unlock()
}

// execute sends first, so that the disk is busy while the commits are told.
func (d *Driver) execute(out *SequencerOutput) {
	for i := range out.Sends {
		d.send(out.Sends[i])
	}
	tail := cluster.Offset(0)
	for i := range out.Commits {
		c := &out.Commits[i]
		if c.Err != nil {
			continue
		}
		if d.listener != nil {
			d.listener(c.First, c.Records)
		}
		tail = c.Last() + 1
	}
	d.tail.Advance(tail)
	for i := range out.Commits {
		c := &out.Commits[i]
		c.Token.(Committer).Committed(c.Last(), c.Err)
	}
}

func (d *Driver) send(s Send) {
	d.net.Call(s.To, s.Msg, func(r transport.Message, err error) { d.answered(&Answer{Send: s, Reply: r, Err: err}) })
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
