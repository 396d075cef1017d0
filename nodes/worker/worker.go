// Package worker runs the partition processors of a node: it opens their stores, claims leader epochs,
// restarts what failed, and finds the processor that owns a key.
//
// Invariant: at most one processor of a partition runs here at any time, under an epoch that was claimed
// for this life of the node after everything before it was stopped. What a processor does is
// nodes/partition's; which node should lead is decided elsewhere (today: this one).
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"perdure/control/cluster"
	"perdure/control/placement"
	"perdure/nodes/bifrost"
	"perdure/nodes/partition"
	"perdure/nodes/partition/doctor"
	"perdure/nodes/partition/store"
	"perdure/nodes/record/recordpb"
)

// Config is what a worker needs.
type Config struct {
	// Dir holds one directory per partition.
	Dir string
	// Table is the cluster's partition table.
	Table   placement.Table
	Bifrost *bifrost.Bifrost
	// Claim takes a leader epoch for this node in the metadata store.
	Claim func(context.Context, cluster.PartitionID) (partition.Claim, error)
	// Store is the template of the stores' options; directory, partition and range are filled in.
	Store store.Options
	// Processor is the template of the processors' configuration, likewise.
	Processor partition.Config
	Logger    *slog.Logger
}

// Worker owns the processors of this node. Do, Ingest and the read-only methods may be used by any goroutine.
type Worker struct {
	cfg    Config
	log    *slog.Logger
	slots  []slot
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	ready  chan struct{}
	unled  atomic.Int64 // partitions that neither led nor were parked yet, since the start
}

// slot is the place of one partition.
type slot struct {
	proc  atomic.Pointer[partition.Processor]
	store atomic.Pointer[store.Store]
	once  sync.Once // first leadership, or parked

	mu     sync.Mutex
	status Status
}

// Status is what an operator wants to know of a partition here.
type Status struct {
	Partition cluster.PartitionID
	Epoch     cluster.Epoch
	Leading   bool
	Applied   cluster.LSN
	Restarts  int
	// ClockBehind is how far the node's clock is behind the latest time in the log; see partition.Processor.
	ClockBehind time.Duration
	// Parked says that the processor stays stopped because going on could do harm; LastError says why.
	Parked    bool
	LastError string
}

var errShutdown = errors.New("the node is shutting down")

// Start begins to run every partition. It returns at once; see Ready.
func Start(cfg Config) *Worker {
	ctx, cancel := context.WithCancelCause(context.Background())
	w := &Worker{cfg: cfg, log: cfg.Logger.With("component", "worker"), slots: make([]slot, cfg.Table.Len()), cancel: cancel, ready: make(chan struct{})}
	w.unled.Store(int64(cfg.Table.Len()))
	for i := range w.slots {
		w.slots[i].status.Partition = cluster.PartitionID(i)
		w.wg.Go(func() { w.run(ctx, cluster.PartitionID(i)) })
	}
	return w
}

// Ready is closed when every partition has led once since the start or was parked: a partition that needs an
// operator must not keep the others from being served.
func (w *Worker) Ready() <-chan struct{} { return w.ready }

// Close stops all processors, makes their stores durable and waits. Requests under way fail with an
// unknown outcome.
func (w *Worker) Close() {
	w.cancel(errShutdown)
	w.wg.Wait()
}

// Do asks the leader of the partition that owns the key.
func (w *Worker) Do(ctx context.Context, key cluster.PartitionKey, req *recordpb.Request) (*recordpb.Reply, error) {
	p := w.slots[w.cfg.Table.Lookup(key)].proc.Load()
	if p == nil {
		return nil, partition.ErrNotLeader
	}
	return p.Do(ctx, req)
}

// Ingest appends messages of an outbox to the log of a partition's leader; see partition.Peers.
func (w *Worker) Ingest(d cluster.PartitionID, from partition.Origin, cmds []*recordpb.Command, done func(error)) error {
	p := w.slots[d].proc.Load()
	if p == nil {
		return partition.ErrNotLeader
	}
	return p.Ingest(from, cmds, done)
}

// Inspect captures one moment of a partition; see partition.Processor.Inspect.
func (w *Worker) Inspect(ctx context.Context, id cluster.PartitionID) (v *doctor.View, close func(), err error) {
	p := w.slots[id].proc.Load()
	if p == nil {
		return nil, nil, partition.ErrNotLeader
	}
	return p.Inspect(ctx)
}

// PartitionOf is the partition that owns a key.
func (w *Worker) PartitionOf(key cluster.PartitionKey) cluster.PartitionID {
	return w.cfg.Table.Lookup(key)
}

// Statuses tells how the partitions are.
func (w *Worker) Statuses() []Status {
	out := make([]Status, len(w.slots))
	for i := range w.slots {
		s := &w.slots[i]
		s.mu.Lock()
		out[i] = s.status
		s.mu.Unlock()
		if p := s.proc.Load(); p != nil {
			out[i].Leading, out[i].Applied, out[i].ClockBehind = p.Leading(), p.AppliedLSN(), p.ClockBehind()
		}
	}
	return out
}

// Store is the open store of the partition that owns a key; nil while there is none. See Stores.
func (w *Worker) Store(key cluster.PartitionKey) *store.Store {
	return w.slots[w.cfg.Table.Lookup(key)].store.Load()
}

// Stores calls fn for the open store of each partition, for introspection. A store may be closed when its
// processor stops: fn must treat an error as "not available now".
func (w *Worker) Stores(fn func(cluster.PartitionID, *store.Store) error) error {
	for i := range w.slots {
		if st := w.slots[i].store.Load(); st != nil {
			if err := fn(cluster.PartitionID(i), st); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
	// goodRun is how long a processor must have run for its next failure to count as the first.
	goodRun = time.Minute
)

// run keeps one partition going until ctx ends.
func (w *Worker) run(ctx context.Context, id cluster.PartitionID) {
	backoff := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := w.lead(ctx, id)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, errShutdown) && !errors.Is(err, context.Canceled) {
				w.log.Warn("a partition did not stop cleanly; it is replayed from the log at the next start", "partition", id, "err", err)
			}
			return
		}
		if time.Since(began) > goodRun {
			backoff = minBackoff
		}
		parked := errors.Is(err, partition.ErrAheadOfLog)
		w.failed(id, err, parked)
		if parked {
			w.log.Error("the partition is parked: an operator must restore the log or remove the partition's store", "partition", id, "err", err)
			return
		}
		w.log.Warn("the partition stopped and is started again", "partition", id, "err", err, "in", backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func (w *Worker) failed(id cluster.PartitionID, err error, parked bool) {
	s := &w.slots[id]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Restarts++
	s.status.Parked = parked
	if parked {
		w.settled(s)
	}
	if err != nil {
		s.status.LastError = err.Error()
	}
}

func (w *Worker) settled(s *slot) {
	s.once.Do(func() {
		if w.unled.Add(-1) == 0 {
			close(w.ready)
		}
	})
}

// lead opens the store, claims an epoch and leads for as long as it lasts.
func (w *Worker) lead(ctx context.Context, id cluster.PartitionID) (err error) {
	if err := w.cfg.Bifrost.EnsureLog(ctx, placement.LogOf(id)); err != nil {
		return fmt.Errorf("create the log of partition %d: %w", id, err)
	}
	opts := w.cfg.Store
	opts.Dir = filepath.Join(w.cfg.Dir, strconv.Itoa(int(id)))
	opts.Partition, opts.Range = id, w.cfg.Table.Range(id)
	st, err := store.Open(opts)
	if err != nil {
		return fmt.Errorf("open the store of partition %d: %w", id, err)
	}
	s := &w.slots[id]
	s.store.Store(st)
	defer func() {
		s.store.Store(nil)
		err = errors.Join(err, st.Close())
	}()
	claim, err := w.cfg.Claim(ctx, id)
	if err != nil {
		return fmt.Errorf("claim the leader epoch of partition %d: %w", id, err)
	}
	cfg := w.cfg.Processor
	cfg.Partition, cfg.Range, cfg.Log = id, w.cfg.Table.Range(id), placement.LogOf(id)
	cfg.Bifrost, cfg.Lookup, cfg.Peers = w.cfg.Bifrost, w.cfg.Table.Lookup, w
	leading := cfg.Listener.Leading
	cfg.Listener.Leading = func(p cluster.PartitionID, e cluster.Epoch) {
		if leading != nil {
			leading(p, e)
		}
		s.mu.Lock()
		s.status.Epoch = e
		s.mu.Unlock()
		w.settled(s)
	}
	p, err := partition.New(cfg, st)
	if err != nil {
		return err
	}
	s.proc.Store(p)
	defer s.proc.Store(nil)
	return p.RunLeader(ctx, claim)
}
