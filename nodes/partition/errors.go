package partition

import "errors"

// Outcome errors of requests to a partition. Each says through Safe whether the request certainly had no
// effect; after the others it may have had one, and only a retry with the same request and invocation id
// is harmless.
var (
	// ErrNotLeader: this node does not lead the partition (now). Nothing was written.
	ErrNotLeader error = &outcomeError{"this node does not lead the partition", true}
	// ErrOverloaded: the proposal queue was full for as long as the caller waited. Nothing was written.
	ErrOverloaded error = &outcomeError{"the partition has too many proposals in flight", true}
	// ErrOutOfStep: messages came without those before them, which may have gone to another leader. Nothing was
	// written.
	ErrOutOfStep error = &outcomeError{"messages of a partition came without those before them", true}
	// ErrLostLeadership: leadership ended while the request was under way.
	ErrLostLeadership error = &outcomeError{"the partition's leader changed or stopped while the request was under way", false}
	// ErrSuperseded: the same request arrived again; the later one is answered.
	ErrSuperseded error = &outcomeError{"the request was sent again and the later copy is answered", false}
)

type outcomeError struct {
	text string
	safe bool
}

func (e *outcomeError) Error() string { return e.text }

// Safe reports whether the request certainly had no effect.
func (e *outcomeError) Safe() bool { return e.safe }

// Errors that end a processor.
var (
	// ErrAheadOfLog: the store has applied what the log does not have. The log lost data, or it is not
	// this store's log; the partition is parked, it must neither write nor lead.
	ErrAheadOfLog = errors.New("the partition store is ahead of its log: the log lost data or belongs to another cluster")
	// ErrTrimGap: the log was trimmed above what the store has applied; only a snapshot can help.
	ErrTrimGap = errors.New("the log was trimmed beyond what this replica has applied and there is no snapshot to start from")
	// ErrDataLoss: the log says that records are lost.
	ErrDataLoss = errors.New("the log reports lost records")

	errStopped = errors.New("the processor stops")
)
