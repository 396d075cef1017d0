package doctor

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
	"testing"
	"time"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/fsm"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// rows are a partition's rows in memory: what the state machine writes and the doctor reads.
type rows struct{ m map[string][]byte }

func (r rows) Get(key []byte) ([]byte, bool, error) {
	v, ok := r.m[string(key)]
	return bytes.Clone(v), ok, nil
}

func (r rows) GetCommitted(key []byte) ([]byte, bool, error) { return r.Get(key) }

func (r rows) Scan(start, end []byte, fn func(key, value []byte) (bool, error)) error {
	var keys []string
	for k := range r.m {
		if k >= string(start) && k < string(end) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		if more, err := fn([]byte(k), r.m[k]); err != nil || !more {
			return err
		}
	}
	return nil
}

func (r rows) Set(key, value []byte) error {
	r.m[string(key)] = append([]byte{}, value...)
	return nil
}

func (r rows) Delete(key []byte) error {
	delete(r.m, string(key))
	return nil
}

func (r rows) DeleteRange(start, end []byte) error {
	for k := range r.m {
		if k >= string(start) && k < string(end) {
			delete(r.m, k)
		}
	}
	return nil
}

func (r rows) SetApplied(cluster.LSN, uint64) error { return nil }

// world is a partition that a state machine writes, with all keys, and an invoker that has what is to run.
type world struct {
	t        *testing.T
	rows     rows
	m        *fsm.Machine
	lsn      cluster.LSN
	now      uint64
	seq      uint64
	attempts map[ident.InvocationID]invokers.Status
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, rows: rows{map[string][]byte{}}, now: 1_000_000, attempts: map[ident.InvocationID]invokers.Status{}}
	m, err := fsm.New(3, cluster.KeyRange{End: 1<<64 - 1}, w.rows)
	if err != nil {
		t.Fatal(err)
	}
	w.m = m
	return w
}

// apply applies a command, and then the messages that it sends, all of which are to this partition.
func (w *world) apply(c *recordpb.Command) {
	w.t.Helper()
	queue := []*recordpb.Command{c}
	for len(queue) > 0 {
		var out fsm.Actions
		w.lsn++
		if err := w.m.Apply(w.rows, w.lsn, w.now, queue[0], &out); err != nil {
			w.t.Fatal(err)
		}
		if err := w.m.Finish(w.rows, w.lsn); err != nil {
			w.t.Fatal(err)
		}
		queue = queue[1:]
		for _, a := range out.List {
			switch a.Kind {
			case fsm.ActInvoke:
				w.attempts[a.ID] = invokers.Status{ID: a.ID, Incarnation: a.Incarnation, InFlight: true, LastStart: time.UnixMilli(int64(w.now)), RetryCount: 1}
			case fsm.ActOutbox:
				queue = append(queue, &recordpb.Command{Kind: a.Command.Kind})
			}
		}
	}
	w.truncate()
}

// truncate empties the outbox: everything was delivered.
func (w *world) truncate() {
	prefix := []byte{keyspace.TagOutbox}
	if err := w.rows.DeleteRange(prefix, keyspace.PrefixEnd(nil, prefix)); err != nil {
		w.t.Fatal(err)
	}
}

func id(n byte) ident.InvocationID {
	return ident.NewInvocationID(cluster.PartitionKey(7), [16]byte{15: n})
}

func service() *invocationpb.Target {
	return &invocationpb.Target{Service: "Greeter", Handler: "greet", ServiceType: uint32(schema.Service)}
}

func object() *invocationpb.Target {
	return &invocationpb.Target{Service: "Counter", Handler: "add", Key: "k", ServiceType: uint32(schema.VirtualObject), HandlerType: uint32(schema.Exclusive)}
}

func workflow() *invocationpb.Target {
	return &invocationpb.Target{Service: "Flow", Handler: "run", Key: "k", ServiceType: uint32(schema.Workflow), HandlerType: uint32(schema.WorkflowRun)}
}

func (w *world) invoke(i ident.InvocationID, t *invocationpb.Target, atMs uint64) {
	w.t.Helper()
	w.apply(&recordpb.Command{Kind: &recordpb.Command_Invoke{Invoke: &invocationpb.Invocation{
		Id: i[:], Target: t, ExecutionTimeMs: atMs, CompletionRetentionMs: 1000, JournalRetentionMs: 1000,
	}}})
}

func (w *world) effects(i ident.InvocationID, es ...*invocationpb.Effect) {
	w.t.Helper()
	w.seq++
	w.apply(&recordpb.Command{Kind: &recordpb.Command_InvokerEffects{InvokerEffects: &recordpb.InvokerEffects{
		InvocationId: i[:], Incarnation: w.row(i).Incarnation, Sequence: w.seq, Effects: es,
	}}})
}

func (w *world) row(i ident.InvocationID) *storepb.Invocation {
	w.t.Helper()
	inv, err := w.view().row(i)
	if err != nil || inv == nil {
		w.t.Fatalf("row of %s: %v %v", i, inv, err)
	}
	return inv
}

// write replaces the row of an invocation.
func (w *world) write(i ident.InvocationID, change func(*storepb.Invocation)) {
	w.t.Helper()
	inv := w.row(i)
	change(inv)
	b, err := inv.MarshalVT()
	if err != nil {
		w.t.Fatal(err)
	}
	w.rows.m[string(keyspace.AppendInvocation(nil, &i))] = b
}

func (w *world) view() *View {
	v := &View{Partition: 3, Rows: w.rows, Attempts: w.attempts, Now: time.UnixMilli(int64(w.now))}
	v.Peer = func(i ident.InvocationID) (*storepb.Invocation, bool) {
		inv, err := v.row(i)
		return inv, err == nil
	}
	return v
}

func (w *world) find(i ident.InvocationID) *Finding {
	w.t.Helper()
	f, err := w.view().Invocation(i)
	if err != nil || f == nil {
		w.t.Fatalf("examine %s: %v %v", i, f, err)
	}
	return f
}

func commandOf(typ uint16, m interface{ MarshalVT() ([]byte, error) }, callee *invocationpb.Effect_Callee) *invocationpb.Effect {
	raw, err := m.MarshalVT()
	if err != nil {
		panic(err)
	}
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Command_{Command: &invocationpb.Effect_Command{Type: uint32(typ), Raw: raw, Callee: callee}}}
}

func suspend(f *invocationpb.Future) *invocationpb.Effect {
	f.Signals = append(f.Signals, protocol.SignalCancel)
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Suspended_{Suspended: &invocationpb.Effect_Suspended{Awaiting: f}}}
}

func completion(n uint32) *invocationpb.Future { return &invocationpb.Future{Completions: []uint32{n}} }

// situation is an invocation in some state, what the doctor has to say of it, and ways to break it.
type situation struct {
	name   string
	make   func(w *world)
	reason Reason
	text   string
	on     ident.InvocationID
	breaks map[string]func(w *world)
	// wants are what the problem has to say, by break.
	wants map[string]string
}

func (w *world) drop(tag byte) {
	for k := range w.rows.m {
		if k[0] == tag {
			delete(w.rows.m, k)
		}
	}
}

func situations() []situation {
	me, other := id(1), id(2)
	sleep := func(w *world) {
		w.invoke(me, service(), 0)
		w.effects(me, commandOf(protocol.TypeSleep, &protocolpb.SleepCommand{WakeUpTime: w.now + 60_000, ResultCompletionId: 1}, nil), suspend(completion(1)))
	}
	call := func(w *world) {
		w.invoke(me, service(), 0)
		callee := &invocationpb.Effect_Callee{InvocationId: other[:], Target: service()}
		w.effects(me, commandOf(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: "Greeter", HandlerName: "greet", InvocationIdNotificationIdx: 1, ResultCompletionId: 2}, callee), suspend(completion(2)))
	}
	attach := func(w *world) {
		w.invoke(other, service(), 0)
		w.invoke(me, service(), 0)
		w.effects(me, commandOf(protocol.TypeAttachInvocation, &protocolpb.AttachInvocationCommand{
			Target: &protocolpb.AttachInvocationCommand_InvocationId{InvocationId: other.String()}, ResultCompletionId: 1}, nil), suspend(completion(1)))
	}
	promise := func(w *world) {
		w.invoke(me, workflow(), 0)
		w.effects(me, commandOf(protocol.TypeGetPromise, &protocolpb.GetPromiseCommand{Key: "done", ResultCompletionId: 1}, nil), suspend(completion(1)))
	}
	// The sink of me is the 17th of the promise: its row has no room for it.
	popular := func(w *world) {
		for i := range byte(16) {
			id := me
			id[23] = 100 + i
			w.invoke(id, workflow(), 0)
			w.effects(id, commandOf(protocol.TypeGetPromise, &protocolpb.GetPromiseCommand{Key: "done", ResultCompletionId: 1}, nil))
		}
		promise(w)
	}
	queued := func(w *world) {
		w.invoke(other, object(), 0)
		w.invoke(me, object(), 0)
	}
	late := func(w *world) { w.now += 120_000 }
	return []situation{
		{"an open attempt", func(w *world) { w.invoke(me, service(), 0) }, Attempt, "attempt 1 runs", ident.InvocationID{}, map[string]func(*world){
			"forgotten":  func(w *world) { delete(w.attempts, me) },
			"older life": func(w *world) { w.attempts[me] = invokers.Status{ID: me, Incarnation: 999} },
		}, map[string]string{"forgotten": "invoker of partition 3 does not have it", "older life": "incarnation 999"}},
		{"a retry", func(w *world) {
			w.invoke(me, service(), 0)
			w.attempts[me] = invokers.Status{ID: me, Incarnation: w.row(me).Incarnation, RetryCount: 3, NextRetry: time.UnixMilli(int64(w.now) + 5000),
				LastFailure: &invocationpb.Effect_AttemptFailed{Code: 500, Message: "no such host\nstack"}}
		}, Retry, "last failure: [500 Internal] no such host", ident.InvocationID{}, map[string]func(*world){"overdue": late}, map[string]string{"overdue": "retry was due"}},
		{"a slot", func(w *world) {
			w.invoke(me, service(), 0)
			w.attempts[me] = invokers.Status{ID: me, Incarnation: w.row(me).Incarnation, Queued: true}
		}, Slot, "concurrent attempts", ident.InvocationID{}, nil, nil},
		{"a delay", func(w *world) { w.invoke(me, service(), w.now+60_000) }, Timer, "its delay until", ident.InvocationID{}, map[string]func(*world){
			"no timer": func(w *world) { w.drop(keyspace.TagTimer) }, "overdue": late,
		}, map[string]string{"no timer": "no timer for it", "overdue": "timer has not fired"}},
		{"a sleep", sleep, Timer, "its sleep until", ident.InvocationID{}, map[string]func(*world){
			"no timer":    func(w *world) { w.drop(keyspace.TagTimer) },
			"overdue":     late,
			"not awaited": func(w *world) { w.drop(keyspace.TagAwaited) },
			"known": func(w *world) {
				b, err := (&storepb.Awaited{Done: true, Entry: 4}).MarshalVT()
				if err != nil {
					w.t.Fatal(err)
				}
				w.rows.m[string(keyspace.AppendCompletion(nil, &me, 1))] = b
			},
			"awaits nothing": func(w *world) { w.write(me, func(i *storepb.Invocation) { i.Awaiting = nil }) },
			"awaits cancel": func(w *world) {
				w.write(me, func(i *storepb.Invocation) {
					i.Awaiting = &invocationpb.Future{Signals: []uint32{protocol.SignalCancel}}
				})
			},
			"a step": func(w *world) { w.write(me, func(i *storepb.Invocation) { i.Awaiting = completion(9) }) },
		}, map[string]string{"no timer": "no timer for it", "overdue": "timer has not fired", "not awaited": "no command of its journal", "known": "since entry 4",
			"awaits nothing": "waits for nothing", "awaits cancel": "nothing but being cancelled", "a step": "only the service could give"}},
		{"a call", call, Invocation, "its call of Greeter/greet; invocation", other, map[string]func(*world){
			"callee gone": func(w *world) { delete(w.rows.m, string(keyspace.AppendInvocation(nil, &other))) },
			"callee ended": func(w *world) {
				w.write(other, func(i *storepb.Invocation) { i.Status = storepb.Invocation_COMPLETED })
			},
			"callee forgot":         func(w *world) { w.write(other, func(i *storepb.Invocation) { i.Sinks = nil }) },
			"waited in a past life": func(w *world) { w.write(other, func(i *storepb.Invocation) { i.Sinks[0].Life++ }) },
			"journal gone":          func(w *world) { w.drop(keyspace.TagJournal) },
		}, map[string]string{"callee gone": "does not exist", "callee ended": "without its answer", "callee forgot": "does not know that it is waited for",
			"waited in a past life": "does not know that it is waited for", "journal gone": "does not say of which"}},
		{"an attach", attach, Invocation, "the result that it attached to", other, map[string]func(*world){
			"forgotten": func(w *world) { w.write(other, func(i *storepb.Invocation) { i.Sinks = nil }) },
		}, map[string]string{"forgotten": "does not know that it is waited for"}},
		{"a promise", promise, Promise, `the promise "done" of workflow Flow/k`, ident.InvocationID{}, map[string]func(*world){
			"gone": func(w *world) { w.drop(keyspace.TagPromise) },
		}, map[string]string{"gone": "does not know that it is waited for"}},
		{"a promise of many", popular, Promise, `the promise "done" of workflow Flow/k`, ident.InvocationID{}, map[string]func(*world){
			"sink gone": func(w *world) { w.drop(keyspace.TagWaiting) },
		}, map[string]string{"sink gone": "does not know that it is waited for"}},
		{"an awakeable", func(w *world) {
			w.invoke(me, service(), 0)
			w.effects(me, suspend(&invocationpb.Future{Signals: []uint32{17}}))
		}, Signal, "awakeable sign_1", ident.InvocationID{}, nil, nil},
		{"a lock", queued, Lock, "the lock of Counter/k, held by " + other.String(), other, map[string]func(*world){
			"nobody holds it":  func(w *world) { w.drop(keyspace.TagLock) },
			"not in the queue": func(w *world) { w.drop(keyspace.TagInbox) },
			"holder ended": func(w *world) {
				w.write(other, func(i *storepb.Invocation) { i.Status = storepb.Invocation_COMPLETED })
			},
			"holder gone":       func(w *world) { delete(w.rows.m, string(keyspace.AppendInvocation(nil, &other))) },
			"holder of another": func(w *world) { w.write(other, func(i *storepb.Invocation) { i.Target.Key = "other" }) },
			"passed": func(w *world) {
				o := objectOf(me, object())
				b, err := (&storepb.Lock{Holder: other[:], Queued: 1, Next: 99}).MarshalVT()
				if err != nil {
					w.t.Fatal(err)
				}
				w.rows.m[string(keyspace.AppendLock(nil, &o))] = b
			},
		}, map[string]string{"nobody holds it": "nobody holds", "not in the queue": "not in the queue", "holder ended": "which is COMPLETED", "holder gone": "which does not exist",
			"holder of another": "another object's", "passed": "has passed its place"}},
		{"its own object", func(w *world) { w.invoke(me, object(), 0) }, Attempt, "attempt 1 runs", ident.InvocationID{}, map[string]func(*world){
			"lock lost": func(w *world) { w.drop(keyspace.TagLock) },
		}, map[string]string{"lock lost": "does not hold the lock of Counter/k"}},
		{"an operator", func(w *world) {
			w.invoke(me, service(), 0)
			w.effects(me, &invocationpb.Effect{Kind: &invocationpb.Effect_Paused_{Paused: &invocationpb.Effect_Paused{
				LastFailure: &invocationpb.Effect_AttemptFailed{Code: 570, Message: "journal mismatch"}}}})
		}, Operator, "it was paused after [570] journal mismatch", ident.InvocationID{}, nil, nil},
		{"its retention", func(w *world) {
			w.invoke(me, service(), 0)
			w.effects(me, &invocationpb.Effect{Kind: &invocationpb.Effect_Failed_{Failed: &invocationpb.Effect_Failed{Failure: &invocationpb.Failure{Code: 500}}}})
		}, Retention, "kept for its retention", ident.InvocationID{}, map[string]func(*world){
			"never ends": func(w *world) { w.drop(keyspace.TagExpiry) },
		}, map[string]string{"never ends": "kept for ever"}},
		{"a status that is none", func(w *world) { w.invoke(me, service(), 0) }, Attempt, "", ident.InvocationID{}, map[string]func(*world){
			"odd": func(w *world) { w.write(me, func(i *storepb.Invocation) { i.Status = 99 }) },
		}, map[string]string{"odd": "none that can be stored"}},
	}
}

// TestFindings has each situation explained, and each way to break it reported.
func TestFindings(t *testing.T) {
	for _, s := range situations() {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t)
			s.make(w)
			f := w.find(id(1))
			if f.Problem != "" {
				t.Fatalf("problem %q where all is well", f.Problem)
			}
			if len(f.Waits) != 1 || f.Waits[0].Reason != s.reason || !strings.Contains(f.Waits[0].Text, s.text) || f.Waits[0].On != s.on {
				t.Fatalf("waits %+v, want one for %s that says %q, on %s", f.Waits, s.reason, s.text, s.on)
			}
			w.wantSummary(0)
			for name, broken := range s.breaks {
				t.Run(name, func(t *testing.T) {
					w := newWorld(t)
					s.make(w)
					broken(w)
					f := w.find(id(1))
					if want := s.wants[name]; want == "" || !strings.Contains(f.Problem, want) {
						t.Errorf("problem %q, want it to say %q", f.Problem, want)
					}
					w.wantSummary(1)
				})
			}
		})
	}
}

// wantSummary checks that a summary has at least so many problems, and none if that is 0.
func (w *world) wantSummary(least int) {
	w.t.Helper()
	s, err := w.view().Summary()
	if err != nil {
		w.t.Fatal(err)
	}
	if s.Total < least || least == 0 && s.Total > 0 {
		w.t.Errorf("the summary has %d problems %+v, want %d or more", s.Total, s.Problems, least)
	}
}

// TestUnknownInvocation finds nothing where there is nothing.
func TestUnknownInvocation(t *testing.T) {
	if f, err := newWorld(t).view().Invocation(id(9)); f != nil || err != nil {
		t.Errorf("found %v %v", f, err)
	}
}

// TestPeers believes that what cannot be looked up is well, and that a request that is still to be delivered will arrive.
func TestPeers(t *testing.T) {
	w := newWorld(t)
	other := id(2)
	w.invoke(id(1), service(), 0)
	callee := &invocationpb.Effect_Callee{InvocationId: other[:], Target: service()}
	w.effects(id(1), commandOf(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: "Greeter", HandlerName: "greet", InvocationIdNotificationIdx: 1, ResultCompletionId: 2}, callee), suspend(completion(2)))
	delete(w.rows.m, string(keyspace.AppendInvocation(nil, &other)))
	v := w.view()
	v.Peer = func(ident.InvocationID) (*storepb.Invocation, bool) { return nil, false }
	if f, err := v.Invocation(id(1)); err != nil || f.Problem != "" {
		t.Errorf("a callee that cannot be looked up: %v %v", f, err)
	}
	b, err := (&recordpb.Command{Kind: &recordpb.Command_Invoke{Invoke: &invocationpb.Invocation{Id: other[:], Target: service()}}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	w.rows.m[string(keyspace.AppendOutbox(nil, 5))] = b
	if f := w.find(id(1)); f.Problem != "" {
		t.Errorf("a callee whose request is in the outbox: %q", f.Problem)
	}
}

// TestLocks reports locks that no waiting invocation shows.
func TestLocks(t *testing.T) {
	o := objectOf(id(1), object())
	put := func(w *world, l *storepb.Lock) {
		b, err := l.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		w.rows.m[string(keyspace.AppendLock(nil, &o))] = b
	}
	i1, i9 := id(1), id(9)
	for name, broken := range map[string]func(w *world){
		"held by nobody":   func(w *world) { put(w, &storepb.Lock{Holder: i9[:]}) },
		"no valid holder":  func(w *world) { put(w, &storepb.Lock{Holder: []byte("x")}) },
		"miscounted queue": func(w *world) { put(w, &storepb.Lock{Holder: i1[:], Queued: 2}) },
		"queue without lock": func(w *world) {
			b, err := (&storepb.Inboxed{Patch: &storepb.StatePatch{}}).MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			other := o
			other.Key = "free"
			w.rows.m[string(keyspace.AppendInbox(nil, &other, 3))] = b
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.invoke(id(1), object(), 0)
			w.wantSummary(0)
			broken(w)
			w.wantSummary(1)
		})
	}
}

// TestChain follows who waits for whom, and finds that a call of the own object never ends.
func TestChain(t *testing.T) {
	w := newWorld(t)
	holder, inner, waiting := id(1), id(2), id(3)
	w.invoke(holder, object(), 0)
	w.invoke(waiting, object(), 0)
	f := w.find(waiting)
	chain, cycle, err := Chain(f, func(i ident.InvocationID) (*Finding, error) { return w.view().Invocation(i) })
	if err != nil || len(chain) != 2 || chain[1].ID != holder || !cycle.IsZero() {
		t.Fatalf("chain %v, cycle %s, %v", chain, cycle, err)
	}
	callee := &invocationpb.Effect_Callee{InvocationId: inner[:], Target: object()}
	w.effects(holder, commandOf(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: "Counter", HandlerName: "add", Key: "k", InvocationIdNotificationIdx: 1, ResultCompletionId: 2}, callee), suspend(completion(2)))
	chain, cycle, err = Chain(w.find(waiting), func(i ident.InvocationID) (*Finding, error) { return w.view().Invocation(i) })
	if err != nil || cycle != holder {
		t.Fatalf("chain of %d, cycle %s, %v; want the holder %s to wait for itself", len(chain), cycle, err, holder)
	}
	s, err := w.view().Summary()
	if err != nil || len(s.Contended) != 1 || s.Contended[0] != holder {
		t.Errorf("contended %v, %v, want the holder", s.Contended, err)
	}
}

// TestSummary counts and bounds what it keeps.
func TestSummary(t *testing.T) {
	w := newWorld(t)
	for n := range MaxProblems + 20 {
		i := ident.NewInvocationID(7, [16]byte{14: byte(n >> 8), 15: byte(n)})
		w.invoke(i, service(), 0)
		if n >= 5 {
			delete(w.attempts, i)
		}
	}
	s, err := w.view().Summary()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(s.Statuses[storepb.Invocation_INVOKED], s.Reasons[Attempt], s.Total, len(s.Problems))
	if want := fmt.Sprint(MaxProblems+20, 5, MaxProblems+15, MaxProblems); got != want {
		t.Errorf("statuses, reasons, total, kept: %s, want %s", got, want)
	}
}

// TestSame tells a wait that lasts from one that has moved on.
func TestSame(t *testing.T) {
	w := newWorld(t)
	w.invoke(id(1), service(), 0)
	delete(w.attempts, id(1))
	a, b := w.find(id(1)), w.find(id(1))
	if !Same(a, b) {
		t.Error("two looks at one moment differ")
	}
	b.Incarnation++
	if Same(a, b) {
		t.Error("another incarnation is the same wait")
	}
}

// TestCorruptRows are errors, not findings.
func TestCorruptRows(t *testing.T) {
	w := newWorld(t)
	w.invoke(id(1), service(), 0)
	i := id(1)
	w.rows.m[string(keyspace.AppendInvocation(nil, &i))] = []byte{0xff}
	if _, err := w.view().Invocation(id(1)); err == nil {
		t.Error("a row that cannot be decoded was examined")
	}
	if _, err := w.view().Summary(); err == nil {
		t.Error("a row that cannot be decoded was summed up")
	}
}
