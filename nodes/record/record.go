// Package record is the encoding of commands in a partition's log.
//
// A record's payload is
//
//	byte 0      format, 1
//	byte 1..    a recordpb.Command in protobuf wire form
//
// The dedup of a command is appended as the last field of the message: its sequence is only known
// under the proposer's lock, and protobuf allows fields in any order, so the bulk of a command is
// encoded outside of that lock. The record's creation time and its partition key also stand in the
// log's own record header (see nodes/bifrost): the log filters by key without decoding payloads.
package record

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"perdure/nodes/record/recordpb"
)

// Format is the version byte of the encoding that this binary writes.
const Format = 1

// Decoding errors. Both mean that the data is not ours or is damaged: the partition must stop, skipping
// a record would let replicas diverge.
var (
	ErrFormat    = errors.New("unknown record format; it was written by a newer version")
	ErrMalformed = errors.New("malformed record")
)

// dedupRoom is the largest encoded size of a dedup of the leader itself or of a partition.
const dedupRoom = 2 + 2*11 + 6

// Encode is the payload of a command without its dedup, with room to append one.
func Encode(c *recordpb.Command) ([]byte, error) {
	n := c.SizeVT()
	buf := make([]byte, 1+n, 1+n+dedupRoom)
	buf[0] = Format
	if _, err := c.MarshalToSizedBufferVT(buf[1:]); err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	return buf, nil
}

// dedupField is the number of Command.dedup.
const dedupField = 1

// AppendDedup completes an encoded command that had no dedup.
func AppendDedup(payload []byte, d *recordpb.Dedup) ([]byte, error) {
	n := d.SizeVT()
	payload = protowire.AppendTag(payload, dedupField, protowire.BytesType)
	payload = protowire.AppendVarint(payload, uint64(n))
	at := len(payload)
	payload = append(payload, make([]byte, n)...)
	if _, err := d.MarshalToSizedBufferVT(payload[at:]); err != nil {
		return nil, fmt.Errorf("encode dedup: %w", err)
	}
	return payload, nil
}

// Decode reads a payload. The command does not alias the payload.
func Decode(payload []byte) (*recordpb.Command, error) {
	if len(payload) == 0 {
		return nil, ErrMalformed
	}
	if payload[0] != Format {
		return nil, fmt.Errorf("%w (format %d, this version knows %d)", ErrFormat, payload[0], Format)
	}
	c := new(recordpb.Command)
	if err := c.UnmarshalVT(payload[1:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if c.Kind == nil {
		return nil, fmt.Errorf("%w: a command of an unknown kind", ErrFormat)
	}
	return c, nil
}

// Keyed reports whether a command belongs to a partition key; the others concern the whole partition.
func Keyed(c *recordpb.Command) bool {
	switch c.Kind.(type) {
	case *recordpb.Command_AnnounceLeader, *recordpb.Command_TruncateOutbox,
		*recordpb.Command_PartitionDurability, *recordpb.Command_VersionBarrier:
		return false
	}
	return true
}
