package logserver

import (
	"perdure/control/cluster"
	"perdure/nodes/transport"
)

// Record is one entry of a log. It is immutable from the moment it was handed to an append.
type Record struct {
	// Key is the partition key; it has a meaning only when Keyed is set.
	Key   uint64
	Keyed bool
	// CreatedAt is in milliseconds since 1970, as stamped by the writer.
	CreatedAt uint64
	// Payload is opaque.
	Payload []byte
	// Decoded may hold a decoded form of the payload for readers in the same process. It is
	// never stored or sent.
	Decoded any
}

// recordOverhead is what a record costs in memory and messages besides its payload, in bytes.
const recordOverhead = 72

// Size is the record's share of memory and message budgets, in bytes.
func (r *Record) Size() int { return len(r.Payload) + recordOverhead }

// Found is a record together with its place in the loglet.
type Found struct {
	Offset cluster.Offset
	Record Record
}

// Range is a half-open range of offsets.
type Range struct{ From, To cluster.Offset }

// Status says how a log server took a request.
type Status uint8

// The statuses. Only StatusOK means that the request was carried out.
const (
	StatusOK Status = iota
	// StatusSealed: the loglet takes no appends any more.
	StatusSealed
	// StatusSealing: a seal is being made durable; repeat the repair write.
	StatusSealing
	// StatusOutOfBounds: the write would leave a hole that may be uncommitted.
	StatusOutOfBounds
	// StatusSequencerMismatch: the loglet has another sequencer, the write is refused for ever.
	StatusSequencerMismatch
	// StatusMalformed: the request makes no sense, it is refused for ever.
	StatusMalformed
	// StatusDisabled: the server's disk failed or it shuts down, writes are refused until restart.
	StatusDisabled
	// StatusDataLoss: the server lost records of this loglet; it does not answer for it.
	StatusDataLoss
	// StatusOverloaded: too many bytes or requests wait, or the disk is nearly full; repeat later.
	StatusOverloaded
	// StatusError: the request failed, e.g. a read met a corrupt record; see the reply's Reason.
	StatusError
)

var statusNames = [...]string{"ok", "sealed", "sealing", "out of bounds", "sequencer mismatch",
	"malformed", "disabled", "data loss", "overloaded", "error"}

func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return "unknown status"
}

// Header begins every request.
type Header struct {
	Loglet cluster.LogletID
	// KnownGlobalTail is the highest tail that the sender knows to be committed; 0 when it knows none.
	KnownGlobalTail cluster.Offset
}

// StoreRequest stores consecutive records.
type StoreRequest struct {
	Header
	// Sequencer is the loglet's sequencer according to its parameters.
	Sequencer cluster.GenNodeID
	// First is the offset of the first record.
	First   cluster.Offset
	Records []Record
	// Repair marks a copy of records that exist elsewhere: accepted from anybody, also when sealed.
	Repair bool
}

// Next is the offset after the last record of the request.
func (r *StoreRequest) Next() cluster.Offset { return r.First + cluster.Offset(len(r.Records)) }

// SealRequest ends the acceptance of appends for ever.
type SealRequest struct{ Header }

// InfoRequest asks for the loglet's state on the server.
type InfoRequest struct{ Header }

// WaitTailRequest is answered once the local or the known global tail reached Tail, or the loglet
// is sealed.
type WaitTailRequest struct {
	Header
	Tail cluster.Offset
}

// TrimRequest deletes all records up to and including UpTo.
type TrimRequest struct {
	Header
	UpTo cluster.Offset
}

// ReadRequest asks for the durable records in [From, To).
type ReadRequest struct {
	Header
	From, To cluster.Offset
	// MaxBytes limits the answer; at least one record is returned when there is one.
	MaxBytes int
}

// DigestRequest asks which offsets of [From, To) the server holds.
type DigestRequest struct {
	Header
	From, To cluster.Offset
}

// StateReply answers store, seal, info, wait and trim requests. Each reply carries the loglet's
// whole state on the server, so that any of them refreshes the sender's picture.
type StateReply struct {
	Status Status
	// LocalTail is the first offset that is not durable here.
	LocalTail cluster.Offset
	// KnownGlobalTail is the highest tail the server knows to be committed.
	KnownGlobalTail cluster.Offset
	// TrimPoint is the last deleted offset, 0 when none.
	TrimPoint cluster.Offset
	Sealed    bool
	// Reason explains StatusError.
	Reason string
}

// ReadReply answers a ReadRequest.
type ReadReply struct {
	StateReply
	// TrimmedTo, when not 0, says that the offsets from the request's From to TrimmedTo (inclusive) are trimmed.
	TrimmedTo cluster.Offset
	// Records have growing offsets. A jump between two of them, or before the first, is a hole on
	// this server.
	Records []Found
	// Next is where to continue; everything before it was looked at.
	Next cluster.Offset
}

// DigestReply answers a DigestRequest: the ranges of offsets that exist, growing.
type DigestReply struct {
	StateReply
	Exists []Range
}

// Service implements transport.Message.
func (*StoreRequest) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*SealRequest) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*InfoRequest) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*WaitTailRequest) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*TrimRequest) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*ReadRequest) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*DigestRequest) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*StateReply) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*ReadReply) Service() transport.Service { return transport.LogServer }

// Service implements transport.Message.
func (*DigestReply) Service() transport.Service { return transport.LogServer }
