package keyspace

import "encoding/binary"

// Entry is the value of a journal row. Raw is the payload of the service-protocol message, unchanged.
type Entry struct {
	Type         uint16 // message type of the service protocol
	AppendedAtMs uint64
	Raw          []byte
}

const entryHeader = 2 + 8

// AppendEntry is the value of a journal row.
func AppendEntry(dst []byte, e *Entry) []byte {
	dst = binary.BigEndian.AppendUint16(dst, e.Type)
	dst = binary.BigEndian.AppendUint64(dst, e.AppendedAtMs)
	return append(dst, e.Raw...)
}

// EntryOf reads the value of a journal row. Raw aliases value.
func EntryOf(value []byte) (e Entry, err error) {
	if len(value) < entryHeader {
		return e, ErrCorrupt
	}
	e.Type = binary.BigEndian.Uint16(value)
	e.AppendedAtMs = binary.BigEndian.Uint64(value[2:])
	e.Raw = value[entryHeader:]
	return e, nil
}
