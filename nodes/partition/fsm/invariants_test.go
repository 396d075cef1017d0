package fsm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"perdure/control/ident"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// tables is everything in a store, decoded.
type tables struct {
	invocations map[ident.InvocationID]*storepb.Invocation
	journals    map[ident.InvocationID][]keyspace.Entry
	awaited     map[ident.InvocationID]int
	sinks       map[ident.InvocationID]int
	completions map[ident.InvocationID]map[uint32]*storepb.Awaited
	events      map[ident.InvocationID]int
	outputs     map[ident.InvocationID]bool
	locks       map[keyspace.Object]*storepb.Lock
	inbox       map[keyspace.Object]map[uint64]*storepb.Inboxed
	timers      map[keyspace.TimerKey]bool
	expiry      map[keyspace.ExpiryKey]bool
	outbox      []uint64
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func decodeInto[T message](v []byte, m T) T {
	if err := m.UnmarshalVT(v); err != nil {
		panic(err)
	}
	return m
}

func readTables(txn *memTxn) *tables {
	t := &tables{
		invocations: map[ident.InvocationID]*storepb.Invocation{}, journals: map[ident.InvocationID][]keyspace.Entry{},
		awaited: map[ident.InvocationID]int{}, sinks: map[ident.InvocationID]int{}, completions: map[ident.InvocationID]map[uint32]*storepb.Awaited{},
		events: map[ident.InvocationID]int{}, outputs: map[ident.InvocationID]bool{},
		locks: map[keyspace.Object]*storepb.Lock{}, inbox: map[keyspace.Object]map[uint64]*storepb.Inboxed{},
		timers: map[keyspace.TimerKey]bool{}, expiry: map[keyspace.ExpiryKey]bool{},
	}
	keys := make([]string, 0, len(txn.rows))
	for k := range txn.rows {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		t.add([]byte(k), txn.rows[k])
	}
	return t
}

func (t *tables) add(key, v []byte) {
	switch key[0] {
	case keyspace.TagInvocation:
		t.invocations[must(keyspace.InvocationOf(key))] = decodeInto(v, new(storepb.Invocation))
	case keyspace.TagJournal:
		id := must(keyspace.InvocationOf(key))
		if i := must(keyspace.JournalIndex(key)); int(i) != len(t.journals[id]) {
			panic(fmt.Sprintf("the journal of %s has entry %d after %d entries", id, i, len(t.journals[id])))
		}
		t.journals[id] = append(t.journals[id], must(keyspace.EntryOf(v)))
	case keyspace.TagAwaited:
		id := must(keyspace.InvocationOf(key))
		t.awaited[id]++
		if c, ok := keyspace.CompletionOf(key); ok {
			if t.completions[id] == nil {
				t.completions[id] = map[uint32]*storepb.Awaited{}
			}
			t.completions[id][c] = decodeInto(v, new(storepb.Awaited))
		}
	case keyspace.TagEvent:
		t.events[must(keyspace.InvocationOf(key))]++
	case keyspace.TagSink:
		id := must(keyspace.InvocationOf(key))
		must(keyspace.SinkOf(key[len(keyspace.AppendSinkPrefix(nil, &id)):]))
		t.sinks[id]++
	case keyspace.TagOutput:
		t.outputs[must(keyspace.InvocationOf(key))] = true
	case keyspace.TagLock:
		o, _, err := keyspace.ObjectOf(key)
		t.locks[must(o, err)] = decodeInto(v, new(storepb.Lock))
	case keyspace.TagInbox:
		o, seq, err := keyspace.InboxOf(key)
		must(0, err)
		if t.inbox[o] == nil {
			t.inbox[o] = map[uint64]*storepb.Inboxed{}
		}
		t.inbox[o][seq] = decodeInto(v, new(storepb.Inboxed))
	case keyspace.TagTimer:
		t.timers[must(keyspace.TimerOf(key))] = true
	case keyspace.TagExpiry:
		t.expiry[must(keyspace.ExpiryOf(key))] = true
	case keyspace.TagOutbox:
		t.outbox = append(t.outbox, must(keyspace.OutboxIndex(key)))
	}
}

// check returns what is inconsistent.
func (t *tables) check(c *storepb.Counters) (bad []string) {
	complain := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	timers := len(t.timers)
	expiry := 0
	for id, inv := range t.invocations {
		n, e := t.checkInvocation(id, inv, complain)
		timers -= n
		expiry += e
	}
	if timers != 0 {
		complain("%d timers belong to nobody", timers)
	}
	if expiry != len(t.expiry) {
		complain("%d rows in the expiry index, want %d", len(t.expiry), expiry)
	}
	for _, m := range []map[ident.InvocationID]int{t.awaited, t.events, t.sinks} {
		for id := range m {
			if t.invocations[id] == nil {
				complain("%d rows of %s are left", m[id], id)
			}
		}
	}
	for id := range t.journals {
		if t.invocations[id] == nil {
			complain("the journal of %s is left", id)
		}
	}
	for id := range t.outputs {
		if inv := t.invocations[id]; inv == nil || !inv.OutputKept {
			complain("the output of %s is left", id)
		}
	}
	t.checkLocks(complain)
	for i, index := range t.outbox {
		if index != c.OutboxHead+uint64(i) {
			complain("outbox index %d at place %d behind head %d", index, i, c.OutboxHead)
		}
	}
	if uint64(len(t.outbox)) != c.OutboxNext-c.OutboxHead {
		complain("%d messages between %d and %d", len(t.outbox), c.OutboxHead, c.OutboxNext)
	}
	return bad
}

func (t *tables) checkInvocation(id ident.InvocationID, inv *storepb.Invocation, complain func(string, ...any)) (timers, expiry int) {
	journal := t.journals[id]
	commands, seen := 0, map[uint32]bool{}
	for i, e := range journal {
		if !protocol.IsNotification(e.Type) {
			commands++
		} else if n := protocol.IdentifyNotification(e.Raw); n.Kind == protocol.ByCompletion {
			if seen[n.Number] {
				complain("%s: completion %d has two results", id, n.Number)
			}
			seen[n.Number] = true
		}
		if (e.Type == protocol.TypeInput) != (i == 0) {
			complain("%s: entry %d is %s", id, i, protocol.Name(e.Type))
		}
	}
	if len(journal) != int(inv.Entries) || commands != int(inv.Commands) {
		complain("%s: %d entries, %d commands; the row says %d, %d", id, len(journal), commands, inv.Entries, inv.Commands)
	}
	if t.awaited[id] != int(inv.Awaited) || t.events[id] != min(int(inv.Events), maxEvents) {
		complain("%s: %d awaited, %d events; the row says %d, %d", id, t.awaited[id], t.events[id], inv.Awaited, inv.Events)
	}
	sleeping := 0
	for n, a := range t.completions[id] {
		if a.Done != seen[n] {
			complain("%s: completion %d: known as done %v, in the journal %v", id, n, a.Done, seen[n])
		}
		if !a.Done && a.FireAtMs > 0 {
			sleeping++
			if !t.timers[keyspace.TimerKey{FireAtMs: a.FireAtMs, Kind: keyspace.TimerSleep, ID: id, CompletionID: n}] {
				complain("%s: sleep %d has no timer", id, n)
			}
		}
	}
	if sleeping != int(inv.Timers) {
		complain("%s: %d sleeps, the row says %d", id, sleeping, inv.Timers)
	}
	timers = sleeping
	inFlight := false
	switch inv.Status {
	case storepb.Invocation_SCHEDULED:
		timers++
		if !t.timers[keyspace.TimerKey{FireAtMs: inv.ExecutionTimeMs, Kind: keyspace.TimerInvoke, ID: id}] {
			complain("%s is scheduled without a timer", id)
		}
	case storepb.Invocation_INBOXED:
		b := t.inbox[object(&id, inv.Target)][inv.InboxSequence]
		if b == nil || !bytes.Equal(b.InvocationId, id[:]) {
			complain("%s is not in the inbox at %d", id, inv.InboxSequence)
		}
	case storepb.Invocation_COMPLETED:
		expiry++
		if inv.JournalRetentionMs > 0 && inv.JournalRetentionMs < inv.CompletionRetentionMs && inv.Entries > 0 {
			expiry++
		}
		if inv.Awaited != 0 || len(inv.Sinks) != 0 || inv.MoreSinks != 0 || inv.Awaiting != nil {
			complain("%s is completed and still waits: %v", id, inv)
		}
		if inv.Failure == nil && inv.Output == 0 && !inv.OutputKept {
			complain("%s is completed without a result", id)
		}
	case storepb.Invocation_SUSPENDED:
		inFlight = true
		for _, n := range inv.Awaiting.GetCompletions() {
			if a := t.completions[id][n]; a != nil && a.Done {
				complain("%s: a lost wake-up: completion %d is there", id, n)
			}
		}
	case storepb.Invocation_INVOKED, storepb.Invocation_PAUSED:
		inFlight = true
	default:
		complain("%s has status %s", id, inv.Status)
	}
	if n := t.sinks[id]; n != int(inv.MoreSinks) {
		complain("%s has %d rows of sinks, its status row says %d", id, n, inv.MoreSinks)
	}
	if inv.PauseRequested && inv.Status != storepb.Invocation_INVOKED {
		complain("%s is %s and is to be paused", id, inv.Status)
	}
	if exclusive(inv.Target) {
		l := t.locks[object(&id, inv.Target)]
		if holds := l != nil && bytes.Equal(l.Holder, id[:]); holds != inFlight {
			complain("%s is %s and holds its object: %v", id, inv.Status, holds)
		}
	}
	return timers, expiry
}

func (t *tables) checkLocks(complain func(string, ...any)) {
	for o, l := range t.locks {
		if t.invocations[ident.InvocationID(l.Holder)] == nil {
			complain("%s/%s is held by nobody", o.Service, o.Key)
		}
		if len(t.inbox[o]) != int(l.Queued) {
			complain("%d wait for %s/%s, its lock says %d", len(t.inbox[o]), o.Service, o.Key, l.Queued)
		}
		for seq := range t.inbox[o] {
			if seq < l.Next {
				complain("%s/%s: %d waits below %d", o.Service, o.Key, seq, l.Next)
			}
		}
	}
	for o, in := range t.inbox {
		if t.locks[o] == nil {
			complain("%d wait for %s/%s, which is free", len(in), o.Service, o.Key)
		}
		for seq, b := range in {
			if b.Patch != nil {
				continue
			}
			if inv := t.invocations[ident.InvocationID(b.InvocationId)]; inv.GetStatus() != storepb.Invocation_INBOXED || inv.InboxSequence != seq {
				complain("%x in an inbox at %d has %v", b.InvocationId, seq, inv)
			}
		}
	}
}

// oracle watches the outside: what a machine that must not be trusted asks for.
type oracle struct {
	t        *testing.T
	asked    map[[16]byte]bool // requests that wait for a result
	answered map[[16]byte]int
	run      map[ident.InvocationID]uint64 // running incarnation
}

func (o *oracle) watch(m *Machine, c *recordpb.Command, as []Action) {
	for _, a := range as {
		switch a.Kind {
		case ActReply:
			if a.Reply.Result != nil {
				o.answered[a.RequestID]++
			}
		case ActInvoke:
			o.t.Helper()
			if old := o.run[a.ID]; a.Incarnation <= old {
				o.t.Errorf("%s: incarnation %d after %d", a.ID, a.Incarnation, old)
			}
			o.run[a.ID] = a.Incarnation
			if a.Service == "" {
				o.t.Errorf("%s is to run, of which service is not said", a.ID)
			}
		case ActNotify:
			if a.Incarnation != o.run[a.ID] {
				o.t.Errorf("%s: a notification for incarnation %d, running is %d", a.ID, a.Incarnation, o.run[a.ID])
			}
		}
	}
}

// Random logs keep the tables consistent, answer each request once, and end with nothing left over.
func TestRandomLogsKeepTheInvariants(t *testing.T) {
	seeds := 20
	if testing.Short() {
		seeds = 5
	}
	base := rand.Uint64()
	t.Logf("seeds %d and the following", base)
	for i := range seeds {
		if !randomLog(t, base+uint64(i)) {
			t.Fatalf("seed %d", base+uint64(i))
		}
	}
}

func randomLog(t *testing.T, seed uint64) bool {
	w := newWorld(t)
	p := newProgram(seed)
	o := &oracle{t: t, asked: map[[16]byte]bool{}, answered: map[[16]byte]int{}, run: map[ident.InvocationID]uint64{}}
	step := func(c *recordpb.Command) {
		as := w.apply(c)
		p.see(as)
		o.watch(w.m, c, as)
	}
	for i := range 400 {
		c, at := p.next()
		w.now = at
		if x := c.GetInvoke(); x != nil && x.Sink.GetRequestId() != nil {
			o.asked[[16]byte(x.Sink.RequestId)] = true
		}
		step(c)
		if i%7 == 0 || i == 399 {
			if bad := readTables(w.txn).check(&w.m.counters.row); len(bad) > 0 {
				t.Errorf("seed %d, after command %d: %v", seed, i, bad)
				return false
			}
		}
	}
	// Kill everything, deliver everything, let all retentions end: nothing may be left.
	for range 1000 {
		for len(p.messages) > 0 {
			m := p.messages[0]
			p.messages = p.messages[1:]
			step(delivered(m))
		}
		left := readTables(w.txn).invocations
		if len(left) == 0 {
			break
		}
		ids := make([]ident.InvocationID, 0, len(left))
		for id := range left {
			ids = append(ids, id)
		}
		slices.SortFunc(ids, func(a, b ident.InvocationID) int { return bytes.Compare(a[:], b[:]) })
		w.now += 1000
		for _, id := range ids {
			step(kill(id))
			step(purge(id, false, false))
		}
	}
	if bad := readTables(w.txn).check(&w.m.counters.row); len(bad) > 0 {
		t.Errorf("seed %d, at the end: %v", seed, bad)
	}
	w.wantEmpty(invocationTables...)
	w.wantEmpty(keyspace.TagLock, keyspace.TagInbox)
	for id := range o.asked {
		if n := o.answered[id]; n != 1 {
			t.Errorf("seed %d: request %s has %d answers", seed, id[:], n)
		}
	}
	return !t.Failed()
}
