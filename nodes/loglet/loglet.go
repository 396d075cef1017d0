// Package loglet is one segment of a replicated log: a sequencer gives records their offsets and
// stores them on the log servers of the segment's node set; an append is acknowledged when a write
// quorum has it durably. The sequencer is bound to one life of a node and never resumes; when it is
// gone, anybody may seal the segment on an f-majority of the servers, find its tail, and repair
// what is below the tail but not yet on a write quorum. The log then continues in another segment.
//
// Sequencer, Finder and Trimmer are step machines: messages, errors and the time go in, messages
// and results come out; they have no clock, lock or goroutine. Driver and Run are the thin shells
// around them. The chain of segments is package bifrost's business, what a single server accepts
// package logserver's.
//
// Why this is safe, in five lines: (1) committed = on a write quorum. (2) Sealed = an f-majority
// refuses appends, which intersects every write quorum, so nothing newly reaches one afterwards.
// (3) Each server has all records between the tail it knows to be committed and its own, so the
// highest tail of an f-majority is at or above every committed one. (4) Repair makes all below
// that tail committed before it is published. (5) The chain takes one successor per segment.
package loglet

import (
	"errors"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// Params are what a segment is for its whole life.
type Params struct {
	ID cluster.LogletID
	// Sequencer is the only life of a node that gives offsets.
	Sequencer cluster.GenNodeID
	// Quorum judges sets of the segment's log servers, with the storage states that were known when it
	// was made. Its positions are the node set's order.
	Quorum *cluster.Quorum
}

// Errors of a loglet.
var (
	// ErrSealed means that the segment takes no appends any more; the append was not stored, unless
	// ErrUnknownOutcome is in the chain as well.
	ErrSealed = errors.New("loglet is sealed")
	// ErrUnavailable means that too few log servers can store; the log needs another segment.
	ErrUnavailable = errors.New("loglet has no write quorum, the log must be reconfigured")
	// ErrFull means that as much as allowed is under way: append again after a commit.
	ErrFull = errors.New("sequencer has too many records in flight")
	// ErrUnknownOutcome means that the records may or may not be in the log.
	ErrUnknownOutcome = errors.New("outcome of the append is unknown")
)

// Send is a request to one node of the node set. Node is its index there.
type Send struct {
	Node int
	To   cluster.NodeID
	Msg  transport.Message
	// Attempt comes back with the answer; it tells answers to older requests from those to newer ones.
	Attempt uint32
}

// Answer is the end of a Send.
type Answer struct {
	Send
	Reply transport.Message // nil when Err is set
	Err   error
}

// state returns the loglet's state as carried by any reply of a log server.
func (a *Answer) state() (*logserver.StateReply, bool) {
	switch r := a.Reply.(type) {
	case *logserver.StateReply:
		return r, r != nil
	case *logserver.ReadReply:
		return &r.StateReply, true
	case *logserver.DigestReply:
		return &r.StateReply, true
	}
	return nil, false
}

// backoff is the pause before the n-th repetition (n from 1) of something that failed.
func backoff(n int, first, highest time.Duration) time.Duration {
	d := first
	for i := 1; i < n && d < highest; i++ {
		d *= 2
	}
	return min(d, highest)
}

// TailResult is what is known of a loglet's tail.
type TailResult struct {
	// Tail is the first offset that is not committed, as far as known: everything below is
	// committed. When Sealed it is final.
	Tail   cluster.Offset
	Sealed bool
	// TrimPoint is the highest trim point seen.
	TrimPoint cluster.Offset
}
