// Package metastore is the metadata server: the replicated metadata.Store of the cluster, on hashicorp/raft with
// raft-boltdb. A single node runs it with one voter; the code path is that of several.
//
// Its invariants: what was acknowledged is durable on a quorum and is seen by every later read; a version of a key is
// given out once; an entry that is not what was written stops the server and is never served; a disk that was wiped or
// swapped never votes under the identity of the one that was there before.
package metastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"

	"perdure/control/cluster"
	"perdure/control/metadata"
)

// Names in the directory, and how many snapshots are kept there.
const (
	logFile       = "raft.db"
	snapshotsDir  = "snapshots"
	snapshotsKept = 2
)

// Config says where a metadata server keeps its data and how it talks to others.
type Config struct {
	// Dir is the server's own directory; it is created if missing.
	Dir string
	// Node owns the directory. A directory of another node is refused.
	Node cluster.NodeID
	// Transport reaches the other members. nil is for a node that is alone. Close closes it.
	Transport raft.Transport
	// ElectionTimeout is how long a follower waits for its leader before it asks for votes; it must be well above
	// the slowest fsync, or leaders are deposed for nothing. A node that is the only voter does not wait. Default
	// 2 s.
	ElectionTimeout time.Duration
	// SnapshotThreshold is the number of entries after which a snapshot is taken, and about the number that is kept
	// in the log after one. Smaller costs more snapshots, larger a longer start. Default 1024.
	SnapshotThreshold uint64
	// ExpectStorage is the storage id that the store must have; empty accepts any, and makes a new store where there is
	// none. A node passes what the marker of its data directory says.
	ExpectStorage string
	// NewStorageID makes the identity of a new store. Default: a ULID.
	NewStorageID func() string
	// Logger is told of role changes and failures; nil discards.
	Logger *slog.Logger
	// Registry gets the server's metrics while it is open; nil for none.
	Registry prometheus.Registerer
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || c.Node == 0 {
		return c, errors.New("open metadata store: directory and node id must be given")
	}
	if c.ElectionTimeout == 0 {
		c.ElectionTimeout = 2 * time.Second
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 1024
	}
	if c.NewStorageID == nil {
		c.NewStorageID = func() string { return ulid.Make().String() }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("component", "metastore", "node", uint32(c.Node))
	return c, nil
}

// Identity says whose store a directory is.
type Identity struct {
	Node cluster.NodeID `json:"node"`
	// Storage was made with the store. A store that was made anew has another one and is another raft server.
	Storage string `json:"storage"`
}

// ServerID is the raft server of an identity, unique for all time.
func (i Identity) ServerID() raft.ServerID {
	return raft.ServerID(fmt.Sprintf("n%d-%s", uint32(i.Node), i.Storage))
}

// Server is a running metadata server. All methods may be called concurrently.
type Server struct {
	config    Config
	identity  Identity
	log       *slog.Logger
	bolt      *raftboltdb.BoltStore
	logs      *checkedLog
	transport transport
	raft      *raft.Raft
	fsm       *fsm
	cache     *metadata.Cache
	metrics   *metrics
	rounds    rounds

	calls   sync.WaitGroup // writes and read rounds that raft may still answer
	running sync.WaitGroup // run
	stop    chan struct{}  // closed by Close: ends run
	dead    chan struct{}  // closed when raft has ended and answers nobody any more
	failed  chan struct{}  // closed with the first failure

	mu struct {
		sync.Mutex
		closing bool
		failure error
		changed chan struct{} // closed and replaced when leadership may have changed
	}
	haltOnce  sync.Once
	closeOnce sync.Once
	closeErr  error
}

var _ metadata.Store = (*Server)(nil)

// Open opens or creates the store in a directory and starts the server. A server whose store is Fresh does nothing
// until Bootstrap is called or an existing group adds it. A store that is damaged is refused with ErrDamaged.
func Open(c Config) (*Server, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, log: c.Logger, cache: metadata.NewCache(), stop: make(chan struct{}), dead: make(chan struct{}), failed: make(chan struct{})}
	s.mu.changed = make(chan struct{})
	s.fsm = newFSM(s.cache, s.fail)
	if err := c.checkExpected(); err != nil {
		return nil, err
	}
	if s.bolt, err = openBolt(c); err != nil {
		return nil, err
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open metadata store in %s: %w", c.Dir, err), s.bolt.Close())
	}
	return s, nil
}

// ErrLost means that the store which the node had is not there.
var ErrLost = errors.New("metadata store of this node is missing")

// checkExpected refuses to make a new store in place of one that should be there: it would vote anew.
func (c Config) checkExpected() error {
	if c.ExpectStorage == "" {
		return nil
	}
	info, err := os.Stat(filepath.Join(c.Dir, logFile))
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil && info.Size() == 0:
		return fmt.Errorf("%w: %s is empty, but node %s had the store %s there: its disk was wiped or is not mounted. Mount the right disk; if the data is lost, remove %s from the metadata group and start a new node with an empty data directory and another name",
			ErrLost, c.Dir, c.Node, c.ExpectStorage, Identity{c.Node, c.ExpectStorage}.ServerID())
	case err != nil:
		return fmt.Errorf("open metadata store: %w", err)
	}
	return nil
}

// openBolt opens the log file, or creates it. It does not wait for another process that has it open.
func openBolt(c Config) (store *raftboltdb.BoltStore, err error) {
	defer recoverDamage(&err)
	defer trapFaults()()
	path := filepath.Join(c.Dir, logFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := createBolt(c, path); err != nil {
			return nil, fmt.Errorf("create metadata store in %s: %w", c.Dir, err)
		}
	}
	// Also when the file was there: a start that was killed may have made it and not have synced the names.
	if err := errors.Join(syncDir(c.Dir), syncDir(filepath.Dir(c.Dir))); err != nil {
		return nil, fmt.Errorf("open metadata store in %s: %w", c.Dir, err)
	}
	if err := verifyBoltFile(path); err != nil {
		return nil, err
	}
	return newBolt(path)
}

func newBolt(path string) (*raftboltdb.BoltStore, error) {
	store, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: lockTimeout}})
	if err != nil {
		return nil, boltError(path, err)
	}
	return store, nil
}

// createBolt makes the log file with an empty log and a new identity under another name and then renames it, so that a
// file which exists is complete. The caller makes the names durable.
func createBolt(c Config, path string) error {
	if err := os.MkdirAll(filepath.Join(c.Dir, snapshotsDir), 0o700); err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	identity, err := json.Marshal(Identity{Node: c.Node, Storage: c.NewStorageID()})
	if err != nil {
		return err
	}
	store, err := newBolt(temporary)
	if err != nil {
		return err
	}
	err = errors.Join(createLog(store), createStable(store, identity))
	if err := errors.Join(err, store.Close()); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *Server) start() (err error) {
	defer recoverDamage(&err)
	defer trapFaults()()
	if s.logs, err = openLog(s.bolt, s.fail); err != nil {
		return err
	}
	stable, err := openStable(s.bolt, s.fail)
	if err != nil {
		return err
	}
	logger := newRaftLogger(s.log)
	snapshots := filepath.Join(s.config.Dir, snapshotsDir)
	snaps, err := raft.NewFileSnapshotStoreWithLogger(s.config.Dir, snapshotsKept, logger)
	if err != nil {
		return err
	}
	state, err := verifyStores(s.logs, stable, snaps, snapshots)
	if err != nil {
		return err
	}
	if state.halfBootstrapped { // as if it had not begun
		if err := stable.SetUint64(keyCurrentTerm, 0); err != nil {
			return err
		}
	}
	if s.identity, err = readIdentity(stable, s.config); err != nil {
		return err
	}
	cached, err := raft.NewLogCache(512, s.logs)
	if err != nil {
		return err
	}
	inner := s.config.Transport
	if inner == nil {
		inner = newLoopback(raft.ServerAddress(s.identity.ServerID()))
	}
	if s.transport, err = newTransport(inner); err != nil {
		return err
	}
	if s.raft, err = raft.NewRaft(s.raftConfig(logger), s.fsm, cached, stable, snaps, s.transport); err != nil {
		return err
	}
	if s.metrics, err = newMetrics(s.config.Registry, s); err != nil {
		return errors.Join(fmt.Errorf("register metrics: %w", err), s.raft.Shutdown().Error())
	}
	s.running.Go(s.run)
	s.electIfAlone()
	return nil
}

func (s *Server) raftConfig(logger *raftLogger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = s.identity.ServerID()
	c.HeartbeatTimeout = s.config.ElectionTimeout
	c.ElectionTimeout = s.config.ElectionTimeout
	c.LeaderLeaseTimeout = s.config.ElectionTimeout / 2
	c.SnapshotThreshold = s.config.SnapshotThreshold
	c.TrailingLogs = s.config.SnapshotThreshold
	c.SnapshotInterval = 30 * time.Second
	c.NoLegacyTelemetry = true
	c.Logger = logger
	return c
}

// readIdentity reads the identity of the store and refuses one that is not the node's.
func readIdentity(stable *checkedStable, c Config) (Identity, error) {
	data, err := stable.Get(keyIdentity)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: it has no identity", ErrDamaged)
	}
	var i Identity
	if err := json.Unmarshal(data, &i); err != nil {
		return Identity{}, fmt.Errorf("%w: its identity can not be read: %w", ErrDamaged, err)
	}
	if i.Node != c.Node {
		return Identity{}, fmt.Errorf("the store belongs to node %s, but this is node %s: the directory was swapped or copied; give each node the directory it was started with before", i.Node, c.Node)
	}
	if c.ExpectStorage != "" && i.Storage != c.ExpectStorage {
		return Identity{}, fmt.Errorf("%w: the store has storage id %s, but node %s had %s: the disk was swapped; mount the right one", ErrLost, i.Storage, c.Node, c.ExpectStorage)
	}
	return i, nil
}

// Identity is whose store this is.
func (s *Server) Identity() Identity { return s.identity }

// Fresh reports whether the store belongs to no group yet.
func (s *Server) Fresh() bool { return len(s.Members()) == 0 }

// Member is a server of the metadata group.
type Member struct {
	ID      raft.ServerID
	Address raft.ServerAddress
	Voter   bool
}

// Members are the servers of the group, as this server knows it.
func (s *Server) Members() []Member {
	future := s.raft.GetConfiguration()
	if future.Error() != nil {
		return nil
	}
	var members []Member
	for _, m := range future.Configuration().Servers {
		members = append(members, Member{m.ID, m.Address, m.Suffrage == raft.Voter})
	}
	return members
}

// Bootstrap makes this server the only voter of a new group. It does nothing if the server is in a group already,
// so it can be repeated after a crash. Only the first node of a cluster may do it.
func (s *Server) Bootstrap() error {
	if err := s.usable(); err != nil {
		return err
	}
	configuration := raft.Configuration{Servers: []raft.Server{{
		ID: s.identity.ServerID(), Address: s.transport.LocalAddr(), Suffrage: raft.Voter,
	}}}
	err := s.await(context.Background(), s.raft.BootstrapCluster(configuration))
	if errors.Is(err, raft.ErrCantBootstrap) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bootstrap metadata store: %w", err)
	}
	s.electIfAlone()
	return nil
}

// electIfAlone lets the only voter of a group stand for election at once: there is nobody whose heartbeat it could
// wait for. If the message gets lost, the election timeout does the same later.
func (s *Server) electIfAlone() {
	members := s.Members()
	if len(members) != 1 || members[0].ID != s.identity.ServerID() || !members[0].Voter {
		return
	}
	request := raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(members[0].ID), Addr: []byte(members[0].Address),
	}}
	var response raft.TimeoutNowResponse
	if err := s.transport.TimeoutNow(members[0].ID, members[0].Address, &request, &response); err != nil {
		s.log.Debug("immediate election was not possible", "err", err)
	}
}

// run watches leadership and failures until Close.
func (s *Server) run() {
	events := make(chan raft.Observation, 16)
	// A full channel drops events; that is fine, each makes us look at the state, not at the event.
	observer := raft.NewObserver(events, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.RaftState, raft.LeaderObservation:
			return true
		}
		return false
	})
	s.raft.RegisterObserver(observer)
	defer s.raft.DeregisterObserver(observer)
	failed, was := s.failed, s.raft.State()
	for {
		select {
		case <-events:
		case <-s.raft.LeaderCh():
		case <-failed:
			failed = nil
			s.log.Error("metadata server stops", "err", s.failure())
			s.halt()
		case <-s.stop:
			return
		}
		if now := s.raft.State(); now != was {
			s.log.Info("metadata role changed", "role", now.String(), "term", s.raft.CurrentTerm())
			was = now
		}
		s.wake()
	}
}

func (s *Server) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.mu.changed)
	s.mu.changed = make(chan struct{})
}

func (s *Server) changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.changed
}

// WaitReady waits until the group has a leader and, if that is this server, until it can be read from.
func (s *Server) WaitReady(ctx context.Context) error {
	for {
		changed := s.changed()
		if err := s.usable(); err != nil {
			return err
		}
		if s.raft.State() == raft.Leader && s.linearize(ctx) == nil {
			return nil
		}
		if _, id := s.raft.LeaderWithID(); id != "" && s.raft.State() == raft.Follower {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for a leader of the metadata group: %w", context.Cause(ctx))
		}
	}
}

// fail records the first failure; the server stops. It is called from raft's goroutines and does not block.
func (s *Server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.failure == nil {
		s.mu.failure = err
		close(s.failed)
	}
}

func (s *Server) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.failure
}

// Failed is closed when the server has stopped because of its disk or its data; Failure says why. The process should
// end: what the disk holds is not known.
func (s *Server) Failed() <-chan struct{} { return s.failed }

// Failure is why the server stopped, nil while it has not.
func (s *Server) Failure() error { return s.failure() }

func (s *Server) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usableLocked()
}

func (s *Server) usableLocked() error {
	if s.mu.failure != nil {
		return s.mu.failure
	}
	if s.mu.closing {
		return metadata.ErrClosed
	}
	return nil
}

// beginCall keeps Close from stopping raft until calls.Done is called.
func (s *Server) beginCall() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(); err != nil {
		return err
	}
	s.calls.Add(1)
	return nil
}

// AddVoter adds a server to the group, or makes a non-voter one. Only the leader can; the new server gets the state
// from it. One change at a time.
func (s *Server) AddVoter(ctx context.Context, id raft.ServerID, address raft.ServerAddress) error {
	if err := s.await(ctx, s.raft.AddVoter(id, address, 0, 0)); err != nil {
		return fmt.Errorf("add metadata member %s: %w", id, s.writeError(err))
	}
	return nil
}

// RemoveServer removes a server from the group. Only the leader can.
func (s *Server) RemoveServer(ctx context.Context, id raft.ServerID) error {
	if err := s.await(ctx, s.raft.RemoveServer(id, 0, 0)); err != nil {
		return fmt.Errorf("remove metadata member %s: %w", id, s.writeError(err))
	}
	return nil
}

// Snapshot writes a snapshot now, if anything has changed since the last.
func (s *Server) Snapshot(ctx context.Context) error {
	err := s.await(ctx, s.raft.Snapshot())
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take a metadata snapshot: %w", err)
	}
	return nil
}

// await waits for a future of raft. raft leaves some futures without an answer when it shuts down, therefore the wait
// also ends with the server.
func (s *Server) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.dead:
		select {
		case err := <-done:
			return err
		default:
			return raft.ErrRaftShutdown
		}
	}
}

// drainTime bounds how long Close waits for calls under way and for another server to take over the leadership.
const drainTime = time.Second

// Close hands leadership on if there is somebody, stops the server and waits for it. Calls that are under way get an
// answer. It may be called more than once.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Server) close() error {
	s.mu.Lock()
	s.mu.closing = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	s.drain(ctx)
	if s.failure() == nil && s.raft.State() == raft.Leader && len(s.Members()) > 1 {
		if err := s.await(ctx, s.raft.LeadershipTransfer()); err != nil {
			s.log.Warn("metadata leadership was not handed on", "err", err)
		}
	}
	s.halt()
	close(s.stop)
	s.wake()
	s.running.Wait()
	s.metrics.close()
	if err := s.bolt.Close(); err != nil {
		return fmt.Errorf("close metadata log: %w", err)
	}
	return nil
}

// halt stops raft, which closes the transport, and releases those who wait for it.
func (s *Server) halt() {
	s.haltOnce.Do(func() {
		_ = s.raft.Shutdown().Error() // never fails
		close(s.dead)
	})
}

// drain waits for calls under way: raft does not answer those that it has in a queue when it stops.
func (s *Server) drain(ctx context.Context) {
	drained := make(chan struct{})
	go func() {
		s.calls.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
	}
}
