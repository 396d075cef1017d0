// Package mutant names deliberate bugs of the cores that decide about safety. A build with the tag
// "mutants" can switch one of them on; the simulator must then find it, or the simulator is not worth its
// time. In any other build Is is the constant false and the compiler removes the bugs, so that production
// code cannot reach them.
//
// A mutant stands in the core where a programmer could have made the mistake, as one condition.
package mutant

// Kind is one deliberate bug.
type Kind uint8

// The mutants. None is the correct program.
const (
	None Kind = iota
	// Log servers.
	AckBeforeSync    // records count as durable when they were handed to the disk
	SealNotDurable   // a seal is answered without being written
	StoresIgnoreSeal // a sealed loglet takes appends
	HolesAccepted    // a store that leaves an uncommitted hole is taken
	LossIgnored      // a loglet whose durable records were lost is served as if it were complete
	SealLossIgnored  // a loglet whose durable seal was lost takes appends again
	TrimForgotten    // the point that a loglet was trimmed to is not read back
	// Sequencer.
	CommitByOne   // one durable copy commits a record
	SealedTailAck // tails of sealed servers acknowledge appends
	// Find tail, seal, repair.
	SealByOne       // one sealed server ends a loglet
	TailIsKnown     // the tail of a sealed loglet is the highest one known to be committed
	NoRepair        // records below the tail stay on fewer servers than a write quorum
	RepairSkipsHole // repair leaves out what it does not find
	PrefixTooLong   // a segment leaves the chain while its end is not trimmed
	TrimUncommitted // a loglet is trimmed above its local tail
	// Epochs and apply.
	EpochIgnored     // commands of replaced leaders are applied
	DedupDropped     // repeated messages of other partitions are applied again
	SuspendUnchecked // a suspension does not look at what has arrived already
	ApplyReadsClock  // apply takes the time from the machine it runs on
	LockIgnored      // exclusive handlers of one object run at the same time
	CompletionTwice  // a completion that is there already is added again
	LateEffects      // effects of attempts are applied to invocations that do not run
	PausedIsDeaf     // what arrives for a paused invocation is not kept
	FailureKeepsLock // an object whose invocation failed stays locked
	// Leaders.
	ActsBeforeFence  // a leader acts before it has read its own announcement
	OutboxEarly      // the outbox is truncated up to what was sent
	ShuffleNoRewind  // after a failed delivery sending goes on behind it
	TimerEarly       // timers fire a second before their time
	DurableIsApplied // what is applied is announced as durable
	TrimApplied      // the log is trimmed up to what is applied
	TimeHeld         // apply takes the latest time in the log, which a wrong clock may have written
	Kinds
)

var names = [Kinds]string{
	"none", "ack-before-sync", "seal-not-durable", "stores-ignore-seal", "holes-accepted", "loss-ignored", "seal-loss-ignored", "trim-forgotten",
	"commit-by-one", "sealed-tail-ack", "seal-by-one", "tail-is-known", "no-repair", "repair-skips-hole", "prefix-too-long",
	"trim-uncommitted", "epoch-ignored", "dedup-dropped", "suspend-unchecked", "apply-reads-clock",
	"lock-ignored", "completion-twice", "late-effects", "paused-is-deaf",
	"failure-keeps-lock", "acts-before-fence", "outbox-early", "shuffle-no-rewind",
	"timer-early", "durable-is-applied", "trim-applied", "time-held",
}

func (k Kind) String() string {
	if k < Kinds {
		return names[k]
	}
	return "unknown mutant"
}
