package keyspace

import (
	"encoding/binary"

	"perdure/control/ident"
)

// TimerKind says what a timer does when it fires. The numbers are those of recordpb.Timer.kind.
type TimerKind uint8

// The kinds of timers.
const (
	TimerSleep  TimerKind = 1 // completes a sleep
	TimerInvoke TimerKind = 2 // starts a scheduled invocation
)

// TimerKey is a timer: the key is all there is of it. Timers are ordered field by field.
type TimerKey struct {
	FireAtMs     uint64 // ms since the epoch
	Kind         TimerKind
	ID           ident.InvocationID
	CompletionID uint32 // of a sleep
}

// AppendTimer is the key of a timer.
func AppendTimer(dst []byte, t *TimerKey) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, TagTimer), t.FireAtMs)
	dst = append(append(dst, byte(t.Kind)), t.ID[:]...)
	return binary.BigEndian.AppendUint32(dst, t.CompletionID)
}

// TimerOf reads a timer key.
func TimerOf(key []byte) (t TimerKey, err error) {
	if len(key) != 1+8+1+24+4 {
		return t, ErrCorrupt
	}
	t.FireAtMs = binary.BigEndian.Uint64(key[1:])
	t.Kind = TimerKind(key[9])
	copy(t.ID[:], key[10:])
	t.CompletionID = binary.BigEndian.Uint32(key[34:])
	return t, nil
}

const (
	expiryAll     = 1
	expiryJournal = 2
)

// ExpiryKey is an entry of the expiry index: a completed invocation whose retention ends at a time.
type ExpiryKey struct {
	AtMs        uint64 // ms since the epoch
	ID          ident.InvocationID
	JournalOnly bool // only the journal's retention ends
}

// AppendExpiry is the key of an expiry.
func AppendExpiry(dst []byte, e *ExpiryKey) []byte {
	kind := byte(expiryAll)
	if e.JournalOnly {
		kind = expiryJournal
	}
	dst = binary.BigEndian.AppendUint64(append(dst, TagExpiry), e.AtMs)
	return append(append(dst, kind), e.ID[:]...)
}

// ExpiryOf reads an expiry key.
func ExpiryOf(key []byte) (e ExpiryKey, err error) {
	if len(key) != 1+8+1+24 || key[9] != expiryAll && key[9] != expiryJournal {
		return e, ErrCorrupt
	}
	e.AtMs = binary.BigEndian.Uint64(key[1:])
	e.JournalOnly = key[9] == expiryJournal
	copy(e.ID[:], key[10:])
	return e, nil
}

// ExpiresAt is when a retention that begins at a time is over; a sum beyond the range of time never is.
func ExpiresAt(fromMs, retentionMs uint64) uint64 {
	if t := fromMs + retentionMs; t >= fromMs {
		return t
	}
	return 1<<64 - 1
}
