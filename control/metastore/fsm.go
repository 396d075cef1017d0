package metastore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"perdure/control/metadata"
)

// fsm is the replicated state. raft calls Apply, ApplyBatch, Snapshot and Restore from one goroutine; get and list
// come from others.
type fsm struct {
	cache  *metadata.Cache
	failed func(error) // told once, when an entry can not be applied
	mu     struct {
		sync.RWMutex
		table *metadata.Table
		// broken is why no further entry may be applied: the state would differ from other members'.
		broken error
		index  uint64 // of the last applied command
	}
}

var (
	_ raft.FSM         = (*fsm)(nil)
	_ raft.BatchingFSM = (*fsm)(nil)
)

// applied is what raft returns for a command.
type applied struct {
	result metadata.Result
	err    error // a *metadata.ConflictError, or why the state is broken
}

func newFSM(cache *metadata.Cache, failed func(error)) *fsm {
	f := &fsm{cache: cache, failed: failed}
	f.mu.table = metadata.NewTable()
	return f
}

// Apply implements raft.FSM.
func (f *fsm) Apply(entry *raft.Log) any {
	f.mu.Lock()
	a, changes, broke := f.applyLocked(entry)
	f.mu.Unlock()
	f.cache.Install(changes)
	if broke {
		f.failed(a.err)
	}
	return a
}

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(entries []*raft.Log) []any {
	results := make([]any, len(entries))
	for i, entry := range entries {
		if entry.Type == raft.LogCommand {
			results[i] = f.Apply(entry)
		}
	}
	return results
}

func (f *fsm) applyLocked(entry *raft.Log) (a applied, changes []metadata.Change, broke bool) {
	if f.mu.broken != nil {
		return applied{err: f.mu.broken}, nil, false
	}
	compares, puts, err := decodeTxn(entry.Data)
	if err != nil {
		f.mu.broken = fmt.Errorf("apply metadata entry %d: %w; update this server or restore its metadata directory", entry.Index, err)
		return applied{err: f.mu.broken}, nil, true
	}
	// raft may reuse what it handed out, the table keeps the data.
	for i := range puts {
		puts[i].Data = bytes.Clone(puts[i].Data)
	}
	result, changes, conflict := f.mu.table.Apply(compares, puts)
	f.mu.index = entry.Index
	if conflict != nil {
		return applied{err: conflict}, nil, false
	}
	return applied{result: result}, changes, false
}

func (f *fsm) get(key string) (metadata.Value, bool, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	v, ok := f.mu.table.Get(key)
	return v, ok, f.mu.broken
}

func (f *fsm) list(prefix string) ([]metadata.KeyValue, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.mu.table.List(prefix), f.mu.broken
}

// Snapshot implements raft.FSM. Values never change, so a copy of the table's map is enough.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.mu.broken != nil {
		return nil, f.mu.broken
	}
	return &snapshot{f.mu.table.Clone()}, nil
}

// Restore implements raft.FSM: it replaces the whole state, or nothing if the snapshot is not sound.
func (f *fsm) Restore(from io.ReadCloser) error {
	defer from.Close()
	data, err := io.ReadAll(from)
	if err != nil {
		return fmt.Errorf("read metadata snapshot: %w", err)
	}
	changes, err := decodeSnapshot(data)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.mu.table = metadata.NewTableFrom(changes)
	f.mu.Unlock()
	f.cache.Install(changes)
	return nil
}

// snapshot is the state at one moment.
type snapshot struct{ table *metadata.Table }

// Persist implements raft.FSMSnapshot. The sink computes a checksum of its own and makes the file durable.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(encodeSnapshot(s.table.Changes())); err != nil {
		return errors.Join(fmt.Errorf("write metadata snapshot: %w", err), sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("finish metadata snapshot: %w", err)
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}

// A snapshot is
//
//	"PDMS" | format 1 | number of keys | each: key, version, flags (1: deleted), data
//	| CRC-32C of all before, 4 bytes little endian
//
// with numbers and lengths as varints. Deleted keys are in it because their versions go on.
const (
	snapshotMagic  = "PDMS"
	snapshotFormat = 1
)

func encodeSnapshot(changes []metadata.Change) []byte {
	b := append([]byte(snapshotMagic), snapshotFormat)
	b = binary.AppendUvarint(b, uint64(len(changes)))
	for _, c := range changes {
		b = appendBytes(b, c.Key)
		b = binary.AppendUvarint(b, c.Version)
		b = append(b, flagOf(c.Deleted))
		b = appendBytes(b, c.Data)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeSnapshot(data []byte) ([]metadata.Change, error) {
	body := len(data) - 4
	if body < len(snapshotMagic)+1 || string(data[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("read metadata snapshot: %w: it is no snapshot", errMalformed)
	}
	if crc32.Checksum(data[:body], castagnoli) != binary.LittleEndian.Uint32(data[body:]) {
		return nil, fmt.Errorf("read metadata snapshot: %w: checksum does not match", errMalformed)
	}
	if format := data[len(snapshotMagic)]; format != snapshotFormat {
		return nil, fmt.Errorf("read metadata snapshot: format %d is not known to this version of the server", format)
	}
	r := reader{rest: data[len(snapshotMagic)+1 : body]}
	changes := make([]metadata.Change, 0, r.count(4))
	for range cap(changes) {
		c := metadata.Change{Key: string(r.bytes()), Version: r.uvarint(), Deleted: r.flag(), Data: r.bytes()}
		if c.Version == 0 {
			r.fail()
		}
		changes = append(changes, c)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("read metadata snapshot: %w", err)
	}
	return changes, nil
}
