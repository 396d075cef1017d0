package protocol

import (
	"google.golang.org/protobuf/encoding/protowire"

	"perdure/control/ident"
)

// Start is what the first frame of an attempt says. See protocolpb.Start for the meaning of the fields.
type Start struct {
	ID      ident.InvocationID
	DebugID string // ID.String()
	// KnownEntries is the exact number of journal entries that follow; at least 1.
	KnownEntries uint32
	// StateLen and State give the eager state; State(i) is called once for each i below StateLen.
	StateLen     int
	State        func(i int) (key, value []byte)
	PartialState bool
	Key          string
	RetryCount   uint32
	// SinceLastEntryMs is the time since the invocation's row was last modified.
	SinceLastEntryMs uint64
	RandomSeed       uint64
	// Scope, LimitKey and IdempotencyKey are sent to V7 endpoints only; nil leaves them out.
	Scope, LimitKey, IdempotencyKey *string
}

// AppendStart appends the frame of s. Unlike AppendMessage it needs no message structs for the state.
func AppendStart(dst []byte, s *Start) []byte {
	at := len(dst)
	dst = AppendHeader(dst, TypeStart, 0, 0)
	dst = appendBytes(dst, 1, s.ID[:])
	dst = appendString(dst, 2, s.DebugID)
	dst = appendNonZero(dst, 3, uint64(s.KnownEntries))
	for i := range s.StateLen {
		dst = appendState(dst, s, i)
	}
	if s.PartialState {
		dst = appendNonZero(dst, 5, 1)
	}
	dst = appendString(dst, 6, s.Key)
	dst = appendNonZero(dst, 7, uint64(s.RetryCount))
	dst = appendNonZero(dst, 8, s.SinceLastEntryMs)
	dst = appendNonZero(dst, 9, s.RandomSeed)
	dst = appendOptional(dst, 10, s.Scope)
	dst = appendOptional(dst, 11, s.LimitKey)
	dst = appendOptional(dst, 12, s.IdempotencyKey)
	AppendHeader(dst[:at], TypeStart, 0, len(dst)-at-HeaderLen)
	return dst
}

func appendState(dst []byte, s *Start, i int) []byte {
	key, value := s.State(i)
	n := 0
	if len(key) > 0 {
		n += 1 + protowire.SizeBytes(len(key))
	}
	if len(value) > 0 {
		n += 1 + protowire.SizeBytes(len(value))
	}
	dst = protowire.AppendTag(dst, 4, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(n))
	dst = appendBytes(dst, 1, key)
	return appendBytes(dst, 2, value)
}

// StateSize is the number of bytes that an entry of the eager state takes in a Start frame, or a little more.
func StateSize(key, value []byte) int { return len(key) + len(value) + 18 }

func appendBytes(dst []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), v)
}

func appendString(dst []byte, num protowire.Number, v string) []byte {
	if v == "" {
		return dst
	}
	return protowire.AppendString(protowire.AppendTag(dst, num, protowire.BytesType), v)
}

func appendOptional(dst []byte, num protowire.Number, v *string) []byte {
	if v == nil {
		return dst
	}
	return protowire.AppendString(protowire.AppendTag(dst, num, protowire.BytesType), *v)
}

func appendNonZero(dst []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v)
}

// AppendCommandAck appends the frame that acknowledges a command.
func AppendCommandAck(dst []byte, commandIndex uint32) []byte {
	return appendNumberFrame(dst, TypeCommandAck, commandIndex)
}

// AppendRunAck appends the frame that acknowledges a run proposal (V7).
func AppendRunAck(dst []byte, completionID uint32) []byte {
	return appendNumberFrame(dst, TypeProposeRunCompletionAck, completionID)
}

func appendNumberFrame(dst []byte, typ uint16, v uint32) []byte {
	n := 0
	if v != 0 {
		n = 1 + protowire.SizeVarint(uint64(v))
	}
	return appendNonZero(AppendHeader(dst, typ, 0, n), 1, uint64(v))
}
