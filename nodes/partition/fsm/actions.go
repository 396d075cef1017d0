package fsm

import (
	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/record/recordpb"
)

// Kind says what an action asks for and which of its fields count.
type Kind uint8

// The kinds of actions.
const (
	// ActInvoke: start an attempt. ID, Incarnation, Service, Deployment; Fresh where the store need not be read. Replaces
	// whatever attempt of the ID is there.
	ActInvoke Kind = iota + 1
	// ActNotify: a notification was appended to the journal of a running invocation. ID, Incarnation,
	// EntryIndex, Type, Raw.
	ActNotify
	// ActApplied: an InvokerEffects command was applied, or dropped. ID, Incarnation, Sequence.
	ActApplied
	// ActAbort: drop any attempt of ID; Incarnation is the one that is over.
	ActAbort
	// ActPause: ask the attempt of ID to pause.
	ActPause
	// ActRetryNow: retry ID now if it waits for a retry.
	ActRetryNow
	// ActReply: answer a request. RequestID, Reply.
	ActReply
	// ActTimer: a timer row was written. Timer.
	ActTimer
	// ActTimerDeleted: a timer row is gone without having fired. Timer.
	ActTimerDeleted
	// ActOutbox: a message was appended to the outbox. Index, Command.
	ActOutbox
	// ActPurged: a Purge command was applied, with or without effect. ID.
	ActPurged
	// ActDurable: a durable point was agreed on. LSN.
	ActDurable
	// ActAnnounced: a leader was announced. Epoch, Node, LSN (of the announcement).
	ActAnnounced
	// ActEnded: an invocation that carries a trace context, and had begun, ended. ID, Ended.
	ActEnded
)

// Kinds is one more than the highest kind.
const Kinds = ActEnded + 1

// String is the kind's name, "" for none.
func (k Kind) String() string {
	if k < Kinds {
		return kindNames[k]
	}
	return ""
}

var kindNames = [Kinds]string{
	ActInvoke: "invoke", ActNotify: "notify", ActApplied: "applied", ActAbort: "abort", ActPause: "pause", ActRetryNow: "retry_now",
	ActReply: "reply", ActTimer: "timer", ActTimerDeleted: "timer_deleted", ActOutbox: "outbox", ActPurged: "purged",
	ActDurable: "durable", ActAnnounced: "announced", ActEnded: "ended",
}

// Action is something for the leader to do once the batch is committed. Losing actions is harmless: all that
// they say can be found in the store. Nothing that an action points to may be changed.
type Action struct {
	Kind        Kind
	ID          ident.InvocationID
	Incarnation uint64
	Sequence    uint64
	Service     string
	Deployment  ident.DeploymentID // zero: not pinned yet
	Fresh       *Fresh
	EntryIndex  uint32
	Type        uint16
	Raw         []byte
	RequestID   [16]byte
	Reply       *recordpb.Reply
	Timer       keyspace.TimerKey
	Index       uint64
	Command     *recordpb.Command
	LSN         cluster.LSN
	Epoch       cluster.Epoch
	Node        cluster.GenNodeID
	Ended       *Ended
}

// Ended is how an invocation with a trace context ended.
type Ended struct {
	Target                  *invocationpb.Target
	TraceParent, TraceState string
	Failed                  bool
}

// Fresh is all of a brand-new invocation of a plain service: its journal is just the Input.
type Fresh struct {
	Invocation *invocationpb.Invocation
	Input      []byte // payload of the Input command
	AtMs       uint64 // creation and modification time of the row
}

// Actions collects the actions of a batch, in the order of the log. It is reused: Reset keeps the memory.
type Actions struct{ List []Action }

// Reset drops all actions.
func (a *Actions) Reset() {
	clear(a.List)
	a.List = a.List[:0]
}

func (a *Actions) add(k Kind) *Action {
	a.List = append(a.List, Action{Kind: k})
	return &a.List[len(a.List)-1]
}

// reply answers a request; an empty id is nobody.
func (a *Actions) reply(requestID []byte, r *recordpb.Reply) {
	if len(requestID) != 16 {
		return
	}
	act := a.add(ActReply)
	copy(act.RequestID[:], requestID)
	act.Reply = r
}

func (a *Actions) replyStatus(requestID []byte, s recordpb.Reply_Status) {
	if len(requestID) == 16 {
		a.reply(requestID, &recordpb.Reply{Status: s})
	}
}

// submitted answers a request that waits for the invocation to be accepted.
func (a *Actions) submitted(x *invocationpb.Invocation, s recordpb.Reply_Status, executionTimeMs uint64) {
	a.reply(x.SubmitRequestId, &recordpb.Reply{Status: s, ExecutionTimeMs: executionTimeMs, Target: x.Target})
}

// abort ends the attempt of an incarnation that is over.
func (a *Actions) abort(id ident.InvocationID, incarnation uint64) {
	act := a.add(ActAbort)
	act.ID, act.Incarnation = id, incarnation
}
