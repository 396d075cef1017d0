package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/s2"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
)

// The key space of the store. Numbers in keys are big endian, so that keys sort by loglet and offset.
//
//	'd' | loglet u64 | offset u32   record
//	'm' | loglet u64 | tag u8       metadata: 's' sequencer, 't' trim point, 'Z' seal, 'g' known global tail
//	'M'                             marker: whose disk this is
//
// A record's value, numbers little endian:
//
//	format u8 = 1 | flags u8 (bit 0: keyed, bit 1: payload is an S2 block) | created-at u64 | key u64 | crc u32 | payload
//
// Payloads of 1 KiB and more are compressed if that saves an eighth: a record is written to the log, to a
// table and by compactions, and what it costs the disk weighs more than the pass over the bytes. The CRC32C covers loglet and offset as in the key, then the value without the CRC itself, so that
// a record that shows up at another place is as corrupt as one with a flipped bit.
const (
	prefixData   = 'd'
	prefixMeta   = 'm'
	keyMarker    = "M"
	tagSequencer = 's'
	tagTrim      = 't'
	tagSeal      = 'Z'
	tagGlobal    = 'g'

	dataKeyLen = 1 + 8 + 4
	metaKeyLen = 1 + 8 + 1

	recordFormat    = 1
	recordHeaderLen = 1 + 1 + 8 + 8 + 4
	crcAt           = recordHeaderLen - 4
	flagKeyed       = 1
	flagCompressed  = 2

	compressFrom = 1 << 10 // bytes of payload
)

// ErrCorrupt says that bytes on disk are not what was written. The copy must not be used.
var ErrCorrupt = errors.New("stored bytes are corrupt")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func putDataKey(dst []byte, id cluster.LogletID, o cluster.Offset) {
	dst[0] = prefixData
	binary.BigEndian.PutUint64(dst[1:], uint64(id))
	binary.BigEndian.PutUint32(dst[9:], uint32(o))
}

func dataKey(id cluster.LogletID, o cluster.Offset) []byte {
	k := make([]byte, dataKeyLen)
	putDataKey(k, id, o)
	return k
}

func metaKey(id cluster.LogletID, tag byte) []byte {
	k := make([]byte, metaKeyLen)
	k[0] = prefixMeta
	binary.BigEndian.PutUint64(k[1:], uint64(id))
	k[9] = tag
	return k
}

func offsetOfKey(k []byte) (cluster.Offset, error) {
	if len(k) != dataKeyLen || k[0] != prefixData {
		return 0, fmt.Errorf("record key of %d bytes: %w", len(k), ErrCorrupt)
	}
	return cluster.Offset(binary.BigEndian.Uint32(k[9:])), nil
}

// pack returns the bytes and flags under which a payload is stored. scratch is used for compressed bytes and
// returned for the next call.
func pack(payload, scratch []byte) (stored []byte, flags byte, _ []byte) {
	if len(payload) < compressFrom {
		return payload, 0, scratch
	}
	if n := s2.MaxEncodedLen(len(payload)); cap(scratch) < n {
		scratch = make([]byte, n)
	}
	packed := s2.Encode(scratch[:cap(scratch)], payload)
	if len(packed) > len(payload)-len(payload)/8 {
		return payload, 0, scratch
	}
	return packed, flagCompressed, scratch
}

// putRecord encodes r for its key into dst, which has length recordHeaderLen + len(stored). stored and flags
// are what pack made of the payload.
func putRecord(dst, key []byte, r *logserver.Record, stored []byte, flags byte) {
	dst[0], dst[1] = recordFormat, flags
	if r.Keyed {
		dst[1] |= flagKeyed
	}
	binary.LittleEndian.PutUint64(dst[2:], r.CreatedAt)
	binary.LittleEndian.PutUint64(dst[10:], r.Key)
	copy(dst[recordHeaderLen:], stored)
	binary.LittleEndian.PutUint32(dst[crcAt:], recordSum(key, dst))
}

func recordSum(key, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli, key[1:])
	sum = crc32.Update(sum, castagnoli, value[:crcAt])
	return crc32.Update(sum, castagnoli, value[recordHeaderLen:])
}

// parseRecord decodes a value and checks it against its key. The payload is a copy.
func parseRecord(key, value []byte) (logserver.Record, error) {
	var r logserver.Record
	if len(value) < recordHeaderLen {
		return r, fmt.Errorf("record of %d bytes is too short: %w", len(value), ErrCorrupt)
	}
	if len(key) != dataKeyLen {
		return r, fmt.Errorf("record key of %d bytes: %w", len(key), ErrCorrupt)
	}
	if value[0] != recordFormat || value[1]&^(flagKeyed|flagCompressed) != 0 {
		return r, fmt.Errorf("record format %d flags %#x is unknown: %w", value[0], value[1], ErrCorrupt)
	}
	if want, got := binary.LittleEndian.Uint32(value[crcAt:]), recordSum(key, value); want != got {
		return r, fmt.Errorf("record checksum is %08x, stored was %08x: %w", got, want, ErrCorrupt)
	}
	r.Keyed = value[1]&flagKeyed != 0
	r.CreatedAt = binary.LittleEndian.Uint64(value[2:])
	r.Key = binary.LittleEndian.Uint64(value[10:])
	if value[1]&flagCompressed == 0 {
		r.Payload = append([]byte(nil), value[recordHeaderLen:]...)
		return r, nil
	}
	// The checksum was right, so that the block says how long it is; what it says is bounded all the same.
	n, err := s2.DecodedLen(value[recordHeaderLen:])
	if err == nil && n > maxPayload {
		err = fmt.Errorf("%d bytes are too many", n)
	}
	if err == nil {
		r.Payload, err = s2.Decode(nil, value[recordHeaderLen:])
	}
	if err != nil {
		return logserver.Record{}, fmt.Errorf("decompress record: %w: %w", ErrCorrupt, err)
	}
	return r, nil
}

// maxPayload bounds what a record unfolds to; the largest that is accepted anywhere is far below.
const maxPayload = 1 << 30

func encodeSequencer(g cluster.GenNodeID) []byte {
	v := binary.LittleEndian.AppendUint32(nil, uint32(g.ID))
	return binary.LittleEndian.AppendUint32(v, uint32(g.Generation))
}

func encodeOffset(o cluster.Offset) []byte {
	return binary.LittleEndian.AppendUint32(nil, uint32(o))
}

// applyMeta sets the field of m that a metadata row stands for.
func applyMeta(m *logserver.Meta, tag byte, value []byte) error {
	need := map[byte]int{tagSequencer: 8, tagTrim: 4, tagGlobal: 4, tagSeal: 0}
	if n, known := need[tag]; !known || len(value) != n {
		return fmt.Errorf("metadata row %q of %d bytes: %w", tag, len(value), ErrCorrupt)
	}
	switch tag {
	case tagSequencer:
		m.Sequencer.ID = cluster.NodeID(binary.LittleEndian.Uint32(value))
		m.Sequencer.Generation = cluster.Generation(binary.LittleEndian.Uint32(value[4:]))
	case tagTrim:
		m.TrimPoint = cluster.Offset(binary.LittleEndian.Uint32(value))
	case tagGlobal:
		m.GlobalTail = cluster.Offset(binary.LittleEndian.Uint32(value))
	case tagSeal:
		m.Sealed = true
	}
	return nil
}
