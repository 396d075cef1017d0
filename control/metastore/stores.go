package metastore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// ErrDamaged means that what is on disk is not what was written. The store does not run on it.
var ErrDamaged = errors.New("metadata store is damaged")

// Keys under which raft keeps its term and vote, and ours.
var (
	keyCurrentTerm = []byte("CurrentTerm")
	keyVoteTerm    = []byte("LastVoteTerm")
	keyVoteFor     = []byte("LastVoteCand")
	keyIdentity    = []byte("Identity")
	keyState       = []byte("State") // under which all others are stored, as one value
)

var errKeyNotFound = raftboltdb.ErrKeyNotFound // raft compares its text

// bounds are the first and the last entry of the log, both 0 for an empty one.
type bounds struct{ first, last uint64 }

// checkedLog is a raft.LogStore that seals each entry with a checksum and verifies it whenever the entry is read. bbolt
// does not notice when a page of data changes on disk. The seal follows the entry's data:
//
//	"PL" | format 1 | 0 | CRC-32C of index, term, type, extensions and data, 4 bytes little endian
//
// Entries can also vanish, when what changes is a count or a pointer. Therefore an entry of index 0, which raft does not
// use, holds the bounds of the log; it is written in the same transaction as the entries that move them.
//
// Writes come from raft's main goroutine, reads also from others.
type checkedLog struct {
	inner raft.LogStore
	// failed is told of damage, and of failed writes, after which the state of the disk is not known.
	failed func(error)

	mu     sync.Mutex
	bounds bounds
}

var (
	_ raft.LogStore          = (*checkedLog)(nil)
	_ raft.MonotonicLogStore = (*checkedLog)(nil)
)

var logSeal = [4]byte{'P', 'L', 1, 0}

const logSealBytes = 8

// createLog writes the bounds of an empty log.
func createLog(inner raft.LogStore) error {
	return inner.StoreLog(sealed(boundsEntry(bounds{})))
}

// openLog reads the bounds and removes what an interrupted truncation has left outside of them.
func openLog(inner raft.LogStore, failed func(error)) (*checkedLog, error) {
	c := &checkedLog{inner: inner, failed: failed}
	var entry raft.Log
	if err := c.read(0, &entry); err != nil {
		return nil, err
	}
	if len(entry.Data) != 16 {
		return nil, c.damaged(0, "it has no bounds")
	}
	c.bounds = bounds{binary.LittleEndian.Uint64(entry.Data), binary.LittleEndian.Uint64(entry.Data[8:])}
	last, err := inner.LastIndex()
	if err == nil && last > c.bounds.last {
		err = inner.DeleteRange(c.bounds.last+1, math.MaxUint64)
	}
	if err == nil && c.bounds.first > 1 && !errors.Is(inner.GetLog(c.bounds.first-1, &entry), raft.ErrLogNotFound) {
		err = inner.DeleteRange(1, c.bounds.first-1)
	}
	if err != nil {
		return nil, fmt.Errorf("open metadata log: %w", err)
	}
	return c, nil
}

func boundsEntry(b bounds) *raft.Log {
	data := binary.LittleEndian.AppendUint64(nil, b.first)
	return &raft.Log{Type: raft.LogNoop, Data: binary.LittleEndian.AppendUint64(data, b.last)}
}

func logChecksum(l *raft.Log, data []byte) uint32 {
	var head [25]byte
	binary.LittleEndian.PutUint64(head[0:], l.Index)
	binary.LittleEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	binary.LittleEndian.PutUint64(head[17:], uint64(len(l.Extensions)))
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, l.Extensions)
	return crc32.Update(sum, castagnoli, data)
}

// sealed is a copy of an entry with its seal; raft goes on using its own.
func sealed(l *raft.Log) *raft.Log {
	s := *l
	s.Data = make([]byte, 0, len(l.Data)+logSealBytes)
	s.Data = append(s.Data, l.Data...)
	s.Data = append(s.Data, logSeal[:]...)
	s.Data = binary.LittleEndian.AppendUint32(s.Data, logChecksum(l, l.Data))
	return &s
}

// IsMonotonic implements raft.MonotonicLogStore: the log has no gaps, and raft empties it when it installs a
// snapshot from beyond its end.
func (c *checkedLog) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (c *checkedLog) FirstIndex() (uint64, error) { return c.present().first, nil }

// LastIndex implements raft.LogStore.
func (c *checkedLog) LastIndex() (uint64, error) { return c.present().last, nil }

func (c *checkedLog) present() bounds {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bounds
}

// GetLog reads the entry of an index. An entry that is missing within the bounds, or is not what was written, is an
// ErrDamaged.
func (c *checkedLog) GetLog(index uint64, l *raft.Log) error {
	if b := c.present(); index < b.first || index > b.last || index == 0 {
		return raft.ErrLogNotFound
	}
	return c.read(index, l)
}

func (c *checkedLog) read(index uint64, l *raft.Log) error {
	if err := c.inner.GetLog(index, l); err != nil {
		return c.damaged(index, err.Error())
	}
	body := len(l.Data) - logSealBytes
	switch {
	case l.Index != index:
		return c.damaged(index, fmt.Sprintf("it says that it is %d", l.Index))
	case body < 0 || [4]byte(l.Data[body:body+4]) != logSeal:
		return c.damaged(index, "it has no checksum")
	case binary.LittleEndian.Uint32(l.Data[body+4:]) != logChecksum(l, l.Data[:body]):
		return c.damaged(index, "its checksum does not match")
	}
	l.Data = l.Data[:body:body]
	return nil
}

func (c *checkedLog) damaged(index uint64, why string) error {
	err := fmt.Errorf("read metadata log entry %d: %w: %s", index, ErrDamaged, why)
	c.failed(err)
	return err
}

// StoreLog implements raft.LogStore.
func (c *checkedLog) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore: it appends, leaving no gap.
func (c *checkedLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	next := c.present()
	batch := make([]*raft.Log, 0, len(logs)+1)
	for _, l := range logs {
		if l.Index == 0 || next.last != 0 && l.Index != next.last+1 {
			return fmt.Errorf("write metadata log: entry %d can not follow entry %d", l.Index, next.last)
		}
		if next.first == 0 {
			next.first = l.Index
		}
		next.last = l.Index
		batch = append(batch, sealed(l))
	}
	return c.move(next, "write metadata log", batch, nil)
}

// DeleteRange implements raft.LogStore: it removes entries from the beginning or from the end. The bounds change
// first; what a crash leaves outside of them is removed by openLog.
func (c *checkedLog) DeleteRange(from, to uint64) error {
	b := c.present()
	from, to = max(from, b.first), min(to, b.last)
	if b.last == 0 || from > to {
		return nil
	}
	next := b
	switch {
	case from == b.first && to == b.last:
		next = bounds{}
	case from == b.first:
		next.first = to + 1
	case to == b.last:
		next.last = from - 1
	default:
		return fmt.Errorf("truncate metadata log: removing %d to %d would leave a gap in %d to %d", from, to, b.first, b.last)
	}
	return c.move(next, "truncate metadata log", nil, func() error { return c.inner.DeleteRange(from, to) })
}

// move makes the bounds and the entries that belong to them durable, and then does the rest.
func (c *checkedLog) move(next bounds, what string, entries []*raft.Log, rest func() error) error {
	err := c.inner.StoreLogs(append(entries, sealed(boundsEntry(next))))
	if err == nil && rest != nil {
		err = rest()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
		c.failed(err)
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bounds = next
	return nil
}

// checkedStable is a raft.StableStore that keeps all its values, with a checksum, as one value, so that none of them can
// change or vanish without being noticed, and so that the term and the candidate of a vote change together. raft
// writes these one after the other: a crash in between would leave the new term with the old candidate, and the node
// would confirm a vote that it never gave.
//
//	format 1 | number of values | each, in the order of keys: key, value | CRC-32C of all before, 4 bytes little endian
//
// The values are read once, at the start. Writes come from raft's main goroutine, reads also from others.
type checkedStable struct {
	inner  raft.StableStore
	failed func(error)

	mu          sync.Mutex
	values      map[string][]byte // as on disk; the values do not change
	pendingTerm []byte            // of a vote whose candidate did not come yet
}

var _ raft.StableStore = (*checkedStable)(nil)

const stableFormat = 1

// createStable writes the first values.
func createStable(inner raft.StableStore, identity []byte) error {
	return inner.Set(keyState, encodeStable(map[string][]byte{string(keyIdentity): identity}))
}

func openStable(inner raft.StableStore, failed func(error)) (*checkedStable, error) {
	data, err := inner.Get(keyState)
	if err != nil && !errors.Is(err, errKeyNotFound) {
		return nil, fmt.Errorf("read metadata state: %w", err)
	}
	values, err := decodeStable(data)
	if err != nil {
		return nil, fmt.Errorf("read metadata state: %w: %w", ErrDamaged, err)
	}
	return &checkedStable{inner: inner, failed: failed, values: values}, nil
}

func encodeStable(values map[string][]byte) []byte {
	b := []byte{stableFormat}
	b = binary.AppendUvarint(b, uint64(len(values)))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		b = appendBytes(b, key)
		b = appendBytes(b, values[key])
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeStable(data []byte) (map[string][]byte, error) {
	body := len(data) - 4
	if body < 2 || crc32.Checksum(data[:body], castagnoli) != binary.LittleEndian.Uint32(data[body:]) {
		return nil, fmt.Errorf("%w: the checksum does not match", errMalformed)
	}
	if data[0] != stableFormat {
		return nil, fmt.Errorf("format %d is not known to this version of the server", data[0])
	}
	r := reader{rest: data[1:body]}
	values := map[string][]byte{}
	for range r.count(2) {
		key := string(r.bytes())
		values[key] = r.bytes()
	}
	return values, r.end()
}

// Set implements raft.StableStore.
func (s *checkedStable) Set(key, value []byte) error {
	value = bytes.Clone(value)
	if string(key) != string(keyVoteFor) {
		return s.write(map[string][]byte{string(key): value})
	}
	s.mu.Lock()
	term := s.pendingTerm
	s.pendingTerm = nil
	s.mu.Unlock()
	if term == nil {
		return errors.New("write metadata state: the candidate of a vote came without its term")
	}
	return s.write(map[string][]byte{string(keyVoteTerm): term, string(keyVoteFor): value})
}

// Get implements raft.StableStore; a missing value is reported in the way that raft expects.
func (s *checkedStable) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.values[string(key)]
	if !ok {
		return nil, errKeyNotFound
	}
	return value, nil
}

// SetUint64 implements raft.StableStore. The term of a vote is held back until its candidate comes.
func (s *checkedStable) SetUint64(key []byte, value uint64) error {
	number := binary.LittleEndian.AppendUint64(nil, value)
	if string(key) == string(keyVoteTerm) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pendingTerm = number
		return nil
	}
	return s.write(map[string][]byte{string(key): number})
}

// GetUint64 implements raft.StableStore.
func (s *checkedStable) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("read metadata state: %w: %s is no number", ErrDamaged, key)
	}
	return binary.LittleEndian.Uint64(value), nil
}

// write replaces some of the values, durably.
func (s *checkedStable) write(changes map[string][]byte) error {
	s.mu.Lock()
	next := maps.Clone(s.values)
	s.mu.Unlock()
	changed := false
	for key, value := range changes {
		old, ok := next[key]
		changed = changed || !ok || !bytes.Equal(old, value)
		next[key] = value
	}
	if !changed { // raft writes the term again at every start; that would cost an fsync
		return nil
	}
	if err := s.inner.Set(keyState, encodeStable(next)); err != nil {
		err = fmt.Errorf("write metadata state: %w", err)
		s.failed(err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values = next
	return nil
}
