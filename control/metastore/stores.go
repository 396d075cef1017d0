package metastore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// ErrDamaged means that what is on disk is not what was written. The store does not run on it.
var ErrDamaged = errors.New("metadata store is damaged")

// Keys under which raft keeps its term and vote.
var (
	keyCurrentTerm  = []byte("CurrentTerm")
	keyVoteTerm     = []byte("LastVoteTerm")
	keyVoteFor      = []byte("LastVoteCand")
	keyVote         = []byte("Vote") // ours: term and candidate in one value
	keyIdentity     = []byte("Identity")
	errKeyNotFound  = raftboltdb.ErrKeyNotFound // raft compares its text
	logTrailerBytes = 8
)

// checkedLog is a raft.LogStore that seals each entry with a checksum and verifies it whenever the entry is read.
// bbolt does not notice when a page of data changes on disk. The seal follows the entry's data:
//
//	"PL" | format 1 | 0 | CRC-32C of index, term, type, extensions and data, 4 bytes little endian
type checkedLog struct {
	inner raft.LogStore
	// failed is told of damage, and of failed writes, after which the state of the disk is not known.
	failed func(error)
}

var _ raft.LogStore = (*checkedLog)(nil)

var logSeal = [4]byte{'P', 'L', 1, 0}

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

func (c *checkedLog) FirstIndex() (uint64, error) { return c.inner.FirstIndex() }
func (c *checkedLog) LastIndex() (uint64, error)  { return c.inner.LastIndex() }

// GetLog reads the entry of an index; an entry that is not what was written is an ErrDamaged.
func (c *checkedLog) GetLog(index uint64, l *raft.Log) error {
	if err := c.inner.GetLog(index, l); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		return c.damaged(index, err.Error())
	}
	body := len(l.Data) - logTrailerBytes
	switch {
	case l.Index != index:
		return c.damaged(index, fmt.Sprintf("the entry says it is %d", l.Index))
	case body < 0 || [4]byte(l.Data[body:body+4]) != logSeal:
		return c.damaged(index, "the entry has no checksum")
	case binary.LittleEndian.Uint32(l.Data[body+4:]) != logChecksum(l, l.Data[:body]):
		return c.damaged(index, "the checksum does not match")
	}
	l.Data = l.Data[:body:body]
	return nil
}

func (c *checkedLog) damaged(index uint64, why string) error {
	err := fmt.Errorf("read metadata log entry %d: %w: %s", index, ErrDamaged, why)
	c.failed(err)
	return err
}

func (c *checkedLog) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs stores sealed copies; raft goes on using its own.
func (c *checkedLog) StoreLogs(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		s := *l
		s.Data = make([]byte, 0, len(l.Data)+logTrailerBytes)
		s.Data = append(s.Data, l.Data...)
		s.Data = append(s.Data, logSeal[:]...)
		s.Data = binary.LittleEndian.AppendUint32(s.Data, logChecksum(l, l.Data))
		sealed[i] = &s
	}
	if err := c.inner.StoreLogs(sealed); err != nil {
		err = fmt.Errorf("write metadata log: %w", err)
		c.failed(err)
		return err
	}
	return nil
}

func (c *checkedLog) DeleteRange(first, last uint64) error {
	if err := c.inner.DeleteRange(first, last); err != nil {
		err = fmt.Errorf("truncate metadata log: %w", err)
		c.failed(err)
		return err
	}
	return nil
}

// checkedStable is a raft.StableStore that seals each value with a checksum over key and value, and keeps the term and
// the candidate of a vote in one value. raft writes them one after the other: a crash in between would leave the new
// term with the old candidate, and the node would confirm a vote that it never gave.
//
// Writes come from raft's main goroutine, reads also from others.
type checkedStable struct {
	inner  raft.StableStore
	failed func(error)

	mu          sync.Mutex
	pendingTerm uint64 // of a vote whose candidate did not come yet; not visible to readers
	term        uint64 // the current term as it is on disk, 0 if not known
}

var _ raft.StableStore = (*checkedStable)(nil)

// Set stores a value.
func (s *checkedStable) Set(key, value []byte) error {
	if string(key) == string(keyVoteFor) {
		return s.setVote(value)
	}
	return s.write(key, value)
}

func (s *checkedStable) setVote(candidate []byte) error {
	s.mu.Lock()
	term := s.pendingTerm
	s.pendingTerm = 0
	s.mu.Unlock()
	if term == 0 {
		return errors.New("store vote: a candidate came without a term")
	}
	return s.write(keyVote, append(binary.LittleEndian.AppendUint64(nil, term), candidate...))
}

// Get reads a value; a missing one is reported in the way that raft expects.
func (s *checkedStable) Get(key []byte) ([]byte, error) {
	if string(key) == string(keyVoteFor) {
		vote, err := s.read(keyVote)
		if err != nil {
			return nil, err
		}
		if len(vote) < 8 {
			return nil, s.damaged(keyVote, "the vote is too short")
		}
		return vote[8:], nil
	}
	return s.read(key)
}

// SetUint64 stores a number. The term of a vote is held back until its candidate comes.
func (s *checkedStable) SetUint64(key []byte, value uint64) error {
	if string(key) == string(keyVoteTerm) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pendingTerm = value
		return nil
	}
	if string(key) != string(keyCurrentTerm) {
		return s.write(key, binary.LittleEndian.AppendUint64(nil, value))
	}
	s.mu.Lock()
	unchanged := value == s.term
	s.mu.Unlock()
	if unchanged { // raft writes the term again at every start; that costs an fsync
		return nil
	}
	if err := s.write(key, binary.LittleEndian.AppendUint64(nil, value)); err != nil {
		return err
	}
	s.setTerm(value)
	return nil
}

// GetUint64 reads a number.
func (s *checkedStable) GetUint64(key []byte) (uint64, error) {
	from := key
	if string(key) == string(keyVoteTerm) {
		from = keyVote
	}
	value, err := s.read(from)
	if err != nil {
		return 0, err
	}
	if len(value) < 8 {
		return 0, s.damaged(from, "the number is too short")
	}
	n := binary.LittleEndian.Uint64(value)
	if string(key) == string(keyCurrentTerm) {
		s.setTerm(n)
	}
	return n, nil
}

func (s *checkedStable) setTerm(term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term = term
}

func stableChecksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

func (s *checkedStable) write(key, value []byte) error {
	sealed := make([]byte, 0, len(value)+4)
	sealed = append(sealed, value...)
	sealed = binary.LittleEndian.AppendUint32(sealed, stableChecksum(key, value))
	if err := s.inner.Set(key, sealed); err != nil {
		err = fmt.Errorf("write metadata %s: %w", key, err)
		s.failed(err)
		return err
	}
	return nil
}

func (s *checkedStable) read(key []byte) ([]byte, error) {
	sealed, err := s.inner.Get(key)
	if err != nil {
		if errors.Is(err, errKeyNotFound) {
			return nil, errKeyNotFound
		}
		return nil, fmt.Errorf("read metadata %s: %w", key, err)
	}
	body := len(sealed) - 4
	if body < 0 || binary.LittleEndian.Uint32(sealed[body:]) != stableChecksum(key, sealed[:body]) {
		return nil, s.damaged(key, "the checksum does not match")
	}
	return sealed[:body:body], nil
}

func (s *checkedStable) damaged(key []byte, why string) error {
	err := fmt.Errorf("read metadata %s: %w: %s", key, ErrDamaged, why)
	s.failed(err)
	return err
}
