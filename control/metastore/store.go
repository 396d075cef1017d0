package metastore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"perdure/control/metadata"
)

// NotLeaderError means that another server leads the group; nothing was done. It is a metadata.ErrUnavailable.
type NotLeaderError struct {
	// Leader and Address name the leader as far as it is known.
	Leader  raft.ServerID
	Address raft.ServerAddress
}

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return "metadata group has no leader"
	}
	return fmt.Sprintf("metadata group is led by %s at %s", e.Leader, e.Address)
}

// Unwrap makes it a metadata.ErrUnavailable.
func (e *NotLeaderError) Unwrap() error { return metadata.ErrUnavailable }

func (s *Server) notLeader() error {
	address, id := s.raft.LeaderWithID()
	if id == s.identity.ServerID() { // not yet, or not any more
		id, address = "", ""
	}
	return &NotLeaderError{id, address}
}

// Get implements metadata.Store.
func (s *Server) Get(ctx context.Context, key string) (v metadata.Value, err error) {
	begin := time.Now()
	defer func() { s.metrics.get.observe(begin, err) }()
	if err := metadata.CheckKey(key); err != nil {
		return metadata.Value{}, err
	}
	if err := s.linearize(ctx); err != nil {
		return metadata.Value{}, fmt.Errorf("get %q: %w", key, err)
	}
	v, ok, err := s.fsm.get(key)
	switch {
	case err != nil:
		return metadata.Value{}, fmt.Errorf("get %q: %w", key, err)
	case !ok:
		return metadata.Value{Version: v.Version}, fmt.Errorf("get %q: %w", key, metadata.ErrNotFound)
	}
	return v, nil
}

// List implements metadata.Store.
func (s *Server) List(ctx context.Context, prefix string) (list []metadata.KeyValue, err error) {
	begin := time.Now()
	defer func() { s.metrics.list.observe(begin, err) }()
	if err := s.linearize(ctx); err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	if list, err = s.fsm.list(prefix); err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	return list, nil
}

// Watch implements metadata.Store. The cache is what this server has applied.
func (s *Server) Watch(prefix string) *metadata.Watch { return s.cache.Watch(prefix) }

// Put implements metadata.Store.
func (s *Server) Put(ctx context.Context, key string, data []byte, p metadata.Precondition) (uint64, error) {
	r, err := s.write(ctx, []metadata.Compare{{Key: key, Precondition: p}}, []metadata.Put{{Key: key, Data: data}})
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	return r.Versions[0], nil
}

// Delete implements metadata.Store.
func (s *Server) Delete(ctx context.Context, key string, p metadata.Precondition) (uint64, error) {
	r, err := s.write(ctx, []metadata.Compare{{Key: key, Precondition: p}}, []metadata.Put{{Key: key, Delete: true}})
	if err != nil {
		return 0, fmt.Errorf("delete %q: %w", key, err)
	}
	return r.Versions[0], nil
}

// Txn implements metadata.Store.
func (s *Server) Txn(ctx context.Context, compares []metadata.Compare, puts []metadata.Put) (metadata.Result, error) {
	r, err := s.write(ctx, compares, puts)
	if err != nil {
		return metadata.Result{}, fmt.Errorf("transaction: %w", err)
	}
	return r, nil
}

// write puts one command into the log. Writes that wait at the same time share a batch and its fsync.
func (s *Server) write(ctx context.Context, compares []metadata.Compare, puts []metadata.Put) (r metadata.Result, err error) {
	begin := time.Now()
	defer func() { s.metrics.put.observe(begin, err) }()
	if err := metadata.CheckOperation(compares, puts); err != nil {
		return r, err
	}
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if err := s.beginCall(); err != nil {
		return r, err
	}
	command := encodeTxn(compares, puts)
	done := make(chan applied, 1)
	go func() {
		defer s.calls.Done()
		future := s.raft.Apply(command, 0)
		if err := future.Error(); err != nil {
			done <- applied{err: s.writeError(err)}
			return
		}
		done <- future.Response().(applied)
	}()
	select {
	case a := <-done:
		return a.result, a.err
	case <-ctx.Done():
		return r, fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, context.Cause(ctx))
	case <-s.dead:
		select {
		case a := <-done:
			return a.result, a.err
		default:
			return r, fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, metadata.ErrClosed)
		}
	}
}

// writeError says what an error of raft means for a write.
func (s *Server) writeError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return s.notLeader()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
	}
	// The entry may be on some disks: leadership lost, shutdown, failed write.
	return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, err)
}

// rounds lets reads share the confirmation that this server leads. A read may only use a confirmation that began after
// the read did, so those that come while one is under way wait for the next.
type rounds struct {
	mu      sync.Mutex
	running bool
	next    *round

	// readable is the last term in which everything of former terms is known to be applied. It belongs to the
	// goroutine that runs the rounds.
	readable uint64
}

type round struct {
	done chan struct{}
	err  error
}

// linearize returns when the state of this server includes all that was acknowledged, by anybody, before the call.
func (s *Server) linearize(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	mine, err := s.joinRound()
	if err != nil {
		return err
	}
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Server) joinRound() (*round, error) {
	s.rounds.mu.Lock()
	defer s.rounds.mu.Unlock()
	if !s.rounds.running {
		if err := s.beginCall(); err != nil {
			return nil, err
		}
		s.rounds.running = true
		go s.runRounds()
	}
	if s.rounds.next == nil {
		s.rounds.next = &round{done: make(chan struct{})}
	}
	return s.rounds.next, nil
}

func (s *Server) runRounds() {
	defer s.calls.Done()
	for {
		s.rounds.mu.Lock()
		r := s.rounds.next
		s.rounds.next = nil
		s.rounds.running = r != nil
		s.rounds.mu.Unlock()
		if r == nil {
			return
		}
		r.err = s.confirm()
		close(r.done)
	}
}

// confirm makes sure that this server leads now and has applied what it must. With one voter it is enough to lead, once
// the entries of former terms are applied: a barrier, once per term, sees to that, and what was acknowledged in this
// term was applied before. With more voters each confirmation is a barrier. raft's VerifyLeader would be cheaper, but it
// also counts answers to messages that were sent before it was called, and these prove nothing about now.
func (s *Server) confirm() error {
	switch s.raft.State() {
	case raft.Leader:
	case raft.Shutdown:
		return s.readError(raft.ErrRaftShutdown)
	default:
		return s.readError(raft.ErrNotLeader)
	}
	term := s.raft.CurrentTerm()
	if s.rounds.readable != term || s.severalVoters() {
		return s.barrier(term)
	}
	if err := s.await(context.Background(), s.raft.VerifyLeader()); err != nil {
		return s.readError(err)
	}
	if s.raft.CurrentTerm() != term || s.severalVoters() {
		return s.barrier(s.raft.CurrentTerm())
	}
	return nil
}

func (s *Server) barrier(term uint64) error {
	if err := s.await(context.Background(), s.raft.Barrier(0)); err != nil {
		return s.readError(err)
	}
	if s.raft.CurrentTerm() == term {
		s.rounds.readable = term
	}
	return nil
}

func (s *Server) severalVoters() bool {
	voters := 0
	for _, m := range s.Members() {
		if m.Voter {
			voters++
		}
	}
	return voters != 1
}

// readError says what an error of raft means for a read: nothing was changed, so trying again is always safe.
func (s *Server) readError(err error) error {
	if failure := s.failure(); failure != nil {
		return failure
	}
	if errors.Is(err, raft.ErrRaftShutdown) {
		return metadata.ErrClosed
	}
	if errors.Is(err, raft.ErrNotLeader) {
		return s.notLeader()
	}
	return fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
}
