package keyspace

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/storepb"
)

func testID(b byte) (id ident.InvocationID) {
	for i := range id {
		id[i] = b + byte(i)
	}
	return id
}

var counter = Object{Partition: 0x0102030405060708, Service: "Counter", Key: "k"}

// The keys are a disk format: a change needs a migration.
func TestKeysAreGolden(t *testing.T) {
	id := testID(0x10)
	const idHex = "101112131415161718191a1b1c1d1e1f2021222324252627"
	const objectHex = "0102030405060708" + "0007" + "436f756e746572" + "00000001" + "6b"
	sink := func(prefix []byte) []byte {
		key, err := AppendSink(prefix, &invocationpb.Sink{RequestId: []byte("r"), Life: 2})
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"sink":               {sink(AppendSinkPrefix(nil, &id)), "6b" + idHex + "1a0172" + "2002"},
		"sink of a promise":  {sink(AppendPromiseSinkPrefix(nil, &counter, "p")), "71" + objectHex + "00000001" + "70" + "1a0172" + "2002"},
		"applied LSN":        {AppendMeta(nil, MetaApplied), "6d61"},
		"counters":           {AppendMeta(nil, MetaCounters), "6d63"},
		"leader":             {AppendMeta(nil, MetaLeader), "6d6c"},
		"durability":         {AppendMeta(nil, MetaDurability), "6d64"},
		"barrier":            {AppendMeta(nil, MetaBarrier), "6d62"},
		"producer self":      {AppendSelfProducer(nil), "6473"},
		"producer partition": {AppendPartitionProducer(nil, 0x01020304), "647001020304"},
		"producer other":     {AppendOtherProducer(nil, "kafka"), "646f6b61666b61"},
		"invocation":         {AppendInvocation(nil, &id), "69" + idHex},
		"journal":            {AppendJournal(nil, &id, 0x01020304), "6a" + idHex + "01020304"},
		"completion":         {AppendCompletion(nil, &id, 5), "61" + idHex + "6300000005"},
		"signal":             {AppendSignal(nil, &id, 17), "61" + idHex + "6900000011"},
		"named signal":       {AppendNamedSignal(nil, &id, "go"), "61" + idHex + "6e676f"},
		"output":             {AppendOutput(nil, &id), "76" + idHex},
		"event":              {AppendEvent(nil, &id, 2), "65" + idHex + "00000002"},
		"state":              {AppendState(nil, &counter, []byte("a")), "73" + objectHex + "61"},
		"lock":               {AppendLock(nil, &counter), "6c" + objectHex},
		"inbox":              {AppendInbox(nil, &counter, 9), "62" + objectHex + "0000000000000009"},
		"promise":            {AppendPromise(nil, &counter, "p"), "70" + objectHex + "70"},
		"timer":              {AppendTimer(nil, &TimerKey{FireAtMs: 0x0102030405060708, Kind: TimerSleep, ID: id, CompletionID: 3}), "74" + "0102030405060708" + "01" + idHex + "00000003"},
		"expiry":             {AppendExpiry(nil, &ExpiryKey{AtMs: 7, ID: id}), "78" + "0000000000000007" + "01" + idHex},
		"journal expiry":     {AppendExpiry(nil, &ExpiryKey{AtMs: 7, ID: id, JournalOnly: true}), "78" + "0000000000000007" + "02" + idHex},
		"outbox":             {AppendOutbox(nil, 0x0102), "6f" + "0000000000000102"},
		"entry":              {AppendEntry(nil, &Entry{Type: 0x0401, AppendedAtMs: 0x0102, Raw: []byte{9, 8}}), "0401" + "0000000000000102" + "0908"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is %s, want %s", name, got, c.want)
		}
	}
}

// The rows are a disk format too.
func TestRowsAreGolden(t *testing.T) {
	id := testID(1)
	idempotency := "ik"
	target := &invocationpb.Target{Service: "Counter", Handler: "add", Key: "k", ServiceType: 2, HandlerType: 2}
	failure := &invocationpb.Failure{Code: 409, Message: "killed"}
	type row interface {
		MarshalVT() ([]byte, error)
	}
	for name, c := range map[string]struct {
		row  row
		want string
	}{
		"invocation": {&storepb.Invocation{
			Status: storepb.Invocation_SUSPENDED, Incarnation: 2, Life: 3, Target: target,
			Source: &invocationpb.Source{Kind: invocationpb.Source_SERVICE, InvocationId: id[:2]},
			Sinks:  []*invocationpb.Sink{{Caller: id[:2], CompletionId: 4, Life: 5}}, RequestId: []byte("r"), IdempotencyKey: &idempotency,
			CompletionRetentionMs: 9, JournalRetentionMs: 10, DeploymentId: []byte("d"), ProtocolVersion: 6,
			Entries: 13, Commands: 14, Replayed: 15, Output: 16, Awaited: 17, Timers: 18, Events: 19,
			CreatedAtMs: 20, ModifiedAtMs: 21, ScheduledAtMs: 22, InboxedAtMs: 23, RunningAtMs: 24, CompletedAtMs: 25, ExecutionTimeMs: 26,
			InboxSequence: 27, Awaiting: &invocationpb.Future{Completions: []uint32{1}, Signals: []uint32{1}},
			TraceParent: "tp", TraceState: "ts", LimitKey: "l", Failure: failure, OutputKept: true, PauseRequested: true, MoreSinks: 5, HighestCompletion: 6,
		}, "0804" + "1002" + "1803" + "2215" + "0a07436f756e746572" + "1203616464" + "1a016b" + "2002" + "2802" +
			"2a06" + "0801" + "12020102" + "3208" + "0a020102" + "1004" + "2005" + "3a0172" + "4202696b" + "4809" + "500a" + "5a0164" + "6006" +
			"680d" + "700e" + "780f" + "800110" + "880111" + "900112" + "980113" +
			"a00114" + "a80115" + "b00116" + "b80117" + "c00118" + "c80119" + "d0011a" + "d8011b" + "e20106" + "0a0101" + "120101" +
			"ea01027470" + "f201027473" + "fa01016c" + "82020b" + "0899031206" + "6b696c6c6564" + "880201" + "900201" + "980205" + "a00206"},
		"awaited pending": {&storepb.Awaited{Type: 0x800c, FireAtMs: 7}, "108c8002" + "1807"},
		"awaited done":    {&storepb.Awaited{Done: true, Entry: 4, Failed: true}, "0801" + "2004" + "2801"},
		"output":          {&storepb.Output{Value: []byte("v")}, "0a0176"},
		"lock":            {&storepb.Lock{Holder: id[:2], Queued: 2, Next: 3, AcquiredAtMs: 4}, "0a020102" + "1002" + "1803" + "2004"},
		"inboxed":         {&storepb.Inboxed{InvocationId: id[:2], CreatedAtMs: 5}, "0a020102" + "1805"},
		"inboxed patch":   {&storepb.Inboxed{Patch: &storepb.StatePatch{Version: &idempotency, State: []*storepb.StateEntry{{Key: []byte("a"), Value: []byte("b")}}}}, "120c" + "0a02696b" + "1206" + "0a0161" + "120162"},
		"promise":         {&storepb.Promise{Result: &invocationpb.Result{Kind: &invocationpb.Result_Failure{Failure: failure}}}, "0a0d" + "120b" + "08990312066b696c6c6564"},
		"promise awaited": {&storepb.Promise{Sinks: []*invocationpb.Sink{{Caller: id[:2], CompletionId: 3, Life: 4}}, MoreSinks: 5}, "1208" + "0a020102" + "1003" + "2004" + "1805"},
		"event":           {&storepb.Event{AfterEntry: 1, AppendedAtMs: 2, Kind: &storepb.Event_TransientError{TransientError: &invocationpb.Effect_AttemptFailed{Code: 500}}}, "0801" + "1002" + "1a03" + "08f403"},
		"counters":        {&storepb.Counters{OutboxNext: 1, OutboxHead: 2, InboxNext: 3}, "0801" + "1002" + "1803"},
		"leader":          {&storepb.Leader{Epoch: 1, NodeId: 2, NodeGeneration: 3, ConfigVersion: 4, ReplicaSets: []byte("r"), Lsn: 6}, "0801" + "1002" + "1803" + "2004" + "2a0172" + "3006"},
		"durability":      {&storepb.Durability{DurableLsn: 1, AtMs: 2}, "0801" + "1002"},
		"barrier":         {&storepb.Barrier{MinVersion: "1", Features: []string{"f"}, Lsn: 3}, "0a0131" + "120166" + "1803"},
		"producer":        {&storepb.Producer{Epoch: 1, Sequence: 2}, "0801" + "1002"},
	} {
		raw, err := c.row.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(raw); got != c.want {
			t.Errorf("%s is\n%s, want\n%s", name, got, c.want)
		}
	}
}

// What a leader passes over at its start without decoding it is never an invocation that is to run.
func TestMayBeInvoked(t *testing.T) {
	for n := range storepb.Invocation_Status_name {
		for _, inv := range []*storepb.Invocation{{}, {Incarnation: 1, Life: 8, Entries: 3}, {RequestId: []byte{8, 3}, CreatedAtMs: 1}} {
			inv.Status = storepb.Invocation_Status(n)
			raw, err := inv.MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			if got, want := MayBeInvoked(raw), inv.Status == storepb.Invocation_INVOKED; got != want && inv.Status != storepb.Invocation_FREE {
				t.Errorf("%s: %v", inv, got)
			}
		}
	}
	if !MayBeInvoked(nil) || !MayBeInvoked([]byte{0x10, 1, 0x08, 4}) {
		t.Error("a row whose status is not its first field is passed over")
	}
}

func TestAppliedRow(t *testing.T) {
	raw := AppendApplied(nil, 7, 258)
	if got := hex.EncodeToString(raw); got != "0000000000000007"+"0000000000000102" {
		t.Errorf("the row is %s", got)
	}
	for _, c := range []struct {
		row    []byte
		lsn    cluster.LSN
		latest uint64
		ok     bool
	}{{raw, 7, 258, true}, {raw[:8], 7, 0, true}, {raw[:9], 0, 0, false}, {nil, 0, 0, false}, {append(raw, 0), 0, 0, false}} {
		lsn, latest, err := AppliedOf(c.row)
		if lsn != c.lsn || latest != c.latest || (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %d, %d, %v", c.row, lsn, latest, err)
		}
	}
}

func TestOrderOfKeysIsThatOfTheTables(t *testing.T) {
	id, id2 := testID(1), testID(2)
	ordered := [][]byte{
		AppendTimer(nil, &TimerKey{FireAtMs: 1, Kind: TimerInvoke, ID: id2}),
		AppendTimer(nil, &TimerKey{FireAtMs: 2, Kind: TimerSleep, ID: id, CompletionID: 255}),
		AppendTimer(nil, &TimerKey{FireAtMs: 2, Kind: TimerSleep, ID: id, CompletionID: 256}),
		AppendTimer(nil, &TimerKey{FireAtMs: 256, Kind: TimerSleep, ID: id}),
		AppendExpiry(nil, &ExpiryKey{AtMs: 255, ID: id2}),
		AppendExpiry(nil, &ExpiryKey{AtMs: 256, ID: id}),
	}
	if !slices.IsSortedFunc(ordered, bytes.Compare) {
		t.Fatalf("%x", ordered)
	}
}

// The rows of one object are a range that has no row of another.
func TestObjectsDoNotMix(t *testing.T) {
	objects := []Object{
		{1, "A", ""}, {1, "A", "B"}, {1, "AB", ""}, {1, "A", "BC"}, {1, "", "AB"}, {2, "A", "B"}, {1, "A", "\x00"}, {1, "A", "B\xff"},
	}
	for i, a := range objects {
		prefix := AppendStatePrefix(nil, &a)
		end := PrefixEnd(nil, prefix)
		for j, b := range objects {
			key := AppendState(nil, &b, []byte("x"))
			inside := bytes.Compare(key, prefix) >= 0 && bytes.Compare(key, end) < 0
			if inside != (i == j) {
				t.Errorf("%+v in the range of %+v: %v", b, a, inside)
			}
		}
	}
}

func TestPrefixEnd(t *testing.T) {
	for in, want := range map[string]string{"a": "b", "a\xff": "b", "a\xff\xff": "b", "a\x00": "a\x01"} {
		if got := PrefixEnd([]byte("dst"), []byte(in)); string(got) != "dst"+want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestExpiryDoesNotOverflow(t *testing.T) {
	if ExpiresAt(10, 5) != 15 || ExpiresAt(10, 1<<64-1) != 1<<64-1 {
		t.Fatal(ExpiresAt(10, 5), ExpiresAt(10, 1<<64-1))
	}
}

// Whatever bytes a damaged store returns, reading them ends in an error or in a key that encodes to the same.
func FuzzKeys(f *testing.F) {
	id := testID(3)
	f.Add(AppendTimer(nil, &TimerKey{FireAtMs: 1, Kind: TimerSleep, ID: id}))
	f.Add(AppendExpiry(nil, &ExpiryKey{AtMs: 1, ID: id, JournalOnly: true}))
	f.Add(AppendInbox(nil, &counter, 1))
	f.Add(AppendCompletion(nil, &id, 1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, key []byte) {
		same := func(tag byte, again []byte) {
			t.Helper()
			if len(key) == 0 || key[0] != tag {
				return
			}
			if !bytes.Equal(again, key) {
				t.Fatalf("%x is read as %x", key, again)
			}
		}
		if k, err := TimerOf(key); err == nil {
			same(TagTimer, AppendTimer(nil, &k))
		}
		if k, err := ExpiryOf(key); err == nil {
			same(TagExpiry, AppendExpiry(nil, &k))
		}
		if o, seq, err := InboxOf(key); err == nil {
			same(TagInbox, AppendInbox(nil, &o, seq))
		}
		if o, rest, err := ObjectOf(key); err == nil {
			same(TagState, AppendState(nil, &o, rest))
		}
		if i, err := OutboxIndex(key); err == nil {
			same(TagOutbox, AppendOutbox(nil, i))
		}
		if id, err := InvocationOf(key); err == nil {
			if n, err := JournalIndex(key); err == nil {
				same(TagJournal, AppendJournal(nil, &id, n))
			}
			if n, ok := CompletionOf(key); ok {
				same(TagAwaited, AppendCompletion(nil, &id, n))
			}
		}
	})
}

func FuzzRows(f *testing.F) {
	f.Add(AppendEntry(nil, &Entry{Type: 1, AppendedAtMs: 2, Raw: []byte("raw")}))
	raw, _ := (&storepb.Invocation{Status: storepb.Invocation_COMPLETED, Output: 1}).MarshalVT()
	f.Add(raw)
	f.Fuzz(func(t *testing.T, v []byte) {
		if e, err := EntryOf(v); err == nil && !bytes.Equal(AppendEntry(nil, &e), v) {
			t.Fatalf("%x", v)
		}
		if lsn, latest, err := AppliedOf(v); err == nil && !bytes.Equal(AppendApplied(nil, lsn, latest)[:len(v)], v) {
			t.Fatalf("%x", v)
		}
		_, _ = SinkOf(v) // must not panic
		inv := new(storepb.Invocation)
		if inv.UnmarshalVT(v) == nil {
			// A result can be missing, damaged, or read; it must not panic.
			Result(testID(1), inv, func([]byte) ([]byte, bool, error) { return v, len(v)%2 == 0, nil })
		}
		for _, m := range []interface{ UnmarshalVT([]byte) error }{
			new(storepb.Awaited), new(storepb.Lock), new(storepb.Inboxed), new(storepb.Promise), new(storepb.Event), new(storepb.Counters), new(storepb.Leader),
		} {
			m.UnmarshalVT(v)
		}
	})
}
