package metastore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"perdure/control/metadata"
)

// castagnoli is the polynomial of all checksums of this package.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A command is the data of one raft log entry. Numbers are varints, strings have their length before them.
//
//	format 1 | kind 1: transaction
//	| number of compares | each: key, precondition
//	| number of puts     | each: key, flags (1: delete), data
const (
	commandFormat  = 1
	commandTxn     = 1
	putFlagDelete  = 1
	commandMinimum = 4 // bytes of a transaction of nothing
)

// errMalformed means that bytes are damaged or were written by another version.
var errMalformed = errors.New("malformed")

func encodeTxn(compares []metadata.Compare, puts []metadata.Put) []byte {
	size := commandMinimum + 2*binary.MaxVarintLen64
	for _, c := range compares {
		size += len(c.Key) + 2*binary.MaxVarintLen64
	}
	for _, p := range puts {
		size += len(p.Key) + len(p.Data) + 2*binary.MaxVarintLen64 + 1
	}
	b := make([]byte, 0, size)
	b = append(b, commandFormat, commandTxn)
	b = binary.AppendUvarint(b, uint64(len(compares)))
	for _, c := range compares {
		b = appendBytes(b, c.Key)
		b = binary.AppendUvarint(b, uint64(c.Precondition))
	}
	b = binary.AppendUvarint(b, uint64(len(puts)))
	for _, p := range puts {
		b = appendBytes(b, p.Key)
		b = append(b, flagOf(p.Delete))
		b = appendBytes(b, p.Data)
	}
	return b
}

// decodeTxn reads a command. The puts' data points into b.
func decodeTxn(b []byte) ([]metadata.Compare, []metadata.Put, error) {
	if len(b) < commandMinimum {
		return nil, nil, fmt.Errorf("decode command of %d bytes: %w", len(b), errMalformed)
	}
	if b[0] != commandFormat || b[1] != commandTxn {
		return nil, nil, fmt.Errorf("decode command: format %d, kind %d is not known to this version of the server", b[0], b[1])
	}
	r := reader{rest: b[2:]}
	compares := make([]metadata.Compare, 0, r.count(2))
	for range cap(compares) {
		compares = append(compares, metadata.Compare{Key: string(r.bytes()), Precondition: metadata.Precondition(r.uvarint())})
	}
	puts := make([]metadata.Put, 0, r.count(3))
	for range cap(puts) {
		puts = append(puts, metadata.Put{Key: string(r.bytes()), Delete: r.flag(), Data: r.bytes()})
	}
	if err := r.end(); err != nil {
		return nil, nil, fmt.Errorf("decode command: %w", err)
	}
	return compares, puts, nil
}

func appendBytes[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func flagOf(deleted bool) byte {
	if deleted {
		return putFlagDelete
	}
	return 0
}

// reader takes fields off a byte slice; after the first that is not there everything reads as zero.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) fail() {
	r.rest, r.failed = nil, true
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// count reads the number of items that have at least size bytes each.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.rest)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.fail()
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) flag() bool {
	if len(r.rest) == 0 || r.rest[0] > putFlagDelete {
		r.fail()
		return false
	}
	f := r.rest[0] == putFlagDelete
	r.rest = r.rest[1:]
	return f
}

func (r *reader) end() error {
	if r.failed || len(r.rest) != 0 {
		return errMalformed
	}
	return nil
}
