package loglet

import (
	"time"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
)

// Trimmer deletes a prefix of a loglet on a write quorum of its servers. Servers that do not answer
// keep their copies until a later trim; readers see the trim gap from the others. A step machine
// like Finder: it never gives up.
type Trimmer struct {
	params Params
	cfg    FinderConfig
	upTo   cluster.Offset
	global cluster.Offset
	nodes  []trimPeer
}

type trimPeer struct {
	done, busy bool
	failures   int
	retryAt    time.Duration
	deadline   time.Duration
}

// NewTrimmer returns a trimmer that deletes everything up to and including upTo, which must be
// below global, a tail that is known to be committed.
func NewTrimmer(p Params, upTo, global cluster.Offset, cfg FinderConfig) *Trimmer {
	return &Trimmer{params: p, cfg: cfg.withDefaults(), upTo: upTo, global: global, nodes: make([]trimPeer, p.Quorum.Size())}
}

// Finished reports whether a write quorum has trimmed.
func (t *Trimmer) Finished() bool {
	var m cluster.Members
	for i := range t.nodes {
		if t.nodes[i].done {
			m.Add(i)
		}
	}
	return t.params.Quorum.WriteQuorum(m)
}

// Start returns the first requests.
func (t *Trimmer) Start(now time.Duration) []Send { return t.pump(now) }

// Tick lets time pass.
func (t *Trimmer) Tick(now time.Duration) []Send {
	for i := range t.nodes {
		if n := &t.nodes[i]; n.busy && now >= n.deadline {
			t.failed(now, n)
		}
	}
	return t.pump(now)
}

// NextTick is when Tick is due.
func (t *Trimmer) NextTick() (at time.Duration, ok bool) {
	for i := range t.nodes {
		n := &t.nodes[i]
		due := n.retryAt
		if n.busy {
			due = n.deadline
		}
		if n.done || (ok && due >= at) {
			continue
		}
		at, ok = due, true
	}
	return at, ok
}

// Answer takes the end of a send.
func (t *Trimmer) Answer(now time.Duration, a *Answer) []Send {
	n := &t.nodes[a.Node]
	switch state, ok := a.state(); {
	case n.done:
		return nil
	case ok && state.Status == logserver.StatusOK:
		n.busy, n.done = false, true
	case n.busy:
		t.failed(now, n)
	}
	return t.pump(now)
}

func (t *Trimmer) failed(now time.Duration, n *trimPeer) {
	n.busy = false
	n.failures++
	n.retryAt = now + backoff(n.failures, t.cfg.RetryMin, t.cfg.RetryMax)
}

func (t *Trimmer) pump(now time.Duration) []Send {
	var sends []Send
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.done || n.busy || now < n.retryAt {
			continue
		}
		n.busy, n.deadline = true, now+t.cfg.AnswerTimeout
		sends = append(sends, Send{Node: i, To: t.params.Quorum.Node(i), Msg: &logserver.TrimRequest{
			Header: logserver.Header{Loglet: t.params.ID, KnownGlobalTail: t.global}, UpTo: t.upTo,
		}})
	}
	return sends
}
