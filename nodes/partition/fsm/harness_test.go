package fsm

import (
	"fmt"
	"testing"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

var everything = cluster.KeyRange{End: 1<<64 - 1}

// world is a machine on rows in memory, with one batch per command.
type world struct {
	t   testing.TB
	txn *memTxn
	m   *Machine
	lsn cluster.LSN
	now uint64
	out Actions
	seq uint64
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, txn: newMemTxn(), now: 1_000_000}
	m, err := New(3, everything, w.txn)
	if err != nil {
		t.Fatal(err)
	}
	w.m = m
	return w
}

// apply applies one command as a batch of its own and returns its actions.
func (w *world) apply(c *recordpb.Command) []Action {
	w.t.Helper()
	w.lsn++
	w.out.Reset()
	if err := w.m.Apply(w.txn, w.lsn, w.now, c, &w.out); err != nil {
		w.t.Fatalf("apply %d: %v", w.lsn, err)
	}
	if err := w.m.Finish(w.txn, w.lsn); err != nil {
		w.t.Fatalf("finish %d: %v", w.lsn, err)
	}
	return append([]Action(nil), w.out.List...)
}

// row is the stored status row; nil when there is none.
func (w *world) row(id ident.InvocationID) *storepb.Invocation {
	w.t.Helper()
	inv := new(storepb.Invocation)
	ok, err := read(w.txn, keyspace.AppendInvocation(nil, &id), inv)
	if err != nil {
		w.t.Fatal(err)
	}
	if !ok {
		return nil
	}
	return inv
}

func (w *world) status(id ident.InvocationID) storepb.Invocation_Status { return w.row(id).GetStatus() }

func (w *world) wantStatus(id ident.InvocationID, want storepb.Invocation_Status) {
	w.t.Helper()
	if got := w.status(id); got != want {
		w.t.Fatalf("status of %s is %s, want %s", id, got, want)
	}
}

// journal is the stored journal.
func (w *world) journal(id ident.InvocationID) (es []keyspace.Entry) {
	w.t.Helper()
	prefix := keyspace.AppendJournalPrefix(nil, &id)
	err := w.txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(_, v []byte) (bool, error) {
		e, err := keyspace.EntryOf(append([]byte(nil), v...))
		es = append(es, e)
		return true, err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return es
}

// count is the number of rows of a table.
func (w *world) count(tag byte) (n int) {
	for k := range w.txn.rows {
		if k[0] == tag {
			n++
		}
	}
	return n
}

// wantEmpty checks that nothing is left in tables.
func (w *world) wantEmpty(tags ...byte) {
	w.t.Helper()
	for _, tag := range tags {
		for k := range w.txn.rows {
			if k[0] == tag {
				w.t.Errorf("row %q is left", k)
			}
		}
	}
}

func ofKind(as []Action, k Kind) (found []Action) {
	for _, a := range as {
		if a.Kind == k {
			found = append(found, a)
		}
	}
	return found
}

// one is the only action of a kind.
func (w *world) one(as []Action, k Kind) Action {
	w.t.Helper()
	found := ofKind(as, k)
	if len(found) != 1 {
		w.t.Fatalf("%d actions of kind %d, want 1: %+v", len(found), k, as)
	}
	return found[0]
}

func (w *world) none(as []Action, k Kind) {
	w.t.Helper()
	if found := ofKind(as, k); len(found) != 0 {
		w.t.Fatalf("unexpected actions of kind %d: %+v", k, found)
	}
}

func ptr[T any](v T) *T { return &v }

func service(name string) *invocationpb.Target {
	return &invocationpb.Target{Service: name, Handler: "h", ServiceType: uint32(schema.Service), HandlerType: uint32(schema.Shared)}
}

func objectTarget(key string, t schema.HandlerType) *invocationpb.Target {
	return &invocationpb.Target{Service: "Counter", Handler: "add", Key: key, ServiceType: uint32(schema.VirtualObject), HandlerType: uint32(t)}
}

func workflowTarget(key string, t schema.HandlerType) *invocationpb.Target {
	return &invocationpb.Target{Service: "Wf", Handler: "run", Key: key, ServiceType: uint32(schema.Workflow), HandlerType: uint32(t)}
}

// idFor makes an id for a target; n makes it unique where the target does not determine it.
func idFor(t *invocationpb.Target, n int) ident.InvocationID {
	var r ident.Random
	r.ULID[15], r.ULID[14] = byte(n), byte(n>>8)
	r.Bucket = uint64(n)
	return ident.Invocation(ident.Target{Service: t.Service, Handler: t.Handler, Key: t.Key, Keyed: keyed(t), WorkflowRun: workflowRun(t)}, r)
}

func requestID(n int) []byte {
	b := make([]byte, 16)
	copy(b, fmt.Sprintf("request-%08d", n))
	return b
}

// request is an invocation by a waiting ingress request, without retention.
func request(t *invocationpb.Target, n int) *invocationpb.Invocation {
	id := idFor(t, n)
	return &invocationpb.Invocation{
		Id: id[:], Target: t, Argument: []byte(fmt.Sprintf("arg-%d", n)),
		RequestId: requestID(n), Sink: &invocationpb.Sink{RequestId: requestID(n)},
	}
}

func retained(x *invocationpb.Invocation, completionMs, journalMs uint64) *invocationpb.Invocation {
	x.CompletionRetentionMs, x.JournalRetentionMs = completionMs, journalMs
	return x
}

func (w *world) invoke(x *invocationpb.Invocation) []Action {
	w.t.Helper()
	return w.apply(&recordpb.Command{Kind: &recordpb.Command_Invoke{Invoke: x}})
}

// started invokes and expects the invocation to run.
func (w *world) started(x *invocationpb.Invocation) ident.InvocationID {
	w.t.Helper()
	w.invoke(x)
	id := ident.InvocationID(x.Id)
	w.wantStatus(id, storepb.Invocation_INVOKED)
	return id
}

// effects applies effects of the current incarnation.
func (w *world) effects(id ident.InvocationID, es ...*invocationpb.Effect) []Action {
	w.t.Helper()
	return w.effectsOf(id, w.row(id).GetIncarnation(), es...)
}

func (w *world) effectsOf(id ident.InvocationID, incarnation uint64, es ...*invocationpb.Effect) []Action {
	w.t.Helper()
	w.seq++
	return w.apply(&recordpb.Command{Kind: &recordpb.Command_InvokerEffects{InvokerEffects: &recordpb.InvokerEffects{
		InvocationId: id[:], Incarnation: incarnation, Sequence: w.seq, Effects: es,
	}}})
}

func pinned(version uint32) *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Pinned{Pinned: &invocationpb.Effect_PinnedDeployment{
		DeploymentId: []byte("deployment-00001"), ProtocolVersion: version,
	}}}
}

func entry(typ uint16, m interface{ MarshalVT() ([]byte, error) }) *invocationpb.Effect {
	raw, err := m.MarshalVT()
	if err != nil {
		panic(err)
	}
	return rawEntry(typ, raw)
}

func rawEntry(typ uint16, raw []byte) *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Command_{Command: &invocationpb.Effect_Command{Type: uint32(typ), Raw: raw}}}
}

func output(s string) *invocationpb.Effect {
	return entry(protocol.TypeOutput, outputOf(s))
}

func end() *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_End_{End: &invocationpb.Effect_End{}}}
}

func suspended(f *invocationpb.Future) *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Suspended_{Suspended: &invocationpb.Effect_Suspended{Awaiting: f}}}
}

func runResult(completion uint32, r *invocationpb.Result) *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Run{Run: &invocationpb.Effect_RunCompletion{CompletionId: completion, Result: r}}}
}
