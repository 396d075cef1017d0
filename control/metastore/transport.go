package metastore

import (
	"errors"

	"github.com/hashicorp/raft"
)

// transport is a raft.Transport without the heartbeat fast path. On that path a heartbeat is handled on the
// transport's own goroutine and may raise the term while the leader's loop is in the middle of a step; the deposed leader
// then appends a command under a term that is not its own, and the logs differ for ever. All messages take the queue
// to raft's main goroutine instead. An election timeout must then be longer than the slowest fsync.
type transport struct {
	raft.Transport
	vote raft.WithPreVote
}

var (
	_ raft.WithPreVote = transport{}
	_ raft.WithClose   = transport{}
)

// newTransport wraps t, which must be able to ask for pre-votes: without them a node that comes back from a
// network partition deposes a leader for nothing.
func newTransport(t raft.Transport) (transport, error) {
	vote, ok := t.(raft.WithPreVote)
	if !ok {
		return transport{}, errors.New("the metadata transport does not support pre-votes")
	}
	return transport{t, vote}, nil
}

// SetHeartbeatHandler implements raft.Transport. It must do nothing.
func (transport) SetHeartbeatHandler(func(raft.RPC)) {}

// RequestPreVote implements raft.WithPreVote.
func (t transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, in *raft.RequestPreVoteRequest, out *raft.RequestPreVoteResponse) error {
	return t.vote.RequestPreVote(id, to, in, out)
}

// Close implements raft.WithClose.
func (t transport) Close() error {
	if c, ok := t.Transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// newLoopback is the transport of a node that is alone: it reaches only itself.
func newLoopback(address raft.ServerAddress) raft.Transport {
	_, t := raft.NewInmemTransport(address)
	t.Connect(address, t)
	return t
}
