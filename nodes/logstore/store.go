// Package logstore is the durable store of a log server: the records and metadata of all loglets of
// a node in one Pebble database, with one fsync stream for all of them.
//
// Writes queue up while the batch before is on its way to the disk; one goroutine turns all that
// has queued up into one batch and hands it to the write-ahead log without waiting, a second one
// waits for the fsyncs in order and tells the writes' owners. So nothing lingers, and the fsync is
// shared by every partition of the node.
//
// A failed write or fsync is the end of the handle: nothing is taken any more, all writes under way
// are answered with the error, and the owner of the store is told to stop the node. What cannot be
// proven present after a restart is never reported as absent: see tails.go.
package logstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/logserver"
)

// formatVersion pins the on-disk format of Pebble (its FormatValueSeparation): the oldest that
// reports a damaged write-ahead log instead of dropping what follows the damage.
const formatVersion pebble.FormatMajorVersion = 24

// Config of a Store. Dir and Logger are required.
type Config struct {
	// Dir holds the database and the file of tail hints; it is created.
	Dir string
	// FS is the file system; nil means the disk.
	FS vfs.FS
	// Logger is for the operator.
	Logger *slog.Logger
	// Registry receives the metrics; nil means none.
	Registry prometheus.Registerer
	// MemTableSize in bytes, default 16 MiB. Memory grows up to about twice this under load, and the disk holds
	// six files of the write-ahead log of this size, most of which wait to be used again. Too low makes many small
	// files and more compaction.
	MemTableSize uint64
	// CacheSize of the block cache in bytes, default 8 MiB. Readers mostly hit the record cache
	// above, so that only replays after a restart profit from more.
	CacheSize int64
	// QueueBytes is how much may wait for the disk before the store calls itself backlogged;
	// default 64 MiB.
	QueueBytes int64
	// MinFree is how many bytes must be free on the disk for the store not to call itself backlogged; default
	// 128 MiB, or a twentieth of a smaller disk. What is left is for seals, trims and the tables that they clean up:
	// when the disk is full in earnest the store has failed, and the node does not start. Records are taken
	// again when an eighth more is free.
	MinFree uint64
	// HintInterval is how often durable tails and seals are noted outside of the database, and the free space is
	// looked at; default 1 s. Records and seals that the disk loses silently within that time of their fsync are not
	// noticed.
	HintInterval time.Duration
	// OnFatal is told the first error that ended the handle, on a goroutine of the store; it must not
	// block. May be nil.
	OnFatal func(error)
}

func (c Config) withDefaults() Config {
	if c.FS == nil {
		c.FS = vfs.Default
	}
	if c.MemTableSize == 0 {
		c.MemTableSize = 16 << 20
	}
	if c.CacheSize == 0 {
		c.CacheSize = 8 << 20
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = 64 << 20
	}
	if c.HintInterval == 0 {
		c.HintInterval = time.Second
	}
	return c
}

// maxBatchBytes bounds one batch: what is queued beyond goes in the next one.
const maxBatchBytes = 8 << 20

// Errors of a Store.
var (
	// ErrClosed means that the store was closed: the write was not taken.
	ErrClosed = errors.New("log store is closed")
	// ErrFailed means that the disk failed: nothing is taken until the node was restarted.
	ErrFailed = errors.New("log store has failed, restart the node")
)

// Store implements logserver.Store on a directory. Safe for concurrent use.
type Store struct {
	cfg     Config
	db      *pebble.DB
	cache   *pebble.Cache
	tails   *tailHints
	metrics *metrics

	queue struct {
		sync.Mutex
		writes  []*logserver.Write
		refusal error // why no more writes are taken; sticky
		failure error // why those taken do not become durable; sticky, nil after an orderly Close
	}
	queued  atomic.Int64  // bytes enqueued and not yet durable
	full    atomic.Bool   // less than MinFree is free
	scratch []byte        // of the write loop: compressed payload
	wake    chan struct{} // 1-buffered: the queue has something, or was closed
	syncing chan *group   // batches on their way to the disk, in order
	fatal   sync.Once
	ended   chan struct{} // closed by fail

	// applying is the group that the write loop has in the database. Who swaps it for nil goes on with the loop: the write loop
	// itself, or after a failure the rescue loop, because the database may not let the other return.
	applying atomic.Pointer[group]
	written  chan struct{} // closed when the queue is empty for good
	returned chan struct{} // closed when the write loop's goroutine ends

	stop  chan struct{} // ends the hint loop
	close sync.Once
	wg    sync.WaitGroup
}

// group is one batch and the writes it holds. A group without a batch has failed before.
type group struct {
	batch  *pebble.Batch
	writes []*logserver.Write
	bytes  int64
	began  time.Time
}

var _ logserver.Store = (*Store)(nil)

// Open opens or creates a store and starts its goroutines. Damage to the write-ahead log or the
// manifest is an error that wraps ErrCorrupt when Pebble recognises it as such.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := makeDir(cfg.FS, cfg.Dir); err != nil {
		return nil, fmt.Errorf("create log store directory: %w", err)
	}
	s := &Store{cfg: cfg, wake: make(chan struct{}, 1), syncing: make(chan *group, 16), stop: make(chan struct{}),
		ended: make(chan struct{}), written: make(chan struct{}), returned: make(chan struct{})}
	var err error
	if s.metrics, err = newMetrics(cfg.Registry); err != nil {
		return nil, fmt.Errorf("register log store metrics: %w", err)
	}
	if s.tails, err = openTailHints(cfg.FS, cfg.FS.PathJoin(cfg.Dir, tailsFile)); err != nil {
		return nil, fmt.Errorf("open tail hints: %w", err)
	}
	s.cache = pebble.NewCache(cfg.CacheSize)
	if err := s.openDB(); err != nil {
		s.cache.Unref()
		return nil, errors.Join(fmt.Errorf("open log database: %w", asCorrupt(err)), s.tails.close())
	}
	s.checkRoom()
	go s.writeLoop() // Close waits for returned
	s.wg.Go(s.rescueLoop)
	s.wg.Go(s.syncLoop)
	s.wg.Go(s.hintLoop)
	return s, nil
}

// openDB opens the database. What its write-ahead log has goes into tables meanwhile, and on a full disk Pebble tries that
// for ever: then the opening is given up. It goes on by itself until the process ends, or until the disk has room.
func (s *Store) openDB() error {
	type opened struct {
		db  *pebble.DB
		err error
	}
	done := make(chan opened)
	given := make(chan struct{})
	go func() {
		db, err := pebble.Open(s.cfg.FS.PathJoin(s.cfg.Dir, "db"), s.pebbleOptions())
		select {
		case done <- opened{db, err}:
		case <-given:
			if err == nil {
				_ = db.Close() // nobody uses it
			}
		}
	}()
	for {
		select {
		case o := <-done:
			if err := s.failed(); o.err == nil && err != nil {
				return errors.Join(err, o.db.Close())
			}
			s.db = o.db
			return o.err
		case <-s.wake: // refuse signals
			if err := s.failed(); err != nil {
				close(given)
				return err
			}
		}
	}
}

// makeDir creates a directory and those above it, durably: without the fsync of the parent, a whole
// new store would be gone after a power cut.
func makeDir(files vfs.FS, dir string) error {
	parent := files.PathDir(dir)
	if _, err := files.Stat(dir); err == nil {
		// A start that was killed before it had synced the parent may have made this one; those above are durable then.
		// Where we may not read, or the file system has nothing to sync, we have not made anything.
		if err := syncDir(files, parent); !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EINVAL) {
			return err
		}
		return nil
	}
	if parent != dir {
		if err := makeDir(files, parent); err != nil {
			return err
		}
	}
	if err := files.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return syncDir(files, parent)
}

// asCorrupt adds ErrCorrupt to Pebble's own corruption errors.
func asCorrupt(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func (s *Store) pebbleOptions() *pebble.Options {
	o := &pebble.Options{
		FS:                          walFS{s.cfg.FS, func(err error) { s.fail(fmt.Errorf("write log: %w", err)) }},
		FormatMajorVersion:          formatVersion,
		Cache:                       s.cache,
		MemTableSize:                s.cfg.MemTableSize,
		MemTableStopWritesThreshold: 4,
		Logger:                      pebbleLogger{s},
		EventListener: &pebble.EventListener{
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				s.cfg.Logger.Error("log database found a corrupt file", "path", i.Path, "err", i.Details)
			},
			BackgroundError: s.backgroundFailed,
			// Called with the database locked: it must not do more.
			WriteStallBegin: func(pebble.WriteStallBeginInfo) { s.metrics.stalls.Inc() },
		},
	}
	return o
}

// backgroundPause is how long background work that fails is held up each time: Pebble repeats it at once.
const backgroundPause = 50 * time.Millisecond

// backgroundFailed ends the handle when the database cannot write its tables: it would repeat that for ever, and
// at last let no write return. A damaged table is told by DataCorruption and does not concern what is written.
func (s *Store) backgroundFailed(err error) {
	if !pebble.IsCorruptionError(err) {
		s.fail(fmt.Errorf("write tables: %w", err))
	}
	time.Sleep(backgroundPause)
}

// stuckAfter is how long the database of a store that has failed may hold a write before it is taken for stuck.
const stuckAfter = time.Second

// Close takes no more writes, finishes and answers those taken, and closes the files. The database of a store that has
// failed may hold a write until the disk has room, for ever perhaps: then it is left to itself. Idempotent.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		s.refuse(ErrClosed)
		close(s.stop)
		s.wg.Wait() // of these the sync loop ends after the queue
		err = s.tails.close()
		if s.failed() == nil {
			err = errors.Join(err, s.release())
			return
		}
		late := time.NewTimer(stuckAfter)
		defer late.Stop()
		select {
		case <-s.returned:
			err = errors.Join(err, s.release())
		case <-late.C:
			err = errors.Join(err, errors.New("log database is left open, a write waits in it"))
			go func() { _ = s.release() }()
		}
	})
	return err
}

// release closes the database when the write loop has returned.
func (s *Store) release() error {
	<-s.returned
	defer s.cache.Unref()
	return s.closeDB()
}

// closeDB closes Pebble; after a failure of the disk that panics inside of Pebble and is reported.
func (s *Store) closeDB() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("close log database: %v", p)
		}
	}()
	return s.db.Close()
}

// Enqueue implements logserver.Store.
func (s *Store) Enqueue(w *logserver.Write) error {
	size := int64(w.Size())
	s.queue.Lock()
	if err := s.queue.refusal; err != nil {
		s.queue.Unlock()
		return err
	}
	s.queue.writes = append(s.queue.writes, w)
	s.queue.Unlock()
	s.queued.Add(size)
	s.signal()
	return nil
}

// Backlogged implements logserver.Store.
func (s *Store) Backlogged() bool { return s.queued.Load() > s.cfg.QueueBytes || s.full.Load() }

func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// refuse makes err the answer to every later Enqueue. The first error stays.
func (s *Store) refuse(err error) {
	s.queue.Lock()
	if s.queue.refusal == nil {
		s.queue.refusal = err
	}
	s.queue.Unlock()
	s.signal()
}

// fail ends the handle after an error of the disk, also when it is being closed.
func (s *Store) fail(err error) {
	s.fatal.Do(func() {
		failure := fmt.Errorf("%w: %w", ErrFailed, err)
		s.queue.Lock()
		s.queue.failure = failure
		s.queue.Unlock()
		close(s.ended)
		s.refuse(failure)
		s.cfg.Logger.Error("log store failed, no more writes are taken", "err", err)
		if s.cfg.OnFatal != nil {
			s.cfg.OnFatal(err)
		}
	})
}

// failed returns the error that ended the handle, nil while it works or was closed in order.
func (s *Store) failed() error {
	s.queue.Lock()
	defer s.queue.Unlock()
	return s.queue.failure
}

// take removes what goes into the next batch, reusing dst. ok is false when the store is closed and
// everything was taken.
func (s *Store) take(dst []*logserver.Write) (writes []*logserver.Write, bytes int64, ok bool) {
	s.queue.Lock()
	defer s.queue.Unlock()
	n := 0
	for n < len(s.queue.writes) && bytes < maxBatchBytes {
		bytes += int64(s.queue.writes[n].Size())
		n++
	}
	writes = append(dst[:0], s.queue.writes[:n]...)
	rest := copy(s.queue.writes, s.queue.writes[n:])
	clear(s.queue.writes[rest:])
	s.queue.writes = s.queue.writes[:rest]
	return writes, bytes, n > 0 || s.queue.refusal == nil
}

// writeLoop turns the queue into batches until the store is closed and the queue empty.
func (s *Store) writeLoop() {
	defer close(s.returned)
	s.writeAll()
}

// rescueLoop goes on with the write loop when the store has failed and the database does not give a group back: the group has
// failed, and nothing else is given to the database.
func (s *Store) rescueLoop() {
	select {
	case <-s.ended:
	case <-s.written:
		return
	}
	late := time.NewTimer(stuckAfter)
	defer late.Stop()
	select {
	case <-late.C:
	case <-s.written:
		return
	}
	if g := s.applying.Load(); g != nil && s.applying.CompareAndSwap(g, nil) {
		s.syncing <- &group{writes: slices.Clone(g.writes), bytes: g.bytes, began: g.began} // g is still the database's
		s.writeAll()
	}
}

// writeAll is the write loop, for as long as it is this goroutine's.
func (s *Store) writeAll() {
	for {
		g := groups.Get().(*group)
		var ok bool
		g.writes, g.bytes, ok = s.take(g.writes)
		switch {
		case !ok:
			close(s.syncing)
			close(s.written)
			return
		case len(g.writes) == 0:
			groups.Put(g)
			<-s.wake
			continue
		}
		g.began = time.Now()
		s.applying.Store(g)
		err := s.apply(g)
		if !s.applying.CompareAndSwap(g, nil) {
			return
		}
		if err != nil {
			s.fail(err)
		}
		s.syncing <- g
	}
}

// groups are reused between batches.
var groups = sync.Pool{New: func() any { return new(group) }}

// apply encodes a group and hands it to the write-ahead log. After a failure the group has no batch. It does not return while
// the database waits until tables are written, which on a full disk is for ever.
func (s *Store) apply(g *group) (err error) {
	if err := s.failed(); err != nil {
		return err
	}
	defer func() {
		// Pebble ends a failed commit by Logger.Fatalf, which is a panic here.
		if p := recover(); p != nil {
			fatal, is := p.(fatalError)
			if !is {
				panic(p)
			}
			g.batch, err = nil, fatal
		}
	}()
	b := s.db.NewBatchWithSize(int(g.bytes) + 64)
	for _, w := range g.writes {
		if err := s.encode(b, w); err != nil {
			return errors.Join(fmt.Errorf("encode write of loglet %s: %w", w.Loglet, err), b.Close())
		}
	}
	if err := s.db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
		return fmt.Errorf("apply batch: %w", err)
	}
	g.batch = b
	return nil
}

// encode adds a write to a batch.
func (s *Store) encode(b *pebble.Batch, w *logserver.Write) error {
	if w.GlobalTail != 0 {
		if err := b.Set(metaKey(w.Loglet, tagGlobal), encodeOffset(w.GlobalTail), nil); err != nil {
			return err
		}
	}
	switch w.Kind {
	case logserver.WriteRecords:
		return s.encodeRecords(b, w)
	case logserver.WriteSeal:
		return b.Set(metaKey(w.Loglet, tagSeal), nil, nil)
	case logserver.WriteTrim:
		if err := b.Set(metaKey(w.Loglet, tagTrim), encodeOffset(w.TrimPoint), nil); err != nil {
			return err
		}
		return b.DeleteRange(dataKey(w.Loglet, 0), dataKey(w.Loglet, w.TrimPoint+1), nil)
	default:
		return fmt.Errorf("write has unknown kind %d", w.Kind)
	}
}

func (s *Store) encodeRecords(b *pebble.Batch, w *logserver.Write) error {
	if !w.Sequencer.IsZero() {
		if err := b.Set(metaKey(w.Loglet, tagSequencer), encodeSequencer(w.Sequencer), nil); err != nil {
			return err
		}
	}
	for i := range w.Records {
		r := &w.Records[i]
		var stored []byte
		var flags byte
		stored, flags, s.scratch = pack(r.Payload, s.scratch)
		op := b.SetDeferred(dataKeyLen, recordHeaderLen+len(stored))
		putDataKey(op.Key, w.Loglet, w.First+cluster.Offset(i))
		putRecord(op.Value, op.Key, r, stored, flags)
		if err := op.Finish(); err != nil {
			return err
		}
	}
	if cap(s.scratch) > maxScratch {
		s.scratch = nil
	}
	return nil
}

// maxScratch is what the write loop keeps for compressing; more is given back after a large record.
const maxScratch = 1 << 20

// syncLoop waits for the fsync of each batch, in order, and tells the owners.
func (s *Store) syncLoop() {
	for g := range s.syncing {
		err := s.failed()
		if g.batch != nil {
			if syncErr := g.batch.SyncWait(); syncErr != nil {
				s.fail(fmt.Errorf("sync log: %w", syncErr))
				err = s.failed()
			} else if closeErr := g.batch.Close(); closeErr != nil {
				s.fail(fmt.Errorf("release batch: %w", closeErr))
			}
		}
		s.queued.Add(-g.bytes)
		if err == nil {
			s.metrics.observe(g)
			s.tails.advance(g.writes)
		}
		for _, w := range g.writes {
			w.Owner.WriteDone(w, err)
		}
		clear(g.writes)
		*g = group{writes: g.writes[:0]}
		groups.Put(g)
	}
}

// checkRoom looks whether there is room for more records. Where the file system can not tell, there is.
func (s *Store) checkRoom() {
	usage, err := s.cfg.FS.GetDiskUsage(s.cfg.Dir)
	if err != nil {
		return
	}
	least := s.cfg.MinFree
	if least == 0 {
		least = min(defaultMinFree, usage.TotalBytes/20)
	}
	if s.full.Load() {
		least += least / 8 // or it would change with each write and each file that is deleted
	}
	full := usage.AvailBytes < least
	if s.full.Swap(full) == full {
		return
	}
	if full {
		s.metrics.full.Set(1)
		s.cfg.Logger.Error("log disk is nearly full, records are refused until there is room again", "free_bytes", usage.AvailBytes, "least_bytes", least)
	} else {
		s.metrics.full.Set(0)
		s.cfg.Logger.Info("log disk has room again", "free_bytes", usage.AvailBytes)
	}
}

const defaultMinFree = 128 << 20

// hintLoop notes the durable tails that moved and the seals, and looks for room on the disk, each HintInterval.
func (s *Store) hintLoop() {
	t := time.NewTicker(s.cfg.HintInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.checkRoom()
			if err := s.tails.flush(); err != nil {
				s.fail(fmt.Errorf("write tail hints: %w", err))
				return
			}
		case <-s.stop:
			return
		}
	}
}

// Load implements logserver.Store.
func (s *Store) Load(id cluster.LogletID) (logserver.Meta, error) {
	var m logserver.Meta
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: metaKey(id, 0), UpperBound: metaKey(id, 0xff)})
	if err != nil {
		return m, fmt.Errorf("read metadata rows: %w", err)
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		err = applyMeta(&m, it.Key()[metaKeyLen-1], it.Value())
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return m, fmt.Errorf("read metadata rows: %w", asCorrupt(err))
	}
	if mutant.Is(mutant.TrimForgotten) {
		m.TrimPoint = 0
	}
	last, err := s.lastOffset(id)
	if err != nil {
		return m, err
	}
	m.LocalTail = max(last+1, m.TrimPoint+1)
	m.GlobalTail = max(m.GlobalTail, m.TrimPoint+1)
	m.DataLoss = s.tails.lost(id, &m)
	return m, nil
}

// lastOffset is the offset of the last record, 0 when there is none.
func (s *Store) lastOffset(id cluster.LogletID) (cluster.Offset, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: dataKey(id, 0), UpperBound: dataKey(id+1, 0)})
	if err != nil {
		return 0, fmt.Errorf("find last record: %w", err)
	}
	var last cluster.Offset
	if it.Last() {
		last, err = offsetOfKey(it.Key())
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return 0, fmt.Errorf("find last record: %w", asCorrupt(err))
	}
	return last, nil
}

// Read implements logserver.Store. Every record is checked against its checksum. What comes before a damaged one is
// returned without an error: the reader meets the damage when it goes on from there, and perhaps asks another server.
func (s *Store) Read(id cluster.LogletID, from, to cluster.Offset, maxBytes int) ([]logserver.Found, cluster.Offset, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: dataKey(id, from), UpperBound: dataKey(id, to)})
	if err != nil {
		return nil, from, fmt.Errorf("read records: %w", err)
	}
	found, next, bytes := []logserver.Found(nil), to, 0
	for ok := it.First(); ok; ok = it.Next() {
		var f logserver.Found
		if f.Offset, err = offsetOfKey(it.Key()); err != nil {
			break
		}
		if bytes >= maxBytes {
			next = f.Offset
			break
		}
		if f.Record, err = parseRecord(it.Key(), it.Value()); err != nil {
			err = fmt.Errorf("offset %d of loglet %s: %w", f.Offset, id, err)
			break
		}
		found = append(found, f)
		bytes += f.Record.Size()
	}
	if err = errors.Join(err, it.Close()); err == nil {
		return found, next, nil
	}
	if len(found) == 0 {
		return nil, from, fmt.Errorf("read records: %w", asCorrupt(err))
	}
	return found, found[len(found)-1].Offset + 1, nil
}

// Digest implements logserver.Store.
func (s *Store) Digest(id cluster.LogletID, from, to cluster.Offset) ([]logserver.Range, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: dataKey(id, from), UpperBound: dataKey(id, to)})
	if err != nil {
		return nil, fmt.Errorf("read record keys: %w", err)
	}
	var ranges []logserver.Range
	for ok := it.First(); ok; ok = it.Next() {
		var o cluster.Offset
		if o, err = offsetOfKey(it.Key()); err != nil {
			break
		}
		if n := len(ranges); n > 0 && ranges[n-1].To == o {
			ranges[n-1].To++
			continue
		}
		ranges = append(ranges, logserver.Range{From: o, To: o + 1})
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return nil, fmt.Errorf("read record keys: %w", asCorrupt(err))
	}
	return ranges, nil
}

// Marker says whose disk this is. A node compares it with what it believes to be, so that a swapped,
// cloned or wiped disk is noticed.
type Marker struct {
	Node        cluster.NodeID `json:"node"`
	StorageID   string         `json:"storage_id"`
	Fingerprint uint64         `json:"cluster_fingerprint,string"`
}

// Marker returns the disk's marker; ok is false on a fresh disk.
func (s *Store) Marker() (m Marker, ok bool, err error) {
	v, closer, err := s.db.Get([]byte(keyMarker))
	if errors.Is(err, pebble.ErrNotFound) {
		return Marker{}, false, nil
	}
	if err != nil {
		return Marker{}, false, fmt.Errorf("read marker: %w", asCorrupt(err))
	}
	err = json.Unmarshal(v, &m)
	if err = errors.Join(err, closer.Close()); err != nil {
		return Marker{}, false, fmt.Errorf("read marker: %w: %w", ErrCorrupt, err)
	}
	return m, true, nil
}

// SetMarker writes the disk's marker and returns when it is durable.
func (s *Store) SetMarker(m Marker) error {
	v, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode marker: %w", err)
	}
	if err := s.db.Set([]byte(keyMarker), v, pebble.Sync); err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	return nil
}

// fatalError is what Pebble said when it gave up.
type fatalError struct{ msg string }

func (e fatalError) Error() string { return e.msg }

// pebbleLogger passes Pebble's messages on. Its Fatalf must not return: it reports the failure and
// panics, which the write loop turns into an error and which ends the process anywhere else.
type pebbleLogger struct{ s *Store }

// Infof drops what Pebble tells in good days.
func (pebbleLogger) Infof(string, ...any) {}

// Errorf logs.
func (l pebbleLogger) Errorf(format string, args ...any) {
	l.s.cfg.Logger.Error("log database", "err", fmt.Sprintf(format, args...))
}

// Fatalf reports and panics.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	err := fatalError{fmt.Sprintf(format, args...)}
	l.s.fail(err)
	panic(err)
}
