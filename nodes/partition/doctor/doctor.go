// Package doctor proves that no invocation is stuck silently: for each one that has not ended it finds what will make it
// go on, in the rows of its partition and in what the leader's invoker does, and says it in plain words. An invocation
// for which nothing is found is reported as a problem.
//
// What makes an invocation go on is one of: an open attempt, a retry or a free slot (the invoker has it), a timer (its row
// is there and not overdue), another invocation (it lives and knows who waits), the lock of its object (its holder lives),
// a promise (the waiter is registered), a signal or awakeable (somebody outside), or an operator.
//
// The functions are pure: they read one moment of a partition through View and change nothing. What concerns two partitions
// (a call's callee) is read at another moment, so an answer on its way looks like a problem for as long as it takes.
// Whoever reports problems looks again a little later; see Same.
package doctor

import (
	"bytes"
	"fmt"
	"time"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// Rows are a partition's rows as of one moment. A value that Get returns is the caller's, those that Scan hands out are
// valid until fn returns.
type Rows interface {
	Get(key []byte) (value []byte, ok bool, err error)
	Scan(start, end []byte, fn func(key, value []byte) (more bool, err error)) error
}

// View is one moment of a led partition. One goroutine uses it.
type View struct {
	Partition cluster.PartitionID
	Rows      Rows
	// Attempts is what the invoker has, at the same moment as Rows.
	Attempts map[ident.InvocationID]invokers.Status
	Now      time.Time
	// Peer reads the status row of an invocation of any partition, nil when there is none. ok is false when it cannot be
	// told; such an invocation is taken to be well. Nil: nothing can be told of other partitions.
	Peer func(ident.InvocationID) (inv *storepb.Invocation, ok bool)
	// Services may say something about a deployment or service that an attempt needs, such as that it is not registered;
	// empty when all is well. May be nil.
	Services func(t *invocationpb.Target, dp ident.DeploymentID) string

	outbox map[ident.InvocationID]bool // whom the outbox has requests for; read when needed
}

// Reason is a kind of thing that makes an invocation go on.
type Reason string

// The reasons.
const (
	Attempt    Reason = "attempt"    // an attempt is open
	Slot       Reason = "slot"       // waits for a free place among the concurrent attempts
	Retry      Reason = "retry"      // the invoker starts the next attempt at a time
	Log        Reason = "log"        // its last effects are on their way through the log
	Timer      Reason = "timer"      // a sleep or delay ends
	Invocation Reason = "invocation" // another invocation ends
	Lock       Reason = "lock"       // the holder of its object's lock ends
	Promise    Reason = "promise"    // somebody completes a durable promise
	Signal     Reason = "signal"     // somebody sends a signal or completes an awakeable
	Operator   Reason = "operator"   // somebody resumes it
	Retention  Reason = "retention"  // it has ended and is kept for a time
)

// Wait is one thing that an invocation waits for.
type Wait struct {
	Reason Reason
	// Text says what is waited for and who will bring it about.
	Text string
	// On is the invocation that is waited for; zero if none.
	On ident.InvocationID
	// Due is when it happens; zero if that is not known.
	Due time.Time
}

// Finding is what is found about an invocation.
type Finding struct {
	ID     ident.InvocationID
	Target string // service/key/handler
	Status storepb.Invocation_Status
	// Since is when its row changed last.
	Since time.Time
	// Waits are what can make it go on. For more than one, Needs says how they combine.
	Waits []Wait
	Needs string
	// Problem says why nothing, or something too late, will make it go on; empty when all is well.
	Problem string
	// Life and Incarnation tell whether a later finding is about the same wait.
	Life, Incarnation uint64
}

// Same reports whether two findings are about one wait with one problem: nothing has happened between them.
func Same(a, b *Finding) bool {
	return a.ID == b.ID && a.Life == b.Life && a.Incarnation == b.Incarnation && a.Status == b.Status && a.Since.Equal(b.Since) &&
		(a.Problem == "") == (b.Problem == "")
}

// overdue is how late a timer may be: the leader proposes due timers at once, so more than this is no delay of
// the log any more.
const overdue = 15 * time.Second

// Invocation finds out about one invocation; nil if the partition has none of this id.
func (v *View) Invocation(id ident.InvocationID) (*Finding, error) {
	inv, err := v.row(id)
	if err != nil || inv == nil {
		return nil, err
	}
	return v.examine(id, inv)
}

func (v *View) row(id ident.InvocationID) (*storepb.Invocation, error) {
	inv := new(storepb.Invocation)
	ok, err := v.read(keyspace.AppendInvocation(nil, &id), inv)
	if err != nil || !ok {
		return nil, err
	}
	return inv, nil
}

// read decodes a row; false if there is none.
func (v *View) read(key []byte, into interface{ UnmarshalVT([]byte) error }) (bool, error) {
	b, ok, err := v.Rows.Get(key)
	if err != nil || !ok {
		return false, err
	}
	if err := into.UnmarshalVT(b); err != nil {
		return false, fmt.Errorf("%w: row %q: %w", keyspace.ErrCorrupt, key[:1], err)
	}
	return true, nil
}

func (v *View) examine(id ident.InvocationID, inv *storepb.Invocation) (*Finding, error) {
	f := &Finding{ID: id, Target: TargetText(inv.Target), Status: inv.Status, Since: at(inv.ModifiedAtMs), Life: inv.Life, Incarnation: inv.Incarnation}
	var err error
	switch inv.Status {
	case storepb.Invocation_SCHEDULED:
		err = v.scheduled(f, inv)
	case storepb.Invocation_INBOXED:
		err = v.inboxed(f, inv)
	case storepb.Invocation_INVOKED:
		v.invoked(f, inv)
		err = v.holdsLock(f, inv)
	case storepb.Invocation_SUSPENDED:
		if err = v.suspended(f, inv); err == nil {
			err = v.holdsLock(f, inv)
		}
	case storepb.Invocation_PAUSED:
		if err = v.paused(f, inv); err == nil {
			err = v.holdsLock(f, inv)
		}
	case storepb.Invocation_COMPLETED:
		err = v.completed(f, inv)
	default:
		f.problem("its row has the status %s, which is none that can be stored", inv.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("examine %s: %w", id, err)
	}
	return f, nil
}

// problem notes the first thing that is wrong.
func (f *Finding) problem(format string, args ...any) {
	if f.Problem == "" {
		f.Problem = fmt.Sprintf(format, args...)
	}
}

func (f *Finding) wait(w Wait) { f.Waits = append(f.Waits, w) }

func at(ms uint64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

// TargetText is a target as operators write it.
func TargetText(t *invocationpb.Target) string {
	if t.GetKey() != "" {
		return t.GetService() + "/" + t.GetKey() + "/" + t.GetHandler()
	}
	return t.GetService() + "/" + t.GetHandler()
}

// timer waits for a timer, whose row must be there.
func (v *View) timer(f *Finding, k keyspace.TimerKey, what, does string) error {
	_, ok, err := v.Rows.Get(keyspace.AppendTimer(nil, &k))
	if err != nil {
		return err
	}
	due := at(k.FireAtMs)
	if !ok {
		f.problem("%s is due at %s, but the partition has no timer for it", what, due.Format(time.RFC3339))
		return nil
	}
	f.wait(Wait{Reason: Timer, Due: due, Text: fmt.Sprintf("%s until %s; the leader of partition %d %s then", what, due.Format(time.RFC3339), v.Partition, does)})
	if late := v.Now.Sub(due); late > overdue {
		f.problem("%s was over %s ago, but the timer has not fired", what, late.Round(time.Second))
	}
	return nil
}

func (v *View) scheduled(f *Finding, inv *storepb.Invocation) error {
	return v.timer(f, keyspace.TimerKey{FireAtMs: inv.ExecutionTimeMs, Kind: keyspace.TimerInvoke, ID: f.ID}, "its delay", "starts it")
}

// invoked needs the leader's invoker to know the invocation.
func (v *View) invoked(f *Finding, inv *storepb.Invocation) {
	s, ok := v.Attempts[f.ID]
	switch {
	case !ok:
		f.problem("it is to run, but the invoker of partition %d does not have it", v.Partition)
		return
	case s.Incarnation != inv.Incarnation:
		f.problem("it is to run in incarnation %d, but the invoker of partition %d has incarnation %d", inv.Incarnation, v.Partition, s.Incarnation)
		return
	case s.InFlight:
		f.wait(Wait{Reason: Attempt, Text: fmt.Sprintf("attempt %d runs since %s at %s; the service answers, or the attempt is ended for inactivity",
			s.RetryCount, s.LastStart.UTC().Format(time.RFC3339), deploymentText(s.LastDeployment))})
	case s.Queued:
		f.wait(Wait{Reason: Slot, Text: "it waits for one of the concurrent attempts of this node to end; the invoker then starts it"})
	case !s.NextRetry.IsZero():
		f.wait(Wait{Reason: Retry, Due: s.NextRetry, Text: fmt.Sprintf("attempt %d failed; the invoker starts the next one at %s%s", s.RetryCount,
			s.NextRetry.UTC().Format(time.RFC3339), lastFailure(&s))})
		if late := v.Now.Sub(s.NextRetry); late > overdue {
			f.problem("its retry was due %s ago, but was not started", late.Round(time.Second))
		}
	default:
		f.wait(Wait{Reason: Log, Text: "its attempt is over; what it did last is on its way through the log"})
	}
	if v.Services != nil {
		var dp ident.DeploymentID
		copy(dp[:], inv.DeploymentId)
		if text := v.Services(inv.Target, dp); text != "" {
			f.wait(Wait{Reason: Operator, Text: text})
		}
	}
}

func deploymentText(d ident.DeploymentID) string {
	if d.IsZero() {
		return "a deployment that is being chosen"
	}
	return "deployment " + d.String()
}

func lastFailure(s *invokers.Status) string {
	if t := s.FailureText(); t != "" {
		return "; last failure: " + firstLine(t)
	}
	return ""
}

func firstLine(s string) string {
	const most = 300
	for i, r := range s {
		if r == '\n' || i >= most {
			return s[:i]
		}
	}
	return s
}

func (v *View) paused(f *Finding, inv *storepb.Invocation) error {
	text := "it is paused; an operator resumes, cancels or kills it"
	if inv.Events > 0 {
		var e storepb.Event
		if _, err := v.read(keyspace.AppendEvent(nil, &f.ID, inv.Events-1), &e); err != nil {
			return err
		}
		if l := e.GetPaused().GetLastFailure(); l != nil {
			text += fmt.Sprintf("; it was paused after [%d] %s", l.GetCode(), firstLine(l.GetMessage()))
		}
	}
	f.wait(Wait{Reason: Operator, Text: text})
	return nil
}

func (v *View) completed(f *Finding, inv *storepb.Invocation) error {
	k := keyspace.ExpiryKey{AtMs: keyspace.ExpiresAt(inv.CompletedAtMs, inv.CompletionRetentionMs), ID: f.ID}
	_, ok, err := v.Rows.Get(keyspace.AppendExpiry(nil, &k))
	if err != nil {
		return err
	}
	if !ok {
		f.problem("it has ended, but the partition has no entry that ends its retention: it is kept for ever")
		return nil
	}
	f.wait(Wait{Reason: Retention, Due: at(min(k.AtMs, 1<<62)), Text: "it has ended; the result is kept for its retention"})
	return nil
}

func exclusive(t *invocationpb.Target) bool {
	return schema.ServiceType(t.GetServiceType()) == schema.VirtualObject && schema.HandlerType(t.GetHandlerType()) == schema.Exclusive
}

func objectOf(id ident.InvocationID, t *invocationpb.Target) keyspace.Object {
	return keyspace.Object{Partition: id.PartitionKey(), Service: t.GetService(), Key: t.GetKey()}
}

// holdsLock checks that an exclusive invocation that has begun holds its object: otherwise it runs beside another one.
func (v *View) holdsLock(f *Finding, inv *storepb.Invocation) error {
	if !exclusive(inv.Target) {
		return nil
	}
	o := objectOf(f.ID, inv.Target)
	var l storepb.Lock
	ok, err := v.read(keyspace.AppendLock(nil, &o), &l)
	if err == nil && (!ok || !bytes.Equal(l.Holder, f.ID[:])) {
		f.problem("it has begun, but does not hold the lock of %s/%s", o.Service, o.Key)
	}
	return err
}

// inboxed needs an inbox row, and a lock whose holder has not ended.
func (v *View) inboxed(f *Finding, inv *storepb.Invocation) error {
	o := objectOf(f.ID, inv.Target)
	var b storepb.Inboxed
	ok, err := v.read(keyspace.AppendInbox(nil, &o, inv.InboxSequence), &b)
	if err != nil {
		return err
	}
	if !ok || !bytes.Equal(b.InvocationId, f.ID[:]) {
		f.problem("it waits for the lock of %s/%s, but is not in the queue", o.Service, o.Key)
		return nil
	}
	var l storepb.Lock
	if ok, err = v.read(keyspace.AppendLock(nil, &o), &l); err != nil {
		return err
	}
	if !ok {
		f.problem("it waits for the lock of %s/%s, which nobody holds", o.Service, o.Key)
		return nil
	}
	before, err := v.before(&o, inv.InboxSequence)
	if err != nil {
		return err
	}
	if l.Next > inv.InboxSequence {
		f.problem("it waits for the lock of %s/%s, but the queue has passed its place", o.Service, o.Key)
		return nil
	}
	holder, err := ident.InvocationIDFromBytes(l.Holder)
	if err != nil {
		f.problem("the holder of the lock of %s/%s has no valid id", o.Service, o.Key)
		return nil
	}
	f.wait(Wait{Reason: Lock, On: holder, Text: fmt.Sprintf("the lock of %s/%s, held by %s since %s, with %d before it in the queue; it starts when they have ended",
		o.Service, o.Key, holder, at(l.AcquiredAtMs).Format(time.RFC3339), before)})
	problem, err := v.holder(holder, &o)
	if problem != "" {
		f.problem("%s", problem)
	}
	return err
}

// before counts those that come before a place in an inbox.
func (v *View) before(o *keyspace.Object, sequence uint64) (n int, err error) {
	prefix := keyspace.AppendInboxPrefix(nil, o)
	err = v.Rows.Scan(prefix, keyspace.AppendInbox(nil, o, sequence), func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// holder says what is wrong with the holder of a lock; empty when it will release it.
func (v *View) holder(id ident.InvocationID, o *keyspace.Object) (problem string, err error) {
	inv, err := v.row(id)
	switch {
	case err != nil:
		return "", err
	case inv == nil:
		return fmt.Sprintf("the lock of %s/%s is held by %s, which does not exist", o.Service, o.Key, id), nil
	case inv.Target.GetService() != o.Service || inv.Target.GetKey() != o.Key || !exclusive(inv.Target):
		return fmt.Sprintf("the lock of %s/%s is held by %s, which is another object's", o.Service, o.Key, id), nil
	}
	switch inv.Status {
	case storepb.Invocation_INVOKED, storepb.Invocation_SUSPENDED, storepb.Invocation_PAUSED:
		return "", nil
	}
	return fmt.Sprintf("the lock of %s/%s is held by %s, which is %s", o.Service, o.Key, id, inv.Status), nil
}
