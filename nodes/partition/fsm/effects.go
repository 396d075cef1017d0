package fsm

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"perdure/control/ident"
	"perdure/control/mutant"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// effects applies what an attempt did, in order, as long as the invocation is in the incarnation that the
// attempt belongs to.
func (m *Machine) effects(x *recordpb.InvokerEffects) error {
	id, ok := m.idOf(x.InvocationId)
	if !ok {
		return nil
	}
	r, err := m.rows.of(id)
	if err != nil {
		return err
	}
	stale := false
	for _, e := range x.Effects {
		late := r.status() != storepb.Invocation_INVOKED && !(mutant.Is(mutant.LateEffects) && r.inv != nil)
		if late || r.inv.Incarnation != x.Incarnation || r.again {
			stale = true
			m.dropped++
			break
		}
		if err := m.effect(r, e); err != nil {
			return err
		}
	}
	a := m.out.add(ActApplied)
	a.ID, a.Incarnation, a.Sequence = id, x.Incarnation, x.Sequence
	switch {
	case r.again:
		r.again = false
		m.start(r, nil)
	case stale && r.status() != storepb.Invocation_INVOKED:
		m.out.abort(id, x.Incarnation)
	}
	return nil
}

func (m *Machine) effect(r *row, e *invocationpb.Effect) error {
	switch k := e.Kind.(type) {
	case *invocationpb.Effect_Pinned:
		if len(r.inv.DeploymentId) == 0 {
			r.inv.DeploymentId, r.inv.ProtocolVersion = k.Pinned.DeploymentId, k.Pinned.ProtocolVersion
			m.rows.touch(r)
		}
		return nil
	case *invocationpb.Effect_Command_:
		return m.command(r, k.Command)
	case *invocationpb.Effect_Run:
		return m.run(r, k.Run)
	case *invocationpb.Effect_Suspended_:
		return m.suspend(r, k.Suspended)
	case *invocationpb.Effect_Paused_:
		return m.pauseNow(r, k.Paused)
	case *invocationpb.Effect_End_:
		return m.end(r)
	case *invocationpb.Effect_Failed_:
		f := k.Failed.Failure
		if f == nil {
			f = &invocationpb.Failure{Code: 500}
		}
		return m.complete(r, &invocationpb.Result{Kind: &invocationpb.Result_Failure{Failure: f}})
	case *invocationpb.Effect_AttemptFailed_:
		return m.attemptFailed(r, k.AttemptFailed)
	}
	m.dropped++
	return nil
}

// run takes the result of a run. That the run's command is there is not asked for; a completion id that
// something else will answer is refused.
func (m *Machine) run(r *row, x *invocationpb.Effect_RunCompletion) error {
	m.key = keyspace.AppendCompletion(m.key[:0], &r.id, x.CompletionId)
	a, err := m.awaited(r, m.key)
	if err != nil {
		return err
	}
	if a != nil && !mutant.Is(mutant.CompletionTwice) {
		m.dropped++
		return nil
	}
	return m.completion(r, x.CompletionId, protocol.TypeRunCompletion, x.Result)
}

// suspend stops an invocation until what it awaits is there. Looking at what is there already in the same
// step closes the race with a notification that the attempt had not seen.
//
// A pause that was accepted while the suspension was on its way turns it into a pause.
func (m *Machine) suspend(r *row, x *invocationpb.Effect_Suspended) error {
	if r.inv.PauseRequested {
		return m.pauseNow(r, &invocationpb.Effect_Paused{})
	}
	known, err := m.known(r, x.Awaiting)
	if err != nil {
		return err
	}
	rest, done := x.Awaiting, false
	for i := 0; i < len(known) && !done; i++ {
		rest, done = settle(rest, known[i].leaf, known[i].verdict)
	}
	switch {
	case done:
		r.again = true
		return nil
	case empty(x.Awaiting): // the invoker lets none through; it would never end
		return m.pauseNow(r, &invocationpb.Effect_Paused{LastFailure: &invocationpb.Effect_AttemptFailed{
			Code: 500, Message: "the suspension awaits nothing", DocCode: "RT0012",
		}})
	}
	r.inv.Status = storepb.Invocation_SUSPENDED
	r.inv.Awaiting = rest
	m.rows.touch(r)
	if r.inv.ProtocolVersion < 7 {
		return nil
	}
	return m.journal.note(r, &storepb.Event{Kind: &storepb.Event_Suspended{Suspended: x}})
}

type resolvedLeaf struct {
	leaf    leaf
	verdict verdict
	entry   uint32
}

// known are the leaves of a future that the journal resolves already, in its order.
//
// A signal counts only if it was appended since the incarnation began. The attempts of this incarnation have
// seen all earlier ones: that the SDK still lists the signal means that it waits for the next one, as it
// does for cancel all the time.
func (m *Machine) known(r *row, f *invocationpb.Future) (known []resolvedLeaf, err error) {
	if r.inv.Awaited == 0 || mutant.Is(mutant.SuspendUnchecked) {
		return nil, nil
	}
	err = leaves(f, func(l leaf) error {
		m.key = l.appendKey(m.key[:0], &r.id)
		a, err := m.awaited(r, m.key)
		if err != nil || a == nil || !a.Done {
			return err
		}
		if l.kind == leafCompletion || a.Entry >= r.inv.Replayed {
			known = append(known, resolvedLeaf{l, verdictOf(a.Failed), a.Entry})
		}
		return nil
	})
	slices.SortStableFunc(known, func(a, b resolvedLeaf) int { return cmp.Compare(a.entry, b.entry) })
	return known, err
}

// empty reports whether a future has no leaf.
func empty(f *invocationpb.Future) bool {
	found := errors.New("a leaf")
	return leaves(f, func(leaf) error { return found }) == nil
}

// pauseNow stops an invocation until an operator resumes it, or it is cancelled. A request to cancel that its
// attempts have not seen counts as one that came behind the pause: it must not wait for the operator.
func (m *Machine) pauseNow(r *row, x *invocationpb.Effect_Paused) error {
	cancelled, err := m.known(r, &invocationpb.Future{Signals: []uint32{protocol.SignalCancel}})
	if err != nil {
		return err
	}
	if len(cancelled) > 0 {
		r.again = true
		return nil
	}
	r.inv.Status, r.inv.PauseRequested = storepb.Invocation_PAUSED, false
	m.rows.touch(r)
	x = &invocationpb.Effect_Paused{LastFailure: clipped(x.LastFailure)}
	return m.journal.note(r, &storepb.Event{Kind: &storepb.Event_Paused{Paused: x}})
}

// attemptFailed notes a transient error. One that repeats the last event is not noted again.
func (m *Machine) attemptFailed(r *row, x *invocationpb.Effect_AttemptFailed) error {
	x = clipped(x)
	last, err := m.journal.lastNote(r)
	if err != nil {
		return err
	}
	if old := last.GetTransientError(); old != nil && sameMessage(old, x) {
		return nil
	}
	return m.journal.note(r, &storepb.Event{Kind: &storepb.Event_TransientError{TransientError: x}})
}

// maxEventText bounds a text of a journal event, in bytes: a service can fail for ever, with a new text each time.
const maxEventText = 32 << 10

// clipped is a failure with texts that are worth keeping; x is not changed.
func clipped(x *invocationpb.Effect_AttemptFailed) *invocationpb.Effect_AttemptFailed {
	if max(len(x.GetMessage()), len(x.GetStacktrace()), len(x.GetRelatedCommandName())) <= maxEventText {
		return x
	}
	c := &invocationpb.Effect_AttemptFailed{
		Code: x.Code, Message: clip(x.Message), Stacktrace: clip(x.Stacktrace), DocCode: x.DocCode,
		RelatedCommandIndex: x.RelatedCommandIndex, RelatedCommandType: x.RelatedCommandType,
	}
	if x.RelatedCommandName != nil {
		name := clip(*x.RelatedCommandName)
		c.RelatedCommandName = &name
	}
	return c
}

func clip(s string) string {
	if len(s) <= maxEventText {
		return s
	}
	return strings.ToValidUTF8(s[:maxEventText], "") + "…"
}

type marshaler interface{ MarshalVT() ([]byte, error) }

func sameMessage(a, b marshaler) bool {
	x, errA := a.MarshalVT()
	y, errB := b.MarshalVT()
	return errA == nil && errB == nil && bytes.Equal(x, y)
}

// command stores a command and does what it asks for.
func (m *Machine) command(r *row, c *invocationpb.Effect_Command) error {
	typ := uint16(c.Type)
	if err := protocol.CheckCommand(typ, c.Raw); err != nil || uint32(typ) != c.Type {
		return m.reject(r, fmt.Sprintf("the journal was given a bad command: %v", err))
	}
	index, err := m.journal.append(r, typ, c.Raw)
	if err != nil {
		return err
	}
	r.inv.Commands++
	if c, ok, err := m.claim(r, typ, c.Raw); err != nil {
		return err
	} else if !ok {
		return m.reject(r, fmt.Sprintf("two commands have the completion id %d: the SDK must give each an id of its own", c))
	}
	switch typ {
	case protocol.TypeOutput:
		r.inv.Output, r.output = index+1, c.Raw
		return nil
	case protocol.TypeGetEagerState, protocol.TypeGetEagerStateKeys, protocol.TypeRun:
		return nil
	case protocol.TypeGetLazyState:
		return decoded(m, r, c, new(protocolpb.GetLazyStateCommand), m.getState)
	case protocol.TypeGetLazyStateKeys:
		return decoded(m, r, c, new(protocolpb.GetLazyStateKeysCommand), m.getStateKeys)
	case protocol.TypeSetState:
		return decoded(m, r, c, new(protocolpb.SetStateCommand), m.setState)
	case protocol.TypeClearState:
		return decoded(m, r, c, new(protocolpb.ClearStateCommand), m.clearStateKey)
	case protocol.TypeClearAllState:
		return m.clearAllState(r)
	case protocol.TypeSleep:
		return decoded(m, r, c, new(protocolpb.SleepCommand), m.sleep)
	case protocol.TypeCall:
		return decoded(m, r, c, new(protocolpb.CallCommand), func(r *row, x *protocolpb.CallCommand) error { return m.call(r, x, c.Callee) })
	case protocol.TypeOneWayCall:
		return decoded(m, r, c, new(protocolpb.OneWayCallCommand), func(r *row, x *protocolpb.OneWayCallCommand) error { return m.oneWayCall(r, x, c.Callee) })
	case protocol.TypeGetPromise:
		return decoded(m, r, c, new(protocolpb.GetPromiseCommand), m.getPromise)
	case protocol.TypePeekPromise:
		return decoded(m, r, c, new(protocolpb.PeekPromiseCommand), m.peekPromise)
	case protocol.TypeCompletePromise:
		return decoded(m, r, c, new(protocolpb.CompletePromiseCommand), m.completePromise)
	case protocol.TypeAttachInvocation:
		return decoded(m, r, c, new(protocolpb.AttachInvocationCommand), m.attachCommand)
	case protocol.TypeGetInvocationOutput:
		return decoded(m, r, c, new(protocolpb.GetInvocationOutputCommand), m.getOutputCommand)
	case protocol.TypeSendSignal:
		return decoded(m, r, c, new(protocolpb.SendSignalCommand), m.sendSignal)
	case protocol.TypeCompleteAwakeable:
		return decoded(m, r, c, new(protocolpb.CompleteAwakeableCommand), m.completeAwakeable)
	}
	return m.reject(r, "the journal was given a command of an unknown type")
}

// decoded decodes a command and carries it out.
func decoded[T message](m *Machine, r *row, c *invocationpb.Effect_Command, x T, do func(*row, T) error) error {
	if err := x.UnmarshalVT(c.Raw); err != nil {
		return m.reject(r, fmt.Sprintf("the journal was given a command that cannot be decoded: %v", err))
	}
	if what, n := longestName(x); n > ident.MaxName {
		return m.reject(r, fmt.Sprintf("%s is %d bytes long, at most %d are allowed", what, n, ident.MaxName))
	}
	return do(r, x)
}

// longestName is the name in a command that could become part of a row's key, the longest one if there are two.
func longestName(c any) (what string, n int) {
	switch c := c.(type) {
	case *protocolpb.GetLazyStateCommand:
		return "the key of a state", len(c.Key)
	case *protocolpb.SetStateCommand:
		return "the key of a state", len(c.Key)
	case *protocolpb.ClearStateCommand:
		return "the key of a state", len(c.Key)
	case *protocolpb.GetPromiseCommand:
		return "the name of a promise", len(c.Key)
	case *protocolpb.PeekPromiseCommand:
		return "the name of a promise", len(c.Key)
	case *protocolpb.CompletePromiseCommand:
		return "the name of a promise", len(c.Key)
	case *protocolpb.SendSignalCommand:
		return "the name of a signal", len(c.GetName())
	case *protocolpb.CallCommand:
		return longestOfCall(c.Key, c.GetIdempotencyKey())
	case *protocolpb.OneWayCallCommand:
		return longestOfCall(c.Key, c.GetIdempotencyKey())
	}
	return "", 0
}

func longestOfCall(key, idempotencyKey string) (what string, n int) {
	if len(idempotencyKey) > len(key) {
		return "the idempotency key of a call", len(idempotencyKey)
	}
	return "the key of a call", len(key)
}

// reject fails an invocation whose attempt was let through with something that cannot be applied. To
// drop the command alone would leave the handler waiting for ever.
func (m *Machine) reject(r *row, why string) error {
	m.dropped++
	m.out.abort(r.id, r.inv.Incarnation)
	return m.complete(r, failure(500, why))
}
