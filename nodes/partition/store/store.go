// Package store keeps the state of one partition in a Pebble database of its own.
//
// The partition's log is the write-ahead log: the database writes none, each batch carries the LSN that it
// was applied up to, and after a crash the store is an exact prefix of the committed batches, from which the
// log is replayed. The layout of the rows is in package keyspace, their meaning in package fsm.
//
// One goroutine writes, through one Txn at a time. All other methods may be called by any goroutine at any
// time, also concurrently with Close: they then return ErrClosed.
package store

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/nodes/partition/store/keyspace"
)

// formatVersion is pebble.FormatNewest of the pinned release. It is written as a number so that an upgrade
// of the library does not change the disk format by itself.
const formatVersion pebble.FormatMajorVersion = 24

// Errors of the package.
var (
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the partition store is closed")
	// ErrNotFound: no such invocation.
	ErrNotFound = errors.New("no such invocation in the partition store")
	// ErrNotRunning: the invocation has no attempt now.
	ErrNotRunning = errors.New("the invocation is not running")
	// ErrFailed: the disk refused what the store had to write. Nothing is committed any more, and what was not
	// flushed has to come from the log again.
	ErrFailed = errors.New("the partition store cannot write to its disk")
	// ErrCorrupt: what is stored cannot be what was written. The replica must stop.
	ErrCorrupt = keyspace.ErrCorrupt
)

// Options of a store. Dir and Logger are required.
type Options struct {
	// Dir is the directory of the database; it is created.
	Dir string
	// FS defaults to the operating system's.
	FS vfs.FS
	// Cache and FileCache are shared by the stores of a node; nil: one of its own each. See NewCache.
	Cache     *pebble.Cache
	FileCache *pebble.FileCache
	Partition cluster.PartitionID
	Range     cluster.KeyRange
	Logger    *slog.Logger
	// MemTableSize bounds the writes held in memory before they are flushed, in bytes; DefaultMemTableSize.
	// Memory is taken as it fills, starting with 256 KiB.
	MemTableSize uint64
	// OnFatal is told the first error of the disk, which ends the store: ErrFailed. It may be called with locks of
	// the database held, so it must return at once and must not use the store. May be nil.
	OnFatal func(error)
}

func (o *Options) setDefaults() {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.MemTableSize == 0 {
		o.MemTableSize = DefaultMemTableSize
	}
}

// DefaultMemTableSize is the default of Options.MemTableSize.
const DefaultMemTableSize = 2 << 20

// ownCache is what a store that shares no cache has for blocks.
const ownCache = 8 << 20

// NewCache makes a cache for a number of stores, with room for blocks bytes of blocks. Pebble takes the
// memory of memtables out of the cache that a database uses: one that is not larger than they are holds no
// block at all, and each look-up reads its filters and indexes from the file. The cache takes memory as it
// fills; what memtables do not use blocks may. The caller releases it with Unref when the stores are closed.
func NewCache(blocks int64, stores int, memTableSize uint64) *pebble.Cache {
	if memTableSize == 0 {
		memTableSize = DefaultMemTableSize
	}
	const perStore = 2 // the one being written and the one being flushed
	return pebble.NewCache(blocks + perStore*int64(stores)*int64(memTableSize))
}

// Store is an open partition store.
type Store struct {
	partition cluster.PartitionID
	keys      cluster.KeyRange
	db        *pebble.DB

	mu      sync.Mutex // guards closed against users.Add
	closed  bool
	users   sync.WaitGroup // calls under way
	failure failure
}

// Open opens or creates the store of a partition.
func Open(o Options) (*Store, error) {
	o.setDefaults()
	s := &Store{partition: o.Partition, keys: o.Range}
	s.failure.init(o.OnFatal)
	if o.Cache == nil {
		o.Cache = NewCache(ownCache, 1, o.MemTableSize)
		defer o.Cache.Unref() // the database holds it
	}
	db, err := openOrCreate(o.Dir, s.pebbleOptions(&o))
	if err != nil {
		return nil, fmt.Errorf("open the store of partition %d in %s: %w", o.Partition, o.Dir, err)
	}
	s.db = db
	return s, nil
}

func (s *Store) pebbleOptions(o *Options) *pebble.Options {
	log := o.Logger.With("component", "store", "partition", o.Partition)
	po := &pebble.Options{
		FS:                          o.FS,
		Cache:                       o.Cache,
		FileCache:                   o.FileCache,
		FormatMajorVersion:          formatVersion,
		DisableWAL:                  true,
		MemTableSize:                o.MemTableSize,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		LBaseMaxBytes:               16 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		Logger:                      pebbleLogger{log},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { s.failure.set(err) },
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				log.Error("the partition store is damaged; this replica must be rebuilt", "path", i.Path, "err", i.Details)
			},
		},
	}
	po.Experimental.ReadSamplingMultiplier = -1
	for i := range po.Levels {
		// A table's filter is one block of the cache. Pebble's default of up to 128 MiB makes filters that
		// do not fit into a shard of a small cache and are read again for each look-up.
		po.TargetFileSizes[i] = 4 << 20
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		po.Levels[i].BlockSize = 8 << 10
	}
	return po
}

// Close flushes and closes the store. Calls under way end first.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.users.Wait()
	err := s.flush()
	if err := errors.Join(err, s.db.Close()); err != nil {
		return fmt.Errorf("close the store of partition %d: %w", s.partition, err)
	}
	return nil
}

// enter begins a call that uses the database; release ends it.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.users.Add(1)
	return nil
}

func (s *Store) release() { s.users.Done() }

// Partition is the partition that the store belongs to.
func (s *Store) Partition() cluster.PartitionID { return s.partition }

// Range is the range of partition keys of the partition.
func (s *Store) Range() cluster.KeyRange { return s.keys }

// Flush makes everything committed so far durable.
func (s *Store) Flush() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.release()
	if err := s.flush(); err != nil {
		return fmt.Errorf("flush the store of partition %d: %w", s.partition, err)
	}
	return nil
}

// flush is the database's, which would try for ever on a disk that is full.
func (s *Store) flush() error {
	if err := s.failure.get(); err != nil {
		return err
	}
	flushed, err := s.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-flushed:
		return nil
	case <-s.failure.happened:
		return s.failure.get()
	}
}

// AppliedLSN is the LSN that the store was applied up to; 0 for a new store.
func (s *Store) AppliedLSN() (cluster.LSN, error) {
	var key [2]byte
	v, ok, err := s.Get(keyspace.AppendMeta(key[:0], keyspace.MetaApplied))
	if err != nil || !ok {
		return 0, err
	}
	lsn, _, err := keyspace.AppliedOf(v)
	return lsn, err
}

// DurableLSN is the applied LSN that survives a crash of the machine.
func (s *Store) DurableLSN() (cluster.LSN, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.release()
	key := keyspace.AppendMeta(nil, keyspace.MetaApplied)
	it, err := s.db.NewIter(&pebble.IterOptions{OnlyReadGuaranteedDurable: true, LowerBound: key, UpperBound: append(key, 0)})
	if err != nil {
		return 0, fmt.Errorf("read the durable LSN: %w", err)
	}
	defer it.Close()
	if !it.First() {
		return 0, it.Error()
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return 0, fmt.Errorf("read the durable LSN: %w", err)
	}
	lsn, _, err := keyspace.AppliedOf(v)
	return lsn, err
}

// Get reads one committed row; the value is the caller's.
func (s *Store) Get(key []byte) (value []byte, ok bool, err error) {
	if err := s.enter(); err != nil {
		return nil, false, err
	}
	defer s.release()
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read from the store of partition %d: %w", s.partition, err)
	}
	value = append([]byte{}, v...)
	return value, true, closer.Close()
}

// Scan calls fn for the committed rows from start (inclusive) to end (exclusive) in key order, as of one
// moment, until fn returns false. Key and value are valid until fn returns.
func (s *Store) Scan(start, end []byte, fn func(key, value []byte) (more bool, err error)) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.release()
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return fmt.Errorf("scan the store of partition %d: %w", s.partition, err)
	}
	return drain(it, fn)
}

func drain(it *pebble.Iterator, fn func(key, value []byte) (bool, error)) error {
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read a row of the partition store: %w", err)
		}
		more, err := fn(it.Key(), v)
		if err != nil || !more {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("scan the partition store: %w", err)
	}
	return nil
}

// Metrics are Pebble's.
func (s *Store) Metrics() (*pebble.Metrics, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.release()
	return s.db.Metrics(), nil
}

// pebbleLogger passes errors on. Pebble's informational messages describe its background work and are
// only of use to somebody who debugs it.
type pebbleLogger struct{ log *slog.Logger }

func (l pebbleLogger) Infof(format string, args ...any) {}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Error("store: " + fmt.Sprintf(format, args...))
}

// Fatalf ends the process: Pebble calls it when it can no longer keep its promises, for instance after a
// failed sync, and must not be returned to.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	l.log.Error("store: " + msg)
	panic("partition store: " + msg)
}
