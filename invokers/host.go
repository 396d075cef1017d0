// Package invokers carries out invocations: it opens attempts to service endpoints, feeds them the journal,
// turns what they send into effects for the log, and decides about retries and suspension.
//
// One Pool per node owns what all partitions share (concurrency slots, memory, transports); one Partition
// per led partition owns its invocations. The package knows nothing of logs and stores: it declares what it
// needs of them as Host. Its invariants are in DESIGN.md.
package invokers

import (
	"context"
	"errors"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
)

// Host is what a led partition offers its invoker.
type Host interface {
	// ReadJournal is one consistent read of an invocation's status, journal and, for keyed targets, state. It
	// reads eager state in key order as long as the sum of key and value bytes stays within what limit says for
	// the target, which is asked at most once; 0, or no limit function, reads none. Before it keeps an entry of
	// the journal or of the state, it asks reserve for the entry's bytes, and ends with ErrNoMemory when they are refused; a nil
	// reserve refuses nothing. It is called from the goroutines of attempts, also while the partition's loop applies.
	// An invocation that is not there, or not running, is an error.
	ReadJournal(id ident.InvocationID, limit EagerLimit, reserve func(bytes int) bool) (*Journal, error)

	// Propose puts effects into the log. The calls for one invocation come one after the other and their
	// order must be kept. It blocks while the log takes no more. An error means that the partition is no longer
	// led from here, or ctx ended: the attempt then ends without another effect. The effects belong to the host
	// and are not changed afterwards. sequence counts the proposals of one incarnation from 1.
	Propose(ctx context.Context, id ident.InvocationID, incarnation, sequence uint64, effects []*invocationpb.Effect) error
}

// EagerLimit is how many bytes of state are worth reading for a target that is pinned to a deployment, or to none
// yet. It must not block.
type EagerLimit func(target *invocationpb.Target, pinned ident.DeploymentID) int

// ErrNoMemory: the node's memory for invocations is used up. The attempt is put back and tried again.
var ErrNoMemory = errors.New("the memory for invocations is used up")

// Journal is what an attempt starts from. Nobody changes it.
type Journal struct {
	ID ident.InvocationID
	// Incarnation counts the times that the invocation began to run: started, resumed.
	Incarnation uint64
	Target      *invocationpb.Target
	// Deployment and ProtocolVersion are what the invocation is pinned to; zero before its first progress.
	Deployment      ident.DeploymentID
	ProtocolVersion uint32
	// Entries are commands and notifications in journal order; the first is the Input.
	Entries []Entry
	// State is the eager state in key order; PartialState says that there may be more keys.
	State        []StateEntry
	PartialState bool
	// IdempotencyKey as the caller gave it; nil when there is none.
	IdempotencyKey *string
	LimitKey       string
	// CreatedAtMs and ModifiedAtMs are times of the invocation's row, in ms since the epoch.
	CreatedAtMs, ModifiedAtMs uint64
	// TraceParent and TraceState are the W3C trace context of the invocation; may be empty.
	TraceParent, TraceState string
}

// Entry is one entry of a journal: a frame of the service protocol, its payload as it was received or made.
type Entry struct {
	Type uint16
	Raw  []byte
}

// StateEntry is one key of an object's or a workflow's state.
type StateEntry struct{ Key, Value []byte }

// SchemaSource is the node's current view of deployments and services.
type SchemaSource interface {
	// Current returns an immutable snapshot, the same one until something changes. It must be cheap: it is asked for each attempt
	// and each call.
	Current() *schema.Schema
}
